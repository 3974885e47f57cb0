/* Each input channel is filtered by itself; weights int8 by output channel, then kernel row and column. One pixel or four
 * at once. */
INLINE void depthwise(const conv_t *c, const uint8_t *window, uint32_t row_bytes, uint8_t *out, const int pixels)
{
    const uint32_t step = (uint32_t)c->stride_w * c->in_c;
    const int out_c = c->out_c, filters = out_c / c->in_c;
    for (int x = 0; x < c->out_w; x += pixels) {
        if (x + pixels > c->out_w)
            x = c->out_w - pixels;
        const int8_t *w = (const int8_t *)c->weights;
        for (int o = 0, channel = 0, filter = 0; o < out_c; o++) {
            uint32_t sums[4], a = 0, b = 0, d = 0, e = 0;
            const uint8_t *row = window + (uint32_t)x * step + channel;
            for (int k = 0; k < c->kernel_h; k++, row += row_bytes) {
                const uint8_t *p = row;
                for (int l = 0; l < c->kernel_w; l++, p += c->in_c) {
                    const uint32_t weight = (uint32_t)*w++;
                    a += weight * p[0];
                    if (pixels > 1)
                        b += weight * p[step], d += weight * p[2 * step], e += weight * p[3 * step];
                }
            }
            sums[0] = a, sums[1] = b, sums[2] = d, sums[3] = e;
            conv_store(c, x, o, 1, pixels, sums, out);
            if (++filter == filters)
                filter = 0, channel++;
        }
    }
}

/* 3x3, four outputs at once: each input is loaded once for all of them that it is a part of. Weights are int16, which
 * processors load with their sign. `stride`: of pixels; `deep`: bytes between two of them. */
#define DEPTHWISE_COLUMN(i, SUMS)                                                                          \
    {                                                                                                      \
        const uint32_t u = p[i * deep];                                                                    \
        SUMS;                                                                                              \
    }
#define DEPTHWISE_ROW(k, FIRST)                                                                            \
    {                                                                                                      \
        LOAD_FROM_HERE(w);                                                                                 \
        const uint32_t w0 = (uint32_t)w[3 * k], w1 = (uint32_t)w[3 * k + 1], w2 = (uint32_t)w[3 * k + 2];  \
        DEPTHWISE_COLUMN(0, FIRST(a, w0 * u))                                                              \
        if (stride == 1) {                                                                                 \
            DEPTHWISE_COLUMN(1, ADD_IN_ORDER(a, w1 * u); FIRST(b, w0 * u))                                 \
            DEPTHWISE_COLUMN(2, ADD_IN_ORDER(a, w2 * u); ADD_IN_ORDER(b, w1 * u); FIRST(d, w0 * u))        \
            DEPTHWISE_COLUMN(3, ADD_IN_ORDER(b, w2 * u); ADD_IN_ORDER(d, w1 * u); FIRST(e, w0 * u))        \
            DEPTHWISE_COLUMN(4, ADD_IN_ORDER(d, w2 * u); ADD_IN_ORDER(e, w1 * u))                          \
            DEPTHWISE_COLUMN(5, ADD_IN_ORDER(e, w2 * u))                                                   \
        } else {                                                                                           \
            DEPTHWISE_COLUMN(1, ADD_IN_ORDER(a, w1 * u))                                                   \
            DEPTHWISE_COLUMN(2, ADD_IN_ORDER(a, w2 * u); FIRST(b, w0 * u))                                 \
            DEPTHWISE_COLUMN(3, ADD_IN_ORDER(b, w1 * u))                                                   \
            DEPTHWISE_COLUMN(4, ADD_IN_ORDER(b, w2 * u); FIRST(d, w0 * u))                                 \
            DEPTHWISE_COLUMN(5, ADD_IN_ORDER(d, w1 * u))                                                   \
            DEPTHWISE_COLUMN(6, ADD_IN_ORDER(d, w2 * u); FIRST(e, w0 * u))                                 \
            DEPTHWISE_COLUMN(7, ADD_IN_ORDER(e, w1 * u))                                                   \
            DEPTHWISE_COLUMN(8, ADD_IN_ORDER(e, w2 * u))                                                   \
        }                                                                                                  \
        p += row_bytes;                                                                                    \
        LOAD_FROM_HERE(p);                                                                                 \
    }
#define DEPTHWISE_SET(sum, x) (sum = x)

INLINE void depthwise_rows(const conv_t *c, const uint8_t *window, uint32_t row_bytes, uint8_t *out, const int stride,
                           const int deep)
{
    enum { CHANNELS = 4 };
    const int out_w = c->out_w, out_c = c->out_c;
    const int16_t *weights = (const int16_t *)c->weights;
    for (int o = 0, channels; o < out_c; o += channels, weights += 9 * channels) {
        channels = out_c - o < CHANNELS ? out_c - o : CHANNELS;
        for (int x = 0, pixels; x < out_w; x += pixels) {
            uint32_t sums[CHANNELS * COLUMNS], *s = sums;
            pixels = out_w - x < COLUMNS ? out_w - x : COLUMNS;
            if (pixels < 4)
                x = out_w - 4, pixels = 4;
            const int16_t *w = weights;
            for (int i = 0; i < channels; i++, w += 9) {
                const uint8_t *first = window + x * stride * deep + o + i;
                for (int left = pixels; left > 0; left -= 4, s += 4, first += 4 * stride * deep) {
                    if (left < 4)
                        s -= 4 - left, first -= (4 - left) * stride * deep;
                    uint32_t a, b, d, e;
                    const uint8_t *p = first;
                    DEPTHWISE_ROW(0, DEPTHWISE_SET)
                    DEPTHWISE_ROW(1, ADD_IN_ORDER)
                    DEPTHWISE_ROW(2, ADD_IN_ORDER)
                    s[0] = a, s[1] = b, s[2] = d, s[3] = e;
                }
            }
            conv_store(c, x, o, channels, pixels, sums, out);
        }
    }
}

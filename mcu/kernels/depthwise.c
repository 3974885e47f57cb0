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

enum { COLUMNS = 16 }; /* outputs that are summed before they are stored */

/* 3x3 at stride 1: along a row, each column of three values is loaded once, for the three outputs that it is a part of. */
INLINE void depthwise_columns(const conv_t *c, const uint8_t *window, uint32_t row_bytes, uint8_t *out)
{
    const int filters = c->out_c / c->in_c;
    const int8_t *w = (const int8_t *)c->weights;
    for (int o = 0, channel = 0, filter = 0; o < c->out_c; o++, w += 9) {
        const uint32_t w0 = (uint32_t)w[0], w1 = (uint32_t)w[1], w2 = (uint32_t)w[2];
        const uint32_t w3 = (uint32_t)w[3], w4 = (uint32_t)w[4], w5 = (uint32_t)w[5];
        const uint32_t w6 = (uint32_t)w[6], w7 = (uint32_t)w[7], w8 = (uint32_t)w[8];
        for (int x = 0; x < c->out_w; x += COLUMNS) {
            const int pixels = c->out_w - x < COLUMNS ? c->out_w - x : COLUMNS;
            uint32_t sums[COLUMNS + 2], one = 0, two = 0; /* of outputs that lack one column, and two */
            const uint8_t *p = window + (uint32_t)x * c->in_c + channel;
            for (uint32_t *sum = sums; sum < sums + pixels + 2; p += c->in_c) { /* the first two are no output's */
                const uint32_t u = p[0], v = p[row_bytes], t = p[2 * row_bytes];
                *sum++ = one + w2 * u + w5 * v + w8 * t;
                one = two + w1 * u + w4 * v + w7 * t;
                two = w0 * u + w3 * v + w6 * t;
            }
            conv_store(c, x, o, 1, pixels, sums + 2, out);
        }
        if (++filter == filters)
            filter = 0, channel++;
    }
}

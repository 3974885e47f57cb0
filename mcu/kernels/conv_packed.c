/* Weights of few bits, as packed_word.c has them: a word holds four taps of two outputs, so that one multiplication serves
 * both: u * (w0 + 65536 w1). The sums of c->chunk products fit 16 bits with their sign, whatever the activations; then they
 * are taken apart. One pixel or four at once. */
#define PACKED_TAP(i)                                                \
    {                                                                \
        const uint32_t both = (word & mask) - offset;                \
        a0 += both * p[i];                                           \
        if (pixels > 1)                                              \
            a1 += both * q[i], a2 += both * r[i], a3 += both * s[i]; \
        word >>= bits;                                               \
    }
/* The higher sum by itself; the lower one is what it leaves of the total. */
#define PACKED_PART(i) (total##i += a##i, high##i += (uint32_t)((int32_t)(a##i + 0x8000u) >> 16))
#define PACKED_LOW(i) (total##i - (high##i << 16))

INLINE void conv_packed(
    const conv_t *c, const uint8_t *window, uint32_t row_bytes, uint8_t *out, const int bits, const int pixels)
{
    const uint32_t run = (uint32_t)c->kernel_w * c->in_c, step = (uint32_t)c->stride_w * c->in_c;
    const uint32_t mask = 0x00010001u * ((1u << bits) - 1), offset = 0x00010001u << (bits - 1);
    const uint32_t chunk = c->chunk;
    const int out_c = c->out_c;
    for (int x = 0; x < c->out_w; x += pixels) {
        if (x + pixels > c->out_w)
            x = c->out_w - pixels;
        uint32_t at = 0;
        for (int o = 0; o < out_c; o += 2) {
            uint32_t total0 = 0, total1 = 0, total2 = 0, total3 = 0, high0 = 0, high1 = 0, high2 = 0, high3 = 0;
            const uint8_t *row = window + (uint32_t)x * step;
            for (int k = 0; k < c->kernel_h; k++, row += row_bytes) {
                const uint8_t *p = row, *q = row, *r = row, *s = row;
                if (pixels > 1)
                    q += step, r += 2 * step, s += 3 * step;
                for (uint32_t left = run; left;) {
                    uint32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, taps = left < chunk ? left : chunk;
                    left -= taps;
                    for (; taps >= 4; taps -= 4, p += 4, q += 4, r += 4, s += 4) {
                        uint32_t word = packed_word(c->weights, at++, bits);
                        PACKED_TAP(0) PACKED_TAP(1) PACKED_TAP(2) PACKED_TAP(3)
                    }
                    if (taps)
                        for (uint32_t word = packed_word(c->weights, at++, bits); taps--; p++, q++, r++, s++)
                            PACKED_TAP(0)
                    PACKED_PART(0);
                    if (pixels > 1)
                        PACKED_PART(1), PACKED_PART(2), PACKED_PART(3);
                }
            }
            const uint32_t one[2] = {PACKED_LOW(0), high0};
            const uint32_t four[8] = {PACKED_LOW(0), PACKED_LOW(1), PACKED_LOW(2), PACKED_LOW(3), high0, high1, high2, high3};
            conv_store(c, x, o, out_c - o < 2 ? 1 : 2, pixels, pixels > 1 ? four : one, out);
        }
    }
}

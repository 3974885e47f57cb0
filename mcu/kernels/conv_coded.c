/* Only weights that are not zero, as codes of `width` bits one right after the other. The weights begin with a table of
 * what a code is: in the lower byte the gap from the value before, in the upper one a weight, which is 0 where a code only
 * bridges a gap. The codes follow in words of 16 bits, the first in the lowest bits. One, four or eight pixels at once. */

/* `step` and `wide` as in conv_sparse.c, from which SPARSE_TAKE is. */
INLINE void conv_coded(const conv_t *c, const uint8_t *window, uint32_t row_bytes, uint8_t *out, const int width,
                       const int pixels, const int step, const int wide)
{
    const int16_t *const table = (const int16_t *)c->weights;
    const int out_c = c->out_c;
    for (int x = 0; x < c->out_w; x += pixels) {
        if (x + pixels > c->out_w)
            x = c->out_w - pixels;
        const uint16_t *w = (const uint16_t *)table + (1 << width), *wide_count = (const uint16_t *)c->counts;
        const uint8_t *narrow_count = (const uint8_t *)c->counts;
        uint32_t bits = 0;
        int have = 0;
        for (int o = 0; o < out_c; o++) {
            uint32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, a4 = 0, a5 = 0, a6 = 0, a7 = 0;
            const uint8_t *row = window + x * step;
            for (int k = 0; k < c->kernel_h; k++, row += row_bytes) {
                const uint8_t *p = row;
                for (uint32_t n = wide ? *wide_count++ : *narrow_count++; n; n--) {
                    if (have < width) {
                        bits |= (uint32_t)*w++ << have;
                        have += 16;
                    }
                    const int32_t code = table[bits & ((1u << width) - 1)];
                    bits >>= width;
                    have -= width;
                    p += code & 255;
                    SPARSE_TAKE(code >> 8)
                }
            }
            const uint32_t sums[8] = {a0, a1, a2, a3, a4, a5, a6, a7};
            conv_store(c, x, o, 1, pixels, sums, out);
        }
    }
}

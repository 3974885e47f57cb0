/* Only weights that are not zero are stored, each with the gap to it from the one before, in one of three forms:
 * PAIRS, a byte of gap and a byte of weight + 128; TRIPLETS, a byte of two gaps of 4 bits and two of weight + 128; NIBBLES,
 * weight + 8 and gap in one byte. A gap that is too large is made of zeros between. One, four or eight pixels at once. */
enum { PAIRS = 2, TRIPLETS = 3, NIBBLES = 1 }; /* bytes of a group */

#define SPARSE_TAKE(stored)                                                                     \
    {                                                                                           \
        const uint32_t weight = (uint32_t)(stored);                                             \
        a0 += weight * p[0];                                                                    \
        if (pixels > 1)                                                                         \
            a1 += weight * p[step], a2 += weight * p[2 * step], a3 += weight * p[3 * step];     \
        if (pixels > 4)                                                                         \
            a4 += weight * p[4 * step], a5 += weight * p[5 * step], a6 += weight * p[6 * step], \
                a7 += weight * p[7 * step];                                                     \
    }

/* `step`: bytes between two pixels, a constant so that it lies in the load; `wide`: whether counts have 16 bits. */
INLINE void conv_sparse(const conv_t *c, const uint8_t *window, uint32_t row_bytes, uint8_t *out, const int form,
                        const int pixels, const int step, const int wide)
{
    const int out_c = c->out_c;
    for (int x = 0; x < c->out_w; x += pixels) {
        if (x + pixels > c->out_w)
            x = c->out_w - pixels; /* the last pixels once more rather than one by one */
        const uint8_t *w = (const uint8_t *)c->weights, *narrow_count = (const uint8_t *)c->counts;
        const uint16_t *wide_count = (const uint16_t *)c->counts;
        for (int o = 0; o < out_c; o++) {
            uint32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, a4 = 0, a5 = 0, a6 = 0, a7 = 0;
            const uint8_t *row = window + x * step;
            for (int k = 0; k < c->kernel_h; k++, row += row_bytes) {
                const uint8_t *p = row;
                for (const uint8_t *end = w + (wide ? *wide_count++ : *narrow_count++) * form; w < end; w += form) {
                    if (form == NIBBLES) {
                        p += w[0] & 15;
                        SPARSE_TAKE((w[0] >> 4) - 8)
                    } else {
                        p += form == TRIPLETS ? w[0] & 15 : w[0];
                        SPARSE_TAKE(w[1] - 128)
                    }
                    if (form == TRIPLETS) {
                        p += w[0] >> 4;
                        SPARSE_TAKE(w[2] - 128)
                    }
                }
            }
            const uint32_t sums[8] = {a0, a1, a2, a3, a4, a5, a6, a7};
            conv_store(c, x, o, 1, pixels, sums, out);
        }
    }
}

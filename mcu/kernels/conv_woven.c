/* Three outputs share two words, so that two multiplications do the work of three: a holds s0 + 2^21 s1 and b holds
 * s2 + 2^10 s1, modulo 2^32, with each sum's 21 bits; of s1 the lower 11 lie in a, the others then in b. Weights are words
 * that are made alike. Sums start at 2^20, which the bias takes off again, so that none is negative. Four pixels at once. */
enum { WOVEN_A = 1 << 20, WOVEN_B = (1 << 20) + (1 << 30), WOVEN_MASK = (1 << 21) - 1 };

#define WOVEN_PIXEL(at, a, b, words)         \
    {                                        \
        const uint32_t u = p[at];            \
        ADD_IN_ORDER(a, first * u);          \
        if (words > 1)                       \
            ADD_IN_ORDER(b, second * u);     \
    }
#define WOVEN_TAP(i, words)                                                     \
    {                                                                           \
        const uint32_t first = w[words * i], second = w[words * i + words - 1]; \
        WOVEN_PIXEL(i, a0, b0, words)                                           \
        WOVEN_PIXEL(step + i, a1, b1, words)                                    \
        WOVEN_PIXEL(2 * step + i, a2, b2, words)                                \
        WOVEN_PIXEL(3 * step + i, a3, b3, words)                                \
    }
#define WOVEN_TAPS(words)                                                               \
    for (int k = 0; k < rows; k++, p += row_bytes - (uint32_t)run)                      \
        for (const uint8_t *end = p + length; p < end; p += taps, w += words * taps) {  \
            WOVEN_TAP(0, words)                                                         \
            if (taps > 1)                                                               \
                WOVEN_TAP(1, words)                                                     \
            if (taps > 2)                                                               \
                WOVEN_TAP(2, words)                                                     \
            if (taps > 3)                                                               \
                WOVEN_TAP(3, words)                                                     \
            if (taps > 4) {                                                             \
                WOVEN_TAP(4, words)                                                     \
                WOVEN_TAP(5, words)                                                     \
                WOVEN_TAP(6, words)                                                     \
                WOVEN_TAP(7, words)                                                     \
            }                                                                           \
        }
#define WOVEN_APART(i, a, b)                                  \
    {                                                         \
        const uint32_t low = a >> 21, rest = b - (low << 10); \
        s0[i] = a & WOVEN_MASK;                               \
        s1[i] = low + (rest >> 21 << 11);                     \
        s2[i] = rest & WOVEN_MASK;                            \
    }

/* Constants, so that they lie in the instructions: `step`, bytes between two pixels; `rows` of the kernel; `run`, the taps
 * of a row; `one`, whether the last output is alone and has words of its own. */
INLINE void conv_woven(const conv_t *c, const uint8_t *window, uint32_t row_bytes, uint8_t *out, const int step,
                       const int rows, const int run, const int one)
{
    const int taps = run % 8 == 0 ? 8 : run % 4 == 0 ? 4 : run % 3 == 0 ? 3 : run % 2 == 0 ? 2 : 1; /* at once */
    const int out_w = c->out_w, out_c = c->out_c, length = c->kernel_w * c->in_c; /* `run`; a loop of one pass is no loop to a
                                                                                    * compiler, which then loads too early */
    const uint32_t *weights = (const uint32_t *)c->weights;
    for (int o = 0; o < out_c; o += 3, weights += 2 * run * rows) {
        const int outputs = out_c - o < 3 ? out_c - o : 3;
        for (int x = 0, pixels; x < out_w; x += pixels) {
            uint32_t sums[3 * COLUMNS], *s0 = sums;
            pixels = out_w - x < COLUMNS ? out_w - x : COLUMNS;
            if (pixels < 4) /* pixels once more rather than one by one */
                x = out_w - 4, pixels = 4;
            const uint8_t *first_pixel = window + x * step;
            for (int left = pixels; left > 0; left -= 4, s0 += 4, first_pixel += 4 * step) {
                if (left < 4)
                    s0 -= 4 - left, first_pixel -= (4 - left) * step;
                uint32_t a0 = WOVEN_A, a1 = WOVEN_A, a2 = WOVEN_A, a3 = WOVEN_A;
                uint32_t b0 = WOVEN_B, b1 = WOVEN_B, b2 = WOVEN_B, b3 = WOVEN_B;
                const uint32_t *w = weights;
                const uint8_t *p = first_pixel;
                if (one && outputs == 1) {
                    WOVEN_TAPS(1)
                    s0[0] = a0, s0[1] = a1, s0[2] = a2, s0[3] = a3;
                    continue;
                }
                WOVEN_TAPS(2)
                uint32_t *s1 = s0 + pixels, *s2 = s1 + pixels;
                WOVEN_APART(0, a0, b0)
                WOVEN_APART(1, a1, b1)
                WOVEN_APART(2, a2, b2)
                WOVEN_APART(3, a3, b3)
            }
            conv_store(c, x, o, outputs, pixels, sums, out);
        }
    }
}

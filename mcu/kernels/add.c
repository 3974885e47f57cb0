/* Both at 2^20 times a grid of twice the larger scale. rescale(x << 20, m, s) for |x| <= 255 and s <= 0, in 32 bits:
 * (x m 2^20 + 2^30) >> 31 = x (m >> 11) + ((x (m & 2047) + 2^10) >> 11). */
static inline int32_t add_term(int32_t x, int32_t multiplier, int shift)
{
    return divide_by_power(x * (multiplier >> 11) + ((x * (multiplier & 2047) + 1024) >> 11), -shift);
}

/* `terms`: room for 512, where so many values are added that a table of their terms is worth it; or NULL. */
static void add(const pair_t *pair, const uint8_t *a_values, const uint8_t *b_values, uint8_t *out, int32_t *terms,
                int subtract)
{
    const int sign = subtract ? -1 : 1;
    if (terms) {
        for (int i = 0; i < 256; i++) {
            terms[i] = add_term(i - pair->a_zero, pair->a_multiplier, pair->a_shift);
            terms[256 + i] = sign * add_term(i - pair->b_zero, pair->b_multiplier, pair->b_shift);
        }
        FOR_EACH_PAIR(e.out_zero + rescale(terms[a] + terms[256 + b], e.out_multiplier, e.out_shift))
    } else {
        FOR_EACH_PAIR(e.out_zero + rescale(add_term(a - e.a_zero, e.a_multiplier, e.a_shift) +
                                               sign * add_term(b - e.b_zero, e.b_multiplier, e.b_shift),
                                           e.out_multiplier, e.out_shift))
    }
}

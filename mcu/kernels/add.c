/* Both at 2^20 times a grid of twice the larger scale. rescale(x << 20, m, s) for |x| <= 255 and s <= 0, in 32 bits:
 * (x m 2^20 + 2^30) >> 31 = x (m >> 11) + ((x (m & 2047) + 2^10) >> 11). */
static inline int32_t add_term(int32_t x, int32_t multiplier, int shift)
{
    return divide_by_power(x * (multiplier >> 11) + ((x * (multiplier & 2047) + 1024) >> 11), -shift);
}

static void add(const pair_t *pair, const uint8_t *a_values, const uint8_t *b_values, uint8_t *out, int subtract)
{
    const int sign = subtract ? -1 : 1;
    FOR_EACH_PAIR(e.out_zero + rescale(add_term(a - e.a_zero, e.a_multiplier, e.a_shift) +
                                           sign * add_term(b - e.b_zero, e.b_multiplier, e.b_shift),
                                       e.out_multiplier, e.out_shift))
}

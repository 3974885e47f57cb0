/* Both at 2^7 times a grid of twice the larger scale; the square of their difference fits 32 bits. */
static inline int32_t squared(int32_t x) { return x * x; }

static void squared_difference(const pair_t *pair, const uint8_t *a_values, const uint8_t *b_values, uint8_t *out)
{
    FOR_EACH_PAIR(e.out_zero + rescale(squared(rescale((a - e.a_zero) * 128, e.a_multiplier, e.a_shift) -
                                               rescale((b - e.b_zero) * 128, e.b_multiplier, e.b_shift)),
                                       e.out_multiplier, e.out_shift))
}

/* The second less the first. Both at 2^20 times a grid of twice the larger scale, as in add.c. */
static void sub_from(const pair_t *pair, const uint8_t *a_values, const uint8_t *b_values, uint8_t *out)
{
    FOR_EACH_PAIR(e.out_zero + rescale(rescale((b - e.b_zero) * (1 << 20), e.b_multiplier, e.b_shift) -
                                           rescale((a - e.a_zero) * (1 << 20), e.a_multiplier, e.a_shift),
                                       e.out_multiplier, e.out_shift))
}

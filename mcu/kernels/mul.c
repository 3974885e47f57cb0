static void mul(const pair_t *pair, const uint8_t *a_values, const uint8_t *b_values, uint8_t *out)
{
    FOR_EACH_PAIR(e.out_zero + rescale((a - e.a_zero) * (b - e.b_zero), e.out_multiplier, e.out_shift))
}

static void mul(const pair_t *pair, const uint8_t *a_values, const uint8_t *b_values, uint8_t *out)
{
    const int power = -pair->out_shift;
    const int32_t half = power > 0 ? 1 << (power - 1) : 0;
    if (power > 0) {
        FOR_EACH_PAIR(e.out_zero + rescale_small((a - e.a_zero) * (b - e.b_zero), e.out_multiplier, power, half))
    } else {
        FOR_EACH_PAIR(e.out_zero + rescale((a - e.a_zero) * (b - e.b_zero), e.out_multiplier, e.out_shift))
    }
}

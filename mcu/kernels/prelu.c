/* The first where it is positive, else its product with the second. */
static void prelu(const pair_t *pair, const uint8_t *a_values, const uint8_t *b_values, uint8_t *out)
{
    FOR_EACH_PAIR(e.out_zero + (a >= e.a_zero ? rescale(a - e.a_zero, e.a_multiplier, e.a_shift)
                                              : rescale((a - e.a_zero) * (b - e.b_zero), e.out_multiplier, e.out_shift)))
}

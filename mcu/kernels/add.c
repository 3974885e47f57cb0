/* Both at 2^20 times a grid of twice the larger scale; SUB has a negative b_multiplier's sign in its second term. */
static void add(const pair_t *e, const uint8_t *a_values, const uint8_t *b_values, uint8_t *out, int subtract)
{
    FOR_EACH_PAIR(e->out_zero +
                  rescale(rescale((int32_t)((uint32_t)(a - e->a_zero) << 20), e->a_multiplier, e->a_shift) +
                              (subtract ? -1 : 1) *
                                  rescale((int32_t)((uint32_t)(b - e->b_zero) << 20), e->b_multiplier, e->b_shift),
                          e->out_multiplier, e->out_shift))
}

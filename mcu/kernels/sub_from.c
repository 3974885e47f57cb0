/* The second less the first. */
static void sub_from(const pair_t *pair, const uint8_t *a_values, const uint8_t *b_values, uint8_t *out)
{
    FOR_EACH_PAIR(e.out_zero + rescale(add_term(b - e.b_zero, e.b_multiplier, e.b_shift) -
                                           add_term(a - e.a_zero, e.a_multiplier, e.a_shift),
                                       e.out_multiplier, e.out_shift))
}

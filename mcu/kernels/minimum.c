static void minimum(const pair_t *pair, const uint8_t *a_values, const uint8_t *b_values, uint8_t *out)
{
    FOR_EACH_PAIR(a < b ? a : b)
}

/* Sums and products of two tensors of int16; the second may repeat: value i of it stands at i / inner % size. */
typedef struct {
    uint32_t values, b_inner, b_size;
    int32_t a_multiplier, b_multiplier, out_multiplier;
    int16_t out_low, out_high;
    int8_t a_shift, b_shift, out_shift;
    uint8_t product;
} wide_pair_t;

static void wide_pair(const wide_pair_t *e, const uint8_t *a_values, const uint8_t *b_values, uint8_t *to)
{
    const int16_t *a = (const int16_t *)(const void *)a_values, *b = (const int16_t *)(const void *)b_values;
    int16_t *out = (int16_t *)(void *)to;
    for (uint32_t i = 0, left = e->b_inner, at = 0; i < e->values; i++) {
        const int32_t x = a[i], y = b[at];
        const int32_t both = e->product ? x * y : rescale(x * (1 << 15), e->a_multiplier, e->a_shift) +
                                                     rescale(y * (1 << 15), e->b_multiplier, e->b_shift);
        const int32_t value = rescale(both, e->out_multiplier, e->out_shift);
        out[i] = (int16_t)(value < e->out_low ? e->out_low : value > e->out_high ? e->out_high : value);
        if (--left == 0)
            left = e->b_inner, at = at + 1 == e->b_size ? 0 : at + 1;
    }
}

/* Two tensors, value by value; the second may repeat: value i of it stands at i / inner % size. */
typedef struct {
    uint32_t values, b_inner, b_size;
    int32_t a_zero, b_zero, out_zero, out_low, out_high;
    int32_t a_multiplier, b_multiplier, out_multiplier;
    int8_t a_shift, b_shift, out_shift;
} pair_t;

/* `e` is a copy, which no store to `out` can change. */
#define FOR_EACH_PAIR(EXPRESSION)                                                       \
    const pair_t e = *pair;                                                             \
    const uint8_t *b_value = b_values, *b_end = b_values + e.b_size;                    \
    uint32_t left = e.b_inner;                                                          \
    for (const uint8_t *end = a_values + e.values; a_values < end;) {                   \
        const int32_t a = *a_values++, b = *b_value;                                    \
        *out++ = clamp((EXPRESSION), e.out_low, e.out_high);                            \
        if (--left == 0) {                                                              \
            left = e.b_inner;                                                           \
            if (++b_value == b_end)                                                     \
                b_value = b_values;                                                     \
        }                                                                               \
    }

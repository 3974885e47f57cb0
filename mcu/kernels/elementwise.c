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
    for (const uint8_t *end = a_values + e.values; a_values < end;)                     \
        for (uint32_t j = 0; j < e.b_size; j++) {                                       \
            const int32_t b = b_values[j];                                              \
            for (uint32_t n = e.b_inner; n--;) {                                        \
                const int32_t a = *a_values++;                                          \
                *out++ = clamp((EXPRESSION), e.out_low, e.out_high);                    \
            }                                                                           \
        }

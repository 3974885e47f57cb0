/* Two tensors, value by value; the second may repeat: value i of it stands at i / inner % size. */
typedef struct {
    uint32_t values, b_inner, b_size;
    int32_t a_zero, b_zero, out_zero, out_low, out_high;
    int32_t a_multiplier, b_multiplier, out_multiplier;
    int8_t a_shift, b_shift, out_shift;
} pair_t;

#define FOR_EACH_PAIR(EXPRESSION)                                                       \
    for (uint32_t i = 0, inner = 0, j = 0; i < e->values; i++) {                        \
        const int32_t a = a_values[i], b = b_values[j];                                 \
        out[i] = clamp((EXPRESSION), e->out_low, e->out_high);                          \
        if (++inner == e->b_inner) {                                                    \
            inner = 0;                                                                  \
            if (++j == e->b_size)                                                       \
                j = 0;                                                                  \
        }                                                                               \
    }

/* Convolutions and matrix products (a matrix product is a convolution of one pixel). Inside, an activation is its int8
 * value + 128, so that no load needs a sign; the input's zero point lies in the bias. */
typedef struct conv {
    const void *weights;       /* as the row function has them */
    const void *counts;        /* sparse: groups of weights, by output and kernel row */
    const int32_t *bias, *multiplier;
    const int8_t *shift;
    const uint8_t *low, *high; /* bounds by output channel, or NULL */
    uint16_t in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w;
    uint16_t chunk;            /* packed: taps whose products fit 16 bits */
    uint8_t stride_h, stride_w, pad_top, pad_left;
    uint8_t in_zero, out_zero, out_low, out_high;
    uint8_t small;             /* whether every sum lies within 2^20 and every shift is to the right */
    void (*row)(const struct conv *c, const uint8_t *window, uint32_t row_bytes, uint8_t *out);
} conv_t;

#define INLINE static inline __attribute__((always_inline))

/* Values of `outputs` channels from o on and `pixels` pixels from x on, from sums[outputs][pixels]: for each channel
 * `*to = clamp(EXPRESSION, low, high)` with each sum x, its bias added. */
#define CONV_STORE(EXPRESSION)                                                                                     \
    const int out_c = c->out_c, zero = c->out_zero;                                                                \
    for (out += x * out_c + o; outputs--; o++, out++) {                                                            \
        const int32_t multiplier = c->multiplier[o];                                                               \
        const uint32_t bias = (uint32_t)c->bias[o];                                                                \
        const int shift = c->shift[o];                                                                             \
        const int low = c->low ? c->low[o] : c->out_low, high = c->low ? c->high[o] : c->out_high;                 \
        uint8_t *to = out;                                                                                         \
        for (const uint32_t *end = sums + pixels; sums < end; to += out_c) {                                       \
            const int32_t sum = (int32_t)(*sums++ + bias);                                                         \
            *to = clamp((EXPRESSION) + zero, low, high);                                                           \
        }                                                                                                          \
    }

/* A function of its own: inlined, it would take registers from the one below. */
static __attribute__((noinline)) void conv_store_any(const conv_t *c, int x, int o, int outputs, int pixels,
                                                     const uint32_t *sums, uint8_t *out)
{
    CONV_STORE(rescale(sum, multiplier, shift))
}

static void conv_store(const conv_t *c, int x, int o, int outputs, int pixels, const uint32_t *sums, uint8_t *out)
{
    if (!c->small) {
        conv_store_any(c, x, o, outputs, pixels, sums, out);
        return;
    }
    CONV_STORE(rescale_small(sum, multiplier, -shift, 1 << (-shift - 1)))
}

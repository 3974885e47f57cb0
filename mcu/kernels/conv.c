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

/* memmove to a lower address or elsewhere; by words where all is aligned, since some C libraries move single bytes. */
static void conv_move(uint8_t *to, const uint8_t *from, uint32_t bytes)
{
    if ((((uintptr_t)to | (uintptr_t)from | bytes) & 3) == 0)
        for (; bytes; bytes -= 4, to += 4, from += 4)
            *(uint32_t *)(void *)to = *(const uint32_t *)(const void *)from;
    else
        memmove(to, from, bytes);
}

/* One input row as the kernel sees it, with zero points at both ends. */
static void conv_fill(const conv_t *c, const uint8_t *in, int y, uint8_t *to, uint32_t row_bytes)
{
    uint32_t left = (uint32_t)c->pad_left * c->in_c, have = (uint32_t)c->in_w * c->in_c;
    if (y < 0 || y >= c->in_h) {
        memset(to, c->in_zero, row_bytes);
        return;
    }
    if (have > row_bytes - left)
        have = row_bytes - left;
    memset(to, c->in_zero, left);
    conv_move(to + left, in + (uint32_t)y * c->in_w * c->in_c, have);
    memset(to + left + have, c->in_zero, row_bytes - left - have);
}

/* `window` holds kernel_h rows; without one, rows are read where they lie (kernels of one row, no padding). */
static void conv(const conv_t *c, const uint8_t *in, uint8_t *out, uint8_t *window)
{
    uint32_t row_bytes = ((uint32_t)(c->out_w - 1) * c->stride_w + c->kernel_w) * c->in_c;
    int next = -c->pad_top; /* the first input row that is not in the window yet */
    for (int y = 0; y < c->out_h; y++) {
        int top = y * c->stride_h - c->pad_top;
        if (!window) {
            c->row(c, in + (uint32_t)top * c->in_w * c->in_c, row_bytes, out);
        } else {
            int keep = y ? next - top : 0;
            if (keep > 0)
                conv_move(window, window + (uint32_t)(c->kernel_h - keep) * row_bytes, (uint32_t)keep * row_bytes);
            for (int k = keep > 0 ? keep : 0; k < c->kernel_h; k++)
                conv_fill(c, in, top + k, window + (uint32_t)k * row_bytes, row_bytes);
            next = top + c->kernel_h;
            c->row(c, window, row_bytes, out);
        }
        out += (uint32_t)c->out_w * c->out_c;
    }
}

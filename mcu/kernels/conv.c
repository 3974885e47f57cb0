/* Convolutions and matrix products (a matrix product is a convolution of one pixel). Inside, an activation is its int8
 * value + 128, so that no load needs a sign; the input's zero point lies in the bias. */

typedef struct conv {
    const void *weights;       /* as the row function has them */
    const void *counts;        /* sparse: groups of weights, by output and kernel row */
    const int32_t *bias, *multiplier;
    const int8_t *shift;
    const uint8_t *low, *high; /* bounds by output channel, or NULL */
    const uint32_t *grid;      /* lines by output channel, in place of all these, or NULL */
    uint16_t in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w;
    uint16_t chunk;            /* packed: taps whose products fit 16 bits */
    uint8_t stride_h, stride_w, pad_top, pad_left;
    uint8_t in_zero, out_zero, out_low, out_high;
    uint8_t small;             /* whether every sum lies within 2^20 and every shift is to the right */
    uint8_t turned;            /* whether lines have values below the zero point */
    void (*row)(const struct conv *c, const uint8_t *window, uint32_t row_bytes, uint8_t *out);
} conv_t;

#define INLINE static inline __attribute__((always_inline))

/* A kernel's sums and pointers just fit the registers. A compiler that moves products ahead of other sums, or loads weights
 * long before, has to put some of them into memory. */
#if defined(__GNUC__) && (defined(__XTENSA__) || defined(__riscv))
#define ADD_IN_ORDER(sum, x) __asm__ volatile("add %0, %0, %1" : "+r"(sum) : "r"(x))
#else
#define ADD_IN_ORDER(sum, x) (sum += x)
#endif
#if defined(__GNUC__) && defined(__XTENSA__)
#define LOAD_FROM_HERE(pointer) __asm__ volatile("" : "+r"(pointer))
#define SELDOM(condition) __builtin_expect(condition, 0)
#else
#define LOAD_FROM_HERE(pointer) (void)(pointer)
#define SELDOM(condition) (condition)
#endif

enum { COLUMNS = 48 }; /* outputs of a channel that some kernels sum before they are stored */

/* Values of `outputs` channels from o on and `pixels` pixels from x on, from sums[outputs][pixels]: for each channel its
 * NUMBERS, and with each sum, its bias added, `*to = EXPRESSION`; one or four SUMS at once. A function of its own: inlined,
 * it would take registers from a kernel. */
#define CONV_STORE(NAME, NUMBERS, SUMS, EXPRESSION)                                                           \
    static __attribute__((noinline)) void NAME(const conv_t *c, int x, int o, int outputs, int pixels,        \
                                               const uint32_t *sums, uint8_t *out)                            \
    {                                                                                                         \
        const int out_c = c->out_c;                                                                           \
        for (out += x * out_c + o; outputs--; o++, out++) {                                                   \
            NUMBERS                                                                                           \
            uint8_t *to = out;                                                                                \
            const uint32_t *const end = sums + pixels;                                                        \
            if (SUMS == 4)                                                                                    \
                for (const uint32_t *four = sums + (pixels & ~3); sums < four; sums += 4) {                   \
                    CONV_STORE_ONE(0, EXPRESSION)                                                             \
                    CONV_STORE_ONE(1, EXPRESSION)                                                             \
                    CONV_STORE_ONE(2, EXPRESSION)                                                             \
                    CONV_STORE_ONE(3, EXPRESSION)                                                             \
                }                                                                                             \
            for (; sums < end; sums++)                                                                        \
                CONV_STORE_ONE(0, EXPRESSION)                                                                 \
        }                                                                                                     \
    }
#define CONV_STORE_ONE(i, EXPRESSION)                    \
    {                                                    \
        const int32_t sum = (int32_t)(sums[i] + bias);   \
        *to = EXPRESSION;                                \
        to += out_c;                                     \
    }

#define BY_MULTIPLIER                                                                              \
    const int32_t multiplier = c->multiplier[o];                                                   \
    const int shift = c->shift[o], zero = c->out_zero;                                             \
    const int low = c->low ? c->low[o] : c->out_low, high = c->low ? c->high[o] : c->out_high;     \
    const uint32_t bias = (uint32_t)c->bias[o];
CONV_STORE(conv_store_any, BY_MULTIPLIER, 1, clamp(rescale(sum, multiplier, shift) + zero, low, high))
CONV_STORE(conv_store_small, BY_MULTIPLIER, 1,
           clamp(rescale_small(sum, multiplier, -shift, 1 << (-shift - 1)) + zero, low, high))

/* How sums become values in two products of 32 bits: a value is the upper byte of a line. codegen makes it where no sum
 * gives another byte than TFLite's roundings. Five words of a channel: its bias, with which a sum is 0 where the values
 * start to rise; times 4096 the sum where they end to rise, plus the lower 12 bits of the slope; the slope without these
 * bits, in 1/2^24 of a value; the line at 0; times 4096 the sum below which values lie that are rounded lower, plus the
 * power of two by which. */
static inline uint8_t on_line(int32_t sum, int32_t limit, uint32_t coarse, uint32_t fine, uint32_t start, int32_t turn,
                              uint32_t lower)
{
    if (!lower && sum < 0) /* often, behind a ReLU */
        return (uint8_t)(start >> 24);
    sum = sum < 0 ? 0 : sum;
    if (SELDOM(sum > limit)) {
        sum = limit;
        LOAD_FROM_HERE(sum); /* so that it is a branch, not a minimum, which copies first */
    }
    start += (uint32_t)sum * coarse + ((uint32_t)sum * fine >> 12);
    return (uint8_t)((sum < turn ? start - lower : start) >> 24);
}

#define BY_LINE                                                                                    \
    const uint32_t *line = c->grid + 5 * o;                                                        \
    const uint32_t bias = line[0], fine = line[1] & 4095, coarse = line[2], start = line[3];       \
    const int32_t limit = (int32_t)(line[1] >> 12);
#define BY_TURNED_LINE                                                                             \
    BY_LINE                                                                                        \
    const int32_t turn = (int32_t)(line[4] >> 12);                                                 \
    const uint32_t lower = 1u << (line[4] & 31);
CONV_STORE(conv_store_line, BY_LINE, 4, on_line(sum, limit, coarse, fine, start, 0, 0))
CONV_STORE(conv_store_turned, BY_TURNED_LINE, 4, on_line(sum, limit, coarse, fine, start, turn, lower))

INLINE void conv_store(const conv_t *c, int x, int o, int outputs, int pixels, const uint32_t *sums, uint8_t *out)
{
    (c->grid ? c->turned ? conv_store_turned : conv_store_line
     : c->small ? conv_store_small : conv_store_any)(c, x, o, outputs, pixels, sums, out);
}

/* Convolutions and matrix products for MAC16, which the ESP32 has: in one instruction a product of 16 x 16 bits, its sum
 * and a load. Elsewhere the same is done in C, slowly. Activations are widened to 16 bits for some output rows at once,
 * weights for one output at a time. Four values become two words: 0 and 2, then 1 and 3. */

/* Where the weights of the next output begin. */
typedef struct {
    int output;
    uint32_t at, bits; /* of codes the next word, and of the one before the bits that are not used yet, */
    int have;          /* so many */
} mac16_reader_t;

typedef struct conv_mac16 {
    const void *weights;       /* by output, kernel row and column; channels filled up to a multiple of 4 */
    void (*widen)(const struct conv_mac16 *c, mac16_reader_t *from, uint32_t *to); /* those of an output */
    const int32_t *bias, *multiplier;
    const int8_t *shift;
    const uint8_t *low, *high; /* bounds by output channel, or NULL */
    uint16_t in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w;
    uint16_t rows;             /* output rows at once */
    uint8_t stride_h, stride_w, pad_top, pad_left, in_zero, out_zero, out_low, out_high;
    uint8_t bits;              /* of a weight or a code, where they are no bytes */
    uint8_t plain;             /* whether every sum lies within 2^29, and every shift is to the right by 1 to 22 */
} conv_mac16_t;

/* In words of two values: a pixel, and an input row as it is widened. */
static inline int mac16_pixel(const conv_mac16_t *c)
{
    return (c->in_c + 3) / 4 * 2;
}

/* Words of an output's weights as they are widened. */
static inline int mac16_weight_words(const conv_mac16_t *c)
{
    return c->kernel_h * c->kernel_w * mac16_pixel(c);
}

static inline int mac16_row_words(const conv_mac16_t *c)
{
    return ((c->out_w - 1) * c->stride_w + c->kernel_w) * mac16_pixel(c);
}

/* bias + the products of `kernel_h` rows of `words`; from the end of a row of x to the next one are `gap` words. */
#if defined(__XTENSA__) && defined(__XCHAL_HAVE_MAC16) && __XCHAL_HAVE_MAC16
#define MAC16_BEGIN "wsr %[sum], acclo\n\tldinc m2, %[w]\n\t"
#define MAC16_ROW /* ldinc adds 4 to the address first; two words are under way when a row ends */ \
    "ldinc m0, %[x]\n\t"                                                                           \
    "loop %[pairs], 1f\n\t"                                                                        \
    "mula.dd.ll.ldinc m1, %[x], m0, m2\n\t"                                                        \
    "mula.dd.hh.ldinc m3, %[w], m0, m2\n\t"                                                        \
    "mula.dd.ll.ldinc m0, %[x], m1, m3\n\t"                                                        \
    "mula.dd.hh.ldinc m2, %[w], m1, m3\n"                                                          \
    "1:\n\t"
#define MAC16_NEXT "add %[x], %[x], %[gap]\n\t"
#define MAC16_END "rsr %[sum], acclo"
#ifdef __clang__ /* knows no register of MAC16, and never uses it by itself */
#define MAC16_CLOBBERS "memory"
#else
#define MAC16_CLOBBERS "acc", "memory"
#endif
#define MAC16_IN [pairs] "r"(words / 2), [gap] "r"(4 * gap - 4)
static inline __attribute__((always_inline)) int32_t mac16_sum(const uint32_t *x, const uint32_t *w, int32_t bias,
                                                               int kernel_h, int words, int gap, const int known_h)
{
    uintptr_t from = (uintptr_t)x - 4, weight = (uintptr_t)w - 4;
    if (known_h == 3)
        __asm__ volatile(MAC16_BEGIN MAC16_ROW MAC16_NEXT MAC16_ROW MAC16_NEXT MAC16_ROW MAC16_END
                         : [sum] "+&r"(bias), [x] "+&r"(from), [w] "+&r"(weight) : MAC16_IN : MAC16_CLOBBERS);
    else if (known_h == 1)
        __asm__ volatile(MAC16_BEGIN MAC16_ROW MAC16_END
                         : [sum] "+&r"(bias), [x] "+&r"(from), [w] "+&r"(weight) : MAC16_IN : MAC16_CLOBBERS);
    else
        __asm__ volatile(MAC16_BEGIN "2:\n\t" MAC16_ROW MAC16_NEXT "addi %[left], %[left], -1\n\t"
                                     "bnez %[left], 2b\n\t" MAC16_END
                         : [sum] "+&r"(bias), [x] "+&r"(from), [w] "+&r"(weight), [left] "+&r"(kernel_h)
                         : MAC16_IN : MAC16_CLOBBERS);
    return bias;
}
#else
static inline int32_t mac16_sum(const uint32_t *x, const uint32_t *w, int32_t bias, int kernel_h, int words, int gap,
                                const int known_h)
{
    uint32_t sum = (uint32_t)bias;
    (void)known_h;
    for (; kernel_h--; x += gap)
        for (const uint32_t *end = x + words; x < end; x++, w++)
            sum += (uint32_t)((int32_t)(*x & 0xFFFF) * (int16_t)*w) + (uint32_t)((int32_t)(*x >> 16) * (int16_t)(*w >> 16));
    return (int32_t)sum;
}
#endif

/* Output rows of one channel, from input rows and weights as they are widened. */
static inline __attribute__((always_inline)) void mac16_channel(const conv_mac16_t *c, const uint32_t *strip,
                                                                const uint32_t *weights, int rows, int o, uint8_t *out,
                                                                const int plain, const int known_h)
{
    const int pixel = mac16_pixel(c), row = mac16_row_words(c);
    const int words = c->kernel_w * pixel, gap = row - words, step = c->stride_w * pixel, kernel_h = c->kernel_h;
    const int32_t bias = c->bias[o], multiplier = c->multiplier[o];
    const int shift = c->shift[o], power = -shift & 31, out_c = c->out_c, zero = c->out_zero;
    const int32_t half = plain ? (1 << (power - 1)) + (zero << power) : 0; /* and the zero point, before the shift */
    const int low = c->low ? c->low[o] : c->out_low, high = c->low ? c->high[o] : c->out_high;
    for (out += o; rows--; strip += c->stride_h * row) {
        const uint32_t *x = strip;
        for (int left = c->out_w; left--; x += step, out += out_c) {
            int32_t value = mac16_sum(x, weights, bias, kernel_h, words, gap, known_h);
            if (plain) { /* rescale(), by one product: its lower half says nothing that the higher does not */
                value = ((int32_t)((int64_t)(value * 4) * multiplier >> 32) + 1) >> 1;
                value = (value + half + (value >> 31)) >> power;
            } else {
                value = rescale(value, multiplier, shift) + zero;
            }
            value = value > high ? high : value;
            *out = (uint8_t)(value < low ? low : value);
        }
    }
}

#define MAC16_CHANNEL(name, ...)                                                                                  \
    static __attribute__((noinline)) void name(const conv_mac16_t *c, const uint32_t *strip, const uint32_t *weights, \
                                               int rows, int o, uint8_t *out)                                     \
    {                                                                                                             \
        mac16_channel(c, strip, weights, rows, o, out, __VA_ARGS__);                                              \
    }
MAC16_CHANNEL(mac16_plain_1, 1, 1)
MAC16_CHANNEL(mac16_plain_3, 1, 3)
MAC16_CHANNEL(mac16_plain_any, 1, 0)
MAC16_CHANNEL(mac16_any, 0, 0)

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define MAC16_WORDS 0
#else
#define MAC16_WORDS 1 /* whether the first of four bytes is the lowest of their word */
#endif

static uint32_t *mac16_fill(uint32_t *to, uint32_t word, int words)
{
    while (words-- > 0)
        *to++ = word;
    return to;
}

/* Each word in two, with an 8-bit value in each half; then `add` and `flip`, which make it signed. */
static __attribute__((noinline)) uint32_t *mac16_widen(uint32_t *to, const uint32_t *from, int words, uint32_t add,
                                                       uint32_t flip)
{
    for (; words > 0; words--, to += 2) {
        const uint32_t four = *from++;
        to[0] = ((four & 0x00FF00FF) + add) ^ flip;
        to[1] = ((four >> 8 & 0x00FF00FF) + add) ^ flip;
    }
    return to;
}

/* One input row with zero points at both ends. */
static void mac16_row(const conv_mac16_t *c, const uint8_t *in, int y, uint32_t *to)
{
    const int pixel = mac16_pixel(c), width = (c->out_w - 1) * c->stride_w + c->kernel_w, most = width - c->pad_left;
    const int have = y < 0 || y >= c->in_h ? 0 : c->in_w < most ? c->in_w : most;
    const uint32_t zero = c->in_zero * 0x00010001u;
    const uint8_t *from = have ? in + y * c->in_w * c->in_c : in;
    to = mac16_fill(to, zero, have ? c->pad_left * pixel : 0);
    if (MAC16_WORDS && c->in_c % 4 == 0)
        to = mac16_widen(to, (const uint32_t *)(const void *)from, have * c->in_c / 4, 0, 0);
    else
        for (int x = 0; x < have; x++)
            for (int left = c->in_c; left > 0; left -= 4, from += left < 0 ? 4 + left : 4, to += 2) {
                to[0] = from[0] | (left > 2 ? (uint32_t)from[2] << 16 : 0);
                to[1] = (left > 1 ? from[1] : 0u) | (left > 3 ? (uint32_t)from[3] << 16 : 0);
            }
    mac16_fill(to, zero, have ? (most - have) * pixel : width * pixel);
}

/* `memory` holds the input rows of c->rows output rows and the weights of an output, and two words more. */
static void conv_mac16(const conv_mac16_t *c, const uint8_t *in, uint8_t *out, void *memory)
{
    uint32_t *scratch = (uint32_t *)memory;
    const int row = mac16_row_words(c);
    uint32_t *weights = scratch + ((c->rows - 1) * c->stride_h + c->kernel_h) * row;
    int next = -c->pad_top; /* the first input row that was not widened yet */
    for (int y = 0, rows = c->rows; y < c->out_h; y += rows) {
        if (rows > c->out_h - y)
            rows = c->out_h - y;
        const int top = y * c->stride_h - c->pad_top, end = top + (rows - 1) * c->stride_h + c->kernel_h;
        const int keep = y && next > top ? next - top : 0;
        const uint32_t *kept = scratch + c->rows * c->stride_h * row;
        for (uint32_t *to = scratch; to < scratch + keep * row;)
            *to++ = *kept++;
        for (int k = keep; top + k < end; k++)
            mac16_row(c, in, top + k, scratch + k * row);
        next = end;
        mac16_reader_t from = {0, 0, 0, 0};
        for (int o = 0; o < c->out_c; o++) {
            c->widen(c, &from, weights);
            if (!c->plain)
                mac16_any(c, scratch, weights, rows, o, out);
            else if (c->kernel_h == 3)
                mac16_plain_3(c, scratch, weights, rows, o, out);
            else if (c->kernel_h == 1)
                mac16_plain_1(c, scratch, weights, rows, o, out);
            else
                mac16_plain_any(c, scratch, weights, rows, o, out);
        }
        out += rows * c->out_w * c->out_c;
    }
}

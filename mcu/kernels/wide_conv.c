/* Convolutions and matrix products of int16 activations and int8 weights, in groups of channels; of depthwise ones a group is
 * a channel. Sums have 64 bits where the file's bias has, and are then scaled by 16 bits of the multiplier, as TFLite does. */
typedef struct {
    const int8_t *weights; /* by output channel, kernel row and column, and channel of the group */
    const int64_t *bias;
    const int32_t *multiplier;
    const int8_t *shift;
    uint16_t in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w, group_in, group_out;
    int16_t out_low, out_high;
    uint8_t stride_h, stride_w, pad_top, pad_left, dilation_h, dilation_w;
    uint8_t narrow; /* whether sums have 32 bits */
} wide_conv_t;

static inline int32_t wide_rescale(int64_t x, int32_t multiplier, int shift)
{
    const int32_t reduced = multiplier < 0x7FFF0000 ? (multiplier + (1 << 15)) >> 16 : 0x7FFF;
    return (int32_t)((x * reduced + ((int64_t)1 << (14 - shift))) >> (15 - shift));
}

static int64_t wide_sum(const wide_conv_t *c, const int16_t *in, const int8_t *w, int top, int left)
{
    int64_t sum = 0;
    for (int k = 0; k < c->kernel_h; k++)
        for (int l = 0; l < c->kernel_w; l++, w += c->group_in) {
            const int y = top + k * c->dilation_h, x = left + l * c->dilation_w;
            if (y < 0 || y >= c->in_h || x < 0 || x >= c->in_w)
                continue;
            const int16_t *p = in + ((uint32_t)y * c->in_w + (uint32_t)x) * c->in_c;
            int32_t part = 0;
            for (int i = 0; i < c->group_in; i++) {
                part += p[i] * w[i];
                if ((i & 255) == 255)
                    sum += part, part = 0;
            }
            sum += part;
        }
    return sum;
}

static void wide_conv(const wide_conv_t *c, const uint8_t *from, uint8_t *to)
{
    const int16_t *in = (const int16_t *)(const void *)from;
    int16_t *out = (int16_t *)(void *)to;
    for (int y = 0; y < c->out_h; y++)
        for (int x = 0; x < c->out_w; x++)
            for (int o = 0; o < c->out_c; o++) {
                const int8_t *w = c->weights + (uint32_t)o * c->kernel_h * c->kernel_w * c->group_in;
                const int64_t sum = c->bias[o] + wide_sum(c, in + o / c->group_out * c->group_in, w,
                                                          y * c->stride_h - c->pad_top, x * c->stride_w - c->pad_left);
                const int32_t value = c->narrow ? rescale((int32_t)sum, c->multiplier[o], c->shift[o])
                                                : wide_rescale(sum, c->multiplier[o], c->shift[o]);
                *out++ = (int16_t)(value < c->out_low ? c->out_low : value > c->out_high ? c->out_high : value);
            }
}

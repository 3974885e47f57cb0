/* A convolution turned round: each input value adds a kernel to the output. Every output is summed by itself, over those
 * taps that an input lies behind. Weights int8 by output channel, kernel row and column, and input channel. */
typedef struct {
    const int8_t *weights;
    const int32_t *bias, *multiplier;
    const int8_t *shift;
    uint16_t in_h, in_w, in_c, out_h, out_w, out_c;
    uint8_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
    uint8_t in_zero, out_zero, out_low, out_high;
} transpose_conv_t;

/* The input that tap k of output y belongs to, or -1. */
static inline int transpose_conv_from(int y, int pad, int k, int stride, int size)
{
    const int at = y + pad - k;
    return at >= 0 && at % stride == 0 && at / stride < size ? at / stride : -1;
}

static void transpose_conv(const transpose_conv_t *t, const uint8_t *in, uint8_t *out)
{
    for (int y = 0; y < t->out_h; y++)
        for (int x = 0; x < t->out_w; x++) {
            const int8_t *w = t->weights;
            for (int o = 0; o < t->out_c; o++) {
                int32_t sum = t->bias[o];
                for (int k = 0; k < t->kernel_h; k++) {
                    const int i = transpose_conv_from(y, t->pad_top, k, t->stride_h, t->in_h);
                    for (int l = 0; l < t->kernel_w; l++, w += t->in_c) {
                        const int j = i < 0 ? -1 : transpose_conv_from(x, t->pad_left, l, t->stride_w, t->in_w);
                        const uint8_t *p = in + ((uint32_t)i * t->in_w + (uint32_t)j) * t->in_c;
                        if (j >= 0)
                            for (int c = 0; c < t->in_c; c++)
                                sum += (p[c] - t->in_zero) * w[c];
                    }
                }
                *out++ = clamp(rescale(sum, t->multiplier[o], t->shift[o]) + t->out_zero, t->out_low, t->out_high);
            }
        }
}

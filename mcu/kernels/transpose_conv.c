/* A convolution turned round: each input value adds a kernel to the output. Every output is summed by itself, over those
 * taps that an input lies behind: of y + pad, every stride-th from its rest on, each one input before. Weights int8 by output
 * channel, kernel row and column, and input channel. */
typedef struct {
    const int8_t *weights;
    const int32_t *bias, *multiplier;
    const int8_t *shift;
    uint16_t in_h, in_w, in_c, out_h, out_w, out_c;
    uint8_t kernel_h, kernel_w, stride_h, stride_w, pad_top, pad_left;
    uint8_t in_zero, out_zero, out_low, out_high;
} transpose_conv_t;

static int32_t transpose_conv_sum(const transpose_conv_t *t, const uint8_t *in, const int8_t *w, int y, int x)
{
    const int first_k = y % t->stride_h, first_l = x % t->stride_w, first_j = x / t->stride_w;
    const int in_c = t->in_c, zero = t->in_zero;
    int32_t sum = 0;
    for (int k = first_k, i = y / t->stride_h; k < t->kernel_h && i >= 0; k += t->stride_h, i--)
        for (int l = first_l, j = first_j; l < t->kernel_w && j >= 0; l += t->stride_w, j--) {
            const uint8_t *p = in + ((uint32_t)i * t->in_w + (uint32_t)j) * t->in_c;
            const int8_t *v = w + ((uint32_t)k * t->kernel_w + (uint32_t)l) * t->in_c;
            if (i < t->in_h && j < t->in_w)
                for (int c = 0; c < in_c; c++)
                    sum += (p[c] - zero) * v[c];
        }
    return sum;
}

static void transpose_conv(const transpose_conv_t *t, const uint8_t *in, uint8_t *out)
{
    const uint32_t size = (uint32_t)t->kernel_h * t->kernel_w * t->in_c;
    for (int y = 0; y < t->out_h; y++)
        for (int x = 0; x < t->out_w; x++)
            for (int o = 0; o < t->out_c; o++) {
                const int32_t sum =
                    t->bias[o] + transpose_conv_sum(t, in, t->weights + o * size, y + t->pad_top, x + t->pad_left);
                *out++ = clamp(rescale(sum, t->multiplier[o], t->shift[o]) + t->out_zero, t->out_low, t->out_high);
            }
}

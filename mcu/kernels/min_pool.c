/* Minimum of windows; what lies outside of the image does not count. Rows as in pool.c. */
typedef struct {
    uint16_t in_h, in_w, channels, out_h, out_w, kernel_h, kernel_w;
    uint8_t stride_h, stride_w, pad_top, pad_left, out_low, out_high;
} min_pool_t;

static void min_pool(const min_pool_t *p, const uint8_t *in, int first, uint32_t row_bytes, int y, int end, uint8_t *out)
{
    for (; y < end; y++)
        for (int x = 0; x < p->out_w; x++) {
            int top = y * p->stride_h - p->pad_top, left = x * p->stride_w - p->pad_left;
            int bottom = top + p->kernel_h, right = left + p->kernel_w;
            top = top < 0 ? 0 : top, left = left < 0 ? 0 : left;
            bottom = bottom > p->in_h ? p->in_h : bottom, right = right > p->in_w ? p->in_w : right;
            for (int c = 0; c < p->channels; c++) {
                int32_t least = 255;
                for (int i = top; i < bottom; i++)
                    for (int j = left; j < right; j++) {
                        int32_t v = in[(uint32_t)(i - first) * row_bytes + (uint32_t)j * p->channels + c];
                        least = v < least ? v : least;
                    }
                *out++ = clamp(least, p->out_low, p->out_high);
            }
        }
}

/* Maximum or mean of windows; what lies outside of the image does not count. */
typedef struct {
    uint16_t in_h, in_w, channels, out_h, out_w, kernel_h, kernel_w;
    uint8_t stride_h, stride_w, pad_top, pad_left, out_low, out_high;
} pool_t;

/* Rows y to end - 1 of the output; `in` starts with row `first` of the input, `row_bytes` lie from row to row. */
static void pool(const pool_t *p, const uint8_t *in, int first, uint32_t row_bytes, int y, int end, uint8_t *out, int mean)
{
    for (; y < end; y++)
        for (int x = 0; x < p->out_w; x++) {
            int top = y * p->stride_h - p->pad_top, left = x * p->stride_w - p->pad_left;
            int bottom = top + p->kernel_h, right = left + p->kernel_w;
            top = top < 0 ? 0 : top, left = left < 0 ? 0 : left;
            bottom = bottom > p->in_h ? p->in_h : bottom, right = right > p->in_w ? p->in_w : right;
            for (int c = 0; c < p->channels; c++) {
                int32_t total = 0, most = 0, count = (bottom - top) * (right - left);
                for (int i = top; i < bottom; i++)
                    for (int j = left; j < right; j++) {
                        int32_t v = in[(uint32_t)(i - first) * row_bytes + (uint32_t)j * p->channels + c];
                        total += v;
                        most = v > most ? v : most;
                    }
                if (mean) { /* of the int8 values, halves away from zero */
                    total -= 128 * count;
                    most = 128 + (total > 0 ? (total + count / 2) / count : -((count / 2 - total) / count));
                }
                *out++ = clamp(most, p->out_low, p->out_high);
            }
        }
}

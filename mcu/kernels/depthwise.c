/* Each input channel is filtered by itself; weights int8 by output channel, then kernel row and column. One pixel or four
 * at once. */
INLINE void depthwise(const conv_t *c, const uint8_t *window, uint32_t row_bytes, uint8_t *out, const int pixels)
{
    const uint32_t step = (uint32_t)c->stride_w * c->in_c;
    const int out_c = c->out_c, filters = out_c / c->in_c;
    for (int x = 0; x < c->out_w; x += pixels) {
        if (x + pixels > c->out_w)
            x = c->out_w - pixels;
        const int8_t *w = c->weights;
        for (int o = 0, channel = 0, filter = 0; o < out_c; o++) {
            uint32_t sums[4], a = 0, b = 0, d = 0, e = 0;
            const uint8_t *row = window + (uint32_t)x * step + channel;
            for (int k = 0; k < c->kernel_h; k++, row += row_bytes) {
                const uint8_t *p = row;
                for (int l = 0; l < c->kernel_w; l++, p += c->in_c) {
                    const uint32_t weight = (uint32_t)*w++;
                    a += weight * p[0];
                    if (pixels > 1)
                        b += weight * p[step], d += weight * p[2 * step], e += weight * p[3 * step];
                }
            }
            sums[0] = a, sums[1] = b, sums[2] = d, sums[3] = e;
            conv_store(c, x, o, 1, pixels, sums, out);
            if (++filter == filters)
                filter = 0, channel++;
        }
    }
}

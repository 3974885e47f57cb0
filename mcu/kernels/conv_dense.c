/* Every weight is stored, as weight + 128, four outputs side by side: sum w x = sum (w + 128) x - 128 sum x. One or two
 * pixels at once; the last of an odd number is done once more with the one before it. */
static uint32_t conv_total(const conv_t *c, const uint8_t *row, uint32_t row_bytes)
{
    const uint32_t run = (uint32_t)c->kernel_w * c->in_c;
    uint32_t total = 0;
    for (int k = 0; k < c->kernel_h; k++, row += row_bytes)
        for (const uint8_t *p = row, *end = row + run; p < end;)
            total += *p++;
    return total;
}

INLINE void conv_dense(const conv_t *c, const uint8_t *window, uint32_t row_bytes, uint8_t *out, const int pixels)
{
    const uint32_t run = (uint32_t)c->kernel_w * c->in_c, step = (uint32_t)c->stride_w * c->in_c;
    const int out_c = c->out_c;
    for (int x = 0; x < c->out_w; x += pixels) {
        if (x + pixels > c->out_w)
            x = c->out_w - pixels;
        const uint8_t *w = (const uint8_t *)c->weights, *first = window + (uint32_t)x * step;
        const uint32_t a = 128 * conv_total(c, first, row_bytes);
        const uint32_t b = pixels > 1 ? 128 * conv_total(c, first + step, row_bytes) : 0;
        for (int o = 0; o < out_c; o += 4) {
            uint32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0;
            const uint8_t *row = first;
            for (int k = 0; k < c->kernel_h; k++, row += row_bytes)
                for (const uint8_t *p = row, *q = pixels > 1 ? row + step : row, *end = row + run; p < end; p++, q++, w += 4) {
                    const uint32_t u = *p;
                    a0 += w[0] * u, a1 += w[1] * u, a2 += w[2] * u, a3 += w[3] * u;
                    if (pixels > 1) {
                        const uint32_t v = *q;
                        b0 += w[0] * v, b1 += w[1] * v, b2 += w[2] * v, b3 += w[3] * v;
                    }
                }
            const uint32_t one[4] = {a0 - a, a1 - a, a2 - a, a3 - a};
            const uint32_t two[8] = {a0 - a, b0 - b, a1 - a, b1 - b, a2 - a, b2 - b, a3 - a, b3 - b};
            conv_store(c, x, o, out_c - o < 4 ? out_c - o : 4, pixels, pixels > 1 ? two : one, out);
        }
    }
}

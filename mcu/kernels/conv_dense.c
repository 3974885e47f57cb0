/* Every weight is stored, as weight + 128, four outputs side by side: sum w x = sum (w + 128) x - 128 sum x. Two pixels
 * at once where there are registers for that. */
static void conv_dense(const conv_t *c, const uint8_t *window, uint32_t row_bytes, uint8_t *out)
{
    const uint32_t run = (uint32_t)c->kernel_w * c->in_c, step = (uint32_t)c->stride_w * c->in_c;
    const int out_c = c->out_c;
    int x = 0;
#if !defined(__XTENSA__)
    for (; x + 1 < c->out_w; x += 2) {
        const uint8_t *w = c->weights;
        for (int o = 0; o < out_c; o += 4) {
            uint32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, a = 0, b0 = 0, b1 = 0, b2 = 0, b3 = 0, b = 0;
            const uint8_t *row = window + (uint32_t)x * step;
            for (int k = 0; k < c->kernel_h; k++, row += row_bytes) {
                const uint8_t *p = row, *q = row + step, *end = row + run;
                for (; p < end; p++, q++, w += 4) {
                    uint32_t u = *p, v = *q;
                    a += u, b += v;
                    a0 += w[0] * u, b0 += w[0] * v;
                    a1 += w[1] * u, b1 += w[1] * v;
                    a2 += w[2] * u, b2 += w[2] * v;
                    a3 += w[3] * u, b3 += w[3] * v;
                }
            }
            const uint32_t sums[2][4] = {{a0, a1, a2, a3}, {b0, b1, b2, b3}}, ones[2] = {a, b};
            for (int i = 0; i < 2; i++)
                for (int j = 0; j < 4 && o + j < out_c; j++)
                    out[(x + i) * out_c + o + j] =
                        conv_output(c, o + j, (int32_t)(sums[i][j] - 128 * ones[i]) + c->bias[o + j]);
        }
    }
#endif
    for (; x < c->out_w; x++) {
        const uint8_t *w = c->weights;
        for (int o = 0; o < out_c; o += 4) {
            uint32_t a0 = 0, a1 = 0, a2 = 0, a3 = 0, a = 0;
            const uint8_t *row = window + (uint32_t)x * step;
            for (int k = 0; k < c->kernel_h; k++, row += row_bytes) {
                const uint8_t *p = row, *end = row + run;
                for (; p < end; p++, w += 4) {
                    uint32_t u = *p;
                    a += u;
                    a0 += w[0] * u;
                    a1 += w[1] * u;
                    a2 += w[2] * u;
                    a3 += w[3] * u;
                }
            }
            const uint32_t sums[4] = {a0, a1, a2, a3};
            for (int j = 0; j < 4 && o + j < out_c; j++)
                out[x * out_c + o + j] = conv_output(c, o + j, (int32_t)(sums[j] - 128 * a) + c->bias[o + j]);
        }
    }
}

/* Each input channel is filtered by itself; weights int8 by output channel, then kernel row and column. */
static void depthwise(const conv_t *c, const uint8_t *window, uint32_t row_bytes, uint8_t *out)
{
    const uint32_t step = (uint32_t)c->stride_w * c->in_c;
    const int out_c = c->out_c, filters = out_c / c->in_c;
    for (int x = 0; x < c->out_w;) {
        const int8_t *w = c->weights;
        if (c->out_w >= 4) {
            if (x + 4 > c->out_w)
                x = c->out_w - 4;
            for (int o = 0, channel = 0, filter = 0; o < out_c; o++) {
                int32_t a = c->bias[o], b = a, d = a, e = a;
                const uint8_t *row = window + (uint32_t)x * step + channel;
                for (int k = 0; k < c->kernel_h; k++, row += row_bytes) {
                    const uint8_t *p = row;
                    for (int l = 0; l < c->kernel_w; l++, p += c->in_c) {
                        const int32_t weight = *w++;
                        a += weight * p[0];
                        b += weight * p[step];
                        d += weight * p[2 * step];
                        e += weight * p[3 * step];
                    }
                }
                uint8_t *to = out + x * out_c + o;
                to[0] = conv_output(c, o, a);
                to[out_c] = conv_output(c, o, b);
                to[2 * out_c] = conv_output(c, o, d);
                to[3 * out_c] = conv_output(c, o, e);
                if (++filter == filters)
                    filter = 0, channel++;
            }
            x += 4;
        } else {
            for (int o = 0; o < out_c; o++) {
                int32_t a = c->bias[o];
                const uint8_t *row = window + (uint32_t)x * step + o / filters;
                for (int k = 0; k < c->kernel_h; k++, row += row_bytes)
                    for (int l = 0; l < c->kernel_w; l++)
                        a += *w++ * row[(uint32_t)l * c->in_c];
                out[x * out_c + o] = conv_output(c, o, a);
            }
            x++;
        }
    }
}

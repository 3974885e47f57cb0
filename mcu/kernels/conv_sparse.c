/* Only weights that are not zero are stored, as weight << 8 | gap to it from the one before; four pixels at once. */
static inline __attribute__((always_inline)) void conv_sparse(
    const conv_t *c, const uint8_t *window, uint32_t row_bytes, uint8_t *out, const uint32_t step)
{
    const int out_c = c->out_c;
    for (int x = 0; x < c->out_w;) {
        const int16_t *w = c->weights;
        const uint16_t *count = c->counts;
        if (c->out_w >= 4) {
            if (x + 4 > c->out_w)
                x = c->out_w - 4; /* the last pixels once more rather than one by one */
            for (int o = 0; o < out_c; o++) {
                int32_t a = c->bias[o], b = a, d = a, e = a;
                const uint8_t *row = window + (uint32_t)x * step;
                for (int k = 0; k < c->kernel_h; k++, row += row_bytes) {
                    const uint8_t *p = row;
                    for (const int16_t *end = w + *count++; w < end; w++) {
                        const int32_t pair = *w, weight = pair >> 8;
                        p += pair & 255;
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
            }
            x += 4;
        } else {
            for (int o = 0; o < out_c; o++) {
                int32_t a = c->bias[o];
                const uint8_t *row = window + (uint32_t)x * step;
                for (int k = 0; k < c->kernel_h; k++, row += row_bytes) {
                    const uint8_t *p = row;
                    for (const int16_t *end = w + *count++; w < end; w++) {
                        p += *w & 255;
                        a += (*w >> 8) * *p;
                    }
                }
                out[x * out_c + o] = conv_output(c, o, a);
            }
            x++;
        }
    }
}

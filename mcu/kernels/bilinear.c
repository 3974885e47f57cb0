/* An image of other size, between two rows and two columns of the input: for each, both, and the second's part in 1/1024. */
typedef struct {
    const int16_t *rows, *columns;
    uint32_t in_w, channels;
    uint16_t out_h, out_w;
} bilinear_t;

static void bilinear(const bilinear_t *b, const uint8_t *in, uint8_t *out)
{
    const uint32_t channels = b->channels, row = b->in_w * channels;
    const int16_t *r = b->rows;
    for (int y = 0; y < b->out_h; y++, r += 3) {
        const uint8_t *top = in + (uint32_t)r[0] * row, *bottom = in + (uint32_t)r[1] * row;
        const int16_t *c = b->columns;
        for (int x = 0; x < b->out_w; x++, c += 3) {
            const uint32_t left = (uint32_t)c[0] * channels, right = (uint32_t)c[1] * channels;
            for (uint32_t i = 0; i < channels; i++) { /* of the int8 values, halves away from zero */
                const int32_t above = (top[left + i] - 128) * (1024 - c[2]) + (top[right + i] - 128) * c[2];
                const int32_t below = (bottom[left + i] - 128) * (1024 - c[2]) + (bottom[right + i] - 128) * c[2];
                const int32_t sum = above * (1024 - r[2]) + below * r[2];
                *out++ = (uint8_t)(128 + (sum + (sum > 0 ? 1 << 19 : -(1 << 19))) / (1 << 20));
            }
        }
    }
}

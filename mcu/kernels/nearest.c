/* An image of other size: each row and column is one of the input's. */
typedef struct {
    const uint16_t *rows, *columns;
    uint32_t in_w, channels;
    uint16_t out_h, out_w;
} nearest_t;

static void nearest(const nearest_t *n, const uint8_t *in, uint8_t *out)
{
    for (int y = 0; y < n->out_h; y++) {
        const uint8_t *row = in + n->rows[y] * n->in_w * n->channels;
        for (int x = 0; x < n->out_w; x++, out += n->channels)
            memcpy(out, row + n->columns[x] * n->channels, n->channels);
    }
}

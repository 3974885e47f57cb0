/* MEAN over all pixels. */
typedef struct {
    uint32_t pixels, channels;
    int32_t in_zero, out_zero, multiplier;
    int8_t shift;
} mean_t;

static void mean(const mean_t *m, const uint8_t *in, uint8_t *out)
{
    for (uint32_t c = 0; c < m->channels; c++) {
        int32_t total = -(int32_t)m->pixels * m->in_zero;
        for (uint32_t i = 0; i < m->pixels; i++)
            total += in[i * m->channels + c];
        out[c] = clamp(rescale(total, m->multiplier, m->shift) + m->out_zero, 0, 255);
    }
}

/* An image within a larger one of zero points. */
typedef struct {
    uint16_t in_h, in_w, in_c, out_h, out_w, out_c, top, left, first;
    uint8_t zero;
} pad_t;

static void pad(const pad_t *p, const uint8_t *in, uint8_t *out)
{
    memset(out, p->zero, (uint32_t)p->out_h * p->out_w * p->out_c);
    for (uint32_t y = 0; y < p->in_h; y++)
        for (uint32_t x = 0; x < p->in_w; x++, in += p->in_c)
            memcpy(out + ((y + p->top) * p->out_w + x + p->left) * p->out_c + p->first, in, p->in_c);
}

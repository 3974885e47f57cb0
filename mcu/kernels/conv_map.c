/* One input row as the kernel sees it, with zero points at both ends. */
static void conv_fill(const conv_t *c, const uint8_t *in, int y, uint8_t *to, uint32_t row_bytes)
{
    uint32_t left = (uint32_t)c->pad_left * c->in_c, have = (uint32_t)c->in_w * c->in_c;
    if (y < 0 || y >= c->in_h) {
        memset(to, c->in_zero, row_bytes);
        return;
    }
    if (have > row_bytes - left)
        have = row_bytes - left;
    memset(to, c->in_zero, left);
    move_down(to + left, in + (uint32_t)y * c->in_w * c->in_c, have);
    memset(to + left + have, c->in_zero, row_bytes - left - have);
}

/* `window` holds kernel_h rows; without one, rows are read where they lie (kernels of one row, no padding). */
static void conv(const conv_t *c, const uint8_t *in, uint8_t *out, uint8_t *window)
{
    uint32_t row_bytes = ((uint32_t)(c->out_w - 1) * c->stride_w + c->kernel_w) * c->in_c;
    int next = -c->pad_top; /* the first input row that is not in the window yet */
    for (int y = 0; y < c->out_h; y++) {
        int top = y * c->stride_h - c->pad_top;
        if (!window) {
            c->row(c, in + (uint32_t)top * c->in_w * c->in_c, row_bytes, out);
        } else {
            int keep = y ? next - top : 0;
            if (keep > 0)
                move_down(window, window + (uint32_t)(c->kernel_h - keep) * row_bytes, (uint32_t)keep * row_bytes);
            for (int k = keep > 0 ? keep : 0; k < c->kernel_h; k++)
                conv_fill(c, in, top + k, window + (uint32_t)k * row_bytes, row_bytes);
            next = top + c->kernel_h;
            c->row(c, window, row_bytes, out);
        }
        out += (uint32_t)c->out_w * c->out_c;
    }
}

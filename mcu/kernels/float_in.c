/* The caller's float32 as the program's values: TFLite's QUANTIZE, halves away from zero. `from` need not be aligned. */
static void float_in(const void *from, uint8_t *to, uint32_t values, float scale, int32_t zero)
{
    const uint8_t *in = from;
    for (; values--; in += 4) {
        float x;
        int32_t whole;
        memcpy(&x, in, 4);
        x /= scale;
        x = x > 1024.0f ? 1024.0f : x > -1024.0f ? x : -1024.0f; /* beyond all grids, and within int32 */
        whole = (int32_t)x;
        x -= (float)whole;
        whole += x >= 0.5f ? 1 : x <= -0.5f ? -1 : 0;
        whole += zero;
        *to++ = (uint8_t)(whole < 0 ? 0 : whole > 255 ? 255 : whole);
    }
}

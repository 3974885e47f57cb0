/* The program's values as float32 for the caller: TFLite's DEQUANTIZE. `to` need not be aligned. */
static void float_out(const uint8_t *in, void *to, uint32_t values, float scale, int32_t zero)
{
    uint8_t *out = to;
    for (; values--; out += 4) {
        const float x = scale * (float)(*in++ - zero);
        memcpy(out, &x, 4);
    }
}

/* The program's values as the caller's float32: the bits of each by TFLite's DEQUANTIZE. `to` need not be aligned. */
static void float_out(const uint32_t *table, const uint8_t *in, void *to, uint32_t values)
{
    uint8_t *out = (uint8_t *)to;
    for (; values--; out += 4)
        memcpy(out, &table[*in++], 4);
}

/* The caller's float32 as the program's values, by integers alone: bits that are ordered as their numbers are, and for each
 * value but the first the least that gives it, which codegen has found by TFLite's QUANTIZE. `from` need not be aligned. */
static void float_in(const int32_t *least, const void *from, uint8_t *to, uint32_t values)
{
    const uint8_t *in = (const uint8_t *)from;
    for (; values--; in += 4) {
        int32_t bits;
        uint32_t found = 0;
        memcpy(&bits, in, 4);
        bits ^= bits >> 31 & 0x7FFFFFFF;
        for (uint32_t step = 128; step; step >>= 1)
            found += bits >= least[found + step - 1] ? step : 0;
        *to++ = (uint8_t)found;
    }
}

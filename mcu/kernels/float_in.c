/* The caller's float32 as the program's values, by integers alone: bits that are ordered as their numbers are, and for each
 * value but the first the least that gives it, which codegen has found by TFLite's QUANTIZE. `from` need not be aligned. */
#define FLOAT_IN_HALF(step)         \
    if (bits >= above[step - 1])    \
        above += step;

static void float_in(const int32_t *least, const void *from, uint8_t *to, uint32_t values)
{
    const uint8_t *in = (const uint8_t *)from;
    for (; values--; in += 4) {
        int32_t bits;
        const int32_t *above = least; /* of eight halvings */
        memcpy(&bits, in, 4);
        bits ^= bits >> 31 & 0x7FFFFFFF;
        FLOAT_IN_HALF(128)
        FLOAT_IN_HALF(64)
        FLOAT_IN_HALF(32)
        FLOAT_IN_HALF(16)
        FLOAT_IN_HALF(8)
        FLOAT_IN_HALF(4)
        FLOAT_IN_HALF(2)
        FLOAT_IN_HALF(1)
        *to++ = (uint8_t)(above - least);
    }
}

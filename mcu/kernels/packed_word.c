/* Eight weights of few bits, each with 2^(bits - 1) added: four in the lower half of the word, the first of them lowest, and
 * four 16 bits higher. Bits between are of no meaning. In flash they lie without gaps. */
static inline __attribute__((always_inline)) uint32_t packed_word(const void *weights, uint32_t at, const int bits)
{
    if (bits == 4)
        return ((const uint32_t *)weights)[at];
    if (bits == 3) {
        const uint8_t *bytes = (const uint8_t *)weights + 3 * at;
        const uint32_t word = bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16;
        return (word & 0xFFF) | word >> 12 << 16;
    }
    const uint32_t half = ((const uint16_t *)weights)[at];
    return half | half << 8;
}

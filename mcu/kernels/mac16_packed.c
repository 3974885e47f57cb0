/* Weights of few bits for conv_mac16.c: of eight channels 0, 1, 4 and 5 in the lower half of a word as packed_word.c has
 * it, 2, 3, 6 and 7 in the upper one. Where four are left over, the two words behind them are written too. */
static void mac16_packed(const conv_mac16_t *c, mac16_reader_t *from, uint32_t *to)
{
    const int bits = c->bits, words = (mac16_weight_words(c) + 3) / 4;
    const uint32_t mask = 0x00010001u * ((1u << bits) - 1), add = 0x80008000u - (0x00010001u << (bits - 1));
    uint32_t at = (uint32_t)(from->output++ * words);
    for (int left = words; left > 0; left--, to += 4) {
        const uint32_t word = packed_word(c->weights, at++, bits);
        to[0] = ((word & mask) + add) ^ 0x80008000u; /* less 2^(bits - 1), without a borrow */
        to[1] = ((word >> bits & mask) + add) ^ 0x80008000u;
        to[2] = ((word >> 2 * bits & mask) + add) ^ 0x80008000u;
        to[3] = ((word >> 3 * bits & mask) + add) ^ 0x80008000u;
    }
}

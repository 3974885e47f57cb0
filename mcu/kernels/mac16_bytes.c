/* Weights for conv_mac16.c, four in a word, each with 128 added. */
static void mac16_bytes(const conv_mac16_t *c, mac16_reader_t *from, uint32_t *to)
{
    const int quads = mac16_weight_words(c) / 2;
    const uint32_t *words = (const uint32_t *)c->weights + from->output++ * quads;
    mac16_widen(to, words, quads, 0x7F807F80, 0x80008000); /* less 128, without a borrow */
}

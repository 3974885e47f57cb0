/* Weights that are not zero for conv_mac16.c, as codes like those of conv_coded.c: first how many codes each output has, then
 * the table, then the codes. A gap counts values as they are widened. */
static void mac16_coded(const conv_mac16_t *c, mac16_reader_t *from, uint32_t *to)
{
    const int width = c->bits;
    const uint16_t *const counts = (const uint16_t *)c->weights, *const words = counts + c->out_c + (1 << width);
    const int16_t *const table = (const int16_t *)c->weights + c->out_c;
    mac16_reader_t now = *from;
    uint32_t place = 0;
    mac16_fill(to, 0, mac16_weight_words(c));
    for (int left = counts[now.output++]; left > 0; left--) {
        if (now.have < width) {
            now.bits |= (uint32_t)words[now.at++] << now.have;
            now.have += 16;
        }
        const int32_t code = table[now.bits & ((1u << width) - 1)];
        now.bits >>= width;
        now.have -= width;
        place += (uint32_t)(code & 255);
        to[place >> 1] |= ((uint32_t)(code >> 8) & 0xFFFF) << 16 * (place & 1);
    }
    *from = now;
}

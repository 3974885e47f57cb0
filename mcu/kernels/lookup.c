/* A function of one value, by a table of its 256 results. */
static void lookup(const uint8_t *table, uint32_t values, const uint8_t *in, uint8_t *out)
{
    while (values--)
        *out++ = table[*in++];
}

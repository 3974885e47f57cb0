/* int8 at the borders, value + 128 inside. */
static void flip(const void *from, void *to, uint32_t values)
{
    const uint8_t *in = from;
    uint8_t *out = to;
    while (values--)
        *out++ = *in++ ^ 128;
}

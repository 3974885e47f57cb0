/* int8 at the borders, value + 128 inside. */
static void flip(const void *from, void *to, uint32_t values)
{
    const uint8_t *in = (const uint8_t *)from;
    uint8_t *out = (uint8_t *)to;
    while (values--)
        *out++ = *in++ ^ 128;
}

/* int8 to value + 128, or back, by words where both are aligned. */
static void flip(const void *from, void *to, uint32_t size)
{
    const uint8_t *in = (const uint8_t *)from, *end = in + size;
    uint8_t *out = (uint8_t *)to;
    if ((((uintptr_t)from | (uintptr_t)to) & 3) == 0)
        for (const uint8_t *last = end - (size & 3); in < last; in += 4, out += 4)
            *(uint32_t *)(void *)out = *(const uint32_t *)(const void *)in ^ 0x80808080u;
    while (in < end)
        *out++ = *in++ ^ 128;
}

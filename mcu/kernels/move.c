/* memmove to a lower address or elsewhere; by words where all is aligned, since some C libraries move single bytes. */
static void move_down(uint8_t *to, const uint8_t *from, uint32_t bytes)
{
    if ((((uintptr_t)to | (uintptr_t)from | bytes) & 3) == 0) {
        uint32_t *words = (uint32_t *)(void *)to;
        const uint32_t *source = (const uint32_t *)(const void *)from;
        for (; bytes >= 16; bytes -= 16, words += 4, source += 4)
            words[0] = source[0], words[1] = source[1], words[2] = source[2], words[3] = source[3];
        for (; bytes; bytes -= 4)
            *words++ = *source++;
    } else {
        memmove(to, from, bytes);
    }
}

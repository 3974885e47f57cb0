/* memmove to a lower address or elsewhere; by words where all is aligned, since some C libraries move single bytes. */
static void move_down(uint8_t *to, const uint8_t *from, uint32_t bytes)
{
    if ((((uintptr_t)to | (uintptr_t)from | bytes) & 3) == 0)
        for (; bytes; bytes -= 4, to += 4, from += 4)
            *(uint32_t *)(void *)to = *(const uint32_t *)(const void *)from;
    else
        memmove(to, from, bytes);
}

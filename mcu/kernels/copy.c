/* `rows` blocks of bytes from one stride to another. */
static void copy(const uint8_t *from, uint8_t *to, uint32_t rows, uint32_t block, uint32_t from_stride, uint32_t to_stride)
{
    for (; rows--; from += from_stride, to += to_stride)
        memcpy(to, from, block);
}

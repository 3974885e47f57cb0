/* Blocks of bytes from the strides of one tensor to those of another: turned, cut, backwards or repeated. */
typedef struct {
    uint32_t from_start, to_start, block;
    uint32_t count[5];
    int32_t of[5], to[5]; /* bytes from one pass of a loop to the next; the last loop is the inner one */
} strided_t;

static void strided_loop(const strided_t *s, int loop, const uint8_t *in, uint8_t *out)
{
    const int32_t of = s->of[loop], to = s->to[loop];
    for (uint32_t left = s->count[loop]; left--; in += of, out += to)
        if (loop < 4)
            strided_loop(s, loop + 1, in, out);
        else if (s->block == 1)
            *out = *in;
        else
            memcpy(out, in, s->block);
}

static void strided(const strided_t *s, const uint8_t *in, uint8_t *out)
{
    int loop = 0;
    while (loop < 4 && s->count[loop] == 1)
        loop++;
    strided_loop(s, loop, in + s->from_start, out + s->to_start);
}

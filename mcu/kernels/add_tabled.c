/* Sums of two tensors of equal shapes, by tables of the terms: fixed-point numbers of `bits` binary places, on the grid of
 * the output. Only where these give the bytes of `add` for all 65,536 pairs of values, which codegen tries. */
typedef struct {
    int64_t start, a_step, b_step; /* of the terms, with 32 places more; start: all but the products with the values */
    uint32_t values;
    uint8_t bits, out_low, out_high;
} add_tabled_t;

/* Most values need no clamp, which one comparison tells. */
#define ADD_TABLED(i)                                                          \
    {                                                                          \
        const int32_t value = (terms[a[i]] + b_terms[b[i]]) >> bits;           \
        out[i] = (uint8_t)value;                                               \
        if ((uint32_t)(value - low) > span)                                    \
            out[i] = (uint8_t)(value < low ? low : low + (int32_t)span);       \
    }

/* Writes the terms of both tensors' values, 512 of them. */
static void add_tables(const add_tabled_t *t, int32_t *terms)
{
    int64_t a_term = t->start, b_term = 0;
    for (int i = 0; i < 256; i++) {
        terms[i] = (int32_t)(a_term >> 32), terms[256 + i] = (int32_t)(b_term >> 32);
        a_term += t->a_step, b_term += t->b_step;
    }
}

static void add_tabled(const add_tabled_t *t, const uint8_t *a, const uint8_t *b, uint8_t *out, const int32_t *terms)
{
    const int32_t *const b_terms = terms + 256;
    const int bits = t->bits, low = t->out_low;
    const uint32_t span = (uint32_t)(t->out_high - low);
    const uint8_t *const end = a + t->values;
    for (const uint8_t *four = a + (t->values & ~3u); a < four; a += 4, b += 4, out += 4) {
        ADD_TABLED(0)
        ADD_TABLED(1)
        ADD_TABLED(2)
        ADD_TABLED(3)
    }
    for (; a < end; a++, b++, out++)
        ADD_TABLED(0)
}

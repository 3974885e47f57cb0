/* Sums of two tensors of equal shapes, by tables of the terms: fixed-point numbers of `bits` binary places, on the grid of
 * the output. Only where these give the bytes of `add` for all 65,536 pairs of values, which codegen tries. */
typedef struct {
    int64_t start, a_step, b_step; /* of the terms, with 32 places more; start: all but the products with the values */
    uint32_t values;
    uint8_t bits, out_low, out_high;
} add_tabled_t;

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
    const int bits = t->bits, low = t->out_low, high = t->out_high;
    for (const uint8_t *end = a + t->values; a < end;)
        *out++ = clamp((terms[*a++] + b_terms[*b++]) >> bits, low, high);
}

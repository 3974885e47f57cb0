/* ARG_MAX and ARG_MIN along one axis, as int32: the first of equals. */
typedef struct {
    uint32_t outer, count, inner;
    uint8_t least; /* whether it is the minimum's */
} arg_most_t;

static void arg_most(const arg_most_t *m, const uint8_t *in, uint8_t *out)
{
    for (uint32_t o = 0; o < m->outer; o++, in += m->count * m->inner)
        for (uint32_t i = 0; i < m->inner; i++, out += 4) {
            int32_t found = 0;
            uint8_t most = in[i];
            for (uint32_t k = 1; k < m->count; k++) {
                const uint8_t value = in[k * m->inner + i];
                if (m->least ? value < most : value > most)
                    most = value, found = (int32_t)k;
            }
            memcpy(out, &found, 4);
        }
}

/* REDUCE_MAX and REDUCE_MIN over any axes: loops over what is kept, and in them over what is compared. */
typedef struct {
    uint32_t kept[3], kept_stride[3], over[3], over_stride[3];
    uint8_t least; /* whether it is the minimum */
} reduce_most_t;

static uint8_t reduce_most_one(const reduce_most_t *r, const uint8_t *in)
{
    uint8_t found = *in;
    for (uint32_t i = 0; i < r->over[0]; i++)
        for (uint32_t j = 0; j < r->over[1]; j++) {
            const uint8_t *p = in + i * r->over_stride[0] + j * r->over_stride[1];
            for (uint32_t left = r->over[2]; left--; p += r->over_stride[2])
                if (r->least ? *p < found : *p > found)
                    found = *p;
        }
    return found;
}

static void reduce_most(const reduce_most_t *r, const uint8_t *in, uint8_t *out)
{
    for (uint32_t i = 0; i < r->kept[0]; i++)
        for (uint32_t j = 0; j < r->kept[1]; j++)
            for (uint32_t k = 0; k < r->kept[2]; k++)
                *out++ = reduce_most_one(r, in + i * r->kept_stride[0] + j * r->kept_stride[1] + k * r->kept_stride[2]);
}

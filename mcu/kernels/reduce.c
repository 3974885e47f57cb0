/* MEAN and SUM over any axes: loops over what is kept, and in them over what is summed. */
typedef struct {
    uint32_t kept[3], kept_stride[3], over[3], over_stride[3];
    int32_t in_zero, out_zero, multiplier;
    int8_t shift;
} reduce_t;

static uint8_t reduce_one(const reduce_t *r, const uint8_t *in)
{
    int32_t total = -(int32_t)(r->over[0] * r->over[1] * r->over[2]) * r->in_zero;
    for (uint32_t i = 0; i < r->over[0]; i++)
        for (uint32_t j = 0; j < r->over[1]; j++) {
            const uint8_t *p = in + i * r->over_stride[0] + j * r->over_stride[1];
            for (uint32_t left = r->over[2]; left--; p += r->over_stride[2])
                total += *p;
        }
    return clamp(rescale(total, r->multiplier, r->shift) + r->out_zero, 0, 255);
}

static void reduce(const reduce_t *r, const uint8_t *in, uint8_t *out)
{
    for (uint32_t i = 0; i < r->kept[0]; i++)
        for (uint32_t j = 0; j < r->kept[1]; j++)
            for (uint32_t k = 0; k < r->kept[2]; k++)
                *out++ = reduce_one(r, in + i * r->kept_stride[0] + j * r->kept_stride[1] + k * r->kept_stride[2]);
}

/* reference_ops::Softmax of int8: `table` holds exp of each distance to the row's largest value, Q0.31. Values of the
 * output have scale 1/256. Of 512 and more nearly equal values TFLite Micro shifts by more bits than there are; here each
 * is 0 then, as 256 / 512 is nearly half. A row has 8191 values at the most, or its sum needs more than 32 bits. */
static inline int32_t high_product(int32_t a, int32_t b) { return rescale(a, b, 0); }

static inline int32_t saturating_shift(int32_t x, int power)
{
    int32_t most = 2147483647 >> power;
    return x > most ? 2147483647 : x < -most - 1 ? -2147483647 - 1 : (int32_t)((uint32_t)x << power);
}

/* 1 / (1 + x) for x in [0, 1), Q0.31, by three steps of Newton and Raphson in Q2.29. */
static int32_t one_over_one_plus(int32_t x)
{
    int32_t half = (int32_t)(((uint32_t)x + 2147483647u + 1) >> 1);
    int32_t y = 1515870810 + high_product(half, -1010580540);
    for (int i = 0; i < 3; i++)
        y += saturating_shift(high_product(y, (1 << 29) - high_product(half, y)), 2);
    return saturating_shift(y, 1);
}

static void softmax(const int32_t *table, uint32_t rows, uint32_t size, const uint8_t *in, uint8_t *out)
{
    for (; rows--; in += size, out += size) {
        int32_t most = 0, scale;
        uint32_t sum = 0;
        int headroom = 0, power;
        for (uint32_t i = 0; i < size; i++)
            most = in[i] > most ? in[i] : most;
        for (uint32_t i = 0; i < size; i++)
            sum += (uint32_t)divide_by_power(table[most - in[i]], 12);
        while (!(sum << headroom & 0x80000000u))
            headroom++;
        scale = one_over_one_plus((int32_t)((sum << headroom) - 0x80000000u));
        power = 12 - headroom + 31 - 8;
        for (uint32_t i = 0; i < size; i++)
            out[i] = power > 31 ? 0 : clamp(divide_by_power(high_product(scale, table[most - in[i]]), power), 0, 255);
    }
}

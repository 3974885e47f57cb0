/* Xtensa processors can lack an instruction for the high half of a product; the ESP32 has it. */
#if defined(__XTENSA__) && !(defined(__XCHAL_HAVE_MUL32_HIGH) && __XCHAL_HAVE_MUL32_HIGH)
#define HIGH_PRODUCT 0
#else
#define HIGH_PRODUCT 1
#endif

/* x * multiplier / 2^31, rounded, for |x| < 2^20. */
static inline int32_t small_product(int32_t x, int32_t multiplier)
{
#if HIGH_PRODUCT
    return ((int32_t)((int64_t)(x * 2048) * multiplier >> 32) + 512) >> 10;
#else /* x times parts of 11 bits fits 32 bits */
    int32_t middle = x * (multiplier >> 11 & 2047) + (x * (multiplier & 2047) >> 11);
    return (x * (multiplier >> 22) + (middle >> 11) + 256) >> 9;
#endif
}

/* x / 2^power, halves away from zero. */
static inline int32_t divide_by_power(int32_t x, int power)
{
    const int32_t mask = (int32_t)(((uint32_t)1 << power) - 1);
    return (x >> power) + ((x & mask) > (mask >> 1) + (x < 0));
}

/* x * multiplier * 2^(shift - 31), rounded to 31 bits and then to integers: TFLite's MultiplyByQuantizedMultiplier. */
static inline int32_t rescale(int32_t x, int32_t multiplier, int shift)
{
    const int power = shift > 0 ? 0 : -shift;
    int32_t high;
    if (shift > 0)
        x = (int32_t)((uint32_t)x << shift);
#if HIGH_PRODUCT
    high = (int32_t)(((int64_t)x * multiplier + ((int64_t)1 << 30)) >> 31);
#else
    if ((uint32_t)x + (1u << 20) < 1u << 21) {
        high = small_product(x, multiplier);
    } else { /* from halves of 16 bits */
        int32_t x_high = x >> 16, m_high = multiplier >> 16;
        uint32_t x_low = (uint32_t)x & 0xFFFF, m_low = (uint32_t)multiplier & 0xFFFF;
        uint32_t low = x_low * m_low;
        int32_t cross = x_high * (int32_t)m_low + (int32_t)(low >> 16); /* above -2^31 + 2^15, below 2^31 */
        uint32_t cross2 = x_low * (uint32_t)m_high;                     /* below 2^31 */
        uint32_t middle = ((uint32_t)cross & 0xFFFF) + (cross2 & 0xFFFF);
        int32_t top = x_high * m_high + (cross >> 16) + (int32_t)(cross2 >> 16) + (int32_t)(middle >> 16);
        uint32_t bottom = middle << 16 | (low & 0xFFFF);
        uint32_t nudged = bottom + ((uint32_t)1 << 30);
        top += nudged < bottom;
        high = (int32_t)((uint32_t)top << 1 | nudged >> 31);
    }
#endif
    return divide_by_power(high, power);
}

/* rescale(x, multiplier, -power) for |x| < 2^20 and power > 0; `half`: 2^(power - 1). */
static inline int32_t rescale_small(int32_t x, int32_t multiplier, int power, int32_t half)
{
    const int32_t high = small_product(x, multiplier);
    return (high + half + (high >> 31)) >> power;
}

static inline uint8_t clamp(int32_t x, int32_t low, int32_t high)
{
    return (uint8_t)(x < low ? low : x > high ? high : x);
}

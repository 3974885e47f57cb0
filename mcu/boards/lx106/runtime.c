// Arithmetic that Debian's libgcc leaves to the ESP8266's ROM. The counted instructions include it.
#include <stdint.h>

int64_t __muldi3(int64_t a, int64_t b);
uint64_t __umulsidi3(uint32_t a, uint32_t b);
uint32_t __udivsi3(uint32_t n, uint32_t d);
uint32_t __umodsi3(uint32_t n, uint32_t d);
int32_t __divsi3(int32_t n, int32_t d);
uint64_t __udivdi3(uint64_t n, uint64_t d);
uint64_t __umoddi3(uint64_t n, uint64_t d);
int64_t __divdi3(int64_t n, int64_t d);

// 32 x 32 bits from four products of 16 x 16: the core has no instruction for the upper half.
uint64_t __umulsidi3(uint32_t a, uint32_t b) {
  uint32_t a0 = a & 0xFFFF, a1 = a >> 16, b0 = b & 0xFFFF, b1 = b >> 16;
  uint32_t low = a0 * b0, cross = a1 * b0 + (low >> 16), middle = a0 * b1 + (cross & 0xFFFF);
  return (uint64_t)(a1 * b1 + (cross >> 16) + (middle >> 16)) << 32 | (middle << 16 | (low & 0xFFFF));
}

int64_t __muldi3(int64_t a, int64_t b) {
  uint32_t al = (uint32_t)a, bl = (uint32_t)b, ah = (uint32_t)((uint64_t)a >> 32), bh = (uint32_t)((uint64_t)b >> 32);
  uint64_t low = __umulsidi3(al, bl);
  return (int64_t)(low + ((uint64_t)(al * bh + ah * bl) << 32));
}

static uint64_t divide(uint64_t n, uint64_t d, uint64_t *rest, int bits) {
  uint64_t q = 0, r = 0;
  for (int i = bits - 1; i >= 0; i--) {
    r = r << 1 | (n >> i & 1);
    if (r >= d) r -= d, q |= (uint64_t)1 << i;
  }
  *rest = r;
  return q;
}

uint64_t __udivdi3(uint64_t n, uint64_t d) { return divide(n, d, &n, 64); }
uint64_t __umoddi3(uint64_t n, uint64_t d) { return divide(n, d, &n, 64), n; }

int64_t __divdi3(int64_t n, int64_t d) {
  uint64_t q = __udivdi3(n < 0 ? -(uint64_t)n : (uint64_t)n, d < 0 ? -(uint64_t)d : (uint64_t)d);
  return (int64_t)((n ^ d) < 0 ? -q : q);
}

// In 32 bits throughout: printf and softmax use these.
uint32_t __udivsi3(uint32_t n, uint32_t d) {
  uint32_t q = 0, r = 0;
  for (int i = 31; i >= 0; i--) {
    r = r << 1 | (n >> i & 1);
    if (r >= d) r -= d, q |= (uint32_t)1 << i;
  }
  return q;
}

uint32_t __umodsi3(uint32_t n, uint32_t d) { return n - d * __udivsi3(n, d); }

int32_t __divsi3(int32_t n, int32_t d) {
  uint32_t q = __udivsi3(n < 0 ? -(uint32_t)n : (uint32_t)n, d < 0 ? -(uint32_t)d : (uint32_t)d);
  return (int32_t)((n ^ d) < 0 ? -q : q);
}

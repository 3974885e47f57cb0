// The part of a C library that generated code and check.c need: Debian has none for the windowed ABI.
#include <stddef.h>
#include <stdint.h>

int simulator_write(int file, const void *bytes, int count);

#define ALIGNED(a, b) (!(((uintptr_t)(a) | (uintptr_t)(b)) & 3))
#define KEEP_THE_LOOP __asm__ volatile("" ::: "memory") // it is not to become a call of the function that it is

void *memset(void *to, int value, size_t bytes) {
  uint8_t *p = to;
  const uint32_t word = (uint8_t)value * 0x01010101u;
  for (; bytes && !ALIGNED(p, 0); bytes--) *p++ = (uint8_t)value;
  for (; bytes >= 4; bytes -= 4, p += 4) *(volatile uint32_t *)(void *)p = word;
  for (; bytes; bytes--) {
    *p++ = (uint8_t)value;
    KEEP_THE_LOOP;
  }
  return to;
}

static void forwards(uint8_t *to, const uint8_t *from, size_t bytes) {
  if (ALIGNED(to, from))
    for (; bytes >= 4; bytes -= 4, to += 4, from += 4)
      *(volatile uint32_t *)(void *)to = *(const volatile uint32_t *)(const void *)from;
  for (; bytes; bytes--) {
    *to++ = *from++;
    KEEP_THE_LOOP;
  }
}

void *memcpy(void *to, const void *from, size_t bytes) {
  forwards(to, from, bytes);
  return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
  uint8_t *p = to;
  const uint8_t *q = from;
  if (p <= q)
    forwards(p, q, bytes);
  else
    for (; bytes; bytes--) {
      p[bytes - 1] = q[bytes - 1];
      KEEP_THE_LOOP;
    }
  return to;
}

static void write_number(uint32_t value, uint32_t base, int least) {
  char digits[32], *first = digits + sizeof digits;
  for (; value || least > 0; value /= base, least--) *--first = "0123456789abcdef"[value % base];
  simulator_write(1, first, (int)(digits + sizeof digits - first));
}

// Knows %d, %ld, %lu and %08lx. Not variadic: LLVM 22's va_start skips a register. Callers cannot tell the difference.
int printf(const char *format, uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t e, uint32_t f, uint32_t g, uint32_t h) {
  const uint32_t values[] = {a, b, c, d, e, f, g, h}, *next = values;
  while (*format) {
    const char *text = format;
    while (*format && *format != '%') format++;
    simulator_write(1, text, (int)(format - text));
    if (!*format++) break;
    int least = 1;
    for (; *format == 'l' || (*format >= '0' && *format <= '9'); format++)
      if (*format != 'l') least = *format - '0';
    uint32_t value = *next++;
    if (*format == 'd' && (int32_t)value < 0) {
      simulator_write(1, "-", 1);
      value = -value;
    }
    write_number(value, *format++ == 'x' ? 16 : 10, least);
  }
  return 0;
}

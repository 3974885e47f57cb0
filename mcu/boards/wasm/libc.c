// The part of a C library that generated code and check.c need.
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

__attribute__((import_module("board"), import_name("write"))) void board_write(const char *text, int bytes);

// With -mbulk-memory these are one instruction each.
void *memcpy(void *to, const void *from, size_t bytes) { return __builtin_memcpy(to, from, bytes); }
void *memmove(void *to, const void *from, size_t bytes) { return __builtin_memmove(to, from, bytes); }
void *memset(void *to, int value, size_t bytes) { return __builtin_memset(to, value, bytes); }

// The digits of a number, at least `least` of them.
static void write_number(uint32_t value, uint32_t base, int least) {
  char digits[32], *first = digits + sizeof digits;
  while (value || least > 0) {
    *--first = "0123456789abcdef"[value % base];
    value /= base;
    least--;
  }
  board_write(first, (int)(digits + sizeof digits - first));
}

// Knows %d, %ld, %lu and %08lx; int and long have 32 bits here.
int printf(const char *format, ...) {
  va_list values;
  va_start(values, format);
  while (*format) {
    const char *text = format;
    while (*format && *format != '%') format++;
    board_write(text, (int)(format - text));
    if (!*format++) break;
    int least = 1;
    for (; *format == 'l' || (*format >= '0' && *format <= '9'); format++)
      if (*format != 'l') least = *format - '0';
    uint32_t value = va_arg(values, uint32_t);
    if (*format == 'd' && (int32_t)value < 0) {
      board_write("-", 1);
      value = -value;
    }
    write_number(value, *format++ == 'x' ? 16 : 10, least);
  }
  va_end(values);
  return 0;
}

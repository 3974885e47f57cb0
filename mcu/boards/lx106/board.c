// Xtensa lx106, QEMU's machine "sim" with -icount shift=0: an instruction is a nanosecond, and CCOUNT ticks at 40 MHz.
#include <stdio.h>

#include "check.h"

#define INSTRUCTIONS_PER_TICK 25

int simulator_write(int file, const void *bytes, int count);
extern uint8_t _stack_end[];

static int put(char c, FILE *file) {
  (void)file;
  simulator_write(1, &c, 1);
  return (unsigned char)c;
}

static FILE console = FDEV_SETUP_STREAM(put, NULL, NULL, _FDEV_SETUP_WRITE);
FILE *const stdout = &console;

// CCOUNT has 32 bits: what is kept is the sum of steps, each right if less than 107 thousand million instructions.
uint64_t board_count(void) {
  static uint64_t ticks;
  static uint32_t last;
  uint32_t now;
#ifdef CCOUNT_AT_START  // to test the wrap around
  static int started;
  if (!started) {
    __asm__ volatile("wsr %0, ccount\nesync" : : "a"(last = CCOUNT_AT_START));
    started = 1;
  }
#endif
  __asm__ volatile("rsr %0, ccount" : "=a"(now));
  ticks += (uint32_t)(now - last);
  last = now;
  return ticks * INSTRUCTIONS_PER_TICK;
}

uint8_t *board_stack_end(void) { return _stack_end; }

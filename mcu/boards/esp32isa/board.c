// The ESP32's instruction set on QEMU's core de233_fpu with -icount shift=0: CCOUNT ticks once in 25 instructions.
#include "check.h"

#define INSTRUCTIONS_PER_TICK 25

extern uint8_t _stack_end[];
extern volatile uint32_t emulated_instructions;  // by start.s, for MULUH and MULSH

// Both counters have 32 bits: what is kept is the sum of steps.
uint64_t board_count(void) {
  static uint64_t count;
  static uint32_t last_ticks, last_emulated;
  uint32_t ticks, emulated = emulated_instructions;
  __asm__ volatile("rsr %0, ccount" : "=r"(ticks));
  count += (uint64_t)(ticks - last_ticks) * INSTRUCTIONS_PER_TICK - (uint32_t)(emulated - last_emulated);
  last_ticks = ticks;
  last_emulated = emulated;
  return count;
}

uint8_t *board_stack_end(void) { return _stack_end; }

// Two million instructions, in assembly, to test what the boards count; then a frame of 1000 bytes, and a copy.
#include "model.h"

void model_invoke(const int8_t *const inputs[], int8_t *const outputs[], void *arena) {
  volatile int8_t frame[1000];
  uint32_t n = MODEL_MACS;
  (void)arena;
#if defined(__xtensa__) || defined(__riscv)
  __asm__ volatile("1: addi %0, %0, -1\n bnez %0, 1b" : "+r"(n));
#else
  (void)n;
#endif
  frame[0] = inputs[0][0];
  outputs[0][0] = frame[0];
}

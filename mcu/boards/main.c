// The program of the host and of the emulators; run.py reads its last line.
#include <stdio.h>

#include "check.h"
#include "golden.h"
#include "model.h"

#ifndef CHECK_INVOKE
#define CHECK_INVOKE model_invoke
#endif
#ifndef CHECK_SAMPLES
#define CHECK_SAMPLES GOLDEN_SAMPLES
#endif

static uint8_t arena[MODEL_ARENA_BYTES] __attribute__((aligned(4)));

int main(void) {
  struct check_result result = check_run(CHECK_INVOKE, arena, CHECK_SAMPLES);
  // In two halves: the smallest printf of an emulator's C library has no 64-bit numbers.
  printf("result samples=%d equal=%d count=0x%08lx%08lx stack=%lu arena=%lu macs=%lu answers=%d\n", result.samples, result.equal,
         (unsigned long)(result.median >> 32), (unsigned long)(result.median & 0xFFFFFFFFu), (unsigned long)result.stack,
         (unsigned long)MODEL_ARENA_BYTES, (unsigned long)MODEL_MACS, result.answers);
  return result.equal == result.samples && (result.answers < 0 || result.answers == result.samples) ? 0 : 1;
}

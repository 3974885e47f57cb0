// RISC-V, QEMU's machine "virt" with -icount: the instruction counter is exact. Start code and stack are picolibc's.
#include "check.h"

extern uint8_t __heap_end[];  // picolibc's linker script: the stack lies above

// The arch option lets the assembler know the counters, which every rv32 core has, without a new name for the CPU.
#define READ(counter)                                                                             \
  __extension__({                                                                                 \
    uint32_t value;                                                                               \
    __asm__ volatile(".option push\n.option arch, +zicsr\n" counter " %0\n.option pop" : "=r"(value)); \
    value;                                                                                        \
  })

uint64_t board_count(void) {
  uint32_t high, low;
  do {  // again if the low half wrapped around between the two reads
    high = READ("rdinstreth");
    low = READ("rdinstret");
  } while (high != READ("rdinstreth"));
  return (uint64_t)high << 32 | low;
}

uint8_t *board_stack_end(void) { return __heap_end; }

// In assembly, so that it has no frame: its stack pointer is its caller's.
__asm__(".section .text.board_stack_pointer\n.global board_stack_pointer\nboard_stack_pointer:\n  mv a0, sp\n  ret\n.text");

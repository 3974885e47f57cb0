// Runs a model's golden vectors on any board. Needs C99 and printf; what differs from board to board is below.
#ifndef CHECK_H
#define CHECK_H

#include <stdint.h>

// What a board gives.
uint64_t board_count(void);          // instructions or microseconds so far, never going back; 0 where there is no counter
uint8_t *board_stack_end(void);      // the lowest address that the stack may use; NULL where it cannot be painted
uint8_t *board_stack_pointer(void);  // the caller's stack pointer; not called where board_stack_end() is NULL

typedef void check_invoke(const int8_t *const inputs[], int8_t *const outputs[], void *arena);

check_invoke board_invoke;  // the host's: model_invoke(), or in two threads what is made for two cores

struct check_result {
  int samples, equal;        // equal: samples whose every output byte is the golden one, in every repeat
  uint64_t minimum, median;  // of board_count() over one inference
  int answers;               // samples whose answer is the golden one, in every repeat; -1 where the model has none
  uint32_t stack;            // bytes below the caller's stack pointer that the deepest inference wrote to
};

// Runs the first `samples` golden vectors; `arena` holds MODEL_ARENA_BYTES and is filled with noise first, or is
// NULL where invoke() has its own.
struct check_result check_run(check_invoke *invoke, void *arena, int samples);

#endif

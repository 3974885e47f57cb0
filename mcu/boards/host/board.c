// This computer: it shows that the bytes are right, and counts nothing.
#include <stddef.h>

#include "check.h"

uint64_t board_count(void) { return 0; }
uint8_t *board_stack_end(void) { return NULL; }
uint8_t *board_stack_pointer(void) { return NULL; }

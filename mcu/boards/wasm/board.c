// WebAssembly in node: nothing counts instructions there, so what is measured is time. run.js has the two imports.
#include <stddef.h>

#include "check.h"

#define IMPORT(name) __attribute__((import_module("board"), import_name(name)))

IMPORT("nanoseconds") double nanoseconds(void);  // since some moment
int main(void);
int run(void);

uint64_t board_count(void) { return (uint64_t)nanoseconds(); }
uint8_t *board_stack_end(void) { return NULL; }
uint8_t *board_stack_pointer(void) { return NULL; }

int run(void) { return main(); }  // what run.js calls: the compiler may give main another name

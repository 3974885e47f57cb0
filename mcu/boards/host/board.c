// This computer: it shows that the bytes are right, and counts nothing. C for two cores runs in two threads.
#include <stddef.h>

#include "check.h"
#include "model.h"

uint64_t board_count(void) { return 0; }
uint8_t *board_stack_end(void) { return NULL; }
uint8_t *board_stack_pointer(void) { return NULL; }

#ifdef MODEL_CORES
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static struct {
  const int8_t *const *inputs;
  int8_t *const *outputs;
  void *arena;
  model_meeting_t meeting;
} both;

static void *second(void *unused) {
  (void)unused;
  model_invoke_on(1, both.inputs, both.outputs, both.arena, &both.meeting);
  return NULL;
}

void board_invoke(const int8_t *const inputs[], int8_t *const outputs[], void *arena) {
  pthread_t thread;
  both.inputs = inputs, both.outputs = outputs, both.arena = arena;
  if (pthread_create(&thread, NULL, second, NULL)) {
    printf("no second thread\n");
    exit(1);
  }
  model_invoke_on(0, inputs, outputs, arena, &both.meeting);
  pthread_join(thread, NULL);
}
#else
void board_invoke(const int8_t *const inputs[], int8_t *const outputs[], void *arena) {
  model_invoke(inputs, outputs, arena);
}
#endif

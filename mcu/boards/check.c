#include "check.h"

#include <stdio.h>
#include <string.h>

#include "golden.h"
#include "model.h"

#ifndef CHECK_REPEATS
#define CHECK_REPEATS 1  // emulators count exactly; boards that measure time want more
#endif
#define PAINT 0xC5
#define OWN 64  // bytes that the painting itself may need

static const uint32_t input_bytes[MODEL_INPUTS] = MODEL_INPUT_BYTES;
static const uint32_t output_bytes[MODEL_OUTPUTS] = MODEL_OUTPUT_BYTES;
static int8_t answer[sizeof golden_outputs[0]];
static uint64_t counts[GOLDEN_SAMPLES * CHECK_REPEATS];

// Fills the unused stack. Volatile, so that no memset is called: its frame would lie in what is being filled.
static void paint(uint8_t *end, uint8_t *pointer) {
  for (volatile uint8_t *byte = end; byte < pointer - OWN; byte++) *byte = PAINT;
}

static uint32_t painted_over(const uint8_t *end, const uint8_t *pointer) {
  const uint8_t *byte = end;
  while (byte < pointer && *byte == PAINT) byte++;
  return (uint32_t)(pointer - byte);
}

static int compare(int sample) {
  for (uint32_t i = 0; i < sizeof answer; i++)
    if (answer[i] != golden_outputs[sample][i]) {
      printf("sample %d: output byte %lu is %d, golden is %d\n", sample, (unsigned long)i, answer[i],
             golden_outputs[sample][i]);
      return 0;
    }
  return 1;
}

// The answer that the model makes of its outputs is the golden one; true where it makes none.
static int compare_answer(int sample) {
#ifdef MODEL_ANSWERS
  int32_t found[MODEL_ANSWERS];
  for (int i = 0; i < MODEL_ANSWERS; i++) found[i] = ~golden_answers[sample][i];
  model_answer(answer, found);
  for (int i = 0; i < MODEL_ANSWERS; i++)
    if (found[i] != golden_answers[sample][i]) {
      printf("sample %d: answer %d is %ld, golden is %ld\n", sample, i, (long)found[i], (long)golden_answers[sample][i]);
      return 0;
    }
#else
  (void)sample;
#endif
  return 1;
}

static void sort(uint64_t *values, int count) {
  for (int i = 1; i < count; i++) {
    uint64_t value = values[i];
    int j = i;
    for (; j > 0 && values[j - 1] > value; j--) values[j] = values[j - 1];
    values[j] = value;
  }
}

struct check_result check_run(check_invoke *invoke, void *arena, int samples) {
  struct check_result result = {0};
  const int8_t *inputs[MODEL_INPUTS];
  int8_t *outputs[MODEL_OUTPUTS], *output = answer;
  int runs = 0;
  if (samples < 1 || samples > GOLDEN_SAMPLES) samples = GOLDEN_SAMPLES;
  for (int i = 0; i < MODEL_OUTPUTS; output += output_bytes[i++]) outputs[i] = output;
  if (arena) memset(arena, 0x5A, MODEL_ARENA_BYTES);  // the model may not count on zeros
  for (int sample = 0; sample < samples; sample++) {
    const int8_t *input = golden_inputs[sample];
    int equal = 1, answered = 1;
    for (int i = 0; i < MODEL_INPUTS; input += input_bytes[i++]) inputs[i] = input;
    for (int repeat = 0; repeat < CHECK_REPEATS; repeat++) {
      uint8_t *end = board_stack_end(), *pointer = end ? board_stack_pointer() : NULL;
      // No byte starts out right, so that one which is never written is noticed.
      for (uint32_t i = 0; i < sizeof answer; i++) answer[i] = (int8_t)~golden_outputs[sample][i];
      if (end) paint(end, pointer);
      uint64_t start = board_count();
      invoke(inputs, outputs, arena);
      counts[runs++] = board_count() - start;
      uint32_t stack = end ? painted_over(end, pointer) : 0;
      if (stack > result.stack) result.stack = stack;
      if (equal) equal = compare(sample);
      if (answered) answered = compare_answer(sample);
    }
    result.equal += equal;
    result.answers += answered;
  }
#ifndef MODEL_ANSWERS
  result.answers = -1;
#endif
  sort(counts, runs);
  result.samples = samples;
  result.minimum = counts[0];
  result.median = runs % 2 ? counts[runs / 2] : (counts[runs / 2 - 1] + counts[runs / 2]) / 2;
  return result;
}

// What a page in a browser calls: the model and its memory. page_input() is filled first, then page_run() fills the other
// two. C99 for any compiler: the tests call the same on this computer.
#include <stdint.h>

#include "golden.h"
#include "model.h"

int8_t *page_input(void);    // int8 pixels, row by row
int8_t *page_outputs(void);  // one output after the other
int32_t *page_answer(void);  // page_answers() numbers
int page_answers(void);
void page_run(void);

static const uint32_t output_bytes[MODEL_OUTPUTS] = MODEL_OUTPUT_BYTES;
static uint8_t arena[MODEL_ARENA_BYTES] __attribute__((aligned(4)));
static int8_t input[sizeof golden_inputs[0]], output[sizeof golden_outputs[0]];
static int32_t answer[MODEL_ANSWERS];

int8_t *page_input(void) { return input; }
int8_t *page_outputs(void) { return output; }
int32_t *page_answer(void) { return answer; }
int page_answers(void) { return MODEL_ANSWERS; }

void page_run(void) {
  const int8_t *inputs[] = {input};
  int8_t *outputs[MODEL_OUTPUTS], *next = output;
  for (int i = 0; i < MODEL_OUTPUTS; next += output_bytes[i++]) outputs[i] = next;
  model_invoke(inputs, outputs, arena);
  model_answer(output, answer);
}

// Written by hand for tests/test_boards.py: output[i] = clamp(input0[i] * weight[i] / 256 + input1[i]).
#include "model.h"

static const int32_t weight[8] = {256, -256, 1024, 3, -77, 100000, 0, 512};

void model_invoke(const int8_t *const inputs[], int8_t *const outputs[], void *arena) {
  int32_t *sums = arena;
  for (int i = 0; i < 8; i++) {
    // Divided, not shifted: 64-bit multiply and divide must link on every board.
    sums[i] = (int32_t)((int64_t)inputs[0][i] * weight[i] / (256 + (inputs[0][i] & 0))) + inputs[1][i];
  }
  for (int i = 0; i < 8; i++) outputs[0][i] = (int8_t)(sums[i] < -128 ? -128 : sums[i] > 127 ? 127 : sums[i]);
}

#include <stdint.h>
#define GOLDEN_SAMPLES 3
static const int8_t golden_inputs[GOLDEN_SAMPLES][1] = {{1}, {-2}, {3}};
static const int8_t golden_outputs[GOLDEN_SAMPLES][1] = {{1}, {-2}, {3}};

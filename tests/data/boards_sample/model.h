#include <stdint.h>
#define MODEL_NAME "boards_sample"
#define MODEL_INPUTS 2
#define MODEL_OUTPUTS 1
#define MODEL_INPUT_BYTES {8, 8}
#define MODEL_OUTPUT_BYTES {8}
#define MODEL_ARENA_BYTES 32
#define MODEL_MACS 8u
void model_invoke(const int8_t *const inputs[], int8_t *const outputs[], void *arena);

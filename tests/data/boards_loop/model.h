#include <stdint.h>
#define MODEL_NAME "boards_loop"
#define MODEL_INPUTS 1
#define MODEL_OUTPUTS 1
#define MODEL_INPUT_BYTES {1}
#define MODEL_OUTPUT_BYTES {1}
#define MODEL_ARENA_BYTES 4
#define MODEL_MACS 1000000u
void model_invoke(const int8_t *const inputs[], int8_t *const outputs[], void *arena);

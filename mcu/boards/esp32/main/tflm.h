// TensorFlow Lite Micro behind the two functions that main.c needs.
#pragma once
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Reads the embedded .tflite and plans it into memory; NULL, or what is wrong. `used` gets the bytes it took.
const char *tflm_start(void *memory, size_t bytes, size_t *used);
void tflm_invoke(const int8_t *const inputs[], int8_t *const outputs[], void *arena);

#ifdef __cplusplus
}
#endif

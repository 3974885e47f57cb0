/* @name@ @version@: a network in C, made by AtalaIA from an int8 .tflite file. README.md says how it is used.
 * SPDX-License-Identifier: Apache-2.0 (of the code; the constants in @name@.c have the licence of the .tflite file) */
#ifndef @NAME@_H
#define @NAME@_H

#include <stddef.h>
#include <stdint.h>

#define @NAME@_VERSION "@version@"
#define @NAME@_CONSTANT_BYTES @constant_bytes@ /* of flash@code_bytes@ */
#define @NAME@_ARENA_BYTES @arena_bytes@ /* of RAM: @network_bytes@ for the network, the rest for inputs and outputs */
#define @NAME@_MACS @macs@ /* multiply-accumulates of a call */
@facts@
#ifdef __cplusplus
extern "C" {
#endif

/* Once, before all else. arena: so many bytes, at least @NAME@_ARENA_BYTES, at an address that 4 divides;
 * @own@.
 * Returns NULL, or what is wrong. */
const char *@name@_init(void *arena, size_t bytes);
/* Where to write the input and to read the output, row by row; NULL before @name@_init(). */
@pointers@
/* Runs the network, in one task at a time; the input stays as it is. */
void @name@_invoke(void);
@functions@
#ifdef __cplusplus
}
#endif
@helpers@
#endif

/* @name@ @version@: made by AtalaIA from an int8 .tflite file.
 * SPDX-License-Identifier: Apache-2.0 (of the code; the constants have the licence of the .tflite file) */
#include "@name@.h"

@arena@

/* Arduino compiles for size, which costs time. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__OPTIMIZE_SIZE__)
#pragma GCC optimize("O2")
#endif

/* Network and answer stay in this file by this declaration, so that several packages fit into one program. */
@statics@

@model@

/* What @name@.h declares. */

#if ARENA_STATIC
static uint32_t own[@NAME@_ARENA_BYTES / 4];
#elif ARENA_PSRAM
static void *own;
#endif
static uint8_t *memory;

const char *@name@_init(void *arena, size_t bytes)
{
    if (arena == NULL) {
#if ARENA_STATIC
        arena = own;
#elif ARENA_PSRAM
        if (own == NULL)
            own = heap_caps_aligned_alloc(16, @NAME@_ARENA_BYTES, MALLOC_CAP_SPIRAM | MALLOC_CAP_8BIT);
        if (own == NULL)
            return "@name@: PSRAM has no @arena_bytes@ bytes in one piece";
        arena = own;
#else
        return "@name@: give an arena of @arena_bytes@ bytes";
#endif
        bytes = @NAME@_ARENA_BYTES;
    }
    if (bytes < @NAME@_ARENA_BYTES)
        return "@name@: the arena is smaller than @arena_bytes@ bytes";
    if ((uintptr_t)arena % 4)
        return "@name@: the address of the arena is no multiple of 4";
    memory = (uint8_t *)arena;
    return NULL;
}

void @name@_invoke(void)
{
    const int8_t *inputs[] = {@inputs@};
    int8_t *outputs[] = {@outputs@};
    model_invoke(inputs, outputs, memory);
}

@definitions@

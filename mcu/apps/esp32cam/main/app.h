// A camera that finds things, one picture a step: the network's input, the network, boxes, a line of JSON, the LED.
#ifndef APP_H
#define APP_H

#include "frame.h"

// What a board gives.
int board_take(struct frame *frame);  // a picture, which stays until board_give_back(); 0 where there is none
void board_give_back(void);
void board_put(const struct frame *frame, const char *line);  // what was found in a picture, as boxes.h writes it
void board_led(int on);
uint32_t board_milliseconds(void);  // so far; wraps around

// Bytes that app_start() needs beside the arena of MODEL_ARENA_BYTES; 0 where it refuses such pictures.
size_t app_bytes(const struct frame *like);

// Prepares for pictures like this one; arena and memory are 4-byte aligned and stay. NULL, or what is wrong.
const char *app_start(const struct frame *like, void *arena, void *memory, size_t bytes);

// One picture. NULL, or what is wrong with it.
const char *app_step(void);

// The network's input of the last picture, DETECTOR_INPUT_BYTES.
const int8_t *app_input(void);

#endif

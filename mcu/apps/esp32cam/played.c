// The app on the host and in emulators, with a camera that plays photos: `make -C mcu app`.
#include <stdio.h>

#include "app.h"
#include "check.h"
#include "detector.h"
#include "model.h"
#include PHOTOS_FILE

#define PER_MILLISECOND 240000  // the time that is shown: an instruction a clock at 240 MHz
#define HASH_START 2166136261u  // FNV-1a, so that a test can compare the network's input on every board
#define HASH_FACTOR 16777619u

static uint8_t arena[MODEL_ARENA_BYTES] __attribute__((aligned(4)));
static uint8_t memory[1 << 19] __attribute__((aligned(4)));
static int next, lit;

int board_take(struct frame *frame) {
  if (next == PHOTOS) return 0;
  *frame = (struct frame){photos[next++], sizeof photos[0], PHOTO_WIDTH, PHOTO_HEIGHT, PHOTO_FORMAT};
  return 1;
}

void board_give_back(void) {}
void board_led(int on) { lit = on; }
uint32_t board_milliseconds(void) { return (uint32_t)(board_count() / PER_MILLISECOND); }

void board_put(const struct frame *frame, const char *line) {
  const int8_t *input = app_input();
  uint32_t hash = HASH_START;
  (void)frame;
  for (int i = 0; i < DETECTOR_INPUT_BYTES; i++) hash = (hash ^ (uint8_t)input[i]) * HASH_FACTOR;
  printf("%s\nled %d input 0x%08lx\n", line, lit, (unsigned long)hash);
}

int main(void) {
  const struct frame like = {photos[0], sizeof photos[0], PHOTO_WIDTH, PHOTO_HEIGHT, PHOTO_FORMAT};
  const char *wrong = app_start(&like, arena, memory, sizeof memory);
  while (!wrong && next < PHOTOS) wrong = app_step();
  if (wrong) printf("error: %s\n", wrong);
  else printf("memory %lu arena %lu\n", (unsigned long)app_bytes(&like), (unsigned long)MODEL_ARENA_BYTES);
  return wrong != NULL;
}

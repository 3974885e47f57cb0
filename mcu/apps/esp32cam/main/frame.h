// A camera's picture becomes the network's input, as training read its photos: Pillow's bilinear filter in integers.
#ifndef FRAME_H
#define FRAME_H

#include <stddef.h>
#include <stdint.h>

#define FRAME_MOST_SIDE 2048  // pixels; so no product of sides leaves 32 bits

enum frame_format {
  FRAME_GREY,    // a byte a pixel
  FRAME_RGB565,  // two bytes, the one with red first, as cameras send them
  FRAME_RGB888,  // red, green, blue
};

// data.fit of the config: how a picture of another shape becomes one of the network's.
enum frame_fit { FRAME_CROP, FRAME_PAD, FRAME_LETTERBOX, FRAME_STRETCH };

struct frame {
  const uint8_t *pixels;
  size_t bytes;
  int32_t width, height;
  enum frame_format format;
};

struct frame_input {
  int32_t width, height, channels;  // 1 (grey) or 3
  enum frame_fit fit;
  const int8_t *levels;  // of the network's input, for a pixel of 0 to 255
};

// Along one side: output pixels [start, start + count) show the picture, and what is around is black. The point at `x`
// pixels of the output is the one at (offset + 2 * (x - start) * step) / (2 * unit) pixels of the picture.
struct frame_axis {
  int32_t in, start, count, offset, step, unit, taps;  // taps: pixels of the picture that an output pixel has at most
};

struct frame_plan {
  struct frame_input input;
  enum frame_format format;
  struct frame_axis across, down;
  int32_t *weights;      // in parts of 2^22: [across.count][across.taps], and a row of [down.taps] to work in
  int16_t *spans;        // [across.count][2]: the first of the pixels with a weight, and how many
  uint8_t *line, *ring;  // a row of the picture in the network's channels; down.taps rows that are resized across
};

// Bytes that frame_plan() needs for pictures of this width, height and format; 0 where frame_plan() refuses them.
size_t frame_bytes(const struct frame *like, const struct frame_input *input);

// Prepares for pictures like this one, in `memory`, 4-byte aligned and kept with the plan. NULL, or what is wrong.
const char *frame_plan(struct frame_plan *plan, const struct frame *like, const struct frame_input *input, void *memory,
                       size_t bytes);

// Fills the input, height x width x channels values. NULL, or what is wrong with the picture.
const char *frame_fill(const struct frame_plan *plan, const struct frame *frame, int8_t *input);

#endif

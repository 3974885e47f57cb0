// What the network found, in pixels of the camera's picture, and as a line of JSON.
#ifndef BOXES_H
#define BOXES_H

#include "frame.h"

struct box {
  int32_t x, y, width, height;  // in pixels of the picture
  int32_t score;                // probability in 1/1000
  int32_t kind;                 // its class
};

// The boxes of an answer, `most` times class, score code, x0, y0, x1, y1 in 1/16 of an input pixel, less those that lie
// beside the picture; scores: the probability of code - 128 in 1/1000. Returns how many.
int32_t boxes_of(const struct frame_plan *plan, const int32_t *answer, int32_t most, const uint16_t *scores,
                 struct box *boxes);

// Bytes of the longest line of `most` boxes, with names of `name` bytes.
#define BOXES_LINE(most, name) (64 + (most) * (96 + (name)))

// The line, ended by a zero and without a line feed: {"frame":12,"ms":143,"boxes":[{"x":..,"y":..,"w":..,"h":..,
// "score":0.871,"class":"face"}]}. Returns its length, or -1 where it does not fit.
int32_t boxes_line(char *line, size_t bytes, uint32_t frame, uint32_t milliseconds, const struct box *boxes,
                   int32_t count, const char *const *names);

#endif

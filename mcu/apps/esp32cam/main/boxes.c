#include "boxes.h"

#include <stdio.h>

enum { KIND, SCORE, X0, Y0, X1, Y1, VALUES };  // of a box in an answer

// Where the picture has the point at `place` sixteenths of an input pixel: the nearest pixel's border in it.
static int32_t place_of(const struct frame_axis *axis, int32_t place) {
  const int32_t unit = 16 * axis->unit;
  const int32_t at = axis->offset * 8 + (place - 16 * axis->start) * axis->step;
  if (at <= 0) return 0;
  const int32_t whole = at / unit, rest = at % unit, found = whole + (2 * rest >= unit);
  return found < axis->in ? found : axis->in;
}

int32_t boxes_of(const struct frame_plan *plan, const int32_t *answer, int32_t most, const uint16_t *scores,
                 struct box *boxes) {
  int32_t count = 0;
  for (int32_t i = 0; i < most; i++, answer += VALUES) {
    if (answer[KIND] < 0) continue;
    struct box *box = boxes + count;
    box->x = place_of(&plan->across, answer[X0]);
    box->y = place_of(&plan->down, answer[Y0]);
    box->width = place_of(&plan->across, answer[X1]) - box->x;
    box->height = place_of(&plan->down, answer[Y1]) - box->y;
    box->score = scores[answer[SCORE] + 128];
    box->kind = answer[KIND];
    count += box->width > 0 && box->height > 0;
  }
  return count;
}

int32_t boxes_line(char *line, size_t bytes, uint32_t frame, uint32_t milliseconds, const struct box *boxes,
                   int32_t count, const char *const *names) {
  size_t used = 0;
  int more = snprintf(line, bytes, "{\"frame\":%lu,\"ms\":%lu,\"boxes\":[", (unsigned long)frame,
                      (unsigned long)milliseconds);
  for (int32_t i = 0; i <= count; i++) {
    if (more < 0 || (size_t)more >= bytes - used) return -1;
    used += (size_t)more;
    if (i == count) break;
    const struct box *box = boxes + i;
    more = snprintf(line + used, bytes - used,
                    "%s{\"x\":%ld,\"y\":%ld,\"w\":%ld,\"h\":%ld,\"score\":%ld.%03ld,\"class\":\"%s\"}", i ? "," : "",
                    (long)box->x, (long)box->y, (long)box->width, (long)box->height, (long)box->score / 1000,
                    (long)box->score % 1000, names[box->kind]);
  }
  more = snprintf(line + used, bytes - used, "]}");
  return more < 0 || (size_t)more >= bytes - used ? -1 : (int32_t)(used + (size_t)more);
}

#include "frame.h"

#include <string.h>

#define ONE (1 << 22)  // parts of a weight, as many as Pillow's: 255 times them is less than 2^31

static int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }

// n / d as a whole number; of two that are equally near the even one, as Python rounds.
static int32_t nearest(int32_t n, int32_t d) {
  int32_t whole = n / d, rest = 2 * (n % d);
  return whole + (rest > d || (rest == d && whole % 2));
}

static int32_t pixel_bytes(enum frame_format format) { return (int32_t)format + 1; }

// Both sides by one scale, until the picture covers the input; what is over is left out, the same on both sides.
static void crop(struct frame_plan *p, int32_t width, int32_t height) {
  int32_t out_width = p->input.width, out_height = p->input.height;
  int wide = width * out_height >= height * out_width;
  int32_t step = wide ? height : width, unit = wide ? out_height : out_width;
  p->across = (struct frame_axis){.in = width, .count = out_width, .step = step, .unit = unit};
  p->down = (struct frame_axis){.in = height, .count = out_height, .step = step, .unit = unit};
  p->across.offset = width * unit - out_width * step;
  p->down.offset = height * unit - out_height * step;
}

// The whole picture, as large as it fits, or stretched to both sides.
static void contain(struct frame_plan *p, int32_t width, int32_t height) {
  int32_t across = p->input.width, down = p->input.height;
  if (p->input.fit != FRAME_STRETCH) {
    int32_t wide = width * p->input.height, tall = height * p->input.width;
    if (wide > tall) down = larger(nearest(tall, width), 1);
    if (wide < tall) across = larger(nearest(wide, height), 1);
  }
  p->across = (struct frame_axis){.in = width, .count = across, .step = width, .unit = across};
  p->down = (struct frame_axis){.in = height, .count = down, .step = height, .unit = down};
  if (p->input.fit == FRAME_PAD) {
    p->across.start = nearest(p->input.width - across, 2);
    p->down.start = nearest(p->input.height - down, 2);
  }
}

// A triangle reaches as far as a pixel of the coarser side is wide.
static int32_t reach_of(const struct frame_axis *a) { return 2 * larger(a->step, a->unit); }

// The weights of output pixel x, ONE in all; returns how many there are, from pixel *first of the picture on.
static int32_t weigh(const struct frame_axis *a, int32_t x, int32_t *first, int32_t *weights) {
  int32_t centre = a->offset + (2 * x + 1) * a->step, reach = reach_of(a), count = 0, total = 0;
  int32_t at = larger(centre - reach, 0) / (2 * a->unit);
  for (; at < a->in && (2 * at + 1) * a->unit < centre + reach; at++) {
    int32_t away = (2 * at + 1) * a->unit - centre;
    int32_t weight = reach - (away < 0 ? -away : away);
    if (weight <= 0) continue;
    if (!count) *first = at;
    weights[count++] = weight;
    total += weight;
  }
  for (int32_t i = 0; i < count; i++)
    weights[i] = (int32_t)(((uint64_t)(uint32_t)weights[i] * ONE + (uint32_t)total / 2) / (uint32_t)total);
  return count;
}

// Sides and scales; NULL, or what is wrong.
static const char *lay_out(struct frame_plan *p, const struct frame *like, const struct frame_input *input) {
  int32_t sides[] = {like->width, like->height, input->width, input->height};
  for (int i = 0; i < 4; i++)
    if (sides[i] < 1 || sides[i] > FRAME_MOST_SIDE)
      return "a side of the picture or of the input is not of 1 to 2048 pixels";
  if (input->channels != 1 && input->channels != 3) return "the network's input has not one channel, and not three";
  if (pixel_bytes(like->format) < 1 || pixel_bytes(like->format) > 3) return "the picture's format is unknown";
  *p = (struct frame_plan){.input = *input, .format = like->format};
  (input->fit == FRAME_CROP ? crop : contain)(p, like->width, like->height);
  struct frame_axis *axes[] = {&p->across, &p->down};
  for (int i = 0; i < 2; i++) axes[i]->taps = (reach_of(axes[i]) + axes[i]->unit - 1) / axes[i]->unit;
  return NULL;
}

static size_t weights_of(const struct frame_plan *p) {
  return (size_t)p->across.count * (size_t)p->across.taps + (size_t)p->down.taps;
}

static size_t row_of(const struct frame_plan *p) { return (size_t)(p->across.count * p->input.channels); }

static size_t bytes_of(const struct frame_plan *p) {
  size_t rows = (size_t)(p->across.in * p->input.channels) + (size_t)p->down.taps * row_of(p);
  return weights_of(p) * sizeof(int32_t) + 2 * (size_t)p->across.count * sizeof(int16_t) + rows;
}

size_t frame_bytes(const struct frame *like, const struct frame_input *input) {
  struct frame_plan plan;
  return lay_out(&plan, like, input) ? 0 : bytes_of(&plan);
}

const char *frame_plan(struct frame_plan *p, const struct frame *like, const struct frame_input *input, void *memory,
                       size_t bytes) {
  const char *wrong = lay_out(p, like, input);
  if (wrong) return wrong;
  if (bytes < bytes_of(p)) return "the memory for resizing is too small";
  p->weights = memory;
  p->spans = (int16_t *)(p->weights + weights_of(p));
  p->line = (uint8_t *)(p->spans + 2 * p->across.count);
  p->ring = p->line + p->across.in * p->input.channels;
  for (int32_t x = 0; x < p->across.count; x++) {
    int32_t first = 0, count = weigh(&p->across, x, &first, p->weights + x * p->across.taps);
    p->spans[2 * x] = (int16_t)first;
    p->spans[2 * x + 1] = (int16_t)count;
  }
  return NULL;
}

// ITU-R 601 in 1/65536, as Pillow makes grey.
static uint8_t grey_of(const uint8_t *rgb) {
  return (uint8_t)((rgb[0] * 19595u + rgb[1] * 38470u + rgb[2] * 7471u + 32768u) >> 16);
}

static void colours_of(enum frame_format format, const uint8_t *pixel, uint8_t *rgb) {
  if (format == FRAME_RGB565) {
    uint32_t word = (uint32_t)pixel[0] << 8 | pixel[1], red = word >> 11, green = word >> 5 & 63, blue = word & 31;
    rgb[0] = (uint8_t)(red << 3 | red >> 2);
    rgb[1] = (uint8_t)(green << 2 | green >> 4);
    rgb[2] = (uint8_t)(blue << 3 | blue >> 2);
  } else {
    for (int c = 0; c < 3; c++) rgb[c] = pixel[format == FRAME_GREY ? 0 : c];
  }
}

// A row of the picture in the network's channels.
static void read_row(const struct frame_plan *p, const uint8_t *pixels) {
  uint8_t *to = p->line, rgb[3];
  if (p->format == FRAME_GREY && p->input.channels == 1) {
    memcpy(to, pixels, (size_t)p->across.in);
    return;
  }
  for (int32_t x = 0; x < p->across.in; x++, pixels += pixel_bytes(p->format)) {
    colours_of(p->format, pixels, rgb);
    if (p->input.channels == 1) *to++ = grey_of(rgb);
    else
      for (int c = 0; c < 3; c++) *to++ = rgb[c];
  }
}

static void resize_across(const struct frame_plan *p, uint8_t *out) {
  const int32_t channels = p->input.channels;
  const int32_t *weights = p->weights;
  for (int32_t x = 0; x < p->across.count; x++, weights += p->across.taps)
    for (int32_t c = 0; c < channels; c++) {
      const uint8_t *at = p->line + p->spans[2 * x] * channels + c;
      int32_t sum = ONE / 2;
      for (int32_t t = 0; t < p->spans[2 * x + 1]; t++, at += channels) sum += weights[t] * *at;
      *out++ = (uint8_t)(sum / ONE);
    }
}

// A row of the input from rows `first` to `first + count` of the picture, each in its place of the ring.
static void resize_down(const struct frame_plan *p, int32_t first, int32_t count, const int32_t *weights, int8_t *out) {
  const size_t row = row_of(p);
  const uint8_t *end = p->ring + (size_t)p->down.taps * row, *start = p->ring + (size_t)(first % p->down.taps) * row;
  for (size_t i = 0; i < row; i++) {
    const uint8_t *at = start + i;
    int32_t sum = ONE / 2;
    for (int32_t t = 0; t < count; t++) {
      sum += weights[t] * *at;
      at += row;
      if (at >= end) at -= end - p->ring;
    }
    out[i] = p->input.levels[sum / ONE];
  }
}

const char *frame_fill(const struct frame_plan *p, const struct frame *frame, int8_t *input) {
  const size_t bytes = (size_t)p->across.in * (size_t)pixel_bytes(p->format);
  if (frame->width != p->across.in || frame->height != p->down.in || frame->format != p->format)
    return "the picture is of another size or format than the first one";
  if (frame->bytes != bytes * (size_t)p->down.in) return "the picture has not as many bytes as its size needs";
  int32_t *weights = p->weights + p->across.count * p->across.taps, next = 0;
  memset(input, p->input.levels[0], (size_t)(p->input.width * p->input.height * p->input.channels));
  input += (p->down.start * p->input.width + p->across.start) * p->input.channels;
  for (int32_t y = 0; y < p->down.count; y++, input += p->input.width * p->input.channels) {
    int32_t first = 0, count = weigh(&p->down, y, &first, weights);
    for (next = larger(next, first); next < first + count; next++) {
      read_row(p, frame->pixels + (size_t)next * bytes);
      resize_across(p, p->ring + (size_t)(next % p->down.taps) * row_of(p));
    }
    resize_down(p, first, count, weights, input);
  }
  return NULL;
}

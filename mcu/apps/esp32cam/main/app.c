#include "app.h"

#include "boxes.h"
#include "detector.h"
#include "model.h"

#define MOST (MODEL_ANSWERS / 6)  // boxes

static const struct frame_input wanted = {
    .width = DETECTOR_WIDTH,
    .height = DETECTOR_HEIGHT,
    .channels = DETECTOR_CHANNELS,
    .fit = DETECTOR_FIT,
    .levels = detector_levels,
};
static const uint32_t input_bytes[MODEL_INPUTS] = MODEL_INPUT_BYTES;
static const uint32_t output_bytes[MODEL_OUTPUTS] = MODEL_OUTPUT_BYTES;

static struct frame_plan plan;
static void *arena;
static int8_t *input, *outputs;
static int32_t answer[MODEL_ANSWERS];
static struct box boxes[MOST];
static char line[BOXES_LINE(MOST, DETECTOR_NAME_BYTES)];
static uint32_t number;

size_t app_bytes(const struct frame *like) {
  const size_t bytes = frame_bytes(like, &wanted);
  return bytes ? bytes + DETECTOR_INPUT_BYTES + DETECTOR_OUTPUT_BYTES : 0;
}

const char *app_start(const struct frame *like, void *given, void *memory, size_t bytes) {
  uint32_t sum = 0;
  for (int i = 0; i < MODEL_OUTPUTS; i++) sum += output_bytes[i];
  if (input_bytes[0] != DETECTOR_INPUT_BYTES || sum != DETECTOR_OUTPUT_BYTES)
    return "model.h and detector.h are not of one model";
  const size_t resizing = frame_bytes(like, &wanted);
  if (resizing && bytes < app_bytes(like)) return "the memory of the app is too small";
  const char *wrong = frame_plan(&plan, like, &wanted, memory, resizing);
  if (wrong) return wrong;
  arena = given;
  input = (int8_t *)memory + resizing;
  outputs = input + DETECTOR_INPUT_BYTES;
  number = 0;
  return NULL;
}

// The boxes of what lies in `input`.
static int32_t find(void) {
  const int8_t *inputs[] = {input};
  int8_t *parts[MODEL_OUTPUTS], *part = outputs;
  for (int i = 0; i < MODEL_OUTPUTS; part += output_bytes[i++]) parts[i] = part;
  model_invoke(inputs, parts, arena);
  model_answer(outputs, answer);
  return boxes_of(&plan, answer, MOST, detector_scores, boxes);
}

const char *app_step(void) {
  struct frame frame;
  if (!board_take(&frame)) {
    board_led(0);
    return "the camera gave no picture";
  }
  const uint32_t start = board_milliseconds();
  const char *wrong = frame_fill(&plan, &frame, input);
  if (!wrong) {
    const int32_t count = find();
    const uint32_t took = board_milliseconds() - start;
    board_led(count > 0);
    if (boxes_line(line, sizeof line, number++, took, boxes, count, detector_names) < 0) wrong = "the line is too long";
    else board_put(&frame, line);
  }
  board_give_back();
  return wrong;
}

const int8_t *app_input(void) { return input; }

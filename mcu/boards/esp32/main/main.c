// Runs the golden vectors on an ESP32 and prints what it measured.
#include <stddef.h>
#include <stdio.h>

#include "check.h"
#include "esp_heap_caps.h"
#include "esp_timer.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"
#include "golden.h"
#include "model.h"
#include "sdkconfig.h"

#if CONFIG_ATALAIA_ENGINE_TFLM
#include "tflm.h"
#define ENGINE "tflm"
#else
#define ENGINE "generated"
#endif

uint64_t board_count(void) { return (uint64_t)esp_timer_get_time(); }
// FreeRTOS paints its own stacks.
uint8_t *board_stack_end(void) { return NULL; }
uint8_t *board_stack_pointer(void) { return NULL; }

static void *memory(size_t bytes) {
  void *found = heap_caps_aligned_alloc(16, bytes, MALLOC_CAP_INTERNAL | MALLOC_CAP_8BIT);
  if (!found)
    printf("no %u bytes of internal memory in one piece; the largest has %u\n", (unsigned)bytes,
           (unsigned)heap_caps_get_largest_free_block(MALLOC_CAP_INTERNAL | MALLOC_CAP_8BIT));
  return found;
}

#if defined(MODEL_CORES) && !CONFIG_FREERTOS_UNICORE && !CONFIG_ATALAIA_ENGINE_TFLM
#define TWO_CORES 1
static TaskHandle_t second;
static struct {
  const int8_t *const *inputs;
  int8_t *const *outputs;
  void *arena;
  model_meeting_t meeting;
} both;

// The other core's task: its half of an inference, each time it is told to.
static void run_second(void *unused) {
  (void)unused;
  for (;;) {
    ulTaskNotifyTake(pdTRUE, portMAX_DELAY);
    model_invoke_on(1, both.inputs, both.outputs, both.arena, &both.meeting);
  }
}

static void invoke_on_both(const int8_t *const inputs[], int8_t *const outputs[], void *arena) {
  both.inputs = inputs, both.outputs = outputs, both.arena = arena;
  xTaskNotifyGive(second);
  model_invoke_on(0, inputs, outputs, arena, &both.meeting);
}
#endif

void app_main(void) {
  size_t arena_bytes = MODEL_ARENA_BYTES;
#if CONFIG_ATALAIA_ENGINE_TFLM
  check_invoke *invoke = tflm_invoke;
  void *arena = NULL;  // its own was planned by tflm_start(), and must stay as it is
  void *tflm_arena = memory(CONFIG_ATALAIA_TFLM_ARENA_KB * 1024);
  if (!tflm_arena) return;
  const char *wrong = tflm_start(tflm_arena, CONFIG_ATALAIA_TFLM_ARENA_KB * 1024, &arena_bytes);
  if (wrong) {
    printf("%s\n", wrong);
    return;
  }
#else
  void *arena = memory(arena_bytes);
  if (!arena) return;
#if TWO_CORES
  check_invoke *invoke = invoke_on_both;
  if (xTaskCreatePinnedToCore(run_second, "second", 4096, NULL, uxTaskPriorityGet(NULL), &second, 1) != pdPASS) {
    printf("no memory for the task of the second core\n");
    return;
  }
#else
  check_invoke *invoke = model_invoke;
#endif
#endif
  printf("%s with %s: %d samples, %d times each\n", MODEL_NAME, ENGINE, GOLDEN_SAMPLES, CONFIG_ATALAIA_REPEATS);
  struct check_result result = check_run(invoke, arena, GOLDEN_SAMPLES);
  int pass = result.equal == result.samples && (result.answers < 0 || result.answers == result.samples);
  char answers[12] = "null";  // where the model makes none
  if (result.answers >= 0) snprintf(answers, sizeof answers, "%d", result.answers);
  printf("%s: %d of %d samples equal\n", pass ? "PASS" : "FAIL", result.equal, result.samples);
  printf("{\"model\": \"%s\", \"board\": \"%s\", \"engine\": \"%s\", \"samples\": %d, \"equal\": %d, \"answers_equal\": %s, "
         "\"us_min\": %lu, \"us_median\": %lu, \"arena_bytes\": %u, \"free_heap_bytes\": %u, \"free_stack_bytes\": %u}\n",
         MODEL_NAME, CONFIG_IDF_TARGET, ENGINE, result.samples, result.equal, answers,
         (unsigned long)result.minimum, (unsigned long)result.median, (unsigned)arena_bytes,
         (unsigned)heap_caps_get_free_size(MALLOC_CAP_INTERNAL | MALLOC_CAP_8BIT),
         (unsigned)uxTaskGetStackHighWaterMark(NULL));
}

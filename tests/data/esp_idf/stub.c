// ESP-IDF's part of the ESP32 app on this computer: a clock of one microsecond a call, and the C library's memory.
#define _POSIX_C_SOURCE 200112L
#include <stdlib.h>

#include "esp_heap_caps.h"
#include "esp_timer.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"

static int64_t now;

int64_t esp_timer_get_time(void) { return now++; }
UBaseType_t uxTaskGetStackHighWaterMark(void *task) { return task ? 0 : 1234; }
size_t heap_caps_get_free_size(uint32_t caps) { return caps ? 100000 : 0; }
size_t heap_caps_get_largest_free_block(uint32_t caps) { return caps ? 50000 : 0; }

void *heap_caps_aligned_alloc(size_t alignment, size_t size, uint32_t caps) {
  void *found = NULL;
  return caps && posix_memalign(&found, alignment, size) == 0 ? found : NULL;
}

void app_main(void);
int main(void) {
  app_main();
  return 0;
}

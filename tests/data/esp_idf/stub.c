// ESP-IDF's part of the ESP32 app on this computer: a clock of one microsecond a call, the C library's memory, and a thread
// for the one task that may be started.
#define _POSIX_C_SOURCE 200112L
#include <pthread.h>
#include <semaphore.h>
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

static struct task {
  void (*code)(void *);
  void *given;
  sem_t told;
} task;

static void *run(void *unused) {
  (void)unused;
  task.code(task.given);
  return NULL;
}

BaseType_t xTaskCreatePinnedToCore(void (*code)(void *), const char *name, uint32_t stack, void *given, UBaseType_t priority,
                                   TaskHandle_t *made, BaseType_t core) {
  pthread_t thread;
  task.code = code, task.given = given, *made = &task;
  if (!name || stack < 2048 || priority != 1 || core != 1 || sem_init(&task.told, 0, 0)) return 0;
  return pthread_create(&thread, NULL, run, NULL) ? 0 : pdPASS;
}

UBaseType_t uxTaskPriorityGet(TaskHandle_t asked) { return asked ? 0 : 1; }
uint32_t ulTaskNotifyTake(BaseType_t clear, TickType_t ticks) { return clear && ticks && !sem_wait(&task.told); }
BaseType_t xTaskNotifyGive(TaskHandle_t told) { return sem_post(&told->told) ? 0 : pdPASS; }

void app_main(void);
int main(void) {
  app_main();
  return 0;
}

// The app on a board: memory, the task of the network, the LED; camera.c, web.c and wifi.c are the rest of ESP-IDF's.
#include <stdio.h>

#include "app.h"
#include "boxes.h"
#include "camera.h"
#include "detector.h"
#include "driver/gpio.h"
#include "esp_heap_caps.h"
#include "esp_timer.h"
#include "freertos/FreeRTOS.h"
#include "freertos/task.h"
#include "model.h"
#include "sdkconfig.h"
#include "web.h"
#include "wifi.h"

#define STACK 8192                          // bytes of the task of the network, which also makes the JPEG
#define CORE (portNUM_PROCESSORS - 1)       // Wi-Fi and the driver have core 0
#define AGAIN pdMS_TO_TICKS(1000)           // after a picture that did not come

uint32_t board_milliseconds(void) { return (uint32_t)(esp_timer_get_time() / 1000); }

void board_led(int on) {
#if CONFIG_ATALAIA_PIN_LED >= 0
#if CONFIG_ATALAIA_LED_LOW
  on = !on;
#endif
  gpio_set_level(CONFIG_ATALAIA_PIN_LED, (uint32_t)on);
#else
  (void)on;
#endif
}

static void start_led(void) {
#if CONFIG_ATALAIA_PIN_LED >= 0
  gpio_reset_pin(CONFIG_ATALAIA_PIN_LED);
  gpio_set_direction(CONFIG_ATALAIA_PIN_LED, GPIO_MODE_OUTPUT);
#endif
  board_led(0);
}

void board_put(const struct frame *frame, const char *line) {
  (void)frame;
  printf("%s\n", line);
  web_show(camera_held(), line);
}

// Internal memory, else PSRAM, which is several times slower; NULL after a message.
static void *memory(const char *what, size_t bytes) {
  const uint32_t internal = MALLOC_CAP_INTERNAL | MALLOC_CAP_8BIT, psram = MALLOC_CAP_SPIRAM | MALLOC_CAP_8BIT;
  void *found = heap_caps_aligned_alloc(16, bytes, internal);
  if (found) return found;
  found = heap_caps_aligned_alloc(16, bytes, psram);
  if (found)
    printf("%s: %u bytes lie in PSRAM, which is slow\n", what, (unsigned)bytes);
  else
    printf("no memory for %s: %u bytes in one piece, the largest free one has %u (PSRAM: %u); see README.md\n",
           what, (unsigned)bytes, (unsigned)heap_caps_get_largest_free_block(internal),
           (unsigned)heap_caps_get_largest_free_block(psram));
  return found;
}

static void work(void *unused) {
  (void)unused;
  for (;;) {
    const char *wrong = app_step();
    if (!wrong) continue;
    printf("%s\n", wrong);
    vTaskDelay(AGAIN);
  }
}

// The network and the web page. NULL, or what is wrong.
static const char *start_network(const struct frame *shape) {
  if (!CONFIG_ATALAIA_WIFI_NAME[0]) return NULL;
  const char *wrong = wifi_start();
  if (wrong) return wrong;
  return web_start(BOXES_LINE(MODEL_ANSWERS / 6, DETECTOR_NAME_BYTES), (size_t)(shape->width * shape->height));
}

// The largest piece first: what comes later finds room between.
void app_main(void) {
  const struct frame shape = camera_shape();
  const size_t bytes = app_bytes(&shape);
  start_led();
  void *arena = memory("the network's arena", MODEL_ARENA_BYTES);
  void *rest = arena ? memory("the network's input and resizing", bytes) : NULL;
  if (!rest) return;
  const char *wrong = app_start(&shape, arena, rest, bytes);
  if (!wrong) wrong = camera_start();
  if (!wrong) wrong = start_network(&shape);
  if (!wrong && xTaskCreatePinnedToCore(work, "network", STACK, NULL, 5, NULL, CORE) != pdPASS)
    wrong = "no memory for the stack of the network's task";
  printf("%s: %s (%u bytes of internal memory are free)\n", MODEL_NAME, wrong ? wrong : "started",
         (unsigned)heap_caps_get_free_size(MALLOC_CAP_INTERNAL | MALLOC_CAP_8BIT));
}

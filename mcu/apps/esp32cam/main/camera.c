#include "camera.h"

#include <stdio.h>

#include "app.h"
#include "detector.h"
#include "driver/gpio.h"
#include "esp_heap_caps.h"
#include "sdkconfig.h"

#if CONFIG_ATALAIA_FRAME_VGA
#define SIZE FRAMESIZE_VGA
#elif CONFIG_ATALAIA_FRAME_QVGA
#define SIZE FRAMESIZE_QVGA
#else
#define SIZE FRAMESIZE_QQVGA
#endif
#if CONFIG_ATALAIA_FORMAT_RGB565
#define DRIVER_FORMAT PIXFORMAT_RGB565
#define FORMAT FRAME_RGB565
#else
#define DRIVER_FORMAT PIXFORMAT_GRAYSCALE
#define FORMAT FRAME_GREY
#if DETECTOR_CHANNELS != 1
#error "the model wants colours: choose RGB565 in menuconfig, menu AtalaIA camera"
#endif
#endif

static camera_fb_t *held;

struct frame camera_shape(void) {
  return (struct frame){.width = resolution[SIZE].width, .height = resolution[SIZE].height, .format = FORMAT};
}

// Two of the ESP-EYE's data pins are JTAG's until they are inputs with a pull-up.
static void free_jtag_pins(void) {
#if CONFIG_ATALAIA_CAMERA_ESP_EYE
  const gpio_config_t pins = {.pin_bit_mask = 1ull << 13 | 1ull << 14, .mode = GPIO_MODE_INPUT, .pull_up_en = 1};
  gpio_config(&pins);
#endif
}

// A picture that stands on its head is turned by the sensor.
static void turn(void) {
#if CONFIG_ATALAIA_TURNED
  sensor_t *sensor = esp_camera_sensor_get();
  sensor->set_vflip(sensor, 1);
  sensor->set_hmirror(sensor, 1);
#endif
}

const char *camera_start(void) {
  static char wrong[160];
  const int psram = heap_caps_get_total_size(MALLOC_CAP_SPIRAM) > 0;
  // One buffer: the camera fills it while nobody holds it, and a picture is never older than the last step.
  const camera_config_t config = {
      .pin_pwdn = CONFIG_ATALAIA_PIN_PWDN,
      .pin_reset = CONFIG_ATALAIA_PIN_RESET,
      .pin_xclk = CONFIG_ATALAIA_PIN_XCLK,
      .pin_sccb_sda = CONFIG_ATALAIA_PIN_SDA,
      .pin_sccb_scl = CONFIG_ATALAIA_PIN_SCL,
      .pin_d7 = CONFIG_ATALAIA_PIN_D7,
      .pin_d6 = CONFIG_ATALAIA_PIN_D6,
      .pin_d5 = CONFIG_ATALAIA_PIN_D5,
      .pin_d4 = CONFIG_ATALAIA_PIN_D4,
      .pin_d3 = CONFIG_ATALAIA_PIN_D3,
      .pin_d2 = CONFIG_ATALAIA_PIN_D2,
      .pin_d1 = CONFIG_ATALAIA_PIN_D1,
      .pin_d0 = CONFIG_ATALAIA_PIN_D0,
      .pin_vsync = CONFIG_ATALAIA_PIN_VSYNC,
      .pin_href = CONFIG_ATALAIA_PIN_HREF,
      .pin_pclk = CONFIG_ATALAIA_PIN_PCLK,
      .xclk_freq_hz = CONFIG_ATALAIA_XCLK_MHZ * 1000000,
      .ledc_timer = LEDC_TIMER_0,
      .ledc_channel = LEDC_CHANNEL_0,
      .pixel_format = DRIVER_FORMAT,
      .frame_size = SIZE,
      .fb_count = 1,
      .fb_location = psram ? CAMERA_FB_IN_PSRAM : CAMERA_FB_IN_DRAM,
      .grab_mode = CAMERA_GRAB_WHEN_EMPTY,
  };
  const unsigned bytes = (unsigned)(resolution[SIZE].width * resolution[SIZE].height * (FORMAT + 1));
  const uint32_t where = psram ? MALLOC_CAP_SPIRAM : MALLOC_CAP_INTERNAL;
  const unsigned largest = (unsigned)heap_caps_get_largest_free_block(where);
  if (largest < bytes) {
    snprintf(wrong, sizeof wrong,
             "no memory for a picture: %u bytes in one piece, the largest free one has %u; choose a smaller picture",
             bytes, largest);
    return wrong;
  }
  free_jtag_pins();
  const esp_err_t error = esp_camera_init(&config);
  if (error == ESP_OK) {
    turn();
    return NULL;
  }
  const char *likely = error == ESP_ERR_CAMERA_NOT_DETECTED || error == ESP_ERR_NOT_FOUND
                           ? "no camera answers: is it the right board in menuconfig, is the cable in?"
                           : "see the driver's lines above";
  snprintf(wrong, sizeof wrong, "the camera does not start (%s): %s", esp_err_to_name(error), likely);
  return wrong;
}

camera_fb_t *camera_held(void) { return held; }

int board_take(struct frame *frame) {
  held = esp_camera_fb_get();
  if (!held) return 0;
  *frame = (struct frame){held->buf, held->len, (int32_t)held->width, (int32_t)held->height, FORMAT};
  return 1;
}

void board_give_back(void) {
  if (held) esp_camera_fb_return(held);
  held = NULL;
}

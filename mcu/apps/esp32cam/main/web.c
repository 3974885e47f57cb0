#include "web.h"

#include <stdio.h>
#include <string.h>

#include "esp_heap_caps.h"
#include "esp_http_server.h"
#include "freertos/FreeRTOS.h"
#include "freertos/semphr.h"
#include "img_converters.h"

#define QUALITY 60                 // of the JPEG, 1 to 100
#define WAIT pdMS_TO_TICKS(10000)  // for a picture

extern const char page[] asm("_binary_page_html_start");

// The last line is shared under `lock`. The JPEG and its line belong to the server, but from `wanted`, which it gives,
// to `ready`, which the task of the network gives: requests come one after the other, so there is one owner at a time.
static SemaphoreHandle_t lock, wanted, ready;
static char *last, *beside;
static uint8_t *jpeg;
static size_t line_most, jpeg_most, jpeg_bytes;

// The encoder's bytes, as far as there is room; what is beyond is counted.
static size_t collect(void *arg, size_t index, const void *data, size_t bytes) {
  (void)arg;
  if (data && index + bytes <= jpeg_most) memcpy(jpeg + index, data, bytes);
  jpeg_bytes = index + bytes;
  return bytes;
}

void web_show(camera_fb_t *picture, const char *line) {
  if (!lock) return;
  xSemaphoreTake(lock, portMAX_DELAY);
  strlcpy(last, line, line_most);
  xSemaphoreGive(lock);
  if (xSemaphoreTake(wanted, 0) != pdTRUE) return;
  strlcpy(beside, line, line_most);
  jpeg_bytes = 0;
  if (!frame2jpg_cb(picture, QUALITY, collect, NULL)) jpeg_bytes = 0;
  xSemaphoreGive(ready);
}

static esp_err_t unavailable(httpd_req_t *request, const char *said) {
  httpd_resp_set_status(request, "503 Service Unavailable");
  httpd_resp_set_type(request, "text/plain");
  return httpd_resp_sendstr(request, said);
}

// Waits until the task of the network has made a JPEG; 0 where it makes none.
static int next_jpeg(void) {
  xSemaphoreGive(wanted);
  if (xSemaphoreTake(ready, WAIT) == pdTRUE) return 1;
  if (xSemaphoreTake(wanted, 0) == pdTRUE) return 0;  // nobody had begun
  return xSemaphoreTake(ready, portMAX_DELAY) == pdTRUE;
}

static esp_err_t get_jpg(httpd_req_t *request) {
  if (!next_jpeg()) return unavailable(request, "the camera gives no picture");
  if (!jpeg_bytes) return unavailable(request, "no memory for the JPEG encoder");
  if (jpeg_bytes > jpeg_most) return unavailable(request, "the JPEG is larger than its memory");
  httpd_resp_set_type(request, "image/jpeg");
  httpd_resp_set_hdr(request, "Cache-Control", "no-store");
  httpd_resp_set_hdr(request, "X-Boxes", beside);
  return httpd_resp_send(request, (const char *)jpeg, (ssize_t)jpeg_bytes);
}

// Sent while locked: a line is short, and the network waits as long as that at most.
static esp_err_t get_boxes(httpd_req_t *request) {
  httpd_resp_set_type(request, "application/json");
  httpd_resp_set_hdr(request, "Cache-Control", "no-store");
  xSemaphoreTake(lock, portMAX_DELAY);
  const esp_err_t error = httpd_resp_sendstr(request, last);
  xSemaphoreGive(lock);
  return error;
}

static esp_err_t get_page(httpd_req_t *request) {
  httpd_resp_set_type(request, "text/html");
  return httpd_resp_sendstr(request, page);
}

static const char *make_room(size_t line_bytes, size_t pixels) {
  static char wrong[112];
  line_most = line_bytes;
  jpeg_most = pixels * 3 / 8 + 1024;  // 3 bits a pixel, and the tables
  last = heap_caps_calloc(2, line_bytes, MALLOC_CAP_8BIT);
  jpeg = heap_caps_malloc(jpeg_most, MALLOC_CAP_SPIRAM | MALLOC_CAP_8BIT);
  if (!jpeg) jpeg = heap_caps_malloc(jpeg_most, MALLOC_CAP_INTERNAL | MALLOC_CAP_8BIT);
  wanted = xSemaphoreCreateBinary();
  ready = xSemaphoreCreateBinary();
  if (last && jpeg && wanted && ready) {
    strlcpy(last, "{\"frame\":null,\"boxes\":[]}", line_bytes);
    beside = last + line_bytes;
    return NULL;
  }
  snprintf(wrong, sizeof wrong, "no memory for the page: %u bytes, the largest free piece has %u; do without Wi-Fi",
           (unsigned)(jpeg_most + 2 * line_bytes), (unsigned)heap_caps_get_largest_free_block(MALLOC_CAP_8BIT));
  return wrong;
}

const char *web_start(size_t line_bytes, size_t pixels) {
  static const httpd_uri_t pages[] = {
      {.uri = "/", .method = HTTP_GET, .handler = get_page},
      {.uri = "/jpg", .method = HTTP_GET, .handler = get_jpg},
      {.uri = "/boxes", .method = HTTP_GET, .handler = get_boxes},
  };
  httpd_handle_t server = NULL;
  httpd_config_t config = HTTPD_DEFAULT_CONFIG();
  config.core_id = 0;  // the network has the other one
  config.lru_purge_enable = true;
  const char *wrong = make_room(line_bytes, pixels);
  if (wrong) return wrong;
  SemaphoreHandle_t made = xSemaphoreCreateMutex();
  lock = made;  // before a page can ask for it
  if (!made || httpd_start(&server, &config) != ESP_OK) return "no memory for the web server";
  for (size_t i = 0; i < sizeof pages / sizeof pages[0]; i++) httpd_register_uri_handler(server, pages + i);
  return NULL;
}

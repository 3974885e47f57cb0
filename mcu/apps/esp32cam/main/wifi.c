#include "wifi.h"

#include <stdio.h>
#include <string.h>

#include "esp_event.h"
#include "esp_netif.h"
#include "esp_wifi.h"
#include "nvs_flash.h"
#include "sdkconfig.h"

static void on_wifi(void *arg, esp_event_base_t base, int32_t id, void *data) {
  (void)arg, (void)base, (void)data;
  if (id == WIFI_EVENT_STA_DISCONNECTED) printf("Wi-Fi %s does not answer\n", CONFIG_ATALAIA_WIFI_NAME);
  if (id == WIFI_EVENT_STA_START || id == WIFI_EVENT_STA_DISCONNECTED) esp_wifi_connect();
}

static void on_address(void *arg, esp_event_base_t base, int32_t id, void *data) {
  const ip_event_got_ip_t *got = data;
  (void)arg, (void)base, (void)id;
  printf("page: http://" IPSTR "/\n", IP2STR(&got->ip_info.ip));
}

// Where Wi-Fi keeps its calibration; a version that cannot be read is erased.
static esp_err_t start_storage(void) {
  esp_err_t error = nvs_flash_init();
  if (error == ESP_ERR_NVS_NO_FREE_PAGES || error == ESP_ERR_NVS_NEW_VERSION_FOUND) {
    error = nvs_flash_erase();
    if (error == ESP_OK) error = nvs_flash_init();
  }
  return error;
}

static esp_err_t start_station(void) {
  wifi_init_config_t init = WIFI_INIT_CONFIG_DEFAULT();
  wifi_config_t config = {0};
  memcpy(config.sta.ssid, CONFIG_ATALAIA_WIFI_NAME, strlen(CONFIG_ATALAIA_WIFI_NAME));
  memcpy(config.sta.password, CONFIG_ATALAIA_WIFI_PASSWORD, strlen(CONFIG_ATALAIA_WIFI_PASSWORD));
  esp_err_t error = esp_wifi_init(&init);
  if (error == ESP_OK) error = esp_event_handler_register(WIFI_EVENT, ESP_EVENT_ANY_ID, on_wifi, NULL);
  if (error == ESP_OK) error = esp_event_handler_register(IP_EVENT, IP_EVENT_STA_GOT_IP, on_address, NULL);
  if (error == ESP_OK) error = esp_wifi_set_mode(WIFI_MODE_STA);
  if (error == ESP_OK) error = esp_wifi_set_config(WIFI_IF_STA, &config);
  return error == ESP_OK ? esp_wifi_start() : error;
}

const char *wifi_start(void) {
  static char wrong[96];
  const wifi_config_t limits = {0};
  if (strlen(CONFIG_ATALAIA_WIFI_NAME) > sizeof limits.sta.ssid ||
      strlen(CONFIG_ATALAIA_WIFI_PASSWORD) > sizeof limits.sta.password)
    return "the Wi-Fi network's name has more than 32 bytes, or its password more than 64";
  esp_err_t error = start_storage();
  if (error == ESP_OK) error = esp_netif_init();
  if (error == ESP_OK) error = esp_event_loop_create_default();
  if (error == ESP_OK && !esp_netif_create_default_wifi_sta()) error = ESP_ERR_NO_MEM;
  if (error == ESP_OK) error = start_station();
  if (error == ESP_OK) return NULL;
  snprintf(wrong, sizeof wrong, "Wi-Fi does not start: %s", esp_err_to_name(error));
  return wrong;
}

// Runs golden inputs through the network, compares every output byte, and prints how long it takes.
#include <stdio.h>
#include <string.h>

#include "esp_timer.h"
#include "golden.h"
#include "@name@.h"
#include "sdkconfig.h"

#if CONFIG_@NAME@_ARENA_GIVEN
static uint32_t arena[@NAME@_ARENA_BYTES / 4];
#define ARENA arena, sizeof arena
#else
#define ARENA NULL, 0
#endif

void app_main(void) {
  const char *wrong = @name@_init(ARENA);
  int equal = 0;
  if (wrong) {
    printf("%s\n", wrong);
    return;
  }
  for (int i = 0; i < GOLDEN_SAMPLES; i++) {
    @fill@
    int64_t start = esp_timer_get_time();
    @name@_invoke();
    unsigned long microseconds = (unsigned long)(esp_timer_get_time() - start);
    @compare@
    @show@
    printf("sample %d: %lu us\n", i, microseconds);
  }
  printf("@name@: %d of %d outputs equal\n", equal, GOLDEN_SAMPLES);
}

// Runs golden inputs through the network, compares every output byte, and prints how long it takes.
#include <@name@.h>
#include <string.h>

#include "golden.h"
@arena_array@
static const char *wrong;

void setup() {
  Serial.begin(115200);
  wrong = @name@_init(@init@);
}

void loop() {
  int equal = 0;
  unsigned long microseconds = 0;
  delay(2000);
  if (wrong) {
    Serial.println(wrong);
    return;
  }
  for (int i = 0; i < GOLDEN_SAMPLES; i++) {
    @fill@
    unsigned long start = micros();
    @name@_invoke();
    microseconds = micros() - start;
    @compare@
    @print@
  }
  Serial.print("@name@: equal outputs: ");
  Serial.print(equal);
  Serial.print(" of ");
  Serial.print(GOLDEN_SAMPLES);
  Serial.print("; microseconds: ");
  Serial.println(microseconds);
}

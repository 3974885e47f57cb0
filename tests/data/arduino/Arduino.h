// What the sketch of a package needs of Arduino, on this computer: no board, and no Arduino core, is part of this.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

void setup();
void loop();

static unsigned long now;
static inline void delay(unsigned long milliseconds) { now += 1000 * milliseconds; }
static inline unsigned long micros() { return now++; }

static struct {
  void begin(unsigned long) {}
  void print(const char *text) { fputs(text, stdout); }
  void print(long number) { printf("%ld", number); }
  template <typename T> void println(T value) { print(value), print("\n"); }
} Serial;

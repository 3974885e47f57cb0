#include <Arduino.h>

@sketch_ino@

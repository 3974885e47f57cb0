// The camera driver, with the pins and the picture that menuconfig chose.
#pragma once

#include "esp_camera.h"
#include "frame.h"

// The size and format of its pictures; no pixels.
struct frame camera_shape(void);

// Starts the driver. NULL, or what is wrong.
const char *camera_start(void);

// The picture that board_take() gave.
camera_fb_t *camera_held(void);

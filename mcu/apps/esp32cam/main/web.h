// The board's page: `/` shows the picture with its boxes, `/jpg` is one picture with its boxes in the header X-Boxes,
// `/boxes` the last line. A JPEG is made only when somebody asks for one.
#pragma once

#include "esp_camera.h"

// Starts the server, for lines of so many bytes and pictures of so many pixels. NULL, or what is wrong.
const char *web_start(size_t line_bytes, size_t pixels);

// A picture and what was found in it; called by the task of the network, for each.
void web_show(camera_fb_t *picture, const char *line);

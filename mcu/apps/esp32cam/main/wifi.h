// The Wi-Fi network that menuconfig names; it is joined again when it was lost.
#pragma once

// NULL, or what is wrong. The address is printed when there is one.
const char *wifi_start(void);

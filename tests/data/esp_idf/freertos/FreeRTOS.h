// What main.c uses of FreeRTOS.
#pragma once
typedef unsigned int UBaseType_t;

#pragma once
UBaseType_t uxTaskGetStackHighWaterMark(void *task);

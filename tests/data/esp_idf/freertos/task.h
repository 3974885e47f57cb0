#pragma once
typedef struct task *TaskHandle_t;
UBaseType_t uxTaskGetStackHighWaterMark(void *task);
UBaseType_t uxTaskPriorityGet(TaskHandle_t task);
BaseType_t xTaskCreatePinnedToCore(void (*code)(void *), const char *name, uint32_t stack, void *given, UBaseType_t priority,
                                   TaskHandle_t *task, BaseType_t core);
uint32_t ulTaskNotifyTake(BaseType_t clear, TickType_t ticks);
BaseType_t xTaskNotifyGive(TaskHandle_t task);

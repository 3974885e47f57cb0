#include "tflm.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

extern "C" const unsigned char model_tflite[];

static tflite::MicroMutableOpResolver<24> operators;
static tflite::MicroInterpreter *interpreter;

const char *tflm_start(void *memory, size_t bytes, size_t *used) {
  const tflite::Model *model = tflite::GetModel(model_tflite);
  if (model->version() != TFLITE_SCHEMA_VERSION) return "model.tflite has another schema version";
  operators.AddAdd();
  operators.AddAveragePool2D();
  operators.AddConcatenation();
  operators.AddConv2D();
  operators.AddDepthwiseConv2D();
  operators.AddDequantize();
  operators.AddFullyConnected();
  operators.AddHardSwish();
  operators.AddLeakyRelu();
  operators.AddLogistic();
  operators.AddMaxPool2D();
  operators.AddMaximum();
  operators.AddMean();
  operators.AddMinimum();
  operators.AddMul();
  operators.AddPad();
  operators.AddQuantize();
  operators.AddRelu();
  operators.AddRelu6();
  operators.AddReshape();
  operators.AddSoftmax();
  operators.AddStridedSlice();
  operators.AddSub();
  operators.AddTanh();
  static tflite::MicroInterpreter built(model, operators, static_cast<uint8_t *>(memory), bytes);
  interpreter = &built;
  if (interpreter->AllocateTensors() != kTfLiteOk) return "the model does not fit the arena, or has an unknown operator";
  *used = interpreter->arena_used_bytes();
  return nullptr;
}

void tflm_invoke(const int8_t *const inputs[], int8_t *const outputs[], void *) {
  for (size_t i = 0; i < interpreter->inputs_size(); i++)
    std::memcpy(interpreter->input(i)->data.int8, inputs[i], interpreter->input(i)->bytes);
  if (interpreter->Invoke() != kTfLiteOk) {
    std::printf("TensorFlow Lite Micro: Invoke failed\n");
    std::abort();
  }
  for (size_t i = 0; i < interpreter->outputs_size(); i++)
    std::memcpy(outputs[i], interpreter->output(i)->data.int8, interpreter->output(i)->bytes);
}

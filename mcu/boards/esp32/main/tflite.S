    .section .rodata.model_tflite, "a"
    .balign 16
    .global model_tflite
model_tflite:
    .incbin MODEL_TFLITE

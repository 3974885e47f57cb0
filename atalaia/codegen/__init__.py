"""Any fully int8 .tflite to C that is small and fast on a microcontroller: `python -m atalaia.codegen --tflite=FILE`.

lowering.py has the table of operators; linear.py, elementwise.py, moves.py, reductions.py and borders.py check each
and lower it to the steps of graph.py; kernels.py chooses each step's kernel, of those that convolutions.py, plain.py
and, for an instruction of the ESP32's alone, mac16.py make; call.py has what a kernel stores and costs; memory.py plans
the arena; strips.py makes steps run row by row, and fitting.py chooses which, so that it is smaller; golden.py asks
TFLite Micro; emit.py writes model.c, model.h, golden.h and report.json. The kernels themselves are mcu/kernels/*.c.
"""

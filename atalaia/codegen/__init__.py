"""Any fully int8 .tflite to C that is small and fast on a microcontroller: `python -m atalaia.codegen --tflite=FILE`.

lowering.py checks the file and lowers it to the steps of graph.py, linear.py its convolutions; kernels.py chooses each
step's kernel and packs its weights; memory.py plans the arena; emit.py writes model.c, model.h, golden.h and
report.json. The kernels themselves are mcu/kernels/*.c.
"""

"""A step with its kernel: what it stores, and what an inference costs.

A kernel's instructions are its work (how often each part of it runs) times costs.json, which experiments/mcu_costs.py
fits to what the emulators count.
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from atalaia.codegen import plain
from atalaia.codegen.graph import Step, content

BOARDS, ESP32 = ("rv32", "lx106"), ("esp32isa",)
TARGETS = dict(any=BOARDS, esp32=ESP32)  # the boards whose instructions choose a kernel
COSTS = Path(__file__).with_name("costs.json")  # board to kernel to part to instructions
# Of the struct with a step's parameters, where it has one, on a board of 32 bits; "pair" is every step of two inputs
# but for the kernels with a struct of their own.
STRUCT_BYTES = dict(
    conv=64, depthwise=64, max_pool=20, mean_pool=20, min_pool=20, pad=20, mean=24, pair=48, add_tabled=32
)


class Call(NamedTuple):
    """A step with its kernel.

      kernel: the C function; files: those of mcu/kernels that it needs; arrays: name to (C type, values).
      work: how often each part of the kernel runs in an inference; instructions: by board.
      template: the C function that `kernel` is a case of, and its constants; sweeps: how often the weights are read.
    fields: of the C struct, beside the step's own.
    """

    step: Step
    kernel: str
    files: tuple[str, ...]
    arrays: dict[str, tuple[str, np.ndarray]]
    work: dict[str, float]
    cost: str
    template: tuple[str, ...] = ()
    sweeps: int = 1
    fields: tuple[tuple[str, int], ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all constants: arrays, and the struct of parameters."""
        return sum(values.nbytes for _, values in self.arrays.values()) + self.struct_bytes

    @property
    def struct_bytes(self) -> int:
        """Bytes of the struct of parameters alone."""
        kind = "pair" if "b_inner" in self.step.values else self.step.kind
        struct = STRUCT_BYTES.get(self.kernel, STRUCT_BYTES.get(kind, 0))
        return struct + (plain.KERNELS[kind].struct if kind in plain.KERNELS else 0)

    @property
    def constants(self) -> tuple:
        """What is stored of it, to be compared."""
        return self.kernel, self.fields, content(self.arrays), self.step.constants

    @property
    def instructions(self) -> dict[str, float]:
        """Of an inference, by board."""
        batch = self.step.values.get("batch", 1)
        found = costs()
        return {b: batch * sum(n * found[b][self.cost][part] for part, n in self.work.items()) for b in found}


@functools.cache
def costs() -> dict[str, dict[str, dict[str, float]]]:
    """Instructions by board, kernel and part of its work."""
    return json.loads(COSTS.read_text())

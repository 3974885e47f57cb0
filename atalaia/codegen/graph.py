"""Steps with all integer parameters worked out, and what the lowering of an operator to them needs of its graph.

Inside the generated program an activation is its int8 value + 128, so that no load needs a sign: zero points and bounds
here are of that form, 0 to 255.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from atalaia import tflite
from atalaia.errors import UserError

LARGEST = 1 << 14  # a height, width or number of channels is below this
LEFT = 30  # bits by which TFLite shifts to the left at most
OFFSET = 128  # of an activation inside the program against int8
BYTES = {"INT8": 1, "UINT8": 1, "INT16": 2, "INT32": 4, "FLOAT32": 4, "BOOL": 1, "INT64": 8}
GIVEN = ("flip_in", "take", "float_in")  # steps that read what the caller gives
TAKEN = ("flip_out", "give", "float_out")  # steps that write what the caller gets


class Step(NamedTuple):
    """One call of a kernel.

    kind: conv, depthwise, max_pool, mean_pool, min_pool, add, sub, mul, maximum, minimum, prelu, squared_difference,
    lookup, softmax, copy, pad, mean, those of plain.py, and at the borders those of GIVEN and TAKEN.
    op: what it stands for in the file; place: the operator's number there.
    inputs, output: tensors by number; constants are in `values`.
    values: parameters of the kernel; macs: multiply-accumulates of the dense form.
    """

    kind: str
    op: str
    place: int
    inputs: tuple[int, ...]
    output: int
    values: dict[str, Any]
    macs: int = 0

    @property
    def constants(self) -> tuple:
        """What it is beside its tensors, to be compared."""
        return self.kind, self.op, len(self.inputs), content(self.values)


def content(value: Any) -> Any:
    """Dicts, lists and arrays as tuples and bytes, which can be compared and hashed."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return tuple((key, content(part)) for key, part in value.items())
    return tuple(map(content, value)) if isinstance(value, list | tuple) else value


def firsts(parts: Sequence) -> list[int]:
    """For each step or call the number of the first with equal `constants`: they are stored once."""
    seen: dict[tuple, int] = {}
    return [seen.setdefault(part.constants, number) for number, part in enumerate(parts)]


class Graph(NamedTuple):
    """steps: in the order in which they run; sizes: bytes of each tensor by number; inputs and outputs: their numbers.

    shapes: of the tensors; notes: what was left out and said; dtypes: of inputs and outputs that are not INT8.
    """

    steps: list[Step]
    sizes: dict[int, int]
    shapes: dict[int, tuple[int, ...]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    notes: list[str]
    dtypes: dict[int, str] = {}  # noqa: RUF012 - never written to


class Walk:
    """A walk over a model's operators: what each of them may ask of the graph, and what has become of it so far.

    Its methods raise UserError, with the operator and its place, where something is not supported.

    steps, notes: as in Graph; alias: from a tensor to the one whose bytes it shares; done: places of the operators that
    another one has taken in; floats: from a FLOAT32 tensor to the quantised one that it is read from.
    """

    def __init__(self, model: tflite.Model):
        self.model, self.tensors = model, list(model.tensors)
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self.alias: dict[int, int] = {}
        self.done: set[int] = set()
        self.floats: dict[int, int] = {}

    def dtype(self, i: int) -> str:
        """A tensor's type, such as INT8."""
        return self.tensors[i].dtype

    def bytes(self, i: int) -> int:
        """Bytes of a tensor."""
        return math.prod(self.tensors[i].shape) * BYTES.get(self.dtype(i), 4)

    def add(self, tensor: tflite.Tensor) -> int:
        """The number of a tensor that the file does not have."""
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def root(self, i: int) -> int:
        """The tensor in whose bytes tensor i lies."""
        while i in self.alias:
            i = self.alias[i]
        return i

    def drop(self, place: int, why: str) -> None:
        """Leaves an operator out, and notes why."""
        self.done.add(place)
        self.notes.append(f"operator {place}, {self.model.operators[place].kind}, is left out: {why}")

    def step(self, *fields: Any, **more: Any) -> None:
        """Adds a Step of these fields.

        Raises:
          UserError: a scale of it asks for a shift to the left that TFLite's fixed point, and our C, do not define; or
            its kernel writes another number of values than its output has.
        """
        step = Step(*fields, **more)
        v = step.values
        numbers = v | v.get("fields", {}) | {name: array for name, (_, array) in v.get("arrays", {}).items()}
        if max((np.max(n, initial=0) for name, n in numbers.items() if name.endswith("shift")), default=0) > LEFT:
            raise UserError(
                f"{step.op} (operator {step.place}): its output's scale is more than 2^{LEFT} times too small"
            )
        channels = numbers.get("out_c", numbers.get("channels"))
        if "out_h" in numbers and channels is not None:
            written = numbers.get("batch", 1) * numbers["out_h"] * numbers["out_w"] * channels
            shape = self.tensors[step.output].shape
            if written != math.prod(shape):
                raise UserError(f"{step.op} (operator {step.place}) gives {written:,} values, its output has {shape}")
        self.steps.append(step)

    def grid(self, i: int) -> tuple[np.float64, int]:
        """(scale as float64, zero point as it is inside)."""
        tensor = self.tensors[i]
        if len(tensor.scale) != 1:
            raise UserError(f"tensor {tensor.name!r} has no scale of its own")
        return np.float64(tensor.scale[0]), int(tensor.zero_point[0]) + (0 if tensor.dtype == "UINT8" else OFFSET)

    def require_int8(self, i: int, place: int, kind: str, dtype: str = "INT8") -> None:
        """Refuses a tensor that is not int8, or `dtype`, with one scale and zero point."""
        tensor = self.tensors[i]
        if tensor.dtype != dtype:
            raise UserError(
                f"{kind} (operator {place}) has a {tensor.dtype} tensor: only fully int8 models are supported"
            )
        if len(tensor.scale) != 1 or not 0 < tensor.scale[0] < math.inf:
            raise UserError(f"{kind} (operator {place}): tensor {tensor.name!r} has no scale of its own")
        if not (0 <= tensor.zero_point[0] <= 255 if dtype == "UINT8" else -128 <= tensor.zero_point[0] <= 127):
            raise UserError(f"{kind} (operator {place}): tensor {tensor.name!r} has zero point {tensor.zero_point[0]}")

    def bounds(self, i: int, activation: int) -> tuple[int, int]:
        """Smallest and largest stored value that a fused activation lets through."""
        scale, zero = self.grid(i)
        names = tflite.names(schema.ActivationFunctionType)
        kind = names.get(activation, str(activation))
        if kind not in ACTIVATIONS:
            raise UserError(f"fused activation {kind} is not supported: there are {', '.join(ACTIVATIONS)}")
        low, high = ACTIVATIONS[kind]
        low = 0 if low is None else max(0, zero + int(halves_away(low / scale)))
        high = 255 if high is None else min(255, zero + int(halves_away(high / scale)))
        return low, high

    def consumers(self, i: int) -> list[int]:
        """Places of the operators that read a tensor; the graph's output counts as one."""
        found = [p for p, op in enumerate(self.model.operators) if p not in self.done and i in op.inputs]
        return found + [-1] * self.model.outputs.count(i)

    def image(self, i: int, place: int, op: tflite.Operator) -> tuple[int, ...]:
        """Shape `[batch, height, width, channels]` of a tensor; refuses others."""
        shape = self.tensors[i].shape
        if len(shape) != 4 or max(shape) >= LARGEST:
            raise UserError(
                f"{op.kind} (operator {place}) has input {shape}: only [batch, height, width, channels] below "
                f"{LARGEST:,} is supported"
            )
        out = self.tensors[op.outputs[0]].shape
        if len(out) != 4 or out[0] != shape[0]:
            raise UserError(f"{op.kind} (operator {place}) gives {out} for an input of {shape}")
        return shape

    def batch(self, i: int) -> dict[str, int]:
        """`batch` of a step that runs once for each image of a tensor; nothing where it is one."""
        count = self.tensors[i].shape[0]
        return {} if count == 1 else dict(batch=count)

    def window(
        self,
        place: int,
        op: tflite.Operator,
        size: tuple[int, int],
        kernel: tuple[int, int],
        out_shape: tuple[int, ...],
    ) -> dict[str, int]:
        """Strides, padding at the top and left, and sizes; the output's size must be what they give."""
        options = op.options
        strides = (options.strideH, options.strideW)
        same = options.padding == schema.Padding.SAME
        if min(strides) < 1 or max(strides) > 255 or min(kernel) < 1 or max(*kernel, *size, *out_shape) >= LARGEST:
            raise UserError(f"{op.kind} (operator {place}) has strides {strides} and kernel {tuple(kernel)}")
        out = [-(-n // s) if same else (n - k) // s + 1 for n, k, s in zip(size, kernel, strides, strict=True)]
        if tuple(out) != tuple(out_shape[1:3]) or min(out) < 1:
            raise UserError(f"{op.kind} (operator {place}) gives {tuple(out_shape[1:3])}, its options say {tuple(out)}")
        pads = [max((o - 1) * s + k - n, 0) // 2 * same for o, s, k, n in zip(out, strides, kernel, size, strict=True)]
        names = (
            "in_h",
            "in_w",
            "out_h",
            "out_w",
            "kernel_h",
            "kernel_w",
            "stride_h",
            "stride_w",
            "pad_top",
            "pad_left",
        )
        if max(pads) > 255:
            raise UserError(f"{op.kind} (operator {place}) needs a padding of {max(pads)}: at most 255 is supported")
        return dict(zip(names, (*size, *out, *kernel, *strides, *pads), strict=True))


ACTIVATIONS = {"NONE": (None, None), "RELU": (0, None), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)}


def halves_away(x: float) -> int:
    """Halves away from zero, as C's round."""
    return math.floor(abs(x) + 0.5) * (1 if x >= 0 else -1)

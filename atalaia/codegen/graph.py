"""A .tflite graph as a list of steps with all integer parameters worked out, or one error that names what is wrong.

Inside the generated program an activation is its int8 value + 128, so that no load needs a sign: zero points and bounds
here are of that form, 0 to 255.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from atalaia import tflite
from atalaia.codegen import fixed_point, single
from atalaia.codegen.fixed_point import quantize_multiplier
from atalaia.errors import UserError

LARGEST = 1 << 14  # a height, width or number of channels is below this
OFFSET = 128  # of an activation inside the program against int8


class Step(NamedTuple):
    """One call of a kernel.

    kind: conv, depthwise, max_pool, mean_pool, add, sub, mul, maximum, minimum, lookup, softmax, copy, pad, flip_in or
    flip_out.
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


class Graph(NamedTuple):
    """steps: in the order in which they run; sizes: bytes of each tensor by number; inputs and outputs: their numbers.

    shapes: of the tensors; notes: what was left out and said.
    """

    steps: list[Step]
    sizes: dict[int, int]
    shapes: dict[int, tuple[int, ...]]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    notes: list[str]


def lower(model: tflite.Model) -> Graph:
    """Steps of a model.

    Raises:
      UserError: an operator, a type or a shape is not supported; its place is named, with what is.
    """
    return _Lowering(model).run()


class _Lowering:
    """Walks the operators once; `alias` maps a tensor to the one whose bytes it shares."""

    def __init__(self, model):
        self.model, self.tensors = model, model.tensors
        self.steps, self.notes, self.alias = [], [], {}
        self.done = set()  # operators that another one has taken in

    def run(self):
        model = self.model
        _refuse_dynamic(model)
        inputs, outputs = list(model.inputs), list(model.outputs)
        for place, op in enumerate(model.operators):  # borders between float and int8 are the caller's affair
            if op.kind == "QUANTIZE" and op.inputs[0] in inputs and self.dtype(op.inputs[0]) == "FLOAT32":
                inputs[inputs.index(op.inputs[0])] = op.outputs[0]
                self._drop(place, "the caller gives int8 values")
            if op.kind == "DEQUANTIZE" and op.outputs[0] in outputs:
                outputs[outputs.index(op.outputs[0])] = op.inputs[0]
                self._drop(place, "the caller gets int8 values")
        for i in inputs:
            self._activation(i, 0, "the graph's input")
            self._step("flip_in", "input", -1, (i,), i, dict(size=math.prod(self.tensors[i].shape)))
        for place, op in enumerate(model.operators):
            if place in self.done:
                continue
            if op.kind not in _OPS:
                raise UserError(f"operator {place} is {op.kind}, which is not supported: there are {', '.join(_OPS)}")
            try:
                for i in op.outputs:
                    self._activation(i, place, op.kind)
                _OPS[op.kind](self, place, op)
            except UserError:
                raise
            # Tensors and options of a damaged file can miss anything.
            except Exception as error:
                reason = type(error).__name__
                raise UserError(f"{op.kind} (operator {place}): its contents do not fit together ({reason})") from None
        for i in outputs:
            self._step("flip_out", "output", -1, (self.root(i),), i, dict(size=math.prod(self.tensors[i].shape)))
        numbers = {i for s in self.steps for i in (*s.inputs, s.output)}
        shapes = {i: self.tensors[i].shape for i in numbers}
        sizes = {i: math.prod(shape) for i, shape in shapes.items()}
        return Graph(self.steps, sizes, shapes, tuple(inputs), tuple(outputs), self.notes)

    def _drop(self, place, why):
        self.done.add(place)
        self.notes.append(f"operator {place}, {self.model.operators[place].kind}, is left out: {why}")

    def dtype(self, i):
        return self.tensors[i].dtype

    def root(self, i):
        while i in self.alias:
            i = self.alias[i]
        return i

    def _activation(self, i, place, kind):
        tensor = self.tensors[i]
        if tensor.dtype != "INT8":
            raise UserError(
                f"{kind} (operator {place}) has a {tensor.dtype} tensor: only fully int8 models are supported"
            )
        if len(tensor.scale) != 1 or not 0 < tensor.scale[0] < math.inf:
            raise UserError(f"{kind} (operator {place}): tensor {tensor.name!r} has no scale of its own")
        if not -128 <= tensor.zero_point[0] <= 127:
            raise UserError(f"{kind} (operator {place}): tensor {tensor.name!r} has zero point {tensor.zero_point[0]}")

    def grid(self, i):
        """(scale as float64, zero point + 128)."""
        tensor = self.tensors[i]
        if len(tensor.scale) != 1:
            raise UserError(f"tensor {tensor.name!r} has no scale of its own")
        return np.float64(tensor.scale[0]), int(tensor.zero_point[0]) + OFFSET

    def _step(self, *fields, **more):
        self.steps.append(Step(*fields, **more))

    def bounds(self, i, activation):
        """Smallest and largest stored value that a fused activation lets through."""
        scale, zero = self.grid(i)
        names = tflite.names(schema.ActivationFunctionType)
        kind = names.get(activation, str(activation))
        if kind not in _BOUNDS:
            raise UserError(f"fused activation {kind} is not supported: there are {', '.join(_BOUNDS)}")
        low, high = _BOUNDS[kind]
        low = 0 if low is None else max(0, zero + int(_round(low / scale)))
        high = 255 if high is None else min(255, zero + int(_round(high / scale)))
        return low, high

    def consumers(self, i):
        """Places of the operators that read a tensor; the graph's output counts as one."""
        found = [p for p, op in enumerate(self.model.operators) if p not in self.done and i in op.inputs]
        return found + [-1] * self.model.outputs.count(i)

    # Convolutions and matrix products.

    def conv(self, place, op):
        given, out = op.inputs[0], op.outputs[0]
        kernel = self._weights(place, op)  # OHWI
        _, height, width, channels = self._image(given, place, op)
        groups = channels // kernel.shape[3] if kernel.shape[3] else 0
        if not groups or kernel.shape[3] * groups != channels or kernel.shape[0] % groups:
            raise UserError(f"CONV_2D (operator {place}): its weights do not fit {channels} input channels")
        if groups > 1:  # zeros for the other groups' channels: sparse kernels leave them out
            wide = np.zeros((*kernel.shape[:3], channels), np.int8)
            per = kernel.shape[0] // groups
            for g in range(groups):
                wide[g * per : (g + 1) * per, :, :, g * kernel.shape[3] : (g + 1) * kernel.shape[3]] = kernel[
                    g * per : (g + 1) * per
                ]
            kernel = wide
        options = op.options
        kernel = _dilate(kernel, options.dilationHFactor, options.dilationWFactor)
        values = self._window(place, op, (height, width), kernel.shape[1:3], self.tensors[out].shape)
        self._linear("conv", place, op, kernel, values | dict(in_c=channels), per_channel=True)

    def depthwise(self, place, op):
        given, out = op.inputs[0], op.outputs[0]
        kernel = self._weights(place, op)  # 1HWO
        _, height, width, channels = self._image(given, place, op)
        if kernel.shape[0] != 1 or kernel.shape[3] % channels:
            raise UserError(f"DEPTHWISE_CONV_2D (operator {place}): its weights do not fit {channels} input channels")
        options = op.options
        kernel = _dilate(kernel, options.dilationHFactor, options.dilationWFactor)
        values = self._window(place, op, (height, width), kernel.shape[1:3], self.tensors[out].shape)
        # Of one input channel it is a convolution.
        kernel = np.moveaxis(kernel, 3, 0)  # O1HW
        kind = "conv" if channels == 1 else "depthwise"
        kernel = np.moveaxis(kernel, 1, 3) if kind == "conv" else kernel
        self._linear(kind, place, op, kernel, values | dict(in_c=channels), per_channel=True)

    def fully_connected(self, place, op):
        kernel = self._weights(place, op)
        if (
            kernel.ndim != 2
            or max(kernel.shape) >= 4 * LARGEST
            or math.prod(self.tensors[op.inputs[0]].shape) % kernel.shape[1]
        ):
            raise UserError(f"FULLY_CONNECTED (operator {place}): its weights do not fit its input")
        rows = math.prod(self.tensors[op.inputs[0]].shape) // kernel.shape[1]
        values = dict(in_h=1, in_w=rows, out_h=1, out_w=rows, in_c=kernel.shape[1])
        values |= dict(kernel_h=1, kernel_w=1, stride_h=1, stride_w=1, pad_top=0, pad_left=0)
        per_channel = len(self.tensors[op.inputs[1]].scale) > 1
        self._linear("conv", place, op, kernel[:, None, None, :], values, per_channel)

    def _weights(self, place, op):
        tensor = self.tensors[op.inputs[1]] if len(op.inputs) > 1 and op.inputs[1] >= 0 else None
        if tensor is None or tensor.data is None or tensor.dtype != "INT8":
            kind = "no constant" if tensor is None or tensor.data is None else tensor.dtype
            raise UserError(f"{op.kind} (operator {place}) has {kind} weights: only constant INT8 ones are supported")
        if np.any(tensor.zero_point):
            raise UserError(f"{op.kind} (operator {place}): weights with a zero point are not supported")
        return tensor.data

    def _linear(self, kind, place, op, kernel, values, per_channel):
        """Adds a step: bias with the input's zero point folded in, multipliers, and bounds of operators behind it."""
        given, weights, out = op.inputs[0], self.tensors[op.inputs[1]], op.outputs[0]
        out_c = kernel.shape[0]
        (in_scale, in_zero), (out_scale, out_zero) = self.grid(given), self.grid(out)
        bias = np.zeros(out_c, np.int64)
        if len(op.inputs) > 2 and op.inputs[2] >= 0:
            tensor = self.tensors[op.inputs[2]]
            if tensor.data is None or tensor.dtype != "INT32" or tensor.data.size != out_c:
                raise UserError(f"{op.kind} (operator {place}): its bias is not {out_c} constant INT32 values")
            bias = tensor.data.ravel().astype(np.int64)
        if len(weights.scale) not in (1, out_c):
            raise UserError(f"{op.kind} (operator {place}) has {len(weights.scale)} scales of {out_c} outputs")
        if per_channel:
            ratio = in_scale * np.broadcast_to(weights.scale, out_c).astype(np.float64) / out_scale
        else:  # TFLite multiplies these in float32
            ratio = np.full(out_c, np.float64(np.float32(in_scale) * weights.scale[0]) / out_scale)
        multiplier, shift = quantize_multiplier(ratio)
        sums = kernel.astype(np.int64).reshape(out_c, -1).sum(1)
        folded = bias - in_zero * sums
        if np.abs(folded).max(initial=0) >= 2**31:
            raise UserError(f"{op.kind} (operator {place}): a bias is out of int32")
        low, high = self.bounds(out, op.options.fusedActivationFunction)
        lows, highs, out = self._bounds_behind(out, out_c)
        values = values | dict(out_c=out_c, in_zero=in_zero, out_zero=out_zero, out_low=low, out_high=high)
        values |= dict(kernel=kernel, bias=folded.astype(np.int32), multiplier=multiplier, shift=shift)
        values |= dict(low=lows, high=highs)
        macs = values["out_h"] * values["out_w"] * kernel.size
        if kind == "depthwise":
            macs = values["out_h"] * values["out_w"] * out_c * kernel.shape[2] * kernel.shape[3]
        self._step(kind, op.kind, place, (self.root(given),), out, values, macs=macs)

    def _bounds_behind(self, out, channels):
        """MAXIMUM and then MINIMUM with constants by channel become bounds of the step; gives also the last tensor."""
        found = {}
        for kind in ("MAXIMUM", "MINIMUM"):
            behind = self.consumers(out)
            if len(behind) != 1 or behind[0] < 0 or self.model.operators[behind[0]].kind != kind:
                continue
            op = self.model.operators[behind[0]]
            constant = next((self.tensors[i] for i in op.inputs if self.tensors[i].data is not None), None)
            if (
                constant is None
                or constant.data.size not in (1, channels)
                or constant.shape[-1:] != (constant.data.size,)
            ):
                continue
            same = [self.grid(i) for i in (*op.inputs, *op.outputs)]
            if any(g != same[0] for g in same) or any(self.dtype(i) != "INT8" for i in (*op.inputs, *op.outputs)):
                continue
            found[kind] = np.broadcast_to(constant.data.ravel().astype(np.int64) + OFFSET, channels).astype(np.uint8)
            self.done.add(behind[0])
            out = op.outputs[0]
        if not found:
            return None, None, out
        low = found.get("MAXIMUM", np.zeros(channels, np.uint8))
        return low, found.get("MINIMUM", np.full(channels, 255, np.uint8)), out

    def _image(self, i, place, op):
        shape = self.tensors[i].shape
        if len(shape) != 4 or shape[0] != 1 or max(shape) >= LARGEST:
            raise UserError(
                f"{op.kind} (operator {place}) has input {shape}: only [1, height, width, channels] below {LARGEST:,} "
                "is supported"
            )
        return shape

    def _window(self, place, op, size, kernel, out_shape):
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

    # Pooling, pairs, and functions of one value.

    def pool(self, place, op):
        given, out = op.inputs[0], op.outputs[0]
        _, height, width, channels = self._image(given, place, op)
        options = op.options
        kernel = (options.filterHeight, options.filterWidth)
        values = self._window(place, op, (height, width), kernel, self.tensors[out].shape)
        if self.grid(given) != self.grid(out):
            raise UserError(f"{op.kind} (operator {place}) changes the scale, which TFLite does not allow")
        low, high = self.bounds(out, options.fusedActivationFunction)
        values |= dict(channels=channels, out_low=low, out_high=high)
        kind = "max_pool" if op.kind == "MAX_POOL_2D" else "mean_pool"
        self._step(kind, op.kind, place, (self.root(given),), out, values)

    def pair(self, place, op):
        a, b = op.inputs
        out = op.outputs[0]
        if self.tensors[a].data is not None or math.prod(self.tensors[a].shape) < math.prod(self.tensors[b].shape):
            a, b = b, a
        swapped = a != op.inputs[0]
        if self.tensors[a].data is not None:
            raise UserError(f"{op.kind} (operator {place}) has two constants")
        for i in (a, b):
            self._activation(i, place, op.kind)
        kind = op.kind.lower()
        if swapped and kind == "sub":
            raise UserError(f"SUB (operator {place}) whose first input is the smaller one is not supported")
        inner, size = _repeats(self.tensors[a].shape, self.tensors[b].shape, self.tensors[out].shape, place, op)
        values = dict(values=math.prod(self.tensors[out].shape), b_inner=inner, b_size=size)
        (s_a, z_a), (s_b, z_b), (s_out, z_out) = self.grid(a), self.grid(b), self.grid(out)
        low, high = (
            (0, 255)
            if op.options is None or not hasattr(op.options, "fusedActivationFunction")
            else self.bounds(out, op.options.fusedActivationFunction)
        )
        values |= dict(a_zero=z_a, b_zero=z_b, out_zero=z_out, out_low=low, out_high=high)
        if kind in ("maximum", "minimum"):
            if not (s_a, z_a) == (s_b, z_b) == (s_out, z_out):
                raise UserError(f"{op.kind} (operator {place}) with different scales is not supported")
        elif kind == "mul":
            (values["out_multiplier"],), (values["out_shift"],) = quantize_multiplier([s_a * s_b / s_out])
        else:
            twice = 2 * max(s_a, s_b)
            ratios = [s_a / twice, s_b / twice, twice / (2**20 * s_out)]
            for name, m, s in zip(("a", "b", "out"), *quantize_multiplier(ratios), strict=True):
                values |= {f"{name}_multiplier": int(m), f"{name}_shift": int(s)}
            if (inner, size) == (1, values["values"]):
                values["tables"] = fixed_point.sum_tables(values, kind == "sub")
        constant = self.tensors[b].data
        if constant is not None:
            values["constant"] = (constant.ravel().astype(np.int64) + OFFSET).astype(np.uint8)
        inputs = (self.root(a),) if constant is not None else (self.root(a), self.root(b))
        self._step(kind, op.kind, place, inputs, out, values)

    def reshape(self, place, op):
        if math.prod(self.tensors[op.inputs[0]].shape) != math.prod(self.tensors[op.outputs[0]].shape):
            raise UserError(f"RESHAPE (operator {place}) changes the number of values")
        if self.grid(op.inputs[0]) != self.grid(op.outputs[0]):
            raise UserError(f"RESHAPE (operator {place}) changes the scale")
        self.alias[op.outputs[0]] = op.inputs[0]

    def unary(self, place, op):
        """A function of one value: the table of its 256 results, as TFLite Micro gives them."""
        given, out = op.inputs[0], op.outputs[0]
        if len(op.inputs) != 1 or self.tensors[given].data is not None:
            raise UserError(f"{op.kind} (operator {place}) has {len(op.inputs)} inputs, or a constant one")
        self._activation(given, place, op.kind)
        answers = single.run(op, [self.tensors[given]], self.tensors[out], [np.arange(-128, 128).astype(np.int8)])
        table = (answers.astype(np.int16) + OFFSET).astype(np.uint8)
        values = dict(table=table, size=math.prod(self.tensors[out].shape))
        self._step("lookup", op.kind, place, (self.root(given),), out, values)

    # Softmax, and operators that only move values.

    def softmax(self, place, op):
        given, out = op.inputs[0], op.outputs[0]
        scale, zero = self.grid(out)
        if scale != 1 / 256 or zero != 0:
            raise UserError(f"SOFTMAX (operator {place}): its output must have scale 1/256 and zero point -128")
        size = self.tensors[given].shape[-1]
        table = fixed_point.softmax_table(float(op.options.beta), float(self.grid(given)[0]))
        rows = math.prod(self.tensors[given].shape) // size
        self._step("softmax", op.kind, place, (self.root(given),), out, dict(rows=rows, size=size, table=table))

    def mean(self, place, op):
        """Over height and width; TFLite's MEAN divides by way of the multiplier."""
        given, out = op.inputs[0], op.outputs[0]
        _, height, width, channels = self._image(given, place, op)
        axes = self.tensors[op.inputs[1]].data
        if axes is None or sorted(int(a) % 4 for a in axes.ravel()) != [1, 2]:
            raise UserError(f"MEAN (operator {place}) of other axes than height and width is not supported")
        (s_in, z_in), (s_out, z_out) = self.grid(given), self.grid(out)
        multiplier, shift = fixed_point.mean_multiplier(s_in / s_out, height * width)
        values = dict(pixels=height * width, channels=channels, in_zero=z_in, out_zero=z_out)
        values |= dict(multiplier=multiplier, shift=shift)
        self._step("mean", op.kind, place, (self.root(given),), out, values)

    def concatenation(self, place, op):
        out = op.outputs[0]
        shape = self.tensors[out].shape
        axis = op.options.axis % len(shape)
        if op.options.fusedActivationFunction:
            raise UserError(f"CONCATENATION (operator {place}) with a fused activation is not supported")
        start, row = 0, math.prod(shape[axis:])
        for i in op.inputs:
            if self.tensors[i].data is not None or self.grid(i) != self.grid(out):
                raise UserError(f"CONCATENATION (operator {place}) of a constant or of other scales is not supported")
            block = math.prod(self.tensors[i].shape[axis:])
            values = dict(rows=math.prod(shape[:axis]), block=block, from_stride=block, to_stride=row, to_start=start)
            self._step("copy", op.kind, place, (self.root(i),), out, values)
            start += block
        if start != row:
            raise UserError(f"CONCATENATION (operator {place}): its inputs do not add up to its output")

    def pad(self, place, op):
        given, out = op.inputs[0], op.outputs[0]
        pads = self.tensors[op.inputs[1]].data
        if pads is None or self.grid(given) != self.grid(out) or len(op.inputs) != 2:
            raise UserError(
                f"{op.kind} (operator {place}) with padding that is not constant, or a value, is not supported"
            )
        before, shape, wide = pads.reshape(-1, 2)[:, 0], self.tensors[given].shape, self.tensors[out].shape
        if len(shape) != 4 or shape[0] != 1 or len(before) != 4 or pads.reshape(-1, 2)[0].any() or (pads < 0).any():
            raise UserError(
                f"{op.kind} (operator {place}) pads {shape}: only [1, height, width, channels] is supported"
            )
        if tuple(np.add(shape, pads.reshape(-1, 2).sum(1))) != wide:
            raise UserError(f"{op.kind} (operator {place}): its padding does not give its output's shape")
        values = dict(in_h=shape[1], in_w=shape[2], in_c=shape[3], out_h=wide[1], out_w=wide[2], out_c=wide[3])
        values |= dict(top=int(before[1]), left=int(before[2]), first=int(before[3]), zero=self.grid(out)[1])
        self._step("pad", op.kind, place, (self.root(given),), out, values)


_OPS = {
    "CONV_2D": _Lowering.conv,
    "DEPTHWISE_CONV_2D": _Lowering.depthwise,
    "FULLY_CONNECTED": _Lowering.fully_connected,
    "ADD": _Lowering.pair,
    "SUB": _Lowering.pair,
    "MUL": _Lowering.pair,
    "MAXIMUM": _Lowering.pair,
    "MINIMUM": _Lowering.pair,
    "MAX_POOL_2D": _Lowering.pool,
    "AVERAGE_POOL_2D": _Lowering.pool,
    "RESHAPE": _Lowering.reshape,
    "RELU": _Lowering.unary,
    "RELU6": _Lowering.unary,
    "QUANTIZE": _Lowering.unary,
    "LOGISTIC": _Lowering.unary,
    "TANH": _Lowering.unary,
    "LEAKY_RELU": _Lowering.unary,
    "HARD_SWISH": _Lowering.unary,
    "SOFTMAX": _Lowering.softmax,
    "CONCATENATION": _Lowering.concatenation,
    "PAD": _Lowering.pad,
    "MEAN": _Lowering.mean,
}
_BOUNDS = {"NONE": (None, None), "RELU": (0, None), "RELU6": (0, 6), "RELU_N1_TO_1": (-1, 1)}


def _refuse_dynamic(model):
    for tensor in model.tensors:
        if any(n < 1 for n in tensor.shape):
            raise UserError(f"tensor {tensor.name!r} has shape {tensor.shape}: dynamic shapes are not supported")


def _dilate(kernel, height, width):
    """A kernel `[., h, w, .]` with zeros between its rows and columns."""
    if height == width == 1:
        return kernel
    _, h, w, _ = kernel.shape
    if not (height >= 1 and width >= 1 and (h - 1) * height < LARGEST and (w - 1) * width < LARGEST):
        raise UserError(f"dilation {height} x {width} of a {h} x {w} kernel is not supported")
    wide = np.zeros((kernel.shape[0], (h - 1) * height + 1, (w - 1) * width + 1, kernel.shape[3]), np.int8)
    wide[:, ::height, ::width] = kernel
    return wide


def _repeats(a, b, out, place, op):
    """(inner, size): value i of the larger input goes with value i // inner % size of the other."""
    if tuple(a) != tuple(out):
        raise UserError(f"{op.kind} (operator {place}): shapes {a} and {b} that both repeat are not supported")
    b = (1,) * (len(a) - len(b)) + tuple(b)
    given = [i for i, n in enumerate(b) if n > 1]
    if not given:
        return 1, 1
    first, last = given[0], given[-1]
    if b[first : last + 1] != tuple(a[first : last + 1]):
        raise UserError(f"{op.kind} (operator {place}): shapes {a} and {b} are not supported")
    return math.prod(a[last + 1 :]), math.prod(b)


def _round(x):
    """Halves away from zero, as C's round."""
    return math.floor(abs(x) + 0.5) * (1 if x >= 0 else -1)

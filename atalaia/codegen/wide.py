"""Operators on int16 activations with int8 weights ("16x8"), lowered to steps. Zero points are 0."""

import math
from typing import Any

import numpy as np

from atalaia import tflite
from atalaia.codegen import elementwise, linear
from atalaia.codegen.fixed_point import quantize_multiplier
from atalaia.codegen.graph import ACTIVATIONS, Walk, halves_away
from atalaia.errors import UserError


def conv(walk: Walk, place: int, op: tflite.Operator) -> None:
    """CONV_2D and DEPTHWISE_CONV_2D: of the latter a group is a channel."""
    given, out, options = op.inputs[0], op.outputs[0], op.options
    _require(walk, place, op, given, out)
    kernel = linear.weights(walk, place, op)
    _, height, width, channels = walk.image(given, place, op)
    if op.kind == "DEPTHWISE_CONV_2D":
        kernel = np.moveaxis(kernel, 0, 3).transpose(2, 0, 1, 3) if kernel.shape[0] == 1 else kernel[:0]
    groups = channels // kernel.shape[3] if kernel.size else 0
    if not groups or kernel.shape[3] * groups != channels or kernel.shape[0] % groups:
        raise UserError(f"{op.kind} (operator {place}): its weights do not fit {channels} input channels")
    dilation = dict(dilation_h=options.dilationHFactor, dilation_w=options.dilationWFactor)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel.shape[1:3], dilation.values(), strict=True)]
    if not 1 <= min(dilation.values()) <= max(dilation.values()) <= 255:
        raise UserError(f"{op.kind} (operator {place}) has dilation {tuple(dilation.values())}: 1 to 255 are supported")
    fields = walk.window(place, op, (height, width), (spans[0], spans[1]), walk.tensors[out].shape)
    fields |= dict(in_c=channels, kernel_h=kernel.shape[1], kernel_w=kernel.shape[2]) | dilation
    fields |= dict(group_in=kernel.shape[3], group_out=kernel.shape[0] // groups)
    _linear(walk, place, op, kernel, fields)


def fully_connected(walk: Walk, place: int, op: tflite.Operator) -> None:
    """FULLY_CONNECTED, as a convolution of one row."""
    given, out = op.inputs[0], op.outputs[0]
    _require(walk, place, op, given, out)
    kernel = linear.weights(walk, place, op)
    size = math.prod(walk.tensors[given].shape)
    if kernel.ndim != 2 or max(*kernel.shape, size // kernel.shape[1]) >= 1 << 16 or size % kernel.shape[1]:
        raise UserError(f"FULLY_CONNECTED (operator {place}): its weights do not fit its input")
    rows = size // kernel.shape[1]
    fields = dict(in_h=1, in_w=rows, out_h=1, out_w=rows, in_c=kernel.shape[1], group_in=kernel.shape[1])
    fields |= dict.fromkeys(("kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w"), 1)
    fields |= dict(pad_top=0, pad_left=0, group_out=len(kernel))
    _linear(walk, place, op, kernel[:, None, None, :], fields)


def _linear(walk, place, op, kernel, fields):
    """Adds a step; a file's bias of 32 bits means sums of 32."""
    given, out, out_c = op.inputs[0], op.outputs[0], len(kernel)
    of_bias = walk.dtype(op.inputs[2]) if len(op.inputs) > 2 and op.inputs[2] >= 0 else "INT64"
    if of_bias == "INT32" and op.kind == "DEPTHWISE_CONV_2D":
        raise UserError(f"{op.kind} (operator {place}) of int16 with a bias of 32 bits: TFLite Micro reads it as 64")
    bias, multiplier, shift = linear.scaled(walk, place, op, out_c, ("INT32", "INT64"))
    if of_bias == "INT64" and (shift.max() > 7 or np.abs(bias).max(initial=0) >= 1 << 46):
        raise UserError(f"{op.kind} (operator {place}): its scales or bias exceed what TFLite Micro can multiply")
    low, high = _bounds(walk, out, op)
    fields |= dict(out_c=out_c, out_low=low, out_high=high, narrow=int(of_bias == "INT32"))
    arrays = dict(weights=("int8_t", kernel.ravel()), bias=("int64_t", bias.astype(np.int64)))
    arrays |= dict(multiplier=("int32_t", multiplier), shift=("int8_t", shift))
    batch = walk.batch(given) if op.kind != "FULLY_CONNECTED" else {}
    macs = fields["out_h"] * fields["out_w"] * kernel.size * batch.get("batch", 1)
    values = dict(fields=fields, arrays=arrays) | batch
    walk.step("wide_conv", op.kind, place, (walk.root(given),), out, values, macs=macs)


def pair(walk: Walk, place: int, op: tflite.Operator) -> None:
    """ADD and MUL of two tensors, the second of which may be constant or repeat."""
    (a, b), out = op.inputs, op.outputs[0]
    _require(walk, place, op, a, b, out)
    swapped = walk.tensors[a].data is not None or walk.tensors[a].shape != walk.tensors[out].shape
    first, second = (b, a) if swapped else (a, b)
    shape = walk.tensors[out].shape
    repeats = elementwise.repeats(shape, walk.tensors[second].shape)
    if walk.tensors[first].shape != shape or walk.tensors[first].data is not None or repeats is None:
        raise UserError(f"{op.kind} (operator {place}) of int16: its shapes or constants are not supported")
    s_a, s_b, s_out = (walk.grid(i)[0] for i in (first, second, out))
    twice = 2 * max(s_a, s_b)
    ratios = [s_a / twice, s_b / twice, twice / (2**15 * s_out)] if op.kind == "ADD" else [1, 1, s_a * s_b / s_out]
    low, high = _bounds(walk, out, op)
    fields = dict(values=math.prod(shape), b_inner=repeats[0], b_size=repeats[1], out_low=low, out_high=high)
    for name, m, s in zip(("a", "b", "out"), *quantize_multiplier(ratios), strict=True):
        fields |= {f"{name}_multiplier": int(m), f"{name}_shift": int(s)}
    values: dict[str, Any] = dict(fields=fields | dict(product=int(op.kind == "MUL")), arrays={})
    constant = walk.tensors[second].data
    if constant is not None:
        values["constant"] = constant.ravel().astype(np.int16)
    inputs = (walk.root(first),) if constant is not None else (walk.root(first), walk.root(second))
    walk.step("wide_pair", op.kind, place, inputs, out, values)


def _bounds(walk, out, op):
    """Smallest and largest value that a fused activation lets through."""
    name = tflite.names(linear.schema.ActivationFunctionType).get(op.options.fusedActivationFunction)
    if name not in ACTIVATIONS:
        raise UserError(f"fused activation {name} is not supported: there are {', '.join(ACTIVATIONS)}")
    scale, (low, high) = walk.grid(out)[0], ACTIVATIONS[name]
    low = -(1 << 15) if low is None else max(-(1 << 15), int(halves_away(low / scale)))
    return low, (1 << 15) - 1 if high is None else min((1 << 15) - 1, int(halves_away(high / scale)))


def _require(walk, place, op, *tensors):
    """Refuses a tensor that is not int16 with one scale and no zero point."""
    for i in tensors:
        tensor = walk.tensors[i]
        if tensor.dtype != "INT16" or len(tensor.scale) != 1 or not 0 < tensor.scale[0] < math.inf:
            raise UserError(
                f"{op.kind} (operator {place}): {tensor.name!r} is {tensor.dtype}, or has no scale of its own"
            )
        if np.any(tensor.zero_point):
            raise UserError(f"{op.kind} (operator {place}): {tensor.name!r} of int16 has a zero point")

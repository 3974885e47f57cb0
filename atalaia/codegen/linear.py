"""Convolutions and matrix products of a .tflite graph, lowered to steps."""

import math

import numpy as np

from atalaia import tflite
from atalaia.codegen.fixed_point import quantize_multiplier
from atalaia.codegen.graph import LARGEST, OFFSET, Walk
from atalaia.errors import UserError


def conv(walk: Walk, place: int, op: tflite.Operator) -> None:
    """CONV_2D, of groups too."""
    given, out = op.inputs[0], op.outputs[0]
    kernel = _weights(walk, place, op)  # OHWI
    _, height, width, channels = walk.image(given, place, op)
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
    values = walk.window(place, op, (height, width), kernel.shape[1:3], walk.tensors[out].shape)
    _linear(walk, "conv", place, op, kernel, values | dict(in_c=channels), per_channel=True)


def depthwise(walk: Walk, place: int, op: tflite.Operator) -> None:
    """DEPTHWISE_CONV_2D."""
    given, out = op.inputs[0], op.outputs[0]
    kernel = _weights(walk, place, op)  # 1HWO
    _, height, width, channels = walk.image(given, place, op)
    if kernel.shape[0] != 1 or kernel.shape[3] % channels:
        raise UserError(f"DEPTHWISE_CONV_2D (operator {place}): its weights do not fit {channels} input channels")
    options = op.options
    kernel = _dilate(kernel, options.dilationHFactor, options.dilationWFactor)
    values = walk.window(place, op, (height, width), kernel.shape[1:3], walk.tensors[out].shape)
    # Of one input channel it is a convolution.
    kernel = np.moveaxis(kernel, 3, 0)  # O1HW
    kind = "conv" if channels == 1 else "depthwise"
    kernel = np.moveaxis(kernel, 1, 3) if kind == "conv" else kernel
    _linear(walk, kind, place, op, kernel, values | dict(in_c=channels), per_channel=True)


def fully_connected(walk: Walk, place: int, op: tflite.Operator) -> None:
    """FULLY_CONNECTED, as a convolution of one row."""
    kernel = _weights(walk, place, op)
    if (
        kernel.ndim != 2
        or max(kernel.shape) >= 4 * LARGEST
        or math.prod(walk.tensors[op.inputs[0]].shape) % kernel.shape[1]
    ):
        raise UserError(f"FULLY_CONNECTED (operator {place}): its weights do not fit its input")
    rows = math.prod(walk.tensors[op.inputs[0]].shape) // kernel.shape[1]
    values = dict(in_h=1, in_w=rows, out_h=1, out_w=rows, in_c=kernel.shape[1])
    values |= dict(kernel_h=1, kernel_w=1, stride_h=1, stride_w=1, pad_top=0, pad_left=0)
    per_channel = len(walk.tensors[op.inputs[1]].scale) > 1
    _linear(walk, "conv", place, op, kernel[:, None, None, :], values, per_channel)


def _weights(walk, place, op):
    tensor = walk.tensors[op.inputs[1]] if len(op.inputs) > 1 and op.inputs[1] >= 0 else None
    if tensor is None or tensor.data is None or tensor.dtype != "INT8":
        kind = "no constant" if tensor is None or tensor.data is None else tensor.dtype
        raise UserError(f"{op.kind} (operator {place}) has {kind} weights: only constant INT8 ones are supported")
    if np.any(tensor.zero_point):
        raise UserError(f"{op.kind} (operator {place}): weights with a zero point are not supported")
    return tensor.data


def _linear(walk, kind, place, op, kernel, values, per_channel):
    """Adds a step: bias with the input's zero point folded in, multipliers, and bounds of operators behind it."""
    given, weights, out = op.inputs[0], walk.tensors[op.inputs[1]], op.outputs[0]
    out_c = kernel.shape[0]
    (in_scale, in_zero), (out_scale, out_zero) = walk.grid(given), walk.grid(out)
    bias = np.zeros(out_c, np.int64)
    if len(op.inputs) > 2 and op.inputs[2] >= 0:
        tensor = walk.tensors[op.inputs[2]]
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
    low, high = walk.bounds(out, op.options.fusedActivationFunction)
    lows, highs, out = _bounds_behind(walk, out, out_c)
    values = values | dict(out_c=out_c, in_zero=in_zero, out_zero=out_zero, out_low=low, out_high=high)
    values |= dict(kernel=kernel, bias=folded.astype(np.int32), multiplier=multiplier, shift=shift)
    values |= dict(low=lows, high=highs)
    macs = values["out_h"] * values["out_w"] * kernel.size
    if kind == "depthwise":
        macs = values["out_h"] * values["out_w"] * out_c * kernel.shape[2] * kernel.shape[3]
    walk.step(kind, op.kind, place, (walk.root(given),), out, values, macs=macs)


def _bounds_behind(walk, out, channels):
    """MAXIMUM and then MINIMUM with constants by channel become bounds of the step; gives also the last tensor."""
    found = {}
    for kind in ("MAXIMUM", "MINIMUM"):
        behind = walk.consumers(out)
        if len(behind) != 1 or behind[0] < 0 or walk.model.operators[behind[0]].kind != kind:
            continue
        op = walk.model.operators[behind[0]]
        constant = next((walk.tensors[i] for i in op.inputs if walk.tensors[i].data is not None), None)
        if constant is None or constant.data.size not in (1, channels) or constant.shape[-1:] != (constant.data.size,):
            continue
        same = [walk.grid(i) for i in (*op.inputs, *op.outputs)]
        if any(g != same[0] for g in same) or any(walk.dtype(i) != "INT8" for i in (*op.inputs, *op.outputs)):
            continue
        found[kind] = np.broadcast_to(constant.data.ravel().astype(np.int64) + OFFSET, channels).astype(np.uint8)
        walk.done.add(behind[0])
        out = op.outputs[0]
    if not found:
        return None, None, out
    low = found.get("MAXIMUM", np.zeros(channels, np.uint8))
    return low, found.get("MINIMUM", np.full(channels, 255, np.uint8)), out


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

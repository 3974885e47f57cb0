"""Convolutions, matrix products and pooling of a .tflite graph, lowered to steps."""

import math

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from atalaia import tflite
from atalaia.codegen.fixed_point import quantize_multiplier, rescaled
from atalaia.codegen.graph import LARGEST, OFFSET, Walk
from atalaia.codegen.grid import sum_bounds
from atalaia.errors import UserError


def conv(walk: Walk, place: int, op: tflite.Operator) -> None:
    """CONV_2D, of groups too."""
    given, out = op.inputs[0], op.outputs[0]
    kernel = weights(walk, place, op)  # OHWI
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
    values |= dict(in_c=channels) | walk.batch(given)
    _linear(walk, "conv", place, op, kernel, values)


def depthwise(walk: Walk, place: int, op: tflite.Operator) -> None:
    """DEPTHWISE_CONV_2D."""
    given, out = op.inputs[0], op.outputs[0]
    kernel = weights(walk, place, op)  # 1HWO
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
    _linear(walk, kind, place, op, kernel, values | dict(in_c=channels) | walk.batch(given))


def fully_connected(walk: Walk, place: int, op: tflite.Operator) -> None:
    """FULLY_CONNECTED, as a convolution of one row."""
    kernel, size = weights(walk, place, op), math.prod(walk.tensors[op.inputs[0]].shape)
    if kernel.ndim != 2 or max(*kernel.shape, size // kernel.shape[1]) >= 4 * LARGEST or size % kernel.shape[1]:
        raise UserError(
            f"FULLY_CONNECTED (operator {place}): its weights do not fit its input, or it has too many rows"
        )
    rows = size // kernel.shape[1]
    values = dict(in_h=1, in_w=rows, out_h=1, out_w=rows, in_c=kernel.shape[1])
    values |= dict(kernel_h=1, kernel_w=1, stride_h=1, stride_w=1, pad_top=0, pad_left=0)
    _linear(walk, "conv", place, op, kernel[:, None, None, :], values)


def pool(walk: Walk, place: int, op: tflite.Operator) -> None:
    """MAX_POOL_2D and AVERAGE_POOL_2D."""
    kind = "max_pool" if op.kind == "MAX_POOL_2D" else "mean_pool"
    walk.step(kind, op.kind, place, (walk.root(op.inputs[0]),), op.outputs[0], pooling(walk, place, op))


def pooling(walk: Walk, place: int, op: tflite.Operator) -> dict[str, int]:
    """Parameters of a pooling operator."""
    given, out = op.inputs[0], op.outputs[0]
    _, height, width, channels = walk.image(given, place, op)
    options = op.options
    kernel = (options.filterHeight, options.filterWidth)
    values = walk.window(place, op, (height, width), kernel, walk.tensors[out].shape)
    if walk.grid(given) != walk.grid(out):
        raise UserError(f"{op.kind} (operator {place}) changes the scale, which TFLite does not allow")
    low, high = walk.bounds(out, options.fusedActivationFunction)
    return values | dict(channels=channels, out_low=low, out_high=high) | walk.batch(given)


def transpose_conv(walk: Walk, place: int, op: tflite.Operator) -> None:
    """TRANSPOSE_CONV: inputs are the output's shape, weights, the input, and perhaps a bias."""
    given, out = op.inputs[2], op.outputs[0]
    walk.require_int8(given, place, op.kind)
    kernel = weights(walk, place, op)  # OHWI
    turned = op._replace(inputs=(given, *op.inputs[1:2], *op.inputs[3:4]))
    batch, height, width, channels = walk.image(given, place, turned)
    options, (_, out_h, out_w, out_c) = op.options, walk.tensors[out].shape
    if kernel.ndim != 4 or kernel.shape[3] != channels or kernel.shape[0] != out_c:
        raise UserError(f"TRANSPOSE_CONV (operator {place}): its weights do not fit {channels} input channels")
    (tall, wide), strides = kernel.shape[1:3], (options.strideH, options.strideW)
    if min(strides) < 1 or max(strides) > 255 or max(tall, wide) > 255 or max(out_h, out_w) >= LARGEST:
        raise UserError(f"TRANSPOSE_CONV (operator {place}) has strides {strides} and kernel {(tall, wide)}")
    # The padding of a convolution that turns the output into the input.
    same = options.padding == schema.Padding.SAME
    sizes = zip((out_h, out_w), (tall, wide), strides, strict=True)
    pads = [max((-(-n // s) - 1) * s + k - n, 0) // 2 if same else 0 for n, k, s in sizes]
    bias, multiplier, shift = scaled(walk, place, turned, out_c)
    low, high = walk.bounds(out, options.fusedActivationFunction)
    fields = dict(in_h=height, in_w=width, in_c=channels, out_h=out_h, out_w=out_w, out_c=out_c)
    fields |= dict(kernel_h=tall, kernel_w=wide, stride_h=strides[0], stride_w=strides[1])
    fields |= dict(pad_top=pads[0], pad_left=pads[1], in_zero=walk.grid(given)[1], out_zero=walk.grid(out)[1])
    arrays = dict(weights=("int8_t", kernel.ravel()), bias=("int32_t", bias.astype(np.int32)))
    arrays |= dict(multiplier=("int32_t", multiplier), shift=("int8_t", shift))
    values = dict(fields=fields | dict(out_low=low, out_high=high), arrays=arrays) | walk.batch(given)
    macs = batch * height * width * kernel.size
    walk.step("transpose_conv", op.kind, place, (walk.root(given),), out, values, macs=macs)


def batch_matmul(walk: Walk, place: int, op: tflite.Operator) -> None:
    """BATCH_MATMUL of two tensors that are computed, either of them turned."""
    a, b, out = *op.inputs, op.outputs[0]
    for i in (a, b):
        walk.require_int8(i, place, op.kind)
        if walk.tensors[i].data is not None or not 2 <= len(walk.tensors[i].shape) <= 5:
            raise UserError(f"BATCH_MATMUL (operator {place}) of a constant or of other than 2 to 5 axes")
    rank = len(walk.tensors[out].shape)
    shapes = [(1,) * (rank - len(s)) + tuple(s) for s in (walk.tensors[a].shape, walk.tensors[b].shape)]
    rows, inner = shapes[0][-2:][:: -1 if op.options.adjX else 1]
    same, columns = shapes[1][-2:][:: -1 if op.options.adjY else 1]
    batches = [1 if n == 1 else n for n in np.broadcast_shapes(shapes[0][:-2], shapes[1][:-2])]
    if inner != same or tuple(walk.tensors[out].shape) != (*batches, rows, columns):
        raise UserError(f"BATCH_MATMUL (operator {place}): shapes {shapes[0]} and {shapes[1]} do not fit its output")
    if any(s[:-2] != tuple(batches) and math.prod(s[:-2]) > 1 for s in shapes):
        raise UserError(f"BATCH_MATMUL (operator {place}): shapes {shapes[0]} and {shapes[1]} that both repeat")
    ratio = walk.grid(a)[0] * walk.grid(b)[0] / walk.grid(out)[0]
    (multiplier,), (shift,) = quantize_multiplier([ratio])
    fields = dict(batch=math.prod(batches), rows=rows, columns=columns, inner=inner)
    fields |= dict(a_batch=rows * inner * (math.prod(shapes[0][:-2]) > 1))
    fields |= dict(b_batch=columns * inner * (math.prod(shapes[1][:-2]) > 1))
    fields |= dict(a_row=1 if op.options.adjX else inner, a_step=rows if op.options.adjX else 1)
    fields |= dict(b_column=inner if op.options.adjY else 1, b_step=1 if op.options.adjY else columns)
    zeros = dict(a_zero=walk.grid(a)[1], b_zero=walk.grid(b)[1], out_zero=walk.grid(out)[1])
    fields |= zeros | dict(multiplier=int(multiplier), shift=int(shift))
    macs = fields["batch"] * rows * columns * inner
    walk.step(
        "batch_matmul", op.kind, place, (walk.root(a), walk.root(b)), out, dict(fields=fields, arrays={}), macs=macs
    )


def weights(walk: Walk, place: int, op: tflite.Operator) -> np.ndarray:
    """The int8 weights of an operator, without a zero point."""
    tensor = walk.tensors[op.inputs[1]] if len(op.inputs) > 1 and op.inputs[1] >= 0 else None
    if tensor is None or tensor.data is None or tensor.dtype != "INT8":
        kind = "no constant" if tensor is None or tensor.data is None else tensor.dtype
        raise UserError(f"{op.kind} (operator {place}) has {kind} weights: only constant INT8 ones are supported")
    if np.any(tensor.zero_point):
        raise UserError(f"{op.kind} (operator {place}): weights with a zero point are not supported")
    return tensor.data


def _linear(walk, kind, place, op, kernel, values):
    """Adds a step: bias with the input's zero point folded in, multipliers, and bounds of operators behind it."""
    given, out = op.inputs[0], op.outputs[0]
    out_c = kernel.shape[0]
    in_zero, out_zero = walk.grid(given)[1], walk.grid(out)[1]
    bias, multiplier, shift = scaled(walk, place, op, out_c)
    sums = kernel.astype(np.int64).reshape(out_c, -1).sum(1)
    folded = bias - in_zero * sums
    if np.abs(folded).max(initial=0) >= 2**31:
        raise UserError(f"{op.kind} (operator {place}): a bias is out of int32")
    low, high = walk.bounds(out, op.options.fusedActivationFunction)
    lows, highs, out = _bounds_behind(walk, out, out_c)
    values = values | dict(out_c=out_c, in_zero=in_zero, out_zero=out_zero, out_low=low, out_high=high)
    values |= dict(kernel=kernel, bias=folded.astype(np.int32), multiplier=multiplier, shift=shift)
    values |= dict(low=lows, high=highs)
    values |= _without_still(values)
    taps = walk.tensors[op.inputs[1]].data.size  # without the zeros of dilation and of other groups
    macs = values["out_h"] * values["out_w"] * taps * values.get("batch", 1)
    walk.step(kind, op.kind, place, (walk.root(given),), out, values, macs=macs)


def _without_still(v):
    """The weights and scales of a step whose channels that give one value for every input have no weights.

    Trained networks have such channels: of BatchNorm, or of pruning. Their scales are often so small that TFLite's
    arithmetic has to be followed bit by bit, which costs the whole layer time.
    """
    least, most = (bound + v["bias"] for bound in sum_bounds(v))
    right = (v["shift"] <= 0) & (least >= -(2**31)) & (most < 2**31)
    shift = np.where(right, v["shift"], 0)
    low, high = (
        np.clip(rescaled(x, v["multiplier"], shift) + v["out_zero"], v["out_low"], v["out_high"]) for x in (least, most)
    )
    still = right & (low == high)
    kernel = v["kernel"].copy()
    kernel[still] = 0
    bias = np.where(still, 4 * (low - v["out_zero"]), v["bias"]).astype(np.int32)  # a quarter of it is exact
    multiplier = np.where(still, 1 << 30, v["multiplier"]).astype(np.int32)
    return dict(kernel=kernel, bias=bias, multiplier=multiplier, shift=np.where(still, -1, v["shift"]).astype(np.int8))


def scaled(
    walk: Walk,
    place: int,
    op: tflite.Operator,
    out_c: int,
    types: tuple[str, ...] = ("INT32",),
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(bias int64, multiplier, shift) `[out_c]`; an operator's inputs are its input, weights and perhaps a bias."""
    kernel = walk.tensors[op.inputs[1]]
    in_scale, out_scale = walk.grid(op.inputs[0])[0], walk.grid(op.outputs[0])[0]
    bias = np.zeros(out_c, np.int64)
    if len(op.inputs) > 2 and op.inputs[2] >= 0:
        tensor = walk.tensors[op.inputs[2]]
        if tensor.data is None or tensor.dtype not in types or tensor.data.size != out_c:
            raise UserError(f"{op.kind} (operator {place}): its bias is not {out_c} constant {types[0]} values")
        bias = tensor.data.ravel().astype(np.int64)
    if len(kernel.scale) not in (1, out_c):
        raise UserError(f"{op.kind} (operator {place}) has {len(kernel.scale)} scales of {out_c} outputs")
    ratio = in_scale * np.broadcast_to(kernel.scale, out_c).astype(np.float64) / out_scale
    return bias, *quantize_multiplier(ratio)


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

"""A .tflite graph as a list of steps, or one error that names what is wrong: a table of what each operator becomes."""

import math

import numpy as np

from atalaia import tflite
from atalaia.codegen import fixed_point, linear, single
from atalaia.codegen.fixed_point import quantize_multiplier
from atalaia.codegen.graph import OFFSET, Graph, Walk
from atalaia.errors import UserError


def lower(model: tflite.Model) -> Graph:
    """Steps of a model.

    Raises:
      UserError: an operator, a type or a shape is not supported; its place is named, with what is.
    """
    _refuse_dynamic(model)
    walk = Walk(model)
    inputs, outputs = _borders(walk)
    for place, op in enumerate(model.operators):
        if place in walk.done:
            continue
        if op.kind not in _OPS:
            raise UserError(f"operator {place} is {op.kind}, which is not supported: there are {', '.join(_OPS)}")
        try:
            for i in op.outputs:
                walk.require_int8(i, place, op.kind)
            _OPS[op.kind](walk, place, op)
        except UserError:
            raise
        # Tensors and options of a damaged file can miss anything.
        except Exception as error:
            reason = type(error).__name__
            raise UserError(f"{op.kind} (operator {place}): its contents do not fit together ({reason})") from None
    for i in outputs:
        walk.step("flip_out", "output", -1, (walk.root(i),), i, dict(size=math.prod(walk.tensors[i].shape)))
    numbers = {i for s in walk.steps for i in (*s.inputs, s.output)}
    shapes = {i: walk.tensors[i].shape for i in numbers}
    sizes = {i: math.prod(shape) for i, shape in shapes.items()}
    return Graph(walk.steps, sizes, shapes, tuple(inputs), tuple(outputs), walk.notes)


def _borders(walk):
    """Tensors that the caller gives and gets; conversions between float and int8 are the caller's affair."""
    inputs, outputs = list(walk.model.inputs), list(walk.model.outputs)
    for place, op in enumerate(walk.model.operators):
        if op.kind == "QUANTIZE" and op.inputs[0] in inputs and walk.dtype(op.inputs[0]) == "FLOAT32":
            inputs[inputs.index(op.inputs[0])] = op.outputs[0]
            walk.drop(place, "the caller gives int8 values")
        if op.kind == "DEQUANTIZE" and op.outputs[0] in outputs:
            outputs[outputs.index(op.outputs[0])] = op.inputs[0]
            walk.drop(place, "the caller gets int8 values")
    for i in inputs:
        walk.require_int8(i, 0, "the graph's input")
        walk.step("flip_in", "input", -1, (i,), i, dict(size=math.prod(walk.tensors[i].shape)))
    return inputs, outputs


def _refuse_dynamic(model):
    for tensor in model.tensors:
        if any(n < 1 for n in tensor.shape):
            raise UserError(f"tensor {tensor.name!r} has shape {tensor.shape}: dynamic shapes are not supported")


def _pool(walk, place, op):
    kind = "max_pool" if op.kind == "MAX_POOL_2D" else "mean_pool"
    walk.step(kind, op.kind, place, (walk.root(op.inputs[0]),), op.outputs[0], _pooling(walk, place, op))


def _pooling(walk, place, op):
    """Parameters of a pooling operator."""
    given, out = op.inputs[0], op.outputs[0]
    _, height, width, channels = walk.image(given, place, op)
    options = op.options
    kernel = (options.filterHeight, options.filterWidth)
    values = walk.window(place, op, (height, width), kernel, walk.tensors[out].shape)
    if walk.grid(given) != walk.grid(out):
        raise UserError(f"{op.kind} (operator {place}) changes the scale, which TFLite does not allow")
    low, high = walk.bounds(out, options.fusedActivationFunction)
    return values | dict(channels=channels, out_low=low, out_high=high)


def _mul(walk, place, op):
    """One step for a negation, MAX_POOL_2D and a negation, which are the minimum of windows; else MUL by itself."""
    given, behind = _negated(walk, op), walk.consumers(op.outputs[0])
    pool = walk.model.operators[behind[0]] if len(behind) == 1 and behind[0] >= 0 else None
    if given is None or pool is None or pool.kind != "MAX_POOL_2D":
        return _pair(walk, place, op)
    last = walk.consumers(pool.outputs[0])
    back = walk.model.operators[last[0]] if len(last) == 1 and last[0] >= 0 else None
    if back is None or _negated(walk, back) != pool.outputs[0]:
        return _pair(walk, place, op)
    values = _pooling(walk, behind[0], pool)
    values |= dict(out_low=255 - values["out_high"], out_high=255 - values["out_low"])
    walk.done |= {behind[0], last[0]}
    walk.step("min_pool", "MUL, MAX_POOL_2D, MUL", place, (walk.root(given),), back.outputs[0], values)


def _negated(walk, op):
    """The tensor whose integers q an operator turns into exactly -1 - q; None where it does something else."""
    if op.kind != "MUL" or op.options is None or op.options.fusedActivationFunction:
        return None
    constants = [i for i in op.inputs if walk.tensors[i].data is not None]
    computed = [i for i in op.inputs if walk.tensors[i].data is None]
    tensors = (*computed, *constants, op.outputs[0])
    if (len(computed), len(constants)) != (1, 1) or any(walk.dtype(i) != "INT8" for i in tensors):
        return None
    (s_a, z_a), (s_b, z_b), (s_out, z_out) = (walk.grid(i) for i in tensors)
    minus = walk.tensors[constants[0]].data.astype(np.int64) + OFFSET - z_b
    exact = np.all(minus == -1) and s_a * s_b == s_out and z_out == 255 - z_a
    return computed[0] if exact and walk.tensors[computed[0]].shape == walk.tensors[op.outputs[0]].shape else None


def _pair(walk, place, op):
    a, b = op.inputs
    out = op.outputs[0]
    if walk.tensors[a].data is not None or math.prod(walk.tensors[a].shape) < math.prod(walk.tensors[b].shape):
        a, b = b, a
    swapped = a != op.inputs[0]
    if walk.tensors[a].data is not None:
        raise UserError(f"{op.kind} (operator {place}) has two constants")
    for i in (a, b):
        walk.require_int8(i, place, op.kind)
    kind = op.kind.lower()
    if swapped and kind == "sub":
        raise UserError(f"SUB (operator {place}) whose first input is the smaller one is not supported")
    inner, size = _repeats(walk.tensors[a].shape, walk.tensors[b].shape, walk.tensors[out].shape, place, op)
    values = dict(values=math.prod(walk.tensors[out].shape), b_inner=inner, b_size=size)
    (s_a, z_a), (s_b, z_b), (s_out, z_out) = walk.grid(a), walk.grid(b), walk.grid(out)
    low, high = (
        (0, 255)
        if op.options is None or not hasattr(op.options, "fusedActivationFunction")
        else walk.bounds(out, op.options.fusedActivationFunction)
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
    constant = walk.tensors[b].data
    if constant is not None:
        values["constant"] = (constant.ravel().astype(np.int64) + OFFSET).astype(np.uint8)
    inputs = (walk.root(a),) if constant is not None else (walk.root(a), walk.root(b))
    walk.step(kind, op.kind, place, inputs, out, values)


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


def _reshape(walk, place, op):
    if math.prod(walk.tensors[op.inputs[0]].shape) != math.prod(walk.tensors[op.outputs[0]].shape):
        raise UserError(f"RESHAPE (operator {place}) changes the number of values")
    if walk.grid(op.inputs[0]) != walk.grid(op.outputs[0]):
        raise UserError(f"RESHAPE (operator {place}) changes the scale")
    walk.alias[op.outputs[0]] = op.inputs[0]


def _unary(walk, place, op):
    """A function of one value: the table of its 256 results, as TFLite Micro gives them."""
    given, out = op.inputs[0], op.outputs[0]
    if len(op.inputs) != 1 or walk.tensors[given].data is not None:
        raise UserError(f"{op.kind} (operator {place}) has {len(op.inputs)} inputs, or a constant one")
    walk.require_int8(given, place, op.kind)
    answers = single.run(op, [walk.tensors[given]], walk.tensors[out], [np.arange(-128, 128).astype(np.int8)])
    table = (answers.astype(np.int16) + OFFSET).astype(np.uint8)
    values = dict(table=table, size=math.prod(walk.tensors[out].shape))
    walk.step("lookup", op.kind, place, (walk.root(given),), out, values)


def _softmax(walk, place, op):
    given, out = op.inputs[0], op.outputs[0]
    scale, zero = walk.grid(out)
    if scale != 1 / 256 or zero != 0:
        raise UserError(f"SOFTMAX (operator {place}): its output must have scale 1/256 and zero point -128")
    size = walk.tensors[given].shape[-1]
    table = fixed_point.softmax_table(float(op.options.beta), float(walk.grid(given)[0]))
    rows = math.prod(walk.tensors[given].shape) // size
    walk.step("softmax", op.kind, place, (walk.root(given),), out, dict(rows=rows, size=size, table=table))


def _mean(walk, place, op):
    """Over height and width; TFLite's MEAN divides by way of the multiplier."""
    given, out = op.inputs[0], op.outputs[0]
    _, height, width, channels = walk.image(given, place, op)
    axes = walk.tensors[op.inputs[1]].data
    if axes is None or sorted(int(a) % 4 for a in axes.ravel()) != [1, 2]:
        raise UserError(f"MEAN (operator {place}) of other axes than height and width is not supported")
    (s_in, z_in), (s_out, z_out) = walk.grid(given), walk.grid(out)
    multiplier, shift = fixed_point.mean_multiplier(s_in / s_out, height * width)
    values = dict(pixels=height * width, channels=channels, in_zero=z_in, out_zero=z_out)
    values |= dict(multiplier=multiplier, shift=shift)
    walk.step("mean", op.kind, place, (walk.root(given),), out, values)


def _concatenation(walk, place, op):
    out = op.outputs[0]
    shape = walk.tensors[out].shape
    axis = op.options.axis % len(shape)
    if op.options.fusedActivationFunction:
        raise UserError(f"CONCATENATION (operator {place}) with a fused activation is not supported")
    start, row = 0, math.prod(shape[axis:])
    for i in op.inputs:
        if walk.tensors[i].data is not None or walk.grid(i) != walk.grid(out):
            raise UserError(f"CONCATENATION (operator {place}) of a constant or of other scales is not supported")
        block = math.prod(walk.tensors[i].shape[axis:])
        values = dict(rows=math.prod(shape[:axis]), block=block, from_stride=block, to_stride=row, to_start=start)
        walk.step("copy", op.kind, place, (walk.root(i),), out, values)
        start += block
    if start != row:
        raise UserError(f"CONCATENATION (operator {place}): its inputs do not add up to its output")


def _pad(walk, place, op):
    given, out = op.inputs[0], op.outputs[0]
    pads = walk.tensors[op.inputs[1]].data
    if pads is None or walk.grid(given) != walk.grid(out) or len(op.inputs) != 2:
        raise UserError(f"{op.kind} (operator {place}) with padding that is not constant, or a value, is not supported")
    before, shape, wide = pads.reshape(-1, 2)[:, 0], walk.tensors[given].shape, walk.tensors[out].shape
    if len(shape) != 4 or shape[0] != 1 or len(before) != 4 or pads.reshape(-1, 2)[0].any() or (pads < 0).any():
        raise UserError(f"{op.kind} (operator {place}) pads {shape}: only [1, height, width, channels] is supported")
    if tuple(np.add(shape, pads.reshape(-1, 2).sum(1))) != wide:
        raise UserError(f"{op.kind} (operator {place}): its padding does not give its output's shape")
    values = dict(in_h=shape[1], in_w=shape[2], in_c=shape[3], out_h=wide[1], out_w=wide[2], out_c=wide[3])
    values |= dict(top=int(before[1]), left=int(before[2]), first=int(before[3]), zero=walk.grid(out)[1])
    walk.step("pad", op.kind, place, (walk.root(given),), out, values)


_OPS = {
    "CONV_2D": linear.conv,
    "DEPTHWISE_CONV_2D": linear.depthwise,
    "FULLY_CONNECTED": linear.fully_connected,
    "ADD": _pair,
    "SUB": _pair,
    "MUL": _mul,
    "MAXIMUM": _pair,
    "MINIMUM": _pair,
    "MAX_POOL_2D": _pool,
    "AVERAGE_POOL_2D": _pool,
    "RESHAPE": _reshape,
    "RELU": _unary,
    "RELU6": _unary,
    "QUANTIZE": _unary,
    "LOGISTIC": _unary,
    "TANH": _unary,
    "LEAKY_RELU": _unary,
    "HARD_SWISH": _unary,
    "SOFTMAX": _softmax,
    "CONCATENATION": _concatenation,
    "PAD": _pad,
    "MEAN": _mean,
}

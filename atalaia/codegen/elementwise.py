"""Elementwise operators of a .tflite graph, of one tensor or two, lowered to steps."""

import math

import numpy as np

from atalaia import tflite
from atalaia.codegen import fixed_point, moves, single
from atalaia.codegen.fixed_point import quantize_multiplier
from atalaia.codegen.graph import OFFSET, Walk
from atalaia.codegen.linear import pooling
from atalaia.errors import UserError

SOFTMAX_VALUES = (1 << 32 - 19) - 1  # of a row: each is 2^19 at the most in a sum of 32 bits


def mul(walk: Walk, place: int, op: tflite.Operator) -> None:
    """One step for a negation, MAX_POOL_2D and a negation, which are the minimum of windows; else MUL by itself."""
    given, behind = _negated(walk, op), walk.consumers(op.outputs[0])
    pool = walk.model.operators[behind[0]] if len(behind) == 1 and behind[0] >= 0 else None
    if given is None or pool is None or pool.kind != "MAX_POOL_2D":
        return pair(walk, place, op)
    last = walk.consumers(pool.outputs[0])
    back = walk.model.operators[last[0]] if len(last) == 1 and last[0] >= 0 else None
    if back is None or _negated(walk, back) != pool.outputs[0]:
        return pair(walk, place, op)
    values = pooling(walk, behind[0], pool)
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


def pair(walk: Walk, place: int, op: tflite.Operator) -> None:
    """ADD, SUB, MUL, MAXIMUM, MINIMUM, SQUARED_DIFFERENCE and PRELU, of shapes that may repeat."""
    a, b = op.inputs
    out, kind = op.outputs[0], op.kind.lower()
    for i in (a, b):
        walk.require_int8(i, place, op.kind)
    if kind == "prelu":
        swapped = False
    else:
        sizes = [math.prod(walk.tensors[i].shape) for i in (a, b)]
        constant = [walk.tensors[i].data is not None for i in (a, b)]
        swapped = constant[0] or (sizes[0] < sizes[1] and not constant[1])
    a, b = (b, a) if swapped else (a, b)
    if walk.tensors[a].data is not None:
        raise UserError(f"{op.kind} (operator {place}) has two constants")
    values, (a, b) = _operands(walk, place, op, a, b)
    low, high = (
        (0, 255)
        if op.options is None or not hasattr(op.options, "fusedActivationFunction")
        else walk.bounds(out, op.options.fusedActivationFunction)
    )
    zeros = (walk.grid(op.inputs[i])[1] for i in ((1, 0) if swapped else (0, 1)))
    values |= dict(
        zip(("a_zero", "b_zero"), zeros, strict=True), out_zero=walk.grid(out)[1], out_low=low, out_high=high
    )
    values |= _scales(walk, place, op, kind, swapped)
    if kind in ("add", "sub") and (values["b_inner"], values["b_size"]) == (1, values["values"]):
        values["tables"] = fixed_point.sum_tables(values, kind == "sub")
    if isinstance(b, np.ndarray):
        values["constant"] = b
        inputs: tuple[int, ...] = (a,)
    else:
        inputs = (a, b)
    walk.step("rsub" if kind == "sub" and swapped else kind, op.kind, place, inputs, out, values)


def _operands(walk, place, op, a, b):
    """How the values of b repeat, and the roots of both; a shape that repeats in another way is written out first."""
    shape = walk.tensors[op.outputs[0]].shape
    found = None
    if tuple(walk.tensors[a].shape) == tuple(shape):
        found = repeats(shape, walk.tensors[b].shape)
    if found is None:
        a, b = (moves.broadcast(walk, place, op, i, shape) for i in (a, b))
        found = 1, math.prod(shape)
    else:
        constant = walk.tensors[b].data
        a = walk.root(a)
        b = walk.root(b) if constant is None else (constant.ravel().astype(np.int64) + OFFSET).astype(np.uint8)
    return dict(values=math.prod(shape), b_inner=found[0], b_size=found[1]), (a, b)


def _scales(walk, place, op, kind, swapped):
    """Multipliers and shifts of the values of both and of the result."""
    first, second = (op.inputs[1], op.inputs[0]) if swapped else op.inputs
    (s_a, z_a), (s_b, z_b), (s_out, z_out) = walk.grid(first), walk.grid(second), walk.grid(op.outputs[0])
    if kind in ("maximum", "minimum"):
        if not (s_a, z_a) == (s_b, z_b) == (s_out, z_out):
            raise UserError(f"{op.kind} (operator {place}) with different scales is not supported")
        return {}
    if kind == "mul":
        (multiplier,), (shift,) = quantize_multiplier([s_a * s_b / s_out])
        return dict(out_multiplier=multiplier, out_shift=shift)
    twice = 2 * max(s_a, s_b)
    if kind == "prelu":  # of positive values, of negative ones by alpha; the third is not read
        ratios = [s_a / s_out, 1.0, s_a * s_b / s_out]
    elif kind == "squared_difference":
        ratios = [s_a / twice, s_b / twice, twice * twice / (2**14 * s_out)]
    else:
        ratios = [s_a / twice, s_b / twice, twice / (2**20 * s_out)]
    found = {}
    for name, m, s in zip(("a", "b", "out"), *quantize_multiplier(ratios), strict=True):
        found |= {f"{name}_multiplier": int(m), f"{name}_shift": int(s)}
    return found


def repeats(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, int] | None:
    """(inner, size): value i of the larger input goes with value i // inner % size of the other; None where not."""
    b = (1,) * (len(a) - len(b)) + tuple(b)
    given = [i for i, n in enumerate(b) if n > 1]
    if not given:
        return 1, 1
    first, last = given[0], given[-1]
    if b[first : last + 1] != tuple(a[first : last + 1]):
        return None
    return math.prod(a[last + 1 :]), math.prod(b)


def unary(walk: Walk, place: int, op: tflite.Operator) -> None:
    """A function of one value: the table of its 256 results, as TFLite Micro gives them."""
    given, out = op.inputs[0], op.outputs[0]
    if len(op.inputs) != 1 or walk.tensors[given].data is not None:
        raise UserError(f"{op.kind} (operator {place}) has {len(op.inputs)} inputs, or a constant one")
    walk.require_int8(given, place, op.kind)
    answers = single.run(op, [walk.tensors[given]], walk.tensors[out], [np.arange(-128, 128).astype(np.int8)])
    lookup(walk, place, op.kind, given, out, (answers.astype(np.int16) + OFFSET).astype(np.uint8))


def lookup(walk: Walk, place: int, kind: str, given: int, out: int, table: np.ndarray) -> None:
    """A step that reads a table of what each of the 256 values becomes."""
    values = dict(table=table, size=math.prod(walk.tensors[out].shape))
    walk.step("lookup", kind, place, (walk.root(given),), out, values)


def softmax(walk: Walk, place: int, op: tflite.Operator) -> None:
    """SOFTMAX over the last axis."""
    given, out = op.inputs[0], op.outputs[0]
    scale, zero = walk.grid(out)
    if scale != 1 / 256 or zero != 0:
        raise UserError(f"SOFTMAX (operator {place}): its output must have scale 1/256 and zero point -128")
    size = walk.tensors[given].shape[-1]
    if size > SOFTMAX_VALUES:
        raise UserError(
            f"SOFTMAX (operator {place}): a row has {size:,} values, and {SOFTMAX_VALUES:,} at the most fit its sum of "
            "32 bits: leave SOFTMAX out, the largest value is the same without it"
        )
    table = fixed_point.softmax_table(float(op.options.beta), float(walk.grid(given)[0]))
    rows = math.prod(walk.tensors[given].shape) // size
    walk.step("softmax", op.kind, place, (walk.root(given),), out, dict(rows=rows, size=size, table=table))

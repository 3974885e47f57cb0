"""Reductions of a .tflite graph over axes, lowered to steps."""

import itertools
import math

import numpy as np

from atalaia import tflite
from atalaia.codegen import fixed_point
from atalaia.codegen.graph import Walk
from atalaia.errors import UserError

LOOPS = 3  # of reduce.c, over what is kept and over what is reduced


def mean(walk: Walk, place: int, op: tflite.Operator) -> None:
    """MEAN and SUM; TFLite's MEAN divides by way of the multiplier."""
    given, out = op.inputs[0], op.outputs[0]
    axes = _axes(walk, place, op)
    shape = walk.tensors[given].shape
    count = math.prod(shape[a] for a in axes)
    (s_in, z_in), (s_out, z_out) = walk.grid(given), walk.grid(out)
    if op.kind == "SUM":
        (multiplier,), (shift,) = fixed_point.quantize_multiplier([s_in / s_out])
    else:
        multiplier, shift = fixed_point.mean_multiplier(s_in / s_out, count)
    if op.kind == "MEAN" and len(shape) == 4 and shape[0] == 1 and axes == [1, 2]:
        values = dict(pixels=count, channels=shape[3], in_zero=z_in, out_zero=z_out)
        walk.step("mean", op.kind, place, (walk.root(given),), out, values | dict(multiplier=multiplier, shift=shift))
        return
    fields = _loops(walk, place, op, axes) | dict(in_zero=z_in, out_zero=z_out)
    fields |= dict(multiplier=int(multiplier), shift=int(shift))
    walk.step("reduce", op.kind, place, (walk.root(given),), out, dict(fields=fields, arrays={}))


def most(walk: Walk, place: int, op: tflite.Operator) -> None:
    """REDUCE_MAX and REDUCE_MIN."""
    given, out = op.inputs[0], op.outputs[0]
    if walk.grid(given) != walk.grid(out):
        raise UserError(f"{op.kind} (operator {place}) changes the scale, which TFLite does not allow")
    fields = _loops(walk, place, op, _axes(walk, place, op)) | dict(least=int(op.kind == "REDUCE_MIN"))
    walk.step("reduce_most", op.kind, place, (walk.root(given),), out, dict(fields=fields, arrays={}))


def arg_most(walk: Walk, place: int, op: tflite.Operator) -> None:
    """ARG_MAX and ARG_MIN, as int32; the first of equals."""
    given, out = op.inputs[0], op.outputs[0]
    walk.require_int8(given, place, op.kind)
    shape, axis = walk.tensors[given].shape, walk.tensors[op.inputs[1]].data
    if axis is None or axis.size != 1 or not -len(shape) <= int(axis.ravel()[0]) < len(shape):
        raise UserError(f"{op.kind} (operator {place}): its axis is not one constant number")
    at = int(axis.ravel()[0]) % len(shape)
    fields = dict(outer=math.prod(shape[:at]), count=shape[at], inner=math.prod(shape[at + 1 :]))
    if math.prod(walk.tensors[out].shape) != fields["outer"] * fields["inner"]:
        raise UserError(f"{op.kind} (operator {place}): its output {walk.tensors[out].shape} does not fit {shape}")
    values = dict(fields=fields | dict(least=int(op.kind == "ARG_MIN")), arrays={})
    walk.step("arg_most", op.kind, place, (walk.root(given),), out, values)


def _axes(walk, place, op):
    """The axes in order, each once."""
    walk.require_int8(op.inputs[0], place, op.kind)
    shape, axes = walk.tensors[op.inputs[0]].shape, walk.tensors[op.inputs[1]].data
    if axes is None or any(not -len(shape) <= int(a) < len(shape) for a in axes.ravel()):
        raise UserError(f"{op.kind} (operator {place}): its axes are not constant numbers below {len(shape)}")
    found = sorted({int(a) % len(shape) for a in axes.ravel()})
    kept = [n for a, n in enumerate(shape) if a not in found]
    if math.prod(walk.tensors[op.outputs[0]].shape) != math.prod(kept):
        raise UserError(f"{op.kind} (operator {place}): its output does not have the shape that its axes give")
    return found


def _loops(walk, place, op, axes):
    """Counts and strides of what is kept and of what is reduced: neighbouring axes of one kind are one."""
    shape = walk.tensors[op.inputs[0]].shape
    strides = [math.prod(shape[a + 1 :]) for a in range(len(shape))]
    loops: dict[bool, list[tuple[int, int]]] = {False: [(1, 0)] * LOOPS, True: [(1, 0)] * LOOPS}
    sized = [a for a, n in enumerate(shape) if n > 1]
    for over, group in itertools.groupby(sized, key=lambda a: a in axes):
        members = list(group)
        loops[over].append((math.prod(shape[a] for a in members), strides[members[-1]]))
    for found in loops.values():
        if len(found) > 2 * LOOPS:
            raise UserError(f"{op.kind} (operator {place}) of axes {axes} of {shape} is not supported")
    kept, over = (np.array(loops[k][-LOOPS:]).T.tolist() for k in (False, True))
    return dict(kept=kept[0], kept_stride=kept[1], over=over[0], over_stride=over[1])

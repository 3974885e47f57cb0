"""Inputs and outputs of a .tflite graph, and conversions between types, lowered to steps."""

import itertools
import math
from collections.abc import Sequence

import numpy as np

from atalaia import tflite
from atalaia.codegen import fixed_point, single
from atalaia.codegen.elementwise import lookup
from atalaia.codegen.graph import OFFSET, Step, Walk
from atalaia.errors import UserError

BORDERS = ("file", "int8")  # whose types the caller's values have: the file's, or int8 wherever that is converted to
_TYPES = ("INT8", "UINT8", "INT16", "FLOAT32", "INT32")


def inputs(walk: Walk, borders: str) -> tuple[list[int], list[int]]:
    """Tensors that the caller gives and gets; adds the steps that read what it gives."""
    given, gotten = list(walk.model.inputs), list(walk.model.outputs)
    if borders == "int8":
        _leave_out(walk, given, gotten)
    for i in given:
        if walk.dtype(i) not in _TYPES:
            raise UserError(f"the graph's input is {walk.dtype(i)}: there are {', '.join(_TYPES)}")
        if walk.dtype(i) == "INT8":
            walk.require_int8(i, 0, "the graph's input")
            walk.step("flip_in", "input", -1, (i,), i, dict(size=math.prod(walk.tensors[i].shape)))
        elif walk.dtype(i) != "FLOAT32":
            walk.step("take", "input", -1, (i,), i, dict(size=walk.bytes(i)))
    return given, gotten


def read_again(walk: Walk, steps: Sequence[Step]) -> list[Step]:
    """The steps, with what the caller gives read anew where its values are only moved, long after they were last read.

    So it is not kept meanwhile. Where a sum reads it again, a strip with one step more would cost more than it saves.
    """
    found = list(steps)
    for given in [step for step in steps if step.kind in ("flip_in", "take")]:
        readers = [at for at, step in enumerate(found) if step is not given and given.output in step.inputs]
        pairs = itertools.pairwise(readers)
        far = [late for early, late in pairs if late > early + 1 and found[late].kind == "strided"]
        for at in reversed(far):  # so that the places before it stay as they are
            copy = walk.add(walk.tensors[given.output])
            for k in [k for k in readers if k >= at]:
                inputs = tuple(copy if i == given.output else i for i in found[k].inputs)
                found[k] = found[k]._replace(inputs=inputs)
            readers = [k for k in readers if k < at]
            found.insert(at, given._replace(output=copy))
    return found


def _leave_out(walk, given, gotten):
    """Conversions between float and int8 at the borders become the caller's affair."""
    read = [i for op in walk.model.operators for i in op.inputs]
    for place, op in enumerate(walk.model.operators):
        border = {"QUANTIZE": op.inputs[0], "DEQUANTIZE": op.outputs[0]}.get(op.kind)
        if border in (*given, *gotten) and read.count(border) > (op.kind == "QUANTIZE"):
            raise UserError(
                f"{op.kind} (operator {place}): tensor {walk.tensors[border].name!r} at the border has other readers, "
                "so that the caller cannot have int8 values in its place: leave out --borders=int8 and --task"
            )
        if op.kind == "QUANTIZE" and op.inputs[0] in given and walk.dtype(op.inputs[0]) == "FLOAT32":
            given[given.index(op.inputs[0])] = op.outputs[0]
            walk.drop(place, "the caller gives int8 values")
        if op.kind == "DEQUANTIZE" and op.outputs[0] in gotten:
            gotten[gotten.index(op.outputs[0])] = op.inputs[0]
            walk.drop(place, "the caller gets int8 values")


def outputs(walk: Walk, gotten: list[int]) -> None:
    """Adds the steps that write what the caller gets."""
    for i in gotten:
        tensor = walk.tensors[i]
        if tensor.dtype == "INT8":
            walk.step("flip_out", "output", -1, (walk.root(i),), i, dict(size=math.prod(tensor.shape)))
        elif tensor.dtype == "FLOAT32" and i in walk.floats:
            table = fixed_point.dequantized(*walk.grid(walk.floats[i])).view(np.uint32)
            values = dict(size=math.prod(tensor.shape), table=table)
            walk.step("float_out", "DEQUANTIZE", -1, (walk.root(walk.floats[i]),), i, values)
        elif tensor.dtype in _TYPES and tensor.dtype != "FLOAT32":
            walk.step("give", "output", -1, (walk.root(i),), i, dict(size=walk.bytes(i)))
        else:
            raise UserError(f"the graph's output {tensor.name!r} is {tensor.dtype}, and not of a DEQUANTIZE")


def quantize(walk: Walk, place: int, op: tflite.Operator) -> None:
    """QUANTIZE to int8 or uint8: of float32 at the border or behind a DEQUANTIZE, and of int8 and uint8."""
    given, out = op.inputs[0], op.outputs[0]
    dtypes = walk.dtype(given), walk.dtype(out)
    for i in (given, out):
        if walk.dtype(i) in ("INT8", "UINT8"):
            walk.require_int8(i, place, op.kind, walk.dtype(i))
    if walk.tensors[given].data is not None:
        raise UserError(f"QUANTIZE (operator {place}) of a constant is not supported")
    if given in walk.floats:
        lookup(walk, place, "DEQUANTIZE, QUANTIZE", walk.floats[given], out, _through_float(walk, given, out))
    elif dtypes == ("FLOAT32", "INT8") and walk.root(given) in walk.model.inputs:
        scale, zero = walk.grid(out)
        values = dict(size=math.prod(walk.tensors[out].shape), table=fixed_point.least_floats(scale, zero))
        walk.step("float_in", op.kind, place, (walk.root(given),), out, values)
    elif dtypes in (("INT8", "INT8"), ("UINT8", "INT8"), ("INT8", "UINT8")):
        _requantize(walk, place, op, given, out)
    else:
        raise UserError(f"QUANTIZE (operator {place}) of {dtypes[0]} to {dtypes[1]} is not supported inside a graph")


def _requantize(walk, place, op, given, out):
    """A table, or nothing where the bytes stay as they are."""
    every = np.arange(256) if walk.dtype(given) == "UINT8" else np.arange(-128, 128)
    answers = single.run(op, [walk.tensors[given]], walk.tensors[out], [every.astype(walk.dtype(given).lower())])
    table = (answers.astype(np.int16) + (0 if walk.dtype(out) == "UINT8" else OFFSET)).astype(np.uint8)
    if walk.dtype(given) != walk.dtype(out) and np.array_equal(table, np.arange(256)):
        walk.alias[out] = given
    else:
        lookup(walk, place, op.kind, given, out, table)


def _through_float(walk, given, out):
    """The table of DEQUANTIZE and QUANTIZE."""
    return fixed_point.quantized(fixed_point.dequantized(*walk.grid(walk.floats[given])), *walk.grid(out))


def dequantize(walk: Walk, place: int, op: tflite.Operator) -> None:
    """DEQUANTIZE: an output of the graph, or what a QUANTIZE reads again; it computes nothing itself."""
    given, out = op.inputs[0], op.outputs[0]
    if walk.dtype(given) not in ("INT8", "UINT8") or walk.tensors[given].data is not None:
        raise UserError(f"DEQUANTIZE (operator {place}) of {walk.dtype(given)} or of a constant is not supported")
    walk.require_int8(given, place, op.kind, walk.dtype(given))
    walk.floats[out] = given

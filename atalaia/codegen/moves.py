"""Operators of a .tflite graph that only move values, lowered to steps."""

import math

import numpy as np

from atalaia import tflite
from atalaia.codegen.graph import LARGEST, OFFSET, Walk
from atalaia.errors import UserError

LOOPS = 5  # of strided.c


def reshape(walk: Walk, place: int, op: tflite.Operator) -> None:
    """RESHAPE, EXPAND_DIMS and SQUEEZE: the same bytes."""
    given, out = op.inputs[0], op.outputs[0]
    if math.prod(walk.tensors[given].shape) != math.prod(walk.tensors[out].shape):
        raise UserError(f"{op.kind} (operator {place}) changes the number of values")
    if walk.dtype(given) != walk.dtype(out):
        raise UserError(f"{op.kind} (operator {place}) changes {walk.dtype(given)} to {walk.dtype(out)}")
    if given in walk.floats:
        walk.floats[out] = walk.floats[given]
    elif walk.dtype(given) not in ("FLOAT32", "INT32"):  # which have no grid
        _same_grid(walk, place, op, given)
    walk.alias[out] = given


def concatenation(walk: Walk, place: int, op: tflite.Operator) -> None:
    """CONCATENATION along any axis."""
    out = op.outputs[0]
    shape = walk.tensors[out].shape
    axis = op.options.axis % len(shape)
    if op.options.fusedActivationFunction:
        raise UserError(f"CONCATENATION (operator {place}) with a fused activation is not supported")
    start, row = 0, math.prod(shape[axis:])
    for i in op.inputs:
        if walk.grid(i) != walk.grid(out):
            raise UserError(f"CONCATENATION (operator {place}) of other scales is not supported")
        part = walk.tensors[i].shape
        if part[:axis] + part[axis + 1 :] != shape[:axis] + shape[axis + 1 :]:
            raise UserError(f"CONCATENATION (operator {place}): {part} does not fit {shape}")
        block = math.prod(part[axis:])
        values = dict(rows=math.prod(shape[:axis]), block=block, from_stride=block, to_stride=row, to_start=start)
        if walk.tensors[i].data is not None:
            _strided(walk, place, op, i, [(values["rows"], block, row), (block, 1, 1)], to_start=start)
        else:
            walk.step("copy", op.kind, place, (walk.root(i),), out, values)
        start += block
    if start != row:
        raise UserError(f"CONCATENATION (operator {place}): its inputs do not add up to its output")


def pack(walk: Walk, place: int, op: tflite.Operator) -> None:
    """PACK: inputs side by side along a new axis."""
    shape = walk.tensors[op.outputs[0]].shape
    axis = op.options.axis % len(shape)
    block, row = math.prod(shape[axis + 1 :]), math.prod(shape[axis:])
    if len(op.inputs) != shape[axis]:
        raise UserError(f"PACK (operator {place}): {len(op.inputs)} inputs do not give {shape}")
    for number, i in enumerate(op.inputs):
        _same_grid(walk, place, op, i)
        if walk.tensors[i].shape != shape[:axis] + shape[axis + 1 :]:
            raise UserError(f"PACK (operator {place}): {walk.tensors[i].shape} does not fit {shape}")
        _strided(walk, place, op, i, [(math.prod(shape[:axis]), block, row), (block, 1, 1)], to_start=number * block)


def unpack(walk: Walk, place: int, op: tflite.Operator) -> None:
    """UNPACK: one output for each index along an axis."""
    _parts(walk, place, op, op.inputs[0], op.options.axis, None)


def split(walk: Walk, place: int, op: tflite.Operator) -> None:
    """SPLIT and SPLIT_V: parts along an axis."""
    given, axes = (op.inputs[1], op.inputs[0]) if op.kind == "SPLIT" else (op.inputs[0], op.inputs[2])
    axis = int(_constant(walk, place, op, axes).ravel()[0])
    _parts(walk, place, op, given, axis, [walk.tensors[i].shape for i in op.outputs])


def _parts(walk, place, op, given, axis, shapes):
    """A step for each output; shapes: None where each is one index of the axis, which it then lacks."""
    shape = walk.tensors[given].shape
    axis %= len(shape)
    inner, start = math.prod(shape[axis + 1 :]), 0
    for number, out in enumerate(op.outputs):
        count = 1 if shapes is None else shapes[number][axis]
        wanted = shape[:axis] + (() if shapes is None else (count,)) + shape[axis + 1 :]
        if walk.tensors[out].shape != wanted:
            raise UserError(f"{op.kind} (operator {place}): {walk.tensors[out].shape} does not fit {shape}")
        _same_grid(walk, place, op, given, out)
        block = count * inner
        dims = [(math.prod(shape[:axis]), shape[axis] * inner, block), (block, 1, 1)]
        _strided(walk, place, op, given, dims, start, out=out)
        start += block
    if start != shape[axis] * inner:
        raise UserError(f"{op.kind} (operator {place}): its outputs do not add up to its input")


def transpose(walk: Walk, place: int, op: tflite.Operator) -> None:
    """TRANSPOSE by a constant order of axes."""
    given, out = op.inputs[0], op.outputs[0]
    shape = walk.tensors[given].shape
    order = [int(a) % len(shape) for a in _constant(walk, place, op, op.inputs[1]).ravel()]
    if sorted(order) != list(range(len(shape))) or walk.tensors[out].shape != tuple(shape[a] for a in order):
        raise UserError(f"TRANSPOSE (operator {place}): the order {order} does not fit {shape} and its output")
    _same_grid(walk, place, op, given)
    strides = _strides(shape)
    dims = [(shape[a], strides[a], to) for a, to in zip(order, _strides(walk.tensors[out].shape), strict=True)]
    _strided(walk, place, op, given, dims)


def strided_slice(walk: Walk, place: int, op: tflite.Operator) -> None:
    """STRIDED_SLICE with constant bounds, forwards or backwards."""
    options, shape = op.options, walk.tensors[op.inputs[0]].shape
    if options.ellipsisMask or options.newAxisMask or getattr(options, "offset", False):
        raise UserError(f"STRIDED_SLICE (operator {place}) with an ellipsis, a new axis or offsets is not supported")
    begin, end, step = (_constant(walk, place, op, i).ravel().tolist() for i in op.inputs[1:4])
    if not len(begin) == len(end) == len(step) == len(shape) or 0 in step:
        raise UserError(f"STRIDED_SLICE (operator {place}): its bounds do not fit {shape}")
    parts = []
    for axis, size in enumerate(shape):
        bit, by = 1 << axis, step[axis]
        if options.shrinkAxisMask & bit:
            first = begin[axis] + size * (begin[axis] < 0)
            parts.append(range(first, first + 1))
        else:
            first = None if options.beginMask & bit else begin[axis]
            last = None if options.endMask & bit else end[axis]
            parts.append(range(size)[slice(first, last, by)])
    kept = tuple(len(p) for axis, p in enumerate(parts) if not options.shrinkAxisMask >> axis & 1)
    if kept != walk.tensors[op.outputs[0]].shape or any(
        p and not 0 <= p[0] < n for p, n in zip(parts, shape, strict=True)
    ):
        raise UserError(f"STRIDED_SLICE (operator {place}): its bounds do not give its output's shape")
    _sliced(walk, place, op, parts)


def slice_(walk: Walk, place: int, op: tflite.Operator) -> None:
    """SLICE with constant bounds."""
    shape, out = walk.tensors[op.inputs[0]].shape, walk.tensors[op.outputs[0]].shape
    begin = _constant(walk, place, op, op.inputs[1]).ravel().tolist()
    if len(begin) != len(shape) or any(b < 0 or b + n > s for b, n, s in zip(begin, out, shape, strict=True)):
        raise UserError(f"SLICE (operator {place}): its bounds do not fit {shape}")
    _sliced(walk, place, op, [range(b, b + n) for b, n in zip(begin, out, strict=True)])


def _sliced(walk, place, op, parts):
    """The values of a range of each axis."""
    given = op.inputs[0]
    _same_grid(walk, place, op, given)
    counts = [len(p) for p in parts]
    strides = _strides(walk.tensors[given].shape)
    dims = [(n, p.step * s, to) for n, p, s, to in zip(counts, parts, strides, _strides(counts), strict=True)]
    _strided(walk, place, op, given, dims, sum(p[0] * s for p, s in zip(parts, strides, strict=True)))


def blocks(walk: Walk, place: int, op: tflite.Operator) -> None:
    """DEPTH_TO_SPACE and SPACE_TO_DEPTH."""
    given, out, size = op.inputs[0], op.outputs[0], op.options.blockSize
    deep, wide = (given, out) if op.kind == "DEPTH_TO_SPACE" else (out, given)
    (n, h, w, c), shape = walk.tensors[deep].shape, walk.tensors[wide].shape
    if size < 1 or shape != (n, h * size, w * size, c // size**2) or c % size**2:
        raise UserError(f"{op.kind} (operator {place}): blocks of {size} do not fit {walk.tensors[given].shape}")
    _same_grid(walk, place, op, given)
    run = c // size
    dims = [(n * h, w * c, w * c), (size, run, w * run), (w, c, run), (run, 1, 1)]
    _strided(walk, place, op, given, dims if deep == given else [(k, to, of) for k, of, to in dims])


def space_batch(walk: Walk, place: int, op: tflite.Operator) -> None:
    """BATCH_TO_SPACE_ND, and SPACE_TO_BATCH_ND without padding."""
    given, out = op.inputs[0], op.outputs[0]
    size = _constant(walk, place, op, op.inputs[1]).ravel().tolist()
    edges = _constant(walk, place, op, op.inputs[2]).reshape(-1, 2)
    _same_grid(walk, place, op, given)
    many, one = (given, out) if op.kind == "BATCH_TO_SPACE_ND" else (out, given)
    big, small = walk.tensors[one].shape, walk.tensors[many].shape
    axes, rank = len(size), len(big)
    spread = [b + int(e) * (1 if one == given else -1) for b, e in zip(big[1 : axes + 1], edges.sum(1), strict=True)]
    if edges.min(initial=0) < 0 or rank != len(small) or not 1 <= axes <= 2 or min(size) < 1:
        raise UserError(f"{op.kind} (operator {place}) has blocks {size} and edges {edges.tolist()}")
    if one != given:
        spread = [s * k for s, k in zip(small[1 : axes + 1], size, strict=True)]
    wanted = (big[0] * math.prod(size), *(s // k for s, k in zip(spread, size, strict=True)), *big[axes + 1 :])
    if small != wanted or any(s % k for s, k in zip(spread, size, strict=True)):
        raise UserError(f"{op.kind} (operator {place}): {big} and {small} do not fit blocks {size}")
    if edges.any() and one == given:  # TFLite Micro leaves these bytes unwritten
        raise UserError(f"{op.kind} (operator {place}) with padding: TFLite Micro does not define its value")
    _spread(walk, place, op, given, one == given, size, edges[:, 0].tolist(), big, small)


def _spread(walk, place, op, given, divide, size, first, big, small):
    """A strided step for each offset within a block, of the positions that lie inside."""
    axes, of_big, of_small = len(size), _strides(big), _strides(small)
    for number, offset in enumerate(np.ndindex(*size)):
        dims, at_big, at_small = [(big[0], of_big[0], of_small[0])], 0, number * big[0] * of_small[0]
        for a in range(axes):
            start, by = offset[a] - first[a], size[a]  # position of the first of small's along big
            skip = -(-max(-start, 0) // by)
            count = min(small[a + 1] - skip, -(-(big[a + 1] - start - skip * by) // by))
            if count < 1:
                break
            at_big += (start + skip * by) * of_big[a + 1]
            at_small += skip * of_small[a + 1]
            dims.append((count, by * of_big[a + 1], of_small[a + 1]))
        else:
            rest = math.prod(big[axes + 1 :])
            dims.append((rest, 1, 1))
            if divide:
                _strided(walk, place, op, given, dims, at_big, at_small)
            else:
                _strided(walk, place, op, given, [(n, to, of) for n, of, to in dims], at_small, at_big)


def pad(walk: Walk, place: int, op: tflite.Operator) -> None:
    """PAD, and PADV2 with a constant value."""
    given, out = op.inputs[0], op.outputs[0]
    pads = _constant(walk, place, op, op.inputs[1]).reshape(-1, 2).astype(np.int64)
    shape, wide, zero = walk.tensors[given].shape, walk.tensors[out].shape, walk.grid(out)[1]
    _same_grid(walk, place, op, given)
    if len(op.inputs) > 2:
        zero = int(_constant(walk, place, op, op.inputs[2]).ravel()[0]) + OFFSET
    if len(pads) != len(shape) or (pads < 0).any() or tuple(np.add(shape, pads.sum(1))) != wide:
        raise UserError(f"{op.kind} (operator {place}): its padding does not give its output's shape")
    if len(shape) == 4 and shape[0] == wide[0] == 1 and max(wide) < LARGEST:
        before = pads[:, 0]
        values = dict(in_h=shape[1], in_w=shape[2], in_c=shape[3], out_h=wide[1], out_w=wide[2], out_c=wide[3])
        values |= dict(top=int(before[1]), left=int(before[2]), first=int(before[3]), zero=zero)
        walk.step("pad", op.kind, place, (walk.root(given),), out, values)
        return
    walk.step("fill", op.kind, place, (), out, dict(size=math.prod(wide), value=zero))
    strides = _strides(wide)
    dims = list(zip(shape, _strides(shape), strides, strict=True))
    _strided(walk, place, op, given, dims, to_start=int(sum(pads[:, 0] * strides)))


def resize_nearest(walk: Walk, place: int, op: tflite.Operator) -> None:
    """RESIZE_NEAREST_NEIGHBOR: which row and column each of the output's is."""
    given, out = op.inputs[0], op.outputs[0]
    _, *size, channels = walk.image(given, place, op)
    to = _size(walk, place, op)
    corners, half = op.options.alignCorners, np.float32(0.5 if op.options.halfPixelCenters else 0)
    tables = []
    for n, m in zip(size, to, strict=True):  # in float32, as TFLite
        scale = np.float32(n - 1) / np.float32(m - 1) if corners and m > 1 else np.float32(n) / np.float32(m)
        at = (np.arange(m, dtype=np.float32) + half) * scale
        at = np.floor(at + np.float32(0.5)) if corners else np.floor(at)
        tables.append(np.clip(at.astype(np.int64), 0, n - 1).astype(np.uint16))
    arrays = dict(rows=("uint16_t", tables[0]), columns=("uint16_t", tables[1]))
    fields = dict(in_w=size[1], channels=channels, out_h=to[0], out_w=to[1])
    values = dict(fields=fields, arrays=arrays) | walk.batch(given)
    walk.step("nearest", op.kind, place, (walk.root(given),), out, values)


def resize_bilinear(walk: Walk, place: int, op: tflite.Operator) -> None:
    """RESIZE_BILINEAR: the two rows and columns of each of the output's, and the second's part in 1/1024."""
    given, out = op.inputs[0], op.outputs[0]
    _, *size, channels = walk.image(given, place, op)
    to, corners = _size(walk, place, op), op.options.alignCorners
    tables = []
    for n, m in zip(size, to, strict=True):
        scale = (1024 * (n - 1) + (m - 1) // 2) // (m - 1) if corners and m > 1 else (1024 * n + m // 2) // m
        at = np.arange(m) * scale + (scale // 2 - 512 if op.options.halfPixelCenters else 0)
        low = np.maximum(np.trunc(at / 1024).astype(np.int64), 0)
        high = np.minimum(np.trunc((at + 1023) / 1024).astype(np.int64), n - 1)
        if low.max() >= n or high.min() < 0:
            raise UserError(f"RESIZE_BILINEAR (operator {place}) from {n} to {m}: TFLite reads beyond its input there")
        tables.append(np.stack([low, high, at - 1024 * low], 1).astype(np.int16))
    arrays = dict(rows=("int16_t", tables[0]), columns=("int16_t", tables[1]))
    fields = dict(in_w=size[1], channels=channels, out_h=to[0], out_w=to[1])
    values = dict(fields=fields, arrays=arrays) | walk.batch(given)
    walk.step("bilinear", op.kind, place, (walk.root(given),), out, values)


def _size(walk, place, op):
    """Height and width that an image gets."""
    shape = walk.tensors[op.outputs[0]].shape
    if _constant(walk, place, op, op.inputs[1]).ravel().tolist() != [*shape[1:3]] or max(shape) >= LARGEST:
        raise UserError(f"{op.kind} (operator {place}): its size is not that of its output, or {LARGEST:,} and more")
    if shape[3] != walk.tensors[op.inputs[0]].shape[3] or (op.options.alignCorners and op.options.halfPixelCenters):
        raise UserError(f"{op.kind} (operator {place}): its options or channels do not fit")
    _same_grid(walk, place, op, op.inputs[0])
    return shape[1:3]


def broadcast_to(walk: Walk, place: int, op: tflite.Operator) -> None:
    """BROADCAST_TO a shape that is known."""
    given, out = op.inputs[0], op.outputs[0]
    _same_grid(walk, place, op, given)
    _strided(walk, place, op, given, _repeated(walk.tensors[given].shape, walk.tensors[out].shape, place, op))


def broadcast(walk: Walk, place: int, op: tflite.Operator, i: int, shape: tuple[int, ...]) -> int | np.ndarray:
    """A tensor that is written out in full for a shape: its number, or its values where it is constant."""
    tensor = walk.tensors[i]
    if tensor.data is not None:
        return (np.broadcast_to(tensor.data, shape).ravel().astype(np.int64) + OFFSET).astype(np.uint8)
    if math.prod(tensor.shape) == math.prod(shape):
        return walk.root(i)
    out = walk.add(tensor._replace(shape=tuple(shape)))
    _strided(walk, place, op, i, _repeated(tensor.shape, shape, place, op), out=out)
    return out


def _repeated(shape, to, place, op):
    """Loops that write a tensor as often as a larger shape has it."""
    shape = (1,) * (len(to) - len(shape)) + tuple(shape)
    if len(shape) != len(to) or any(n not in (1, m) for n, m in zip(shape, to, strict=True)):
        raise UserError(f"{op.kind} (operator {place}): {shape} does not repeat to {tuple(to)}")
    strides = zip(shape, to, _strides(shape), _strides(to), strict=True)
    return [(m, 0 if n == 1 else of, at) for n, m, of, at in strides]


def _strided(walk, place, op, given, dims, from_start=0, to_start=0, out=None):
    """A step of nested loops, each a (count, stride of the input, stride of the output); an alias where all stays."""
    out = op.outputs[0] if out is None else out
    tensor = walk.tensors[given]
    merged = _merged(dims)
    whole = merged in ([], [(math.prod(tensor.shape), 1, 1)]) and not (from_start or to_start)
    if whole and tensor.data is None and tensor.dtype == "INT8" and walk.bytes(given) == walk.bytes(out):
        walk.alias[out] = given
        return
    block = merged.pop()[0] if merged and merged[-1][1:] == (1, 1) else 1
    if len(merged) > LOOPS:
        raise UserError(f"{op.kind} (operator {place}) needs {len(merged)} loops: at most {LOOPS} are supported")
    merged = [(1, 0, 0)] * (LOOPS - len(merged)) + merged
    fields = dict(from_start=from_start, to_start=to_start, block=block)
    fields |= {name: [m[k] for m in merged] for k, name in enumerate(("count", "of", "to"))}
    values = dict(fields=fields, arrays={})
    if tensor.data is not None:
        values["constant"] = (tensor.data.ravel().astype(np.int64) + OFFSET).astype(np.uint8)
    walk.step("strided", op.kind, place, () if tensor.data is not None else (walk.root(given),), out, values)


def _merged(dims):
    """Loops in the order of the output, without those of one pass, and two as one where their strides allow it."""
    found: list[tuple[int, int, int]] = []
    for count, of, to in sorted((d for d in dims if d[0] > 1), key=lambda d: -d[2]):
        if found and found[-1][1] == count * of and found[-1][2] == count * to:
            found[-1] = (found[-1][0] * count, of, to)
        else:
            found.append((count, of, to))
    return found


def _strides(shape):
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def _same_grid(walk, place, op, given, out=None):
    if walk.grid(given) != walk.grid(op.outputs[0] if out is None else out):
        raise UserError(f"{op.kind} (operator {place}) changes the scale")


def _constant(walk, place, op, i):
    data = walk.tensors[i].data
    if data is None:
        raise UserError(
            f"{op.kind} (operator {place}): {walk.tensors[i].name!r} is computed; only constants are supported"
        )
    return data

"""Files of one operator each, or few: every kind of operand, axis and option that code generation supports."""

import itertools

import numpy as np
from flat_models import Net

RANDOM = np.random.default_rng(0)
CONVERTED = ("UINT8", "INT8", "FLOAT32")  # types at a border
SHAPE = (2, 4, 6, 3)


def _weights(net, shape, scales, axis=0):
    return net.tensor(shape, scales, 0, RANDOM.integers(-127, 128, shape), axis=axis)


def _bias(net, scales):
    return net.tensor(scales.shape, scales, 0, RANDOM.integers(-3000, 3000, scales.size), "INT32")


def _scales(count):
    return RANDOM.uniform(0.002, 0.01, count)


def borders():
    """uint8 and float32 at both ends, and conversions inside."""
    shape = (1, 5, 6, 3)
    for given, gotten in itertools.product(CONVERTED, CONVERTED):
        net = Net()
        x = net.given(shape, *(() if given == "FLOAT32" else (0.04, 120 if given == "UINT8" else 9)), dtype=given)
        x = net.op("QUANTIZE", [x], net.tensor(shape, 0.04, -8))
        x = net.op("TANH", [x], net.tensor(shape, 1 / 128, 0))
        if gotten == "FLOAT32":
            out = net.op("DEQUANTIZE", [x], net.tensor(shape, dtype="FLOAT32"))
        else:
            grid = (0.01, 100) if given == gotten else (1 / 128, 128 if gotten == "UINT8" else 7)
            out = net.op("QUANTIZE", [x], net.tensor(shape, *grid, dtype=gotten))
        yield f"{given} {gotten}", net.file(out)
    net = Net()
    x = net.given(shape, 0.04, 12)
    y = net.op("DEQUANTIZE", [x], net.tensor(shape, dtype="FLOAT32"))
    z = net.op("RESHAPE", [y, net.ints(1, 90)], net.tensor((1, 90), dtype="FLOAT32"))
    yield "inside", net.file(net.op("QUANTIZE", [z], net.tensor((1, 90), 0.0437, -5)), y)
    net = Net()
    x = net.given((1, 90), dtype="FLOAT32")
    x = net.op("RESHAPE", [x, net.ints(*shape)], net.tensor(shape, dtype="FLOAT32"))
    yield "reshaped", net.file(net.op("QUANTIZE", [x], net.tensor(shape, 0.04, -3)))


def resizes():
    """To larger and smaller images, in every way that TFLite knows."""
    for size, (corners, half) in itertools.product(
        ((9, 7), (3, 2), (5, 12), (10, 12), (1, 1)), ((0, 0), (0, 1), (1, 0))
    ):
        for kind in ("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"):
            net = Net()
            x, out = net.given((2, 5, 6, 3), 0.04, 3), net.tensor((2, *size, 3), 0.04, 3)
            options = dict(alignCorners=bool(corners), halfPixelCenters=bool(half))
            yield f"{kind} {size} {corners} {half}", net.file(net.op(kind, [x, net.ints(*size)], out, **options))


def moves():
    """Turned, cut, joined, spread."""
    for shape, order in (
        *(((1, 4, 5, 3), (0, 2, 1, 3)), ((1, 4, 5, 3), (0, 3, 1, 2)), ((2, 3, 4, 5), (3, 1, 0, 2)), ((3, 4), (1, 0))),
        *(((2, 3, 2, 3, 2), (4, 2, 0, 3, 1)), ((1, 4, 1, 3), (0, 2, 1, 3)), ((2, 3, 4, 5), (0, 1, 2, 3))),
    ):
        net = Net()
        x, out = net.given(shape, 0.04, 3), net.tensor([shape[a] for a in order], 0.04, 3)
        yield f"TRANSPOSE {shape} {order}", net.file(net.op("TRANSPOSE", [x, net.ints(*order)], out))
    yield from _slices()
    for axis in range(4):
        yield from _joined(axis)
    for kind, deep in (("DEPTH_TO_SPACE", (2, 8, 12, 3)), ("SPACE_TO_DEPTH", (2, 2, 3, 48))):
        net = Net()
        yield kind, net.file(net.op(kind, [net.given((2, 4, 6, 12), 0.04, 3)], net.tensor(deep, 0.04, 3), blockSize=2))
    net = Net()
    x, block, none = net.given((1, 6, 9, 3), 0.04, 3), net.ints(2, 3), net.ints(0, 0, 0, 0, shape=(2, 2))
    y = net.op("SPACE_TO_BATCH_ND", [x, block, none], net.tensor((6, 3, 3, 3), 0.04, 3))
    crops = net.ints(2, 1, 0, 1, shape=(2, 2))
    z = net.op("BATCH_TO_SPACE_ND", [y, net.ints(3, 2), crops], net.tensor((1, 6, 5, 3), 0.04, 3))
    yield "SPACE_TO_BATCH_ND", net.file(y, z)
    net = Net()
    x = net.op("BROADCAST_TO", [net.given((2, 1, 3), 0.04, 3), net.ints(2, 2, 4, 3)], net.tensor((2, 2, 4, 3), 0.04, 3))
    yield "BROADCAST_TO", net.file(x)
    for shape, pads, value in (
        *(((1, 3, 4, 2), ((0, 0), (1, 2), (0, 1), (0, 0)), None), ((3, 4), ((1, 0), (0, 2)), None)),
        *(((2, 3, 4, 2), ((0, 0), (1, 2), (0, 1), (2, 0)), None), ((3, 4), ((1, 0), (0, 2)), 17)),
        ((1, 3, 4, 2), ((0, 0), (1, 2), (0, 1), (0, 0)), -100),
    ):
        net = Net()
        given = [net.given(shape, 0.03, -7), net.ints(*np.ravel(pads), shape=(len(shape), 2))]
        given += [] if value is None else [net.tensor((1,), 0.03, -7, [value])]
        wide = [n + sum(p) for n, p in zip(shape, pads, strict=True)]
        yield f"PAD {shape} {value}", net.file(net.op("PADV2" if value else "PAD", given, net.tensor(wide, 0.03, -7)))


def _slices():
    shape = (1, 4, 6, 3)
    for begin, end, step, first, last, shrink in (
        ((0, 1, 2, 0), (1, 4, 6, 3), (1, 1, 2, 1), 0, 0, 0),
        ((0, 3, 5, 2), (1, 0, 0, -4), (1, -1, -2, -1), 0, 0, 0),
        ((0, -2, 0, 0), (0, 0, 0, 2), (1, 1, 1, 1), 5, 7, 2),
        ((0, 0, 0, 0), (1, 4, 6, 3), (1, 2, 3, 1), 15, 15, 0),
    ):
        net, out = Net(), []
        for axis, n in enumerate(shape):
            bounds = [None if mask >> axis & 1 else b[axis] for mask, b in ((first, begin), (last, end))]
            out += [] if shrink >> axis & 1 else [len(range(n)[slice(*bounds, step[axis])])]
        given = [net.given(shape, 0.04, 3), net.ints(*begin), net.ints(*end), net.ints(*step)]
        masks = dict(beginMask=first, endMask=last, shrinkAxisMask=shrink)
        yield f"STRIDED_SLICE {begin}", net.file(net.op("STRIDED_SLICE", given, net.tensor(out, 0.04, 3), **masks))
    net = Net()
    given = [net.given(SHAPE, 0.04, 3), net.ints(1, 0, 2, 1), net.ints(1, -1, 3, 2)]
    yield "SLICE", net.file(net.op("SLICE", given, net.tensor((1, 4, 3, 2), 0.04, 3)))


def _joined(axis):
    """SPLIT, SPLIT_V, CONCATENATION of computed and constant tensors, UNPACK and PACK along an axis."""
    half = [n // 2 if a == axis and n % 2 == 0 else n for a, n in enumerate(SHAPE)]
    count = SHAPE[axis] // half[axis]
    net = Net()
    outs = [net.tensor(half, 0.04, 3) for _ in range(count)]
    net.op("SPLIT", [net.ints(axis, shape=()), net.given(SHAPE, 0.04, 3)], *outs, numSplits=count)
    yield f"SPLIT {axis}", net.file(*outs)
    if SHAPE[axis] > 2:
        net, sizes = Net(), (1, SHAPE[axis] - 1)
        outs = [net.tensor([n if a == axis else m for a, m in enumerate(SHAPE)], 0.04, 3) for n in sizes]
        given = [net.given(SHAPE, 0.04, 3), net.ints(*sizes), net.ints(axis, shape=())]
        net.op("SPLIT_V", given, *outs, numSplits=2)
        yield f"SPLIT_V {axis}", net.file(*outs)
    net = Net()
    x, one = net.given(SHAPE, 0.04, 3), [1 if a == axis else n for a, n in enumerate(SHAPE)]
    y, fixed = (
        net.op("TANH", [x], net.tensor(SHAPE, 1 / 128, 0)),
        net.tensor(one, 1 / 128, 0, RANDOM.integers(-99, 99, one)),
    )
    z = net.op("LOGISTIC", [x], net.tensor(SHAPE, 1 / 256, -128))
    z = net.op("QUANTIZE", [z], net.tensor(SHAPE, 1 / 128, 0))
    wide = [2 * n + 1 if a == axis else n for a, n in enumerate(SHAPE)]
    out = net.op("CONCATENATION", [y, fixed, z], net.tensor(wide, 1 / 128, 0), axis=axis - 4)
    yield f"CONCATENATION {axis}", net.file(out)
    net, rest = Net(), [n for a, n in enumerate(SHAPE) if a != axis]
    outs = [net.tensor(rest, 0.04, 3) for _ in range(SHAPE[axis])]
    net.op("UNPACK", [net.given(SHAPE, 0.04, 3)], *outs, num=len(outs), axis=axis)
    packed = net.tensor([rest[0], len(outs), *rest[1:]], 0.04, 3)
    yield f"PACK {axis}", net.file(net.op("PACK", outs[::-1], packed, axis=1, valuesCount=len(outs)))


def reductions():
    """Over each set of axes, kept or not."""
    for axes, kept in itertools.product(
        ((1, 2), (1,), (3,), (0,), (0, 2), (1, 3), (2, -1), (0, 1, 2, 3)), (True, False)
    ):
        out = [1 if a in {b % 4 for b in axes} else n for a, n in enumerate(SHAPE)]
        out = out if kept else [n for a, n in enumerate(SHAPE) if a not in {b % 4 for b in axes}]
        for kind, grid in (
            ("MEAN", (0.02, -5)),
            ("SUM", (0.2, 4)),
            ("REDUCE_MAX", (0.04, 3)),
            ("REDUCE_MIN", (0.04, 3)),
        ):
            net = Net()
            given = [net.given(SHAPE, 0.04, 3), net.ints(*axes)]
            yield f"{kind} {axes} {kept}", net.file(net.op(kind, given, net.tensor(out, *grid), keepDims=kept))
    for kind, axis in itertools.product(("ARG_MAX", "ARG_MIN"), (0, 1, -1)):
        net, shape = Net(), [3, 5, 40]
        given = [net.given(shape, 0.5, 3), net.ints(axis, shape=())]
        shape.pop(axis)
        yield f"{kind} {axis}", net.file(net.op(kind, given, net.tensor(shape, dtype="INT32")))
    places = net.op("RESHAPE", [net.graph.outputs[0], net.ints(15)], net.tensor([15], dtype="INT32"))
    yield "ARG_MIN and RESHAPE", net.file(places)


def elementwise():
    """Of one tensor, and of two that repeat in each way or are constant."""
    grids = dict(LOGISTIC=(1 / 256, -128), TANH=(1 / 128, 0))
    for kind in ("ABS", "ELU", "HARD_SWISH", "LEAKY_RELU", "RELU", "RELU6", "LOGISTIC", "TANH"):
        net = Net()
        options = dict(alpha=0.3) if kind == "LEAKY_RELU" else {}
        out = net.tensor((1, 300), *grids.get(kind, (0.03, -5)))
        yield kind, net.file(net.op(kind, [net.given((1, 300), 0.04, 3)], out, **options))
    shapes = (
        *(((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (4,)), ((4,), (2, 3, 4)), ((2, 1, 4), (1, 3, 1)), ((2, 3, 1), (2, 3, 4))),
        *(((1,), (2, 3, 4)), ((2, 1, 4), (2, 3, 4))),
    )
    kinds = ("ADD", "SUB", "MUL", "SQUARED_DIFFERENCE", "MAXIMUM", "MINIMUM")
    for kind, pair, fixed in itertools.product(kinds, shapes, (None, 0, 1)):
        same = kind in ("MAXIMUM", "MINIMUM")
        net, grids_of = Net(), ((0.03, -7), (0.03, -7) if same else (0.05, 20))
        given = [
            net.tensor(shape, *grid, RANDOM.integers(-128, 128, shape)) if fixed == n else net.given(shape, *grid)
            for n, (shape, grid) in enumerate(zip(pair, grids_of, strict=True))
        ]
        out = net.tensor(np.broadcast_shapes(*pair), *((0.03, -7) if same else (0.02, 3)))
        yield f"{kind} {pair} {fixed}", net.file(net.op(kind, given, out))
    for shape, alpha in (((2, 3, 4), (1, 1, 4)), ((2, 3, 4), (3, 1)), ((1, 5, 6, 4), (1, 1, 4))):
        net = Net()
        given = [net.given(shape, 0.03, -7), net.tensor(alpha, 0.01, 3, RANDOM.integers(-128, 128, alpha))]
        yield f"PRELU {shape}", net.file(net.op("PRELU", given, net.tensor(shape, 0.025, 6)))


def linear():
    """Transposed convolutions, products of two tensors, batches, dilation and multipliers."""
    for stride, kernel, same, activation, batch in itertools.product(
        ((1, 1), (2, 3), (3, 1)), ((3, 3), (2, 4), (1, 1), (5, 2)), (True, False), (0, 1), (1, 2)
    ):
        net, scales = Net(), _scales(5)
        out = [i * s if same else (i - 1) * s + k for i, s, k in zip((3, 4), stride, kernel, strict=True)]
        given = [
            net.ints(batch, *out, 5),
            _weights(net, (5, *kernel, 3), scales),
            net.given((batch, 3, 4, 3), 0.03, -7),
        ]
        given += [_bias(net, scales * 0.03)] if activation else []
        options = dict(
            strideH=stride[0], strideW=stride[1], padding=0 if same else 1, fusedActivationFunction=activation
        )
        y = net.op("TRANSPOSE_CONV", given, net.tensor((batch, *out, 5), 0.05, 4), **options)
        yield f"TRANSPOSE_CONV {stride} {kernel} {same} {activation} {batch}", net.file(y)
    for a, b, turn_a, turn_b in (
        *(
            ((2, 3, 4), (2, 4, 5), 0, 0),
            ((2, 4, 3), (2, 4, 5), 1, 0),
            ((2, 3, 4), (2, 5, 4), 0, 1),
            ((3, 4), (4, 5), 0, 0),
        ),
        *(((2, 4, 3), (2, 5, 4), 1, 1), ((2, 3, 4), (1, 4, 5), 0, 0), ((1, 3, 4), (3, 4, 5), 0, 0)),
        *(((2, 3, 4), (5, 4), 0, 1), ((2, 2, 3, 4), (2, 2, 4, 5), 0, 0), ((2, 3, 4), (4, 5), 0, 0)),
    ):
        net = Net()
        out = (*np.broadcast_shapes(a[:-2], b[:-2]), a[-1 if turn_a else -2], b[-2 if turn_b else -1])
        given, turned = [net.given(a, 0.03, -7), net.given(b, 0.04, 9)], dict(adjX=bool(turn_a), adjY=bool(turn_b))
        yield f"BATCH_MATMUL {a} {b}", net.file(net.op("BATCH_MATMUL", given, net.tensor(out, 0.05, 2), **turned))
    for batch, dilation in itertools.product((1, 3), (1, 2)):
        yield f"batch {batch} {dilation}", _batch(batch, dilation)
    for activation in (0, 1):
        yield f"still channels {activation}", still(activation)


def _batch(batch, dilation):
    """Every kind of layer with weights or a window, on several images."""
    net = Net()
    x, scales = net.given((batch, 7, 9, 3), 0.03, -7), _scales(5)
    options = dict(strideH=1, strideW=1, padding=0, dilationHFactor=dilation, dilationWFactor=dilation)
    given = [x, _weights(net, (5, 3, 3, 3), scales), _bias(net, scales * 0.03)]
    x, scales = net.op("CONV_2D", given, net.tensor((batch, 7, 9, 5), 0.05, 4), **options), _scales(10)
    given = [x, _weights(net, (1, 3, 3, 10), scales, 3), _bias(net, scales * 0.05)]
    options |= dict(depthMultiplier=2, fusedActivationFunction=1)
    x = net.op("DEPTHWISE_CONV_2D", given, net.tensor((batch, 7, 9, 10), 0.02, 14), **options)
    options = dict(strideH=2, strideW=2, filterHeight=2, filterWidth=2, padding=1)
    x = net.op("MAX_POOL_2D", [x], net.tensor((batch, 3, 4, 10), 0.02, 14), **options)
    options = dict(strideH=1, strideW=1, filterHeight=3, filterWidth=3, padding=0)
    x = net.op("AVERAGE_POOL_2D", [x], net.tensor((batch, 3, 4, 10), 0.02, 14), **options)
    given = [x, _weights(net, (6, 10), 0.01), net.tensor((6,), 0.0002, 0, RANDOM.integers(-99, 99, 6), "INT32")]
    return net.file(net.op("FULLY_CONNECTED", given, net.tensor((batch * 12, 6), 0.02, 4)))


STILL = (False, True, False, True, True, False)  # the output channels of `still` that have one value for every input


def still(activation=0):
    """Convolutions with channels of scales so small, or biases so large, that inputs change nothing, or little."""
    scales = np.array([0.004, 1e-10, 2e-5, 0.1, 0.1, 0.003])
    net = Net()
    x = net.given((1, 5, 6, 6), 0.03, -7)
    for kind, shape, axis in (("CONV_2D", (6, 3, 3, 6), 0), ("DEPTHWISE_CONV_2D", (1, 3, 3, 6), 3)):
        biases = np.array([50, 2**30, 9, 2_000_000, -2_000_000, -70])
        bias = net.tensor((6,), scales * net.grid(x)[0], 0, biases, "INT32")
        options = dict(strideH=1, strideW=1, padding=0, dilationHFactor=1, dilationWFactor=1)
        options |= dict(fusedActivationFunction=activation) | (dict(depthMultiplier=1) if axis else {})
        x = net.op(kind, [x, _weights(net, shape, scales, axis), bias], net.tensor((1, 5, 6, 6), 0.05, 4), **options)
    return net.file(x)


def wide():
    """int16 activations and int8 weights, with biases of 64 bits and of 32."""
    for bias, batch in itertools.product(("INT64", "INT32", None), (1, 2)):
        net, scales = Net(), _scales(5)
        x = net.given((batch, 5, 6, 4), 0.0002, dtype="INT16")
        given = [x, _weights(net, (5, 3, 2, 4), scales)]
        given += [net.tensor((5,), scales * 0.0002, 0, RANDOM.integers(-90_000, 90_000, 5), bias)] if bias else []
        options = dict(strideH=1, strideW=1, padding=0, dilationHFactor=2, dilationWFactor=1, fusedActivationFunction=1)
        y = net.op("CONV_2D", given, net.tensor((batch, 5, 6, 5), 0.0003, 0, dtype="INT16"), **options)
        scales = _scales(10)
        given = [y, _weights(net, (1, 3, 3, 10), scales, 3)]
        given += [net.tensor((10,), scales * 0.0003, 0, RANDOM.integers(-90_000, 90_000, 10), "INT64")]
        options = dict(strideH=2, strideW=2, padding=1, dilationHFactor=1, dilationWFactor=1, depthMultiplier=2)
        y = net.op("DEPTHWISE_CONV_2D", given, net.tensor((batch, 2, 2, 10), 0.0002, 0, dtype="INT16"), **options)
        y = net.op("RESHAPE", [y, net.ints(batch, 40)], net.tensor((batch, 40), 0.0002, 0, dtype="INT16"))
        given = [y, _weights(net, (7, 40), 0.004)]
        given += [net.tensor((7,), 0.004 * 0.0002, 0, RANDOM.integers(-90_000, 90_000, 7), bias)] if bias else []
        yield (
            f"16x8 {bias} {batch}",
            net.file(net.op("FULLY_CONNECTED", given, net.tensor((batch, 7), 0.0002, 0, dtype="INT16"))),
        )
    for kind, other, fixed in itertools.product(("ADD", "MUL"), ((2, 3, 4), (4,), (2, 1, 1)), (False, True)):
        net = Net()
        x = net.given((2, 3, 4), 0.0002, dtype="INT16")
        data = RANDOM.integers(-32768, 32768, other) if fixed else None
        y = net.tensor(other, 0.0003, 0, data, "INT16") if fixed else net.given(other, 0.0003, dtype="INT16")
        out = net.tensor((2, 3, 4), 0.0005 if kind == "ADD" else 0.001, 0, dtype="INT16")
        order = [y, x] if fixed else [x, y]
        yield f"16x8 {kind} {other} {fixed}", net.file(net.op(kind, order, out, fusedActivationFunction=1 * fixed))


GROUPS = dict(
    borders=borders,
    resizes=resizes,
    moves=moves,
    reductions=reductions,
    elementwise=elementwise,
    linear=linear,
    wide=wide,
)

"""Random small int8 networks over every operator that code generation supports; the same seed gives the same file."""

import numpy as np
from flat_models import Net

MOST = 160  # values of a tensor
BORDERS = ("INT8", "UINT8", "FLOAT32")
ACTIVATIONS = (0, 0, 1, 2, 3)  # none, RELU, RELU_N1_TO_1, RELU6


class Random:
    """A network that grows by operators on tensors that it has."""

    def __init__(self, seed: int):
        self.net, self.random = Net(), np.random.default_rng(seed)
        self.kinds: list[str] = []
        self.outputs: list[int] = []

    def number(self, low, high) -> int:
        return int(self.random.integers(low, high + 1))

    def one(self, of):
        return of[self.number(0, len(of) - 1)]

    def zero(self) -> int:
        return self.number(-128, 127) if self.random.random() < 0.2 else self.number(-40, 40)

    def scale(self, around: float) -> float:
        return float(np.float32(around * self.random.uniform(0.5, 2)))

    def out(self, shape, scale, zero=None) -> int:
        return self.net.tensor(shape, scale, self.zero() if zero is None else zero)

    def like(self, x, shape) -> int:
        """An output of the same scale."""
        return self.net.tensor(shape, *self.net.grid(x))

    def op(self, kind, inputs, *outputs, **options) -> int:
        self.kinds.append(kind)
        return self.net.op(kind, inputs, *outputs, **options)

    def weights(self, shape, scales, axis=0) -> int:
        codes = self.random.integers(*self.one(((-127, 128), (-127, 128), (-8, 8), (-1, 2))), shape)
        codes[self.random.random(shape) < self.one((0.0, 0.5, 0.9))] = 0
        return self.net.tensor(shape, scales, 0, codes, axis=axis)

    def bias(self, scales) -> int:
        return self.net.tensor(scales.shape, scales, 0, self.random.integers(-2000, 2000, scales.size), "INT32")

    def unary(self, kind, scale=None, zero=None, **options):
        """An operator of one tensor on a grid of its own."""

        def add(x):
            given = self.net.grid(x)[0]
            out = self.out(self.net.shape(x), scale or self.scale(given), zero)
            return self.op(kind, [x], out, **options)

        return add


def network(seed: int) -> tuple[bytes, list[str]]:
    """A file, and the operators in it."""
    r = Random(seed)
    if seed % 10 == 9:
        return _wide(r), r.kinds
    x = _given(r, r.one(BORDERS))
    for _ in range(r.number(2, 4)):
        names = [n for n, (fits, _) in STEPS.items() if fits(r.net.shape(x))]
        x = STEPS[r.one(names)][1](r, x)
        if np.prod(r.net.shape(x)) > MOST:
            x = _smaller(r, x)
    return r.net.file(*r.outputs, *_gotten(r, x)), r.kinds


def _wide(r):
    """A file of int16 activations: convolutions of both kinds, a sum or a product, a matrix product."""
    shape, scale = r.one(((1, 5, 4, 3), (2, 3, 5, 2))), 0.0002
    x, names = r.net.given(shape, scale, dtype="INT16"), ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MUL")
    for kind in (r.one(names), r.one(names), "FULLY_CONNECTED"):
        shape, scale = r.net.shape(x), r.net.grid(x)[0]
        fused = dict(fusedActivationFunction=r.one(ACTIVATIONS))
        if kind in ("ADD", "MUL"):
            other = r.net.tensor(shape[-1:], r.scale(scale), 0, r.random.integers(-32768, 32768, shape[-1]), "INT16")
            out = r.scale(scale * (1.5 if kind == "ADD" else 3))
            x = r.op(kind, [x, other], r.net.tensor(shape, out, 0, dtype="INT16"), **fused)
            continue
        kernel, _, options, out = _window(r, shape)
        flat = kind == "FULLY_CONNECTED"
        times = 1 if kind == "DEPTHWISE_CONV_2D" else r.number(1, 4)
        count = shape[3] if kind == "DEPTHWISE_CONV_2D" else times
        options |= dict(strideH=1, strideW=1, padding=0, dilationHFactor=1, dilationWFactor=1) if not flat else {}
        sizes = {"CONV_2D": (count, *kernel, shape[-1]), "DEPTHWISE_CONV_2D": (1, *kernel, count)}
        size = (count, shape[-1]) if flat else sizes[kind]
        scales = np.full(1, 0.004) if flat else r.random.uniform(0.002, 0.01, count)
        codes = r.random.integers(-30_000, 30_000, count)
        given = [x, r.weights(size, scales, 3 if kind == "DEPTHWISE_CONV_2D" else 0)]
        given += [r.net.tensor((count,), scales * scale, 0, codes, "INT64")]
        wide = (int(np.prod(shape[:-1])), count) if flat else (*shape[:3], count)
        y = r.net.tensor(wide, r.scale(scale * 0.5), 0, dtype="INT16")
        if kind == "DEPTHWISE_CONV_2D":
            options |= dict(depthMultiplier=1)
        x = r.op(kind, given, y, **({} if flat else options), **fused)
    return r.net.file(x)


def _given(r, dtype):
    """An input of the graph, as int8."""
    shape = r.one(((1, 5, 6, 3), (1, 4, 8, 4), (2, 3, 5, 4), (1, 7, 3, 2), (1, 6, 1, 8), (3, 4, 6), (2, 30), (1, 40)))
    if dtype == "INT8":
        return r.net.given(shape, r.scale(0.04), r.zero())
    x = r.net.given(shape, *(() if dtype == "FLOAT32" else (r.scale(0.04), r.number(90, 160))), dtype=dtype)
    return r.op("QUANTIZE", [x], r.out(shape, r.scale(0.04)))


def _gotten(r, x):
    """Outputs of the graph."""
    shape, dtype = r.net.shape(x), r.one((*BORDERS, "INT32"))
    if dtype == "FLOAT32":
        return (r.op("DEQUANTIZE", [x], r.net.tensor(shape, dtype="FLOAT32")),)
    if dtype == "UINT8":
        scale, zero = r.net.grid(x)
        grid = (scale, zero + 128) if r.number(0, 1) else (r.scale(scale), r.number(90, 160))
        return (r.op("QUANTIZE", [x], r.net.tensor(shape, *grid, dtype="UINT8")),)
    if dtype == "INT32" and len(shape) > 1:
        axis = r.number(0, len(shape) - 1)
        kind, given = r.one(("ARG_MAX", "ARG_MIN")), [x, r.net.ints(axis, shape=())]
        return x, r.op(kind, given, r.net.tensor(shape[:axis] + shape[axis + 1 :], dtype="INT32"))
    return (x,)


def _smaller(r, x):
    shape = r.net.shape(x)
    axis = int(np.argmax(shape))
    size = [max(1, n * MOST // int(np.prod(shape))) if a == axis else n for a, n in enumerate(shape)]
    return r.op("SLICE", [x, r.net.ints(*[0] * len(shape)), r.net.ints(*size)], r.like(x, size))


def _spread(r, x, scales, taps):
    """A scale that the sums of so many products fill."""
    return r.scale(r.net.grid(x)[0] * float(np.mean(scales)) * np.sqrt(taps) * 74 * 40 / 60)


def _window(r, shape, most=3):
    """(kernel, strides, padding, output's height and width)."""
    kernel = [r.number(1, min(most, n)) for n in shape[1:3]]
    strides, same = [r.number(1, 2) for _ in range(2)], bool(r.number(0, 1))
    sizes = zip(shape[1:3], kernel, strides, strict=True)
    out = [-(-n // s) if same else (n - k) // s + 1 for n, k, s in sizes]
    return kernel, strides, dict(strideH=strides[0], strideW=strides[1], padding=0 if same else 1), out


def _conv(r, x):
    shape = r.net.shape(x)
    kernel, _, options, out = _window(r, shape)
    count, scales = r.number(1, 6), None
    scales = r.random.uniform(0.002, 0.01, count)
    dilation = r.number(1, 2) if options["padding"] == 0 and options["strideH"] == options["strideW"] == 1 else 1
    given = [x, r.weights((count, *kernel, shape[3]), scales)]
    given += [r.bias(scales * r.net.grid(x)[0])] if r.number(0, 3) else [-1]
    y = r.out((shape[0], *out, count), _spread(r, x, scales, np.prod(kernel) * shape[3]))
    options |= dict(dilationHFactor=dilation, dilationWFactor=dilation, fusedActivationFunction=r.one(ACTIVATIONS))
    return r.op("CONV_2D", given, y, **options)


def _depthwise(r, x):
    shape = r.net.shape(x)
    kernel, strides, options, out = _window(r, shape)
    strides[:] = [min(strides)] * 2
    options |= dict(strideH=strides[0], strideW=strides[0])
    same = options["padding"] == 0
    sizes = zip(shape[1:3], kernel, strides, strict=True)
    out = [-(-n // s) if same else (n - k) // s + 1 for n, k, s in sizes]
    times = r.number(1, 2)
    scales = r.random.uniform(0.002, 0.01, shape[3] * times)
    given = [x, r.weights((1, *kernel, shape[3] * times), scales, 3), r.bias(scales * r.net.grid(x)[0])]
    y = r.out((shape[0], *out, shape[3] * times), _spread(r, x, scales, np.prod(kernel)))
    options |= dict(depthMultiplier=times, fusedActivationFunction=r.one(ACTIVATIONS))
    return r.op("DEPTHWISE_CONV_2D", given, y, dilationHFactor=1, dilationWFactor=1, **options)


def _turned_conv(r, x):
    shape = r.net.shape(x)
    kernel, strides, options, _ = _window(r, shape)
    sizes = zip(shape[1:3], kernel, strides, strict=True)
    out = [n * s if options["padding"] == 0 else (n - 1) * s + k for n, k, s in sizes]
    count = r.number(1, 3)
    scales = r.random.uniform(0.002, 0.01, count)
    given = [r.net.ints(shape[0], *out, count), r.weights((count, *kernel, shape[3]), scales), x]
    given += [r.bias(scales * r.net.grid(x)[0])] if r.number(0, 1) else []
    y = r.out((shape[0], *out, count), _spread(r, x, scales, np.prod(kernel) * shape[3]))
    return r.op("TRANSPOSE_CONV", given, y, **options, fusedActivationFunction=r.one((0, 1)))


def _dense(r, x):
    shape, count = r.net.shape(x), r.number(1, 9)
    scales = np.array([r.scale(0.005)])
    given = [x, r.weights((count, shape[-1]), scales)]
    given += [r.net.tensor((count,), scales * r.net.grid(x)[0], 0, r.random.integers(-2000, 2000, count), "INT32")]
    y = r.out((int(np.prod(shape[:-1])), count), _spread(r, x, scales, shape[-1]))
    return r.op("FULLY_CONNECTED", given, y, fusedActivationFunction=r.one(ACTIVATIONS))


def _product(r, x):
    """BATCH_MATMUL with itself turned."""
    shape = r.net.shape(x)
    turn = r.number(0, 1)
    out = (*shape[:-2], *[shape[-1] if turn else shape[-2]] * 2)
    scale = r.net.grid(x)[0]
    y = r.out(out, _spread(r, x, [scale], shape[-2 if turn else -1]))
    return r.op("BATCH_MATMUL", [x, x], y, adjX=bool(turn), adjY=not turn)


def _pool(r, x):
    shape, kind = r.net.shape(x), r.one(("MAX_POOL_2D", "AVERAGE_POOL_2D"))
    kernel, _, options, out = _window(r, shape)
    options |= dict(filterHeight=kernel[0], filterWidth=kernel[1], fusedActivationFunction=r.one(ACTIVATIONS))
    return r.op(kind, [x], r.like(x, (shape[0], *out, shape[3])), **options)


def _pair(r, x):
    """With a constant, or with a function of itself; of a shape that may repeat."""
    shape, kind = r.net.shape(x), r.one(("ADD", "SUB", "MUL", "SQUARED_DIFFERENCE", "MAXIMUM", "MINIMUM", "PRELU"))
    scale, zero = r.net.grid(x)
    same = kind in ("MAXIMUM", "MINIMUM")
    grid = (scale, zero) if same else (r.scale(0.01 if kind == "PRELU" else scale), r.zero())
    if kind == "PRELU" or r.number(0, 1):
        other = r.one(((1,) * len(shape), shape[-1:], shape, tuple(n if r.number(0, 1) else 1 for n in shape)))
        y = r.net.tensor(other, *grid, r.random.integers(-128, 128, other))
    else:
        y = r.op("TANH", [x], r.net.tensor(shape, 1 / 128, 0))
        grid = (1 / 128, 0)
        if same:
            y = r.op("QUANTIZE", [y], r.net.tensor(shape, scale, zero))
    times = dict(MUL=grid[0] * 40, SQUARED_DIFFERENCE=120 * max(scale, grid[0]))
    out = r.net.tensor(shape, scale, zero) if same else r.out(shape, r.scale(scale * times.get(kind, 1.2)))
    given = [y, x] if kind != "PRELU" and r.number(0, 1) else [x, y]
    options = dict(fusedActivationFunction=r.one(ACTIVATIONS)) if kind in ("ADD", "SUB", "MUL") else {}
    return r.op(kind, given, out, **options)


def _function(r, x):
    kind = r.one(("ABS", "ELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "QUANTIZE", "RELU", "RELU6", "RSQRT", "TANH"))
    if kind == "RSQRT":  # of values that are not negative
        x = r.op("RELU", [x], r.net.tensor(r.net.shape(x), r.net.grid(x)[0], -128))
    grid = dict(LOGISTIC=(1 / 256, -128), TANH=(1 / 128, 0)).get(kind, ())
    options = dict(alpha=float(np.float32(r.random.uniform(0.01, 0.5)))) if kind == "LEAKY_RELU" else {}
    return r.unary(kind, *grid, **options)(x)


def _through_float(r, x):
    y = r.op("DEQUANTIZE", [x], r.net.tensor(r.net.shape(x), dtype="FLOAT32"))
    return r.op("QUANTIZE", [y], r.out(r.net.shape(x), r.scale(r.net.grid(x)[0])))


def _softmax(r, x):
    return r.op("SOFTMAX", [x], r.net.tensor(r.net.shape(x), 1 / 256, -128), beta=1.0)


def _reduce(r, x):
    shape, kind = r.net.shape(x), r.one(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"))
    axes = sorted({r.number(0, len(shape) - 1) for _ in range(r.number(1, 2))})
    kept = len(axes) == len(shape) or bool(r.number(0, 1))
    out = [1 if a in axes else n for a, n in enumerate(shape) if kept or a not in axes]
    scale, count = r.net.grid(x)[0], float(np.prod([shape[a] for a in axes]))
    if kind in ("MEAN", "SUM"):
        y = r.out(out, r.scale(scale * (count if kind == "SUM" else 1) / np.sqrt(count)))
    else:
        y = r.like(x, out)
    return r.op(kind, [x, r.net.ints(*axes)], y, keepDims=kept)


def _transpose(r, x):
    shape = r.net.shape(x)
    order = r.random.permutation(len(shape)).tolist()
    return r.op("TRANSPOSE", [x, r.net.ints(*order)], r.like(x, [shape[a] for a in order]))


def _shaped(r, x):
    shape, kind = r.net.shape(x), r.one(("RESHAPE", "EXPAND_DIMS", "SQUEEZE"))
    if kind == "EXPAND_DIMS" and len(shape) < 4:
        axis = r.number(0, len(shape))
        return r.op(kind, [x, r.net.ints(axis)], r.like(x, (*shape[:axis], 1, *shape[axis:])))
    if kind == "SQUEEZE" and 1 in shape and len(shape) > 2:
        axis = shape.index(1)
        return r.op(kind, [x], r.like(x, shape[:axis] + shape[axis + 1 :]), squeezeDims=[axis])
    out = (shape[0], int(np.prod(shape[1:])))
    return r.op("RESHAPE", [x, r.net.ints(*out)], r.like(x, out), newShape=list(out))


def _joined(r, x):
    """CONCATENATION or PACK of it and a function of it."""
    shape, (scale, zero) = r.net.shape(x), r.net.grid(x)
    y = r.op("RELU", [x], r.net.tensor(shape, scale, zero))
    axis = r.number(0, len(shape) - 1)
    if len(shape) < 4 and r.number(0, 1):
        return r.op("PACK", [x, y], r.like(x, (*shape[:axis], 2, *shape[axis:])), axis=axis, valuesCount=2)
    wide = [2 * n if a == axis else n for a, n in enumerate(shape)]
    return r.op("CONCATENATION", [y, x], r.like(x, wide), axis=axis)


def _parted(r, x):
    """SPLIT, SPLIT_V or UNPACK; all parts but one are outputs."""
    shape = r.net.shape(x)
    axis = int(np.argmax(shape))
    size, kind = shape[axis], r.one(("SPLIT", "SPLIT_V", "UNPACK"))
    if kind == "UNPACK" and size < 8 and len(shape) > 2:
        outs = [r.like(x, shape[:axis] + shape[axis + 1 :]) for _ in range(size)]
        r.op(kind, [x], *outs, num=size, axis=axis)
    elif kind == "SPLIT_V" and size > 1:
        sizes = (1, size - 1)
        outs = [r.like(x, [n if a == axis else m for a, m in enumerate(shape)]) for n in sizes]
        r.op(kind, [x, r.net.ints(*sizes), r.net.ints(axis, shape=())], *outs, numSplits=2)
    else:
        count = 2 if size % 2 == 0 else 1
        outs = [r.like(x, [n // count if a == axis else n for a, n in enumerate(shape)]) for _ in range(count)]
        r.op("SPLIT", [r.net.ints(axis, shape=()), x], *outs, numSplits=count)
    r.outputs += outs[1:4]
    return outs[0]


def _cut(r, x):
    """STRIDED_SLICE, forwards or backwards."""
    shape, bounds = r.net.shape(x), []
    for n in shape:
        step, first = r.one((-2, -1, 1, 1, 2)), r.number(0, n - 1)
        bounds.append((first, r.number(first + 1, n) if step > 0 else r.number(-1, first - 1), step))
    begin, end, step = zip(*bounds, strict=True)
    opened = sum(1 << axis for axis, last in enumerate(end) if last == -1)  # back to the first
    given = [x, *(r.net.ints(*part) for part in (begin, np.maximum(end, 0), step))]
    return r.op("STRIDED_SLICE", given, r.like(x, [len(range(*b)) for b in bounds]), endMask=opened)


def _pad(r, x):
    shape, value = r.net.shape(x), r.number(0, 1)
    pads = [[r.number(0, 1), r.number(0, 2)] if r.number(0, 1) else [0, 0] for _ in shape]
    given = [x, r.net.ints(*np.ravel(pads), shape=(len(shape), 2))]
    given += [r.net.tensor((1,), *r.net.grid(x), [r.number(-128, 127)])] if value else []
    wide = [n + sum(p) for n, p in zip(shape, pads, strict=True)]
    return r.op("PADV2" if value else "PAD", given, r.like(x, wide))


def _repeat(r, x):
    shape = r.net.shape(x)
    out = (r.number(1, 2), *shape) if len(shape) < 4 else tuple(n if n > 1 else r.number(1, 3) for n in shape)
    return r.op("BROADCAST_TO", [x, r.net.ints(*out)], r.like(x, out))


def _blocks(r, x):
    n, h, w, c = r.net.shape(x)
    if c % 4 == 0 and r.number(0, 1):
        return r.op("DEPTH_TO_SPACE", [x], r.like(x, (n, 2 * h, 2 * w, c // 4)), blockSize=2)
    if h % 2 == 0:
        w = w & -2 or 1
        x = r.op("SLICE", [x, r.net.ints(0, 0, 0, 0), r.net.ints(n, h, w, c)], r.like(x, (n, h, w, c)))
    if h % 2 == 0 and w > 1:
        return r.op("SPACE_TO_DEPTH", [x], r.like(x, (n, h // 2, w // 2, 4 * c)), blockSize=2)
    return _batches(r, x)


def _batches(r, x):
    """SPACE_TO_BATCH_ND and back."""
    n, h, w, c = r.net.shape(x)
    block = [2 if h % 2 == 0 else 1, 3 if w % 3 == 0 else 1]
    none = r.net.ints(0, 0, 0, 0, shape=(2, 2))
    y = r.like(x, (n * block[0] * block[1], h // block[0], w // block[1], c))
    y = r.op("SPACE_TO_BATCH_ND", [x, r.net.ints(*block), none], y)
    crop = [r.number(0, 1) if k > 1 else 0 for k in (h, w)]
    crops = r.net.ints(crop[0], 0, 0, crop[1], shape=(2, 2))
    out = r.like(x, (n, h - crop[0], w - crop[1], c))
    return r.op("BATCH_TO_SPACE_ND", [y, r.net.ints(*block), crops], out)


def _resize(r, x):
    n, _, _, c = r.net.shape(x)
    size, kind = (r.number(1, 7), r.number(1, 7)), r.one(("RESIZE_NEAREST_NEIGHBOR", "RESIZE_BILINEAR"))
    options = r.one(({}, dict(alignCorners=True), dict(halfPixelCenters=True)))
    return r.op(kind, [x, r.net.ints(*size)], r.like(x, (n, *size, c)), **options)


def _image(shape):
    return len(shape) == 4


def _any(shape):
    return True


def _row(shape):
    return len(shape) > 1


# Which shapes each takes, and what it adds.
STEPS = dict(
    conv=(_image, _conv), depthwise=(_image, _depthwise), turned_conv=(_image, _turned_conv), pool=(_image, _pool),
    blocks=(_image, _blocks), batches=(_image, _batches), resize=(_image, _resize), dense=(_row, _dense),
    product=(lambda shape: len(shape) > 2, _product), pair=(_any, _pair), pair_too=(_any, _pair),
    function=(_any, _function), function_too=(_any, _function), through_float=(_any, _through_float),
    softmax=(_row, _softmax), reduce=(_row, _reduce), transpose=(_row, _transpose), shaped=(_any, _shaped),
    joined=(_any, _joined), parted=(_row, _parted), cut=(_any, _cut), pad=(_any, _pad), repeat=(_any, _repeat),
)  # fmt: skip

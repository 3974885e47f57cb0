"""From a folded network to its integers: ranges, scales, int8 weights and int32 biases.

Scheme of Jacob et al., 2018 (arXiv:1712.05877), as TFLite runs it: real = scale * (integer - zero_point); weights int8
in [-127, 127], symmetric, a scale an output channel; activations int8, one scale and zero point a tensor; biases int32
at the scale input scale * weight scale. The input is the pixel itself: scale 1/255, zero point -128.

Each number is defined once, in float32: what training sees as `fake_quant` of a value, the integer network holds as
`quantize` of it with the same arguments.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from atalaia import data, layers
from atalaia.codegen.fixed_point import quantize_multiplier
from atalaia.errors import UserError
from atalaia.folding import Folded, apply_layer

QMIN, QMAX = -128, 127
BITS = {8: 127, 4: 7, 3: 3, 2: 1}  # of a weight, to its largest code: codes are symmetric, so 2 bits are ternary
# A channel pruned away whole has no range of its own; a tiny scale would make its int32 bias overflow, or, from 2^23
# on, be off by one where it passes through float32 on its way into the file.
MIN_SCALE, MAX_BIAS = 2.0**-20, 2.0**21
BIAS_GRID = -(2**24), 2**24  # beyond MAX_BIAS, and exact in float32


class QParams(NamedTuple):
    """real = scale * (integer - zero_point)."""

    scale: np.float32
    zero_point: int


INPUT = QParams(np.float32(1 / 255), -128)


class QLayer(NamedTuple):
    """The integers of one Conv or Dense.

    kernel: int8, HWIO or `[in, out]`; bias: int32 `[out]`; weight_scale: float32 `[out]`; lower, upper: int8 bounds
    `[out]` of the output where BatchNorm follows ReLU, else None; output: of the output tensor.
    """

    kernel: np.ndarray
    bias: np.ndarray
    weight_scale: np.ndarray
    lower: np.ndarray | None
    upper: np.ndarray | None
    output: QParams


def quantize(
    x: Any, scale: Any, zero_point: Any, qmin: int = QMIN, qmax: int = QMAX, axis: int | None = None, steps: Any = None
) -> jax.Array:
    """Nearest integer of the grid, as float32: clip(round(x / scale) + zero_point, qmin, qmax); ties to even.

    Args:
      x: real values.
      scale: positive, `[]` or `[channels]`.
      zero_point: integers of scale's shape.
      qmin, qmax: bounds of the grid.
      axis: x's dimension of the channels where scale is `[channels]`.
      steps: x / scale already rounded to integers, where it is known better than in float32, as by `rescale`.
    """
    scale, zero_point = _along(scale, x, axis), _along(zero_point, x, axis)
    steps = jnp.round(x / scale) if steps is None else steps
    return jnp.clip(steps + zero_point, qmin, qmax)


def fake_quant(
    x: Any, scale: Any, zero_point: Any, qmin: Any = QMIN, qmax: Any = QMAX, axis: int | None = None, steps: Any = None
) -> jax.Array:
    """The real value of x's nearest grid point, float32; arguments as `quantize`.

    Gradients are those of LSQ (Esser et al., 2020, arXiv:1902.08153, section 2.1): x's passes straight through where x
    lies on the grid and is 0 where x is clipped; scale's is round(x / scale) - x / scale, or the end of the grid.
    """
    return _fake_quant(x, scale, zero_point, steps, qmin, qmax, axis)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _fake_quant(x, scale, zero_point, steps, qmin, qmax, axis):
    q = quantize(x, scale, zero_point, qmin, qmax, axis, steps)
    return (q - _along(zero_point, x, axis)) * _along(scale, x, axis)


def _fake_quant_forward(x, scale, zero_point, steps, qmin, qmax, axis):
    return _fake_quant(x, scale, zero_point, steps, qmin, qmax, axis), (x, scale, zero_point, qmin, qmax)


def _fake_quant_backward(axis, kept, grad):
    x, scale, zero_point, qmin, qmax = kept
    steps, zero = x / _along(scale, x, axis), _along(zero_point, x, axis)
    q = jnp.round(steps) + zero
    inside = (q >= qmin) & (q <= qmax)
    by_scale = grad * jnp.where(inside, q - zero - steps, jnp.clip(q, qmin, qmax) - zero)
    others = None if axis is None or jnp.ndim(scale) == 0 else tuple(d for d in range(x.ndim) if d != axis % x.ndim)
    return jnp.where(inside, grad, 0), by_scale.sum(others), None, None, None, None


_fake_quant.defvjp(_fake_quant_forward, _fake_quant_backward)


def rescale(total: jax.Array, input_scale: Any, weight_scale: Any, output_scale: Any) -> jax.Array:
    """Integers of the output's grid that stand for accumulators, as simulate.py and TFLite round them; float32.

    total * ratio, ratio = input_scale * weight_scale / output_scale = mantissa * 2^shift with a mantissa of 31 bits in
    [0.5, 1). What is above 1 of 2^shift comes first; total * mantissa is rounded to an integer, halves up; then what is
    below 1, rounded again, halves away from zero. Products of so many bits are held as sums of two float32 (Dekker,
    1971), since training has no 64-bit types.

    Args:
      total: integers as float32, `[..., out]`, exact below 2^24.
      input_scale, output_scale: float32 `[]`; weight_scale: float32 `[out]`, of `weight_scale`'s 8 bits.
    """
    mantissa, rest, shift = _mantissa(input_scale, weight_scale, output_scale)
    # By ldexp, since XLA's exp2 is not exact.
    left, right = (jnp.ldexp(jnp.float32(1), part(shift, 0)) for part in (jnp.maximum, jnp.minimum))
    # Or XLA would compute these anew for every element: 6.4 instead of 2.5 ms for 128x32x32x32.
    mantissa, rest, left, right = jax.lax.optimization_barrier((mantissa, rest, left, right))
    total = total * left
    high, low = _product(total, mantissa)
    whole = jnp.floor(high)
    whole = whole + jnp.floor((high - whole) + (low + total * rest) + 0.5)
    return jnp.sign(whole) * jnp.floor(jnp.abs(whole) * right + 0.5)


def _mantissa(input_scale, weight_scale, output_scale):
    """ratio's mantissa as a sum of two float32, rounded to 31 bits, and its shift; ratio as in `rescale`."""
    high, low = _product(input_scale, weight_scale)  # 24 and 8 bits: exact
    first = high / output_scale
    back, error = _product(first, output_scale)
    second = ((high - back) - error + low) / output_scale
    high, shift = jnp.frexp(first)
    low = jnp.ldexp(second, -shift)
    below = (high == 0.5) & (low < 0)  # the sum's own power of two is one less
    high, low, shift = (jnp.where(below, a, b) for a, b in ((2 * high, high), (2 * low, low), (shift - 1, shift)))
    return high, jnp.round(low * 2.0**31) * 2.0**-31, shift


def _product(a, b):
    """a * b as float32 and what it lacks, exactly: halves of 12 bits have products that float32 holds."""
    (a1, a2), (b1, b2) = _halves(a), _halves(b)
    product = a * b
    return product, (((a1 * b1 - product) + a1 * b2) + a2 * b1) + a2 * b2


def _halves(x):
    bits = jax.lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.int32)
    first = jax.lax.bitcast_convert_type(bits & np.int32(-(1 << 12)), jnp.float32)
    return first, x - first


def mean_codes(q: jax.Array) -> jax.Array:
    """Mean over height and width of integers `[b, h, w, c]`, halves away from zero, as AVERAGE_POOL_2D; same type."""
    count = q.shape[1] * q.shape[2]
    total = q.sum((1, 2), keepdims=True)
    return jnp.sign(total) * ((jnp.abs(total) + count // 2) // count)


def choose_qparams(low: float, high: float) -> QParams:
    """Scale and zero point of an activation between low and high; zero gets an integer of its own.

    Raises:
      ValueError: the range is not finite or low > high.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"no int8 scale for the range [{low}, {high}]")
    scale, zero_point = qparams_of(np.float32(low), np.float32(high), np)
    return QParams(np.float32(scale), int(zero_point))


def qparams_of(low: Any, high: Any, xp: Any = jnp) -> tuple[Any, Any]:
    """`choose_qparams` without its check, by jax.numpy or NumPy with the same result; zero_point as float32."""
    low, high = xp.minimum(low, np.float32(0)), xp.maximum(high, np.float32(0))
    steps = np.float32(QMAX - QMIN) if xp is np else _divisor(QMAX - QMIN)
    scale = xp.maximum((high - low) / steps, np.float32(MIN_SCALE))
    return scale, xp.clip(xp.round(np.float32(QMIN) - low / scale), np.float32(QMIN), np.float32(QMAX))


def _divisor(value):
    """A float32 that XLA does not know: by a constant it multiplies with the reciprocal, which can be an ulp off."""
    return jax.lax.optimization_barrier(jnp.float32(value))


def output_grids(ranges: dict[str, tuple[float, float]]) -> dict[str, QParams]:
    """Scale and zero point of every layer's output from its range, such as `calibrate` gives."""
    return {path: choose_qparams(*found) for path, found in ranges.items()}


def weight_scale(kernel: Any, bias: Any, input_scale: Any, qmax: Any, chosen: Any = None) -> jax.Array:
    """Scale of each output channel, float32 `[out]`: its largest weight becomes about qmax.

    Scales have bfloat16's precision, 8 bits: the weights are learned, or rounded, on whatever grid there is, and two
    bytes a channel less are to be downloaded.

    Args:
      kernel, bias: of a layer, output channels last.
      input_scale: of the layer's input.
      qmax: largest code, of `BITS`.
      chosen: scales `[out]` to take instead, such as learned ones; bounded from below in the same way.
    """
    if chosen is None:
        chosen = jnp.abs(kernel).max(tuple(range(kernel.ndim - 1))) / _divisor(qmax)
    floor = jnp.maximum(jnp.abs(bias) / (input_scale * np.float32(MAX_BIAS)), np.float32(MIN_SCALE))
    return jax.lax.reduce_precision(jnp.maximum(chosen, floor), exponent_bits=8, mantissa_bits=7)


def grid_paths(model: nn.Module) -> list[str]:
    """Paths of the layers whose output has a grid of its own."""
    return _paths(model, lambda layer: not keeps_scale(layer))


def linear_paths(model: nn.Module) -> list[str]:
    """Paths of the layers that have weights."""
    return _paths(model, lambda layer: isinstance(layer, layers.Conv | layers.Dense))


def _paths(model, accept):
    paths = []

    def rule(path, layer, *inputs):
        if accept(layer):
            paths.append(path)

    layers.interpret(model, rule, None)
    return paths


def calibration_batches(images: np.ndarray, count: int, seed: int, size: int = 256) -> Iterable[jax.Array]:
    """`count` of the uint8 training images, drawn by the run's seed, as float32 batches without augmentation."""
    chosen = np.random.RandomState(seed).permutation(len(images))[:count]
    for start in range(0, len(chosen), size):
        yield data.to_float(images[np.sort(chosen[start : start + size])])


def keeps_scale(layer: layers.Layer) -> bool:
    """Whether the int8 output has the input's scale and zero point, as TFLite demands of these."""
    kinds = layers.MaxPool | layers.MinPool | layers.GlobalAvgPool | layers.Flatten | layers.Dropout
    return isinstance(layer, kinds)


def negated(grid: QParams) -> QParams:
    """The grid of -x where x has `grid`: its integers are -1 - q, which int8 holds for every q."""
    return QParams(grid.scale, -1 - grid.zero_point)


def calibrate(model: nn.Module, folded: dict[str, Folded], batches: Iterable[Any]) -> dict[str, tuple[float, float]]:
    """Smallest and largest output of every layer that chooses its own scale, over float32 images in [0, 1].

    Raises:
      UserError: a range is not finite; the layer is named.
    """

    @jax.jit
    def extremes(x):
        seen = {}

        def rule(path, layer, *xs):
            y = apply_layer(layer, folded.get(path), *xs)
            if not keeps_scale(layer):
                seen[path] = (y.min(), y.max())
            return y

        layers.interpret(model, rule, x)
        order[:] = seen
        return seen

    ranges: dict[str, tuple[float, float]] = {}
    order: list[str] = []
    for batch in batches:
        found = jax.device_get(extremes(batch))
        for path in order:  # jit sorts a dict by its keys
            low, high = found[path]
            old = ranges.get(path, (np.inf, -np.inf))
            ranges[path] = (float(np.minimum(old[0], low)), float(np.maximum(old[1], high)))
    for path, (low, high) in ranges.items():
        if not (np.isfinite(low) and np.isfinite(high)):
            raise UserError(f"layer {path!r} gives values in [{low}, {high}]: the weights are broken, train again")
    return ranges


def quantize_network(
    model: nn.Module,
    folded: dict[str, Folded],
    outputs: dict[str, QParams],
    bits: dict[str, int] | None = None,
    scales: dict[str, np.ndarray] | None = None,
) -> dict[str, QLayer | QParams]:
    """The integer network by path: a QLayer for each Conv and Dense, the output's QParams for each Add and Mul.

    Args:
      model: the network; folded: its weights.
      outputs: grid of every layer that chooses its own, `choose_qparams` of its range.
      bits: of the weights by path, where not 8; scales: of the weights by path, where not from the largest weight.

    Raises:
      UserError: TFLite's 32 bits do not hold a layer's sums on the grid of its outputs.
    """
    network = {}

    def rule(path, layer, *inputs):  # QParams flow through the network's code here
        if keeps_scale(layer):
            return inputs[0]
        network[path] = outputs[path]
        if path in folded:
            qmax, chosen = BITS[(bits or {}).get(path, 8)], (scales or {}).get(path)
            network[path] = _quantize_layer(folded[path], inputs[0], outputs[path], qmax, chosen)
            _require_int32(path, network[path], inputs[0])
        return outputs[path]

    layers.interpret(model, rule, INPUT)
    return network


def _quantize_layer(weights, given, output, qmax=BITS[8], chosen=None):
    """QLayer of one Folded, from the input's and the output's QParams."""
    scale = np.asarray(weight_scale(weights.kernel, weights.bias, given.scale, qmax, chosen))
    kernel = np.asarray(quantize(weights.kernel, scale, 0, -qmax, qmax, axis=-1), np.int8)
    bias = np.asarray(quantize(weights.bias, given.scale * scale, 0, *BIAS_GRID), np.int32)
    bounds = (None, None)
    if weights.lower is not None:
        bounds = (np.asarray(quantize(b, *output), np.int8) for b in (weights.lower, weights.upper))
    return QLayer(kernel, bias, scale, *bounds, output)


def output_ratio(layer: QLayer, given: QParams) -> np.ndarray:
    """By channel, what a sum of `layer` on the input's grid is multiplied by: in float64, as TFLite prepares it."""
    return np.float64(given.scale) * layer.weight_scale.astype(np.float64) / np.float64(layer.output.scale)


def _require_int32(path, layer, given):
    """TFLite shifts a sum to the left, where the ratio of scales is above 1, in 32 bits, and would wrap around."""
    _, shift = quantize_multiplier(output_ratio(layer, given))
    kernel = np.abs(layer.kernel.reshape(-1, layer.kernel.shape[-1]).astype(np.float64))
    sums = kernel.sum(0) * (QMAX - QMIN) + np.abs(layer.bias.astype(np.float64))
    if np.any(np.ldexp(sums, np.maximum(shift, 0)) >= 2.0**31):
        raise UserError(
            f"layer {path!r}: its outputs' range is far narrower than its sums, which would overflow TFLite's 32 bits "
            "(did it ever fire?): train longer, calibrate on more images, or leave the layer out"
        )


def _along(value, x, axis):
    """value `[channels]` in a shape that broadcasts with x along `axis`; scalars as they are."""
    if axis is None or np.ndim(value) == 0:
        return value
    return jnp.reshape(value, [-1 if d == axis % x.ndim else 1 for d in range(x.ndim)])

"""From a trained network to its integers: BatchNorm folding, ranges, scales, int8 weights and int32 biases.

Scheme of Jacob et al., 2018 (arXiv:1712.05877), as TFLite runs it: real = scale * (integer - zero_point); weights int8
in [-127, 127], symmetric, a scale an output channel; activations int8, one scale and zero point a tensor; biases int32
at the scale input scale * weight scale. The input is the pixel itself: scale 1/255, zero point -128.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from atalaia import layers, ops
from atalaia.errors import UserError

QMIN, QMAX = -128, 127
WEIGHT_QMAX = 127
# A channel pruned away whole has no range of its own; a tiny scale would make its int32 bias overflow, or, from 2^23
# on, be off by one where it passes through float32 on its way into the file.
MIN_WEIGHT_SCALE, MAX_BIAS = 2.0**-20, 2.0**21


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


class Folded(NamedTuple):
    """One Conv or Dense without BatchNorm: y = clip(relu?(x * kernel + bias), lower, upper), float32.

    BatchNorm after ReLU is a * relu(z) + t, which is max(a * z + t, t) where a > 0 and min(a * z + t, t) where a < 0:
    it folds into this convolution without a rounding more, and ReLU becomes the bound. (Folding it into the next SAME
    convolution would be wrong at the borders.)
    """

    kernel: np.ndarray
    bias: np.ndarray
    relu: bool
    lower: np.ndarray | None = None
    upper: np.ndarray | None = None


def quantize(x, scale, zero_point, qmin: int = QMIN, qmax: int = QMAX, axis: int | None = None) -> jax.Array:
    """Nearest integer of the grid, as float32: clip(round(x / scale) + zero_point, qmin, qmax); ties to even.

    Args:
      x: real values.
      scale: positive, `[]` or `[channels]`.
      zero_point: integers of scale's shape.
      qmin, qmax: bounds of the grid.
      axis: x's dimension of the channels where scale is `[channels]`.
    """
    scale, zero_point = _along(scale, x, axis), _along(zero_point, x, axis)
    return jnp.clip(jnp.round(x / scale) + zero_point, qmin, qmax)


def fake_quant(x, scale, zero_point, qmin: int = QMIN, qmax: int = QMAX, axis: int | None = None) -> jax.Array:
    """The real value of x's nearest grid point, float32; arguments as `quantize`."""
    q = quantize(x, scale, zero_point, qmin, qmax, axis)
    return (q - _along(zero_point, x, axis)) * _along(scale, x, axis)


def choose_qparams(low: float, high: float) -> QParams:
    """Scale and zero point of an activation between low and high; zero gets an integer of its own.

    Raises:
      ValueError: the range is not finite or low > high.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"no int8 scale for the range [{low}, {high}]")
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = max((high - low) / (QMAX - QMIN), MIN_WEIGHT_SCALE)
    return QParams(np.float32(scale), int(np.clip(round(QMIN - low / scale), QMIN, QMAX)))


def fold(model: nn.Module, variables: dict, input_shape: tuple[int, ...]) -> dict[str, Folded]:
    """Every Conv and Dense of the network by path, BatchNorm folded in (computed in float64).

    Args:
      model: the network.
      variables: its params and batch_stats.
      input_shape: `(height, width, channels)`.
    """
    folded = {}

    def rule(path, layer, *inputs):
        if isinstance(layer, layers.Conv | layers.Dense):
            params, stats = (layers.subtree(variables.get(k, {}), path) for k in ("params", "batch_stats"))
            folded[path] = _fold_one(layer, params, stats)
        return layers.output_spec(layer, *inputs)

    layers.interpret(model, rule, layers.spec((1, *input_shape)))
    return folded


def _fold_one(layer, params, stats):
    kernel, bias = (np.asarray(params[k], np.float64) for k in ("kernel", "bias"))
    norm = getattr(layer, "norm", "")
    lower = upper = None
    if norm:
        gamma, beta = (np.asarray(params["norm"][k], np.float64) for k in ("scale", "bias"))
        mean, var = (np.asarray(stats["norm"][k], np.float64) for k in ("mean", "var"))
        a = gamma / np.sqrt(var + layers.BATCH_NORM_EPSILON)
        t = beta - mean * a
        kernel, bias = kernel * a, bias * a + t
        if norm == "after" and layer.relu:
            lower = np.where(a >= 0, t, -np.inf).astype(np.float32)
            upper = np.where(a < 0, t, np.inf).astype(np.float32)
    relu = layer.relu and norm != "after"
    return Folded(kernel.astype(np.float32), bias.astype(np.float32), relu, lower, upper)


def apply_layer(layer: layers.Layer, weights: Folded | None, *inputs: jax.Array) -> jax.Array:
    """A layer of the folded network on real values; `weights` are those of a Conv or Dense, else None."""
    match layer:
        case layers.Conv():
            y = linear(layer, inputs[0], weights.kernel) + weights.bias
        case layers.Dense():
            y = linear(layer, inputs[0], weights.kernel) + weights.bias
        case layers.Dropout():
            return inputs[0]
        case layers.Add() | layers.MaxPool() | layers.GlobalAvgPool() | layers.Flatten():
            return layer.clone(parent=None)(*inputs)
        case _:
            raise NotImplementedError(f"{type(layer).__name__} has no int8 form yet: add it to atalaia/quantize.py")
    if weights.relu:
        y = nn.relu(y)
    if weights.lower is not None:
        y = jnp.clip(y, weights.lower, weights.upper)
    return y


def linear(layer: layers.Conv | layers.Dense, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The layer's convolution or matrix product without its bias."""
    if isinstance(layer, layers.Dense):
        return x @ kernel
    groups = x.shape[-1] if layer.depthwise else 1
    return ops.conv2d(x, kernel, (layer.strides, layer.strides), "SAME", groups)


def apply_folded(model: nn.Module, folded: dict[str, Folded], x: jax.Array) -> jax.Array:
    """Logits of the folded network in float32; equal to the network's own but for rounding."""
    return layers.interpret(model, lambda path, layer, *xs: apply_layer(layer, folded.get(path), *xs), x)


def keeps_scale(layer: layers.Layer) -> bool:
    """Whether the int8 output has the input's scale and zero point, as TFLite demands of these."""
    return isinstance(layer, layers.MaxPool | layers.GlobalAvgPool | layers.Flatten | layers.Dropout)


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

    ranges, order = {}, []
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
    model: nn.Module, folded: dict[str, Folded], ranges: dict[str, tuple[float, float]]
) -> dict[str, QLayer | QParams]:
    """The integer network by path: a QLayer for each Conv and Dense, the output's QParams for each Add.

    Args:
      model: the network; folded: its weights; ranges: `calibrate`'s.
    """
    network = {}

    def rule(path, layer, *inputs):  # QParams flow through the network's code here
        if keeps_scale(layer):
            return inputs[0]
        output = choose_qparams(*ranges[path])
        if path in folded:
            network[path] = _quantize_layer(folded[path], inputs[0], output)
        else:
            network[path] = output
        return output

    layers.interpret(model, rule, INPUT)
    return network


def _quantize_layer(weights, given, output):
    """QLayer of one Folded, from the input's and the output's QParams."""
    kernel = weights.kernel.astype(np.float64)
    largest = np.abs(kernel).reshape(-1, kernel.shape[-1]).max(0)
    floor = np.maximum(np.abs(weights.bias) / (float(given.scale) * MAX_BIAS), MIN_WEIGHT_SCALE)
    scale = np.maximum(largest / WEIGHT_QMAX, floor).astype(np.float32)
    kernel = np.clip(np.round(kernel / scale), -WEIGHT_QMAX, WEIGHT_QMAX).astype(np.int8)
    bias = np.round(weights.bias / (given.scale * scale).astype(np.float64)).astype(np.int32)
    bounds = (None, None)
    if weights.lower is not None:
        bounds = (_bound(b, output) for b in (weights.lower, weights.upper))
    return QLayer(kernel, bias, scale, *bounds, output)


def _bound(bound, output):
    q = np.round(bound.astype(np.float64) / output.scale) + output.zero_point
    return np.clip(q, QMIN, QMAX).astype(np.int8)


def _along(value, x, axis):
    """value `[channels]` in a shape that broadcasts with x along `axis`; scalars as they are."""
    if axis is None or np.ndim(value) == 0:
        return value
    return jnp.reshape(value, [-1 if d == axis % x.ndim else 1 for d in range(x.ndim)])

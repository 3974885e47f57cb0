"""A trained network without BatchNorm: what stage `quantize` begins with, and what is made of integers."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from atalaia import layers, ops


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


def fold(model: nn.Module, variables: dict) -> dict[str, Folded]:
    """Every Conv and Dense of the network by path, BatchNorm folded in (computed in float64).

    Args:
      model: the network.
      variables: its params and batch_stats.
    """
    folded = {}

    def rule(path, layer, *inputs):
        if isinstance(layer, layers.Conv | layers.Dense):
            params, stats = (layers.subtree(variables.get(k, {}), path) for k in ("params", "batch_stats"))
            folded[path] = _fold_one(layer, params, stats)

    layers.interpret(model, rule, None)
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
    if isinstance(layer, layers.Dropout):
        return inputs[0]
    if weights is None or not isinstance(layer, layers.Conv | layers.Dense):
        return layer.clone(parent=None)(*inputs)
    y = linear(layer, inputs[0], jnp.asarray(weights.kernel)) + weights.bias
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
    return ops.conv2d(x, kernel, (layer.strides, layer.strides), "SAME", groups, layer.dilation)

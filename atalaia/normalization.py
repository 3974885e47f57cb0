"""Bias and batch normalisation: their gradients are sums over a channel, each in one fast pass on a CPU (as ops.py)."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from atalaia.ops import largest_divisor, use_own

Array = jax.Array

_LANE_BYTES = 4 << 10  # _channel_sums adds vectors of this size
_BLOCK_BYTES = 48 << 10  # and reads blocks of this size: above 64 KiB, XLA's loops are 3 to 5 times slower


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    """x + bias, [batch, height, width, channels] and [channels]; the bias's gradient is one fast pass."""
    return x + bias


def _add_bias_bwd(_, g):
    (dbias,) = _channel_sums(lambda g: (g,), g)
    return g, dbias


add_bias.defvjp(lambda x, bias: (x + bias, None), _add_bias_bwd)


def batch_norm(
    x: Array, scale: Array, bias: Array, eps: float = 1e-5, *, shift: Array | None = None, relu: bool = False
) -> tuple[Array, Array, Array]:
    """Normalises by the statistics of the batch (Ioffe and Szegedy, 2015), as in training.

    shift and relu put in front what usually stands there, so that it is recomputed in each pass and not stored: with
    u = max(x + shift, 0), or what of this is asked for, y = (u - mean) / sqrt(var + eps) * scale + bias.

    Args:
      x: [batch, height, width, channels].
      scale: [channels].
      bias: [channels].
      eps: added to the variance.
      shift: [channels], the preceding convolution's bias.
      relu: whether u is rectified.

    Returns:
      y, and u's mean and variance (biased), [channels], for the running averages.
    """
    return _batch_norm(x, shift, scale, bias, eps, relu)


def _before_norm(x, shift, relu):
    x = x if shift is None else x + shift
    return jnp.maximum(x, 0) if relu else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _batch_norm(x, shift, scale, bias, eps, relu):
    return _batch_norm_fwd(x, shift, scale, bias, eps, relu)[0]


def _batch_norm_fwd(x, shift, scale, bias, eps, relu):
    count = math.prod(x.shape[:-1])
    # Two passes: E[u^2] - E[u]^2 in one loses all digits where the mean is large, and saves 0.4 ms of 32x32x32.
    mean = _channel_sums(lambda x: (_before_norm(x, shift, relu),), x)[0] / count
    var = _channel_sums(lambda x: (jnp.square(_before_norm(x, shift, relu) - mean),), x)[0] / count
    inv_std = lax.rsqrt(var + eps)
    y = (_before_norm(x, shift, relu) - mean) * (inv_std * scale) + bias
    return (y, mean, var), (x, shift, mean, inv_std, scale)


def _batch_norm_bwd(eps, relu, saved, grads):
    x, shift, mean, inv_std, scale = saved
    dy, dmean, dvar = grads
    count = math.prod(x.shape[:-1])

    def terms(dy, x):
        u = _before_norm(x, shift, relu)
        sums = dy, dy * (u - mean)
        if relu and shift is not None:
            sums += jnp.where(u > 0, dy, 0), jnp.where(u > 0, u - mean, 0), jnp.where(u > 0, 1.0, 0.0)
        return sums

    dbias, dscale, *passed = _channel_sums(terms, dy, x)
    dscale = dscale * inv_std
    # du = a dy + d (u - mean) + e: what an element owes to the statistics takes two numbers a channel.
    a = scale * inv_std
    d = (2 * dvar - a * inv_std * dscale) / count
    e = (dmean - a * dbias) / count
    u = _before_norm(x, shift, relu)
    dx = a * dy + d * (u - mean) + e
    if relu:
        dx = jnp.where(u > 0, dx, 0)
    # dshift is the sum of dx, which is linear in the sums that are there already; of all du, only dmean remains.
    dshift = None
    if shift is not None:
        dshift = a * passed[0] + d * passed[1] + e * passed[2] if relu else dmean
    return dx, dshift, dscale, dbias


_batch_norm.defvjp(_batch_norm_fwd, _batch_norm_bwd)


def _channel_sums(terms: Callable[..., tuple[Array, ...]], *arrays: Array) -> list[Array]:
    """Sums of terms(*arrays) over all but the last axis, in one pass over the arrays.

    terms is elementwise, but for per-channel values that it closes over. XLA sums a plain array well, but a fused
    expression with a scalar loop (sum and sum of squares of 32x32x32: 8 ms), and on a CPU it drops an
    optimization_barrier before it fuses. A scan over blocks small enough is compiled to one vectorised loop: 1 ms.
    """
    if not use_own():
        return [t.sum(tuple(range(t.ndim - 1))) for t in terms(*arrays)]
    channels, pixels = arrays[0].shape[-1], math.prod(arrays[0].shape[:-1])
    lanes = largest_divisor(pixels, _LANE_BYTES // (4 * channels))
    rows = largest_divisor(pixels // lanes, _BLOCK_BYTES // (4 * channels * lanes))

    def add(sums, blocks):
        return [s + t.sum(0) for s, t in zip(sums, terms(*blocks), strict=True)], None

    blocks = [a.reshape(-1, rows, lanes, channels) for a in arrays]
    like = jax.eval_shape(terms, *[b[0] for b in blocks])
    sums, _ = lax.scan(add, [jnp.zeros((lanes, channels), t.dtype) for t in like], blocks)
    return [s.sum(0) for s in sums]

"""Convolution, pooling and normalisation with fast gradients on CPUs.

On a GPU or TPU everything here is XLA's own. On a CPU, XLA's forward convolution runs at the speed of its matrix product,
but some of its gradients do not, so each operation brings its own backward pass (jax.custom_vjp).
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
_DIMS = ("NHWC", "HWIO", "NHWC")
_CHUNK_BYTES = 3 << 20


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"


def conv2d(x: Array, kernel: Array, strides: Sequence[int] = (1, 1), padding: str = "SAME", groups: int = 1) -> Array:
    """Convolves [batch, h, w, cin] with [kh, kw, cin // groups, cout]."""
    strides = tuple(strides)
    pads = tuple(lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding))
    if not _on_cpu():
        return _xla_conv(x, kernel, strides, pads, groups)
    return _conv(x, kernel, strides, pads, groups)


def _xla_conv(x, kernel, strides, pads, groups):
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_DIMS, feature_group_count=groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x, kernel, strides, pads, groups):
    return _xla_conv(x, kernel, strides, pads, groups)


def _conv_fwd(x, kernel, strides, pads, groups):
    return _conv(x, kernel, strides, pads, groups), (x, kernel)


def _conv_bwd(strides, pads, groups, saved, g):
    x, kernel = saved
    _, input_vjp = jax.vjp(lambda x: _xla_conv(x, kernel, strides, pads, groups), x)
    if groups == 1:
        dk = _kernel_grad(x, g, kernel.shape, strides, pads)
    else:
        dk = jax.vjp(lambda k: _xla_conv(x, k, strides, pads, groups), kernel)[1](g)[0]
    return *input_vjp(g), dk


_conv.defvjp(_conv_fwd, _conv_bwd)


def _kernel_grad(x, g, shape, strides, pads):
    kh, kw, cin, cout = shape
    n, ho, wo, _ = g.shape
    sh, sw = strides
    toom = kh == 3 and sh == 1 and ho % 2 == 0 and cin >= 8
    size = max(1, _CHUNK_BYTES // (4 * ho * wo * kw * cin))
    size = max(d for d in range(1, n + 1) if n % d == 0 and d <= size)

    def one(x, g):
        xp = jnp.pad(x, ((0, 0), *pads, (0, 0)))

        def row(r, step, count):
            return lax.slice_in_dim(xp, r, r + (count - 1) * step + 1, step, axis=1)

        def cols(d):
            d = [lax.slice_in_dim(d, j, j + (wo - 1) * sw + 1, sw, axis=2) for j in range(kw)]
            return jnp.concatenate(d, -1).reshape(-1, kw * cin)

        if toom:
            d = [row(r, 2, ho // 2) for r in range(4)]
            d = (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[3] - d[1])
            g = g.reshape(*g.shape[:1], ho // 2, 2, wo, cout)
            g0, g1 = g[:, :, 0], g[:, :, 1]
            e = (g0, g0 + g1, g0 - g1, g1)
            return jnp.stack([e.reshape(-1, cout).T @ cols(d) for e, d in zip(e, d, strict=True)])
        g = g.reshape(-1, cout)
        if cin < 8:
            p = jnp.concatenate([cols(row(i, sh, ho)) for i in range(kh)], -1)
            return (g.T @ p).reshape(cout, kh, -1).transpose(1, 0, 2)
        return jnp.stack([g.T @ cols(row(i, sh, ho)) for i in range(kh)])

    xs = x.reshape(n // size, size, *x.shape[1:])
    gs = g.reshape(n // size, size, *g.shape[1:])
    zero = jnp.zeros((4 if toom else kh, cout, kw * cin), x.dtype)
    m, _ = lax.scan(lambda m, xg: (m + one(*xg), None), zero, (xs, gs))
    if toom:
        m1, m2 = m[1] / 2, m[2] / 2
        m = jnp.stack([m[0] + m1 + m2, m1 - m2, m1 + m2 + m[3]])
    return m.reshape(kh, cout, kw, cin).transpose(0, 2, 3, 1)


def channel_sum(x: Array) -> Array:
    n, h, w, c = x.shape
    if not _on_cpu():
        return x.sum((0, 1, 2))
    return lax.optimization_barrier(x.reshape(n, h, w * c).sum(1)).reshape(n * w, c).sum(0)


@jax.custom_vjp
def add_bias(x: Array, bias: Array) -> Array:
    return x + bias


add_bias.defvjp(lambda x, b: (x + b, None), lambda _, g: (g, channel_sum(g)))


@jax.custom_vjp
def relu(x: Array) -> Array:
    return jnp.maximum(x, 0)


def _relu_fwd(x):
    y = jnp.maximum(x, 0)
    return y, y


relu.defvjp(_relu_fwd, lambda y, g: (jnp.where(y > 0, g, 0),))


def max_pool(x: Array, window: int = 2) -> Array:
    n, h, w, c = x.shape
    if h % window or w % window:
        dims = (1, window, window, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, dims, dims, "VALID")
    return _pool(x, window)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _pool(x, k):
    n, h, w, c = x.shape
    return x.reshape(n, h // k, k, w // k, k, c).max((2, 4))


def _pool_fwd(x, k):
    y = _pool(x, k)
    n, h, w, c = x.shape
    t = x.reshape(n, h // k, k, w // k, k, c)
    which = jnp.full(y.shape, k * k - 1, jnp.uint8)
    for i in reversed(range(k * k - 1)):
        which = jnp.where(t[:, :, i // k, :, i % k] == y, jnp.uint8(i), which)
    return y, which


def _pool_bwd(k, which, g):
    n, h, w, c = g.shape
    place = jnp.arange(k * k, dtype=jnp.uint8).reshape(k, 1, k, 1)
    hit = which[:, :, None, :, None] == place
    return (jnp.where(hit, g[:, :, None, :, None], 0).reshape(n, h * k, w * k, c),)


_pool.defvjp(_pool_fwd, _pool_bwd)


def batch_norm(x: Array, scale: Array, bias: Array, eps: float = 1e-5) -> tuple[Array, Array, Array]:
    return _batch_norm(x, scale, bias, eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _batch_norm(x, scale, bias, eps):
    return _batch_norm_fwd(x, scale, bias, eps)[0]


def _batch_norm_fwd(x, scale, bias, eps):
    count = math.prod(x.shape[:-1])
    mean = channel_sum(x) / count
    var = channel_sum(jnp.square(x - mean)) / count
    inv = lax.rsqrt(var + eps)
    y = (x - mean) * (inv * scale) + bias
    return (y, mean, var), (x, mean, inv, scale)


def _batch_norm_bwd(eps, saved, grads):
    x, mean, inv, scale = saved
    dy, dmean, dvar = grads
    count = math.prod(x.shape[:-1])
    dbias = channel_sum(dy)
    dscale = channel_sum(dy * (x - mean)) * inv
    # x's gradient is linear in dy, x - mean and 1, one coefficient a channel each.
    a = inv * scale
    b = (2 * dvar - a * inv * dscale) / count
    c = (dmean - a * dbias) / count
    return a * dy + b * (x - mean) + c, dscale, dbias


_batch_norm.defvjp(_batch_norm_fwd, _batch_norm_bwd)

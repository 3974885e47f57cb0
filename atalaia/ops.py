"""Convolution, ReLU and pooling whose gradients are fast on a CPU too (normalization.py has bias and BatchNorm).

Models call these and know nothing of what is behind them. On a GPU that is XLA's own operation and gradient, but for
depthwise convolution (on an H200, beside other work, a small network's training made 12,000 images a second with XLA's
and up to 27,000 with ours). On a CPU, XLA's dense forward convolution runs near the machine's matrix-product peak (250
of 260 GFLOP/s where this was written), but its weight gradients, strided input gradients, depthwise convolutions,
max-pool gradients and fused reductions run 2 to 30 times slower than the same arithmetic stated otherwise. So each
operation here brings its own backward pass. Figures in comments are milliseconds at batch 128 on 2 cores.

Everything is a pure function of its inputs; on a CPU in one fixed order of summation: equal inputs give equal bytes on
the same machine. Shapes are static; reverse-mode derivatives only (jax.custom_vjp).
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Pads = tuple[tuple[int, int], ...]  # before and after, of height and width

_NHWC = ("NHWC", "HWIO", "NHWC")
_PATCH_BYTES = 3 << 20  # patches of one step of the weight gradient's scan: 4 to 8 images of 32x32x32; stays in cache

_plain = contextvars.ContextVar("plain_xla", default=False)


@contextlib.contextmanager
def plain_xla() -> Iterator[None]:
    """Inside, functions are traced to XLA's own operations.

    For exporters, which know a depthwise convolution or a max-pool by its XLA operation only. The choice is made when a
    function is traced, so a jitted function that has already run keeps what it had.
    """
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def use_own(gpu: bool = False) -> bool:
    """Whether an operation of ours is the faster one: on a CPU, and with `gpu` elsewhere too."""
    # Over several devices XLA shares out its own operations, but gathers the batch for our scans over it.
    return (gpu or jax.default_backend() == "cpu") and jax.device_count() == 1 and not _plain.get()


def conv2d(
    x: Array,
    kernel: Array,
    strides: Sequence[int] = (1, 1),
    padding: str = "SAME",
    groups: int = 1,
    dilation: int = 1,
) -> Array:
    """Convolves (cross-correlates, as every framework does) x with kernel.

    Args:
      x: [batch, height, width, cin].
      kernel: [kernel_height, kernel_width, cin // groups, cout].
      strides: of height and width.
      padding: 'SAME' or 'VALID'.
      groups: input channels are cut into so many groups, each with its own cout // groups kernels; cin is depthwise.
      dilation: pixels from one tap of the kernel to the next; more than 1 only with strides of 1 and 'SAME'.

    Returns:
      [batch, out_height, out_width, cout].
    """
    if dilation > 1:
        return _dilated(x, kernel, strides, padding, groups, dilation)
    strides = tuple(strides)
    pads = tuple(lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding))
    if groups == x.shape[-1] == kernel.shape[-1] and use_own(gpu=True):
        return _depthwise(x, kernel, strides, pads)
    if not use_own():
        return _xla_conv(x, kernel, strides, pads, groups)
    return _conv(x, kernel, strides, pads, groups)


def _xla_conv(
    x: Array, kernel: Array, strides: tuple[int, ...], pads: Pads, groups: int = 1, dilation: int = 1
) -> Array:
    return lax.conv_general_dilated(
        x, kernel, strides, pads, rhs_dilation=(dilation,) * 2, dimension_numbers=_NHWC, feature_group_count=groups
    )


def _dilated(x, kernel, strides, padding, groups, dilation):
    """A convolution of every `dilation`-th row and column each, side by side in the batch (Yu and Koltun, 2016).

    Their zeros around the border are those of the whole (arXiv:1511.07122 has the operation), so it is exact, and as
    fast as one without dilation.
    """
    if tuple(strides) != (1, 1) or padding != "SAME":
        raise ValueError("dilation needs strides of 1 and SAME padding")
    n, h, w, c = x.shape
    if not use_own():
        size = [(k - 1) * dilation + 1 for k in kernel.shape[:2]]
        pads = lax.padtype_to_pads((h, w), size, (1, 1), padding)
        return _xla_conv(x, kernel, (1, 1), tuple(pads), groups, dilation)
    rows, columns = -(-h // dilation), -(-w // dilation)
    x = jnp.pad(x, ((0, 0), (0, rows * dilation - h), (0, columns * dilation - w), (0, 0)))
    x = x.reshape(n, rows, dilation, columns, dilation, c).transpose(0, 2, 4, 1, 3, 5)
    y = conv2d(x.reshape(-1, rows, columns, c), kernel, (1, 1), padding, groups)
    y = y.reshape(n, dilation, dilation, rows, columns, -1).transpose(0, 3, 1, 4, 2, 5)
    return y.reshape(n, rows * dilation, columns * dilation, -1)[:, :h, :w]


# Dense (and grouped) convolution: XLA's forward, our gradients.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x, kernel, strides, pads, groups):
    return _xla_conv(x, kernel, strides, pads, groups)


def _conv_fwd(x, kernel, strides, pads, groups):
    return _xla_conv(x, kernel, strides, pads, groups), (x, kernel)


@jax.named_scope("convolution_gradients")
def _conv_bwd(strides, pads, groups, saved, g):
    x, kernel = saved
    # A group is a convolution of its own; XLA's weight gradient of grouped ones is slow (JAX issue 13800).
    xs, gs = jnp.split(x, groups, -1), jnp.split(g, groups, -1)
    shape = kernel.shape[:3] + (kernel.shape[3] // groups,)
    dkernel = jnp.concatenate([_kernel_grad(x, g, shape, strides, pads) for x, g in zip(xs, gs, strict=True)], -1)
    if strides != (1, 1) and groups == 1 and x.shape[-1] >= 8:
        return _strided_input_grad(x.shape, kernel, g, strides, pads), dkernel
    _, input_vjp = jax.vjp(lambda x: _xla_conv(x, kernel, strides, pads, groups), x)
    return *input_vjp(g), dkernel


_conv.defvjp(_conv_fwd, _conv_bwd)


@jax.named_scope("input_gradient")
def _strided_input_grad(shape, kernel, g, strides, pads):
    """Input gradient of a strided convolution: one small dense convolution for each phase of the stride.

    Input row t (counted with the padding) meets kernel rows i with i = t modulo the stride only. XLA instead convolves
    with zeros between the gradient's pixels: 6.7 against 2.7 ms for 3x3, stride 2, 32x32x16 to 32 channels.
    """
    n, h, w, cin = shape
    (sh, sw), (top, left) = strides, (pads[0][0], pads[1][0])
    rows, cols = -(-(h + top) // sh), -(-(w + left) // sw)  # of each phase

    def phase(r, c):
        taps = kernel[r::sh, c::sw]
        a, b = taps.shape[:2]
        if a == 0 or b == 0:
            return jnp.zeros((n, rows, cols, cin), g.dtype)
        taps = taps[::-1, ::-1].transpose(0, 1, 3, 2)
        return _xla_conv(g, taps, (1, 1), ((a - 1, rows - g.shape[1]), (b - 1, cols - g.shape[2])))

    phases = jnp.stack([jnp.stack([phase(r, c) for c in range(sw)], 3) for r in range(sh)], 2)
    return phases.reshape(n, rows * sh, cols * sw, cin)[:, top : top + h, left : left + w]


@jax.named_scope("weight_gradient")
def _kernel_grad(x, g, shape, strides, pads):
    """Weight gradient, [kh, kw, cin, cout], of a convolution of x with output gradient g.

    dk[i, j] = sum over output rows p and columns q of x[p * sh + i, q * sw + j]^T g[p, q] (x padded): for each kernel
    row i one matrix product g^T [cout, pixels] x [pixels, kw * cin], where only the kw shifts along the width are
    copied. A scan over a few images at a time keeps the copies in cache. For 3x3, 32x32x32 to 32: XLA 80, whole patches
    (kh * kw copies) in the same scan 39, this 23, with _rows_of_three 21.
    """
    kh, kw, cin, cout = shape
    n, ho, wo, _ = g.shape
    sh, sw = strides
    of_three = kh == 3 and sh == 1 and ho % 2 == 0 and cin >= 8
    images = largest_divisor(n, _PATCH_BYTES // (4 * ho * wo * kw * cin))

    def row(x, first, step, count):
        return lax.slice_in_dim(x, first, first + (count - 1) * step + 1, step, axis=1)

    def patches(rows):  # [images, r, padded w, cin] to [images * r * wo, kw * cin]
        shifted = [lax.slice_in_dim(rows, j, j + (wo - 1) * sw + 1, sw, axis=2) for j in range(kw)]
        return jnp.concatenate(shifted, -1).reshape(-1, kw * cin)

    def products(x, g):  # [kh or 4, cout, kw * cin]
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        if of_three:
            x = _even_odd_rows([row(x, i, 2, ho // 2) for i in range(4)])
            g0, g1 = row(g, 0, 2, ho // 2), row(g, 1, 2, ho // 2)
            g = (g0, g0 + g1, g0 - g1, g1)
            return jnp.stack([g.reshape(-1, cout).T @ patches(x) for x, g in zip(x, g, strict=True)])
        g, taps = g.reshape(-1, cout).T, [patches(row(x, i, sh, ho)) for i in range(kh)]
        if cin >= 8:
            return jnp.stack([g @ tap for tap in taps])
        # So narrow (an image's colours) that one product of all taps is better: 10 and 6 for 32x32x3 to 32.
        return (g @ jnp.concatenate(taps, -1)).reshape(cout, kh, kw * cin).swapaxes(0, 1)

    steps = [a.reshape(n // images, images, *a.shape[1:]) for a in (x, g)]
    zero = jnp.zeros((4 if of_three else kh, cout, kw * cin), x.dtype)
    total, _ = lax.scan(lambda total, step: (total + products(*step), None), zero, steps)
    if of_three:
        total = _rows_of_three(total)
    return total.reshape(kh, cout, kw, cin).transpose(0, 2, 3, 1)


def _even_odd_rows(d):
    """The other half of _rows_of_three: what the four input rows of a pair of output rows are multiplied as."""
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[3] - d[1]


def _rows_of_three(m):
    """Three kernel rows from the four products of Winograd's F(3, 2).

    Output rows 2p and 2p + 1 with gradients g0, g1 see input rows d0 .. d3. Kernel row i wants d[i] g0 + d[i + 1] g1,
    six products in all; four suffice (Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, 2015):
      m0 = (d0 - d2) g0,  m1 = (d1 + d2)(g0 + g1),  m2 = (d2 - d1)(g0 - g1),  m3 = (d3 - d1) g1,
    rows m0 + (m1 + m2) / 2, (m1 - m2) / 2, (m1 + m2) / 2 + m3. The sums over pixels are taken before, so it costs
    nothing. A third fewer multiplications: 20 to 15 for 16x16x64, 16 to 12 for 8x8x128. (Along the width as well,
    F(3x3, 2x2), the products become too small to be fast: 19 and 12.)
    """
    half_sum, half_difference = (m[1] + m[2]) / 2, (m[1] - m[2]) / 2
    return jnp.stack([m[0] + half_sum, half_difference, half_sum + m[3]])


# Depthwise convolution: shifted multiply-adds, which XLA fuses into one pass. Its convolution takes 118 forward, 118
# and 21 backward for 3x3 on 48x48x8; this 5, 5 and 5. Strided, 24x24x32: 11, 130 and 15 against 1.6, 1.9 and 2.1.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x, kernel, strides, pads):
    return _depthwise_fwd(x, kernel, strides, pads)[0]


def _depthwise_fwd(x, kernel, strides, pads):
    return _shifted_sum(jnp.pad(x, ((0, 0), *pads, (0, 0))), kernel, strides), (x, kernel)


@jax.named_scope("convolution_gradients")
def _depthwise_bwd(strides, pads, saved, g):
    x, kernel = saved
    spread = [(0, 0, 0)]
    for size, out, k, stride, (low, _) in zip(x.shape[1:3], g.shape[1:3], kernel.shape, strides, pads, strict=False):
        spread.append((k - 1 - low, size + low - ((out - 1) * stride + 1), stride - 1))
    dx = _shifted_sum(lax.pad(g, jnp.zeros((), g.dtype), [*spread, (0, 0, 0)]), kernel[::-1, ::-1], (1, 1))
    return dx, _depthwise_kernel_grad(x, g, kernel.shape, strides, pads)


_depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


def _shifted(x, kernel_shape, strides):
    """The strided window of x, [..., h, w, c], under each tap of a kernel, row by row."""
    (kh, kw), (sh, sw) = kernel_shape[:2], strides
    ho, wo = (x.shape[-3] - kh) // sh + 1, (x.shape[-2] - kw) // sw + 1
    for i in range(kh):
        for j in range(kw):
            yield x[..., i : i + (ho - 1) * sh + 1 : sh, j : j + (wo - 1) * sw + 1 : sw, :]


def _shifted_sum(x, kernel, strides):
    taps = kernel.reshape(-1, kernel.shape[-1])
    return sum(tap * window for tap, window in zip(taps, _shifted(x, kernel.shape, strides), strict=True))


@jax.named_scope("weight_gradient")
def _depthwise_kernel_grad(x, g, shape, strides, pads):
    """[kh, kw, 1, c]. On a CPU image by image, or XLA makes kh * kw slow passes over the batch (61 instead of 5)."""
    if jax.default_backend() != "cpu":  # where each step of a scan is programs of its own
        windows = _shifted(jnp.pad(x, ((0, 0), *pads, (0, 0))), shape, strides)
        return jnp.stack([(window * g).sum((0, 1, 2)) for window in windows]).reshape(shape)

    def add(total, image):
        x, g = image
        windows = _shifted(jnp.pad(x, (*pads, (0, 0))), shape, strides)
        return total + jnp.stack([(window * g).sum(0) for window in windows]), None

    total, _ = lax.scan(add, jnp.zeros((shape[0] * shape[1], *g.shape[2:]), x.dtype), (x, g))
    return total.sum(1).reshape(shape)


# ReLU and max-pooling.


@jax.custom_vjp
def relu(x: Array) -> Array:
    """max(x, 0). Keeps its output for the gradient, which the next operation keeps anyway, and not its input."""
    return jnp.maximum(x, 0)


def _relu_fwd(x):
    y = jnp.maximum(x, 0)
    return y, y


relu.defvjp(_relu_fwd, lambda y, g: (jnp.where(y > 0, g, 0),))


def max_pool(x: Array, window: int = 2) -> Array:
    """Largest of each non-overlapping window x window square of [batch, height, width, channels].

    Rows and columns that do not fill a window are dropped ('VALID'); such shapes use XLA's reduce_window. Where several
    elements of a window are the largest, the first of them, row by row, gets the whole gradient, as in XLA.
    """
    if use_own() and x.shape[1] % window == 0 and x.shape[2] % window == 0:
        return _tiled_max_pool(x, window)
    square = (1, window, window, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, square, square, "VALID")


def _tiles(x, k):
    """The k * k elements of each tile, each [batch, height / k, width / k, channels], row by row."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // k, k, w // k, k, c)
    return [x[:, :, i, :, j] for i in range(k) for j in range(k)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _tiled_max_pool(x, k):
    return functools.reduce(jnp.maximum, _tiles(x, k))


def _tiled_max_pool_fwd(x, k):
    tiles = _tiles(x, k)
    y = functools.reduce(jnp.maximum, tiles)
    which = jnp.full(y.shape, k * k - 1, jnp.int32)
    for i in reversed(range(k * k - 1)):
        which = jnp.where(tiles[i] == y, i, which)
    return y, which.astype(jnp.uint8 if k < 16 else jnp.int32)


def _tiled_max_pool_bwd(k, which, g):
    n, h, w, c = g.shape
    place = jnp.arange(k * k, dtype=which.dtype).reshape(k, 1, k, 1)
    dx = jnp.where(which[:, :, None, :, None] == place, g[:, :, None, :, None], 0)
    return (dx.reshape(n, h * k, w * k, c),)


_tiled_max_pool.defvjp(_tiled_max_pool_fwd, _tiled_max_pool_bwd)


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of n that is at most limit (1 if there is none)."""
    return next((d for d in range(min(n, limit), 0, -1) if n % d == 0), 1)

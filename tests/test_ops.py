"""Every operation's values and gradients against float64, and the same bytes twice."""

import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from atalaia import normalization, ops


def _random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def _relative_error(got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want)
    return np.abs(got - want).max() / np.abs(want).max()


def _conv64(x, kernel, g, strides, padding, groups=1):
    """Output, input gradient and weight gradient in numpy, one kernel tap at a time; all arguments float64."""
    (kh, kw, cin, cout), (sh, sw) = kernel.shape, strides
    pads = lax.padtype_to_pads(x.shape[1:3], (kh, kw), strides, padding)
    x = np.pad(x, ((0, 0), *pads, (0, 0)))
    ho, wo = (x.shape[1] - kh) // sh + 1, (x.shape[2] - kw) // sw + 1
    y = np.zeros((x.shape[0], ho, wo, cout))
    dx, dkernel = np.zeros_like(x), np.zeros_like(kernel)
    g = _random(*y.shape, seed=7) if g is None else g
    for i in range(kh):
        for j in range(kw):
            for group in range(groups):
                at = np.s_[:, i : i + (ho - 1) * sh + 1 : sh, j : j + (wo - 1) * sw + 1 : sw]
                at += (np.s_[group * cin : (group + 1) * cin],)
                out = np.s_[..., group * cout // groups : (group + 1) * cout // groups]
                y[out] += x[at] @ kernel[i, j][out]
                dx[at] += g[out] @ kernel[i, j][out].T
                dkernel[i, j][out] += np.tensordot(x[at], g[out], ((0, 1, 2), (0, 1, 2)))
    (top, bottom), (left, right) = pads
    dx = dx[:, top : dx.shape[1] - bottom, left : dx.shape[2] - right]
    return y, dx, dkernel, g


def _value_and_grads(f, g, *args):
    @jax.jit
    def run(g, *args):
        y, vjp = jax.vjp(f, *args)
        return y, *vjp(g)

    return run(jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), g), *(jnp.asarray(a, jnp.float32) for a in args))


class ConvTest(parameterized.TestCase):
    def check(self, x_shape, kernel_shape, strides, padding, groups=1):
        x, kernel = _random(*x_shape), _random(*kernel_shape)
        y, dx, dkernel, g = _conv64(x, kernel, None, strides, padding, groups)

        def conv(x, kernel):
            return ops.conv2d(x, kernel, strides, padding, groups)

        def xla(x, kernel):
            with ops.plain_xla():
                return ops.conv2d(x, kernel, strides, padding, groups)

        for i, (got, want) in enumerate(zip(_value_and_grads(conv, g, x, kernel), (y, dx, dkernel), strict=True)):
            self.assertEqual(got.shape, want.shape)
            error = _relative_error(got, want)
            if error > 1e-5:
                self.assertLessEqual(error, _relative_error(_value_and_grads(xla, g, x, kernel)[i], want))

    @parameterized.product(size=(1, 3, 5, 9), stride=(1, 2), padding=("SAME", "VALID"))
    def test_kernels_strides_paddings(self, size, stride, padding):
        self.check((4, 16, 12, 8), (size, size, 8, 8), (stride, stride), padding)

    @parameterized.product(size=(3, 5), stride=(1, 2))
    def test_three_channels(self, size, stride):
        self.check((4, 16, 12, 3), (size, size, 3, 8), (stride, stride), "SAME")

    @parameterized.product(size=(1, 3), stride=(1, 2, 3), padding=("SAME", "VALID"))
    def test_odd_sizes(self, size, stride, padding):
        self.check((5, 13, 11, 9), (size, size, 9, 7), (stride, stride), padding)

    @parameterized.parameters(
        ((2, 9, 10, 8), (3, 1, 8, 4), (1, 1)),
        ((2, 10, 9, 8), (3, 5, 8, 4), (1, 2)),
        ((2, 9, 10, 8), (2, 4, 8, 4), (2, 1)),
        ((2, 9, 10, 8), (1, 3, 8, 4), (3, 2)),
        ((1, 1, 1, 8), (3, 3, 8, 4), (1, 1)),
        ((2, 2, 2, 8), (3, 3, 8, 4), (2, 2)),
    )
    def test_rectangles_and_tiny_images(self, x_shape, kernel_shape, strides):
        self.check(x_shape, kernel_shape, strides, "SAME")

    @parameterized.product(size=(1, 3, 5), stride=(1, 2), padding=("SAME", "VALID"))
    def test_depthwise(self, size, stride, padding):
        self.check((3, 13, 12, 6), (size, size, 1, 6), (stride, stride), padding, groups=6)

    @parameterized.product(size=(1, 3), stride=(1, 2), padding=("SAME", "VALID"))
    def test_depthwise_as_on_a_gpu(self, size, stride, padding):
        with mock.patch.object(jax, "default_backend", return_value="gpu"):  # another batch: no trace is kept of it
            self.check((2, 13, 12, 6), (size, size, 1, 6), (stride, stride), padding, groups=6)

    def test_on_a_gpu_depthwise_is_neither_xlas_convolution_nor_a_scan(self):
        def graph(groups):
            def loss(x, kernel):
                return ops.conv2d(x, kernel, groups=groups).sum()

            arguments = jnp.zeros((7, 8, 8, 4)), jnp.zeros((3, 3, 4 // groups, 4))
            return str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(*arguments))

        self.assertIn("scan", graph(4))
        with mock.patch.object(jax, "default_backend", return_value="gpu"):
            self.assertNotRegex(graph(4), "conv_general_dilated|scan")
            self.assertIn("conv_general_dilated", graph(1))
            with ops.plain_xla():
                self.assertIn("conv_general_dilated", graph(4))

    @parameterized.parameters((2, 1, 8), (3, 1, 8), (2, 8, 1))
    def test_dilation(self, dilation, groups, channels):
        x, kernel = _random(2, 9, 10, 8), _random(3, 3, channels, 8)
        spread = np.zeros((2 * dilation + 1, 2 * dilation + 1, channels, 8))
        spread[::dilation, ::dilation] = kernel
        y, dx, dspread, g = _conv64(x, spread, None, (1, 1), "SAME", groups)
        expected = y, dx, dspread[::dilation, ::dilation]

        def conv(x, kernel):
            return ops.conv2d(x, kernel, groups=groups, dilation=dilation)

        def xla(x, kernel):
            with ops.plain_xla():
                return conv(x, kernel)

        for function in (conv, xla):
            for got, want in zip(_value_and_grads(function, g, x, kernel), expected, strict=True):
                self.assertLess(_relative_error(got, want), 1e-5)

    def test_dilation_with_strides_is_refused(self):
        with self.assertRaisesRegex(ValueError, "strides of 1"):
            ops.conv2d(jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 4, 4)), (2, 2), dilation=2)

    @parameterized.product(groups=(2, 4), stride=(1, 2))
    def test_groups(self, groups, stride):
        self.check((3, 10, 11, 16), (3, 3, 16 // groups, 8), (stride, stride), "SAME", groups)

    def test_depth_multiplier(self):
        self.check((3, 10, 11, 4), (3, 3, 1, 8), (1, 1), "SAME", groups=4)

    @parameterized.parameters(16, 31)
    def test_scan_of_several_steps(self, batch):
        self.check((batch, 32, 32, 32), (3, 3, 32, 8), (1, 1), "SAME")

    def test_plain_xla_is_a_convolution(self):
        def graph():
            def f(x, kernel):  # a new function each time: the choice is made when it is traced
                return ops.max_pool(ops.conv2d(x, kernel, groups=4))

            return str(jax.make_jaxpr(f)(jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 1, 4))))

        with ops.plain_xla():
            inside = graph()
        self.assertIn("conv_general_dilated", inside)
        self.assertIn("reduce_window_max", inside)
        self.assertNotIn("conv_general_dilated", graph())


class PoolTest(parameterized.TestCase):
    @parameterized.parameters((8, 8, 2), (9, 9, 3), (6, 10, 2), (9, 8, 2), (7, 7, 3))
    def test_agrees_with_reduce_window(self, height, width, window):
        # Few different values, so that ties are common.
        x = np.round(_random(3, height, width, 5)).astype(np.float32)
        g = _random(3, height // window, width // window, 5)

        def reference(x):
            square = (1, window, window, 1)
            return lax.reduce_window(x, -jnp.inf, lax.max, square, square, "VALID")

        got = _value_and_grads(lambda x: ops.max_pool(x, window), g, x)
        want = _value_and_grads(reference, g, x)
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[1], want[1])

    def test_gradient_by_hand(self):
        x = np.array([[1, 2, 5, 5], [4, 3, 5, 0], [0, 0, -3, -1], [0, 0, -1, -2]]).reshape(1, 4, 4, 1)
        g = np.array([[10, 20], [30, 40]]).reshape(1, 2, 2, 1)
        want = [[0, 0, 20, 0], [10, 0, 0, 0], [30, 0, 0, 40], [0, 0, 0, 0]]
        y, dx = _value_and_grads(ops.max_pool, g, x)
        np.testing.assert_array_equal(y[0, :, :, 0], [[4, 5], [0, -1]])
        np.testing.assert_array_equal(dx[0, :, :, 0], want)


class CompilerTest(absltest.TestCase):
    def test_a_shape_that_ends_the_compiler_without_our_flags(self):
        """In a program of its own: it would take the tests along."""
        program = """if True:
            import jax
            import atalaia
            from atalaia import ops

            x, g = jax.numpy.zeros((64, 60, 80, 8)), jax.numpy.zeros((64, 30, 40, 16))
            gradient = jax.jit(lambda x, g: ops._kernel_grad(x, g, (3, 3, 8, 16), (2, 2), ((0, 1), (0, 1))))
            gradient.lower(x, g).compile()
            print("compiled")
        """
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        self.assertEqual((done.stdout, done.returncode), ("compiled\n", 0), done.stderr)


class NormTest(parameterized.TestCase):
    @parameterized.parameters(((16, 8, 8, 32), 0.0), ((5, 7, 3, 6), 0.0), ((64, 32, 32, 8), 0.0), ((8, 9, 9, 4), 100.0))
    def test_batch_norm(self, shape, offset):
        x = (_random(*shape) * 3 + offset).astype(np.float32)
        scale, bias = _random(shape[-1], seed=1), _random(shape[-1], seed=2)
        grads = (_random(*shape, seed=3), _random(shape[-1], seed=4), _random(shape[-1], seed=5))

        def reference(x, scale, bias):
            mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            return (x - mean) / jnp.sqrt(var + 1e-3) * scale + bias, mean, var

        got = _value_and_grads(lambda *args: normalization.batch_norm(*args, 1e-3), grads, x, scale, bias)
        with jax.enable_x64(True):
            args = [jnp.asarray(np.asarray(a, np.float32), jnp.float64) for a in (x, scale, bias)]
            want, vjp = jax.vjp(reference, *args)
            want = (want, *vjp(tuple(jnp.asarray(np.asarray(g, np.float32), jnp.float64) for g in grads)))
        # Where the mean is large, x - mean itself has lost digits: float32's 6e-8 of 100 in 3 is 2e-6.
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            self.assertLessEqual(_relative_error(a, b), 1e-5)

    @parameterized.product(shifted=(False, True), relu=(False, True), offset=(0.0, 30.0))
    def test_what_is_put_in_front(self, shifted, relu, offset):
        x, g = (_random(16, 8, 7, 12) + offset).astype(np.float32), (_random(16, 8, 7, 12, seed=3), *_random(2, 12))
        shift = _random(12, seed=6).astype(np.float32) - np.float32(offset)
        args = (x, _random(12, seed=1), _random(12, seed=2)) + (shift,) * shifted

        def own(x, scale, bias, shift=None):
            return normalization.batch_norm(x, scale, bias, 1e-3, shift=shift, relu=relu)

        def reference(x, scale, bias, shift=0):
            u = jnp.maximum(x + shift, 0) if relu else x + shift
            mean, var = u.mean((0, 1, 2)), u.var((0, 1, 2))
            return (u - mean) / jnp.sqrt(var + 1e-3) * scale + bias, mean, var

        got = _value_and_grads(own, g, *args)
        with jax.enable_x64(True):
            in64 = jax.tree.map(lambda a: jnp.asarray(np.asarray(a, np.float32), jnp.float64), (args, tuple(g)))
            want, vjp = jax.vjp(reference, *in64[0])
            want = (want, *vjp(in64[1]))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            self.assertLessEqual(_relative_error(a, b), 1e-5)

    def test_add_bias_and_relu(self):
        x, bias, g = _random(16, 9, 9, 12), _random(12, seed=1), _random(16, 9, 9, 12, seed=2)
        y, dx, dbias = _value_and_grads(lambda x, b: ops.relu(normalization.add_bias(x, b)), g, x, bias)
        z = x.astype(np.float32) + bias.astype(np.float32)
        np.testing.assert_array_equal(y, np.maximum(z, 0))
        np.testing.assert_array_equal(dx, np.where(z > 0, g, 0).astype(np.float32))
        self.assertLessEqual(_relative_error(dbias, np.where(z > 0, g, 0).sum((0, 1, 2))), 1e-5)


class WholeTest(absltest.TestCase):
    def network(self):
        def loss(params, x):
            k1, b1, k2, k3, k4, scale, bias = params
            x, mean, var = normalization.batch_norm(ops.conv2d(x, k1), scale, bias, 1e-3, shift=b1, relu=True)
            x = ops.max_pool(ops.conv2d(x, k2))
            x = ops.conv2d(ops.conv2d(x, k3, groups=16), k4, (2, 2))
            return jnp.square(x).mean() + 0 * (mean + var).sum()

        shapes = ((3, 3, 3, 16), (16,), (3, 3, 16, 16), (3, 3, 1, 16), (1, 1, 16, 8), (16,), (16,))
        params = [jnp.asarray(_random(*s, seed=i), jnp.float32) for i, s in enumerate(shapes)]
        return loss, params, jnp.asarray(_random(32, 32, 32, 3), jnp.float32)

    def test_same_bytes_twice(self):
        loss, params, x = self.network()
        grad = jax.jit(jax.grad(loss))
        first = jax.tree.map(np.asarray, grad(params, x))
        jax.clear_caches()  # a second process would compile again too
        again = jax.jit(jax.grad(loss))
        for _ in range(3):
            for a, b in zip(first, again(params, x), strict=True):
                self.assertEqual(a.tobytes(), np.asarray(b).tobytes())

    def test_a_network_in_float64(self):
        loss, params, x = self.network()
        got = jax.jit(jax.grad(loss))(params, x)
        with jax.enable_x64(True), ops.plain_xla():
            want = jax.jit(jax.grad(loss))(
                *jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), (params, x))
            )
            want = jax.tree.map(np.asarray, want)
        for a, b in zip(got, want, strict=True):
            self.assertLessEqual(_relative_error(a, b), 1e-5)  # XLA's own float32 gradients: up to 1.6e-4


if __name__ == "__main__":
    absltest.main()

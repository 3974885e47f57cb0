"""Scales, rounding and BatchNorm folding against values worked out by hand and against the network itself."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from atalaia import folding, layers, quantize
from atalaia.errors import UserError
from atalaia.folding import Folded
from atalaia.models import resnet, thesis
from atalaia.quantize import QLayer, QParams


class Mini(nn.Module):
    """Both places of BatchNorm, a depthwise layer with two filters a channel, strides 2, Add, Mul."""

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Conv(6, norm="after", name="first")(x, train)
        x = layers.Conv(12, strides=2, depthwise=True, norm="before", name="depthwise")(x, train)
        y = layers.Conv(12, kernel=1, norm="after", relu=False, name="point")(x, train)
        x = layers.Mul(name="gate")(layers.Add(relu=True, name="add")(x, y), y)
        x = layers.MaxPool(name="pool")(x)
        x = layers.Flatten(name="flatten")(layers.GlobalAvgPool(name="mean")(x))
        return layers.Dense(3, name="logits")(x, train)


def apply_folded(model, folded, x):
    """Logits of the folded network in float32."""
    return layers.interpret(model, lambda path, layer, *xs: folding.apply_layer(layer, folded.get(path), *xs), x)


class Small(nn.Module):
    """One convolution, pooling and a flattening: one layer that chooses a scale, two that keep it."""

    norm: str = ""
    relu: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Conv(2, kernel=1, norm=self.norm, relu=self.relu, name="conv")(x, train)
        return layers.Flatten(name="flatten")(layers.MaxPool(name="pool")(x))


NETWORKS = (
    ("thesis", thesis.Thesis(outputs=5, widths=(4, 6, 8), hidden=16), (16, 16, 3)),
    ("thesis_odd", thesis.Thesis(outputs=5, widths=(4, 6, 8), hidden=16), (19, 13, 1)),
    ("resnet8", resnet.ResNet8(outputs=4, widths=(4, 8, 12)), (16, 16, 3)),
    ("resnet8_odd", resnet.ResNet8(outputs=4, widths=(4, 8, 12)), (15, 9, 3)),
    ("mini", Mini(), (11, 9, 2)),
)


def drawn(model, shape, seed=0):
    """Variables of a network with biases and BatchNorms of both signs, the first channel's scale exactly 0."""
    random = np.random.default_rng(seed)

    def value(path, leaf):
        keys = [key.key for key in path]
        if keys[-1] == "var":
            return random.uniform(0.5, 2, leaf.shape).astype(np.float32)
        size = np.sqrt(2 / np.prod(leaf.shape[:-1]))  # He et al., 2015; 1.4 for a bias
        drawn = random.normal(0, size, leaf.shape).astype(np.float32)
        if keys[-2:] == ["norm", "scale"]:
            drawn[:3] = 0, -1, 1  # both signs whatever the draw
        return drawn

    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    return jax.tree_util.tree_map_with_path(value, shapes)


def images(shape, n=8, seed=0):
    return np.random.default_rng(seed).random((n, *shape), np.float32)


class QuantizeTest(absltest.TestCase):
    def test_ties_go_to_even(self):
        x = np.float32([0.25, 0.75, 1.25, -0.25, -0.75])  # 0.5, 1.5, 2.5, -0.5, -1.5 steps
        np.testing.assert_array_equal(quantize.quantize(x, 0.5, 10), [10, 12, 12, 10, 8])

    def test_clips_at_both_ends(self):
        x = np.float32([-64.5, -1000, 63.6, 1000])
        np.testing.assert_array_equal(quantize.quantize(x, 0.5, 0), [-128, -128, 127, 127])
        np.testing.assert_array_equal(quantize.quantize(x, 0.5, 0, -127), [-127, -127, 127, 127])

    def test_zero_point_shifts_the_grid_and_its_ends(self):
        x = np.float32([0, 1, -0.4, 200])
        np.testing.assert_array_equal(quantize.quantize(x, 1, -100), [-100, -99, -100, 100])
        np.testing.assert_array_equal(quantize.fake_quant(x, 1, -100), [0, 1, 0, 200])
        np.testing.assert_array_equal(quantize.fake_quant(np.float32([300, -30]), 1, -100), [227, -28])

    def test_per_channel_axis(self):
        x = np.ones((2, 2), np.float32)
        scale, zero_point = np.float32([0.5, 0.25]), np.float32([0, 1])
        np.testing.assert_array_equal(quantize.quantize(x, scale, zero_point, axis=0), [[2, 2], [5, 5]])
        np.testing.assert_array_equal(quantize.quantize(x, scale, zero_point, axis=1), [[2, 5], [2, 5]])
        np.testing.assert_array_equal(quantize.quantize(x, scale, zero_point, axis=-1), [[2, 5], [2, 5]])
        np.testing.assert_array_equal(quantize.fake_quant(x / 3, scale, zero_point, axis=0), [[0.5] * 2, [0.25] * 2])

    def test_fake_quant_is_idempotent(self):
        random = np.random.default_rng(0)
        for scale, zero_point in zip(np.geomspace(1e-6, 3, 50), np.linspace(-128, 127, 50).round(), strict=True):
            once = quantize.fake_quant(random.normal(0, 200 * scale, 1000).astype(np.float32), scale, zero_point)
            np.testing.assert_array_equal(quantize.fake_quant(once, scale, zero_point), once)

    def test_nearest_grid_point(self):
        x = np.linspace(-1, 1, 1001, dtype=np.float32)
        error = np.abs(quantize.fake_quant(x, np.float32(2 / 255), 0) - x)
        self.assertLessEqual(error.max(), 1.0001 / 255)


class ChooseQParamsTest(parameterized.TestCase):
    @parameterized.parameters(
        (0.0, 2.55, 0.01, -128),
        (-2.55, 0.0, 0.01, 127),
        (-1.0, 1.55, 0.01, -28),
        (1.0, 2.55, 0.01, -128),  # all positive: the range grows to hold zero
        (-2.55, -1.0, 0.01, 127),
        (0.0, 0.0, 2.0**-20, -128),  # nothing ever fired
        (5e-324, 5e-324, 2.0**-20, -128),
    )
    def test_by_hand(self, low, high, scale, zero_point):
        found = quantize.choose_qparams(low, high)
        self.assertEqual(found, QParams(np.float32(scale), zero_point))
        self.assertIsInstance(found.scale, np.float32)

    def test_covers_the_range_within_half_a_step(self):
        random = np.random.default_rng(0)
        for low, high in np.sort(random.normal(0, 10, (500, 2)) ** 3, axis=1):
            scale, zero_point = quantize.choose_qparams(low, high)
            self.assertBetween(zero_point, -128, 127)  # so zero is a grid point
            half = scale * 0.5001
            self.assertLessEqual((-128 - zero_point) * float(scale), min(low, 0) + half)
            self.assertGreaterEqual((127 - zero_point) * float(scale), max(high, 0) - half)

    def test_the_same_compiled(self):
        ranges = np.random.default_rng(0).normal(0, 10, (2, 20_000)).astype(np.float32)
        low, high = ranges.min(0), ranges.max(0)
        compiled, exact = jax.jit(quantize.qparams_of)(low, high), quantize.qparams_of(low, high, np)
        for a, b in zip(compiled, exact, strict=True):
            np.testing.assert_array_equal(a, b)

    @parameterized.parameters((np.nan, 1), (0, np.nan), (-np.inf, 0), (0, np.inf), (1, 0))
    def test_refuses(self, low, high):
        with self.assertRaisesRegex(ValueError, "no int8 scale"):
            quantize.choose_qparams(low, high)


class FoldTest(parameterized.TestCase):
    @parameterized.named_parameters(*NETWORKS)
    def test_equals_the_networks_own_inference(self, model, shape):
        variables = drawn(model, shape)
        x = images(shape)
        folded = folding.fold(model, variables)
        expected, found = jax.jit(lambda x: (model.apply(variables, x), apply_folded(model, folded, x)))(x)
        self.assertGreater(expected.std(), 0.01)  # the images matter
        np.testing.assert_allclose(found, expected, atol=1e-4 * jnp.abs(expected).max())

    def _small(self, gamma):
        """conv 2x + 1, BatchNorm with mean 0.5 and beta 3; variance + epsilon is 1, so a = gamma, t = 3 - 0.5 gamma."""
        norm = dict(scale=np.full(2, gamma), bias=np.full(2, 3.0))
        stats = dict(mean=np.full(2, 0.5), var=np.full(2, 1 - layers.BATCH_NORM_EPSILON))
        variables = dict(
            params=dict(conv=dict(kernel=np.full((1, 1, 1, 2), 2.0), bias=np.ones(2), norm=norm)),
            batch_stats=dict(conv=dict(norm=stats)),
        )
        model = Small(norm="after", relu=True)
        return model, folding.fold(model, variables)["conv"]

    def test_positive_scale_becomes_a_lower_bound(self):
        _, found = self._small(2.0)  # 2 relu(2x + 1) + 2 = max(4x + 4, 2)
        np.testing.assert_allclose(found.kernel.ravel(), [4, 4], rtol=1e-6)
        np.testing.assert_allclose(found.bias, [4, 4], rtol=1e-6)
        np.testing.assert_allclose(found.lower, [2, 2], rtol=1e-6)
        np.testing.assert_array_equal(found.upper, [np.inf, np.inf])
        self.assertFalse(found.relu)

    def test_negative_scale_becomes_an_upper_bound(self):
        _, found = self._small(-2.0)  # -2 relu(2x + 1) + 4 = min(-4x + 2, 4)
        np.testing.assert_allclose(found.kernel.ravel(), [-4, -4], rtol=1e-6)
        np.testing.assert_allclose(found.bias, [2, 2], rtol=1e-6)
        np.testing.assert_allclose(found.upper, [4, 4], rtol=1e-6)
        np.testing.assert_array_equal(found.lower, [-np.inf, -np.inf])

    @parameterized.parameters((2.0, 2.0, 6.0), (-2.0, 4.0, 0.0), (0.0, 3.0, 3.0))
    def test_bounds_by_hand(self, gamma, below, above):
        model, folded = self._small(gamma)
        dark, light = np.full((1, 2, 2, 1), -1, np.float32), np.full((1, 2, 2, 1), 0.5, np.float32)  # 2x + 1 = -1 and 2
        found = [apply_folded(model, {"conv": folded}, x) for x in (dark, light)]
        np.testing.assert_allclose(found, [[[below] * 2], [[above] * 2]], rtol=1e-6, atol=1e-6)


class QuantizeLayerTest(absltest.TestCase):
    def setUp(self):
        self.given = QParams(np.float32(1 / 255), -128)
        self.output = QParams(np.float32(0.05), -28)

    def _layer(self, kernel, bias, **bounds):
        weights = Folded(np.float32(kernel), np.float32(bias), False, **bounds)
        return quantize._quantize_layer(weights, self.given, self.output)

    def test_weights_within_half_a_step(self):
        kernel = np.random.default_rng(0).normal(0, [1, 0.01, 100, 3], (3, 3, 5, 4)).astype(np.float32)
        found = self._layer(kernel, np.zeros(4))
        self.assertEqual((found.kernel.dtype, found.bias.dtype), (np.int8, np.int32))
        error = np.abs(found.kernel * found.weight_scale.astype(np.float64) - kernel) / found.weight_scale
        self.assertLessEqual(error.max(), 0.50001)

    def test_each_channels_largest_weight_is_127(self):
        found = self._layer(np.array([[63.5, -127], [-127, 42.3]]) * [1 / 64, 1 / 32], np.zeros(2))
        np.testing.assert_array_equal(found.weight_scale, [1 / 64, 1 / 32])
        np.testing.assert_array_equal(found.kernel, [[64, -127], [-127, 42]])  # 63.5 is a tie

    def test_scales_have_eight_bits(self):
        found = self._layer(np.random.default_rng(0).normal(0, 1, (9, 50)), np.zeros(50))
        self.assertTrue(np.all(found.weight_scale.view(np.uint32) & 0xFFFF == 0))
        self.assertBetween(np.abs(found.kernel).max(0).min(), 126, 127)

    def test_scales_are_the_same_compiled(self):
        kernel = np.random.default_rng(0).normal(0, 1, (1, 2_000_000)).astype(np.float32)
        given = kernel, np.float32(0), self.given.scale
        compiled = jax.jit(quantize.weight_scale, static_argnums=3)(*given, 7)
        np.testing.assert_array_equal(compiled, quantize.weight_scale(*given, 7))

    def test_sums_that_tflite_would_shift_out_of_32_bits_are_refused(self):
        """The ratio of scales is 2^12 / 2, and 255 * 127 * 17 * 2^12 > 2^31 > 255 * 127 * 16 * 2^12."""
        given, output = QParams(np.float32(1), -128), QParams(np.float32(2**-11), 0)
        for taps, refused in ((16, False), (17, True)):
            layer = QLayer(np.full((taps, 1), 127, np.int8), np.int32([0]), np.float32([1]), None, None, output)
            with self.assertRaisesRegex(UserError, "'conv'.*32 bits") if refused else contextlib.nullcontext():
                quantize._require_int32("conv", layer, given)

    def test_codes_of_fewer_bits(self):
        kernel = np.random.default_rng(0).normal(0, 1, (9, 50)).astype(np.float32)
        for bits, largest in ((4, 7), (3, 3), (2, 1)):
            weights = Folded(kernel, np.zeros(50, np.float32), False)
            found = quantize._quantize_layer(weights, self.given, self.output, quantize.BITS[bits])
            np.testing.assert_array_equal(np.abs(found.kernel).max(0), largest)

    def test_biases_by_hand(self):
        found = self._layer([[127 / 128, 127 / 64]], [1.0, -1.0])
        np.testing.assert_array_equal(found.bias, [255 * 128, -255 * 64])

    def test_zeros_stay_zeros(self):
        kernel = np.random.default_rng(0).normal(0, 1, (3, 3, 4, 8)).astype(np.float32)
        kernel[kernel < 0.5] = 0
        self.assertTrue(np.all(self._layer(kernel, np.ones(8)).kernel[kernel == 0] == 0))

    def test_a_pruned_channels_bias_does_not_overflow(self):
        bias = np.float32([500, -500, 1e-3, 0, 1])
        kernel = np.zeros((4, 5), np.float32)
        kernel[0, 4] = 1e-30  # so small that it had better be pruned
        found = self._layer(kernel, bias)
        real = found.bias * (self.given.scale * found.weight_scale).astype(np.float64)
        np.testing.assert_allclose(real, bias, rtol=1e-6, atol=2.0**-20 / 255)
        np.testing.assert_array_equal(found.kernel, 0)
        self.assertGreaterEqual(found.weight_scale.min(), 2.0**-20)

    def test_bounds_by_hand(self):
        lower, upper = np.float32([-np.inf, 1, -100]), np.float32([np.inf, 3.0, 100])
        found = self._layer(np.ones((1, 3)), np.zeros(3), lower=lower, upper=upper)
        np.testing.assert_array_equal(found.lower, [-128, -8, -128])  # 1 / 0.05 - 28
        np.testing.assert_array_equal(found.upper, [127, 32, 127])

    def test_network_hands_scales_on(self):
        model, shape = Mini(), (11, 9, 2)
        folded = folding.fold(model, drawn(model, shape))
        ranges = quantize.calibrate(model, folded, [images(shape)])
        network = quantize.quantize_network(model, folded, quantize.output_grids(ranges))
        self.assertEqual(set(network), {"first", "depthwise", "point", "add", "gate", "logits"})
        for name in ("add", "gate"):
            self.assertEqual(network[name], quantize.choose_qparams(*ranges[name]))
        # The pooling keeps the product's scale, so that the last biases are in steps of it.
        step = network["gate"].scale * network["logits"].weight_scale
        np.testing.assert_array_equal(network["logits"].bias, np.round(folded["logits"].bias / np.float64(step)))


class CalibrateTest(absltest.TestCase):
    def setUp(self):
        self.model = Small()
        kernel = np.float32([2, -1]).reshape(1, 1, 1, 2)
        self.folded = {"conv": Folded(kernel, np.float32([0, 0.5]), False)}

    def test_extremes_over_all_batches(self):
        batches = [images((4, 4, 1), n, n) * brightest for n, brightest in ((3, 2), (5, 3), (2, 1))]
        found = quantize.calibrate(self.model, self.folded, batches)
        self.assertEqual(set(found), {"conv"})  # pooling and flattening keep its scale
        x = np.concatenate([b.ravel() for b in batches])
        np.testing.assert_allclose(found["conv"], ((0.5 - x).min(), (2 * x).max()), rtol=1e-6)

    def test_broken_weights_name_the_first_broken_layer(self):
        model, shape = resnet.ResNet8(outputs=4, widths=(4, 8, 12)), (16, 16, 3)
        for path in ("conv", "block1s", "logits"):
            folded = folding.fold(model, drawn(model, shape))
            folded[path].kernel[..., 0] = np.nan
            with self.subTest(path), self.assertRaisesRegex(UserError, f"'{path}'.*train again"):
                quantize.calibrate(model, folded, [images(shape)])

    def test_infinite_weights_are_refused(self):
        self.folded["conv"].bias[1] = np.inf
        with self.assertRaisesRegex(UserError, "'conv'"):
            quantize.calibrate(self.model, self.folded, [images((4, 4, 1))])


if __name__ == "__main__":
    absltest.main()

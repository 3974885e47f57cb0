"""Bits by cost and harm, against cases worked out by hand; costs against those of a file's C."""

import copy
import json
import tempfile
from pathlib import Path
from unittest import mock

import flatbuffers
import jax
import numpy as np
from absl.testing import absltest, parameterized
from ai_edge_litert import schema_py_generated as schema
from int8_models import convolution
from test_quantize import Mini, drawn, images

from atalaia import bits, data, layers, quantize, tflite
from atalaia import config as configs
from atalaia.codegen import forecast, lowering
from atalaia.codegen.forecast import Cost
from atalaia.errors import UserError
from atalaia.quantize import QLayer, QParams


def by_bits(*numbers):
    """Costs of 8, 4, 3 and 2 bits, of so many bytes and ten times the instructions."""
    return {b: Cost(n, 0, 10.0 * n) for b, n in zip((8, 4, 3, 2), numbers, strict=True)}


COSTS = dict(a=by_bits(80, 40, 30, 20), b=by_bits(8, 4, 3, 2), given=by_bits(9, 9, 9, 9))
# A byte less of a harms by 1/40, then 4/10, 7/10 (8 bits to 2 at once: 12/60); of b by 2/4, ...
HARMS = dict(a={8: 0.0, 4: 1.0, 3: 5.0, 2: 12.0}, b={8: 0.0, 4: 2.0, 3: 2.0, 2: 9.0})
FIRST = dict(a=8, b=8, given=8)


class AllotTest(parameterized.TestCase):
    @parameterized.parameters(
        (97, dict(a=8, b=8)),
        (60, dict(a=4, b=8)),
        (57, dict(a=4, b=8)),
        (50, dict(a=3, b=8)),
        (47, dict(a=3, b=8)),
        (45, dict(a=3, b=3)),
        (31, dict(a=2, b=2)),
        (5, dict(a=2, b=2)),  # cannot be reached
    )
    def test_by_hand(self, budget, wanted):
        found = bits.allot(FIRST, HARMS, COSTS, "bytes", budget)
        self.assertEqual(found, wanted | dict(given=8))
        self.assertEqual(FIRST, dict(a=8, b=8, given=8))

    def test_what_was_saved_too_much_is_given_back(self):
        """b goes first, for it harms least a byte; when a has gone too, there is room for b again."""
        harms = dict(a={8: 0.0, 4: 9.0}, b={8: 0.0, 4: 0.1})
        self.assertEqual(bits.allot(FIRST, harms, COSTS, "bytes", 60), dict(a=4, b=8, given=8))

    def test_milliseconds(self):
        costs = {path: {b: Cost(100, 0, 1e6 * b) for b in (8, 4, 3, 2)} for path in FIRST}
        others = [Cost(0, 0, 5e6)]
        budget = forecast.milliseconds([costs["a"][8]] * 2 + [costs["a"][4]] + others)
        self.assertEqual(bits.allot(FIRST, HARMS, costs, "ms", budget, others), dict(a=4, b=8, given=8))


class ScaleTest(absltest.TestCase):
    def test_a_grid_that_fits_is_found(self):
        kernel = np.float32([[0.5, 3], [-0.5, -2], [0, 1]])
        np.testing.assert_allclose(bits.fitted_scale(kernel[:, :1], 1), [0.5])
        np.testing.assert_allclose(bits.fitted_scale(kernel[:, 1:], 3), [1.0])

    def test_ternary_scale_of_a_normal_distribution(self):
        """Least squared error of three levels, Lloyd and Max: 1.22 standard deviations."""
        kernel = np.random.default_rng(0).normal(0, 1, (20000, 1)).astype(np.float32)
        self.assertAlmostEqual(float(bits.fitted_scale(kernel, 1)[0]), 1.22, delta=0.12)


def bounded(file, **bounds):
    """A file of one operator, with MAXIMUM and MINIMUM of int8 values by channel behind it."""
    model = schema.ModelT.InitFromPackedBuf(file, 0)
    (graph,) = model.subgraphs
    for kind, values in bounds.items():
        code, buffer, op = schema.OperatorCodeT(), schema.BufferT(), schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, kind)
        buffer.data = values.view(np.uint8)
        (last,) = graph.outputs
        constant, out = (copy.copy(graph.tensors[last]) for _ in range(2))
        constant.shape, constant.buffer = [len(values)], len(model.buffers)
        op.inputs, op.opcodeIndex = [last, len(graph.tensors)], len(model.operatorCodes)
        op.outputs = graph.outputs = [len(graph.tensors) + 1]
        model.buffers.append(buffer)
        model.operatorCodes.append(code)
        graph.tensors += [constant, out]
        graph.operators.append(op)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class StepTest(parameterized.TestCase):
    @parameterized.parameters(
        (None, None),
        (np.int8([-128, -20, 5, -128, 127]), np.int8([127, 100, 127, 5, 127])),
    )
    def test_it_is_what_codegen_lowers_a_file_to(self, lower, upper):
        kernel = np.random.default_rng(0).integers(-9, 10, (5, 3, 3, 7)).astype(np.int8)
        file = convolution(kernel, (6, 9), 2, True)
        graph = tflite.read(file if lower is None else bounded(file, MAXIMUM=lower, MINIMUM=upper))
        (_, wanted, _), (op, *_) = lowering.lower(graph).steps, graph.operators
        given, weights, bias, output = (graph.tensors[i] for i in (*op.inputs, *op.outputs))
        grids = [QParams(t.scale[0], int(t.zero_point[0])) for t in (given, output)]
        layer = QLayer(np.moveaxis(kernel, 0, -1), bias.data, weights.scale, lower, upper, grids[1])
        conv = layers.Conv(5, strides=2)
        integers = bits._integers(conv, layer, grids[0], given.shape)
        found = forecast._step(conv, given.shape, output.shape, integers=integers)
        self.assertEqual(found.kind, wanted.kind)
        for name, value in found.values.items():
            np.testing.assert_array_equal(value, wanted.values[name], name)


class ChooseTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model, shape = Mini(), (11, 9, 2)
        cls.variables = drawn(cls.model, shape)
        pixels = np.round(images(shape, 40) * 255).astype(np.uint8)
        outputs = jax.eval_shape(cls.model.apply, cls.variables, images(shape, 40)).shape[1]
        split = data.Split(pixels, np.arange(40) % outputs)
        cls.dataset = data.Dataset("drawn", split, split, split, tuple(map(str, range(outputs))), pixels[:0])
        cls.config = configs.base()
        cls.config.quantize.bits, cls.config.quantize.budget = "first=4; .=auto", 1000.0

    def test_bits_fit_the_budget_and_are_written(self):
        with tempfile.TemporaryDirectory() as folder:
            found = bits.choose(self.config, self.model, self.variables, self.dataset, Path(folder))
            said = json.loads((Path(folder) / "bits.json").read_text())
        self.assertEqual({*found, "first"}, {*quantize.linear_paths(self.model)})
        self.assertEqual({row["layer"]: row["bits"] for row in said["layers"]}, found | dict(first=4))
        self.assertLess(min(found.values()), 8)
        self.assertLessEqual(said["found"], 1000)

    def test_a_budget_that_no_bits_fit_is_refused_before_training(self):
        config = self.config.copy_and_resolve_references()
        config.quantize.budget = 100.0
        harmless = mock.patch.object(bits, "_loss", return_value=lambda kernels: 0.0)
        with tempfile.TemporaryDirectory() as folder, harmless:
            with self.assertRaisesRegex(UserError, "even with the fewest bits the network takes .* bytes: prune more"):
                bits.choose(config, self.model, self.variables, self.dataset, Path(folder))
            self.assertEqual(list(Path(folder).iterdir()), [])
        with self.assertRaisesRegex(UserError, "even with 2 bits .* takes about .* bytes: prune more"):
            bits.refuse_impossible(config, self.model, self.variables["params"], (11, 9, 2))


if __name__ == "__main__":
    absltest.main()

"""A network of two outputs through the whole chain: trained on the grids, in integers, TFLite Micro and C."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict
from test_boards import BOARDS, require

from atalaia import config as configs
from atalaia import data, engines, export, folding, layers, qat, quantize, simulate, tasks
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import answers, boards
from atalaia.errors import UserError


class TwoHeads(nn.Module):
    """A map of one channel, and one of three, from the same features."""

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Conv(8, strides=2, norm="before", name="stem")(x, train)
        small = layers.Conv(1, kernel=1, relu=False, name="small")(x, train)
        return dict(wide=layers.Conv(3, kernel=1, relu=False, name="wide")(x, train), small=small)


SHAPE = (8, 10, 1)


def pixels(n=12):
    return np.random.RandomState(0).randint(0, 256, (n, *SHAPE)).astype(np.uint8)


class HeadsTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model = TwoHeads()
        variables = cls.model.init(jax.random.key(1), np.zeros((1, *SHAPE), np.float32))
        folded = folding.fold(cls.model, variables)
        cls.ranges = quantize.calibrate(cls.model, folded, [data.to_float(pixels())])
        cls.folded = folded
        cls.network = quantize.quantize_network(cls.model, folded, quantize.output_grids(cls.ranges))
        cls.content = export.convert(cls.model, cls.network, SHAPE)
        cls.outputs, cls.grids = simulate.run(cls.model, cls.network, pixels())

    def test_integers_are_those_of_tflite_micro(self):
        self.assertEqual({name: head.shape for name, head in self.outputs.items()}, SHAPES)
        small, wide = engines.run("tflm", self.content, pixels())  # in the order of their names
        np.testing.assert_array_equal(self.outputs["small"], small)
        np.testing.assert_array_equal(self.outputs["wide"], wide)
        self.assertEqual(engines.output_grids(self.content), [tuple(self.grids[name]) for name in ("small", "wide")])

    def test_training_on_the_grids_sees_the_integers(self):
        config = configs.base().quantize
        params, stats = qat.enter(self.folded, self.ranges, config)
        forward = qat.make_forward(self.model, ConfigDict(config.to_dict()), 10)
        found, _ = forward(dict(params=params, batch_stats=stats), data.to_float(pixels()))
        for name, grid in self.grids.items():
            codes = np.round(found[name] / grid.scale) + grid.zero_point
            np.testing.assert_array_equal(codes, self.outputs[name])

    def test_c_gives_every_byte_of_both(self):
        folder = Path(self.create_tempdir().full_path) / "heads"
        codegen.generate(self.content, folder, pixels(), samples=12)
        found = boards.run(folder, "host")
        self.assertEqual((found["samples"], found["equal"]), (12, 12))


class Detector(nn.Module):
    """The heads of task detect, at half the size."""

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Conv(8, strides=2, norm="before", name="stem")(x, train)
        box = layers.Conv(4, kernel=1, relu=False, name="box")(x, train)
        return dict(centre=layers.Conv(2, kernel=1, relu=False, name="centre")(x, train), box=box)


class DetectorTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        model = Detector()
        variables = model.init(jax.random.key(3), np.zeros((1, *SHAPE), np.float32))
        folded = folding.fold(model, variables)
        ranges = quantize.calibrate(model, folded, [data.to_float(pixels())])
        network = quantize.quantize_network(model, folded, quantize.output_grids(ranges))
        cls.content = export.convert(model, network, SHAPE)
        cls.outputs, cls.grids = simulate.run(model, network, pixels())
        cls.config = configs.base()
        cls.config.task = "detect"
        cls.config.detect.stride, cls.config.detect.threshold, cls.config.detect.most = 2, 0.5, 5

    @parameterized.parameters(*BOARDS)
    def test_the_boxes_in_c_are_those_of_the_task(self, board):
        require(self, board)
        folder = Path(self.create_tempdir().full_path) / "detector"
        codegen.generate(self.content, folder, pixels(), samples=12, task="detect", fields=self.config.detect)
        found = boards.run(folder, board)
        self.assertEqual((found["equal"], found["answers_equal"]), (12, 12))
        scale, zero_point = ({name: grid[i] for name, grid in self.grids.items()} for i in (0, 1))
        decoded = tasks.of(self.config).decode(self.outputs, scale, zero_point)
        self.assertGreater((decoded.reshape(-1, 6)[:, 0] >= 0).sum(), 12)
        golden = (folder / "golden.h").read_text().partition("golden_answers")[2].partition("= {")[2]
        numbers = [int(number) for number in re.findall(r"-?\d+", golden)]
        np.testing.assert_array_equal(np.reshape(numbers, decoded.shape), decoded)

    def test_other_outputs_are_refused(self):
        heads = [answers.Head((4, 5, 3), 0.1, 0), answers.Head((4, 5, 2), 0.1, 0)]
        with self.assertRaisesRegex(UserError, r"a detector's are box \[h, w, 4\] and centre"):
            answers.of("detect", heads, self.config.detect)


SHAPES = dict(small=(12, 4, 5, 1), wide=(12, 4, 5, 3))

if __name__ == "__main__":
    absltest.main()

"""A network of two outputs through the whole chain: trained on the grids, in integers, TFLite Micro and C."""

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from absl.testing import absltest
from ml_collections import ConfigDict

from atalaia import config as configs
from atalaia import data, engines, export, folding, layers, qat, quantize, simulate
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import boards


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


SHAPES = dict(small=(12, 4, 5, 1), wide=(12, 4, 5, 3))

if __name__ == "__main__":
    absltest.main()

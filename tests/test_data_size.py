"""data.size of one side or two, from Python, the command line and a run's folder; data.fit; what the name tells."""

import json
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from atalaia import config as configs
from atalaia import data, runs, sweep
from atalaia.datasets.source import Source
from atalaia.errors import UserError

WIDE = np.repeat(np.uint8([10, 200, 200, 90]), 2)[None, :, None] * np.ones((4, 1, 1), np.uint8)  # 4x8: two by two


def _fields(**fields):
    config = configs.base().data
    config.update({"validation": 0.0} | fields)
    return config


def _load(images, **fields):
    split = data.Split(np.stack(images), np.arange(len(images)))
    source = Source(split, split, tuple("abcdefgh"[: len(images)]))
    with mock.patch.dict(data.LOADERS, digits=lambda config, cache: source):
        return data.load(_fields(**fields), Path("nowhere"))


class SizeTest(parameterized.TestCase):
    @parameterized.parameters(
        (0, None),
        ("0", None),
        (96, (96, 96)),
        ("96", (96, 96)),
        ("96,128", (96, 128)),
        (" (96, 128) ", (96, 128)),
        ((96, 128), (96, 128)),
        ([96, 128], (96, 128)),
        ((5,), (5, 5)),
    )
    def test_forms(self, given, size):
        self.assertEqual(data.size_of(_fields(size=given)), size)

    @parameterized.parameters(
        -1, 3.5, True, None, "", "a", "96x128", "96,128,3", ((0, 5),), ((96, -1),), "0,0", ((),), ((2.0, 2.0),)
    )
    def test_refused(self, given):
        with self.assertRaisesRegex(UserError, r"^data.size = .*: give a side in pixels, HEIGHT,WIDTH as 96,128, or 0"):
            data.validate(_fields(size=given))

    @parameterized.parameters(("96", 96), ("96,128", (96, 128)), ("(96,128)", (96, 128)), ("(96, 128)", (96, 128)))
    def test_command_line(self, given, size):
        config = runs.check("configs/digits.py", {"data.size": given})
        self.assertEqual(config.data.size, size)
        flag = runs.override_flags({"data.size": config.data.size})[0].partition("=")[2]
        self.assertEqual(runs.check("configs/digits.py", {"data.size": flag}).data.size, size)

    def test_a_wrong_one_on_the_command_line(self):
        with self.assertRaisesRegex(UserError, "data.size = 96x128: give"):
            runs.check("configs/digits.py", {"data.size": "96x128"})

    def test_sweep(self):
        _, grid = sweep.parse(["configs/digits.py", "--config.data.size=8,(12,16)"])
        sizes = [data.size_of(runs.check("configs/digits.py", {"data.size": v}).data) for v in grid["data.size"]]
        self.assertEqual(sizes, [(8, 8), (12, 16)])

    @parameterized.parameters(0, 32, ((8, 12),), "8,12")
    def test_a_runs_config_is_the_same_again(self, size):
        config = configs.base()
        config.data.size = size
        with tempfile.TemporaryDirectory() as folder:
            configs.claim(config, Path(folder))
            configs.refuse_other_run(config, Path(folder))
            loaded = configs.load(Path(folder))
            self.assertEqual(data.size_of(loaded.data), data.size_of(config.data))
            configs.refuse_other_run(loaded, Path(folder))
            config.data.size = 9
            with self.assertRaisesRegex(UserError, "data.size="):
                configs.refuse_other_run(config, Path(folder))

    def test_a_run_from_before_there_were_these_fields(self):
        config = configs.base()
        config.data.size = 32
        with tempfile.TemporaryDirectory() as folder:
            configs.claim(config, Path(folder))
            path = Path(folder) / "config.json"
            old = json.loads(path.read_text())
            del old["data"]["fit"], old["data"]["balance"]
            path.write_text(json.dumps(old))
            configs.refuse_other_run(config, Path(folder))
            loaded = configs.load(Path(folder)).data
            self.assertEqual((loaded.size, loaded.fit, loaded.balance), (32, "crop", ""))

    def test_configs_share_no_size(self):
        first, second = configs.base(), configs.base()
        first.data.size = 7
        self.assertEqual(second.data.size, 0)


class FitTest(parameterized.TestCase):
    def test_crop_takes_the_middle(self):
        loaded = _load([WIDE, WIDE], size=4)
        np.testing.assert_array_equal(loaded.train.images, 200)
        self.assertEqual(loaded.name, "digits reduced to 4x4, cropped")

    def test_pad_shows_the_whole_on_black(self):
        loaded = _load([WIDE, WIDE], size=8, fit="pad")
        np.testing.assert_array_equal(loaded.train.images[0, 2:6], WIDE)
        np.testing.assert_array_equal(loaded.train.images[0, [0, 1, 6, 7]], 0)
        self.assertEqual(loaded.name, "digits upsampled to 8x8, padded")

    def test_stretch_scales_each_side_apart(self):
        loaded = _load([WIDE, WIDE], size=(4, 4), fit="stretch")
        expected = np.asarray(Image.fromarray(WIDE[..., 0]).resize((4, 4), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(loaded.train.images[0, ..., 0], expected)
        self.assertEqual(loaded.name, "digits reduced to 4x4, stretched")

    def test_height_comes_first(self):
        loaded = _load([WIDE, WIDE], size="6,12")
        self.assertEqual(loaded.train.images.shape, (2, 6, 12, 1))
        self.assertEqual(loaded.name, "digits upsampled to 6x12")  # the ratio is the same: nothing is cut off

    def test_the_native_size_is_left_alone(self):
        for size in (0, (4, 8)):
            loaded = _load([WIDE, WIDE], size=size, fit="pad")
            np.testing.assert_array_equal(loaded.train.images[0], WIDE)
            self.assertEqual(loaded.name, "digits")

    def test_all_ways_are_one_for_squares(self):
        square = np.random.default_rng(0).integers(0, 256, (7, 7, 3), np.uint8)
        for size, resampling in ((5, Image.Resampling.BILINEAR), (9, Image.Resampling.BICUBIC)):
            expected = np.asarray(Image.fromarray(square).resize((size, size), resampling))
            for fit in ("crop", "pad", "stretch"):
                loaded = _load([square, square], size=size, fit=fit)
                np.testing.assert_array_equal(loaded.train.images[0], expected)
                self.assertNotIn(",", loaded.name)

    def test_an_unknown_way(self):
        with self.assertRaisesRegex(UserError, "data.fit = 'fill': give one of crop, pad, letterbox, stretch"):
            data.validate(_fields(fit="fill"))

    def test_unlabelled_images_are_fitted_too(self):
        with tempfile.TemporaryDirectory() as folder:
            Image.fromarray(np.full((4, 8), 250, np.uint8)).save(Path(folder) / "a.png")
            loaded = _load([WIDE, WIDE], size="8,12", fit="pad", unlabelled=folder)
        self.assertEqual(loaded.unlabelled.shape, (1, 8, 12, 1))
        np.testing.assert_array_equal(loaded.unlabelled[0, 1:7], 250)
        np.testing.assert_array_equal(loaded.unlabelled[0, [0, 7]], 0)


if __name__ == "__main__":
    absltest.main()

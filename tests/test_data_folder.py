"""Folders of images as people have them: without train/, with other files among them, with mistakes."""

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest
from PIL import Image

from atalaia import config as configs
from atalaia import data
from atalaia.errors import UserError


class FolderTest(absltest.TestCase):
    def setUp(self):
        self.root = Path(self.enter_context(tempfile.TemporaryDirectory())) / "mine"
        self._fill("cat", 10)
        self._fill("dog", 5)

    def _fill(self, folder, count, suffix=".png"):
        (self.root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = np.full((4, 8, 3), 20 + i, np.uint8)
            Image.fromarray(pixels).save(self.root / folder / f"{i}{suffix}")

    def _with_train(self):
        for name in ("cat", "dog"):
            (self.root / "train").mkdir(exist_ok=True)
            (self.root / name).rename(self.root / "train" / name)

    def _load(self, **fields):
        """The data set, and what was printed on the way."""
        config = configs.base().data
        config.update({"name": "image_folder", "path": str(self.root), "size": 4, "validation": 0.0} | fields)
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            loaded = data.load(config, self.root)
        lines = [line for line in stderr.getvalue().splitlines() if not line.startswith("read ")]  # progress
        return loaded, lines

    def _refuses(self, pattern, **fields):
        with self.assertRaisesRegex(UserError, pattern):
            self._load(**fields)

    def test_classes_without_train(self):
        loaded, lines = self._load()
        self.assertEqual(loaded.names, ("cat", "dog"))
        sizes = [np.bincount(split.targets).tolist() for split in (loaded.train, loaded.test)]
        self.assertEqual(sizes, [[8, 4], [2, 1]])
        self.assertEqual(lines, [f"{self.root} has no train/ and test/: 20% of each class is the test set"])

    def test_with_train_nothing_is_said(self):
        self._with_train()
        loaded, lines = self._load()
        self.assertEqual((len(loaded.train.images), len(loaded.test.images), lines), (12, 3, []))

    def _scatter(self, folder):
        """Files that are left out in a folder of classes: 3 too deep, 2 hidden, 2 .gif, 1 .txt, 1 in no class."""
        self._fill(f"{folder}/cat/more", 2)
        self._fill(f"{folder}/cat/more/yet", 1)
        self._fill(f"{folder}/dog/.trash", 1)
        self._fill(f"{folder}/dog", 2, ".gif")
        (self.root / folder / "dog" / ".DS_Store").write_bytes(b"")
        (self.root / folder / "notes.txt").write_text("a")
        self._fill(folder, 1, ".jpeg")

    def test_files_left_out_are_counted_by_reason(self):
        self._scatter(".")
        loaded, lines = self._load()
        self.assertLen(loaded.train.images, 12)
        self.assertRegex(lines[0], "^.*mine: 9 file.s. left out: 3 in subfolders of a class")
        for reason in ("2 .gif", "2 hidden", "1 .txt", "1 in no class's folder"):
            self.assertIn(reason, lines[0])
        self.assertLen(lines, 2)

    def test_files_left_out_of_train_and_of_test_and_beside_them(self):
        self._with_train()
        self._scatter("train")
        self._fill("test/cat", 1)
        self._fill("test/cat/deep", 2)
        self._fill("val/cat", 4)
        _, lines = self._load()
        self.assertLen(lines, 1)
        for words in ("15 file(s) left out", "5 in subfolders of a class", "5 in no class's folder", "2 .gif"):
            self.assertIn(words, lines[0])

    def test_unlabelled_images_may_lie_beside(self):
        self._fill("some", 3)
        loaded, lines = self._load(unlabelled=str(self.root / "some"))
        self.assertEqual((loaded.names, len(loaded.unlabelled), len(lines)), (("cat", "dog"), 3, 1))
        self._with_train()
        self.assertEqual(self._load(unlabelled=str(self.root / "some"))[1], [])

    def test_two_layouts_at_once(self):
        self._with_train()
        self._fill("bird", 2)
        self._refuses(r"mine has train/ and, beside it, folders of images \(bird\): move")

    def test_test_without_train(self):
        (self.root / "test").mkdir()
        self._refuses("has test/ but no train/: images are expected as .*mine/train/CLASS/IMAGE or .*mine/CLASS/IMAGE")

    def test_hidden_classes(self):
        self._fill(".bird", 2)
        self._refuses(".bird is hidden but holds images: rename it without the dot, or remove it")
        self._with_train()
        (self.root / ".bird").rename(self.root / "train" / ".bird")
        self._refuses("train/.bird is hidden")

    def test_hidden_folders_without_images_are_let_be(self):
        (self.root / ".git/objects").mkdir(parents=True)
        self.assertLen(self._load()[0].names, 2)

    def test_empty_classes(self):
        (self.root / "bird").mkdir()
        self._refuses(r"bird has 0 image\(s\) .*at least 2 are needed; fill it, or remove it")
        self._fill("bird/monday", 3)
        self._fill("bird/monday/noon", 1)
        self._refuses(r"bird has 0 image\(s\) .*; move up the 4 in its subfolders")

    def test_one_class_and_none(self):
        for path in (self.root / "dog").iterdir():
            path.unlink()
        (self.root / "dog").rmdir()
        self._refuses(r"mine has 1 folder\(s\), cat,: one for each of at least 2 classes")
        self._refuses(r"cat has 0 folder\(s\): one for each", path=str(self.root / "cat"))
        self._refuses("0.png is not a folder: images are expected as", path=str(self.root / "cat/0.png"))

    def test_uneven_classes(self):
        self._fill("dog", 50)
        lines = self._load()[1]
        self.assertLen(lines, 1)
        self._fill("cow", 5)
        lines = self._load()[1]
        self.assertRegex(lines[-1], r"^warning: class 'dog' has 40 images .*'cow' 4: data.balance=weights or sampling")

    def test_two_sides_and_the_three_ways(self):
        for size, fit, name in (
            ("4,6", "crop", "image_folder at 4x6, cropped"),
            (4, "pad", "image_folder at 4x4, padded"),
            ((6, 4), "stretch", "image_folder at 6x4, stretched"),
            (4, "crop", "image_folder"),
        ):
            loaded, _ = self._load(size=size, fit=fit, grey=True)
            self.assertEqual(loaded.name, name)
            self.assertEqual(loaded.train.images.shape[1:], (*data.size_of(self._config(size)), 1))
            black = (loaded.train.images == 0).mean()
            self.assertEqual(black, 0.5 if fit == "pad" else 0)  # 4x8 in 4x4 leaves half of it black

    def _config(self, size):
        config = configs.base().data
        config.size = size
        return config


if __name__ == "__main__":
    absltest.main()

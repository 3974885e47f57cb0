"""Splits of targets that are no classes, groups of images, turned digits, and classes of unlike size."""

import contextlib
import io
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image
from scipy import ndimage

from atalaia import config as configs
from atalaia import data
from atalaia.datasets import bundled
from atalaia.datasets.source import Source
from atalaia.errors import UserError

N = 50


def _fields(**fields):
    config = configs.base().data
    config.update({"validation": 0.0} | fields)
    return config


def _load(source, **fields):
    """What data.load makes of a source."""
    with mock.patch.dict(data.LOADERS, digits=lambda config, cache: source):
        return data.load(_fields(**fields), Path("nowhere"))


def _numbered(targets, **fields):
    """A source whose image i has the pixel i, and targets that tell i too."""
    images = np.arange(N, dtype=np.uint8).reshape(N, 1, 1, 1)
    return Source(data.Split(images, targets), None, ("a",), **fields)


def _numbers(split):
    return split.images[:, 0, 0, 0].tolist()


class PytreeTest(parameterized.TestCase):
    def test_numbers_stay_beside_their_images_and_are_no_integers(self):
        targets = np.stack([np.arange(N) + 0.25, -np.arange(N)], 1)
        loaded = _load(_numbered(targets), validation=0.25, split_seed=1)
        for split, count in ((loaded.train, 30), (loaded.validation, 10), (loaded.test, 10)):
            self.assertLen(split.images, count)
            self.assertEqual(split.targets.dtype, np.float32)
            np.testing.assert_array_equal(split.targets[:, 0], np.array(_numbers(split)) + 0.25)
        everywhere = [number for split in loaded[1:4] for number in _numbers(split)]
        self.assertEqual(sorted(everywhere), list(range(N)))

    def test_a_dict_of_arrays(self):
        targets = {"boxes": np.arange(4 * N, dtype=np.float64).reshape(N, 2, 2), "count": np.arange(N)}
        loaded = _load(_numbered(targets), validation=0.5, train_per_class=20, test_per_class=3)
        for split, count in ((loaded.train, 10), (loaded.validation, 10), (loaded.test, 3)):
            self.assertEqual(split.targets["boxes"].shape, (count, 2, 2))
            self.assertEqual((split.targets["boxes"].dtype, split.targets["count"].dtype), (np.float32, np.int32))
            self.assertEqual(split.targets["count"].tolist(), _numbers(split))
            np.testing.assert_array_equal(split.targets["boxes"][:, 0, 0], 4.0 * split.targets["count"])
        self.assertEqual(loaded.name, "digits, 10 images (3 to test)")

    def test_too_few_for_a_subset(self):
        with self.assertRaisesRegex(UserError, "train_per_class = 41: there are 40 images"):
            _load(_numbered(np.zeros((N, 1))), train_per_class=41)

    def test_the_stream_of_classes_is_the_old_one(self):
        labels = np.tile([1, 0, 2, 1], 5)
        random, taken = np.random.RandomState(3), np.zeros(20, bool)
        for label, count in ((0, 1), (1, 3), (2, 1)):  # 30% of 5, 10 and 5; round(1.5) is 2
            taken[random.permutation(np.flatnonzero(labels == label))[: {1: 2, 3: 3}[count]]] = True
        np.testing.assert_array_equal(data._held_out(labels, 0.3, 3), taken)

    def test_groups_stay_together(self):
        groups = np.random.RandomState(0).permutation(np.repeat(np.arange(10), 5))
        loaded = _load(_numbered(np.zeros((N, 1), np.float32), groups=groups), validation=0.25)
        found = [set(groups[_numbers(split)]) for split in (loaded.train, loaded.validation, loaded.test)]
        self.assertEqual([len(part) for part in found], [6, 2, 2])
        self.assertLen(set.union(*found), 10)
        self.assertEqual([len(split.images) for split in loaded[1:4]], [30, 10, 10])

    def test_groups_of_classes_are_stratified(self):
        groups = np.repeat(np.arange(10), 5)
        loaded = _load(_numbered(groups % 2, groups=groups)._replace(names=("even", "odd")))
        self.assertEqual(np.bincount(loaded.test.targets).tolist(), [5, 5])


class TurnedDigitsTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.source = bundled.turned_digits(_fields(), Path("nowhere"))

    def test_shapes_and_angles(self):
        images, targets = self.source.train
        self.assertEqual((images.shape, images.dtype), ((1797 * 4, 16, 16, 1), np.uint8))
        self.assertEqual((targets.shape, targets.dtype), ((1797 * 4, 2), np.float32))
        self.assertEqual(self.source.names, ("cosine", "sine"))
        np.testing.assert_allclose((targets**2).sum(1), 1, atol=1e-6)
        self.assertGreaterEqual(targets[:, 0].min(), 0.4999)  # within +-60 degrees
        degrees = np.degrees(np.arctan2(targets[:, 1], targets[:, 0]))
        np.testing.assert_allclose(np.histogram(degrees, 6, (-60, 60))[0] / len(degrees), 1 / 6, atol=0.02)

    def test_turned_back_by_the_formula_a_digit_is_upright(self):
        upright = bundled.digits(_fields(), Path("nowhere")).train.images[..., 0]
        y, x = np.mgrid[:12, :12] - 5.5  # of the digit, away from the middle
        for i in range(0, 160, 8):
            expected = np.asarray(Image.fromarray(upright[i // 4]).resize((12, 12), Image.Resampling.BICUBIC))
            (cosine, sine), pixels = self.source.train.targets[i], self.source.train.images[i, ..., 0].astype(float)
            there = [y * cosine - x * sine + 7.5, x * cosine + y * sine + 7.5]
            back = ndimage.map_coordinates(pixels, there, order=1)
            self.assertGreater(np.corrcoef(back.ravel(), expected.ravel())[0, 1], 0.97)

    def test_turns_of_a_digit_are_in_one_split_and_always_the_same(self):
        loaded, again = (data.load(_fields(name="turned_digits", validation=0.1), Path("nowhere")) for _ in range(2))
        digits = {}
        for group, image in zip(self.source.groups, self.source.train.images, strict=True):
            digits.setdefault(image.tobytes(), set()).add(int(group))
        parts = [
            set.union(*(digits[image.tobytes()] for image in split.images))
            for split in (loaded.train, loaded.validation, loaded.test)
        ]
        self.assertEqual([len(part) for part in parts], [1294, 144, 359])  # 20% of 1797, then 10% of the rest
        self.assertLen(set.union(*parts), 1797)
        for a, b in zip(loaded[1:4], again[1:4], strict=True):
            np.testing.assert_array_equal(a.images, b.images)
            np.testing.assert_array_equal(a.targets, b.targets)


class BalanceTest(parameterized.TestCase):
    def _warning(self, counts, **fields):
        labels = np.repeat([0, 1], counts)
        source = Source(data.Split(np.zeros((len(labels), 2, 2, 1), np.uint8), labels), None, ("cat", "dog"))
        source = source._replace(test=source.train)
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            _load(source, **fields)
        return stderr.getvalue()

    def test_weights_by_hand(self):
        weights = data.class_weights(np.array([0, 0, 0, 1]), 2)  # 4 / (2 * 3) and 4 / (2 * 1)
        np.testing.assert_allclose(weights, [2 / 3, 2], rtol=1e-6)
        self.assertEqual(weights.dtype, np.float32)
        np.testing.assert_array_equal(data.class_weights(np.tile([0, 1, 2], 4), 3), 1)

    def test_weights_have_mean_one_and_classes_count_alike(self):
        labels = np.random.RandomState(0).choice(4, 100, p=[0.6, 0.2, 0.15, 0.05])
        weights = data.class_weights(labels, 4)
        self.assertAlmostEqual(weights[labels].mean(), 1, places=6)
        np.testing.assert_allclose(np.bincount(labels, weights[labels]), 25, rtol=1e-6)

    def test_classes_without_images_and_images_without_labels_do_not_count(self):
        np.testing.assert_allclose(data.class_weights(np.array([2, 0, 0, 0, -1, -1]), 4), [2 / 3, 0, 2, 0], rtol=1e-6)

    def test_each_class_is_drawn_alike_and_within_it_each_image(self):
        labels = np.array([2] * 90 + [7] * 9 + [5])[np.random.RandomState(0).permutation(100)]
        order = np.asarray(data.balanced_order(jax.random.key(0), labels, 30_000))
        self.assertEqual((order.shape, order.dtype), ((30_000,), np.int32))
        counts = np.bincount(order, minlength=100)
        for label, count in ((2, 90), (7, 9), (5, 1)):
            of_class = counts[labels == label]
            self.assertAlmostEqual(of_class.sum(), 10_000, delta=400)  # 5 standard deviations
            np.testing.assert_allclose(of_class, 10_000 / count, atol=5 * (10_000 / count) ** 0.5 + 400 / count)

    def test_an_order_is_of_its_key(self):
        labels = np.array([0, 1, 1, 1])
        first, again, other = (data.balanced_order(jax.random.key(k), labels, 20).tolist() for k in (0, 0, 1))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)
        self.assertEqual(set(data.balanced_order(jax.random.key(0), np.full(4, 3), 20).tolist()), {0, 1, 2, 3})

    def test_uneven_classes_are_told_once_unless_balanced(self):
        self.assertRegex(
            self._warning([3, 16]), r"^warning: class 'dog' has 16 images.*'cat' 3: data.balance=weights or.*\n$"
        )
        self.assertEqual(self._warning([3, 15]), "")
        self.assertEqual(self._warning([3, 16], balance="weights"), "")

    def test_refused(self):
        with self.assertRaisesRegex(UserError, "balance = weights: digits has no classes"):
            _load(_numbered(np.zeros((N, 1))), balance="weights")
        with self.assertRaisesRegex(UserError, "balance = 'weight': give one of weights, sampling"):
            data.validate(_fields(balance="weight"))
        with self.assertRaisesRegex(UserError, "sampling draws by class"):
            data.validate(_fields(balance="sampling", name="stl10", unlabelled="official"))


if __name__ == "__main__":
    absltest.main()

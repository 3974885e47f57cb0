"""Images that stay on the disk train to the same bytes as in memory, and what does not fit is refused."""

import resource
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import small_net
from absl.testing import absltest
from PIL import Image

from atalaia import checkpoint, data, errors, finished, models, runs, train
from atalaia.datasets import disk, pictures
from atalaia.errors import UserError

IMAGES = np.random.RandomState(0).randint(0, 256, (90, 8, 8, 3)).astype(np.uint8)
LABELS = np.arange(90) % 3


class RowsTest(absltest.TestCase):
    def test_what_is_chosen_is_read_when_it_is_asked_for(self):
        rows = disk.Rows(IMAGES).where(LABELS == 1).where(np.array([4, 2, 3]))
        expected = IMAGES[[13, 7, 10]]
        self.assertEqual((len(rows), rows.shape, rows.dtype, rows.nbytes), (3, (3, 8, 8, 3), np.uint8, 3 * 192))
        for chosen in (1, slice(1, 3), np.array([2, 0, 0]), slice(None)):
            np.testing.assert_array_equal(rows[chosen], expected[chosen])
        np.testing.assert_array_equal(np.asarray(rows), expected)

    def test_their_digest_is_that_of_the_array_in_parts_of_any_size(self):
        for hashed in (1, 500, 1 << 26):
            with mock.patch.object(checkpoint, "HASHED", hashed):
                self.assertEqual(checkpoint.digest(dict(a=disk.Rows(IMAGES))), checkpoint.digest(dict(a=IMAGES)))

    def test_a_view_of_a_file_is_on_the_disk(self):
        path = Path(self.create_tempdir().full_path) / "a.npy"
        disk.create(path, IMAGES.shape)[:] = IMAGES
        kept = np.load(path, mmap_mode="r")
        np.testing.assert_array_equal(kept, IMAGES)
        self.assertTrue(disk.on_disk(np.asarray(kept)[..., None]))
        self.assertFalse(disk.on_disk(kept[[1, 2]]))
        self.assertFalse(disk.on_disk(IMAGES))


class MemoryTest(absltest.TestCase):
    def test_images_that_do_not_fit_are_refused_with_the_way_out(self):
        with mock.patch.object(disk, "free_memory", return_value=disk.COPIES * IMAGES.nbytes):
            disk.refuse_too_large(IMAGES.shape)
            with self.assertRaisesRegex(UserError, r"91 images of 8x8x3 need .* give --config.data.in_memory=False"):
                disk.refuse_too_large((91, 8, 8, 3))

    def test_free_memory_is_within_the_machines_and_within_a_limit(self):
        free = disk.free_memory()
        self.assertBetween(free, 1, disk._fields("/proc/meminfo")["MemTotal"])
        used = disk._fields("/proc/self/status")["VmData"]
        with mock.patch.object(resource, "getrlimit", return_value=(used + 1000, used + 1000)):
            self.assertLess(disk.free_memory(), 2**20)

    def test_an_allocation_that_fails_is_one_line(self):
        with self.assertRaises(MemoryError) as caught:
            np.empty(1 << 60, np.uint8)
        self.assertIn("give data.in_memory=False", errors.message(caught.exception))


class TrainTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.enter_context(mock.patch.dict(models.MODELS, normed=small_net.Normed))
        (self.folder / "set").mkdir()
        for name, values in (("train_images", IMAGES), ("train_targets", LABELS)):
            np.save(self.folder / "set" / f"{name}.npy", values)

    def config(self, **fields):
        given = dict(model="normed", batch_size=16, log_steps=2, checkpoint_seconds=0.0)
        given |= {"data.name": "arrays", "data.path": str(self.folder / "set"), "data.validation": 0.3}
        given |= {"dense.epochs": 0, "dense.steps": 7, "stages": "('dense',)", "augment.pad_crop": 1}
        return runs.check("configs/digits.py", given | fields)

    def test_from_the_disk_stopped_and_gone_on_it_ends_with_the_bytes_of_memory(self):
        expected = train.train_and_evaluate(self.config(), self.folder / "memory", self.folder)
        config = self.config(**{"data.in_memory": False})
        stops = iter([False, False, False, True])  # three steps an epoch: in the middle of the second
        with (
            mock.patch.object(train._StopSignal, "__enter__", return_value=lambda: next(stops)),
            mock.patch.object(train._StopSignal, "__exit__", return_value=None),
            self.assertRaises(KeyboardInterrupt),
        ):
            train.train_and_evaluate(config, self.folder / "disk", self.folder)
        found = train.train_and_evaluate(config, self.folder / "disk", self.folder)
        self.assertEqual(found["sources"], expected["sources"])  # the same images, by their SHA-256
        self.assertEqual(found["validation"], expected["validation"])
        dataset = data.load(config.data, self.folder)
        self.assertIsInstance(dataset.train.images, disk.Rows)
        one, two = (finished.load_trained(config, self.folder / n, dataset).variables for n in ("memory", "disk"))
        jax.tree.map(np.testing.assert_array_equal, one, two)

    def test_what_would_have_to_be_made_in_memory_is_refused(self):
        for fields, pattern in (
            ({"data.size": 4}, "used as they are on the disk, 8x8x3"),
            ({"data.grey": True}, "data.grey=False"),
        ):
            config = self.config(**{"data.in_memory": False}, **fields)
            with self.subTest(pattern), self.assertRaisesRegex(UserError, pattern):
                data.load(config.data, self.folder)
        given = self.config().data.copy_and_resolve_references()
        with given.unlocked():
            given.update(in_memory=False, unlabelled=str(self.folder))
        with self.assertRaisesRegex(UserError, "unlabelled are kept in memory"):
            data.validate(given)


class PicturesTest(absltest.TestCase):
    def test_a_folder_of_images_is_read_once_into_a_file(self):
        folder = Path(self.create_tempdir().full_path)
        paths = [folder / f"{i}.png" for i in range(3)]
        for path, pixels in zip(paths, IMAGES, strict=False):
            Image.fromarray(pixels).save(path)
        memory = pictures.read(paths, (6, 6), 3, "crop")
        kept = pictures.read(paths, (6, 6), 3, "crop", folder / "kept")
        np.testing.assert_array_equal(kept, memory)
        self.assertTrue(disk.on_disk(kept))
        with mock.patch.object(pictures, "_pixels", side_effect=AssertionError("read again")):
            np.testing.assert_array_equal(pictures.read(paths, (6, 6), 3, "crop", folder / "kept"), memory)
        shutil.copy(paths[1], paths[0])  # another image of the same name
        again = pictures.read(paths, (6, 6), 3, "crop", folder / "kept")
        np.testing.assert_array_equal(again, memory[[1, 1, 2]])


if __name__ == "__main__":
    absltest.main()

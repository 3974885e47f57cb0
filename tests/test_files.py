"""Files appear whole or not at all."""

import errno
import json
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest

from atalaia import files


class WriteWholeTest(absltest.TestCase):
    def setUp(self):
        self.path = Path(self.enter_context(tempfile.TemporaryDirectory())) / "file"

    def _files(self):
        return {path.name: path.read_bytes() for path in self.path.parent.iterdir()}

    def test_text_and_bytes(self):
        for contents in ("ação", b"\0\xff"):
            files.write_whole(self.path, contents)
            self.assertEqual(self._files(), {"file": contents if isinstance(contents, bytes) else contents.encode()})

    def test_a_disk_that_fills_up_leaves_the_old_file_alone(self):
        def fills_up(path, data):
            with path.open("wb") as file:
                file.write(data[:2])
            raise OSError(errno.ENOSPC, "No space left on device")

        self.path.write_bytes(b"old")
        with mock.patch.object(Path, "write_bytes", fills_up), self.assertRaises(OSError):
            files.write_whole(self.path, "new")
        self.assertEqual(self._files(), {"file": b"old"})

    def test_json(self):
        files.write_json(self.path, {"a": [1, 2.5, None]})
        self.assertEqual(json.loads(self.path.read_text()), {"a": [1, 2.5, None]})


class WriteArraysTest(absltest.TestCase):
    def setUp(self):
        self.path = Path(self.enter_context(tempfile.TemporaryDirectory())) / "weights.npz"

    def test_reads_as_it_was_written(self):
        arrays = {"conv/kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "labels": np.array([1, 2], np.uint8)}
        files.write_arrays(self.path, arrays)
        with np.load(self.path) as found:
            self.assertEqual(set(found), set(arrays))
            for name, array in arrays.items():
                np.testing.assert_array_equal(found[name], array)
                self.assertEqual(found[name].dtype, array.dtype)

    def test_a_disk_that_fills_up_leaves_the_old_file_alone(self):
        def fills_up(path, **arrays):
            path.write_bytes(b"PK")
            raise OSError(errno.ENOSPC, "No space left on device")

        self.path.write_bytes(b"old")
        with mock.patch.object(np, "savez", fills_up), self.assertRaises(OSError):
            files.write_arrays(self.path, {"a": np.zeros(3)})
        self.assertEqual({p.name: p.read_bytes() for p in self.path.parent.iterdir()}, {"weights.npz": b"old"})


if __name__ == "__main__":
    absltest.main()

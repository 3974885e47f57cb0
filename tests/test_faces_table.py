"""The table of face detectors: its protocol against COCO's own code, others' detectors made up, C, and the page."""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, flagsaver
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "experiments"))

import face_peers  # noqa: E402
import face_runs  # noqa: E402
import faces  # noqa: E402
import faces_test  # noqa: E402
import int8_models  # noqa: E402
import tables  # noqa: E402
from faces_test import Boxes  # noqa: E402
from test_boards import require  # noqa: E402
from test_detect import coco_precision, targets_of  # noqa: E402

from atalaia import config as configs  # noqa: E402
from atalaia import data, engines  # noqa: E402
from atalaia.codegen import boards  # noqa: E402
from atalaia.errors import UserError  # noqa: E402
from atalaia.tasks.boxes import IGNORED  # noqa: E402


def one_face(*found, true=((0, 10, 10, 40, 50),)):
    """Boxes (score, x0, y0, x1, y1) in one photo, and its targets."""
    rows = np.array(found, float)[None]
    return Boxes(np.zeros((1, len(found)), int), rows[..., 0], rows[..., 1:]), targets_of(true)


class ProtocolTest(absltest.TestCase):
    def test_average_precision_is_coco_s_where_narrow_boxes_do_not_count(self):
        random, n = np.random.RandomState(0), 40
        corner, side = random.rand(n, 4, 2) * 60, 8 + random.rand(n, 4, 2) * 20
        true, kinds = np.float32(np.concatenate([corner, corner + side], -1)), random.randint(-1, 1, (n, 4))
        kinds[(kinds == 0) & (side[..., 0] < faces_test.LEAST)] = IGNORED
        found = np.concatenate([true + random.randn(n, 4, 4) * 1.5, random.rand(n, 2, 4) * 20 + [0, 0, 25, 25]], 1)
        scores = -np.sort(-random.rand(n, 6), 1)
        boxes, targets = Boxes(np.zeros((n, 6), int), scores, found), dict(boxes=true, classes=kinds)
        figures = faces_test.figures(*boxes, targets)
        right, _ = faces_test.judge(boxes.classes, found, targets)
        narrow = (found[..., 2] - found[..., 0] < faces_test.LEAST) & ~right[0]
        self.assertGreater(narrow.sum(), 10)
        without = boxes._replace(classes=np.where(narrow, -1, 0))
        precision = coco_precision(without, targets, 1)[0]
        self.assertBetween(precision, 0.2, 0.95)
        self.assertAlmostEqual(figures["ap"], precision, places=9)

    def test_f1_at_a_threshold_by_hand(self):
        found, targets = one_face((0.9, 10, 10, 40, 50), (0.6, 60, 10, 90, 50), (0.5, 50, 10, 60, 50))
        values = [faces_test.f1_at(least, *found, targets) for least in (0.95, 0.9, 0.6, 0.1)]
        np.testing.assert_allclose(values, [0, 1, 2 / 3, 2 / 3])  # the last box is narrow

    def test_a_middle_in_a_face_is_enough_for_f1_of_centres(self):
        found, targets = one_face((0.9, 20, 20, 36, 36), (0.8, 18, 18, 40, 36))
        figures = faces_test.figures(*found, targets)
        self.assertEqual(figures["f1"], 0)
        self.assertAlmostEqual(figures["f1_centres"], 1)
        np.testing.assert_array_equal(faces_test.hit(found.boxes, targets)[0], [[10, 10, 40, 50]] * 2)

    def test_missed_are_faces_that_count_and_have_no_right_box(self):
        found, targets = one_face(
            (0.9, 10, 10, 40, 50), true=((0, 10, 10, 40, 50), (0, 60, 0, 90, 30), (-2, 0, 0, 5, 5))
        )
        right, _ = faces_test.judge(found.classes, found.boxes, targets)
        np.testing.assert_array_equal(faces_test.missed(found, right[0], targets), [[False, True, False, False]])


class PeersTest(absltest.TestCase):
    def test_boxes_in_the_order_of_their_scores(self):
        answers = iter([([[0, 0, 1, 1], [2, 2, 3, 3]], [0.2, 0.7]), ([], [])])
        found = face_peers.find_all(lambda _: tuple(map(np.array, next(answers))), np.zeros((2, 4, 4, 3)))
        np.testing.assert_array_equal(found.classes, [[0, 0], [-1, -1]])
        np.testing.assert_array_equal(found.scores[0], [0.7, 0.2])
        np.testing.assert_array_equal(found.boxes[0, 0], [2, 2, 3, 3])

    def test_a_missing_package_is_named(self):
        peer = face_peers.Peer("x", "1x1", {"not_there_at_all": "some-package"}, None)
        with (
            mock.patch.dict(face_peers.PEERS, x=peer),
            self.assertRaisesRegex(UserError, "row x needs some-package: pip install .*requirements-faces.txt"),
        ):
            face_peers.load("x", Path(), None)

    def test_detectors_take_turns(self):
        seen = []
        spent = face_peers.timed({name: lambda i, name=name: seen.append((name, i)) for name in "ab"}, 2)
        self.assertEqual(seen, [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("a", 1), ("b", 1)])
        self.assertEqual({name: len(ms) for name, ms in spent.items()}, dict(a=2, b=2))

    def test_pins_are_the_packages(self):
        pinned = {line.partition("==")[0] for line in (ROOT / face_peers.REQUIREMENTS).read_text().splitlines()}
        own = {"ai-edge-litert", "onnx", "onnxruntime"}  # of requirements.txt and requirements-label.txt
        self.assertLessEqual({n for peer in face_peers.PEERS.values() for n in peer.packages.values()} - own, pinned)


class RunTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

    def test_boxes_of_the_c_are_pythons(self):
        require(self, boards.HOST)
        random, config = np.random.RandomState(0), configs.base()
        config.task, config.detect.stride, config.detect.most = "detect", 2, 5
        kernels = (random.randint(-9, 10, (outputs, 3, 3, 1)).astype(np.int8) for outputs in (4, 1))
        content = int8_models.joined(*(int8_models.convolution(kernel, (24, 40), 2) for kernel in kernels))
        images = random.randint(0, 256, (6, 24, 40, 1)).astype(np.uint8)
        split = data.Split(images, targets_of(*[[(0, 2, 2, 20, 20)]] * 6))
        dataset = data.Dataset("made up", split, split, split, ("face",), images[:0])
        tflm, given = engines.ENGINES["tflm"](content), engines.quantize_input(content, images)
        heads = zip(*([head[0].copy() for head in tflm(image[None])] for image in given), strict=True)
        raw = dict(zip(("box", "centre"), map(np.stack, heads), strict=True))
        report = dict.fromkeys(("counted_instructions", "code_bytes"))
        with (
            mock.patch("atalaia.codegen.__main__.count", lambda out: _enter(out, report)),
            mock.patch.object(boards, "run", return_value=dict(milliseconds=0.5)),
        ):
            found = face_runs.in_c(self.folder / "c", content, config, dataset, images, raw, 0.4)
        self.assertEqual((found["frames_equal"], found["heads_equal_c"], found["browser_ms"]), (6, 1.0, 0.5))
        self.assertGreater(found["esp32"]["weight_bytes"], 0)
        self.assertGreater((found["found"].classes >= 0).sum(), 0)
        face_runs.picture(self.folder / "a.png", images, found["found"], split.targets, "made up")
        self.assertEqual((self.folder / "a.png").read_bytes()[:4], b"\x89PNG")

    def test_runs_that_do_not_fit(self):
        with self.assertRaisesRegex(UserError, "holds no run"):
            face_runs.measure(self.folder / "none", None, self.folder, self.folder)
        config = configs.base()
        configs.claim(config, self.folder / "run")
        with self.assertRaisesRegex(UserError, "is not finished"):
            face_runs.measure(self.folder / "run", None, self.folder, self.folder)
        (self.folder / "run/train.json").write_text("{}")
        with self.assertRaisesRegex(UserError, "run atalaia.export first"):
            face_runs.measure(self.folder / "run", None, self.folder, self.folder)
        content = int8_models.convolution(np.ones((4, 3, 3, 1), np.int8), (24, 40), 2)
        (self.folder / "run/model.tflite").write_bytes(int8_models.joined(content))
        with self.assertRaisesRegex(UserError, "task classify: a detector of faces is needed"):
            face_runs.measure(self.folder / "run", None, self.folder, self.folder)


def _enter(out, more):
    path = Path(out) / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


class TableTest(absltest.TestCase):
    """The script on two photos and a detector made up."""

    def setUp(self):
        super().setUp()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        places = dict(ROOT=self.folder, RESULTS=self.folder / "results", PAGES=self.folder / "pages")
        self.enter_context(mock.patch.multiple(tables, **places))
        self.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self.told = self.enter_context(contextlib.redirect_stderr(io.StringIO()))
        (self.folder / "photos/images").mkdir(parents=True)
        rows = []
        for i in range(2):
            Image.fromarray(np.full((120, 160, 3), 90 + i, np.uint8)).save(self.folder / f"photos/images/{i}.png")
            rows.append(dict(id=i, file_name=f"{i}.png", width=160, height=120))
        boxes = [dict(id=i, image_id=i, category_id=1, bbox=[10, 10, 30, 40], iscrowd=0) for i in range(2)]
        said = dict(images=rows, annotations=boxes, categories=[dict(id=1, name="face")])
        (self.folder / "photos/annotations.json").write_text(json.dumps(said))
        right = np.array([[10, 10, 40, 50.0]])
        detector = face_peers.Detector(lambda frame: (right, np.array([0.9]))[:2], 123, {})
        peers = {"good": face_peers.Peer("Good", "1x1", {}, lambda *_: detector)}
        peers["absent"] = face_peers.Peer("Absent", "1x1", {"not_there_at_all": "some-package"}, None)
        self.enter_context(mock.patch.dict(face_peers.PEERS, peers, clear=True))

    def run_script(self, *rows, photos="photos", **fields):
        given = dict(photos=photos and str(self.folder / photos), rows=list(rows) or None, workdir="runs/untrained")
        with flagsaver.flagsaver(**given | fields):
            faces.main()
        return {row["row"]: row for row in faces.TABLE.figures()}

    def ours(self, workdir, test, cache, kept, prefer):
        line = dict(ap=0.5, ap_50_95=0.2, recall_0_1=0.3, recall_1=0.6, f1=0.7, f1_chosen=0.65, f1_centres=0.8)
        pair = dict(rv32=1000, lx106=2000)
        return dict(
            row=workdir.name, model="detector_small", stages=["dense", "quantize"], seed=0, seconds=3.0, device="cpu",
            scores=dict(float=line, int8=line, c=dict(f1_chosen=0.65)), photos=test.named, bytes=4567, sha256="ab",
            sees="160x120, grey", heads_equal=dict(box=1.0, centre=0.995), heads_equal_c=1.0, frames_equal=2,
            weight_bytes=21_000, arena_bytes=40_000, macs=7_000_000, code_bytes=pair, counted_instructions=pair,
            browser_ms=1.5, boxes_in_c=3, estimated=dict(esp32=dict(milliseconds=[10.4, 20.6])),
        )  # fmt: skip

    def test_rows_in_any_order_make_one_page(self):
        self.assertEqual(self.run_script("good")["good"]["scores"]["ap"], 1)
        with mock.patch.object(face_runs, "measure", self.ours):
            found = self.run_script()
        self.assertEqual(list(found), ["untrained", "good"])
        self.assertIn("left out: row absent needs some-package", self.told.getvalue())
        text = (self.folder / "pages/faces.md").read_text()
        self.assertIn("2 photos with 2 faces, of which 2 count.", text)
        self.assertIn("| *Good* | 1x1 | 123 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | - | 100.0 |", text)
        self.assertIn(
            "(untrained): int8, TFLite Micro | 160x120, grey | 4,567 | 50.0 | 20.0 | 30.0 | 60.0 | 70.0 | 65.0 |", text
        )
        self.assertIn(
            "| 1,000 / 2,000 | 10 to 21 | - | - | 1.50 | 100 (box) and 99.5 (centre) / 100 | 2 of 2 (3 boxes) |", text
        )
        self.assertEqual(
            faces.TABLE.headline(list(found.values())),
            "AP 50.0 % in 21,000 bytes of constants; Good: 100.0 % in 123 bytes",
        )
        self.assertNotIn(str(self.folder), text + json.dumps(list(found.values())))

    def test_rows_of_other_photos_go(self):
        self.run_script("good")
        (self.folder / "photos/images/1.png").write_bytes((self.folder / "photos/images/0.png").read_bytes())
        with mock.patch.object(face_runs, "measure", self.ours):
            found = self.run_script("untrained")
        self.assertEqual(list(found), ["untrained"])

    def test_what_is_missing_is_said_in_one_line(self):
        for photos, said in ((None, "^--photos=FOLDER: a folder"), ("nowhere", "--photos=FOLDER: .* not a folder")):
            with self.assertRaisesRegex(UserError, said):
                self.run_script("good", photos=photos)
        with self.assertRaisesRegex(UserError, "row absent needs some-package"):
            self.run_script("absent")
        with self.assertRaisesRegex(UserError, "runs/untrained holds no run"):
            self.run_script("untrained")
        self.run_script("good")
        with self.assertRaisesRegex(UserError, "give the row untrained first"):
            self.run_script("good", speed=True)


if __name__ == "__main__":
    absltest.main()

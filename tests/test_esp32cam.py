"""The camera's app: its C against the same arithmetic in NumPy and against Pillow, and what it finds in photos."""

import ctypes
import functools
import importlib.util
import json
import math
import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from int8_models import detector
from PIL import Image
from test_boards import ROOT, require

from atalaia import config as configs
from atalaia import engines
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import answers, camera
from atalaia.datasets import pictures
from atalaia.errors import UserError

APP = ROOT / "mcu/apps/esp32cam"
BOARDS = ("host", "rv32", "lx106")  # which `make app` knows
ONE = 1 << 22  # of a weight
FITS = ("crop", "pad", "letterbox", "stretch")  # as enum frame_fit counts them
FORMATS = ("grey", "rgb565", "rgb888")  # as enum frame_format does

_spec = importlib.util.spec_from_file_location("played_photos", APP / "photos.py")
photos = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(photos)

# What ctypes calls: structs stay in C.
GLUE = """
#include "frame.c"
#include "boxes.c"

static struct frame_plan plan;
static int32_t memory[1 << 18];

size_t need(int32_t width, int32_t height, int32_t format, int32_t w, int32_t h, int32_t channels, int32_t fit) {
  struct frame like = {NULL, 0, width, height, (enum frame_format)format};
  struct frame_input input = {w, h, channels, (enum frame_fit)fit, NULL};
  return frame_bytes(&like, &input);
}

const char *start(int32_t width, int32_t height, int32_t format, int32_t w, int32_t h, int32_t channels, int32_t fit,
                  const int8_t *levels, size_t bytes) {
  struct frame like = {NULL, 0, width, height, (enum frame_format)format};
  struct frame_input input = {w, h, channels, (enum frame_fit)fit, levels};
  memset(memory, 0x5A, sizeof memory);
  return frame_plan(&plan, &like, &input, memory, bytes);
}

const char *fill(const uint8_t *pixels, size_t bytes, int32_t width, int32_t height, int32_t format, int8_t *out) {
  struct frame frame = {pixels, bytes, width, height, (enum frame_format)format};
  const char *wrong = frame_fill(&plan, &frame, out);
  for (size_t i = bytes_of(&plan); i < sizeof memory; i++)
    if (((uint8_t *)memory)[i] != 0x5A) return "memory behind its own";
  return wrong;
}

int32_t line(const int32_t *answer, int32_t most, const uint16_t *scores, char *text, size_t bytes) {
  static const char *const names[] = {"face", "a \\\\\\"b\\\\\\""};
  struct box boxes[32];
  return boxes_line(text, bytes, 12, 143, boxes, boxes_of(&plan, answer, most, scores, boxes), names);
}
"""


@functools.cache
def library():
    """The C as a library, which stops at what C leaves undefined."""
    folder = Path(tempfile.mkdtemp(prefix="atalaia_esp32cam_"))
    (folder / "glue.c").write_text(GLUE)
    flags = "-std=c99 -O1 -Wall -Wextra -Werror -fsanitize=undefined -fsanitize-undefined-trap-on-error -shared -fPIC"
    command = ["gcc", *flags.split(), f"-I{APP}/main", f"{folder}/glue.c", "-o", f"{folder}/glue.so"]
    subprocess.run(command, check=True)
    found = ctypes.CDLL(f"{folder}/glue.so")
    found.need.restype = ctypes.c_size_t
    found.start.restype = found.fill.restype = ctypes.c_char_p
    return found


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def start(shape, kind, size, channels, fit, levels, memory=1 << 20):
    """Prepares for frames of a height and width; what is wrong, or None."""
    given = (shape[1], shape[0], FORMATS.index(kind), size[1], size[0], channels, FITS.index(fit))
    return library().start(*given, pointer(levels), ctypes.c_size_t(memory))


def fill(pixels, kind, shape, size, channels):
    """The network's input as uint8 grey levels, `[height, width, channels]`, or what is wrong."""
    out = np.full((*size, channels), 99, np.int8)
    wrong = library().fill(
        pointer(pixels), ctypes.c_size_t(pixels.size), shape[1], shape[0], FORMATS.index(kind), pointer(out)
    )
    return wrong or out


LEVELS = (np.arange(256) - 128).astype(np.int8)


def in_c(photo, kind, size, channels, fit):
    pixels = np.ascontiguousarray(photos.as_bytes(photo, kind))
    assert start(photo.shape, kind, size, channels, fit, LEVELS) is None
    return fill(pixels, kind, photo.shape, size, channels).astype(np.int64) + 128


def photo_of(height, width, seed=0):
    """A photo with smooth parts and hard edges, uint8 `[height, width, 3]`."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / random.uniform(3, 9) + c) * np.cos(y / random.uniform(3, 9)) for c in range(3)]
    image = np.clip(np.stack(waves, -1) + random.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8)
    image[height // 3 : height // 2, width // 4 : width // 2] = random.randint(0, 256, 3)
    return image


def seen(photo, kind, channels):
    """The photo as the network's channels after a camera's format, uint8 `[height, width, channels]`."""
    if kind == "rgb565":
        red, green, blue = photo[..., 0] >> 3, photo[..., 1] >> 2, photo[..., 2] >> 3
        photo = np.stack([red << 3 | red >> 2, green << 2 | green >> 4, blue << 3 | blue >> 2], -1).astype(np.uint8)
    grey = (photo.astype(np.int64) @ [19595, 38470, 7471] + 32768) >> 16
    return photo if channels == 3 and kind != "grey" else np.repeat(grey[..., None], channels, -1).astype(np.uint8)


def axes(shape, size, fit):
    """Of down and across: (first output pixel, output pixels, scale, place of the first) in exact numbers."""
    ratios = [Fraction(n, out) for n, out in zip(shape, size, strict=True)]
    if fit == "crop":
        scale = min(ratios)
        return [(0, out, scale, (n - out * scale) / 2) for n, out in zip(shape, size, strict=True)]
    counts = list(size) if fit == "stretch" else [max(round(n / max(ratios)), 1) for n in shape]
    starts = [round(Fraction(out - n, 2)) if fit == "pad" else 0 for out, n in zip(size, counts, strict=True)]
    return [(at, n, Fraction(side, n), 0) for at, n, side in zip(starts, counts, shape, strict=True)]


@functools.cache
def weights(side, count, scale, place):
    """int64 `[count, side]`: the triangle's weights in 1/2^22 of each output pixel."""
    found = np.zeros((count, side), np.int64)
    for row, x in zip(found, range(count), strict=True):
        middle, reach = place + (x + Fraction(1, 2)) * scale, max(scale, 1)
        some = [max(reach - abs(i + Fraction(1, 2) - middle), 0) for i in range(side)]
        row[:] = [math.floor(weight / sum(some) * ONE + Fraction(1, 2)) for weight in some]
    return found


def twin(photo, kind, size, channels, fit):
    """What the C computes, in NumPy."""
    pixels = seen(photo, kind, channels).astype(np.int64)
    (top, tall, *down), (left, wide, *across) = axes(photo.shape[:2], size, fit)
    pixels = np.einsum("xi,yic->yxc", weights(photo.shape[1], wide, *across), pixels) + ONE // 2 >> 22
    pixels = np.einsum("yi,ixc->yxc", weights(photo.shape[0], tall, *down), pixels) + ONE // 2 >> 22
    out = np.zeros((*size, channels), np.int64)
    out[top : top + tall, left : left + wide] = pixels
    return out


def mapped(answer, shape, size, fit):
    """Boxes of an answer as (x, y, width, height, score code, class) in pixels of the frame."""
    found = []
    for kind, code, *corners in answer.reshape(-1, 6).tolist():
        if kind < 0:
            continue
        sides = []
        for (at, _, scale, place), side, ends in zip(axes(shape, size, fit)[::-1], shape[::-1], range(2), strict=True):
            real = [(Fraction(v, 16) - at) * scale + place for v in corners[ends::2]]
            sides.append([min(max(math.floor(v + Fraction(1, 2)), 0), side) for v in real])
        (x0, x1), (y0, y1) = sides
        if x1 > x0 and y1 > y0:
            found.append((x0, y0, x1 - x0, y1 - y0, code, kind))
    return found


class FrameTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        require(self, "host")

    @parameterized.product(shape=((48, 64), (37, 50), (31, 20), (24, 32), (9, 11), (70, 90)), fit=FITS, channels=(1, 3))
    def test_equals_numpy_in_every_byte_and_pillow_within_a_level(self, shape, fit, channels):
        photo, size = photo_of(*shape), (24, 32)
        for kind in FORMATS:
            found = in_c(photo, kind, size, channels, fit)
            np.testing.assert_array_equal(found, twin(photo, kind, size, channels, fit), kind)
            image = Image.fromarray(seen(photo, kind, channels).squeeze())
            expected = np.asarray(pictures.fit(image, size, fit, Image.Resampling.BILINEAR)).reshape(found.shape)
            off = np.abs(found - expected)
            self.assertLessEqual(off.max(), 1, kind)
            if (
                shape[0] <= shape[1]
            ):  # of tall pictures Pillow resizes the columns first, where one level is rounded away
                self.assertLess(np.mean(off > 0), 0.01, kind)

    def test_usual_cameras_are_pillow_s_to_the_byte(self):
        for shape in ((120, 160), (240, 320)):
            photo = photo_of(*shape)
            image = Image.fromarray(photo).convert("L")
            expected = np.asarray(pictures.fit(image, (120, 160), "letterbox", Image.Resampling.BILINEAR))
            np.testing.assert_array_equal(in_c(photo, "rgb888", (120, 160), 1, "letterbox")[..., 0], expected)

    def test_grey_is_pillow_s(self):
        """All of 32 levels a channel, at the size of the input."""
        steps = np.linspace(0, 255, 32).astype(np.uint8)
        cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(256, 128, 3)
        found = in_c(np.ascontiguousarray(cube), "rgb888", (256, 128), 1, "stretch")
        np.testing.assert_array_equal(found[..., 0], np.asarray(Image.fromarray(cube).convert("L")))

    def test_the_input_has_the_model_s_levels(self):
        """Also of a model whose input is not pixel - 128: as golden inputs are."""
        content, photo = detector((24, 32), 1, 4), photo_of(24, 32)[..., :1]
        for grid in ((1 / 255, -128), (0.0079, 3), (0.002, -100)):
            levels = engines.levels(*grid, np.int8)
            self.assertIsNone(start((24, 32), "grey", (24, 32), 1, "crop", levels))
            found = fill(np.ascontiguousarray(photo), "grey", (24, 32), (24, 32), 1)
            codes = np.round(photo / 255 / grid[0]) + grid[1]
            np.testing.assert_array_equal(found, np.clip(codes, -128, 127))
            if grid[0] == 1 / 255:
                np.testing.assert_array_equal(found, engines.quantize_input(content, photo[None])[0])

    def test_wrong_sizes_are_refused(self):
        good = dict(shape=(24, 32), kind="grey", size=(12, 16), channels=1, fit="crop", levels=LEVELS)
        need = library().need(32, 24, 0, 16, 12, 1, 0)
        for wrong, text in (
            (dict(shape=(0, 32)), b"a side of the picture"),
            (dict(shape=(24, 2049)), b"a side of the picture"),
            (dict(size=(12, -1)), b"a side of the picture"),
            (dict(channels=2), b"channel"),
            (dict(memory=need - 1), b"memory for resizing is too small"),
        ):
            self.assertIn(text, start(**(good | wrong)))
        self.assertEqual(library().need(0, 24, 0, 16, 12, 1, 0), 0)
        self.assertIsNone(start(**good, memory=need))
        pixels = np.zeros(24 * 32, np.uint8)
        self.assertIsInstance(fill(pixels, "grey", (24, 32), (12, 16), 1), np.ndarray)
        for shape, kind, bytes_, text in (
            ((32, 24), "grey", 768, b"another size or format"),
            ((24, 32), "rgb565", 768, b"another size or format"),
            ((24, 32), "grey", 767, b"not as many bytes"),
        ):
            self.assertIn(text, fill(pixels[:bytes_], kind, shape, (12, 16), 1))


class BoxesTest(parameterized.TestCase):
    SCORES = camera.scores(0.1, 20).astype(np.uint16)

    def line(self, answer, bytes_=4000):
        text = ctypes.create_string_buffer(bytes_)
        answer = np.ascontiguousarray(answer, np.int32)
        length = library().line(pointer(answer), answer.size // 6, pointer(self.SCORES), text, ctypes.c_size_t(bytes_))
        self.assertEqual(length, len(text.value) if length >= 0 else -1)
        return text.value.decode() if length >= 0 else None

    def test_a_line_by_hand(self):
        """A frame of 64x48 in the upper left of 32x32: scale 2, so a pixel of the frame is 8 of an answer's units."""
        require(self, "host")
        start((48, 64), "grey", (32, 32), 1, "letterbox", LEVELS)
        answer = [
            [0, 20, 16, 80, 244, 300],
            [1, 127, 0, 400, 500, 500],
            [1, -128, 500, 380, 512, 512],
            [-1, 0, 0, 0, 0, 0],
        ]
        expected = '{"frame":12,"ms":143,"boxes":[{"x":2,"y":10,"w":29,"h":28,"score":0.500,"class":"face"},'
        expected += '{"x":63,"y":48,"w":1,"h":0'  # on the black: left out
        found = self.line(answer)
        self.assertEqual(found, expected.partition(',{"x":63')[0] + "]}")
        self.assertEqual(json.loads(self.line([[1, 127, 0, 0, 16, 16]]))["boxes"][0]["class"], 'a "b"')
        self.assertEqual(self.line(answer[3:]), '{"frame":12,"ms":143,"boxes":[]}')
        self.assertEqual(self.line(answer, len(found) + 1), found)
        for short in (len(found), len(found) - 1, 40, 8):
            self.assertIsNone(self.line(answer, short))

    @parameterized.product(fit=FITS, shape=((48, 64), (50, 37)))
    def test_boxes_go_where_training_s_boxes_come_from(self, fit, shape):
        require(self, "host")
        size, random = (24, 32), np.random.RandomState(1)
        start(shape, "grey", size, 1, fit, LEVELS)
        corners = np.sort(random.randint(0, 16 * np.array([32, 24]) + 1, (20, 2, 2)), 1).reshape(20, 4)
        answer = np.concatenate([np.tile([0, 127], (20, 1)), corners], 1)
        found = [[box[k] for k in "xywh"] for box in json.loads(self.line(answer))["boxes"]]
        self.assertEqual(found, [list(box[:4]) for box in mapped(answer, shape, size, fit)])
        scale, shift = pictures.placed(shape, size, fit)
        exact = np.clip((corners.reshape(20, 2, 2) / 16 - shift) / scale, 0, shape[::-1])
        whole = exact[(exact[:, 1] - exact[:, 0] > 1.5).all(1)]
        for box in whole:
            nearest = min(np.abs(np.r_[b[:2], np.add(b[:2], b[2:])] - box.ravel()).max() for b in found)
            self.assertLess(nearest, 0.51)

    def test_scores_are_probabilities(self):
        expected = [1000 / (1 + math.exp(-(code - 20) * 0.1)) for code in range(-128, 128)]
        np.testing.assert_allclose(self.SCORES, expected, atol=0.5)


class AppTest(parameterized.TestCase):
    """The whole of it, on the host and in the emulators, with a camera that plays photos."""

    SIZE, SHAPE, FIT = (24, 32), (50, 64), "letterbox"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.content = detector(cls.SIZE, 1, 4)
        cls.fields = configs.base().detect
        cls.fields.update(stride=4, threshold=0.5, most=6, overlap=0.3)
        view = camera.View(cls.FIT, ('a "face"',))
        options = dict(samples=1, task="detect", fields=cls.fields)
        codegen.generate(cls.content, cls.folder / "tiny", view=view, **options)
        cls.played = np.full((4, *cls.SHAPE, 3), 50, np.uint8)
        cls.played[0, 10:21, 20:33] = (250, 240, 200)
        cls.played[2, 30:44, 2:20], cls.played[2, 5:12, 40:60] = 220, (200, 255, 190)
        cls.played[3] = photo_of(*cls.SHAPE)
        (cls.folder / "tiny/photos.h").write_text(photos.header(cls.played, "rgb565"))

    def expected(self):
        """The inputs of the network int8 `[n, ...]`, and the lines' boxes."""
        inputs = np.stack([twin(photo, "rgb565", self.SIZE, 1, self.FIT) for photo in self.played]).astype(np.uint8)
        outputs = engines.run("tflm", self.content, inputs)
        heads = [
            answers.Head(o.shape[1:], *grid)
            for o, grid in zip(outputs, engines.output_grids(self.content), strict=True)
        ]
        rows = np.concatenate([o.reshape(len(inputs), -1) for o in outputs], 1)
        decoded = answers.of("detect", heads, self.fields).decode(rows)
        scores = camera.scores(*heads[1][1:])
        boxes = [
            [
                dict(zip("xywh", box[:4], strict=True), score=scores[box[4] + 128] / 1000, **{"class": 'a "face"'})
                for box in mapped(answer, self.SHAPE, self.SIZE, self.FIT)
            ]
            for answer in decoded
        ]
        return engines.quantize_input(self.content, inputs), boxes

    def app(self, board, **variables):
        given = dict(MODEL="tiny", BOARD=board, MODELS_DIR=self.folder, BUILD_DIR=self.folder / "build") | variables
        command = ["make", "-s", "-C", str(ROOT / "mcu"), "app", *(f"{k}={v}" for k, v in given.items())]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    def test_every_board_finds_what_python_finds(self):
        for board in BOARDS:
            require(self, board)
        inputs, boxes = self.expected()
        self.assertEqual([len(found) for found in boxes][:3], [1, 0, 2])
        for board in BOARDS:
            done = self.app(board, **(dict(SANITIZE=1) if board == "host" else {}))
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            lines = done.stdout.splitlines()
            found = [json.loads(line) for line in lines if line.startswith("{")]
            self.assertEqual([line["frame"] for line in found], [0, 1, 2, 3])
            self.assertEqual([line["boxes"] for line in found], boxes, board)
            said = [line for line in lines if line.startswith("led")]
            hashes = [hash_of(given) for given in inputs]
            wanted = [f"led {bool(b):d} input 0x{h:08x}" for b, h in zip(boxes, hashes, strict=True)]
            self.assertEqual(said, wanted, board)

    def test_what_is_missing_is_said(self):
        require(self, "host")
        done = self.app("host", PHOTOS=self.folder / "none.h")
        self.assertEqual(done.returncode, 2)
        self.assertIn(f"there is no {self.folder}/none.h", done.stderr)

    def test_headers_of_two_models_are_refused(self):
        require(self, "host")
        header = self.folder / "tiny/detector.h"
        before = header.read_text()
        header.write_text(before.replace("INPUT_BYTES 768", "INPUT_BYTES 769"))
        done = self.app("host")
        header.write_text(before)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("error: model.h and detector.h are not of one model", done.stdout)

    def test_the_config_of_another_run_is_refused(self):
        heads = [((2, 3, 4), 0.1, 0), ((2, 3, 2), 0.1, 0)]
        with self.assertRaisesRegex(UserError, "the model has 2 classes, the config's data 1"):
            camera.detector_h("x", (16, 24, 1), (1 / 255, -128), heads, camera.View("crop", ("face",)))
        with self.assertRaisesRegex(UserError, "input is 16x24x2: a camera gives HEIGHTxWIDTHx1 or x3"):
            camera.detector_h("x", (16, 24, 2), (1 / 255, -128), heads, camera.View("crop", ("face", "hand")))


def hash_of(values):
    """FNV-1a of bytes, as played.c has it."""
    found = 2166136261
    for byte in values.astype(np.uint8).ravel().tolist():
        found = (found ^ byte) * 16777619 % (1 << 32)
    return found


if __name__ == "__main__":
    absltest.main()

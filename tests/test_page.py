"""The report's page: whole, held by one file, its figures those of the JSON, and shown by a real browser without error.

A missing browser fails the last tests where CI is set, and skips them elsewhere.
"""

import json
import re
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import int8_models
import numpy as np
from absl.testing import absltest
from chromium import program

from atalaia import config as configs
from atalaia import ledger, page, pictures, report
from atalaia.codegen import __main__ as codegen
from atalaia.errors import UserError
from atalaia.files import write_json
from configs import digits

MODEL = Path(__file__).parent.parent / "mcu/models/cifar10"  # of ResNet-8
EVALUATION = dict(
    dataset="digits",
    split="test",
    engines=dict(
        jax=dict(accuracy=0.97771, f1_macro=0.97701, images=1359),
        tflm=dict(accuracy=0.98329, f1_macro=0.96, images=1359),
    ),
    seconds=dict(jax=3.6, tflm=1.2, total=4.8),
    agreement=[dict(engines=["jax", "tflm"], predictions=0.99996, bytes=None)],
    peak_memory_bytes=700 * 2**20,
    pictures=[dict(file="confusion.png", title="Confusion <matrix>"), dict(file="none.png", title="Not there")],
)
ROWS = [
    dict(stage="dense", parameters=78378, float32_bytes=313512),
    dict(stage="int8", tflite_bytes=95024, download_bytes=48098, tflm_arena_bytes=53000),
]


def make_run(folder: Path, export: bool = True, evaluate: bool = True) -> Path:
    """A run folder as training and, where asked for, export and evaluation leave it."""
    configs.claim(digits.get_config(), folder)
    trained = dict(dataset="digits", image_shape=[32, 32, 3], seed=7, jax="0.9", device="cpu")
    write_json(folder / "train.json", trained | dict(seconds=26.1, peak_memory_bytes=884 * 2**20))
    lines = [dict(step=s, stage="dense", epoch=s, loss=1 / s, accuracy=1 - 1 / s, learning_rate=0.1) for s in (10, 20)]
    lines.append(lines[0] | dict(step=30, stage="prune", val_loss=0.1, val_accuracy=0.9))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "ledger.json", dict(columns=ledger.COLUMNS, rows=ROWS if export else ROWS[:1]))
    if export:
        shutil.copy(MODEL / "model.tflite", folder)
        write_json(folder / "export.json", dict(seconds=20.4, peak_memory_bytes=2360 * 2**20))
    if evaluate:
        write_json(folder / "evaluation_details.json", EVALUATION)
        labels = np.array([0, 1, 1])
        pictures.confusion_picture(folder / "confusion.png", labels, labels, ("a", "b"), "answers")
    return folder


class Reader(HTMLParser):
    """Collects what a page refers to, its <data> elements, the cells of its table rows, and its tiles by label."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.figures, self.rows, self.tiles, self.label, self.open = [], [], [], {}, "", []
        self.feed(text)
        self.close()
        if self.open:
            raise AssertionError(f"not closed: {self.open}")

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.links += [v for k, v in attributes.items() if k in ("src", "srcset", "href", "xlink:href", "action")]
        if tag == "data":
            self.figures.append((float(attributes["value"]), ""))
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "img"):
            self.open.append("tile" if attributes.get("class") == "figure" else tag)

    def handle_endtag(self, tag):
        last = self.open.pop()
        if last not in (tag, "tile"):
            raise AssertionError(f"</{tag}> closes <{last}>")

    def handle_data(self, text):
        if self.open[-1:] == ["data"]:
            self.figures[-1] = (self.figures[-1][0], text)
        if {"td", "th"} & set(self.open) and "small" not in self.open:
            self.rows[-1][-1] += text
        if self.open[-1:] == ["h3"]:
            self.label = text
        if "tile" in self.open:
            self.tiles[self.label] = self.tiles.get(self.label, "") + text


class PageTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.workdir = make_run(cls.folder)
        cls.text = page.write(cls.workdir).read_text()
        cls.reader = Reader(cls.text)
        cls.code = codegen.report((MODEL / "model.tflite").read_bytes())

    def test_needs_no_other_file(self):
        others = [link for link in self.reader.links if not link.startswith(("data:image/png;base64,", "#"))]
        self.assertEqual(others, [])
        self.assertLen([link for link in self.reader.links if link.startswith("data:")], 1)  # the one that exists
        self.assertIsNone(re.search(r"url\((?!#)|@import|<script|<link", self.text))
        self.assertIn("Confusion &lt;matrix&gt;", self.text)

    def test_each_number_is_its_value_rounded(self):
        self.assertGreater(len(self.reader.figures), 100)
        for value, text in self.reader.figures:
            shown = float(text.replace(",", ""))
            unit = 10.0 ** -len(text.partition(".")[2])
            self.assertLess(abs(shown - value), unit * 0.501 if value < 99.99 else unit, (value, text))

    def test_tiles(self):
        low, high = self.code["estimated"]["esp32"]["milliseconds"]
        wanted = {
            "Float network": "97.77 %",
            "int8 network": "98.33 %",
            "Download": "48,098",
            "Flash": f"{self.code['weight_bytes']:,}",
            "RAM": f"{self.code['arena_bytes']:,}",
            "Time": f"{low:,.1f}–{high:,.1f}",
        }
        self.assertEqual(self.reader.tiles, wanted)

    def test_tables(self):
        for row in (
            ["jax", "97.77 %", "97.70 %", "1,359", "3.6 s"],
            ["tflm", "98.33 %", "96.00 %", "1,359", "1.2 s"],
            ["jax and tflm", "99.99 %", "–"],  # 100 is said only where all is equal
            ["float32", "", "313,512", "1.0×"],
            ["packed", "", "48,098", "6.5×"],
            ["dense", "78,378", "313,512", "–", "–", "–"],
            ["train", "26.1", "884"],
            ["evaluate", "4.8", "700"],
            ["whole", "51.3", "2,360"],
        ):
            self.assertIn(row, self.reader.rows)

    def test_layers_are_those_of_the_committed_report(self):
        layers = json.loads((MODEL / "report.json").read_text())["layers"][1:-1]
        start = next(i for i, row in enumerate(self.reader.rows) if row[0] == "layer") + 1
        rows = self.reader.rows[start : start + len(layers)]
        board = sum(layer["instructions"]["lx106"] for layer in self.code["layers"])
        low, high = self.code["estimated"]["esp32"]["milliseconds"]
        for row, layer in zip(rows, layers, strict=True):
            part = layer["instructions"]["lx106"] / board
            zeros = "" if layer["zeros"] is None else f"{100 * layer['zeros']:.1f}"
            times = f"{part * low:.2f}–{part * high:.2f}"
            self.assertEqual(row[1:2] + row[3:], [zeros, f"{layer['weight_bytes']:,}", f"{layer['macs']:,}", times])
        self.assertEqual([row[0] for row in rows[:3]], ["conv", "block0a", "block0b"])

    def test_estimates_say_so(self):
        self.assertIn("ms on an ESP32, <em>estimated</em>", self.text)
        self.assertIn("No board measured it", self.text)

    def test_flash_of_compiled_code(self):
        with tempfile.TemporaryDirectory() as folder:
            make_run(Path(folder))
            ledger.add_flash(folder, 5 << 20)
            reader = Reader(page.html(page.read(folder)))
            self.assertIn(["Flash", "", "5,242,880", "125.0 %"], reader.rows)
            self.assertIn("It does not fit an ESP32", page.html(page.read(folder)))


class MissingPartsTest(absltest.TestCase):
    def setUp(self):
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

    def test_settings_are_flags_that_the_command_takes(self):
        run, config = make_run(self.folder, evaluate=False), digits.get_config()
        config.data.size, config.stages = (12, 16), ("dense", "prune")
        configs.claim(config, run)
        text = page.write(run).read_text()
        self.assertIn("--config.data.size=12,16\n", text)
        self.assertIn("--config.stages=dense,prune\n", text)

    def test_without_evaluation(self):
        text = page.write(make_run(self.folder, evaluate=False)).read_text()
        self.assertEqual(list(Reader(text).tiles), ["Download", "Flash", "RAM", "Time"])
        self.assertIn(f"run atalaia.evaluate --workdir={self.folder}", text)
        self.assertIn("No evaluation_details.json: run atalaia.evaluate", report.run_summary(self.folder))

    def test_without_int8(self):
        text = page.write(make_run(self.folder, export=False, evaluate=False)).read_text()
        self.assertEqual(Reader(text).tiles, {})
        self.assertIn(f"No int8 file yet: run atalaia.export --workdir={self.folder}", text)
        self.assertIn("No export.json: run atalaia.export", report.run_summary(self.folder))

    def test_a_file_that_has_no_c(self):
        make_run(self.folder)
        (self.folder / "model.tflite").write_bytes(b"0" * 100)
        self.assertIn("No C for this file: ", page.write(self.folder).read_text())

    def test_without_training(self):
        make_run(self.folder)
        (self.folder / "train.json").unlink()
        for call in (page.write, report.run_summary):
            with self.assertRaisesRegex(UserError, "has no train.json: run atalaia.train"):
                call(self.folder)
        self.assertFalse((self.folder / "report.html").exists())


class LayerTest(absltest.TestCase):
    def test_bits(self):
        for codes, bits in (([-2, 1], 2), ([-2, 2], 3), ([-5, 2], 4), ([-8, 7], 4), ([-9, 0], 8), ([0, 8], 8), ([], 2)):
            self.assertEqual(page.weight_bits(np.array(codes, np.int8)), bits, codes)

    def test_names(self):
        for tensor, name in (
            ("jit(apply)/ResNet8/block0/block0/max;jit(apply)/ResNet8/block0/block0/add", "block0"),
            ("max;jit(apply)/Net/stem/conv1/add", "stem/conv1"),
            ("model/conv2d/Relu", ""),
        ):
            self.assertEqual(page.layer_name(tensor), name)

    def test_a_file_from_elsewhere(self):
        kernel = np.random.default_rng(0).integers(-8, 8, (4, 3, 3, 2)).astype(np.int8)
        (layer,) = page.code_report(int8_models.convolution(kernel, (6, 6)))["layers"][1:-1]
        self.assertEqual((layer["name"], layer["bits"], layer["zeros"]), ("", 4, np.mean(kernel == 0)))


class PicturesTest(absltest.TestCase):
    def setUp(self):
        self.path = Path(self.enter_context(tempfile.TemporaryDirectory())) / "a.png"

    def test_samples_have_frames_by_what_is_right_and_sharp_pixels(self):
        from matplotlib.image import imread

        images = np.random.default_rng(0).integers(0, 2, (7, 4, 4, 1)).astype(np.uint8) * 255
        pictures.samples_picture(self.path, images, ["cat"] * 7, [True] * 6 + [False], "some")
        pixels = np.round(imread(self.path)[..., :3] * 255).astype(int)
        right, wrong = (
            np.all(pixels == list(bytes.fromhex(color[1:])), -1).sum() for color in (pictures.RIGHT, pictures.WRONG)
        )
        self.assertBetween(right / wrong, 5, 7)  # frames of six and of one
        grey = np.ptp(pixels, -1) == 0
        self.assertGreater(np.isin(pixels[grey], (0, 255)).mean(), 0.95)  # smoothing would make other greys

    def test_scatter(self):
        truth = np.linspace(0, 1, 20).reshape(10, 2)
        pictures.scatter_picture(self.path, truth, truth + 0.1, ("sine", "cosine"), "angles")
        self.assertEqual(self.path.read_bytes()[:4], b"\x89PNG")

    def test_curves_take_the_colour_of_the_page_and_are_the_same_each_time(self):
        curves = {"training": ((1, 2), (3.0, 1.0)), "validation": ((2,), (1.5,))}
        drawing = pictures.curves_picture(curves, dict(dense=0, prune=1), "loss")
        self.assertTrue(drawing.startswith("<svg"))
        for text in ("training", "validation", "dense", "prune", "loss", "currentColor"):
            self.assertIn(text, drawing)
        self.assertNotIn(pictures.INK, drawing)
        self.assertEqual(drawing, pictures.curves_picture(curves, dict(dense=0, prune=1), "loss"))


# Looks at a page in a frame of the width that is asked for; a window cannot be as narrow as a phone.
FRAME = """<!doctype html><iframe src="report.html" width="{width}" height="900"></iframe><pre id="found"></pre><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  document.getElementById("found").textContent = JSON.stringify({{
    widths: [...page.images].map(image => image.naturalWidth),
    drawings: page.querySelectorAll("svg").length,
    too_wide: root.scrollWidth - root.clientWidth,
  }});
}}
</script>"""


def browse(test: absltest.TestCase, text: str, width: int = 1200) -> tuple[dict, list[str]]:
    """What FRAME finds in a page that a real browser shows, and the messages in the browser's console."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "report.html").write_text(text)
        frame = Path(folder) / "frame.html"
        frame.write_text(FRAME.format(width=width))
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
        options += [f"--user-data-dir={folder}/profile", "--allow-file-access-from-files", "--dump-dom", frame.as_uri()]
        done = subprocess.run([program(test), *options], capture_output=True, text=True, timeout=120, check=False)
    match = re.search(r'<pre id="found">({.*?})</pre>', done.stdout)
    test.assertIsNotNone(match, done.stderr[-2000:])
    return json.loads(match[1]), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


class BrowserTest(absltest.TestCase):
    def test_a_laptop_and_a_phone_show_it(self):
        with tempfile.TemporaryDirectory() as folder:
            text = page.write(make_run(Path(folder))).read_text()
        for width in (1200, 400):
            found, console = browse(self, text, width)
            self.assertEqual(console, [])
            self.assertLen(found["widths"], 1)
            self.assertGreater(min(found["widths"]), 0)
            self.assertEqual(found["drawings"], 3)  # loss, accuracy, learning rate
            self.assertEqual(found["too_wide"], 0)

    def test_errors_would_be_seen(self):
        broken = '<img src="data:image/png;base64,AAAA"><p style="width:2000px">wide<script>nothing()</script>'
        found, console = browse(self, broken)
        self.assertEqual(found["widths"], [0])
        self.assertGreater(found["too_wide"], 500)
        self.assertLen(console, 1)


if __name__ == "__main__":
    absltest.main()

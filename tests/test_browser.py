"""The page that runs a network in a browser: pixels are the data set's, answers those of the C on this computer.

A missing browser or compiler fails these tests where CI is set, and skips them elsewhere.
"""

import base64
import ctypes
import io
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from unittest import mock

import int8_models
import numpy as np
from absl.testing import absltest, parameterized
from chromium import Browser, program
from PIL import Image
from test_boards import require

from atalaia import config as configs
from atalaia import data
from atalaia.browser import __main__ as browser
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import boards
from atalaia.datasets import pictures
from atalaia.errors import UserError
from atalaia.files import write_json

ROOT = Path(__file__).parent.parent
CIFAR10 = ROOT / "mcu/models/cifar10/model.tflite"
SHAPE = (24, 40, 1)  # of the detector
COLOURS = tuple(f"colour {i} & <more>" for i in range(10))
LAST = """(() => {
  const {frame, pixels, outputs, answer} = window.atalaia.last;
  const text = bytes => btoa(Array.from(new Uint8Array(bytes.buffer), byte => String.fromCharCode(byte)).join(""));
  const shown = [...document.querySelectorAll("#answer li .name")].map(name => name.innerText);
  return {frame: text(frame.data), width: frame.width, height: frame.height, pixels: text(pixels),
          outputs: text(outputs), answer: Array.from(answer), shown};
})()"""


def make_run(folder: Path, config, content: bytes, names) -> Path:
    """What the page needs of a run that was trained and exported."""
    configs.claim(config, folder)
    write_json(folder / "train.json", dict(names=names, dataset="drawn <pictures>"))
    (folder / "model.tflite").write_bytes(content)
    return folder


def photo(random, height, width):
    """uint8 [height, width, 3]: coarse blocks of colours, which are seen at any size."""
    coarse = Image.fromarray(random.randint(0, 256, (7, 9, 3)).astype(np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def png(pixels) -> bytes:
    kept = io.BytesIO()
    Image.fromarray(pixels).save(kept, "PNG")
    return kept.getvalue()


def drop(page, image):
    """Drops a PNG on the page, as a hand does."""
    page.evaluate(f"""(() => {{
      const bytes = Uint8Array.from(atob("{base64.b64encode(png(image)).decode()}"), c => c.charCodeAt(0));
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([bytes], "photo.png"));
      document.body.dispatchEvent(new DragEvent("drop", {{dataTransfer, bubbles: true, cancelable: true}}));
    }})()""")


def in_c(content, folder, config):
    """A function of uint8 pixels to int8 outputs and int32 answers: codegen's C, compiled for this computer."""
    codegen.generate(content, folder, samples=1, task=config.task, fields=config.get(config.task))
    sources = [ROOT / "mcu/boards/wasm/page.c", folder / "model.c"]
    subprocess.run(
        ["gcc", "-std=c99", "-O2", "-shared", "-fPIC", f"-I{folder}", *sources, "-o", folder / "c.so"], check=True
    )
    library = ctypes.CDLL(str(folder / "c.so"))
    for name, kind in dict(input=ctypes.c_int8, outputs=ctypes.c_int8, answer=ctypes.c_int32).items():
        getattr(library, f"page_{name}").restype = ctypes.POINTER(kind)
    sizes = [int(n) for n in re.search(r"OUTPUT_BYTES {(.*)}", (folder / "model.h").read_text())[1].split(",")]

    def run(pixels):
        pixels = np.ravel(pixels)
        np.ctypeslib.as_array(library.page_input(), pixels.shape)[:] = (pixels.astype(int) - 128).astype(np.int8)
        library.page_run()
        outputs = np.ctypeslib.as_array(library.page_outputs(), (sum(sizes),)).copy()
        return outputs, np.ctypeslib.as_array(library.page_answer(), (library.page_answers(),)).tolist()

    return run


class BrowserTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))

    def setUp(self):
        super().setUp()
        program(self)
        for board in (boards.HOST, boards.WASM):
            require(self, board)

    def run_of(self, name):
        """Config, folder and C of a run, and its page; made once."""
        if not hasattr(type(self), name):
            setattr(type(self), name, getattr(self, f"make_{name}")())
        return getattr(type(self), name)

    def make_classifier(self):
        config, random = configs.base(), np.random.RandomState(0)
        images = np.stack([photo(random, 32, 32) for _ in range(30)])
        np.savez(self.folder / "data.npz", train_images=images, train_targets=np.arange(30) % 10, names=COLOURS)
        config.data.name, config.data.path = "arrays", str(self.folder / "data.npz")
        run = make_run(self.folder / "classifier", config, CIFAR10.read_bytes(), COLOURS)
        page = browser.write(run, self.folder, samples=3)
        return config, page, in_c(CIFAR10.read_bytes(), self.folder / "classifier_c", config)

    def make_detector(self):
        config, random = configs.base(), np.random.RandomState(0)
        config.task, config.data.fit = "detect", "letterbox"
        config.detect.stride, config.detect.threshold, config.detect.most = 2, 0.5, 5
        kernels = (random.randint(-9, 10, (outputs, 3, 3, 1)).astype(np.int8) for outputs in (4, 2))  # box, centre
        content = int8_models.joined(*(int8_models.convolution(kernel, SHAPE[:2], 2) for kernel in kernels))
        run = make_run(self.folder / "detector", config, content, ("cat", "dog"))
        page = browser.write(run, self.folder, self.folder / "out", samples=0)
        self.assertEqual(page, self.folder / "out/index.html")
        return config, page, in_c(content, self.folder / "detector_c", config)

    def opened(self, page, *options):
        found = Browser(self, *options)
        found.open(page.as_uri())
        found.evaluate("window.atalaia.ready.then(() => 0)")
        return found

    def last(self, page, before=None):
        """What the page saw last, when it is another frame than before."""
        for _ in range(200):
            if page.evaluate("window.atalaia.last !== null"):
                found = page.evaluate(LAST)
                for name, kind in dict(frame=np.uint8, pixels=np.uint8, outputs=np.int8).items():
                    found[name] = np.frombuffer(base64.b64decode(found[name]), kind)
                found["frame"] = found["frame"].reshape(found["height"], found["width"], 4)
                if before is None or not np.array_equal(found["frame"], before["frame"]):
                    return found
            time.sleep(0.02)
        self.fail(f"no frame; {page.console} {page.evaluate('document.body.innerText')}")

    def check(self, found, c, config, shape):
        """The pixels are what the data set makes of the frame, outputs and answers what C makes of these."""
        image = Image.fromarray(found["frame"][..., :3]).convert("L" if shape[2] == 1 else "RGB")
        wanted = np.asarray(pictures.fit(image, shape[:2], config.data.fit, Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(found["pixels"].reshape(shape), wanted.reshape(shape))
        outputs, answer = c(found["pixels"])
        np.testing.assert_array_equal(found["outputs"], outputs)
        self.assertEqual(found["answer"], answer)

    def test_a_classifier_on_samples_and_a_photo(self):
        config, file, c = self.run_of("classifier")
        page = self.opened(file)
        answers = set()
        for i in range(3):
            page.evaluate(f"document.querySelectorAll('.samples button')[{i}].onclick()")
            found = self.last(page)
            self.assertEqual((found["height"], found["width"]), (32, 32))
            np.testing.assert_array_equal(found["pixels"], found["frame"][..., :3].ravel())  # unchanged
            self.check(found, c, config, (32, 32, 3))
            self.assertEqual(found["shown"][0], COLOURS[found["answer"][0]])
            self.assertLen(found["shown"], 5)
            answers.add(found["answer"][0])
        image = photo(np.random.RandomState(1), 150, 230)
        (self.folder / "photo.png").write_bytes(png(image))
        node = page.call("DOM.querySelector", nodeId=page.call("DOM.getDocument")["root"]["nodeId"], selector="#photo")
        page.call("DOM.setFileInputFiles", files=[str(self.folder / "photo.png")], nodeId=node["nodeId"])
        found = self.last(page, found)
        np.testing.assert_array_equal(found["frame"][..., :3], image)
        self.check(found, c, config, (32, 32, 3))
        self.assertRegex(page.evaluate("document.getElementById('time').innerText"), r"^(< )?\d+(\.\d)?$")
        for width in (1200, 400):
            page.screen(width, 800)
            self.assertEqual(page.evaluate("document.documentElement.scrollWidth <= innerWidth"), True, width)
        self.assertEqual(page.console, [])

    def test_samples_are_those_of_the_test_set(self):
        config, file, _ = self.run_of("classifier")
        images = data.load(config.data, self.folder).test.images[[0, 4, 9]]  # of 10
        found = re.findall(r'src="data:image/png;base64,(.*?)"', file.read_text())
        for image, text in zip(images, found, strict=True):
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))), image)

    def test_the_page_needs_no_other_file(self):
        text = self.run_of("classifier")[1].read_text()
        self.assertEqual(re.findall(r'(?:src|href)="(?!data:image/png)', text), [])
        self.assertIsNone(re.search(r"url\(|@import|https?://(?! |localhost)|<link", text))
        self.assertIn("drawn &lt;pictures&gt;", text)

    def test_a_detector_on_a_dropped_photo(self):
        config, file, c = self.run_of("detector")
        page = self.opened(file)
        self.assertIsNone(page.evaluate("window.atalaia.last"))  # there are no samples
        image = photo(np.random.RandomState(2), 60, 120)
        drop(page, image)
        found = self.last(page)
        np.testing.assert_array_equal(found["frame"][..., :3], image)
        self.check(found, c, config, SHAPE)
        kinds = [kind for kind in found["answer"][::6] if kind >= 0]
        self.assertNotEmpty(kinds)
        self.assertEqual(found["shown"], [("cat", "dog")[kind] for kind in kinds])
        self.assertEqual(page.console, [])
        page.evaluate("document.ondrop({preventDefault() {}, dataTransfer: {files: [new File(['no'], 'a.txt')]}})")
        self.assertIn("a.txt is no picture", page.evaluate("document.getElementById('message').innerText"))

    def test_numbers_of_a_dropped_photo(self):
        config, kernel = configs.base(), np.random.RandomState(5).randint(-9, 10, (3, 8, 8, 1)).astype(np.int8)
        config.task, config.data.fit = "regress", "pad"
        content = int8_models.joined(int8_models.convolution(kernel, (8, 8), same=False))
        run = make_run(self.folder / "numbers", config, content, ("a", "b", "c"))
        page = self.opened(browser.write(run, self.folder, samples=0))
        drop(page, photo(np.random.RandomState(6), 30, 50))
        found = self.last(page)
        self.check(found, in_c(content, self.folder / "numbers_c", config), config, (8, 8, 1))
        self.assertEqual(found["shown"], ["a", "b", "c"])
        shown = page.evaluate("[...document.querySelectorAll('#answer .text')].map(text => text.innerText)")
        self.assertEqual(shown, [f"{value / 65536:.4f}" for value in found["answer"]])
        self.assertGreater(np.abs(found["answer"]).max(), 6554)

    def test_a_detector_on_a_camera(self):
        config, file, c = self.run_of("detector")
        movie, random = self.folder / "movie.y4m", np.random.RandomState(3)
        with movie.open("wb") as opened:
            opened.write(b"YUV4MPEG2 W160 H120 F30:1 Ip A1:1 C420jpeg\n")
            for _ in range(8):
                grey = photo(random, 120, 160)[..., 0]
                opened.write(b"FRAME\n" + grey.tobytes() + bytes([110]) * 4800 + bytes([140]) * 4800)
        fake = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
        page = self.opened(file, *fake, f"--use-file-for-fake-video-capture={movie}")
        page.evaluate("document.getElementById('camera').onclick()")
        found, boxes = None, 0
        for _ in range(4):
            found = self.last(page, found)
            self.assertGreater(found["frame"][..., :3].std(), 20)
            self.check(found, c, config, SHAPE)
            boxes += found["answer"][0] >= 0
        self.assertGreater(boxes, 0)
        self.assertEqual(page.evaluate("document.getElementById('camera').innerText"), "Stop the camera")
        page.evaluate("document.getElementById('camera').onclick()")
        self.assertEqual(page.evaluate("document.getElementById('camera').innerText"), "Start the camera")
        self.assertEqual(page.console, [])

    def test_frames_of_any_shape_are_brought_to_size_as_pillow_does(self):
        """Row by row, then column by column, which Pillow 13 turns round where that is less work."""
        _, file, _ = self.run_of("detector")
        page, random = self.opened(file), np.random.RandomState(4)
        for i in range(24):
            how, channels = list(pictures.FITTED)[i % 4], (1, 3)[i // 4 % 2]
            native, size = random.randint(2, 120, 2).tolist(), random.randint(2, 60, 2).tolist()
            if i < 8:
                native, size = (random.randint(60, 80), random.randint(80, 120)), (24, 32)
            frame = random.randint(0, 256, (*native, 4)).astype(np.uint8)
            text = base64.b64encode(frame.tobytes()).decode()
            found = page.evaluate(f"""(() => {{
              const data = Uint8Array.from(atob("{text}"), c => c.charCodeAt(0));
              const frame = {{data, width: {native[1]}, height: {native[0]}}};
              const place = placeFrame([{native[0]}, {native[1]}], {list(size)}, "{how}");
              return {{pixels: Array.from(fitFrame(frame, [...{list(size)}, {channels}], "{how}")), ...place}};
            }})()""")
            image = Image.fromarray(frame[..., :3]).convert("L" if channels == 1 else "RGB")
            wanted = np.asarray(pictures.fit(image, tuple(size), how, Image.Resampling.BILINEAR)).astype(int).ravel()
            most = np.abs(np.array(found["pixels"]) - wanted).max()
            self.assertLessEqual(most, 0 if i < 8 else 1, (native, size, how))
            scale, shift = pictures.placed(tuple(native), tuple(size), how)
            box, inner = np.array(found["box"]), np.array(found["size"][::-1])
            np.testing.assert_allclose(inner / (box[2:] - box[:2]), scale, rtol=1e-5)
            np.testing.assert_allclose(np.array(found["at"][::-1]) - box[:2] * scale, shift, atol=1e-4)


class RefusalTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

    def refuses(self, pattern):
        with self.assertRaisesRegex(UserError, pattern):
            browser.write(self.folder / "run", self.folder, self.folder / "out", samples=0)
        self.assertFalse((self.folder / "out").exists())

    def test_runs_that_are_not_ready(self):
        self.refuses("run holds no run")
        configs.claim(configs.base(), self.folder / "run")
        self.refuses("is not finished: give its atalaia.train command again")
        write_json(self.folder / "run/train.json", dict(names=COLOURS, dataset="digits"))
        self.refuses("no model at .*model.tflite: run atalaia.export first")

    def test_a_missing_compiler_names_its_packages(self):
        require(self, boards.HOST)
        make_run(self.folder / "run", configs.base(), CIFAR10.read_bytes(), COLOURS)
        (self.folder / "bin").mkdir()
        for name in ("sh", "python3", "mkdir"):
            (self.folder / "bin" / name).symlink_to(shutil.which(name))
        real = subprocess.run

        def without(command, **options):
            return real([shutil.which("make"), *command[1:]], **options, env=dict(PATH=str(self.folder / "bin")))

        with mock.patch.object(boards.subprocess, "run", without):
            self.refuses("^a page needs WebAssembly: clang is missing: apt install clang lld$")

    def test_data_that_are_not_there(self):
        require(self, boards.WASM)
        config = configs.base()
        config.data.name, config.data.path = "arrays", str(self.folder / "none.npz")
        make_run(self.folder / "run", config, CIFAR10.read_bytes(), COLOURS)
        with self.assertRaisesRegex(UserError, "there is no file .*; or leave the pictures out: --samples=0"):
            browser.write(self.folder / "run", self.folder, self.folder / "out")
        self.assertFalse((self.folder / "out").exists())


if __name__ == "__main__":
    absltest.main()

"""Packages: what is in them, that they compile as C and as C++, and that their examples find the golden bytes.

The examples of ESP-IDF and Arduino run on this computer against small stubs (tests/data); neither is at hand. What
Espressif's and PlatformIO's own checkers say: experiments/packages.py.
"""

import ctypes
import json
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import test_boards
from absl import flags
from absl.testing import absltest, parameterized
from flat_models import Net, longest
from int8_models import convolution, detector
from operator_models import GROUPS

from atalaia import config as configs
from atalaia import tflite
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import emit, fitting, fixed_point, kernels, lowering, strips
from atalaia.codegen import package as packages
from atalaia.errors import UserError

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests/data"
WARNINGS = ("-Wall", "-Wextra", "-Werror")
C, CXX = ("gcc", "-std=c99", *WARNINGS), ("g++", "-x", "c++", "-std=c++17", *WARNINGS)
LABELS = ('a "cat"', "tab\tand ??=", "ação 😀", "@name@")


def every_kernel(lowered):
    """Calls of a graph's steps: for each step the first, second, ... kernel that can run it, or its last."""
    choices = [kernels.candidates(step, "esp32") for step in lowered.steps]
    for number in range(max(map(len, choices))):
        yield [calls[min(number, len(calls) - 1)] for calls in choices]


def borders() -> bytes:
    """A file of two inputs and two outputs of several types, which also has a bias for each."""
    net = Net()
    real, codes = net.given((1, 3, 5), dtype="FLOAT32"), net.given((1, 3, 5), 0.04, 3)
    both = net.op(
        "ADD", (net.op("QUANTIZE", (real,), net.tensor((1, 3, 5), 0.05, -7)), codes), net.tensor((1, 3, 5), 0.1)
    )
    return net.file(
        net.op("DEQUANTIZE", (both,), net.tensor((1, 3, 5), dtype="FLOAT32")),
        net.op("QUANTIZE", (both,), net.tensor((1, 3, 5), 0.1, 128, dtype="UINT8")),
    )


class PackageTest(parameterized.TestCase):
    """cat: a classifier of four classes. finder: a detector. many: several inputs and outputs."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.made = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        kernel = np.random.default_rng(1).integers(-128, 128, (4, 3, 3, 1)).astype(np.int8)
        fields = configs.base().detect
        fields.update(stride=4, threshold=0.5, most=3, overlap=0.3)
        codegen.generate(convolution(kernel, (3, 3), same=False), cls.made / "cat", samples=2, task="classify")
        codegen.generate(detector((8, 12), 1, 4), cls.made / "finder", samples=2, task="detect", fields=fields)
        codegen.generate(borders(), cls.made / "many", samples=3)

    def setUp(self):
        super().setUp()
        test_boards.require(self, "host")
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

    def package(self, name, kind, **options):
        """The folder of a package of one of the three models."""
        found = packages.Package(kind, self.folder / kind / name, **options)
        packages.write(found, self.made / name)
        return found.out

    def run_of(self, compiler, *arguments):
        """What a program prints, compiled from these sources and flags."""
        subprocess.run([*compiler, *arguments, "-o", self.folder / "program"], check=True)
        done = subprocess.run([self.folder / "program"], capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    @parameterized.parameters(("cat", 2), ("finder", 2), ("many", 3))
    def test_the_plain_one_finds_the_golden_bytes_as_c_and_as_cxx(self, name, samples):
        for compiler, arena in ((C, "static"), (CXX, "given")):
            out = self.package(name, "plain", arena=arena, labels=LABELS if name == "cat" else ())
            found = self.run_of(compiler, out / "example.c", out / f"{name}.c")
            self.assertIn(f"{name}: {samples} of {samples} outputs equal\n", found)

    def test_a_wrong_byte_is_found(self):
        out = self.package("many", "plain")
        before, _, outputs = (out / "golden.h").read_text().partition("golden_outputs")
        first = outputs.index("  {\n    ") + 8
        end = outputs.index(",", first)
        changed = f"{outputs[:first]}{(int(outputs[first:end]) + 129) % 256 - 128}{outputs[end:]}"
        (out / "golden.h").write_text(f"{before}golden_outputs{changed}")
        with self.assertRaises(subprocess.CalledProcessError) as caught:
            self.run_of(C, out / "example.c", out / "many.c")
        self.assertIn("many: 2 of 3 outputs equal\n", caught.exception.stdout)

    def test_the_plain_one_on_32_bits(self):
        test_boards.require(self, "rv32")
        out = self.package("many", "plain")
        given = dict(BOARD="rv32", FILES=f"{out}/example.c {out}/many.c", DEFINES=f"-I{out}", BUILD_DIR=self.folder)
        command = ["make", "-s", "-C", ROOT / "mcu", "program", *(f"{k}={v}" for k, v in given.items())]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
        self.assertIn("many: 3 of 3 outputs equal\n", done.stdout)

    @parameterized.parameters("STATIC", "GIVEN", "PSRAM")
    def test_the_example_of_esp_idf_on_a_stub(self, arena):
        """What menuconfig chooses is given as it gives it."""
        out, stub = self.package("cat", "idf"), DATA / "esp_idf"
        example = out / "examples/check/main"
        chosen = (f"-DCONFIG_CAT_ARENA_{arena}=1", f"-I{stub}", f"-I{out}/include")
        found = self.run_of(C, *chosen, example / "main.c", out / "src/cat.c", stub / "stub.c")
        self.assertIn("cat: 2 of 2 outputs equal\n", found)

    @parameterized.parameters("arduino", "platformio")
    def test_the_sketch_on_a_stub(self, kind):
        """A sketch is C++ behind an #include that the Arduino IDE puts before it; the library is C."""
        out = self.package("cat", kind, arena="given", labels=LABELS)
        header = out / ("src" if kind == "arduino" else "include")
        sketch = out / ("examples/check/check.ino" if kind == "arduino" else "examples/check/src/main.cpp")
        main = self.folder / "main.cc"
        main.write_text(f'#include <Arduino.h>\n#include "{sketch}"\nint main() {{ setup(); loop(); }}\n')
        subprocess.run([*C, f"-I{header}", "-c", out / "src/cat.c", "-o", self.folder / "cat.o"], check=True)
        found = self.run_of(
            ("g++", "-std=c++17", *WARNINGS), f"-I{header}", f"-I{DATA}/arduino", main, self.folder / "cat.o"
        )
        self.assertRegex(found, r"cat: equal outputs: 2 of 2; microseconds: \d+\n")

    def test_two_packages_fit_into_one_program(self):
        cat, many = self.package("cat", "plain"), self.package("many", "plain")
        main = self.folder / "main.c"
        main.write_text(
            '#include "cat.h"\n#include "many.h"\nint main(void) { return cat_init(0, 0) || many_init(0, 0); }\n'
        )
        self.assertEqual(self.run_of(C, f"-I{cat}", f"-I{many}", main, cat / "cat.c", many / "many.c"), "")

    def test_only_names_of_its_own_are_seen(self):
        out = self.package("finder", "plain")
        subprocess.run([*C, "-c", out / "finder.c", "-o", self.folder / "finder.o"], check=True)
        listed = subprocess.run(
            ["nm", "-g", self.folder / "finder.o"], capture_output=True, text=True, check=True
        ).stdout
        names = [line.split()[-1] for line in listed.splitlines() if " U " not in line]
        self.assertContainsSubset(["finder_init", "finder_input", "finder_output0", "finder_answer"], names)
        self.assertEqual([name for name in names if not name.startswith("finder_")], [])

    def library(self, name, more="", **options):
        """A package as a library of this process, with more C behind its own."""
        out = self.package(name, "plain", **options)
        (self.folder / "more.c").write_text(f'#include "{out}/{name}.c"\n{more}')
        subprocess.run([*C, "-shared", "-fPIC", self.folder / "more.c", "-o", self.folder / "more.so"], check=True)
        return ctypes.CDLL(str(self.folder / "more.so"))

    def test_helpers_round_as_tflite_micro_does(self):
        calls = (
            "int8_t to(float x) { return many_quantize1(x); }\nfloat from(uint8_t x) { return many_dequantize1(x); }\n"
        )
        found = self.library("many", calls)
        found.to.argtypes, found.to.restype, found.from_ = [ctypes.c_float], ctypes.c_int8, found["from"]
        found.from_.argtypes, found.from_.restype = [ctypes.c_uint8], ctypes.c_float
        scale = np.float32(0.04)
        reals = np.concatenate([np.arange(-300, 300) * scale / 2, np.random.default_rng(0).normal(0, 3, 300)])
        reals = np.concatenate([reals, [np.inf, -np.inf, 1e30, -1e30]]).astype(np.float32)
        expected = fixed_point.quantized(reals, 0.04, 3 + 128).astype(int) - 128
        self.assertEqual([found.to(real) for real in reals], expected.tolist())
        np.testing.assert_allclose([found.from_(c) for c in range(256)], (np.arange(256) - 128) * 0.1, rtol=1e-6)

    def test_labels_are_the_bytes_that_were_given(self):
        found = self.library("cat", labels=LABELS)
        found.cat_label.restype = ctypes.c_char_p
        self.assertEqual([found.cat_label(i).decode() for i in range(-1, 5)], ["", *LABELS, ""])

    def test_init_says_what_is_wrong(self):
        found = self.library("cat", arena="given")
        found.cat_init.argtypes, found.cat_init.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_char_p
        found.cat_input.restype = ctypes.c_void_p
        arena = ctypes.create_string_buffer(1 << 16)
        start = ctypes.addressof(arena) // 4 * 4 + 4
        for address, size, text in (
            (None, 0, b"give an arena of"),
            (start, 16, b"smaller"),
            (start + 2, 9999, b"multiple of 4"),
        ):
            self.assertIn(text, found.cat_init(address, size))
            self.assertIsNone(found.cat_input())
        self.assertIsNone(found.cat_init(start, 9999))
        self.assertBetween(found.cat_input(), start, start + 9999)

    def test_its_header_has_the_sizes_of_the_report(self):
        out, report = (
            self.package("finder", "platformio", version="2.3.4"),
            json.loads((self.made / "finder/report.json").read_text()),
        )
        header = (out / "include/finder.h").read_text()
        for word, value in (
            ("CONSTANT_BYTES", report["weight_bytes"]),
            ("MACS", report["macs"]),
            ("VERSION", '"2.3.4"'),
        ):
            self.assertIn(f"#define FINDER_{word} {value}", header)
        self.assertEqual(json.loads((out / "library.json").read_text())["version"], "2.3.4")
        self.assertIn("#define FINDER_ANSWERS 18 ", header)

    def test_what_a_person_put_there_stays_and_its_own_files_are_replaced(self):
        out = self.package("cat", "plain")
        before = (out / "cat.h").read_text()
        self.package("cat", "plain", version="1.0.1")
        self.assertIn('"1.0.1"', (out / "cat.h").read_text())
        self.package("cat", "plain")
        self.assertEqual((out / "cat.h").read_text(), before)
        self.assertEqual([path.name for path in out.parent.iterdir()], ["cat"])
        rename = Path.rename

        def stopped(path, to):
            if path.name == "new":
                raise KeyboardInterrupt
            rename(path, to)

        with mock.patch.object(Path, "rename", stopped), self.assertRaises(KeyboardInterrupt):
            self.package("cat", "plain", version="1.0.1")
        self.assertEqual((out / "cat.h").read_text(), before)
        (out / "notes.txt").write_text("mine")
        with self.assertRaisesRegex(UserError, r"cat holds notes\.txt, which is no file of this package"):
            self.package("cat", "plain", version="1.0.2")
        with self.assertRaisesRegex(UserError, "there are 1 labels, of --labels or the config's data, and 4 values"):
            self.package("cat", "arduino", labels=("one",))
        self.assertFalse((self.folder / "arduino").exists())

    def test_every_kernel_is_cxx_too(self):
        """Designated initialisers in the order of the structs, and casts where C needs none."""
        needed = {}
        for content in (content for group in GROUPS.values() for _, content in group()):
            lowered = lowering.lower(tflite.read(content))
            for calls in every_kernel(lowered):
                graph = lowered._replace(steps=[call.step for call in calls])
                for found in (fitting.planned(strips.Network(graph, calls), ()), longest(graph, calls)):
                    key = frozenset(call.kernel for call in calls), bool(found.plan.strips)
                    needed.setdefault(key, (graph, found.calls, found.plan))
        bodies = [emit.body(*parts, f"m{number}_") for number, parts in enumerate(needed.values())]
        head = emit.head("all", [call for _, calls, _ in needed.values() for call in calls])
        head = head.replace('#include "model.h"', "")
        (self.folder / "all.cc").write_text("\n".join([head, *bodies]))
        subprocess.run(["g++", "-std=c++17", *WARNINGS, "-fsyntax-only", self.folder / "all.cc"], check=True)
        self.assertGreater(len(needed), 50)
        for part in ("strips_turn(", "conv_woven(", "conv_sparse(", "conv_mac16(", "depthwise_rows("):
            self.assertIn(part, head)


class RefusalTest(parameterized.TestCase):
    @parameterized.parameters(
        ("zip", "cat", {}, "--package: there is no 'zip', only arduino, idf, plain, platformio"),
        ("idf", "cat", dict(arena="flash"), "--arena: there is no 'flash', only given, psram, static"),
        ("idf", "my-net", {}, "'my-net' is the package's name, and must be one of C"),
        ("idf", "2nd", {}, "'2nd' is the package's name"),
        ("idf", "a__b", {}, "'a__b' is the package's name"),
        ("idf", "ação", {}, "'ação' is the package's name"),
        ("idf", "x" * 33, {}, "letters, digits and _, 32 at most"),
        ("arduino", "String", {}, "would hide others' String.h: choose another name"),
        ("plain", "cat", dict(version="1.0"), "--package_version=1.0: give three numbers, such as 1.0.0"),
        ("plain", "cat", dict(arena="psram"), "--arena=psram is allocated by ESP-IDF"),
    )
    def test_what_cannot_be_written(self, kind, name, options, text):
        with self.assertRaises(UserError) as caught:
            packages.check(packages.Package(kind, Path("/tmp/nowhere") / name, **options))
        self.assertIn(text, str(caught.exception))

    def test_files_in_the_way(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cat"
            path.write_text("a\n\nb\n")
            with self.assertRaisesRegex(UserError, "is a file, where a folder is needed"):
                packages.check(packages.Package("plain", path))
            with self.assertRaisesRegex(UserError, "--labels=.*: a line is empty"):
                packages.read_labels(path)
            path.write_bytes(b"\xff\xfe")
            with self.assertRaisesRegex(UserError, "--labels=.* cannot be read"):
                packages.read_labels(path)
            path.write_text("a\n b \n")
            self.assertEqual(packages.read_labels(path), ("a", "b"))

    def values(self, **given):
        """Flags of the command, some of them given."""
        found = flags.FlagValues()
        packages.define_flags(found)
        for name in ("tflite", "out", "workdir", "task", "config"):
            flags.DEFINE_string(name, None, "", flag_values=found)
        for name, value in (("samples", 16), ("cores", 1)):
            flags.DEFINE_integer(name, value, "", flag_values=found)
        found(["command", *(f"--{name}={value}" for name, value in given.items())])
        return found

    def test_flags(self):
        self.assertIsNone(packages.asked(self.values(out="x")))
        values = self.values(package="idf", out="/tmp/nowhere/cat", arena="psram")
        self.assertEqual(packages.asked(values), packages.Package("idf", Path("/tmp/nowhere/cat"), "psram"))
        self.assertEqual(values.samples, packages.SAMPLES)
        for given, text in (
            (dict(arena="given"), "--arena is for a package: give --package="),
            (dict(package="idf"), "--package needs --out=NAME"),
            (dict(package="idf", out="cat", cores=2), "--cores=2 is not for a package, .* leave it out"),
        ):
            with self.assertRaisesRegex(UserError, text):
                packages.asked(self.values(**given))

    def test_a_run_gives_its_file_config_and_task(self):
        with tempfile.TemporaryDirectory() as folder:
            config = configs.base()
            config.task = "regress"
            configs.claim(config, Path(folder))
            values = self.values(workdir=folder)
            packages.take_run(values)
            self.assertEqual((values.tflite, values.task), (f"{folder}/model.tflite", "regress"))
            with self.assertRaisesRegex(UserError, "leave --tflite and --config out"):
                packages.take_run(values)

    def test_its_licence_is_this_repository_s(self):
        self.assertEqual((packages.TEMPLATES / "common/LICENSE").read_text(), (ROOT / "LICENSE").read_text())


if __name__ == "__main__":
    absltest.main()

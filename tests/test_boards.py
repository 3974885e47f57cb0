"""The boards' side: counters, parity and errors of `make -C mcu run`, on models written by hand and on a generated one.

A missing compiler or emulator fails these tests where CI is set, and skips them elsewhere.
"""

import functools
import json
import os
import runpy
import shutil
import subprocess
import tempfile
from pathlib import Path

import flat_models
import test_codegen
from absl.testing import absltest, parameterized
from int8_models import NETWORKS, build
from test_export import converted

from atalaia.codegen import __main__ as codegen
from atalaia.codegen import boards

ROOT = Path(__file__).parent.parent
BOARDS = (boards.HOST, *boards.EMULATORS, boards.WASM)
LOOP = 2_000_000  # instructions of tests/data/boards_loop


@functools.cache
def missing(board):
    """What `make` says is not installed for a board, or ""."""
    if not shutil.which("make"):
        return "make is missing: apt install make"
    command = ["make", "-n", "-C", str(ROOT / "mcu"), "build", f"BOARD={board}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr.strip()


def require(test, board):
    if reason := missing(board):
        test.fail(reason) if os.environ.get("CI") else test.skipTest(reason)


def make(model, board, models=ROOT / "tests/data", **variables):
    """The finished process of `make run`; its build goes to a folder of its own."""
    with tempfile.TemporaryDirectory() as build:
        given = dict(MODEL=model, BOARD=board, MODELS_DIR=models, BUILD_DIR=build) | variables
        command = ["make", "-s", "-C", str(ROOT / "mcu"), "run", *(f"{k}={v}" for k, v in given.items())]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@functools.cache
def generated():
    """A folder with the C of a network that has both kinds of convolution, pooling and a sum."""
    folder = Path(tempfile.mkdtemp(prefix="atalaia_boards_"))
    codegen.generate(converted("mini"), folder / "mini", samples=4)
    return folder


class BoardsTest(parameterized.TestCase):
    @parameterized.parameters(*BOARDS)
    def test_a_generated_model_equals_tflm(self, board):
        require(self, board)
        done = make("mini", board, generated())
        self.assertEqual(done.returncode, 0, done.stderr)
        found = json.loads(done.stdout.splitlines()[-1])
        self.assertEqual((found["samples"], found["equal"]), (4, 4))
        self.assertBetween(found["code_bytes"], 1000, 20_000)
        self.assertEqual(found["milliseconds"] is not None, board == boards.WASM)
        if board in boards.EMULATORS:
            self.assertBetween(found["instructions_per_mac"], 1, 100)
            self.assertBetween(found["stack_bytes"], 64, 2000)

    @parameterized.parameters(*NETWORKS)
    def test_constants_are_what_the_compiler_makes_of_them(self, name):
        """Optimised, equal arrays are kept once, and it can only be less."""
        require(self, "rv32")
        with tempfile.TemporaryDirectory() as folder:
            report = codegen.generate(build(name), Path(folder) / "one", samples=1)
            given = dict(MODEL="one", BOARD="rv32", MODELS_DIR=folder, BUILD_DIR=f"{folder}/build", DEFINES="-O0")
            command = ["make", "-s", "-C", ROOT / "mcu", "build", *(f"{k}={v}" for k, v in given.items())]
            subprocess.run(command, check=True)
            sizes = runpy.run_path(str(ROOT / "mcu/run.py"))["sizes"]
            _, constants = sizes("riscv64-unknown-elf-size", f"{folder}/build/one/rv32/model.o")
        self.assertEqual(constants, report["weight_bytes"])

    @parameterized.product(board=boards.EMULATORS, name=("ternary", "narrow"))
    def test_every_kernel_equals_tflm(self, board, name):
        """Rows of eight or more pixels, and of three."""
        require(self, board)
        files, choose = test_codegen.each_kernel(name)
        with test_codegen.WHOLE:
            self.assertEmpty(flat_models.wrong_on(board, files, 3, choose=choose))

    def test_flash_is_code_and_constants_of_rv32(self):
        require(self, "rv32")
        report = json.loads((generated() / "mini/report.json").read_text())
        self.assertBetween(codegen.flash_bytes(converted("mini")) - report["weight_bytes"], 1000, 20_000)

    @parameterized.parameters("rv32", "lx106")
    def test_instructions_are_counted_the_same_each_time(self, board):
        require(self, board)
        counts = {json.loads(make("boards_loop", board).stdout.splitlines()[-1])["instructions"] for _ in range(2)}
        self.assertLen(counts, 1)
        self.assertBetween(counts.pop(), LOOP, LOOP + 200)

    def test_with_sanitizers(self):
        require(self, "host")
        done = make("boards_sample", "host", SANITIZE=1)
        self.assertEqual(done.returncode, 0, done.stderr)

    @parameterized.parameters(*BOARDS)
    def test_a_wrong_golden_byte_is_found(self, board):
        require(self, board)
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(generated() / "mini", Path(folder) / "mini")
            header = Path(folder) / "mini/golden.h"
            before, outputs = header.read_text().split("golden_outputs", 1)
            first = outputs.index("  {\n    ") + 8
            end = outputs.index(",", first)
            value = (int(outputs[first:end]) + 129) % 256 - 128
            header.write_text(f"{before}golden_outputs{outputs[:first]}{value}{outputs[end:]}")
            done = make("mini", board, folder)
        self.assertNotEqual(done.returncode, 0)
        self.assertEqual(json.loads(done.stdout.splitlines()[-1])["equal"], 3)
        self.assertIn("sample 0: output byte 0", done.stdout)

    def test_predicted_instructions_are_near_the_counted_ones(self):
        for board in boards.EMULATORS:
            require(self, board)
        folder = generated() / "mini"
        predicted = json.loads((folder / "report.json").read_text())["estimated_instructions"]
        counted = {board: row["instructions"] for board, row in codegen.count(folder, 1).items()}
        self.assertEqual(json.loads((folder / "report.json").read_text())["counted_instructions"], counted)
        for board, instructions in counted.items():
            self.assertBetween(predicted[board] / instructions, 0.7, 1.4)

    @parameterized.parameters(1, 2)
    def test_the_esp32_app_runs_on_a_stub_of_esp_idf(self, cores):
        """Its C alone, with a thread for a second core: neither ESP-IDF nor a board is needed, or said to be right."""
        require(self, "host")
        main, stub = ROOT / "mcu/boards/esp32/main/main.c", ROOT / "tests/data/esp_idf"
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "mini"
            codegen.generate(converted("mini"), model, samples=4, cores=cores)
            sources = [main, ROOT / "mcu/boards/check.c", stub / "stub.c", model / "model.c"]
            flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pthread", "-DCHECK_REPEATS=3"]
            flags += [f"-I{f}" for f in (stub, ROOT / "mcu/boards", model)]
            subprocess.run(["gcc", *flags, *sources, "-o", f"{folder}/app"], check=True)
            text = subprocess.run([f"{folder}/app"], capture_output=True, text=True, check=True, timeout=60).stdout
        self.assertIn("PASS: 4 of 4 samples equal", text)
        found = json.loads(text.splitlines()[-1])
        self.assertEqual((found["us_min"], found["us_median"]), (1, 1))  # the stub's clock
        self.assertEqual((found["free_heap_bytes"], found["free_stack_bytes"]), (100_000, 1234))

    def test_unknown_names_say_what_there_is(self):
        require(self, "host")
        for model, board, text in (
            ("nothing", "host", "unknown MODEL 'nothing'.*boards_loop boards_sample"),
            ("boards_sample", "z80", "unknown BOARD 'z80'; there are: host rv32 lx106 esp32isa wasm"),
        ):
            with self.subTest(model):
                done = make(model, board)
                self.assertEqual(done.returncode, 2)
                self.assertRegex(done.stderr, text)

    def test_a_missing_compiler_names_its_package(self):
        require(self, "host")
        for board, variable, text in (
            ("rv32", dict(CROSS="/nowhere/riscv-"), "apt install gcc-riscv64-unknown-elf"),
            ("wasm", dict(CC="/nowhere/clang"), "/nowhere/clang is missing: apt install clang lld"),
            ("wasm", dict(CC="true", LINKER="/nowhere/ld"), "/nowhere/ld is missing: apt install clang lld"),
            ("wasm", dict(CC="true", LINKER="true", RUNNER="/nowhere/node"), "node is missing: apt install nodejs"),
            ("wasm", dict(CC="echo", LINKER="true", RUNNER="true"), "echo does not compile for WebAssembly: apt"),
            ("esp32isa", dict(LLVM="0"), "clang-0 is missing: apt install clang-0 llvm-0 binutils-xtensa-lx106"),
        ):
            with self.subTest(text):
                done = make("boards_sample", board, **variable)
                self.assertEqual(done.returncode, 2)
                self.assertIn(text, done.stderr)


if __name__ == "__main__":
    absltest.main()

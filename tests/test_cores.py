"""C for two cores: halves of steps give TFLite Micro's bytes, one after the other and in two threads."""

import json
import os
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import flat_models
import numpy as np
import random_networks
import test_boards
import test_mac16
import test_strips
from absl.testing import absltest, parameterized
from int8_models import convolution

from atalaia import tflite
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import boards, cores, estimates, kernels, lowering, memory
from atalaia.codegen.call import Call
from atalaia.codegen.fitting import Planned
from atalaia.codegen.graph import Step
from atalaia.errors import UserError

ON_ANY, ON_ESP32 = (partial(cores.planned, target=target) for target in ("any", "esp32"))


def in_halves(files):
    """How many steps of these are done in halves, by kind."""
    found: dict[str, int] = {}
    for content in files.values():
        graph = lowering.lower(tflite.read(content))
        for call in kernels.choose(graph):
            if cores.halves(call, "any"):
                found[call.step.kind] = found.get(call.step.kind, 0) + 1
    return found


def pool(kind, height, size, step):
    net = flat_models.Net()
    out = (1, -(-height // step), -(-6 // step), 3)
    options = dict(filterHeight=size, filterWidth=size, strideH=step, strideW=step, padding=0)
    return net.file(net.op(kind, [net.given((1, height, 6, 3), 0.05, 3)], net.tensor(out, 0.05, 3), **options))


class HalvesTest(parameterized.TestCase):
    def test_where_a_convolutions_halves_begin(self):
        """Of 7 rows by steps of 2, with one of padding: outputs 0 and 1 of rows -1 to 3, outputs 2 and 3 of 3 to 7."""
        weights = np.ones((5, 3, 3, 2), np.int8)
        graph = lowering.lower(tflite.read(convolution(weights, (7, 6), 2, True)))
        (call,) = (call for call in kernels.choose(graph) if call.step.kind == "conv")
        upper, lower = cores.halves(call, "any")
        self.assertEqual((upper.read, upper.write, upper.window), (0, 0, 0))
        self.assertEqual((lower.read, lower.write), (3 * 6 * 2, 2 * 3 * 5))
        self.assertEqual(lower.window, memory.aligned(memory.scratch_bytes(call.step)))
        sizes = ("in_h", "out_h", "pad_top", "pad_left")
        self.assertEqual([upper.call.step.values[k] for k in sizes], [7, 2, 1, call.step.values["pad_left"]])
        self.assertEqual([lower.call.step.values[k] for k in sizes], [4, 2, 0, call.step.values["pad_left"]])

    def test_the_slower_core(self):
        """Of 100 instructions by themselves, and of 60 and 40 in halves, the first core runs 160 of 200."""

        def call(instructions):
            step = Step("flip", "", 0, (0,), 1, {})
            return mock_call(step, instructions)

        halves = {1: (cores.Half(call(60.0)), cores.Half(call(40.0)))}
        plan = memory.Plan({}, [None, None], 0, 0, [0, 0])._replace(halves=halves)
        found = cores.slower_core(Planned([call(100.0), call(7.0)], plan, 0.0))
        self.assertEqual(found, {"rv32": 0.8})

    def test_milliseconds_of_two_cores(self):
        """2.4e6 instructions, 60 % of them on the slower core, by 1.06 cycles; 1000 bytes for each, of 7.875 cycles."""
        layers = [dict(weight_bytes=1000, sweeps=9, rows=1, strip=None)]
        found = estimates.by_chip({"lx106": 2.4e6, "rv32": 2.4e6}, layers, "any", {"lx106": 0.6, "rv32": 0.6})
        self.assertEqual(found["esp32"]["flash_bytes_read"], [2000, 2000])
        self.assertAlmostEqual(found["esp32"]["milliseconds"][0], (2.4e6 * 0.6 * 1.06 + 2000 * 7.875) / 240e3, 1)
        self.assertIn("60.0 %, those of the slower of 2 cores", found["esp32"]["formula"])
        one = estimates.by_chip({"lx106": 2.4e6, "rv32": 2.4e6}, layers)
        self.assertEqual(found["esp32c3"], one["esp32c3"])  # it has one core
        self.assertNotIn("slower", one["esp32"]["formula"])


class Fixed(Call):
    """A call that takes so many instructions."""

    instructions = property(lambda self: {"rv32": self.work["value"]})


def mock_call(step, instructions):
    return Fixed(step, "flip", (), {}, dict(value=instructions), "flip")


class BytesTest(parameterized.TestCase):
    def test_chains_of_layers_equal_tflm(self):
        files = {f"chain {n}": test_strips.chain(n) for n in range(16)}
        self.assertContainsSubset(("conv", "depthwise", "mean_pool", "add"), in_halves(files))
        self.assertEqual(flat_models.wrong(files, 3, ON_ANY), {})

    def test_random_networks_equal_tflm(self):
        files = {f"seed {n}": random_networks.network(n)[0] for n in range(40)}
        self.assertEqual(flat_models.wrong(files, 3, ON_ANY), {})

    def test_pools_equal_tflm(self):
        """Windows that overlap, that leave rows out, and that stand over the edges."""
        files = {
            f"{kind} {size}, {step}, {height}": pool(kind, height, size, step)
            for kind in ("MAX_POOL_2D", "AVERAGE_POOL_2D")
            for size, step, height in ((3, 1, 5), (3, 2, 7), (2, 3, 8), (5, 1, 3))
        }
        self.assertEqual(in_halves(files), dict(max_pool=4, mean_pool=4))
        self.assertEqual(flat_models.wrong(files, 3, ON_ANY), {})

    def test_kernels_of_mac16_equal_tflm(self):
        self.assertEqual(flat_models.wrong(test_mac16.LAYERS, 4, ON_ESP32, test_mac16.by_mac16), {})

    def test_an_output_is_not_written_over_the_input_that_the_other_core_reads(self):
        """A convolution that one core runs in place."""
        layer = test_mac16.layer((1, 8, 8, 16), 16, 1)
        graph = lowering.lower(tflite.read(layer))
        calls = kernels.choose(graph)
        (at,) = (number for number, call in enumerate(calls) if call.step.kind == "conv")
        given, made = calls[at].step.inputs[0], calls[at].step.output
        one = memory.plan(graph).tensors
        two = cores.planned(graph, calls, "any").plan.tensors
        self.assertEqual(one[given], one[made])
        self.assertGreaterEqual(abs(two[given] - two[made]), 8 * 8 * 16)


class LimitTest(absltest.TestCase):
    def test_structs_of_halves_fit_every_limit_that_the_smallest_constants_fit(self):
        """Between kernels of the fewest bytes and the fastest, in chains of several kinds of layers."""
        for number in range(1, 8):
            content = test_strips.chain(number)

            def size(flash, content=content):
                return codegen._compile(content, "auto", "speed", flash, cores=2)[2].weight_bytes

            least, most = size(0), size(None)
            self.assertLess(least, most)
            for flash in np.linspace(least, most, 6).astype(int).tolist():
                self.assertLessEqual(size(flash), flash, f"chain {number}")


class RefusedTest(absltest.TestCase):
    def test_a_network_without_a_step_to_share_says_so(self):
        """A matrix product of one row."""
        with tempfile.TemporaryDirectory() as folder:
            found = codegen.generate(convolution(np.ones((5, 1, 1, 6), np.int8), (1, 1)), folder, samples=1, cores=2)
            self.assertNotIn("MODEL_CORES", (Path(folder) / "model.h").read_text())
        self.assertEqual(found["notes"], ["--cores=2: no step can be shared, so this C is for one core"])

    def test_three_cores(self):
        with self.assertRaisesRegex(UserError, "cores = 3: C is made for 1 or 2"):
            codegen.generate(test_strips.block(), Path("nowhere"), cores=3)


class BoardsTest(parameterized.TestCase):
    def generated(self, folder, **options):
        return codegen.generate(test_strips.block(), Path(folder) / "block", samples=3, cores=2, **options)

    @parameterized.parameters("", "1", "thread")
    def test_in_two_threads(self, sanitizer):
        """ThreadSanitizer finds no value that a core reads while the other one writes it."""
        test_boards.require(self, "host")
        with tempfile.TemporaryDirectory() as folder:
            self.generated(folder)
            self.assertIn("#define MODEL_CORES 2", (Path(folder) / "block/model.h").read_text())
            done = test_boards.make("block", "host", folder, SANITIZE=sanitizer)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout.splitlines()[-1])["equal"], 3)

    def test_a_core_that_does_not_wait_is_found(self):
        test_boards.require(self, "host")
        with tempfile.TemporaryDirectory() as folder:
            self.generated(folder)
            source = Path(folder) / "block/model.c"
            source.write_text(source.read_text().replace("    meet(meeting, core);\n", "", 1))
            with mock.patch.dict(os.environ, TSAN_OPTIONS="halt_on_error=1:symbolize=0"):
                done = test_boards.make("block", "host", folder, SANITIZE="thread")
        self.assertIn("data race", done.stderr)

    @parameterized.parameters(*boards.EMULATORS, boards.ESP32ISA)
    def test_both_halves_on_one_core(self, board):
        test_boards.require(self, board)
        with tempfile.TemporaryDirectory() as folder:
            target = "esp32" if board == boards.ESP32ISA else "any"
            found = self.generated(folder, target=target)
            counted = boards.run(Path(folder) / "block", board)
        self.assertEqual((counted["samples"], counted["equal"]), (3, 3))
        self.assertBetween(found["estimated_instructions"][board] / counted["instructions"], 0.7, 1.4)
        self.assertBetween(found["slower_core"][board], 0.5, 0.7)
        self.assertBetween(counted["weight_bytes"] - found["weight_bytes"], -100, 700)


if __name__ == "__main__":
    absltest.main()

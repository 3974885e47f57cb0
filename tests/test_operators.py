"""Each operator of a third-party file in C equals TFLite Micro in every byte, and what is not supported is told."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import random_networks
import test_boards
from absl.testing import absltest, parameterized
from flat_models import Net, longest, wrong
from operator_models import GROUPS, STILL, still

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "experiments"))

import operators  # noqa: E402

from atalaia import tflite  # noqa: E402
from atalaia.codegen import __main__ as codegen  # noqa: E402
from atalaia.codegen import emit, kernels, lowering, plain, strips  # noqa: E402
from atalaia.errors import UserError  # noqa: E402


def require_gcc(test):
    if not shutil.which("gcc"):
        test.fail("gcc is not installed") if os.environ.get("CI") else test.skipTest("gcc is not installed")


class OperatorsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        require_gcc(self)

    def test_every_kind_of_operand_and_option(self):
        files = {f"{group}: {name}": content for group in GROUPS for name, content in GROUPS[group]()}
        self.assertGreater(len(files), 300)
        self.assertEqual(wrong(files), {})

    def test_one_scale_of_weights_is_multiplied_in_float64(self):
        """Sums about halves of the output's grid: a product of scales in float32 rounds some of them the other way."""
        given, weights, out = (float(np.float32(scale)) for scale in (0.018, 4.36e-05, 0.372))
        halves = np.round((np.arange(-127, 127) + 0.5) * out / (given * weights))
        bias = (halves[:, None] + np.arange(-1, 2)).ravel()
        net = Net()
        x, y = net.given((1, 4), given), net.tensor((1, bias.size), out)
        kernel = net.tensor((bias.size, 4), weights, data=np.zeros((bias.size, 4)))
        sums = net.tensor(bias.shape, given * weights, data=bias, dtype="INT32")
        self.assertEqual(wrong({"halves": net.file(net.op("FULLY_CONNECTED", (x, kernel, sums), y))}, 1), {})

    def test_each_kernel_names_the_files_that_it_needs(self):
        """A program of many models has them all; here each has its own."""
        needed = {}
        for group in GROUPS.values():
            for name, content in group():
                for call in kernels.choose(lowering.lower(tflite.read(content))):
                    needed[call.files] = name, call
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{number}.c" for number in range(len(needed))]
            for path, (_, call) in zip(paths, needed.values(), strict=True):
                path.write_text(emit.head("one", [call]).replace('#include "model.h"', ""))
            flags = ["-fsyntax-only", "-std=c99", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function"]
            done = subprocess.run(["gcc", *flags, *paths], capture_output=True, text=True, check=False)
        self.assertEqual(done.stderr, "")
        self.assertGreater(len(needed), 15)

    def test_structs_have_the_bytes_that_are_counted(self):
        test_boards.require(self, "rv32")
        lines = [f"char {kind}_bytes[sizeof({kind}_t) == {k.struct} ? 1 : -1];" for kind, k in plain.KERNELS.items()]
        lines.append(f"char strip_bytes[sizeof(strip_t) == {strips.STRUCT_BYTES} ? 1 : -1];")
        files = dict.fromkeys(file for kernel in plain.KERNELS.values() for file in kernel.files)
        files |= dict.fromkeys(("move", "strips"))
        sources = ["#include <stdint.h>\n#include <string.h>", *((emit.KERNELS / f"{f}.c").read_text() for f in files)]
        command = [
            "riscv64-unknown-elf-gcc",
            "-march=rv32imc",
            "-mabi=ilp32",
            "--specs=picolibc.specs",
            "-fsyntax-only",
        ]
        source = "\n".join([*sources, *lines])
        done = subprocess.run([*command, "-xc", "-"], input=source, capture_output=True, text=True, check=False)
        self.assertEqual(done.stderr, "")

    def test_a_wrong_kernel_is_found(self):
        files = dict(GROUPS["borders"]())
        wrong_table = np.zeros(256, np.uint8)
        with mock.patch.object(lowering.borders, "_through_float", return_value=wrong_table):
            self.assertEqual(list(wrong(files)), ["inside"])


class StillTest(absltest.TestCase):
    def test_channels_of_one_value_lose_their_weights(self):
        """And their scales, of which the smallest would keep the layer from the fast arithmetic of MAC16."""
        for step in lowering.lower(tflite.read(still())).steps:
            if "kernel" in step.values:
                empty = ~step.values["kernel"].reshape(6, -1).any(1)
                self.assertEqual(tuple(empty.tolist()), STILL)
                self.assertGreaterEqual(step.values["shift"].min(), -22)


class RandomTest(absltest.TestCase):
    def test_random_networks(self):
        """200 of them, as two programs: whole maps, and rows wherever they can be."""
        require_gcc(self)
        made = {f"seed {seed}": random_networks.network(seed) for seed in range(200)}
        self.assertEqual({kind for _, kinds in made.values() for kind in kinds}, set(lowering.OPERATORS))
        files = [(name, content) for name, (content, _) in made.items()]
        self.assertEqual(wrong(dict(files[::2]), 3), {})
        self.assertEqual(wrong(dict(files[1::2]), 3, longest), {})

    def test_the_same_seed_gives_the_same_file(self):
        self.assertEqual(random_networks.network(7), random_networks.network(7))
        self.assertNotEqual(random_networks.network(7)[0], random_networks.network(8)[0])


class ExplainTest(absltest.TestCase):
    def file(self):
        """A RELU, and operators that are not supported before and behind it."""
        net, shape = Net(), (1, 4)
        x = net.op("FLOOR_MOD", [net.given(shape, 0.1, 3)] * 2, net.tensor(shape, 0.1, 3))
        x = net.op("RELU", [x], net.tensor(shape, 0.1, 3))
        return net.file(net.op("LOGISTIC", [x], net.tensor(shape, 1 / 256, -128)))

    def test_every_operator_and_the_rest(self):
        lines = codegen.explain(self.file()).splitlines()
        self.assertRegex(
            lines[0], "^ +0 FLOOR_MOD +1x4  NO: operator 0 is FLOOR_MOD .layer 't1'., which is not supported$"
        )
        self.assertRegex(lines[1], "^ +1 RELU +1x4  lookup$")
        self.assertEqual(lines[3:5], ["2 of 3 operators are supported", "not supported: 1 FLOOR_MOD"])
        self.assertRegex(lines[5], "^constants of what is supported: 512 bytes; arena: 4 bytes; 0 multiply")
        self.assertRegex(lines[6], "^estimated on esp32: ")

    def test_it_refuses_nothing_that_it_supports(self):
        content = dict(GROUPS["borders"]())["FLOAT32 UINT8"]
        self.assertIn("3 of 3 operators are supported\nconstants: ", codegen.explain(content))


class PageTest(absltest.TestCase):
    def test_the_page_of_operators_is_that_of_the_code(self):
        self.assertEqual(operators.PAGE.read_text(), operators.page())


class RefusalTest(parameterized.TestCase):
    def refused(self, text, kind, given, *outputs, **options):
        net = Net()
        inputs = [net.tensor(**t) if "data" in t else net.given(**t) for t in given]
        content = net.file(net.op(kind, inputs, *(net.tensor(**t) for t in outputs), **options))
        with self.assertRaisesRegex(UserError, re.escape(text)):
            lowering.lower(tflite.read(content))

    def test_what_two_read_at_the_border_cannot_be_left_to_the_caller(self):
        net = Net()
        x = net.given((1, 8), dtype="FLOAT32")
        first, second = (net.op("QUANTIZE", [x], net.tensor((1, 8), scale, 3)) for scale in (0.1, 0.2))
        content = net.file(first, second)
        self.assertLen(lowering.lower(tflite.read(content)).outputs, 2)
        with self.assertRaisesRegex(UserError, "QUANTIZE .operator 0.: tensor 't0' at the border has other readers"):
            lowering.lower(tflite.read(content), "int8")

    def test_what_is_wrong_is_named_with_its_place(self):
        x, y = dict(shape=(2, 3), scale=0.1, zero=3), dict(shape=(2, 3), scale=0.2, zero=3)
        real = dict(shape=(2, 3), dtype="FLOAT32")
        self.refused("RESHAPE (operator 0) changes the scale", "RESHAPE", [x], y)
        self.refused("QUANTIZE (operator 0) of INT32", "QUANTIZE", [dict(shape=(2, 3), dtype="INT32")], x)
        self.refused("DEQUANTIZE (operator 0) gives INT8: there are FLOAT32", "DEQUANTIZE", [x], y)
        self.refused("RELU (operator 0) has a FLOAT32 tensor", "RELU", [real], x)
        self.refused("the graph's input is INT64", "RELU", [dict(shape=(2, 3), dtype="INT64")], x)
        self.refused("RELU (operator 0) has a INT16 tensor", "RELU", [dict(shape=(2, 3), dtype="INT16")], x)
        half = dict(shape=(2, 3), scale=0.1, zero=0, dtype="INT16")
        self.refused("gives INT16: there are INT8, UINT8; --borders=int8 leaves it out", "QUANTIZE", [real], half)
        axis = dict(shape=(1,), data=[2], dtype="INT32")
        self.refused("MEAN (operator 0): its axes are not constant numbers below 2", "MEAN", [x, axis], y)
        turn = dict(shape=(2,), data=[0, 0], dtype="INT32")
        self.refused("TRANSPOSE (operator 0): the order [0, 0] does not fit (2, 3)", "TRANSPOSE", [x, turn], x)
        many = [dict(shape=(2, 2), data=[2, 1, 1, 0], dtype="INT32")]
        image, out = dict(shape=(1, 2, 3, 1), scale=0.1, zero=3), dict(shape=(4, 2, 2, 1), scale=0.1, zero=3)
        block = dict(shape=(2,), data=[2, 2], dtype="INT32")
        text = "SPACE_TO_BATCH_ND (operator 0) with padding: TFLite Micro does not define its value"
        many[0]["data"] = [1, 1, 1, 0]
        self.refused(text, "SPACE_TO_BATCH_ND", [image, block, *many], out)

    def test_a_tensor_that_nothing_writes(self):
        net = Net()
        x, lost = net.given((1, 8), 0.1), net.tensor((1, 8), 0.1)
        content = net.file(net.op("MAXIMUM", [x, lost], net.tensor((1, 8), 0.1)))
        with self.assertRaisesRegex(
            UserError, "MAXIMUM .operator 0. reads tensor 't1', which nothing before it writes"
        ):
            lowering.lower(tflite.read(content))

    @parameterized.parameters("MAX_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D")
    def test_an_output_of_other_channels(self, kind):
        """The C would write 4 x 4 x 8 values where 4 x 4 x 4 are: beyond its memory, where that is at the end."""
        x, y = dict(shape=(1, 8, 8, 8), scale=0.1, zero=3), dict(shape=(1, 4, 4, 4), scale=0.1, zero=3)
        options, given = dict(strideH=2, strideW=2), [x]
        if kind == "MAX_POOL_2D":
            options |= dict(filterHeight=2, filterWidth=2)
        else:
            shape = (8, 2, 2, 8) if kind == "CONV_2D" else (1, 2, 2, 8)
            given += [dict(shape=shape, scale=0.1, data=np.ones(shape))]
            options |= dict(dilationHFactor=1, dilationWFactor=1)
        self.refused(f"{kind} (operator 0) gives 128 values, its output has (1, 4, 4, 4)", kind, given, y, **options)

    @parameterized.parameters("MUL", "MEAN", "FULLY_CONNECTED")
    def test_a_shift_that_tflite_does_not_define(self, kind):
        """The output's scale is 2^-40 of the input's: a sum would be shifted by more than 30 bits."""
        x, y = dict(shape=(2, 3), scale=1.0), dict(shape=(2, 3), scale=2.0**-40)
        given = {
            "MUL": [x, x],
            "MEAN": [x, dict(shape=(1,), data=np.array([1]), dtype="INT32")],
            "FULLY_CONNECTED": [x, dict(shape=(3, 3), scale=1.0, data=np.ones((3, 3)))],
        }[kind]
        y |= dict(shape=(2,)) if kind == "MEAN" else {}
        self.refused(f"{kind} (operator 0): its output's scale is more than 2^30 times too small", kind, given, y)

    def test_an_operator_that_keeps_a_state_is_named_without_a_name_of_its_own(self):
        model = tflite.read(ExplainTest().file())
        operators = (model.operators[0]._replace(kind="SVDF"), *model.operators[1:])
        tensors = tuple(t._replace(name="", shape=(0,)) for t in model.tensors)
        with self.assertRaisesRegex(
            UserError, "^operator 0 is SVDF, which keeps a state from call to call, .*: leave it"
        ):
            lowering.lower(model._replace(operators=operators, tensors=tensors))


if __name__ == "__main__":
    absltest.main()

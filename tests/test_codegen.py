"""Generated C equals TFLite Micro in every byte, fits its arena, and nothing is written for what is not supported."""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from int8_models import NETWORKS, build
from test_export import converted

from atalaia import tflite
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import fixed_point, graph, kernels, memory
from atalaia.errors import UserError

# Runs every golden vector in an arena of exactly the size that is stated, so that the sanitizer sees a byte too many.
CHECK = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "model.h"
#include "golden.h"
int main(void)
{
    static const int in[] = MODEL_INPUT_BYTES, out[] = MODEL_OUTPUT_BYTES;
    int8_t *found = malloc(sizeof golden_outputs[0]);
    void *arena = malloc(MODEL_ARENA_BYTES);
    for (int s = 0; s < GOLDEN_SAMPLES; s++) {
        const int8_t *inputs[MODEL_INPUTS], *given = golden_inputs[s];
        int8_t *outputs[MODEL_OUTPUTS], *answer = found;
        for (int i = 0; i < MODEL_INPUTS; given += in[i++]) inputs[i] = given;
        for (int i = 0; i < MODEL_OUTPUTS; answer += out[i++]) outputs[i] = answer;
        memset(arena, s * 77, MODEL_ARENA_BYTES);
        model_invoke(inputs, outputs, arena);
        for (unsigned i = 0; i < sizeof golden_outputs[0]; i++)
            if (found[i] != golden_outputs[s][i]) { printf("sample %d byte %u\\n", s, i); return 1; }
    }
    free(found), free(arena);
    return 0;
}
"""


def run(folder: Path, optimise: str = "-O1") -> str:
    """Compiles a generated model with sanitizers and runs it: "" where all bytes are equal."""
    source = folder / "check.c"
    source.write_text(CHECK)
    flags = [
        optimise,
        "-std=c99",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover",
    ]
    program = folder / "check"
    subprocess.run(["gcc", *flags, f"-I{folder}", source, folder / "model.c", "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    return done.stdout + done.stderr[:2000]


class ParityTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        if not shutil.which("gcc"):
            if os.environ.get("CI"):
                self.fail("gcc is not installed")
            self.skipTest("gcc is not installed (Debian: gcc)")
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

    @parameterized.parameters(*NETWORKS)
    def test_every_operator(self, name):
        for sparse in ("auto", "always", "never"):
            with self.subTest(sparse):
                codegen.generate(build(name), self.folder / sparse, samples=20, sparse=sparse)
                self.assertEqual(run(self.folder / sparse), "")

    @parameterized.parameters("thesis", "resnet8", "mini", "splat")
    def test_our_own_models(self, name):
        report = codegen.generate(converted(name), self.folder / name, samples=20)
        self.assertEqual(run(self.folder / name, "-O2"), "")
        self.assertEqual(report, {k: v for k, v in _report(self.folder / name).items() if k != "model"})

    def test_the_same_input_gives_the_same_files(self):
        for folder in ("a/model", "b/model"):
            codegen.generate(converted("mini"), self.folder / folder, samples=2)
        names = ("model.c", "model.h", "golden.h", "report.json")
        for name in names:
            first, second = ((self.folder / f / "model" / name).read_bytes() for f in ("a", "b"))
            self.assertEqual(first, second, name)
        self.assertEqual({p.name for p in (self.folder / "a/model").iterdir()}, {*names, "model.tflite"})

    def test_mutated_files_give_an_error_or_a_right_result(self):
        """500 files with changed bytes; of those that pass, some are compiled and run."""
        random, passed = np.random.default_rng(0), 0
        originals = [converted("splat"), build("pools"), build("moves")]
        for number in range(500):
            data = bytearray(originals[number % len(originals)])
            for at in random.integers(0, len(data), random.integers(1, 4)):
                data[at] = random.integers(256)
            try:
                lowered = graph.lower(tflite.read(bytes(data)))
                kernels.choose(lowered)
                memory.plan(lowered)
                passed += 1
                if passed % 40 == 0:
                    folder = self.folder / f"{number}"
                    codegen.generate(bytes(data), folder, samples=3)
                    self.assertEqual(run(folder), "", f"mutation {number}")
            except UserError:
                continue
        self.assertBetween(passed, 40, 499)


def _report(folder):
    return json.loads((folder / "report.json").read_text())


class MemoryTest(parameterized.TestCase):
    @parameterized.parameters(*NETWORKS)
    def test_tensors_that_live_at_once_do_not_overlap(self, name):
        lowered = graph.lower(tflite.read(build(name)))
        plan = memory.plan(lowered)
        self.assertEqual(plan.arena, plan.bound)
        uses = memory._lifetimes(lowered)
        for i, (first, last) in uses.items():
            self.assertLessEqual(plan.tensors[i] + lowered.sizes[i], plan.arena)
            for j, (other_first, other_last) in uses.items():
                both = first < other_last and other_first < last  # one that ends where the other begins may be in place
                if i < j and both:
                    ends = plan.tensors[i] + lowered.sizes[i], plan.tensors[j] + lowered.sizes[j]
                    self.assertTrue(ends[0] <= plan.tensors[j] or ends[1] <= plan.tensors[i], f"{i} and {j}")

    def test_no_arena_is_below_the_fullest_step(self):
        blocks = [memory._Block(10, 0, 1, "a"), memory._Block(20, 1, 2, "b"), memory._Block(30, 2, 3, "c")]
        offsets, arena = memory._place(blocks, 50)
        self.assertEqual(arena, 50)
        self.assertEqual(offsets["c"] + offsets["b"], max(offsets["b"], offsets["c"]))  # one of them lies at 0


class PackTest(absltest.TestCase):
    def test_sparse_by_hand(self):
        kernel = np.zeros((2, 1, 300, 2), np.int8)
        kernel[0, 0, 0, 1], kernel[0, 0, 1, 0], kernel[0, 0, 299, 1] = 5, -3, 127
        pairs, counts = kernels._pack_sparse(kernel)
        # Places 1, 2 and 599: the last gap of 597 takes two fillers of 255.
        np.testing.assert_array_equal(pairs, [5 * 256 + 1, -3 * 256 + 1, 255, 255, 127 * 256 + 87])
        np.testing.assert_array_equal(counts, [5, 0])

    def test_dense_by_hand(self):
        kernel = np.arange(-6, 6, dtype=np.int8).reshape(6, 1, 1, 2)
        packed = kernels._pack_dense(kernel).astype(int) - 128
        np.testing.assert_array_equal(packed, [-6, -4, -2, 0, -5, -3, -1, 1, 2, 4, 0, 0, 3, 5, 0, 0])

    def test_zeros_are_left_out_where_that_is_fewer_instructions(self):
        lowered = graph.lower(tflite.read(converted("resnet8")))

        def files(zeros):
            random = np.random.default_rng(0)
            for step in lowered.steps:
                if step.kind == "conv":
                    shape = step.values["kernel"].shape
                    step.values["kernel"] = np.where(random.random(shape) < zeros, 0, 50).astype(np.int8)
            return {f for call in kernels.choose(lowered) for f in call.files}

        self.assertNotIn("conv_sparse", files(0.0))
        self.assertNotIn("conv_dense", files(0.9))


class FixedPointTest(absltest.TestCase):
    def test_multipliers_hold_31_bits(self):
        real = np.random.default_rng(0).uniform(1e-6, 10, 1000)
        multiplier, shift = fixed_point.quantize_multiplier(real)
        np.testing.assert_allclose(multiplier * 2.0 ** (shift.astype(int) - 31), real, rtol=2**-30)
        self.assertTrue(np.all(multiplier >= 2**30))

    def test_softmax_table_is_the_exponential(self):
        table = fixed_point.softmax_table(1.0, 0.05)
        np.testing.assert_allclose(table / 2**31, np.exp(-0.05 * np.arange(256)), atol=2e-6)


class RefusalTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory())) / "model"

    def test_an_unsupported_operator_is_named_with_its_place_and_what_there_is(self):
        model = tflite.read(converted("mini"))
        operators = list(model.operators)
        operators[2] = operators[2]._replace(kind="SVDF")
        with self.assertRaisesRegex(
            UserError, "operator 2 is SVDF, which is not supported: there are CONV_2D, .*SOFTMAX"
        ):
            graph.lower(model._replace(operators=tuple(operators)))

    def test_float_and_dynamic_tensors(self):
        model = tflite.read(converted("mini"))

        def changed(**fields):
            i = model.operators[1].outputs[0]
            tensors = list(model.tensors)
            tensors[i] = tensors[i]._replace(**fields)
            return model._replace(tensors=tuple(tensors))

        with self.assertRaisesRegex(UserError, "FLOAT32 tensor: only fully int8"):
            graph.lower(changed(dtype="FLOAT32"))
        with self.assertRaisesRegex(UserError, "dynamic shapes are not supported"):
            graph.lower(changed(shape=(1, -1, 3, 3)))
        with self.assertRaisesRegex(UserError, "no scale of its own"):
            graph.lower(changed(scale=np.zeros(0, np.float32)))

    def test_a_model_over_flash_or_ram_says_by_how_much_and_which_step(self):
        for limit, text in (
            ({"flash": 100}, "more than --flash=100: step"),
            ({"ram": 100}, "more than --ram=100: step"),
        ):
            with self.subTest(text), self.assertRaisesRegex(UserError, text):
                codegen.generate(converted("mini"), self.folder, samples=1, **limit)
        self.assertFalse(self.folder.exists())


if __name__ == "__main__":
    absltest.main()

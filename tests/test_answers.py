"""Answers of raw int8 outputs: by hand in Python, and the same integers in C on every board."""

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized
from int8_models import build
from test_boards import BOARDS, ROOT, make, require
from test_export import converted

from atalaia.codegen import __main__ as codegen
from atalaia.codegen import answers, boards, emit
from atalaia.errors import UserError

# Decodes rows of int8 outputs, and prints the answers.
DECODE = """
#include <stdint.h>
#include <stdio.h>
{code}
static const int8_t rows[][{size}] = {{{rows}}};
int main(void)
{{
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++) {{
        int32_t found[{size}];
        model_answer(rows[i], found);
        for (int j = 0; j < {numbers}; j++)
            printf("%ld ", (long)found[j]);
    }}
    return 0;
}}
"""


ONE_HEAD = ("classify", "regress")


def answer_of(task, outputs, scale, zero_point):
    return answers.of(task, [answers.Head(outputs.shape[1:], scale, zero_point)])


def in_c(answer, outputs):
    """int32 `[n, answers]` by the C that codegen writes."""
    numbers = answer.decode(outputs).shape[1]
    rows = ", ".join("{" + ", ".join(map(str, row)) + "}" for row in outputs.tolist())
    code = emit.answer_c(answer)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "decode.c"
        source.write_text(DECODE.format(code=code, rows=rows, size=outputs.shape[1], numbers=numbers))
        flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover"]
        subprocess.run(["gcc", *flags, source, "-o", f"{folder}/decode"], check=True)
        text = subprocess.run([f"{folder}/decode"], capture_output=True, text=True, check=True).stdout
    return np.array(text.split(), np.int64).reshape(len(outputs), numbers)


class DecodeTest(parameterized.TestCase):
    OUTPUTS = np.int8([[-128, 127, 127, 0], [-128] * 4, [127] * 4, [-5, -6, -4, -4], [3, -128, 2, 1]])

    def test_classes_by_hand(self):
        found = answers.classify(self.OUTPUTS, 0.1, 3)
        self.assertEqual(found.dtype, np.int32)
        np.testing.assert_array_equal(found, [[1], [0], [0], [2], [0]])  # the first of equals

    def test_values_by_hand(self):
        found = answers.regress(np.int8([[-128, 127], [-28, -27]]), 0.25, -28)
        self.assertEqual(found.dtype, np.int32)
        np.testing.assert_array_equal(found, np.array([[-25, 38.75], [0, 0.25]]) * 65536)

    @parameterized.product(task=ONE_HEAD, scale=(2**-16, 0.0123, 128.5), zero_point=(-128, 0, 127))
    def test_c_equals_python(self, task, scale, zero_point):
        """Ties, both ends, and the smallest and largest scales whose answers fit."""
        require(self, boards.HOST)
        outputs = np.concatenate([self.OUTPUTS, np.random.default_rng(0).integers(-128, 128, (50, 4)).astype(np.int8)])
        answer = answer_of(task, outputs, scale, zero_point)
        found = in_c(answer, outputs)
        np.testing.assert_array_equal(found, answer.decode(outputs))
        self.assertGreater(len(np.unique(found)), 3)

    def test_scales_that_32_bits_do_not_hold_are_refused(self):
        self.assertEqual(answers.step(128.5), 8_421_376)
        for scale in (128.52, 1e9, 2.0**-18, 0.0):
            with self.subTest(scale), self.assertRaisesRegex(UserError, "task regress: .* scale the targets"):
                answers.step(scale)


class BoardTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.models = Path(self.enter_context(tempfile.TemporaryDirectory()))

    @parameterized.product(board=BOARDS, task=ONE_HEAD)
    def test_golden_answers(self, board, task):
        require(self, board)
        codegen.generate(converted("mini"), self.models / "mini", samples=6, task=task)
        found = boards.run(self.models / "mini", board)
        self.assertEqual((found["equal"], found["answers_equal"]), (6, 6))

    @parameterized.parameters(*BOARDS)
    def test_a_wrong_answer_is_found(self, board):
        require(self, board)
        codegen.generate(converted("mini"), self.models / "mini", samples=3, task="classify")
        header = self.models / "mini/golden.h"
        before, decoded = header.read_text().split("golden_answers", 1)
        first = decoded.index("  {\n    ") + 8
        header.write_text(f"{before}golden_answers{decoded[:first]}9{decoded[decoded.index(',', first) :]}")
        done = make("mini", board, self.models)
        self.assertNotEqual(done.returncode, 0)
        found = json.loads(done.stdout.splitlines()[-1])
        self.assertEqual((found["equal"], found["answers_equal"]), (3, 2))
        self.assertIn("sample 0: answer 0 is", done.stdout)

    def test_without_a_task_there_is_none(self):
        require(self, boards.HOST)
        codegen.generate(converted("mini"), self.models / "mini", samples=1)
        self.assertNotIn("ANSWERS", (self.models / "mini/model.h").read_text())
        self.assertIsNone(boards.run(self.models / "mini", boards.HOST)["answers_equal"])

    def test_without_a_task_the_committed_files_are_the_same(self):
        folder = ROOT / "mcu/models/cifar10"
        images = np.zeros((1, 32, 32, 3), np.uint8)  # golden.h is of CIFAR-10, which is not at hand here
        codegen.generate((folder / "model.tflite").read_bytes(), self.models / "cifar10", images, 1)
        for name in ("model.c", "model.h"):
            self.assertEqual((self.models / "cifar10" / name).read_bytes(), (folder / name).read_bytes(), name)

    def test_refusals(self):
        for content, task, text in (
            (converted("mini"), "detct", "task: there is no 'detct', only classify, detect, regress"),
            (converted("mini"), "detect", "task detect needs the config of the run.*--config"),
            (build("two_in_two_out"), "classify", "the model has 2 outputs: leave --task out"),
        ):
            with self.subTest(task), self.assertRaisesRegex(UserError, text):
                codegen.generate(content, self.models / "model", samples=1, task=task)
        self.assertFalse((self.models / "model").exists())


if __name__ == "__main__":
    absltest.main()

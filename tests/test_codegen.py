"""Generated C equals TFLite Micro in every byte, fits its arena, and nothing is written for what is not supported."""

import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from flat_models import SANITIZED, Net, wrong
from int8_models import NETWORKS, build, convolution
from test_export import converted

from atalaia import tflite
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import coded, emit, fitting, fixed_point, graph, grid, kernels, lowering, memory, packing
from atalaia.codegen.call import BOARDS
from atalaia.codegen.convolutions import COLUMNS
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

# rescale.c twice: as it is here, and as where an instruction for the high half of a product is missing.
SOFTMAX = """
#include <stdint.h>
#include <stdio.h>
#include "rescale.c"
#include "softmax.c"
static uint8_t values[8191], found[8191];
int main(void)
{
    static const int32_t table[256] = {INT32_MAX}; /* exp(0) */
    static const uint32_t sizes[] = {1, 2, 3, 100, 300, 480, 600, 1000, 4096, 8191};
    for (int i = 0; i < 10; i++) {
        softmax(table, 1, sizes[i], values, found);
        for (uint32_t k = 1; k < sizes[i]; k++)
            if (found[k] != found[0])
                return 1;
        printf("%d ", found[0]);
    }
    return 0;
}
"""

RESCALE = """
#include <stdint.h>
#include <stdio.h>
#include "rescale.c"
#define __XTENSA__
#undef HIGH_PRODUCT
#define small_product small_product_too
#define divide_by_power divide_by_power_too
#define rescale rescale_too
#define rescale_small rescale_small_too
#define clamp clamp_too
#include "rescale.c"
int main(void)
{
    static const int32_t edges[] = {0, 1, -1, 1 << 20, (1 << 20) - 1, -(1 << 20), -(1 << 20) - 1, INT32_MAX, INT32_MIN};
    uint64_t state = 1;
    int small = 0, large = 0;
    for (int i = 0; i < 1 << 21; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        int32_t x = (int32_t)(state >> 32) >> i % 32, multiplier = (int32_t)(state >> 33) | 1 << 30;
        int shift = -(i / 32 % 32);
        if (i % 11 == 0)
            x = edges[i % 9];
        int is_small = x >= -(1 << 20) && x < 1 << 20;
        int32_t y = rescale(x, multiplier, shift), half = shift ? 1 << (-shift - 1) : 0;
        int wrong = y != rescale_too(x, multiplier, shift);
        if (is_small && shift) {
            wrong |= y != rescale_small(x, multiplier, -shift, half);
            wrong |= y != rescale_small_too(x, multiplier, -shift, half);
        }
        if (wrong) {
            printf("%d * %d, %d\\n", x, multiplier, shift);
            return 0;
        }
        *(is_small ? &small : &large) += 1;
    }
    printf(small > 100000 && large > 100000 ? "equal" : "too few");
    return 0;
}
"""


def sum_of(a, b, out, zeros):
    """The parameters of an ADD by its scales, as graph.py has them."""
    names = ("a", "b", "out")
    found = fixed_point.quantize_multiplier([a / (2 * max(a, b)), b / (2 * max(a, b)), 2 * max(a, b) / (2**20 * out)])
    values = {
        f"{k}_{part}": int(x)
        for part, xs in zip(("multiplier", "shift"), found, strict=True)
        for k, x in zip(names, xs, strict=True)
    }
    return values | {f"{k}_zero": int(z) for k, z in zip(names, zeros, strict=True)} | dict(out_low=0, out_high=255)


def run(folder: Path, optimise: str = "-O1") -> str:
    """Compiles a generated model with sanitizers and runs it: "" where all bytes are equal."""
    source = folder / "check.c"
    source.write_text(CHECK)
    flags = [optimise, *SANITIZED]
    program = folder / "check"
    subprocess.run(["gcc", *flags, f"-I{folder}", source, folder / "model.c", "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=120)
    return done.stdout + done.stderr[:2000]


def on_line(sums, line):
    """uint8 of sums by the five words of a channel, as conv.c works them out; products must fit 32 bits."""
    bias, limit_fine, coarse, start, turn_power = (int(x) for x in line)
    x = (sums + bias + 2**31) % 2**32 - 2**31
    clamped = np.clip(x, 0, limit_fine >> 12)
    fine = clamped * (limit_fine & 4095)
    value = start + clamped * coarse + (fine >> 12)
    assert max(fine.max(), value.max()) < 2**32
    return (value - np.where(clamped < turn_power >> 12, 1 << (turn_power & 31), 0)) >> 24


def of_tflite(sums, v):
    """uint8 of sums by TFLite's two roundings; `v`: parameters of a step of one channel."""
    high = ((sums + v["bias"][0]) * int(v["multiplier"][0]) + (1 << 30)) >> 31
    power = -int(v["shift"][0])
    mask = (1 << power) - 1
    value = (high >> power) + ((high & mask) > (mask >> 1) + (high < 0)) + v["out_zero"]
    low, high = (v[f"out_{k}"] if v[k] is None else v[k][0] for k in ("low", "high"))
    return np.clip(value, low, high)


def random_kernel(low, high, zeros, shape):
    """Codes of [low, high] of which so many are 0, both ends among them, and the second output is pruned whole."""
    random = np.random.default_rng(3)
    kernel = random.integers(low, high + 1, shape).astype(np.int8)
    kernel[random.random(shape) < zeros] = 0
    kernel[1], kernel[0, 0, 0, :2] = 0, (low, high)
    return kernel


def far_apart():
    """Gaps at, just above and far above what each form can hold, and more groups in a row than a byte counts."""
    kernel = np.zeros((6, 1, 1, 1300), np.int8)
    for output, gap in enumerate((15, 16, 17, 255, 256)):
        kernel[output, 0, 0, gap::gap] = -128 + output
    kernel[5] = 77
    kernel[2], kernel[4, 0, 0, :-1] = 0, 0
    kernel[4, 0, 0, -1] = 127
    return kernel


# Weights, size, stride, "SAME" or not, and the kernels that can hold them beside the dense one.
# Odd channels, sizes and numbers of outputs, in rows of 8 or more, 4 to 7, and fewer pixels.
KERNELS = {
    "ternary": (
        *(lambda: random_kernel(-1, 1, 0.6, (7, 3, 3, 5)), (5, 11), 1, True),
        *("conv_packed_2_4", "conv_packed_3_4", "conv_packed_4_4", "conv_nibbles_8_5", "conv_coded_3_8_5"),
        *("conv_pairs_8_5", "conv_triplets_8_5", "conv_woven_5_3_15_1"),
    ),
    "four_bits": (
        *(lambda: random_kernel(-8, 7, 0.0, (4, 2, 3, 95)), (7, 11), 2, False),
        *("conv_packed_4_4", "conv_nibbles_4_190_wide", "conv_coded_5_4_190_wide", "conv_pairs_4_190_wide"),
        *("conv_triplets_4_190", "conv_woven_190_2_285_1"),
    ),
    "eight_bits": (
        *(lambda: random_kernel(-128, 127, 0.8, (5, 3, 5, 6)), (6, 9), 1, True),
        *("conv_pairs_8_6", "conv_triplets_8_6", "conv_woven_6_3_30_0"),
    ),
    "narrow": (
        *(lambda: random_kernel(-2, 1, 0.3, (9, 3, 3, 33)), (5, 3), 1, True),
        *("conv_packed_2_1", "conv_packed_3_1", "conv_packed_4_1", "conv_nibbles_1_33", "conv_coded_4_1_33"),
        *("conv_pairs_1_33", "conv_triplets_1_33"),
    ),
    "far_apart": (far_apart, (1, 1), 1, True, "conv_pairs_1_1300_wide", "conv_triplets_1_1300_wide"),
    "far_apart_in_rows": (far_apart, (2, 5), 1, True, "conv_pairs_4_1300_wide", "conv_triplets_4_1300_wide"),
}
WHOLE = mock.patch.object(fitting, "WORTH", 1 << 30)  # no strips


def each_kernel(name):
    """A network of KERNELS once for each kernel that can hold its weights, and what chooses that kernel."""
    kernel, size, stride, same, *_ = KERNELS[name]
    content = convolution(kernel(), size, stride, same)
    calls = kernels.candidates(lowering.lower(tflite.read(content)).steps[1])
    numbers = itertools.count()

    def choose(graph):
        first, linear, last = map(kernels.candidates, graph.steps)
        return [first[0], linear[next(numbers)], last[0]]

    return {f"{call.kernel}, {number}": content for number, call in enumerate(calls)}, choose


class ParityTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        if not shutil.which("gcc"):
            if os.environ.get("CI"):
                self.fail("gcc is not installed")
            self.skipTest("gcc is not installed (Debian: gcc)")
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

    @parameterized.parameters("auto", "always", "never")
    def test_every_operator(self, sparse):
        files = {name: build(name) for name in NETWORKS}
        self.assertEqual(wrong(files, 20, choose=partial(kernels.choose, sparse=sparse)), {})

    @parameterized.parameters(*KERNELS)
    def test_every_kernel_of_a_convolution(self, name):
        """With each kernel that can hold the weights; each needs no other kernel's files."""
        files, choose = each_kernel(name)
        with WHOLE:
            self.assertEqual(wrong(files, 12, choose=choose), {})
        found = {text.partition(",")[0] for text in files}
        self.assertContainsSubset(KERNELS[name][4:], found)
        self.assertLen(found, 1 + len(KERNELS[name][4:]))
        lowered = lowering.lower(tflite.read(next(iter(files.values()))))
        (self.folder / "model.h").touch()
        for call in kernels.candidates(lowered.steps[1]):
            calls = [kernels.candidates(lowered.steps[0])[0], call, kernels.candidates(lowered.steps[2])[0]]
            (self.folder / "model.c").write_text(emit.model_c(name, lowered, calls, memory.plan(lowered)))
            subprocess.run(
                ["gcc", "-std=c99", "-fsyntax-only", "-Wall", "-Werror", self.folder / "model.c"], check=True
            )

    @parameterized.parameters("convolutions", "depthwise")
    def test_every_kernel_of_a_network(self, name):
        """The first, second, ... kernel that can run each layer, or its last."""
        choices = [kernels.candidates(step) for step in lowering.lower(tflite.read(build(name))).steps]
        most, numbers = max(map(len, choices)), itertools.count()
        self.assertGreater(most, 1)

        def choose(graph):
            number = next(numbers)
            return [found[min(number, len(found) - 1)] for found in map(kernels.candidates, graph.steps)]

        with WHOLE:
            self.assertEqual(wrong({str(number): build(name) for number in range(most)}, 12, choose=choose), {})

    @parameterized.parameters("pairs", "two_in_two_out")
    def test_tables_of_sums(self, name):
        """As in tensors of many values."""
        codegen.generate(build(name), self.folder / "few", samples=1)
        self.assertNotIn("add_tabled", self._c("few"))
        with mock.patch.object(memory, "TABLED", 1):
            codegen.generate(build(name), self.folder / "many", samples=20)
        self.assertIn("add_tabled", self._c("many"))
        self.assertEqual(run(self.folder / "many"), "")

    def _c(self, folder):
        return (self.folder / folder / "model.c").read_text().split("void model_invoke")[1]

    def _printed(self, source):
        program = self.folder / "check"
        (self.folder / "check.c").write_text(source)
        flags = ["-O1", "-std=c99", "-fsanitize=undefined", "-fno-sanitize-recover", f"-I{emit.KERNELS}"]
        subprocess.run(["gcc", *flags, self.folder / "check.c", "-o", program], check=True)
        return subprocess.run([program], capture_output=True, text=True, check=True, timeout=120).stdout

    def test_rescale_without_a_high_product_equals_the_one_with(self):
        """The Xtensa code on this machine: both sides of where 32 bits are enough, random values, halves of powers."""
        self.assertEqual(self._printed(RESCALE), "equal")

    def test_softmax_of_many_equal_values(self):
        """256 / n, rounded, and 255 at the most; from 512 on TFLite Micro's own shift is undefined."""
        self.assertEqual(self._printed(SOFTMAX), "255 128 85 3 1 1 0 0 0 0 ")

    @parameterized.parameters("thesis", "resnet8", "mini", "splat")
    def test_our_own_models(self, name):
        report = codegen.generate(converted(name), self.folder / name, samples=20)
        self.assertEqual(run(self.folder / name, "-O2"), "")
        self.assertEqual(report, _report(self.folder / name))

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
                lowered = lowering.lower(tflite.read(bytes(data)))
                fitting.plan(lowered, kernels.choose(lowered))
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
        lowered = lowering.lower(tflite.read(build(name)))
        plan = memory.plan(lowered)
        self.assertEqual(plan.arena, plan.bound)
        uses = memory.lifetimes(lowered)
        for i, (first, last) in uses.items():
            self.assertLessEqual(plan.tensors[i] + lowered.sizes[i], plan.arena)
            for j, (other_first, other_last) in uses.items():
                both = first < other_last and other_first < last  # one that ends where the other begins may be in place
                if i < j and both:
                    ends = plan.tensors[i] + lowered.sizes[i], plan.tensors[j] + lowered.sizes[j]
                    self.assertTrue(ends[0] <= plan.tensors[j] or ends[1] <= plan.tensors[i], f"{i} and {j}")

    def test_no_arena_is_below_the_fullest_step(self):
        blocks = [memory.Block(10, 0, 1, "a"), memory.Block(20, 1, 2, "b"), memory.Block(30, 2, 3, "c")]
        offsets, arena = memory.place(blocks, 50, 300)
        self.assertEqual(arena, 50)
        self.assertEqual(offsets["c"] + offsets["b"], max(offsets["b"], offsets["c"]))  # one of them lies at 0


class PackTest(parameterized.TestCase):
    def test_sparse_by_hand(self):
        kernel = np.zeros((2, 1, 300, 2), np.int8)
        kernel[0, 0, 0, 1], kernel[0, 0, 1, 0], kernel[0, 0, 299, 1] = 5, -3, 7
        stored, counts = packing.pack_sparse(kernel, "PAIRS")  # places 1, 2 and 599: two fillers of 255 before 87
        np.testing.assert_array_equal(stored.reshape(-1, 2), [(1, 133), (1, 125), (255, 128), (255, 128), (87, 135)])
        np.testing.assert_array_equal(counts, [5, 0])

    def test_sparse_of_small_gaps_by_hand(self):
        kernel = np.zeros((1, 2, 1, 40), np.int8)
        kernel[0, 0, 0, [0, 15, 31]] = 1, -2, 7  # gaps 0, 15 and 16, which is 15 and 1
        stored, counts = packing.pack_sparse(kernel, "NIBBLES")
        np.testing.assert_array_equal(stored, [9 << 4, 6 << 4 | 15, 8 << 4 | 15, 15 << 4 | 1])
        np.testing.assert_array_equal(counts, [4, 0])
        kernel[0, 1, 0, 3] = 100  # alone in its row, so a zero follows
        stored, counts = packing.pack_sparse(kernel, "TRIPLETS")
        wanted = [(15 << 4, 129, 126), (1 << 4 | 15, 128, 135), (3, 228, 128)]
        np.testing.assert_array_equal(stored.reshape(-1, 3), wanted)
        np.testing.assert_array_equal(counts, [2, 1])

    @parameterized.parameters("PAIRS", "TRIPLETS", "NIBBLES")
    def test_sparse_read_back(self, form):
        kernel = random_kernel(-8, 7, 0.93, (6, 3, 4, 25))
        stored, counts = packing.pack_sparse(kernel, form)
        groups, rows = iter(stored.reshape(-1, dict(PAIRS=2, TRIPLETS=3, NIBBLES=1)[form]).tolist()), []
        for count in counts:
            row, place = np.zeros(100, int), 0
            for group in (next(groups) for _ in range(count)):
                if form == "NIBBLES":
                    pairs = [(group[0] & 15, (group[0] >> 4) - 8)]
                elif form == "PAIRS":
                    pairs = [(group[0], group[1] - 128)]
                else:
                    pairs = [(group[0] & 15, group[1] - 128), (group[0] >> 4, group[2] - 128)]
                for gap, weight in pairs:
                    place += gap
                    row[place] += weight
            rows.append(row)
        self.assertIsNone(next(groups, None))
        np.testing.assert_array_equal(np.array(rows), kernel.reshape(18, 100))

    def test_dense_by_hand(self):
        kernel = np.arange(-6, 6, dtype=np.int8).reshape(6, 1, 1, 2)
        packed = packing.pack_dense(kernel).astype(int) - 128
        np.testing.assert_array_equal(packed, [-6, -4, -2, 0, -5, -3, -1, 1, 2, 4, 0, 0, 3, 5, 0, 0])

    def test_woven_by_hand(self):
        kernel = np.array([[1, -2], [3, 4], [-5, 6], [7, -8]], np.int8).reshape(4, 1, 1, 2)
        words = packing.pack_woven(kernel)  # s0 + 2^21 s1 and s2 + 2^10 s1, then the fourth output alone
        wanted = [1 + (3 << 21), -5 + (3 << 10), -2 + (4 << 21), 6 + (4 << 10), 7, -8 + (1 << 32)]
        self.assertEqual(words.tolist(), wanted)
        self.assertLen(packing.pack_woven(kernel[:3]), 4)
        self.assertLen(packing.pack_woven(np.concatenate([kernel, kernel[:1]])), 8)

    def test_fields_by_hand(self):
        kernel = np.array([[1, -8, 7, 0, 3], [-1, 2, 0, 0, -4], [5, 0, 0, 0, 0]], np.int8).reshape(3, 1, 1, 5)
        words = packing.pack_fields(kernel, 4)  # + 8, the first tap lowest, the second output above
        wanted = [0x88A78F09, 0x0004000B, 0x0000888D, 0x00000008]
        self.assertEqual([hex(w) for w in words.tolist()], [hex(w) for w in wanted])
        words = packing.pack_fields(np.array([[1, -2, 0], [-1, 0, 1]], np.int8).reshape(2, 1, 1, 3), 2)
        self.assertEqual(words.tolist(), [0b00_11_10_01 << 8 | 0b00_10_00_11])
        words = packing.pack_fields(np.array([[1, -4, 3], [-1, 0, 2]], np.int8).reshape(2, 1, 1, 3), 3)
        self.assertEqual(words.tobytes(), (0b110_100_011 << 12 | 0b111_000_101).to_bytes(3, "little"))

    def test_codes_by_hand(self):
        """Eight codes of 3 bits: both weights, gaps of 1 and 2, and the pairs, the most frequent first."""
        kernel = np.zeros((1, 2, 1, 12), np.int8)
        kernel[0, 0, 0, [1, 2, 5]], kernel[0, 1, 0, [0, 3]] = (1, -1, -1), (1, -1)  # gaps 1, 1, 3; 0, 3
        found = coded.pack_codes(kernel)
        self.assertEqual((found.width, found.counts.tolist()), (3, [3, 2]))
        table = [(0, -1), (0, 1), (1, 0), (2, 0), (3, -1), (1, -1), (1, 1), (0, 0)]
        self.assertEqual(found.stored[:8].tolist(), [gap | (weight & 255) << 8 for gap, weight in table])
        codes = [6, 5, 4, 1, 4]  # the first lies lowest
        self.assertEqual(found.stored[8:].tolist(), [sum(code << 3 * i for i, code in enumerate(codes))])

    @parameterized.parameters((-1, 1, 0.8), (-3, 3, 0.8), (-8, 7, 0.9), (-1, 1, 0.995), (-8, 7, 0.998))
    def test_codes_read_back(self, low, high, zeros):
        kernel = random_kernel(low, high, zeros, (6, 3, 4, 90))
        found = coded.pack_codes(kernel)
        table = found.stored[: 1 << found.width].astype(np.int64)
        stream = int.from_bytes(found.stored[1 << found.width :].tobytes(), "little")
        rows = np.zeros((18, 360), int)
        for row, count in zip(rows, found.counts, strict=True):
            place = 0
            for _ in range(count):
                entry = table[stream & (1 << found.width) - 1]
                stream >>= found.width
                place += entry & 255
                row[place] += np.int8(entry >> 8)
        self.assertEqual(stream, 0)
        np.testing.assert_array_equal(rows, kernel.reshape(18, 360))
        for width in coded.WIDTHS:
            with mock.patch.object(coded, "WIDTHS", (width,)):
                other = coded.pack_codes(kernel)
            if other is not None:
                self.assertLessEqual(found.stored.nbytes, other.stored.nbytes, width)

    def test_weights_too_unlike_for_codes(self):
        self.assertIsNone(coded.pack_codes(np.arange(-127, 128).astype(np.int8).reshape(1, 1, 1, 255)))
        self.assertIsNone(coded.pack_codes(np.zeros((1, 1, 1, 9), np.int8)))

    def test_preferences(self):
        """Speed has the fewest instructions, size the fewest bytes, and small codes take fewer of both."""
        lowered = lowering.lower(tflite.read(convolution(random_kernel(-8, 7, 0.5, (16, 3, 3, 16)), (16, 16))))
        found = {prefer: kernels.choose(lowered, prefer=prefer)[1] for prefer in ("speed", "size", "balanced")}
        calls = kernels.candidates(lowered.steps[1])
        for board in BOARDS:
            self.assertLessEqual(found["balanced"].instructions[board], calls[0].instructions[board])
        self.assertEqual(found["size"].weight_bytes, min(c.weight_bytes for c in calls))
        time = {c.kernel: sum(c.instructions[b] / calls[0].instructions[b] for b in BOARDS) for c in calls}
        self.assertEqual(time[found["speed"].kernel], min(time.values()))
        self.assertLess(found["balanced"].weight_bytes, 0.7 * calls[0].weight_bytes)

    def test_the_fastest_within_a_limit_of_flash(self):
        """Against every combination of kernels."""

        def figures(calls):
            time = sum(sum(c.instructions[b] for c in calls) / whole[b] for b in BOARDS)
            return sum(c.weight_bytes for c in calls), time

        parts = [convolution(random_kernel(-90, 90, zeros, (8, 3, 3, 8)), (8, 8)) for zeros in (0.3, 0.5, 0.9)]
        parts = [lowering.lower(tflite.read(part)) for part in parts]
        lowered = parts[0]._replace(steps=[step for part in parts for step in part.steps])
        every = [kernels.candidates(step) for step in lowered.steps]
        whole = {b: sum(calls[0].instructions[b] for calls in every) for b in BOARDS}
        found = [figures(calls) for calls in itertools.product(*every)]
        smallest, fastest = min(found)[0], min(found, key=lambda f: f[::-1])[0]
        self.assertGreater(fastest, 1.1 * smallest)
        for flash in np.linspace(smallest, fastest, 9).astype(int).tolist():
            size, time = figures(kernels.choose(lowered, prefer="speed", flash=flash))
            self.assertLessEqual(size, flash)
            self.assertAlmostEqual(time, min(t for s, t in found if s <= flash))
        self.assertEqual(figures(kernels.choose(lowered, flash=smallest - 1))[0], smallest)
        preferred = kernels.choose(lowered)
        self.assertEqual(figures(kernels.choose(lowered, flash=figures(preferred)[0])), figures(preferred))

    def test_balance_is_that_of_the_whole_network(self):
        """Against every combination: a small layer that takes most of the time spends bytes, a large one saves them."""

        def product(calls):
            time = sum(sum(c.instructions[b] for c in calls) / whole[b] for b in BOARDS)
            return time * sum(c.weight_bytes for c in calls)

        shapes = (((4, 3, 3, 4), (32, 32)), ((32, 3, 3, 32), (4, 4)), ((64, 1, 1, 64), (2, 2)))
        parts = [convolution(random_kernel(-90, 90, 0.5, shape), size) for shape, size in shapes]
        parts = [lowering.lower(tflite.read(part)) for part in parts]
        lowered = parts[0]._replace(steps=[step for part in parts for step in part.steps])
        every = [kernels.candidates(step) for step in lowered.steps]
        whole = {b: sum(calls[0].instructions[b] for calls in every) for b in BOARDS}
        each = [kernels.choose(lowered._replace(steps=[step]))[0] for step in lowered.steps]
        found = product(kernels.choose(lowered))
        self.assertAlmostEqual(found, min(map(product, itertools.product(*every))))
        self.assertLess(found, 0.95 * product(each))

    @parameterized.parameters((0.0, "conv_dense_2"), (0.8, "conv_triplets_8_16"), (0.98, "conv_pairs_8_16"))
    def test_zeros_are_left_out_where_that_pays(self, zeros, kernel):
        lowered = lowering.lower(tflite.read(convolution(random_kernel(-90, 90, zeros, (16, 3, 3, 16)), (16, 16))))
        self.assertEqual(kernels.choose(lowered)[1].kernel, kernel)

    def test_codes_of_few_bits_are_packed(self):
        for low, high, kernel in ((-8, 7, "conv_packed_4_4"), (-1, 1, "conv_packed_2_4"), (-9, 7, "conv_dense_2")):
            lowered = lowering.lower(tflite.read(convolution(random_kernel(low, high, 0.0, (16, 3, 3, 16)), (16, 16))))
            self.assertEqual(kernels.choose(lowered)[1].kernel, kernel)

    def test_columns_are_those_of_the_kernel(self):
        source = (emit.KERNELS / "conv.c").read_text()
        self.assertIn(f"COLUMNS = {COLUMNS} }}", source)

    def test_chunks_by_hand(self):
        kernel = np.full((1, 1, 1, 40), 7, np.int8)  # 18 products of 255 * 7 fit 16 bits with their sign
        self.assertEqual(packing.chunk_taps(kernel), 16)
        kernel[..., ::2] = -8  # of 40 taps, 20 negative ones sum to 255 * 160; 20 taps' 10 fit
        self.assertEqual(packing.chunk_taps(kernel), 20)
        self.assertEqual(packing.chunk_taps(np.ones((3, 2, 3, 15), np.int8)), 48)


class FixedPointTest(absltest.TestCase):
    def test_multipliers_hold_31_bits(self):
        real = np.random.default_rng(0).uniform(1e-6, 10, 1000)
        multiplier, shift = fixed_point.quantize_multiplier(real)
        np.testing.assert_allclose(multiplier * 2.0 ** (shift.astype(int) - 31), real, rtol=2**-30)
        self.assertTrue(np.all(multiplier >= 2**30))

    def test_sums_by_tables_are_those_of_tflite(self):
        """Of random grids nearly all can be had; where halves are common they are told apart, so not all."""
        random, found = np.random.default_rng(0), 0
        for _ in range(40):
            scales = random.uniform(0.01, 0.05, 3)
            pair = sum_of(*scales, zeros=random.integers(0, 256, 3))
            for subtract in (False, True):
                wanted, tables = fixed_point.sum_of_uint8(pair, subtract), fixed_point.sum_tables(pair, subtract)
                x, sign = np.arange(256), -1 if subtract else 1
                a, b = ((x - pair[f"{k}_zero"]) * s for k, s in zip("ab", scales, strict=False))
                real = (a[:, None] + sign * b) / scales[2] + pair["out_zero"]
                self.assertLess(np.abs(wanted - np.clip(real, 0, 255)).max(), 0.501)
                if tables:
                    found += 1
                    a_terms = (tables["start"] + x * tables["a_step"]) >> 32
                    total = a_terms[:, None] + ((x * tables["b_step"]) >> 32)
                    self.assertLess(np.abs(total).max(), 2**31)
                    np.testing.assert_array_equal(np.clip(total >> tables["bits"], 0, 255), wanted)
        self.assertGreater(found, 76)
        self.assertIsNone(fixed_point.sum_tables(sum_of(0.02, 0.02, 0.04, zeros=(128, 128, 128)), False))

    def test_small_sums_by_hand(self):
        """One weight of 16 and a bias: sums reach the bias and 16 * 255 above it."""
        kernel = np.zeros((2, 1, 1, 3), np.int8)
        kernel[1, 0, 0, 1] = 16
        for bias, shift, small in (((1 << 20) - 4081, -1, True), ((1 << 20) - 4080, -1, False), (0, 0, False)):
            values = dict(
                kernel=kernel, bias=np.array([0, bias], np.int32), out_c=2, shift=np.array([-3, shift], np.int8)
            )
            step = graph.Step("conv", "CONV_2D", 0, (0,), 1, values)
            self.assertEqual(grid.small_sums(step), small, bias)
            values |= dict(kernel=-kernel, bias=-values["bias"] - 1)
            self.assertEqual(grid.small_sums(step), small, -bias)

    def test_lines_give_the_bytes_of_tflite(self):
        """Every sum of channels of random scales, zero points and bounds, among them such as give one value alone."""
        random, found, turned = np.random.default_rng(2), 0, 0
        for case in range(24):
            kernel = random.integers(-127, 128, (1, 1, 1, 12)).astype(np.int8)
            (multiplier,), (shift,) = fixed_point.quantize_multiplier(
                [2.0 ** random.uniform(-24 if case % 9 == 0 else -11, -2)]
            )
            values = dict(kernel=kernel, out_c=1, bias=random.integers(-60_000, 60_000, 1), out_low=0, out_high=255)
            values |= dict(out_zero=int(random.choice([0, 0, 90, 131, 255])), multiplier=np.array([multiplier]))
            values |= dict(shift=np.array([shift]), low=None, high=None)
            if case % 3 == 0:
                values |= dict(low=np.array([20], np.uint8), high=np.array([200], np.uint8))
            step = graph.Step("conv", "CONV_2D", 0, (0,), 1, values)
            if (line := grid.lines(step)) is None:
                continue
            found, turned = found + 1, turned + int(line[0, 4] > 0)
            sums = np.arange(*(int(bound[0]) for bound in grid.sum_bounds(step.values)))
            np.testing.assert_array_equal(on_line(sums, line[0]), of_tflite(sums, values))
        self.assertGreater(found, 20)
        self.assertBetween(turned, 5, found - 5)

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
        name = re.escape(model.tensors[operators[2].outputs[0]].name)
        for kind, text in (
            ("GELU", "which is not supported: there are CONV_2D, .*SOFTMAX"),
            ("SVDF", "which keeps a state from call to call, and is not supported: leave it out, or put"),
            ("WHILE", "which calls another graph, and is not supported"),
        ):
            operators[2] = operators[2]._replace(kind=kind)
            with (
                self.subTest(kind),
                self.assertRaisesRegex(UserError, f"operator 2 is {kind} .layer .{name}.., {text}"),
            ):
                lowering.lower(model._replace(operators=tuple(operators)))

    def test_more_than_16_or_32_bits_count(self):
        net = Net()
        given = net.given((1 << 16, 2), 0.1)
        dense = net.file(
            net.op(
                "FULLY_CONNECTED",
                [given, net.tensor((3, 2), 0.02, data=np.ones((3, 2)))],
                net.tensor((1 << 16, 3), 0.1),
            )
        )
        with self.assertRaisesRegex(UserError, "FULLY_CONNECTED .operator 0.: .* too many rows"):
            lowering.lower(tflite.read(dense))
        net = Net()
        soft = net.file(net.op("SOFTMAX", [net.given((1, 8192), 0.1)], net.tensor((1, 8192), 1 / 256, -128), beta=1.0))
        with self.assertRaisesRegex(UserError, "SOFTMAX .operator 0.: a row has 8,192 values, and 8,191 at the most"):
            lowering.lower(tflite.read(soft))

    def test_float_and_dynamic_tensors(self):
        model = tflite.read(converted("mini"))

        def changed(**fields):
            i = model.operators[1].outputs[0]
            tensors = list(model.tensors)
            tensors[i] = tensors[i]._replace(**fields)
            return model._replace(tensors=tuple(tensors))

        with self.assertRaisesRegex(UserError, "FLOAT32 tensor: only fully int8"):
            lowering.lower(changed(dtype="FLOAT32"))
        with self.assertRaisesRegex(UserError, "dynamic shapes are not supported"):
            lowering.lower(changed(shape=(1, -1, 3, 3)))
        with self.assertRaisesRegex(UserError, "no scale of its own"):
            lowering.lower(changed(scale=np.zeros(0, np.float32)))

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

"""A mirrored file gives the mean of two answers in TFLite Micro and in C, whose constants are stored once."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest
from ai_edge_litert.interpreter import Interpreter
from flat_models import Net, longest, tflm, wrong

from atalaia import mirror, pack, tflite
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import emit, fitting, golden, graph, kernels, lowering
from atalaia.errors import UserError

ROOT = Path(__file__).parent.parent
IMAGE = (1, 6, 8, 3)


def classifier(last=True, image=IMAGE):
    """Two convolutions with a sum around the second, and a matrix product: its scales differ by channel."""
    random, net = np.random.default_rng(0), Net()
    shape = (*image[:3], 8)

    def conv(x, out_c, shape, out):
        scales = random.uniform(0.002, 0.01, out_c)
        kernel = net.tensor(shape, scales, 0, random.integers(-127, 128, shape))
        bias = net.tensor((out_c,), scales * net.grid(x)[0], 0, random.integers(-3000, 3000, out_c), "INT32")
        kind = "CONV_2D" if len(shape) == 4 else "FULLY_CONNECTED"
        return net.op(kind, [x, kernel, bias], out, **(dict(strideH=1, strideW=1) if len(shape) == 4 else {}))

    x = conv(net.given(image, 0.04, 3), 8, (8, 3, 3, 3), net.tensor(shape, 0.05, -20))
    y = conv(x, 8, (8, 3, 3, 8), net.tensor(shape, 0.06, 4))
    z = net.op("ADD", [x, y], net.tensor(shape, 0.07, -5))
    if image != IMAGE:  # not so many values for the matrix product
        out = net.tensor((1, shape[1] // 8, shape[2] // 8, 8), 0.07, -5)
        z = net.op("MAX_POOL_2D", [z], out, strideH=8, strideW=8, filterHeight=8, filterWidth=8)
    count = int(np.prod(net.shape(z)))
    flat = net.op("RESHAPE", [z, net.ints(1, count)], net.tensor((1, count), 0.07, -5))
    net.model.operatorCodes[-1].version = 1  # LiteRT has no second one
    return net.file(conv(flat, 5, (5, count), net.tensor((1, 5), 0.2, 7)) if last else z)


def answers(content, images):
    """int32 `[n, classes]` by TFLite Micro."""
    model = tflite.read(content)
    rows = images.reshape(len(images), -1)
    return tflm(content, model, lowering.lower(model), rows).astype(np.int32)


class MirroredTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.plain, cls.twice = classifier(), mirror.mirrored(classifier())

    def test_tflite_micro_gives_the_mean_of_both_answers(self):
        """Halves go up; the passes differ, or nothing would be shown."""
        images = np.random.default_rng(1).integers(-128, 128, (40, *IMAGE[1:])).astype(np.int8)
        first, second = answers(self.plain, images), answers(self.plain, images[:, :, ::-1].copy())
        self.assertGreater(np.mean(first != second), 0.8)
        np.testing.assert_array_equal(answers(self.twice, images), (first + second + 1) >> 1)

    def test_a_picture_and_its_mirror_image_have_one_answer(self):
        images = np.random.default_rng(2).integers(-128, 128, (8, *IMAGE[1:])).astype(np.int8)
        np.testing.assert_array_equal(answers(self.twice, images), answers(self.twice, images[:, :, ::-1].copy()))

    def test_c_gives_the_same_bytes_whole_and_row_by_row(self):
        self.assertEqual(wrong({"plain": self.plain, "twice": self.twice}), {})
        self.assertEqual(wrong({"twice": self.twice}, planned=longest), {})

    def test_constants_are_stored_once(self):
        """Both passes name the same arrays; what is added is for the mirror and the mean."""
        lowered = lowering.lower(tflite.read(self.twice))
        calls = kernels.choose(lowered)
        source = emit.body(lowered, calls, fitting.plan(lowered, calls).plan)
        self.assertLen(re.findall(r"s\d+_weights\[", source), 3)
        self.assertLen(re.findall(r"conv\(&s\d+,", source), 6)
        plain, twice = (codegen.report(content) for content in (self.plain, self.twice))
        self.assertLess(twice["weight_bytes"] - plain["weight_bytes"], 200)
        self.assertEqual(twice["macs"], 2 * plain["macs"])
        for board, most in plain["estimated_instructions"].items():
            self.assertGreater(twice["estimated_instructions"][board], 2 * most)

    def test_the_arena_does_not_grow_but_for_the_first_answer(self):
        """The caller has the image, so it is not kept; rows are turned one by one where the network runs in rows."""
        large = classifier(image=(1, 32, 32, 3))
        for content, strips in ((self.plain, 0), (large, 1)):
            plain, twice = (codegen.report(found) for found in (content, mirror.mirrored(content)))
            self.assertLen(plain["strips"], strips)
            self.assertLen(twice["strips"], 2 * strips)
            self.assertLessEqual(twice["arena_bytes"], plain["arena_bytes"] + 8)
        self.assertEqual(wrong({"large": mirror.mirrored(large)}), {})

    def test_all_constants_fit_a_limit_that_the_plain_file_fits(self):
        limit = codegen.report(self.plain, prefer="size")["weight_bytes"] + 200
        self.assertLessEqual(codegen.report(self.twice, flash=limit)["weight_bytes"], limit)

    def test_packs_and_comes_back(self):
        self.assertEqual(pack.unpack(pack.pack(self.twice)), self.twice)

    def test_twice_mirrored_still_runs(self):
        images = golden.random_inputs(tflite.read(self.plain), lowering.lower(tflite.read(self.plain)), 4)
        np.testing.assert_array_equal(answers(mirror.mirrored(self.twice), images), answers(self.twice, images))

    def test_another_runtime_reads_it_as_well(self):
        interpreter = Interpreter(model_content=self.twice)
        interpreter.allocate_tensors()
        image = np.random.default_rng(3).integers(-128, 128, IMAGE).astype(np.int8)
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
        interpreter.invoke()
        (out,) = interpreter.get_output_details()
        found = interpreter.get_tensor(out["index"]).astype(np.int32)
        self.assertLessEqual(np.abs(found - answers(self.twice, image)).max(), 1)


class RefusedTest(absltest.TestCase):
    def _refused(self, pattern, content):
        with self.assertRaisesRegex(UserError, pattern):
            mirror.mirrored(content)

    def test_an_output_that_is_a_map(self):
        self._refused(r"mirror: .*\(1, 6, 8, 3\), \(1, 6, 8, 8\); it has to have one image", classifier(last=False))

    def test_several_outputs(self):
        net = Net()
        x = net.given((1, 4, 4, 2), 0.04, 3)
        flat = net.op("RESHAPE", [x, net.ints(1, 32)], net.tensor((1, 32), 0.04, 3))
        self._refused("mirror: .*one output", net.file(flat, net.op("TANH", [flat], net.tensor((1, 32), 1 / 128, 0))))

    def test_floats_at_the_border(self):
        net = Net()
        x = net.op("QUANTIZE", [net.given((1, 4, 4, 2), dtype="FLOAT32")], net.tensor((1, 4, 4, 2), 0.04, 3))
        flat = net.op("RESHAPE", [x, net.ints(1, 32)], net.tensor((1, 32), 0.04, 3))
        self._refused("mirror: this file takes FLOAT32 and gives INT8", net.file(flat))

    def test_no_tflite_file(self):
        self._refused("first bytes are not those of TFLite", b"nothing of the kind")


class CommandTest(absltest.TestCase):
    def _run(self, *words):
        command = [sys.executable, "-m", "atalaia", "mirror", *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    def test_writes_beside_the_file_or_says_what_is_wrong(self):
        folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        (folder / "model.tflite").write_bytes(classifier())
        done = self._run(f"--workdir={folder}")
        self.assertIn(f"written: {folder}/model_mirrored.tflite", done.stdout)
        self.assertEqual((folder / "model_mirrored.tflite").read_bytes(), mirror.mirrored(classifier()))
        done = self._run(f"--workdir={folder / 'none'}")
        self.assertEqual(done.returncode, 2)
        self.assertIn("no model at", done.stderr)
        self.assertLen(done.stderr.strip().splitlines(), 1)


class SharedConstantsTest(absltest.TestCase):
    def test_only_equal_bytes_are_shared(self):
        """Two sums by the same numbers, one by another and one of another scale."""
        net, shape = Net(), (1, 2, 2, 4)
        x = net.given(shape, 0.04, 3)
        for scale, numbers in ((0.05, range(4)), (0.05, range(4)), (0.05, range(1, 5)), (0.06, range(4))):
            constant = net.tensor((4,), 0.03, 0, list(numbers))
            out = net.tensor(shape, 0.05, 1)
            x = net.op("ADD", [x, constant], out)
            net.graph.tensors[out].quantization.scale = [scale]
        content = net.file(x)
        calls = kernels.choose(lowering.lower(tflite.read(content)))
        sums = [at for at, call in enumerate(calls) if call.step.kind == "add"]
        same = graph.firsts(calls)
        self.assertLen({same[at] for at in sums}, 4)  # the first one's input has another scale than the second's
        self.assertEqual(wrong({"sums": content}), {})


if __name__ == "__main__":
    absltest.main()

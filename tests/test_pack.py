"""A .tflite file comes back from its .atl byte for byte, or not at all; zeros cost what they tell."""

import math
import subprocess
import sys
import zlib
from pathlib import Path

import flatbuffers
import numpy as np
from absl.testing import absltest, parameterized
from ai_edge_litert import schema_py_generated as schema
from test_export import MODELS, converted

from atalaia import pack, tflite
from atalaia.errors import UserError

ROOT = Path(__file__).parent.parent
by_model = parameterized.named_parameters((name, name) for name in MODELS)


def coded(weights):
    """Bytes of the range coder alone."""
    encoder = pack._Encoder()
    pack._code_weights(encoder, weights.copy())
    return encoder.finish()


def drawn(density, shape=(60, 400), seed=0, largest=127):
    random = np.random.default_rng(seed)
    values = random.integers(1, largest, shape, endpoint=True) * random.choice([-1, 1], shape)
    return np.where(random.random(shape) < density, values, 0).astype(np.int8)


class CoderTest(parameterized.TestCase):
    @parameterized.parameters(0.0, 0.001, 0.05, 0.5, 1.0)
    def test_weights_come_back(self, density):
        weights = drawn(density)
        found = np.zeros_like(weights)
        pack._code_weights(pack._Decoder(coded(weights)), found)
        np.testing.assert_array_equal(found, weights)

    @parameterized.parameters((1, 1), (1, 300), (300, 1), (2, 3))
    def test_any_shape_and_the_extreme_codes(self, *shape):
        for seed in range(20):
            weights = np.random.default_rng(seed).choice(np.int8([-128, -127, -1, 0, 1, 127]), shape)
            found = np.zeros_like(weights)
            pack._code_weights(pack._Decoder(coded(weights)), found)
            np.testing.assert_array_equal(found, weights)

    def test_carries_run_through_the_bytes_already_written(self):
        for seed in range(200):
            bits = (np.random.default_rng(seed).random(400) < 0.001 * (seed + 1)).astype(int)
            encoder, learner = pack._Encoder(), pack._Bits(1)
            for bit in bits:
                encoder.bit(learner, 0, int(bit))
            decoder, model = pack._Decoder(encoder.finish()), pack._Bits(1)
            self.assertEqual([decoder.bit(model, 0) for _ in bits], bits.tolist())

    def test_nearly_the_entropy_of_independent_weights(self):
        density, largest = 0.1, 8
        weights = drawn(density, (200, 500), largest=largest)
        entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
        entropy += density * math.log2(2 * largest)  # sign and size
        self.assertBetween(len(coded(weights)) * 8 / weights.size, 0.98 * entropy, 1.03 * entropy)

    def test_outputs_and_inputs_without_a_weight_cost_next_to_nothing(self):
        weights = drawn(0.5, (40, 40))
        larger = np.zeros((400, 400), np.int8)
        larger[5:365:9, 2:382:9][:40, :40] = weights
        self.assertLess(len(coded(larger)), len(coded(weights)) + 120)


class PackTest(parameterized.TestCase):
    @by_model
    def test_the_file_comes_back_byte_for_byte(self, name):
        data = converted(name)
        packed = pack.pack(data)
        self.assertEqual(pack.unpack(packed), data)
        self.assertLess(len(packed), len(data))

    @by_model
    def test_scales_of_biases_are_not_stored(self, name):
        kinds = [piece.kind for piece in pack._pieces(converted(name))]
        self.assertIn(pack.PRODUCT, kinds)
        linear = sum(op.kind in ("CONV_2D", "FULLY_CONNECTED") for op in tflite.read(converted(name)).operators)
        self.assertGreaterEqual(kinds.count(pack.WEIGHTS), linear)

    def test_a_bias_that_is_left_out(self):
        file = schema.ModelT.InitFromPackedBuf(bytearray(converted("mini")), 0)
        for operator in file.subgraphs[0].operators:
            if len(operator.inputs) == 3:
                operator.inputs[2] = -1
        builder = flatbuffers.Builder(0)
        builder.Finish(file.Pack(builder), b"TFL3")
        data = bytes(builder.Output())
        self.assertEqual(pack.unpack(pack.pack(data)), data)

    def test_weights_that_another_operator_computes(self):
        file = schema.ModelT.InitFromPackedBuf(bytearray(converted("mini")), 0)
        graph = file.subgraphs[0]
        graph.tensors[graph.operators[0].inputs[1]].buffer = 0
        builder = flatbuffers.Builder(0)
        builder.Finish(file.Pack(builder), b"TFL3")
        data = bytes(builder.Output())
        self.assertEqual(pack.unpack(pack.pack(data)), data)

    def test_a_scale_that_is_no_product_is_stored(self):
        data = converted("thesis")
        piece = next(p for p in pack._pieces(data) if p.kind == pack.PRODUCT)
        changed = data[: piece.start] + b"\1" + data[piece.start + 1 :]
        self.assertNotEqual(changed, data)
        self.assertNotIn(piece.start, [p.start for p in pack._pieces(changed) if p.kind == pack.PRODUCT])
        self.assertEqual(pack.unpack(pack.pack(changed)), changed)

    def test_what_is_no_tflite_file_is_refused(self):
        with self.assertRaisesRegex(UserError, "TFLite"):
            pack.pack(Path(__file__).read_bytes())

    def test_a_checksum_over_other_contents_does_not_help(self):
        packed = bytearray(pack.pack(converted("splat")))
        packed[-1] ^= 64
        packed[4:8] = zlib.crc32(packed[8:]).to_bytes(4)
        with self.assertRaisesRegex(UserError, "not what was packed|not written by"):
            pack.unpack(bytes(packed))

    def test_every_truncated_or_altered_file_is_refused(self):
        packed = pack.pack(converted("splat"))
        random = np.random.default_rng(0)
        for _ in range(150):
            at = int(random.integers(len(packed)))
            altered = bytearray(packed)
            altered[at] ^= 1 << int(random.integers(8))
            for broken in (packed[:at], bytes(altered)):
                with self.assertRaisesRegex(UserError, "truncated or altered|no .atl file"):
                    pack.unpack(broken)


class CommandTest(absltest.TestCase):
    def unpack(self, content, *arguments):
        source = Path(self.create_tempdir().full_path) / "model.atl"
        source.write_bytes(content)
        command = [sys.executable, "-m", "atalaia.pack", f"--unpack={source}", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    def test_restores_a_file(self):
        out = Path(self.create_tempdir().full_path) / "restored.tflite"
        done = self.unpack(pack.pack(converted("mini")), f"--out={out}")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual(out.read_bytes(), converted("mini"))

    def test_refuses_in_one_line_and_writes_nothing(self):
        out = Path(self.create_tempdir().full_path) / "restored.tflite"
        done = self.unpack(pack.pack(converted("mini"))[:-1], f"--out={out}")
        self.assertRegex(done.stderr, "^error: .*model.atl: .*truncated or altered.*\n$")
        self.assertEqual((done.returncode, out.exists()), (2, False))
        self.assertRegex(self.unpack(b"").stderr, "^error: give --out=FILE.tflite.*\n$")


if __name__ == "__main__":
    absltest.main()

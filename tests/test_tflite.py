"""The reader of .tflite files against TFLite's own, and what it says of files that are none."""

import tempfile
from pathlib import Path

import flatbuffers
import numpy as np
import test_export
from absl.testing import absltest, parameterized
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from atalaia import tflite
from atalaia.codegen import lowering
from atalaia.errors import UserError


class ReadTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.data = test_export.converted("mini")
        cls.graph = tflite.read(cls.data)
        cls.interpreter = Interpreter(model_content=cls.data)
        cls.interpreter.allocate_tensors()

    def _details(self):
        """What TFLite knows of the file's tensors; it may add its own behind them."""
        details = {d["index"]: d for d in self.interpreter.get_tensor_details()}
        return [(tensor, details[i]) for i, tensor in enumerate(self.graph.tensors)]

    def test_names_shapes_and_types(self):
        for tensor, detail in self._details():
            self.assertEqual(tensor.name, detail["name"])
            self.assertEqual(tensor.shape, tuple(detail["shape"]))
            self.assertEqual(np.dtype(tensor.dtype.lower()), detail["dtype"])

    def test_scales_and_zero_points(self):
        for tensor, detail in self._details():
            theirs = detail["quantization_parameters"]
            np.testing.assert_array_equal(tensor.scale, theirs["scales"])
            np.testing.assert_array_equal(tensor.zero_point, theirs["zero_points"])
            self.assertEqual(tensor.axis, theirs["quantized_dimension"])

    def test_constants(self):
        constants = [(i, t) for i, t in enumerate(self.graph.tensors) if t.data is not None]
        self.assertGreater(len(constants), 8)
        for i, tensor in constants:
            np.testing.assert_array_equal(tensor.data, self.interpreter.get_tensor(i))

    def test_inputs_and_outputs(self):
        self.assertEqual(self.graph.inputs, tuple(d["index"] for d in self.interpreter.get_input_details()))
        self.assertEqual(self.graph.outputs, tuple(d["index"] for d in self.interpreter.get_output_details()))

    def test_weights_of_four_bits_are_named(self):
        model = schema.ModelT.InitFromPackedBuf(self.data, 0)
        tensor = max(model.subgraphs[0].tensors, key=lambda t: np.size(model.buffers[t.buffer].data))
        tensor.type = schema.TensorType.INT4
        buffer = model.buffers[tensor.buffer]
        buffer.data = np.asarray(buffer.data, np.uint8)[::2]
        builder = flatbuffers.Builder()
        builder.Finish(model.Pack(builder), b"TFL3")
        with self.assertRaisesRegex(UserError, "INT4"):
            lowering.lower(tflite.read(bytes(builder.Output())))

    def test_operators_in_order(self):
        theirs = [
            (op["op_name"], tuple(op["inputs"]), tuple(op["outputs"])) for op in self.interpreter._get_ops_details()
        ]
        ours = [(op.kind, op.inputs, op.outputs) for op in self.graph.operators]
        self.assertEqual(ours, theirs[: len(ours)])

    def test_options(self):
        depthwise = [op for op in self.graph.operators if op.kind == "DEPTHWISE_CONV_2D"]
        self.assertEqual([op.options.strideW for op in depthwise], [1, 2])
        self.assertEqual({op.options.padding for op in depthwise}, {schema.Padding.SAME})


class DamagedTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.data = test_export.converted("splat")

    def setUp(self):
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

    def _fails(self, data, pattern="", whole="{path} is damaged or no .tflite file.*{pattern}.*export it again"):
        path = self.folder / "model.tflite"
        path.write_bytes(data)
        with self.assertRaisesRegex(UserError, whole.format(path=path, pattern=pattern)):
            tflite.load(path)

    def test_whole_file_is_read(self):
        path = self.folder / "model.tflite"
        path.write_bytes(self.data)
        self.assertEqual(tflite.load(path), self.data)

    def test_truncated_anywhere(self):
        for part in np.linspace(0, 1, 40, endpoint=False):
            self._fails(self.data[: int(part * len(self.data))])

    def test_last_bytes_missing(self):
        for count in (1, 4, 16, 64):
            self._fails(self.data[:-count])

    @parameterized.named_parameters(
        ("empty", b""),
        ("short", b"TFL3"),
        ("only_the_magic", b"\x1c\0\0\0TFL3"),
        ("zeros", bytes(5000)),
        ("a_picture", b"\x89PNG\r\n\x1a\n" + bytes(100)),
        ("random", np.random.default_rng(0).bytes(5000)),
        ("random_behind_the_magic", b"\x20\0\0\0TFL3" + np.random.default_rng(0).bytes(5000)),
    )
    def test_other_bytes(self, data):
        self._fails(data)

    def test_altered_magic(self):
        self._fails(self.data[:4] + b"TFL2" + self.data[8:], "first bytes")

    def test_overwritten_blocks_never_show_as_another_exception(self):
        random = np.random.default_rng(0)
        refused = 0
        for start in range(0, len(self.data), len(self.data) // 150):
            try:
                tflite.read(self.data[:start] + random.bytes(16) + self.data[start + 16 :])
            except UserError:
                refused += 1
        self.assertGreater(refused, 20)  # the others only changed a weight or a name

    def test_two_graphs(self):
        file = schema.ModelT.InitFromPackedBuf(bytearray(self.data), 0)
        file.subgraphs.append(file.subgraphs[0])
        builder = flatbuffers.Builder(0)
        builder.Finish(file.Pack(builder), b"TFL3")
        self._fails(bytes(builder.Output()), whole="^{path}: it has 2 graphs, and only files with one are supported$")

    def test_operator_of_a_tensor_that_is_not_there(self):
        file = schema.ModelT.InitFromPackedBuf(bytearray(self.data), 0)
        file.subgraphs[0].operators[0].inputs = [99, 1, 2]
        builder = flatbuffers.Builder(0)
        builder.Finish(file.Pack(builder), b"TFL3")
        self._fails(bytes(builder.Output()), "tensors that are not there")

    def test_missing(self):
        with self.assertRaisesRegex(UserError, f"no model at {self.folder}/none.tflite: run atalaia.export"):
            tflite.load(self.folder / "none.tflite")

    def test_a_folder(self):
        with self.assertRaisesRegex(UserError, f"no model at {self.folder}"):
            tflite.load(self.folder)


if __name__ == "__main__":
    absltest.main()

"""Each engine gives what its interpreter gives in this process, and images reach a model on its own input grid."""

import contextlib
import io
import subprocess
import sys
from unittest import mock

import flatbuffers
import numpy as np
import test_export
from absl.testing import absltest, parameterized
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_micro.python.tflite_micro import runtime

from atalaia import engines, tflite
from atalaia.errors import UserError


class QuantizeInputTest(parameterized.TestCase):
    def _quantize(self, pixels, dtype, scale=(), zero_point=()):
        """Pixels as the input of a model of one such tensor."""
        images = np.uint8(pixels).reshape(1, 1, -1, 1)
        given = tflite.Tensor("input", images.shape, dtype, np.float32(scale), np.int64(zero_point), 0, None)
        with mock.patch.object(tflite, "read", return_value=tflite.Model((given,), (), (0,), ())):
            found = engines.quantize_input(b"", images)
        self.assertEqual((found.shape, found.dtype), (images.shape, dtype.lower()))
        return found.ravel()

    def test_our_models_get_the_pixel_less_128(self):
        found = self._quantize(range(256), "INT8", [1 / 255], [-128])
        np.testing.assert_array_equal(found, np.arange(256) - 128)

    @parameterized.parameters(
        ("UINT8", 1 / 255, 0, [0, 51, 255]),
        ("INT8", 1 / 128, 0, [0, 26, 127]),  # 25.6 and 128, which is cut
        ("INT8", 3 / 255, -128, [-128, -111, -43]),
        ("UINT8", 1 / 128, 100, [100, 126, 228]),
        ("INT8", 1 / 255, 0, [0, 51, 127]),
    )
    def test_another_grid(self, dtype, scale, zero_point, expected):
        np.testing.assert_array_equal(self._quantize([0, 51, 255], dtype, [scale], [zero_point]), expected)

    def test_float_models_get_zero_to_one(self):
        np.testing.assert_array_equal(self._quantize([0, 51, 255], "FLOAT32"), np.float32([0, 0.2, 1]))

    @parameterized.parameters((16, 16, 1), (15, 16, 3), (32, 32, 3))
    def test_other_images_are_refused(self, *shape):
        found = "x".join(map(str, shape))
        with self.assertRaisesRegex(UserError, f"takes images of 16x16x3, the data set's are {found}: set data.size"):
            engines.quantize_input(test_export.converted("resnet8"), np.zeros((2, *shape), np.uint8))


class RunTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.data = test_export.converted("mini")
        cls.images = test_export.pixels("mini", 2 * engines.REPORT_EVERY + 7)  # the processes' shares differ

    def setUp(self):
        self.stderr = self.enter_context(contextlib.redirect_stderr(io.StringIO()))

    def _expected_tflite(self, resolver):
        interpreter = Interpreter(model_content=self.data, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
        for image in self.images:
            interpreter.set_tensor(interpreter.get_input_details()[0]["index"], self._int8(image))
            interpreter.invoke()
            yield interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0]

    def _expected_tflm(self):
        interpreter = runtime.Interpreter.from_bytes(self.data)
        for image in self.images:
            interpreter.set_input(self._int8(image), 0)
            interpreter.invoke()
            yield interpreter.get_output(0)[0].copy()

    def _int8(self, image):
        return (image[None].astype(np.int16) - 128).astype(np.int8)

    @parameterized.parameters(1, 2)
    def test_tflm(self, processes):
        found = engines.run("tflm", self.data, self.images, processes)[0]
        np.testing.assert_array_equal(found, list(self._expected_tflm()))
        self.assertEqual(found.dtype, np.int8)

    @parameterized.parameters(1, 2)
    def test_tflites_reference_kernels(self, processes):
        found = engines.run("tflite", self.data, self.images, processes)[0]
        np.testing.assert_array_equal(found, list(self._expected_tflite(OpResolverType.BUILTIN_REF)))

    def test_xnnpack(self):
        found = engines.run("xnnpack", self.data, self.images[:3])[0]
        np.testing.assert_array_equal(found, list(self._expected_tflite(OpResolverType.AUTO))[:3])

    def test_the_images_matter(self):
        outputs = list(self._expected_tflm())
        self.assertGreater(len(np.unique(outputs, axis=0)), len(outputs) // 2)

    def test_all_images_are_counted(self):
        engines.run("tflm", self.data, self.images, 2)
        self.assertIn(f"evaluate tflm: {len(self.images)}/{len(self.images)}", self.stderr.getvalue())

    @parameterized.parameters("tflite", "tflm")
    def test_an_operator_that_it_does_not_have(self, engine):
        file = schema.ModelT.InitFromPackedBuf(bytearray(self.data), 0)
        for code in file.operatorCodes:
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.LSH_PROJECTION
        builder = flatbuffers.Builder(0)
        builder.Finish(file.Pack(builder), b"TFL3")
        with self.assertRaisesRegex(UserError, f"^{engine} cannot run this model: .") as caught:
            engines.run(engine, bytes(builder.Output()), self.images[:2])
        self.assertNotIn("\n", str(caught.exception))

    def test_a_crash(self):
        def crash(engine, folder, number, *_):
            (folder / f"{number}.err").touch()
            code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
            return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

        with mock.patch.object(engines, "_start", crash), self.assertRaisesRegex(UserError, "it crashed"):
            engines.run("tflm", self.data, self.images, 2)


class ImportTest(absltest.TestCase):
    def test_workers_import_neither_jax_nor_tensorflow(self):
        code = (
            "import sys; from atalaia import engines; import ai_edge_litert.interpreter;"
            "import tflite_micro.python.tflite_micro.runtime; print({'jax', 'tensorflow'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        self.assertEqual(done.stdout.strip(), "set()")


if __name__ == "__main__":
    absltest.main()

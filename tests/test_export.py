"""The file runs as trained: TFLite Micro's bytes equal an integer network written here, and check() sees changes."""

import copy
import functools
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import flatbuffers
import flax.linen as nn
import jax
import numpy as np
from absl.testing import absltest, parameterized
from ai_edge_litert import schema_py_generated as schema
from test_quantize import Mini, apply_folded, drawn, images

from atalaia import engines, export, finished, folding, layers, quantize, tflite
from atalaia.errors import UserError
from atalaia.models import resnet, thesis
from atalaia.quantize import INPUT

PRUNED = 3  # a channel of Mini's "point" without weights


class Splat(nn.Module):
    """Two matrix products; `network` gives the last scales that differ and biases that are one real number."""

    classes: int = 4

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Flatten(name="flatten")(x)
        return layers.Dense(self.classes, name="logits")(layers.Dense(16, relu=True, name="hidden")(x))


MODELS = {
    "thesis": (thesis.Thesis(outputs=5, widths=(8, 8, 16), hidden=32), (16, 16, 3)),
    "resnet8": (resnet.ResNet8(outputs=4, widths=(4, 8, 12)), (16, 16, 3)),
    "mini": (Mini(), (11, 9, 1)),
    "splat": (Splat(), (5, 5, 1)),
}
by_model = parameterized.named_parameters((name, name) for name in MODELS)


@functools.cache
def network(name):
    """(model, its folded float network, its integers) with BatchNorms of both signs."""
    model, shape = MODELS[name]
    variables = drawn(model, shape)
    if name == "mini":
        variables["params"]["point"]["kernel"][..., PRUNED] = 0
    folded = folding.fold(model, variables)
    grids = quantize.output_grids(quantize.calibrate(model, folded, [images(shape, 64)]))
    integers = quantize.quantize_network(model, folded, grids)
    if name == "splat":
        powers = 2 ** np.arange(4)  # bias * scale is one number for all
        last = integers["logits"]
        scale = last.weight_scale.max() / powers.astype(np.float32)
        integers["logits"] = last._replace(weight_scale=scale, bias=(100 * powers).astype(np.int32))
    return model, folded, integers


@functools.cache
def converted(name):
    """The .tflite file of `network(name)`."""
    model, _, integers = network(name)
    return export.convert(model, integers, MODELS[name][1])


def pixels(name, n=24):
    """Random uint8 images, a black and a white one."""
    found = np.random.default_rng(1).integers(0, 256, (n, *MODELS[name][1]), np.uint8)
    found[0], found[1] = 0, 255
    return found


@functools.cache
def tflm(name):
    """Outputs of TFLite Micro for `pixels(name)`."""
    invoke = engines.ENGINES["tflm"](converted(name))
    return np.concatenate([invoke(image[None])[0] for image in engines.quantize_input(converted(name), pixels(name))])


# The integer network as TFLite Micro's reference kernels compute it, written from their definition (Jacob et al., 2018,
# and gemmlowp's fixed point), in int64, where nothing overflows.


def multiplier(real):
    """real = mantissa * 2^(shift - 31) with a mantissa of 31 bits."""
    fraction, shift = np.frexp(np.float64(real))
    mantissa = np.floor(fraction * 2**31 + 0.5).astype(np.int64)  # fraction >= 0: halves up
    full = mantissa == 2**31
    return np.where(full, mantissa // 2, mantissa), np.where(full, shift + 1, shift)


def rescale(x, real):
    """x * real in fixed point, rounded twice: to 31 bits above the point, then to integers."""
    mantissa, shift = multiplier(real)
    product = (x << np.maximum(shift, 0)) * mantissa
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.where(nudged >= 0, nudged >> 31, -(-nudged >> 31))  # C++ divides towards zero
    right = np.maximum(-shift, 0)
    mask = (1 << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def int_linear(layer, weights, x, given):
    x = x - given.zero_point
    kernel = weights.kernel.astype(np.int64)
    if isinstance(layer, layers.Dense):
        total = x @ kernel
    else:
        size, step = layer.kernel, layer.strides
        out = [-(-n // step) for n in x.shape[1:3]]
        pads = [max((o - 1) * step + size - n, 0) for o, n in zip(out, x.shape[1:3], strict=True)]
        x = np.pad(x, [(0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)])
        total = 0
        for i in range(size):
            for j in range(size):
                patch = x[:, i : i + step * (out[0] - 1) + 1 : step, j : j + step * (out[1] - 1) + 1 : step]
                if layer.depthwise:
                    total = total + np.repeat(patch, layer.features // patch.shape[-1], -1) * kernel[i, j, 0]
                else:
                    total = total + patch @ kernel[i, j]
    ratio = np.float64(given.scale) * weights.weight_scale.astype(np.float64) / np.float64(weights.output.scale)
    y = rescale(total + weights.bias, ratio) + weights.output.zero_point
    # A ReLU's range begins at zero, so its bound is -128 itself.
    y = np.clip(y, -128, 127)
    return y if weights.lower is None else np.clip(y, weights.lower, weights.upper)


def int_add(x, a, y, b, output):
    """Both at 2^20 times their own grid, on the grid of twice the larger scale."""
    twice = 2 * np.float64(max(a.scale, b.scale))
    total = sum(rescale((v - q.zero_point) << 20, np.float64(q.scale) / twice) for v, q in ((x, a), (y, b)))
    return np.clip(rescale(total, twice / (2**20 * np.float64(output.scale))) + output.zero_point, -128, 127)


def int_mul(x, a, y, b, output):
    ratio = np.float64(a.scale) * np.float64(b.scale) / np.float64(output.scale)
    total = rescale((x - a.zero_point) * (y - b.zero_point), ratio)
    return np.clip(total + output.zero_point, -128, 127)


def int_mean(x):
    total, count = x.sum((1, 2), keepdims=True), x.shape[1] * x.shape[2]
    return np.where(total > 0, (total + count // 2) // count, -((count // 2 - total) // count))


def simulate(name):
    """Outputs of the integer network for `pixels(name)`."""
    model, _, integers = network(name)

    def rule(path, layer, *values):  # (integers, their QParams) flow through the network's code here
        x, q = values[0]
        match layer:
            case layers.Conv() | layers.Dense():
                return int_linear(layer, integers[path], x, q), integers[path].output
            case layers.Add():
                return int_add(*values[0], *values[1], integers[path]), integers[path]
            case layers.Mul():
                return int_mul(*values[0], *values[1], integers[path]), integers[path]
            case layers.MaxPool():
                h, w = (n // layer.window for n in x.shape[1:3])
                x = x[:, : h * layer.window, : w * layer.window]
                return x.reshape(len(x), h, layer.window, w, layer.window, -1).max((2, 4)), q
            case layers.GlobalAvgPool():
                return int_mean(x), q
            case layers.Flatten():
                return x.reshape(len(x), -1), q
        return x, q

    return layers.interpret(model, rule, (pixels(name).astype(np.int64) - 128, INPUT))[0]


class RescaleTest(parameterized.TestCase):
    """The yardstick itself: exact where rounding is none, and within a step of float64."""

    def test_both_roundings(self):
        x = np.array([0, 1, 2, 3, 4, -1, -2, -3, -4])
        np.testing.assert_array_equal(rescale(x, 4.0), 4 * x)
        np.testing.assert_array_equal(rescale(x, 0.5), [0, 1, 1, 2, 2, 0, -1, -1, -2])  # the first: ties go up
        # A quarter is a half, rounded, and a half of that, ties away from zero: 0.25 becomes 0.5 becomes 1.
        np.testing.assert_array_equal(rescale(x, 0.25), [0, 1, 1, 1, 1, 0, -1, -1, -1])

    def test_near_float64(self):
        random = np.random.default_rng(0)
        x, real = random.integers(-(2**24), 2**24, 10_000), random.uniform(1e-6, 1e-4, 10_000)
        self.assertLess(np.abs(rescale(x, real) - x * real).max(), 0.51)

    def test_mean(self):
        x = np.array([[1, 2], [-1, -2], [3, -4]]).reshape(3, 1, 2, 1)
        np.testing.assert_array_equal(int_mean(x).ravel(), [2, -2, -1])  # 1.5, -1.5, -0.5


class ConvertTest(parameterized.TestCase):
    @by_model
    def test_only_integers(self, name):
        graph = tflite.read(converted(name))
        self.assertEqual({t.dtype for t in graph.tensors}, {"INT8", "INT32"})

    @by_model
    def test_input_is_the_pixel(self, name):
        graph = tflite.read(converted(name))
        given = graph.tensors[graph.inputs[0]]
        self.assertEqual((given.scale.tolist(), given.zero_point.tolist()), ([np.float32(1 / 255)], [-128]))
        self.assertEqual(given.shape, (1, *MODELS[name][1]))

    @by_model
    def test_weights_have_a_scale_each_channel(self, name):
        graph = tflite.read(converted(name))
        weights = [
            graph.tensors[op.inputs[1]]
            for op in graph.operators
            if op.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
        ]
        self.assertLen(weights, sum(isinstance(q, quantize.QLayer) for q in network(name)[2].values()))
        for tensor in weights:
            self.assertLen(tensor.scale, tensor.shape[tensor.axis])
            self.assertFalse(tensor.zero_point.any())

    @by_model
    def test_tflm_equals_the_integer_network(self, name):
        found = tflm(name)
        self.assertGreater(len(np.unique(found)), 20)  # the images matter
        np.testing.assert_array_equal(found, simulate(name))

    @parameterized.parameters("thesis", "resnet8", "mini")
    def test_near_the_float_network(self, name):
        model, folded, integers = network(name)
        expected = np.asarray(jax.jit(lambda x: apply_folded(model, folded, x))(pixels(name) / np.float32(255)))
        scale, zero_point = integers["logits"].output
        found = (tflm(name).astype(np.float32) - zero_point) * scale
        self.assertLess(np.sqrt(np.mean((found - expected) ** 2)), 0.05 * expected.std())

    def test_bounds_of_both_signs_are_in_the_file(self):
        for name in ("thesis", "mini"):
            kinds = [op.kind for op in tflite.read(converted(name)).operators]
            self.assertContainsSubset(["MAXIMUM", "MINIMUM"], kinds)

    def test_one_input_channel_becomes_depthwise(self):
        self.assertEqual(tflite.read(converted("mini")).operators[0].kind, "DEPTHWISE_CONV_2D")

    def test_max_pool_stays_one_operator(self):
        kinds = [op.kind for op in tflite.read(converted("thesis")).operators]
        self.assertEqual(kinds.count("MAX_POOL_2D"), 3)

    def test_padding_is_the_convolutions_own(self):
        kinds = [op.kind for op in tflite.read(converted("mini")).operators]  # strides, and sides that are odd
        self.assertNotIn("PAD", kinds)

    def test_splat_bias_keeps_each_channels_integers(self):
        graph = tflite.read(converted("splat"))
        np.testing.assert_array_equal(graph.tensors[graph.operators[-1].inputs[2]].data, [100, 200, 400, 800])

    def test_pruned_channel_is_zero_with_its_bias(self):
        layer = network("mini")[2]["point"]
        self.assertFalse(layer.kernel[..., PRUNED].any())
        graph = tflite.read(converted("mini"))
        weights = [graph.tensors[i].data for op in graph.operators if op.kind == "CONV_2D" for i in op.inputs[1:]]
        self.assertFalse(weights[0][PRUNED].any())
        self.assertNotEqual(weights[1][PRUNED], 0)

    def test_pruned_channels_with_any_bias(self):
        # Their integers reach MAX_BIAS; the converter must still get each to the last unit.
        model, shape = Splat(classes=64), (5, 5, 1)
        variables = drawn(model, shape)
        variables["params"]["logits"]["kernel"][:] = 0
        folded = folding.fold(model, variables)
        ranges = quantize.calibrate(model, folded, [images(shape)])
        export.convert(model, quantize.quantize_network(model, folded, quantize.output_grids(ranges)), shape)


class CheckNetworkTest(parameterized.TestCase):
    """A network that differs from its file in one number is refused, and the layer is named."""

    def _fails(self, name, path, changed, pattern=""):
        model, _, integers = network(name)
        with self.assertRaisesRegex(UserError, f"{pattern}.*layer '{path}'"):
            export.check(converted(name), model, integers | {path: changed})

    @by_model
    def test_accepts_its_own(self, name):
        model, _, integers = network(name)
        export.check(converted(name), model, integers)

    @parameterized.product(
        layer=[("thesis", "conv1a"), ("mini", "depthwise"), ("resnet8", "block2s"), ("thesis", "logits")],
        field=["kernel", "bias", "weight_scale"],
    )
    def test_last_number_of_a_layer(self, layer, field):
        name, path = layer
        ours = network(name)[2][path]
        value = getattr(ours, field).copy()
        last = value.reshape(-1)[-1:]  # a view
        last[...] = np.nextafter(last, np.float32(9)) if field == "weight_scale" else last ^ 1
        self._fails(name, path, ours._replace(**{field: value}))

    @parameterized.parameters("lower", "upper")
    def test_a_bound(self, field):
        ours = network("thesis")[2]["conv0b"]
        value = getattr(ours, field).copy()
        value[0] ^= 1
        self._fails("thesis", "conv0b", ours._replace(**{field: value}), "bound")

    @parameterized.parameters(("thesis", "conv0a"), ("mini", "logits"), ("resnet8", "block1"))
    def test_an_outputs_scale_and_zero_point(self, name, path):
        ours = network(name)[2][path]
        q = ours if path == "block1" else ours.output
        for changed in (
            q._replace(scale=np.nextafter(q.scale, np.float32(9))),
            q._replace(zero_point=q.zero_point ^ 1),
        ):
            changed = changed if path == "block1" else ours._replace(output=changed)
            self._fails(name, path, changed, "scale and zero point")


class CheckFileTest(parameterized.TestCase):
    """A file in which one thing was altered is refused."""

    def setUp(self):
        self.name = "mini"
        self.file = schema.ModelT.InitFromPackedBuf(bytearray(converted("mini")), 0)
        self.graph = self.file.subgraphs[0]
        self.kinds = tflite.names(schema.BuiltinOperator)

    def _kind(self, op):
        return self.kinds[self.file.operatorCodes[op.opcodeIndex].builtinCode]

    def _op(self, kind, number=0):
        return [op for op in self.graph.operators if self._kind(op) == kind][number]

    def _tensor(self, op, number):
        return self.graph.tensors[op.inputs[number]]

    def _output(self, op):
        return self.graph.tensors[op.outputs[0]]

    def _check(self):
        builder = flatbuffers.Builder(0)
        builder.Finish(self.file.Pack(builder), b"TFL3")
        model, _, integers = network("mini")
        export.check(bytes(builder.Output()), model, integers)

    def _fails(self, pattern):
        with self.assertRaisesRegex(UserError, pattern):
            self._check()

    def test_packed_again_it_is_accepted(self):
        self._check()

    def test_weight(self):
        buffer = self.file.buffers[self._tensor(self._op("CONV_2D"), 1).buffer]
        buffer.data = np.array(buffer.data)
        buffer.data[-1] ^= 1
        self._fails("no CONV_2D with the inputs and weights of layer 'point'")

    def test_bias(self):
        buffer = self.file.buffers[self._tensor(self._op("FULLY_CONNECTED"), 2).buffer]
        buffer.data = np.array(buffer.data)
        buffer.data[0] ^= 1
        self._fails("the bias of layer 'logits'")

    @parameterized.parameters((1, "the weights' scale"), (2, "the bias's scale"))
    def test_constants_scale(self, number, what):
        q = self._tensor(self._op("DEPTHWISE_CONV_2D", 1), number).quantization
        q.scale = np.nextafter(q.scale, np.float32(9))
        self._fails(f"{what} of layer 'depthwise'")

    def test_weights_zero_point(self):
        q = self._tensor(self._op("CONV_2D"), 1).quantization
        q.zeroPoint = q.zeroPoint + 1
        self._fails("the weights' zero point of layer 'point'")

    @parameterized.parameters(
        ("FULLY_CONNECTED", "'logits'"),
        ("ADD", "'add'"),
        ("MAX_POOL_2D", "'pool'"),
        ("AVERAGE_POOL_2D", "'mean'"),
        ("MAXIMUM", "'first'"),
        ("MINIMUM", "'first'"),
    )
    def test_outputs_scale_and_zero_point(self, kind, layer):
        q = self._output(self._op(kind)).quantization
        scale = q.scale
        q.scale = np.nextafter(scale, np.float32(9))
        self._fails(f"scale.* of layer {layer}")
        q.scale, q.zeroPoint = scale, q.zeroPoint + 1
        self._fails(f"zero point of layer {layer}")

    def test_input_scale(self):
        self.graph.tensors[self.graph.inputs[0]].quantization.scale = np.float32([1 / 256])
        self._fails("layer 'input'")

    def test_bound(self):
        op = self._op("MAXIMUM")
        buffer = next(b for b in (self.file.buffers[self._tensor(op, i).buffer] for i in (0, 1)) if b.data is not None)
        buffer.data = np.array(buffer.data)
        buffer.data[0] ^= 1
        self._fails("the MAXIMUM's bound of layer 'first'")

    @parameterized.parameters(("MAXIMUM", "MINIMUM", "'first'"), ("MAX_POOL_2D", "AVERAGE_POOL_2D", "'pool'"))
    def test_another_operator(self, old, new, layer):
        self._op(old).opcodeIndex = self._op(new).opcodeIndex
        self._fails(f"has no {old} with the inputs and weights of layer {layer}")

    def test_operator_more(self):
        self.graph.operators.append(copy.deepcopy(self._op("MAXIMUM")))
        self._fails("has a MAXIMUM that the network does not have")

    def test_operator_less(self):
        self.graph.operators.remove(self._op("ADD"))
        self._fails("has no ADD .* layer 'add'")

    def test_another_output(self):
        self.graph.outputs = [self._op("ADD").outputs[0]]
        self._fails("the tensor of layer 'output'")

    @parameterized.parameters("strideW", "strideH", "padding", "dilationWFactor", "fusedActivationFunction")
    def test_convolutions_options(self, field):
        options = self._op("DEPTHWISE_CONV_2D", 1).builtinOptions
        setattr(options, field, getattr(options, field) ^ 3)
        self._fails(f"{field} of layer 'depthwise'")

    @parameterized.parameters("strideW", "filterHeight", "padding")
    def test_poolings_options(self, field):
        options = self._op("MAX_POOL_2D").builtinOptions
        setattr(options, field, getattr(options, field) ^ 1)
        self._fails(f"{field} of layer 'pool'")

    def test_activation_that_cuts(self):
        self._op("FULLY_CONNECTED").builtinOptions.fusedActivationFunction = schema.ActivationFunctionType.RELU
        self._fails("fusedActivationFunction of layer 'logits'")


class FloatTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("unmarked", lambda x, *grid: x),
        ("clip of round outside the mark", lambda x, *grid: quantize.fake_quant(x, *grid)),
    )
    def test_an_operator_left_in_float_is_named(self, instead):
        model, _, integers = network("mini")
        mark, scale = export._mark, integers["add"].scale

        def forgetful(x, given, *rest, **options):
            forgot = np.array_equal(given, scale)
            return instead(x, np.float32(given), *map(np.float32, rest)) if forgot else mark(x, given, *rest, **options)

        with mock.patch.object(export, "_mark", forgetful), self.assertRaisesRegex(UserError, "ADD uses .*FLOAT32"):
            export.convert(model, integers, MODELS["mini"][1])


class WriteTest(absltest.TestCase):
    """export() writes after the check, or nothing at all."""

    def setUp(self):
        self.workdir = Path(self.enter_context(tempfile.TemporaryDirectory()))
        model, shape = MODELS["splat"]
        calibration = np.round(images(shape, 64) * 255).astype(np.uint8)
        config = SimpleNamespace(seed=0, data=None, calibration=SimpleNamespace(images=64))
        dataset = SimpleNamespace(train=SimpleNamespace(images=calibration))
        self.enter_context(mock.patch.object(export.configs, "load", return_value=config))
        self.enter_context(mock.patch.object(export.configs, "validate"))
        self.enter_context(mock.patch.object(export.data, "load", return_value=dataset))
        trained = finished.Trained(model, drawn(model, shape), None, "dense")
        self.enter_context(mock.patch.object(finished, "load_trained", return_value=trained))

    def test_writes_the_file_and_what_is_said_of_it(self):
        path = export.export(self.workdir, self.workdir)
        self.assertLen(tflite.read(tflite.load(path)).outputs, 1)
        names = {p.name for p in self.workdir.iterdir()}
        self.assertEqual(names, {"model.tflite", "model.atl", "ranges.json", "export.json", "ledger.json"})

    def test_nothing_where_the_file_differs(self):
        with (
            mock.patch.object(export, "_convert", return_value=converted("splat")),  # other integers than the run's
            self.assertRaisesRegex(UserError, "layer 'hidden'|layer 'logits'"),
        ):
            export.export(self.workdir, self.workdir)
        self.assertEmpty(list(self.workdir.iterdir()))

    def test_trained_ranges_are_asked_of_a_run_without_and_calibrated_ones_of_a_run_with(self):
        with self.assertRaisesRegex(UserError, "has no trained ranges: add the stage quantize, or export with"):
            export.export(self.workdir, self.workdir, "trained")
        trained = finished.Trained(MODELS["splat"][0], {}, None, "quantize")
        with (
            mock.patch.object(finished, "load_trained", return_value=trained),
            self.assertRaisesRegex(UserError, "calibrating would not be what was trained"),
        ):
            export.export(self.workdir, self.workdir, "calibrated")
        self.assertEmpty(list(self.workdir.iterdir()))

    def test_where_it_fails_no_older_file_is_left(self):
        for name in ("model.tflite", "model.atl"):
            (self.workdir / name).write_bytes(b"older")
        self.test_nothing_where_the_file_differs()


if __name__ == "__main__":
    absltest.main()

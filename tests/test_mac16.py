"""Convolutions by MAC16: the same bytes as TFLite Micro's in C anywhere, and by the ESP32's instructions in QEMU."""

import tempfile
from pathlib import Path

import flat_models
import numpy as np
import test_boards
from absl.testing import absltest, parameterized

from atalaia import tflite
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import boards, kernels, lowering, mac16


def convolution(net, x, outputs, size, stride=1, same=True, scale=0.03, most=128, zeros=0.0):
    """A layer with random weights in [-most, most - 1] and so many more zeros, on tensor x."""
    random, (batch, height, width, channels) = np.random.default_rng(7), net.shape(x)
    scales = random.uniform(0.005, 0.02, outputs)
    shape = (outputs, size, size, channels)
    codes = random.integers(-most, most, shape) * (random.random(shape) >= zeros)
    weights = net.tensor(shape, scales, 0, codes)
    bias = net.tensor((outputs,), scales * net.grid(x)[0], 0, random.integers(-3000, 3000, outputs), "INT32")
    out = [-(-n // stride) if same else (n - size) // stride + 1 for n in (height, width)]
    y = net.tensor((batch, *out, outputs), scale * (size * size * channels) ** 0.5, 11)
    steps = dict(strideH=stride, strideW=stride, dilationHFactor=1, dilationWFactor=1, padding=0 if same else 1)
    return net.op("CONV_2D", (x, weights, bias), y, **steps)


def layer(shape, *args, **options):
    net = flat_models.Net()
    return net.file(convolution(net, net.given(shape, 0.05, -9), *args, **options))


def by_mac16(graph, form="conv_mac16"):
    """Calls of a graph, with a kernel of that name by MAC16 wherever it can be."""
    calls = []
    for step in graph.steps:
        every = kernels.candidates(step, "esp32")
        calls.append(next((call for call in every if call.kernel.startswith(form)), every[0]))
    return calls


def of_few_bits(most):
    """Layers with an odd and an even number of four channels, several strips, and channels to fill up."""
    net = flat_models.Net()
    x = convolution(net, net.given((1, 11, 9, 3), 0.05, -9), 12, 3, scale=0.003 * most, most=most)
    return net.file(convolution(net, convolution(net, x, 6, 5, 2, most=most), 7, 1, most=most))


# Kernels of 1, 3 and other heights; channels that are and are not a multiple of 4; strips of several rows, of the last
# rows alone, and of one row; rows between windows that are not read; batches.
LAYERS = {
    "strips": layer((1, 11, 16, 8), 5, 3),
    "odd": layer((1, 9, 13, 3), 4, 5, 2),
    "pointwise": layer((1, 7, 9, 12), 3, 1),
    "skipped": layer((1, 9, 9, 4), 3, 1, 3, same=False),
    "wide": layer((1, 4, 70, 5), 2, 3, same=False),
    "batch": layer((3, 4, 5, 4), 6, 2),
    "large": layer((1, 3, 3, 4), 2, 3, scale=1e-4),  # shifts to the left
}


class Mac16Test(parameterized.TestCase):
    def test_bytes_are_tflms(self):
        self.assertEqual(flat_models.wrong(LAYERS, 6, choose=by_mac16), {})

    def test_bytes_of_few_bits_are_tflms(self):
        forms = dict(packed_2=2, packed_3=4, packed_4=8, coded=8)
        files = {f"conv_mac16_{form}": of_few_bits(most) for form, most in forms.items()}
        names = iter(files)

        def choose(graph):
            form = next(names)
            calls = by_mac16(graph, form)
            self.assertLen([call for call in calls if call.kernel.startswith(form)], 3)
            return calls

        self.assertEqual(flat_models.wrong(files, 6, choose=choose), {})

    def test_packed_by_hand(self):
        """Of eight channels 0, 1, 4 and 5, and right above them 2, 3, 6 and 7, each with 4 added."""
        packed = mac16.pack_eights(np.array([3, -4, 0, 1, 2], np.int8).reshape(1, 1, 1, 5), 3)
        wanted = [7, 0, 6, 4, 4, 5, 4, 4]  # the first lowest
        self.assertEqual(packed.tobytes(), sum(code << 3 * i for i, code in enumerate(wanted)).to_bytes(3, "little"))

    def test_whether_layers_are_plain(self):
        plain = {}
        for name, content in LAYERS.items():
            (step,) = (c.step for c in by_mac16(lowering.lower(tflite.read(content))) if c.kernel == "conv_mac16")
            plain[name] = bool(step.values["fields"]["plain"])
        self.assertEqual([name for name, is_plain in plain.items() if not is_plain], ["large"])

    def test_explained_for_a_target(self):
        layer = LAYERS["strips"]
        self.assertNotIn("conv_mac16", codegen.explain(layer))
        self.assertIn("conv_mac16", codegen.explain(layer, target="esp32"))

    @parameterized.parameters(
        ((1 << 29) - 1 - 255 * 6, -1, True),
        ((1 << 29) - 255 * 6, -1, False),
        (-(1 << 29) + 255 * 6, -1, False),
        (0, -22, True),
        (0, -23, False),
        (0, 0, False),
    )
    def test_bounds_of_plain(self, bias, shift, plain):
        kernel = np.array([1, -2, 3], np.int8).reshape(1, 1, 1, 3)
        values = dict(kernel=kernel, out_c=1, bias=np.array([bias], np.int32), shift=np.array([shift], np.int8))
        self.assertEqual(mac16.is_plain(values), plain)

    def test_weights_are_filled_up_with_zeros(self):
        words = mac16.pack(np.array([1, -2, 127, -128, 5], np.int8).reshape(1, 1, 1, 5))
        self.assertEqual(list(map(hex, words)), ["0xff7e81", "0x80808085"])

    def test_by_the_esp32s_instructions(self):
        """Each of the assembly's loops and each form of weights, chosen where the ESP32 is the target."""
        test_boards.require(self, boards.ESP32ISA)
        net = flat_models.Net()
        x = convolution(net, net.given((1, 12, 12, 3), 0.05, 3), 16, 5)
        x = convolution(net, x, 16, 3, most=8, zeros=0.75)
        x = convolution(net, convolution(net, x, 16, 1, most=4), 4, 3, scale=1e-4)
        content = net.file(x)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "one"
            found = codegen.generate(content, out, samples=3, target="esp32")
            forms = ("conv_mac16", "conv_mac16_coded_6", "conv_mac16_packed_3", "conv_mac16")
            self.assertEqual([row["kernel"] for row in found["layers"] if row["macs"]], [*forms])
            counted = boards.run(out, boards.ESP32ISA)
        self.assertEqual((counted["samples"], counted["equal"]), (3, 3))
        self.assertBetween(found["estimated_instructions"]["esp32isa"] / counted["instructions"], 0.8, 1.25)
        self.assertLess(counted["instructions_per_mac"], 2.2)


if __name__ == "__main__":
    absltest.main()

"""Steps that run row by row give TFLite Micro's bytes, and have the rows and the arena that were worked out by hand."""

import random
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import random_networks
from absl.testing import absltest, parameterized
from flat_models import Net, longest, wrong
from test_operators import require_gcc

from atalaia import tflite
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import fitting, kernels, lowering, memory, strips
from atalaia.errors import UserError


def chain(seed: int) -> bytes:
    """A random network of steps that can run row by row, with sums of maps that lie apart, and perhaps two outputs."""
    r = random_networks.Random(seed)
    x = r.net.given((1, r.number(6, 13), r.number(3, 7), r.number(1, 4)), r.scale(0.04), r.zero())
    made = [x]
    for _ in range(r.number(4, 7)):
        steps = [
            random_networks.STEPS[n][1] for n in ("conv", "depthwise", "conv", "depthwise", "pool", "pair", "function")
        ]
        same = [t for t in made[:-1] if r.net.shape(t) == r.net.shape(x)]
        if same and r.number(0, 1):
            y = r.out(r.net.shape(x), r.scale(1.4 * r.net.grid(x)[0]))
            x = r.op(r.one(("ADD", "SUB")), [x, r.one(same)], y, fusedActivationFunction=0)
        else:
            x = random_networks._pad(r, x) if r.number(0, 9) == 0 else r.one(steps)(r, x)
        if np.prod(r.net.shape(x)) > 600 or min(r.net.shape(x)) < 1:
            x = made[-1]
        made.append(x)
    branches = [t for t in made[1:-1] if t != x]
    return r.net.file(x, *(branches[:1] if r.number(0, 2) == 0 else ()))


def scattered(graph, calls):
    """Strips at random, with tables of sums or without."""
    network, draw, found, at = strips.Network(graph, calls), random.Random(len(calls)), [], 0
    while at < len(graph.steps):
        end = min(at + draw.randrange(1, 6), len(graph.steps) - 1)
        made = strips.build(network, at, end, draw.random() < 0.5) if end > at else None
        found += [made] if made else []
        at = made.last + 1 if made else at + 1
    return fitting.planned(network, found)


def block(height=8, width=8, channels=4, expanded=12) -> bytes:
    """Expand, depthwise 3x3, project and add."""
    net, draw = Net(), np.random.default_rng(0)

    def conv(kind, x, shape, count, axis):
        weights = net.tensor(shape, np.full(count, 0.01), 0, draw.integers(-127, 128, shape), axis=axis)
        size = (1, height, width, count)
        bias = net.tensor((count,), np.full(count, 0.0005), 0, draw.integers(-99, 99, count), "INT32")
        return net.op(kind, [x, weights, bias], net.tensor(size, 0.05, 3), **same, **more.get(kind, {}))

    same = dict(padding=0, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    more = dict(DEPTHWISE_CONV_2D=dict(depthMultiplier=1))
    x = net.given((1, height, width, channels), 0.05, 3)
    y = conv("CONV_2D", x, (expanded, 1, 1, channels), expanded, 0)
    y = conv("DEPTHWISE_CONV_2D", y, (1, 3, 3, expanded), expanded, 3)
    y = conv("CONV_2D", y, (channels, 1, 1, expanded), channels, 0)
    return net.file(net.op("ADD", [x, y], net.tensor((1, height, width, channels), 0.1, -5)))


def steps_of(content: bytes):
    """(graph, calls) of a file."""
    graph = lowering.lower(tflite.read(content))
    return graph, kernels.choose(graph)


class BytesTest(parameterized.TestCase):
    @parameterized.named_parameters(("longest", longest), ("scattered", scattered))
    def test_random_chains(self, planned):
        """With tables in every sum of two maps; the sanitizers see a row too many."""
        require_gcc(self)
        kinds = set()

        def noted(graph, calls):
            found = planned(graph, calls)
            inside = (range(strip.first, strip.last + 1) for strip in found.plan.strips)
            kinds.update(graph.steps[at].kind for ats in inside for at in ats)
            return found

        first = 0 if planned is longest else 100
        with mock.patch.object(memory, "TABLED", 1):
            self.assertEqual(wrong({f"seed {n}": chain(n) for n in range(first, first + 12)}, 3, noted), {})
        wanted = {"add", "conv", "depthwise", "flip_in", "flip_out", "lookup", "mean_pool"}
        self.assertContainsSubset(wanted, kinds)

    def test_maps_of_too_many_rows_stay_whole(self):
        """Rows in a strip are numbered by 16 bits with a sign."""
        require_gcc(self)
        net, shape = Net(), (1, 40_000, 1, 1)
        x = net.given(shape, 0.05, 3)
        for kind, scale, zero in (("LOGISTIC", 1 / 256, -128), ("TANH", 1 / 128, 0)):
            x = net.op(kind, [x], net.tensor(shape, scale, zero))
        self.assertEqual(wrong({"tall": net.file(x)}, 2, longest), {})

    def test_arena_that_is_asked_for(self):
        """Codegen finds what fits, says what it did, and what fits nowhere is refused in one line."""
        content = block(16, 16, 8, 48)
        with tempfile.TemporaryDirectory() as folder:
            made = codegen.generate(content, Path(folder) / "m", samples=1)
            text = (Path(folder) / "m/model.c").read_text()
            self.assertIn("s0_strips(inputs, outputs, a)", text)
            least = made["arena_bytes"]
            self.assertEqual([(s["first"], s["last"]) for s in made["strips"]], [(0, 5)])
            self.assertEqual([layer["strip"] for layer in made["layers"]], [0] * 6)
            with self.assertRaisesRegex(
                UserError, r"takes [\d,]+ bytes at the least that was found, .*--ram=900: step"
            ):
                codegen.generate(content, Path(folder) / "small", samples=1, ram=900)
            self.assertFalse((Path(folder) / "small").exists())
        self.assertLess(least, 0.5 * memory.plan(steps_of(content)[0]).arena)
        self.assertIn("operators 0 to 3 run row by row: ", codegen.explain(content))


class RowsTest(absltest.TestCase):
    def test_a_block_by_hand(self):
        """8x8x4: the input's rows wait for the sum, the expanded map needs three rows of (1 + 8 + 1) * 12 bytes."""
        network = strips.Network(*steps_of(block()))
        strip = strips.build(network, 0, 5)
        figures = {s.step: (s.rows, s.above, s.end, s.left, s.pitch, s.room, s.drop) for s in strip.stages}
        self.assertEqual(figures[0], (8, 0, 8, 0, 32, 2, 1))
        self.assertEqual(figures[1], (8, 1, 9, 12, 120, 3, 1))
        self.assertEqual(figures[2], (8, 0, 8, 0, 96, 1, 1))
        self.assertEqual(figures[3], (8, 0, 8, 0, 32, 1, 1))
        self.assertEqual([s.at is None for s in strip.stages], [False] * 5 + [True])  # the caller's
        # The depthwise row goes when the projected one is made, the sum's row takes its place.
        self.assertEqual(strip.scratch, 2 * 32 + 3 * 120 + 96 + 32)
        found = fitting.planned(network, [strip]).plan
        self.assertEqual((found.arena, found.tensors), (strip.scratch, {}))
        self.assertEqual(memory.plan(network.graph).arena, 8 * 8 * 12 + 8 * 8 * 4 + 3 * 120)

    def test_the_order_by_hand(self):
        """Of three rows, a window of three at stride 1: which row is the oldest that is needed when each is made."""
        strip = strips.build(strips.Network(*steps_of(block(3))), 0, 5)
        log = strips._run(list(strip.stages))
        self.assertEqual(log[0], [0, 0, 1])  # the sum needs row 0 while the window waits for row 1
        self.assertEqual(log[1], [-1, -1, 0, 1])  # a row of zero points above, and one below
        self.assertEqual(log[5], [0, 1, 2])

    def test_two_rows_go_at_once_at_stride_two(self):
        net, draw = Net(), np.random.default_rng(0)
        x = net.given((1, 8, 4, 3), 0.05, 3)
        weights = net.tensor((2, 3, 3, 3), [0.01, 0.01], 0, draw.integers(-9, 9, (2, 3, 3, 3)))
        options = dict(padding=0, strideH=2, strideW=2, dilationHFactor=1, dilationWFactor=1)
        y = net.op("CONV_2D", [x, weights, -1], net.tensor((1, 4, 2, 2), 0.1, 0), **options)
        first, second, _ = strips.build(strips.Network(*steps_of(net.file(y))), 0, 2).stages
        # SAME at an even size pads below and at the right only: a row has 4 + 1 pixels of 3 bytes, in words.
        self.assertEqual((first.above, first.end, first.left, first.pitch, first.zero), (0, 9, 0, 16, 131))
        self.assertEqual((first.room, first.drop, second.room), (3, 2, 1))

    def test_what_is_read_elsewhere_is_whole(self):
        graph, calls = steps_of(block())
        network = strips.Network(graph, calls)
        strip = strips.build(network, 1, 4)  # without the input's step: both its readers read the whole map
        self.assertNotIn(graph.steps[0].output, strip.inside)
        self.assertEqual([s.step for s in strip.stages], [1, 2, 3, 4])
        strip = strips.build(network, 2, 3)  # a depthwise convolution of a whole map needs it with zero points around
        self.assertEqual([(s.step, s.room) for s in strip.stages], [(None, 3), (2, 1), (3, 8)])

    def test_a_map_that_is_turned_is_no_row(self):
        net = Net()
        x = net.given((1, 6, 4, 2), 0.05, 0)
        y = net.op("RELU", [x], net.tensor((1, 6, 4, 2), 0.05, -128))
        y = net.op("RESHAPE", [y], net.tensor((1, 4, 6, 2), 0.05, -128), newShape=[1, 4, 6, 2])
        y = net.op("MAX_POOL_2D", [y], net.tensor((1, 2, 3, 2), 0.05, -128), padding=1, strideH=2, strideW=2,
                   filterHeight=2, filterWidth=2)  # fmt: skip
        network = strips.Network(*steps_of(net.file(y)))
        self.assertIsNotNone(strips.build(network, 0, 1))
        self.assertIsNone(strips.build(network, 0, 2))


class PadsTest(absltest.TestCase):
    def file(self, value=None, branch=False):
        """PAD of one row and column, and a convolution."""
        net, draw = Net(), np.random.default_rng(0)
        x = net.given((1, 5, 4, 2), 0.05, 3)
        pads = net.ints(0, 0, 1, 0, 0, 1, 0, 0, shape=(4, 2))
        more = [] if value is None else [net.tensor((1,), 0.05, 3, [value])]
        y = net.op("PAD" if value is None else "PADV2", [x, pads, *more], net.tensor((1, 6, 5, 2), 0.05, 3))
        weights = net.tensor((3, 3, 3, 2), [0.01] * 3, 0, draw.integers(-90, 90, (3, 3, 3, 2)))
        options = dict(padding=1, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
        z = net.op("CONV_2D", [y, weights, -1], net.tensor((1, 4, 3, 3), 0.05, 0), **options)
        return net.file(z, *([y] if branch else []))

    def test_zero_points_before_a_convolution_are_left_out(self):
        require_gcc(self)
        files = dict(
            plain=self.file(), other=self.file(value=7), same=self.file(value=3), branch=self.file(branch=True)
        )
        self.assertEqual(wrong(files), {})
        kinds = {name: [step.kind for step in steps_of(content)[0].steps] for name, content in files.items()}
        self.assertEqual(kinds["plain"], ["flip_in", "conv", "flip_out"])
        self.assertEqual(kinds["same"], kinds["plain"])
        self.assertEqual([("pad" in kinds[name]) for name in ("other", "branch")], [True, True])
        self.assertIn("operator 0, PAD, is left out", steps_of(files["plain"])[0].notes[0])


class MovesTest(absltest.TestCase):
    """Values that stay in their row are moved row by row where a loop goes from row to row; the others all at once."""

    def file(self, kind):
        net, shape = Net(), (1, 6, 5, 3)
        x = net.op("TANH", [net.given(shape, 0.04, 3)], net.tensor(shape, 1 / 128, 0))
        out = net.tensor((1, 6, 3, 5) if kind == "swapped" else shape, 1 / 128, 0)
        if kind == "swapped":
            return net.file(net.op("TRANSPOSE", [x, net.ints(0, 1, 3, 2)], out))
        steps = dict(turned=(1, 1, -1, 1), deep=(1, 1, 1, -1), both=(1, 1, -1, -1), upside_down=(1, -1, 1, 1))[kind]
        ends = net.ints(0, 0, 0, 0)
        given = [x, ends, ends, net.ints(*steps)]
        return net.file(net.op("STRIDED_SLICE", given, out, beginMask=15, endMask=15))

    def test_which_and_their_bytes(self):
        require_gcc(self)
        files = {kind: self.file(kind) for kind in ("swapped", "turned", "deep", "both", "upside_down")}
        found = {}

        def noted(graph, calls):
            planned = longest(graph, calls)
            found[len(found)] = [graph.steps[at].kind for s in planned.plan.strips for at in range(s.first, s.last + 1)]
            return planned

        self.assertEqual(wrong(files, planned=noted), {})
        whole = [kind for kind, kinds in zip(files, found.values(), strict=True) if "strided" not in kinds]
        self.assertEqual(whole, ["deep", "upside_down"])  # the loop of the first goes over all pixels at once


if __name__ == "__main__":
    absltest.main()

"""Rafael's networks: the board's budgets, their sizes, and their integers."""

import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax.traverse_util import flatten_dict, unflatten_dict
from test_quantize import drawn, images

from atalaia import export, folding, int8_layers, layers, models, pruning, quantize
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import memory
from atalaia.codegen.graph import Graph, Step

FLASH, ARENA = 59_000, 160_000  # bytes: of Silva's model; of an ESP32's memory, which leaves some for the camera
VARIANTS = ("rafael_base", "rafael_1", "rafael_2", "rafael_3")


def _variables(name, size=96):
    return jax.eval_shape(models.create(name, 10).init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


def int8_bytes(params):
    """A byte a weight, four a bias; BatchNorm is folded away."""
    flat = jax.tree.leaves_with_path({k: {n: v for n, v in p.items() if n != "norm"} for k, p in params.items()})
    return sum(leaf.size * {"kernel": 1, "bias": 4}[path[-1].key] for path, leaf in flat)


def _graph(name, size=96) -> Graph:
    """The steps that code generation would have, of the network's own code."""
    steps, sizes, shapes = [], {0: size * size * 3}, {0: (1, size, size, 3)}

    def window(layer, given, out):
        stride, (_, in_h, in_w, in_c), (_, out_h, out_w, out_c) = layer.strides, given, out
        pads = [max((o - 1) * stride + layer.kernel - n, 0) // 2 for o, n in ((out_h, in_h), (out_w, in_w))]
        values = dict(in_h=in_h, in_w=in_w, in_c=in_c, out_h=out_h, out_w=out_w, out_c=out_c)
        kernel = dict(kernel_h=layer.kernel, kernel_w=layer.kernel, stride_h=stride, stride_w=stride)
        return values | kernel | dict(pad_top=pads[0], pad_left=pads[1])

    def rule(path, layer, *inputs):
        if isinstance(layer, layers.Flatten):
            return inputs[0]
        given = layers.spec(shapes[inputs[0]])
        if isinstance(layer, layers.Dense):
            given = layers.spec((1, given.shape[-1]))
        out = layers.output_spec(layer, *[given] * len(inputs)).shape
        kind, values = type(layer).__name__.lower(), dict(values=math.prod(out))
        if isinstance(layer, layers.Conv):
            kind, values = "depthwise" if layer.depthwise else "conv", window(layer, given.shape, out)
        number = len(sizes)
        sizes[number], shapes[number] = math.prod(out), out
        steps.append(Step(kind, path, len(steps), tuple(inputs), number, values))
        return number

    last = layers.interpret(models.create(name, 10), rule, 0)
    return Graph(steps, sizes, shapes, (0,), (last,), [])


class BudgetTest(parameterized.TestCase):
    def test_the_base_is_as_small_as_silvas(self):
        found = int8_bytes(_variables("rafael_base")["params"])
        self.assertLessEqual(found, FLASH)
        self.assertGreater(found, 0.95 * FLASH)  # what is not used is accuracy given away
        self.assertLess(int8_bytes(_variables("rafael_base_32", 32)["params"]), FLASH)

    def test_the_pipelines_zeros_make_all_constants_fit(self):
        """Those of rescaling and of sparse kernels too, which weights and biases alone do not show."""
        path = Path(__file__).parents[1] / "configs/pipeline.py"
        recipe = importlib.util.module_from_spec(spec := importlib.util.spec_from_file_location("recipe", path))
        spec.loader.exec_module(recipe)
        config = recipe.get_config()
        model, shape = models.create(config.model, 10), (32, 32, 3)
        variables = drawn(model, shape)
        sparsity, _ = pruning.targets(variables["params"], config.prune)
        flat = flatten_dict(variables["params"], sep="/")
        for name, part in sparsity.items():
            size = np.abs(flat[name])
            flat[name] = np.where(size <= np.quantile(size, part), 0, flat[name])
        variables = variables | dict(params=unflatten_dict(flat, sep="/"))
        folded = folding.fold(model, variables)
        grids = quantize.output_grids(quantize.calibrate(model, folded, [images(shape)]))
        content = export.convert(model, quantize.quantize_network(model, folded, grids), shape)
        made = codegen.report(content, flash=recipe.FLASH)
        self.assertLessEqual(made["weight_bytes"], recipe.FLASH)
        self.assertGreater(made["weight_bytes"], 0.9 * recipe.FLASH)

    @parameterized.parameters(*VARIANTS)
    def test_arena(self, name):
        graph = _graph(name)
        plan = memory.plan(graph)
        # Input and output of the first convolution live together, by hand: 96x96x3 and 48x48x16.
        self.assertGreaterEqual(plan.arena, 96 * 96 * 3 + 48 * 48 * 16)
        self.assertLessEqual(plan.arena, ARENA)
        # A residual layer keeps its input, which lies in the bytes of the 48x48x16 that it was made from, while the
        # pointwise convolution writes over its own input, of 24x24x32, row by row.
        at = next(i for i, step in enumerate(graph.steps) if step.op == "stage0_0_pointwise")
        self.assertEqual(plan.layers[at], 48 * 48 * 16 + 24 * 24 * 32 + 24 * 32)

    @parameterized.parameters(
        ("rafael_base", 59_530, 58_392, 10_989_056),
        ("rafael_1", 63_466, 62_264, 13_071_872),
        ("rafael_2", 62_794, 61_528, 12_500_480),
        ("rafael_3", 64_426, 63_096, 13_256_192),
    )
    def test_sizes_of_the_docstring(self, name, values, stored, macs):
        variables = _variables(name)
        rows, _ = layers.summary(models.create(name, 10), variables, (96, 96, 3))
        found = sum(leaf.size for leaf in jax.tree.leaves(variables)), int8_bytes(variables["params"])
        self.assertEqual((*found, sum(row["macs"] for row in rows)), (values, stored, macs))
        self.assertIn(" | ".join(f"{n:,}" for n in (values, stored, macs)), models.rafael.__doc__)

    def test_variants_add_what_the_thesis_says(self):
        kernels = {}

        def rule(path, layer, *inputs):
            if isinstance(layer, layers.Conv) and layer.kernel > 1:
                kernels.setdefault(name, []).append(layer.kernel)

        for name in VARIANTS:
            layers.interpret(models.create(name, 10), rule, None)
        base = sorted(kernels["rafael_base"])
        for name, extra in (("rafael_1", [9]), ("rafael_2", [3, 3]), ("rafael_3", [3, 3, 3])):
            self.assertEqual(sorted(kernels[name]), sorted(base + extra), name)

    @parameterized.parameters((96, "rafael_1", 6), (32, "rafael_base", 2), (32, "rafael_base_32", 4))
    def test_both_sizes(self, size, name, last):
        """Has an int8 form, and a last map that is more than a point."""
        model = models.create(name, 10)
        int8_layers.require_int8(model, (size, size, 3))
        rows, _ = layers.summary(model, {}, (size, size, 3))
        shapes = {row["name"]: row["out"] for row in rows}
        self.assertEqual(shapes["stage2_0"], [last, last, 128])
        self.assertEqual(shapes["logits"], [10])


if __name__ == "__main__":
    absltest.main()

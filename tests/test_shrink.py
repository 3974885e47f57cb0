"""Channels that go: which are tied, that nothing else changes, what is chosen, and the stage from training to C."""

import json
import math
import shutil
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax.traverse_util import flatten_dict, unflatten_dict

from atalaia import (
    channels,
    checkpoint,
    data,
    finished,
    folding,
    layers,
    ledger,
    models,
    optimizers,
    pruning,
    shrink,
    step,
    train,
)
from atalaia import config as configs
from atalaia.errors import UserError
from atalaia.models import resnet50

# Networks that differ from another one in numbers alone.
SAME = {
    "student",
    "resnet14",
    "resnet14_narrow",
    "resnet32",
    "resnet20_wide",
    "resnet56",
    "resnet56_859",
    "resnet56_333",
    "resnet56_112",
    "gated",
    "detector_large",
    "rafael_deep_32",
    "rafael_wide_32",
}
SAME |= {f"resnet50_{size}" for size in (96, 160, 224)} | {"rafael_base_32", "rafael_2", "rafael_3"}


class Branches(nn.Module):
    """All kinds of ties in a few layers."""

    outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Conv(8, norm="after", name="stem")(x, train)
        y = layers.Conv(12, norm="before", name="a")(x, train)
        y = layers.Conv(24, depthwise=True, name="filter")(y, train)
        y = layers.Conv(8, kernel=1, relu=False, name="b")(y, train)
        x = layers.Add(name="sum")(x, y)
        x = layers.MaxPool(name="pool")(x)
        x = layers.Flatten(name="flatten")(x)
        x = layers.Dense(16, relu=True, name="hidden")(x)
        return layers.Dense(self.outputs, name="logits")(x)


def drawn(model, shape):
    """Weights as He et al. draw them, and BatchNorm's vectors as if it had been trained."""
    random = np.random.default_rng(0)

    def value(path, leaf):
        if path[-1].key == "kernel":
            return random.normal(0, math.sqrt(2 / math.prod(leaf.shape[:-1])), leaf.shape)
        return (
            random.uniform(0.5, 1.5, leaf.shape)
            if path[-1].key in ("scale", "var")
            else random.normal(0, 0.2, leaf.shape)
        )

    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    return jax.tree.map(lambda x: np.asarray(x, np.float32), jax.tree.map_with_path(value, shapes))


def masked(variables, ties, kept):
    """The channels that go, of all that a group's layers make, at zero: by hand, from the outputs' names."""
    flat = flatten_dict(variables, sep="/")
    for name, stay in kept.items():
        for place in ties.groups[name].places:
            for kind in ("params", "batch_stats"):
                path = f"{kind}/{place.path}"
                if path in flat and place.path.rpartition("/")[2] not in ("mean", "var"):
                    gone = np.isin(place.channels, stay, invert=True)
                    made = place.axis == flat[path].ndim - 1  # an input's weights stay: they must not matter
                    flat[path] = np.where(gone & made, 0, np.moveaxis(flat[path], place.axis, -1))
                    flat[path] = np.moveaxis(flat[path], -1, place.axis)
    return unflatten_dict(flat, sep="/")


def outputs(model, variables, images):
    """The heads of a network in inference, in float64 by NumPy: no program to compile, and another implementation."""
    folded = folding.fold(model, variables)

    def linear(layer, weights, x):
        kernel = np.float64(weights.kernel)
        if isinstance(layer, layers.Dense):
            return x @ kernel
        size, step = layer.kernel, layer.strides
        out = [-(-n // step) for n in x.shape[1:3]]
        pads = [max((o - 1) * step + size - n, 0) for o, n in zip(out, x.shape[1:3], strict=True)]
        x = np.pad(x, ((0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)))
        taps = [
            (i, j, x[:, i:, j:][:, : step * out[0] : step, : step * out[1] : step]) for i, j in np.ndindex(size, size)
        ]
        if layer.depthwise:
            times = kernel.shape[3] // x.shape[3]
            return sum(np.repeat(tap, times, 3) * kernel[i, j, 0] for i, j, tap in taps)
        return sum(tap @ kernel[i, j] for i, j, tap in taps)

    def rule(path, layer, *inputs):
        x = inputs[0]
        match layer:
            case layers.Conv() | layers.Dense():
                weights = folded[path]
                assert layer.features == weights.kernel.shape[-1], path  # the code's, or what a Narrow one keeps
                y = linear(layer, weights, x) + weights.bias
                y = np.maximum(y, 0) if weights.relu else y
                return y if weights.lower is None else np.clip(y, weights.lower, weights.upper)
            case layers.Add():
                return np.maximum(x + inputs[1], 0) if layer.relu else x + inputs[1]
            case layers.Mul():
                return x * inputs[1]
            case layers.GlobalAvgPool():
                return x.mean((1, 2), keepdims=True)
            case layers.Flatten():
                return x.reshape(len(x), -1)
            case layers.Dropout():
                return x
            case layers.MaxPool() | layers.MinPool():
                n, most = layer.window, np.max if isinstance(layer, layers.MaxPool) else np.min
                height, width = (size // n for size in x.shape[1:3])
                return most(x[:, : height * n, : width * n].reshape(len(x), height, n, width, n, -1), (2, 4))
        own = {kind: layers.subtree(tree, path) for kind, tree in variables.items()}
        return np.float64(layer.clone(parent=None).apply(own, *map(np.float32, inputs)))

    return jax.tree.leaves(layers.interpret(model, rule, np.float64(images)))


class TiesTest(parameterized.TestCase):
    def test_groups_by_hand(self):
        model = Branches(5)
        params = drawn(model, (4, 4, 3))["params"]
        ties = channels.find(model, params)
        self.assertEqual(
            {n: (g.size, g.makers) for n, g in ties.groups.items()},
            {
                "stem": (8, ("stem", "b")),
                "a": (12, ("a",)),
                "hidden": (16, ("hidden",)),
            },
        )
        places = {
            n: {(p.path, p.axis) for p in g.places if "/" in p.path and "norm" not in p.path}
            for n, g in ties.groups.items()
        }
        self.assertEqual(
            places["stem"],
            {
                *(
                    ("stem/kernel", 3),
                    ("stem/bias", 0),
                    ("a/kernel", 2),
                    ("b/kernel", 3),
                    ("b/bias", 0),
                    ("hidden/kernel", 0),
                ),
            },
        )
        self.assertEqual(
            places["a"], {("a/kernel", 3), ("a/bias", 0), ("filter/kernel", 3), ("filter/bias", 0), ("b/kernel", 2)}
        )
        self.assertEqual(places["hidden"], {("hidden/kernel", 1), ("hidden/bias", 0), ("logits/kernel", 0)})
        self.assertEqual(ties.through["sum"], (("stem", "stem"), "stem"))
        self.assertEqual(ties.through["logits"], (("hidden",), channels.FIXED))

    def test_a_map_of_two_by_two_is_flattened_with_its_channels_last(self):
        model = Branches(5)
        params = drawn(model, (4, 4, 3))["params"]
        taken = channels.take(params, channels.find(model, params), {"stem": np.array([1, 6]), "a": np.array([0, 11])})
        self.assertEqual(taken["filter"]["kernel"].shape, (3, 3, 1, 4))
        np.testing.assert_array_equal(taken["filter"]["kernel"], params["filter"]["kernel"][..., [0, 1, 22, 23]])
        rows = params["hidden"]["kernel"].reshape(2, 2, 8, 16)[:, :, [1, 6]].reshape(8, 16)
        np.testing.assert_array_equal(taken["hidden"]["kernel"], rows)
        np.testing.assert_array_equal(taken["b"]["kernel"], params["b"]["kernel"][:, :, [0, 1, 22, 23]][..., [1, 6]])

    def test_a_path_that_ends_like_another_ones_is_not_cut(self):
        """As Flax names layers by itself: Inner_0/Conv_0 beside Conv_0, and the one inside stays whole."""

        class Inner(nn.Module):
            @nn.compact
            def __call__(self, x, train=False):
                return layers.Conv(8)(x, train)

        class Outer(nn.Module):
            outputs: int

            @nn.compact
            def __call__(self, x, train=False):
                x = layers.Conv(8)(Inner()(x, train), train)
                return layers.Dense(self.outputs)(layers.Flatten()(layers.GlobalAvgPool()(x)), train)

        params = drawn(Outer(3), (4, 4, 3))["params"]
        ties = channels.find(Outer(3), params)
        taken = channels.take(dict(params=params, mu=params), ties, {"Conv_0": np.arange(4)})
        for tree in taken.values():
            self.assertEqual(tree["Conv_0"]["bias"].shape, (4,))
            self.assertEqual(tree["Inner_0"]["Conv_0"]["bias"].shape, (8,))

    @parameterized.parameters(*sorted(set(models.MODELS) - SAME))
    def test_a_network_without_channels_is_the_network_with_them_at_zero(self, name):
        """Of every network: half of each group, drawn."""
        self.enter_context(absltest.mock.patch.object(resnet50, "BLOCKS", (1, 2, 1, 1)))  # as the others are
        model, shape = models.create(name, 3), (8, 8, 3)
        variables, random = drawn(model, shape), np.random.default_rng(1)
        ties = channels.find(model, variables["params"])
        kept = {n: np.sort(random.permutation(g.size)[: g.size // 2]) for n, g in ties.groups.items()}
        small = channels.take(variables, ties, kept)
        network = channels.fitted(model, variables["params"], small["params"])
        images = random.uniform(size=(1, *shape)).astype(np.float32)
        expected, whole = (outputs(model, v, images) for v in (masked(variables, ties, kept), variables))
        for a, b, c in zip(expected, outputs(network, small, images), whole, strict=True):
            self.assertLessEqual(np.abs(a - b).max(), 1e-6 * np.abs(a).max())
            self.assertGreater(np.abs(a - c).max(), 1e-3 * np.abs(a).max())  # those channels did matter

    def test_in_jax_too(self):
        model, shape = Plain(5), (4, 4, 3)
        variables = drawn(model, shape)
        ties, kept = channels.find(model, variables["params"]), {"first": np.arange(1, 16, 2), "second": np.arange(5)}
        small = channels.take(variables, ties, kept)
        images = np.random.default_rng(1).uniform(size=(4, *shape)).astype(np.float32)
        found = channels.fitted(model, variables["params"], small["params"]).apply(small, images)
        (expected,) = outputs(model, masked(variables, ties, kept), images)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        self.assertEqual(channels.widths(variables["params"], small["params"]), {"first": 8, "second": 5})
        self.assertIs(channels.fitted(model, variables["params"], variables["params"]), model)

    def test_a_layer_in_two_places_ties_what_goes_into_it(self):
        class Twice(nn.Module):
            @nn.compact
            def __call__(self, x, train=False):
                x, y = layers.Conv(8, name="left")(x, train), layers.Conv(8, name="right")(x, train)
                both = layers.Conv(8, name="both")
                return layers.Conv(2, name="last")(layers.Add(name="sum")(both(x, train), both(y, train)), train)

        ties = channels.find(Twice(), drawn(Twice(), (4, 4, 1))["params"])
        self.assertEqual({g.makers for g in ties.groups.values()}, {("left", "right"), ("both",)})

    def test_what_is_no_layer_is_refused_in_one_line(self):
        class Free(nn.Module):
            @nn.compact
            def __call__(self, x, train=False):
                return layers.Dense(2, name="last")(layers.Flatten()(layers.Conv(4)(x) + 1))

        with self.assertRaisesRegex(UserError, "^shrink: Free does more than calling layers, .*take 'shrink' out of"):
            channels.find(Free(), drawn(Free(), (4, 4, 1))["params"])

    def test_masks_and_the_optimisers_state_lose_the_same_channels(self):
        model = Branches(5)
        params = drawn(model, (4, 4, 3))["params"]
        ties, kept = channels.find(model, params), {"stem": np.arange(4), "a": np.arange(6), "hidden": np.arange(8)}
        for name in optimizers.OPTIMIZERS:
            config = configs.base().prune
            config.optimizer = name
            masks = {"a/kernel": params["a"]["kernel"] > 0}
            state = pruning.prune(optimizers.create(config, 10), {}, masks=masks).init(params)
            found, small = channels.take((state, params), ties, kept)
            masks = {"a/kernel": small["a"]["kernel"] > 0}
            expected = pruning.prune(optimizers.create(config, 10), {}, masks=masks).init(small)
            self.assertEqual(*(jax.tree.map(np.shape, tree) for tree in (expected, found)), name)
            np.testing.assert_array_equal(found.masks["a/kernel"], masks["a/kernel"])


class ChoiceTest(parameterized.TestCase):
    """What matters, and how many channels stay."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.model, cls.shape = Branches(5), (4, 4, 3)
        cls.variables = drawn(cls.model, cls.shape)
        cls.ties = channels.find(cls.model, cls.variables["params"])
        cls.sizes = {name: group.size for name, group in cls.ties.groups.items()}

    def config(self, **fields):
        config = configs.base()
        config.stages = ("shrink",)
        config.update_from_flattened_dict({f"shrink.{name}": value for name, value in fields.items()})
        return config

    def test_macs_by_hand(self):
        cost = shrink.Costs(self.model, self.ties, self.shape, "macs")

        def by_hand(stem, a, hidden):
            maps = 9 * 3 * stem + 9 * stem * a + 9 * 2 * a + 2 * a * stem  # of 4x4
            return 16 * maps + 4 * stem * hidden + hidden * 5

        self.assertEqual(cost(self.sizes), by_hand(8, 12, 16))
        self.assertEqual(cost(dict(stem=4, a=8, hidden=12)), by_hand(4, 8, 12))

    def test_bytes_of_fewer_bits_by_hand(self):
        config = self.config()
        config.stages, config.quantize.bits = ("shrink", "quantize"), "hidden=4; stem=auto"
        bits = shrink.weight_bits(self.model, config)
        costs = [shrink.Costs(self.model, self.ties, self.shape, "bytes", b)(self.sizes) for b in ({}, bits)]
        self.assertEqual(costs[0] - costs[1], 4 * 8 * 16 / 2)  # the weights of `hidden` alone

    def test_l2_is_of_all_layers_that_make_a_channel_with_batch_norm_in_it(self):
        found = shrink.scores(self.config(), self.model, self.variables, self.ties)
        p, s = self.variables["params"], self.variables["batch_stats"]
        factor = p["stem"]["norm"]["scale"] / np.sqrt(s["stem"]["norm"]["var"] + layers.BATCH_NORM_EPSILON)
        square = np.square(p["stem"]["kernel"] * factor).sum((0, 1, 2)) + np.square(p["b"]["kernel"]).sum((0, 1, 2))
        np.testing.assert_allclose(found["stem"], 2 * np.sqrt(square) / np.sqrt(square).mean(), rtol=1e-5)

    def test_norm_is_batch_norms_scale_and_weights_where_there_is_none(self):
        found = shrink.scores(self.config(score="norm"), self.model, self.variables, self.ties)
        scale = self.variables["params"]["a"]["norm"]["scale"]
        np.testing.assert_allclose(found["a"], scale / scale.mean(), rtol=1e-5)
        size = np.linalg.norm(self.variables["params"]["hidden"]["kernel"], axis=0)
        np.testing.assert_allclose(found["hidden"], size / size.mean(), rtol=1e-5)

    def test_taylor_is_the_square_of_the_losss_slope_by_a_factor_of_the_channel(self):
        """By differences: each channel of `hidden` made a thousandth larger and smaller."""
        config, shape = self.config(score="taylor"), (2, 2, 1)

        class Hidden(nn.Module):
            @nn.compact
            def __call__(self, x, train=False):
                x = layers.Dense(8, relu=True, name="hidden")(layers.Flatten()(x))
                return layers.Dense(4, name="logits")(x)

        config.batch_size, config.calibration.images = 4, 4
        random, model = np.random.default_rng(2), Hidden()
        variables = drawn(model, shape)
        split = data.Split(random.integers(0, 256, (4, *shape), np.uint8), np.arange(4))
        ties = channels.find(model, variables["params"])
        found = shrink.scores(config, model, variables | dict(batch_stats={}), ties, split)["hidden"]

        def loss(factor):
            changed = jax.tree.map(np.copy, variables)
            changed["params"]["logits"]["kernel"] = changed["params"]["logits"]["kernel"] * factor[:, None]
            logits = outputs(model, changed, split.images / 255)[0]
            return (np.log(np.exp(logits).sum(1)) - logits[np.arange(4), split.targets]).mean()

        slopes = np.array([(loss(1 + e) - loss(1 - e)) / 2e-3 for e in np.eye(8) * 1e-3])
        np.testing.assert_allclose(found, np.square(slopes), rtol=1e-2, atol=1e-7)

    @parameterized.product(goal=("bytes", "macs", "ms"), scope=("global", "uniform"))
    def test_the_goal_is_reached_and_no_more_goes_than_needed(self, goal, scope):
        fields = self.config(goal=goal, scope=scope).shrink
        cost, least = shrink.Costs(self.model, self.ties, self.shape, goal), dict.fromkeys(self.sizes, 4)
        found = shrink.scores(self.config(), self.model, self.variables, self.ties)
        target = 0.7 * cost(self.sizes) + 0.3 * cost(least)
        kept = shrink.choose(found, cost, target, least, fields)
        self.assertLessEqual(cost(kept), target)
        self.assertTrue(all(count % 4 == 0 and count >= 4 for count in kept.values()), kept)
        more = [kept | {n: count + 4} for n, count in kept.items() if count < self.sizes[n]]
        if scope == "global":  # but for what the last portion saved too much
            self.assertGreater(max(map(cost, more)), target)

    def test_channels_that_matter_less_for_what_they_cost_go_first(self):
        """All of `hidden`'s scores are tiny, so it alone is cut, though all groups could be."""
        cost, least = shrink.Costs(self.model, self.ties, self.shape, "bytes"), dict.fromkeys(self.sizes, 4)
        found = {name: np.full(size, 1e-6 if name == "hidden" else 1.0) for name, size in self.sizes.items()}
        kept = shrink.choose(found, cost, cost(self.sizes | dict(hidden=8)), least, self.config(goal="bytes").shrink)
        self.assertEqual(kept, self.sizes | dict(hidden=8))

    def test_layers_that_are_fixed_keep_their_channels(self):
        self.assertEqual(set(shrink.free(self.ties, "^b$").groups), {"a", "hidden"})  # `b` makes those of `stem` too
        with self.assertRaisesRegex(
            UserError, "^shrink.fixed: pattern 'x' matches no layer; there are stem, b, a, hid"
        ):
            shrink.free(self.ties, "x")

    @parameterized.parameters(
        (dict(keep=0.01), r"^shrink: 244 macs cannot be reached: .*shrink.least=0.125.* leave take 5,780 of 24,400"),
        (dict(goal="bytes", budget=100.0, keep=0.0), "^shrink: 100 bytes cannot be reached"),
        (dict(fixed="."), "^shrink: no channels of Branches may go"),
    )
    def test_what_cannot_be_is_refused_before_any_work(self, fields, pattern):
        with self.assertRaisesRegex(UserError, pattern):
            config = self.config(**fields).shrink
            shrink.refuse_impossible(self.model, self.variables["params"], self.shape, config)

    @parameterized.parameters(
        (dict(score="size"), "shrink.score: there is no 'size', only l2, norm, taylor"),
        (dict(goal="flash"), "shrink.goal: there is no 'flash', only bytes, macs, ms"),
        (dict(scope="layer"), "shrink.scope: there is no 'layer', only global, uniform"),
        (dict(budget=10.0), "shrink: both of keep and budget given; set exactly one, the other to 0"),
        (dict(keep=0.0), "shrink: neither of keep and budget given"),
        (dict(keep=1.5), r"shrink.keep is the part of macs that stays, in \(0, 1\), not 1.5"),
        (dict(multiple=0), "shrink.multiple must be at least 1, not 0"),
        (dict(cuts=0), "shrink.cuts must be at least 1, not 0"),
        (dict(end=2.0), r"shrink.end must be in \[0, 1\], not 2.0"),
        (dict(fixed="("), "shrink.fixed: '\\(' is no regular expression"),
    )
    def test_wrong_fields(self, fields, pattern):
        with self.assertRaisesRegex(UserError, f"^{pattern}"):
            configs.validate(self.config(**fields))


class Plain(nn.Module):
    """Two convolutions that compile fast."""

    outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Conv(16, strides=2, norm="before", name="first")(x, train)
        x = layers.Conv(16, name="second")(x, train)
        return layers.Dense(self.outputs, name="logits")(layers.Flatten(name="flatten")(x))


class StageTest(absltest.TestCase):
    """Two cuts in one stage, stopped between them; as the beginning of another run, and as its teacher."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.enterClassContext(absltest.mock.patch.dict(models.MODELS, plain=Plain))
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.config = c = configs.base()
        c.model, c.batch_size, c.stages, c.data.validation = "plain", 32, ("shrink",), 0.0
        for stage in (c.shrink, c.prune):
            stage.epochs, stage.steps, stage.optimizer, stage.learning_rate = 0.0, 10, "adam", 1e-3
        c.shrink.cuts, c.shrink.keep, c.shrink.average = 2, 0.4, 0.9
        cls.run_config(c, "run")
        cls.dataset = data.load(c.data, cls.folder)

    @classmethod
    def run_config(cls, config, name):
        return train.train_and_evaluate(config, cls.folder / name, cls.folder)

    def trained(self, name, config=None):
        return finished.load_trained(config or self.config, self.folder / name, self.dataset)

    def test_the_network_is_small(self):
        rows = json.loads((self.folder / "run/channels.json").read_text())
        run = self.trained("run")
        kept = {path: params["kernel"].shape[-1] for path, params in run.variables["params"].items()}
        self.assertEqual(
            rows, {path: [whole, kept[path]] for path, whole in (("first", 16), ("second", 16), ("logits", 10))}
        )
        small, whole = (
            sum(row["macs"] for row in layers.summary(model, run.variables, (8, 8, 1))[0])
            for model in (run.model, Plain(10))
        )
        self.assertLessEqual(small, 0.4 * whole)
        self.assertGreater(small, 0.25 * whole)
        (row,) = ledger.read(self.folder / "run")
        self.assertEqual(row["parameters"], sum(x.size for x in jax.tree.leaves(run.variables)))

    def test_the_average_of_the_weights_is_cut_too_and_is_what_stays(self):
        shapes = step.state_shapes(self.config, Plain(10), (8, 8, 1))
        manager = checkpoint.open_folder(self.folder / "run", writing=False)
        for at, equal in ((3, False), (10, True)):
            state, _ = finished.restore(manager, self.config, Plain(10), shapes, at)
            found = checkpoint.digest(state.params) == checkpoint.digest(state.opt_state.average)
            self.assertEqual((at, found), (at, equal))

    def test_stopped_between_two_cuts_it_ends_with_the_same_bytes(self):
        stopped = self.folder / "stopped"
        shutil.copytree(self.folder / "run", stopped)
        shutil.rmtree(stopped / "checkpoints/10")
        self.assertEqual(checkpoint.latest(stopped), 3)  # before the second cut, at 0.3 of the stage
        (stopped / "train.json").unlink()
        self.run_config(self.config, "stopped")
        self.assertEqual(*(checkpoint.digest(self.trained(name).variables) for name in ("run", "stopped")))

    def test_another_run_begins_with_it_and_is_taught_by_it(self):
        config = self.config.copy_and_resolve_references()
        config.stages, config.start_from = ("prune",), str(self.folder / "run")
        config.prune.teacher = config.start_from
        self.run_config(config, "pruned")
        shapes = [
            jax.tree.map(np.shape, run.variables) for run in (self.trained("pruned", config), self.trained("run"))
        ]
        self.assertEqual(*shapes)

    def test_a_run_of_another_network_is_refused(self):
        config = self.config.copy_and_resolve_references()
        config.stages, config.start_from, config.model = ("prune",), str(self.folder / "run"), "resnet8"
        with self.assertRaisesRegex(UserError, "^start_from: .*run holds a plain with .* must be the same"):
            self.run_config(config, "other")


if __name__ == "__main__":
    absltest.main()

"""Stage quantize: gradients and ranges by hand, and a forward pass that is the integer network's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from flax.traverse_util import flatten_dict
from test_export import rescale
from test_quantize import NETWORKS, Mini, Small, drawn, images

from atalaia import config as configs
from atalaia import data, folding, layers, pruning, qat, quantize, simulate
from atalaia.errors import UserError
from atalaia.folding import Folded


def settings(**fields):
    c = configs.base().quantize
    c.update(fields)
    return c


def entered(model, shape, config, bits=None):
    """Variables at the beginning of the stage for a drawn network."""
    folded = folding.fold(model, drawn(model, shape))
    params, stats = qat.enter(folded, quantize.calibrate(model, folded, [images(shape)]), config, bits)
    return dict(params=params, batch_stats=stats)


class Wide(nn.Module):
    """Enough bytes in a layer that some lie near where rounding turns."""

    @nn.compact
    def __call__(self, x, train=False):
        for name in ("first", "second", "third"):
            x = layers.Conv(64, relu=True, name=name)(x, train)
        return layers.Dense(3, name="logits")(layers.Flatten(name="flatten")(layers.GlobalAvgPool(name="mean")(x)))


class FakeQuantTest(parameterized.TestCase):
    X = np.float32([[0.3, 0.9], [-5, 200]])  # 0.6, 1.8, -10 and 400 steps of 0.5; the last two are clipped to -8 and 7

    @parameterized.parameters((lambda f: f,), (jax.jit,))
    def test_gradients_by_hand(self, wrap):
        def total(x, scale):
            return quantize.fake_quant(x, scale, jnp.float32(0), -8, 7).sum()

        by_x, by_scale = wrap(jax.grad(total, (0, 1)))(self.X, jnp.float32(0.5))
        np.testing.assert_array_equal(by_x, [[1, 1], [0, 0]])
        np.testing.assert_allclose(by_scale, 0.4 + 0.2 - 8 + 7, rtol=1e-5)

    def test_gradient_of_scale_by_channel(self):
        def total(scale):
            return quantize.fake_quant(self.X, scale, jnp.zeros(2), -8, 7, 1).sum()

        np.testing.assert_allclose(jax.grad(total)(jnp.full(2, 0.5)), [0.4 - 8, 0.2 + 7], rtol=1e-5)

    @parameterized.parameters((lambda f: f,), (jax.jit,))
    def test_rescale_is_the_integer_networks(self, wrap):
        random = np.random.default_rng(0)
        total = random.integers(-(2**24), 2**24, (4000, 64)) >> random.integers(0, 16, 64)
        scales = np.array(quantize.weight_scale(random.uniform(1e-3, 1, (1, 64)), np.zeros(64), np.float32(1), 127))
        scales[:8] = 2.0 ** np.arange(-12, -4)
        for given, output in ((0.0123, 1.37), (1 / 255, 0.031), (0.25, 0.5), (0.9999, 0.0001)):
            given, output = np.float32(given), np.float32(output)
            found = np.asarray(wrap(quantize.rescale)(np.float32(total), given, scales, output))
            ratio = np.float64(given) * scales.astype(np.float64) / np.float64(output)
            expected = rescale(total, ratio)
            told = np.abs(expected) < 2**22  # far beyond int8, float32 does not hold the halves
            np.testing.assert_array_equal(found[told], expected[told])
            self.assertGreater(np.mean(np.abs(expected) > 0), 0.1)


class EnterTest(parameterized.TestCase):
    def test_bounds_of_both_signs(self):
        lower, upper = np.float32([1, -np.inf]), np.float32([np.inf, 2])
        folded = {"conv": Folded(np.ones((1, 1, 1, 2), np.float32), np.zeros(2, np.float32), False, lower, upper)}
        params, stats = qat.enter(folded, {"conv": (0.0, 2.55)}, settings())
        np.testing.assert_array_equal(params["conv"]["bound"], [1, 2])
        np.testing.assert_array_equal(stats["conv"]["capped"], [False, True])

    @parameterized.parameters((4, 7), (3, 3), (2, 1))
    def test_learned_scales_begin_over_weights_that_are_not_pruned(self, bits, qmax):
        kernel = np.float32([[1, 0], [-3, 0], [0, -4], [0, 0]])  # mean magnitudes 2 and 4
        folded = {"conv": Folded(kernel, np.zeros(2, np.float32), False)}
        params, _ = qat.enter(folded, {"conv": (0.0, 1.0)}, settings(bits=f"conv={bits}"))
        np.testing.assert_allclose(np.exp(params["conv"]["weight_log_scale"]), [4 / qmax**0.5, 8 / qmax**0.5], 1e-5)


class ForwardTest(parameterized.TestCase):
    @parameterized.product(network=NETWORKS, ranges=qat.RANGES)
    def test_equals_the_integer_network(self, network, ranges):
        _, model, shape = network
        first, *_, last = quantize.linear_paths(model)
        auto = ranges == "learned"  # bits that are chosen, and those that are named
        config = settings(ranges=ranges, bits="auto" if auto else f"^{first}$=3; ^{last}$=2", budget=1.0 * auto)
        variables = entered(model, shape, config, {first: 3, last: 2})
        integers = qat.integers(model, variables, config)
        for path, most in ((first, 3), (last, 1)):
            self.assertLessEqual(np.abs(integers[path].kernel).max(), most)
        pixels = np.round(images(shape) * 255).astype(np.uint8)
        found = qat.forward_codes(model, variables, data.to_float(pixels), config)
        expected = simulate.layer_outputs(model, integers, pixels)
        self.assertEqual(list(found), list(expected))
        for path, q in expected.items():
            if path == "gate":  # float32 rounds a product once, integers twice: ties differ, and what follows
                apart = np.abs(np.int32(found[path]) - q)
                self.assertLessEqual(apart.max(), 1)
                self.assertLess(np.mean(apart > 0), 0.005)
                break
            np.testing.assert_array_equal(found[path], q, path)

    def test_equals_the_integer_network_where_layers_are_wide(self):
        """Fails where XLA divides ranges by multiplying with a reciprocal: 3, 24 and 76 bytes of the layers differ."""
        shape, config = (16, 16, 3), settings()
        variables = entered(Wide(), shape, config)
        pixels = np.round(images(shape, 32, 1) * 255).astype(np.uint8)
        found = qat.forward_codes(Wide(), variables, data.to_float(pixels), config)
        for path, q in simulate.layer_outputs(Wide(), qat.integers(Wide(), variables, config), pixels).items():
            np.testing.assert_array_equal(found[path], q, path)

    def test_gradients_reach_every_value(self):
        model, shape = Mini(), (11, 9, 2)
        variables = entered(model, shape, settings(ranges="learned", bits="first=4; point=2"))
        forward = qat.make_forward(model, settings(ranges="learned", bits="first=4; point=2"), 10)

        def loss(params):
            logits, _ = forward(variables | {"params": params}, images(shape), jax.random.key(0))
            return (logits**2).sum()

        found = flatten_dict(jax.jit(jax.grad(loss))(variables["params"]), sep="/")
        self.assertIn("first/weight_log_scale", found)
        self.assertEqual([path for path, gradient in found.items() if not np.any(gradient)], [])

    def test_weights_become_narrow_step_by_step(self):
        config = settings(bits="first=2; logits=auto", budget=1.0, narrow=0.3)
        chosen = {"batch_stats": {"logits": {"qmax": jnp.float32(7)}}}
        for passed, first, logits in ((0, 127, 127), (0.4, 7, 127), (0.7, 3, 127), (1, 1, 7), (3, 1, 7)):
            found = qat._widths(Mini(), chosen, config, jnp.float32(passed))
            self.assertEqual([float(found[path].now) for path in ("first", "logits")], [first, logits], passed)
            self.assertEqual(found["point"], qat.Width(127, 127))

    def test_validation_has_the_last_width_from_the_beginning(self):
        forward = qat.make_forward(Small(), settings(bits="conv=2", narrow=0.4), 10)
        for key, qmax in ((None, 1), (jax.random.key(0), 127)):
            with absltest.mock.patch.object(qat, "run") as run:
                forward(dict(params={}, batch_stats=dict(steps=np.int32(0))), None, key)
            self.assertEqual(float(run.call_args.kwargs["widths"]["conv"].now), qmax)

    def test_the_scale_of_a_wider_grid(self):
        """Of 8 bits the largest weight's; of the others the learned one by LSQ's rule."""
        weights = Folded(jnp.float32([[4.0], [-2.0]]), jnp.zeros(1), False)
        variables = {"params": {"conv": {"weight_log_scale": jnp.log(jnp.float32([2.0]))}}}
        for now, scale in ((127, 4 / 127), (4, 1.0), (1, 2.0)):
            width = qat.Width(jnp.float32(now), 1)
            found = qat._weight_scale(variables, "conv", weights, jnp.float32(1), width)
            np.testing.assert_allclose(found, [scale], rtol=2**-8)

    def test_ranges_follow_extremes_until_frozen(self):
        config = settings(ema_decay=0.75, freeze=0.5)
        folded = {"conv": Folded(np.float32([1, -1]).reshape(1, 1, 1, 2), np.zeros(2, np.float32), False)}
        params, stats = qat.enter(folded, {"conv": (-2.0, 4.0)}, config)
        forward = jax.jit(qat.make_forward(Small(), config, 4))
        for low, high in ((-1.75, 3.25), (-1.5625, 2.6875), (-1.5625, 2.6875)):  # extremes -1 and 1; frozen after two
            _, stats = forward(dict(params=params, batch_stats=stats), jnp.ones((2, 4, 4, 1)), jax.random.key(0))
            np.testing.assert_allclose([stats["conv"]["low"], stats["conv"]["high"]], [low, high], rtol=0.01)


class OptimizerTest(absltest.TestCase):
    def test_scales_stop_at_freeze_and_pruned_weights_stay_zero(self):
        params = {"conv": {"kernel": jnp.float32([1, 0, 2]), "log_scale": jnp.float32(0)}}
        masks = {"conv/kernel": jnp.array([True, False, True])}
        optimizer = pruning.prune(qat.make_optimizer(optax.sgd(0.1, 0.9), settings(freeze=0.5), 10), {}, masks=masks)
        state, seen = optimizer.init(params), []
        for _ in range(10):
            updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
            params = optax.apply_updates(params, updates)
            seen.append(jax.tree.map(np.asarray, params["conv"]))
        self.assertLen({float(row["log_scale"]) for row in seen[:5]}, 5)
        self.assertLen({float(row["log_scale"]) for row in seen[4:]}, 1)
        self.assertLen({float(row["kernel"][0]) for row in seen}, 10)
        self.assertFalse(any(row["kernel"][1] for row in seen))


class RefusesTest(parameterized.TestCase):
    @parameterized.parameters(
        (dict(bits="conv=5"), "2, 3, 4, 8 or auto"),
        (dict(bits="auto"), "need a number of bytes that the network may cost"),
        (dict(bits="conv=4", budget=1e5), "no layer's bits are chosen by it"),
        (dict(bits="auto", budget=10.0, goal="macs"), "only bytes, ms"),
        (dict(bits="conv=2", narrow=0.6), "make narrow smaller"),
        (dict(bits="conv=2", narrow=0.5), "make narrow smaller"),
        (dict(bits="conv=2", narrow=1.0, freeze=1.0), "make narrow smaller"),
        (dict(ranges="other"), "ema, learned"),
        (dict(freeze=1.5), "freeze must be in"),
        (dict(freeze=-0.1), "freeze must be in"),
    )
    def test_fields(self, fields, pattern):
        with self.assertRaisesRegex(UserError, pattern):
            qat.validate(settings(**fields))

    def test_a_pattern_without_a_match_lists_the_layers(self):
        with self.assertRaisesRegex(UserError, "'none' matches no layer; there are conv, logits"):
            qat.weight_bits(["conv", "logits"], settings(bits="none=4"))

    @parameterized.parameters(np.nan, np.inf, -5.0)  # the last: the range is empty, its low end is about 0
    def test_a_broken_range_names_the_layer(self, high):
        variables = entered(Small(), (4, 4, 1), settings())
        variables["batch_stats"]["conv"]["high"] = jnp.float32(high)
        with self.assertRaisesRegex(UserError, "'conv' has no finite trained range"):
            qat.integers(Small(), variables, settings())

    @parameterized.parameters(
        ("log_scale", np.nan, "weights that are not finite|no finite trained range"),
        ("log_scale", 200.0, "no finite trained range"),  # finite, but no scale
        ("weight_log_scale", np.inf, "weights that are not finite"),
        ("weight_log_scale", 200.0, "no finite weight scale"),
    )
    def test_a_broken_learned_scale_names_the_layer(self, part, value, pattern):
        config = settings(ranges="learned", bits="conv=4")
        variables = entered(Small(), (4, 4, 1), config)
        scale = variables["params"]["conv"][part]
        variables["params"]["conv"][part] = jnp.full_like(scale, value)
        with self.assertRaisesRegex(UserError, f"'conv' has ({pattern})"):
            qat.integers(Small(), variables, config)

    @parameterized.parameters("kernel", "bias")
    def test_broken_weights_name_the_layer(self, part):
        variables = entered(Small(), (4, 4, 1), settings())
        values = variables["params"]["conv"][part]
        variables["params"]["conv"][part] = values.at[(0,) * values.ndim].set(np.inf)
        with self.assertRaisesRegex(UserError, "'conv' has weights that are not finite"):
            qat.integers(Small(), variables, settings())

    def test_quantize_must_be_the_last_stage(self):
        config = configs.base()
        config.stages = ("quantize", "dense")
        with self.assertRaisesRegex(UserError, "must be the last"):
            configs.validate(config)


if __name__ == "__main__":
    absltest.main()

"""Optimisers against their textbook steps in float64 NumPy, schedules against values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from atalaia import models, optimizers
from atalaia.errors import UserError

RATE, MOMENTUM, DECAY = 0.1, 0.8, 0.05


def _config(optimizer="sgd", **fields):
    rest = {"learning_rate": RATE, "lr_schedule": "cosine", "warmup": 0.2, "momentum": MOMENTUM, "weight_decay": DECAY}
    return ConfigDict({"optimizer": optimizer} | rest | fields)


def _values(seed):
    """Of a layer with BatchNorm: the kernel alone is decayed."""
    kernel, *vectors = np.split(np.random.default_rng(seed).normal(size=(5, 3)), [2, 3, 4])
    bias, scale, shift = (vector[0] for vector in vectors)
    return {"conv": {"kernel": kernel, "bias": bias, "norm": {"scale": scale, "bias": shift}}}


def _sgd(g, p, decay, state, step):
    """Sutskever et al., 2013, as in optax: the step is taken where the momentum is going."""
    g = g + decay * p
    trace = g + MOMENTUM * state.get("trace", 0)
    return g + MOMENTUM * trace, {"trace": trace}


def _adam(g, p, decay, state, step):
    """Kingma & Ba, 2015, algorithm 1, with L2 in the gradient."""
    g = g + decay * p
    m = MOMENTUM * state.get("m", 0) + (1 - MOMENTUM) * g
    v = 0.999 * state.get("v", 0) + 0.001 * g**2
    direction = m / (1 - MOMENTUM**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
    return direction, {"m": m, "v": v}


def _adamw(g, p, decay, state, step):
    """Loshchilov & Hutter, 2019, algorithm 2: the decay is apart from the moments."""
    direction, state = _adam(g, p, 0, state, step)
    return direction + decay * p, state


class OptimizerTest(parameterized.TestCase):
    @parameterized.parameters(("sgd", _sgd), ("adam", _adam), ("adamw", _adamw))
    def test_steps(self, name, rule):
        # Over 5 steps with a warm-up of one: 0, then half a cosine over the 4 that are left.
        rates = [0] + [RATE * (1 + np.cos(np.pi * i / 4)) / 2 for i in range(4)]
        optimizer = optimizers.create(_config(name), 5)
        expected, memory = _values(0), jax.tree.map(lambda _: {}, _values(0))
        decay = {"conv": {"kernel": DECAY, "bias": 0, "norm": {"scale": 0, "bias": 0}}}
        params = jax.tree.map(jnp.float32, expected)
        state, update = optimizer.init(params), jax.jit(optimizer.update)
        for step, rate in enumerate(rates, 1):
            results = jax.tree.map(lambda *xs, step=step: rule(*xs, step), _values(step), expected, decay, memory)
            directions, memory = (jax.tree.map(lambda _, r, i=i: r[i], expected, results) for i in (0, 1))
            expected = jax.tree.map(lambda p, d, rate=rate: p - rate * d, expected, directions)
            updates, state = update(jax.tree.map(jnp.float32, _values(step)), state, params)
            params = optax.apply_updates(params, updates)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), params, expected)

    def test_muon_orthogonalises_the_kernels_of_convolutions(self):
        """The first step against the singular vectors of the gradient; what is no such kernel moves as by SGD."""
        shapes = {"conv": (3, 3, 4, 6), "depthwise": (3, 3, 1, 6), "dense": (8, 5), "bias": (6,)}
        rng = np.random.default_rng(0)
        params, grads = ({n: {"kernel": jnp.float32(rng.normal(size=s))} for n, s in shapes.items()} for _ in range(2))
        fields = {"lr_schedule": "constant", "warmup": 0.0}

        def step(name):
            optimizer = optimizers.create(_config(name, **fields), 5)
            return jax.jit(optimizer.update)(grads, optimizer.init(params), params)[0]

        muon, sgd = step("muon"), step("sgd")
        direction = -muon["conv"]["kernel"] / RATE - DECAY / (1 - MOMENTUM) * params["conv"]["kernel"]
        u, _, vt = np.linalg.svd(np.reshape(grads["conv"]["kernel"], (36, 6)), full_matrices=False)
        rotated = u.T @ np.reshape(direction, (36, 6)) @ vt.T
        # Newton-Schulz with these coefficients brings singular values near 1, not to it.
        np.testing.assert_allclose(np.diag(rotated), 1, atol=0.35)
        np.testing.assert_allclose(rotated, np.diag(np.diag(rotated)), atol=1e-4)
        for name in ("depthwise", "dense", "bias"):
            np.testing.assert_allclose(muon[name]["kernel"], sgd[name]["kernel"], rtol=1e-6, err_msg=name)

    @parameterized.parameters("thesis", "resnet8")
    def test_kernels_alone_are_decayed(self, name):
        """In a whole network: kernels are what has more than one dimension, all else is biases and BatchNorm's."""
        params = jax.eval_shape(models.create(name, 10).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
        self.assertEqual(optimizers.kernels(params), jax.tree.map(lambda p: p.ndim > 1, params))


class AverageTest(absltest.TestCase):
    def test_by_hand(self):
        """Steps of -1 from 10; the first averages keep 1/10 and 2/11, later ones never more than 1/4."""
        optimizer = optimizers.averaged(optax.sgd(1.0), 0.25)
        params, average = {"w": jnp.float32([10.0])}, 10.0
        state = optimizer.init(params)
        for step, keep in enumerate((1 / 10, 2 / 11, 3 / 12, 1 / 4, 1 / 4), 1):
            updates, state = optimizer.update({"w": jnp.float32([1.0])}, state, params)
            params = optax.apply_updates(params, updates)
            average = keep * average + (1 - keep) * (10 - step)
            self.assertAlmostEqual(float(state.average["w"][0]), average, places=5)
        self.assertEqual(float(params["w"][0]), 5)


class OnlyTest(absltest.TestCase):
    def test_others_neither_move_nor_have_a_state(self):
        params = {name: jax.tree.map(jnp.float32, _values(i)) for i, name in enumerate(("stem", "block", "logits"))}
        grads = jax.tree.map(jnp.ones_like, params)
        whole = optimizers.create(_config("adam"), 5)
        some = optimizers.only(whole, params, "block.*kernel|logits")
        state, expected_state = some.init(params), whole.init(params)
        moments = 2 * (2 * 3 + (2 * 3 + 3 * 3))  # of one kernel, and of a whole layer
        sizes = [leaf.size for leaf in jax.tree.leaves(state)]
        self.assertEqual(sum(size for size in sizes if size > 1), moments)
        for _ in range(3):
            updates, state = jax.jit(some.update)(grads, state, params)
            expected, expected_state = whole.update(grads, expected_state, params)
        trained = ("logits", "block/conv/kernel")
        for path, update in jax.tree.leaves_with_path(updates):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            same = expected[path[0].key]
            for key in path[1:]:
                same = same[key.key]
            np.testing.assert_allclose(update, same if name.startswith(trained) else 0, rtol=1e-6, err_msg=name)
            self.assertTrue(np.any(same), name)

    def test_a_pattern_that_matches_nothing_lists_the_parameters(self):
        with self.assertRaisesRegex(UserError, "'stage9' matches no parameter; there are conv/kernel, conv/bias"):
            optimizers.only(optax.identity(), _values(0), "stage9")


class LearningRateTest(absltest.TestCase):
    def _check(self, values, steps=100, **fields):
        schedule = optimizers.learning_rate(_config(**fields), steps)
        for step, expected in values.items():
            self.assertAlmostEqual(float(schedule(step)), expected, 6, f"step {step}")

    def test_warm_up_to_the_peak_then_cosine_to_zero(self):
        self._check({0: 0, 10: 0.05, 20: 0.1, 40: 0.1 * (2 + np.sqrt(2)) / 4, 60: 0.05, 100: 0})

    def test_constant_after_the_warm_up(self):
        self._check({0: 0, 5: 0.025, 20: 0.1, 60: 0.1, 99: 0.1}, lr_schedule="constant")

    def test_without_warm_up_it_begins_at_the_peak(self):
        self._check({0: 0.1, 50: 0.05, 100: 0}, warmup=0.0)

    def test_a_stage_of_one_step_moves(self):
        self._check({0: 0.1}, steps=1)


if __name__ == "__main__":
    absltest.main()

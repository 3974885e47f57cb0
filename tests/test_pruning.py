"""Masks, schedules and the wrapper: zeros after every step, and the wrapped optimiser's own numbers everywhere else."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from atalaia import optimizers, pruning
from atalaia.errors import UserError

SPARSITY = {"conv/kernel": 0.75, "dense/kernel": 0.5}
STEPS = 8


def _params(seed=0):
    """Two kernels of 72 and 30 weights, and biases that are never pruned."""
    random = np.random.default_rng(seed)
    shapes = {"conv": {"kernel": (3, 3, 2, 4), "bias": (4,)}, "dense": {"kernel": (6, 5), "bias": (5,)}}
    return jax.tree.map(lambda s: jnp.float32(random.normal(size=s)), shapes, is_leaf=lambda s: isinstance(s, tuple))


def _schedule(name, steps=STEPS, **fields):
    config = ConfigDict({"begin": 0.0, "end": 1.0, "every": 1, "initial_sparsity": 0.0} | fields)
    return pruning.SCHEDULES[name](config, steps)


def _optimizer(name):
    fields = {"optimizer": name, "learning_rate": 0.05, "lr_schedule": "constant", "warmup": 0.0}
    return optimizers.create(ConfigDict(fields | {"momentum": 0.9, "weight_decay": 0.05}), STEPS)


def _fields(**fields):
    return ConfigDict({"pattern": "kernel$", "sparsity": 0.5, "layers": "", "scope": "uniform"} | fields)


def _steps(optimizer, params, steps=STEPS, seed=1):
    """(params, state) after each step, with other random gradients every step."""

    @jax.jit
    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for i in range(steps):
        params, state = step(params, state, _params(seed + i))
        yield params, state


def _last(*args, **kwargs):
    return list(_steps(*args, **kwargs))[-1]


def _pruned(masks):
    return {path: int(np.sum(~np.asarray(mask))) for path, mask in masks.items()}


def _flat(tree):
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


@functools.cache
def _trajectory(name="sgd", schedule="cubic", **fields):
    """Pruning to SPARSITY: (params, state) after each step."""
    return list(_steps(pruning.prune(_optimizer(name), SPARSITY, _schedule(schedule, **fields)), _params()))


def _masks(params, sparsity, shared=frozenset(), masks=None):
    """The masks chosen at once from these weights."""
    optimizer = pruning.prune(optax.sgd(0.0), sparsity, _schedule("one_shot"), shared, masks)
    return optimizer.update(params, optimizer.init(params), params)[1].masks


def _kept(weights, sparsity, masks=None):
    """Which weights of a single kernel are left."""
    masks = _masks({"kernel": jnp.float32(weights)[:, None]}, {"kernel": sparsity}, masks=masks)
    return np.ravel(masks["kernel"]).tolist()


class WrapperTest(parameterized.TestCase):
    @parameterized.parameters("sgd", "adam", "adamw", "muon")
    def test_pruned_weights_are_zero_after_every_step(self, name):
        for params, state in _trajectory(name):
            for path, mask in state.masks.items():
                np.testing.assert_array_equal(_flat(params)[path] == 0, ~mask)
        self.assertEqual(_pruned(state.masks), {"conv/kernel": 54, "dense/kernel": 15})

    @parameterized.parameters("sgd", "adam", "adamw")
    def test_momentum_never_grows_on_a_pruned_weight(self, name):
        momentum = "trace" if name == "sgd" else "mu"
        before = _flat(jax.tree.map(jnp.zeros_like, _params()))
        for _, state in _trajectory(name):
            after = _flat(optax.tree.get(state.inner, momentum))
            for path, mask in state.masks.items():  # the weights pruned in this very step are among them
                self.assertTrue(np.all(np.abs(after[path]) <= np.abs(before[path]), where=~mask), path)
            before = after

    @parameterized.parameters("sgd", "adam", "adamw")
    def test_without_pruning_it_is_the_optimiser_itself(self, name):
        wrapped = _steps(pruning.prune(_optimizer(name), {}, _schedule("cubic")), _params())
        for (ours, state), (expected, inner) in zip(wrapped, _steps(_optimizer(name), _params()), strict=True):
            jax.tree.map(np.testing.assert_array_equal, (ours, state.inner), (expected, inner))

    @parameterized.parameters("sgd", "adam", "adamw")
    def test_is_the_optimiser_on_masked_gradients(self, name):
        """From weights that are zero already, the wrapper's steps are the optimiser's on masked gradients."""
        masks = {"conv/kernel": _params()["conv"]["kernel"] > 0}
        params = pruning.apply_masks(_params(), masks)
        inner = _optimizer(name)
        masking = optax.stateless(lambda grads, _: pruning.apply_masks(grads, masks))
        expected = _steps(optax.chain(masking, inner), params)
        for (ours, _), (theirs, _) in zip(_steps(pruning.prune(inner, {}, masks=masks), params), expected, strict=True):
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), ours, theirs)

    def test_gradients_of_pruned_weights_count_for_nothing(self):
        """The inner optimiser never sees them: an infinite one would spoil its global norm."""
        masks = {"conv/kernel": _params()["conv"]["kernel"] > 0}
        params = pruning.apply_masks(_params(), masks)
        good = pruning.apply_masks(_params(1), masks)
        bad = jax.tree.map(lambda grad: jnp.where(grad == 0, jnp.inf, grad), good)
        optimizer = pruning.prune(optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), {}, masks=masks)
        results = [optimizer.update(grads, optimizer.init(params), params)[0] for grads in (good, bad)]
        jax.tree.map(np.testing.assert_array_equal, *results)

    def test_donated_inside_a_chain(self):
        wrapped = pruning.prune(_optimizer("sgd"), SPARSITY, _schedule("cubic"))
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), wrapped)

        @functools.partial(jax.jit, donate_argnums=(0, 1))
        def step(params, state, grads):
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        params = _params()
        state = optimizer.init(params)
        expected, _ = _last(optimizer, _params(), 3)
        for i in range(3):
            params, state = step(params, state, _params(1 + i))
        jax.tree.map(np.testing.assert_array_equal, params, expected)
        np.testing.assert_array_equal(params["conv"]["kernel"] == 0, ~state[1].masks["conv/kernel"])
        self.assertGreater(_pruned(state[1].masks)["conv/kernel"], 0)

    def test_state_goes_through_its_leaves(self):
        optimizer = pruning.prune(_optimizer("adam"), SPARSITY, _schedule("cubic"))
        params, state = _last(optimizer, _params(), 3)
        leaves, structure = jax.tree.flatten(state)
        copy = jax.tree.unflatten(structure, [jnp.asarray(np.asarray(leaf)) for leaf in leaves])
        update = jax.jit(optimizer.update)
        results = [update(_params(9), s, params) for s in (state, copy)]
        jax.tree.map(np.testing.assert_array_equal, *results)

    def test_needs_the_parameters(self):
        optimizer = pruning.prune(optax.sgd(0.1), SPARSITY)
        with self.assertRaisesRegex(ValueError, "needs the parameters"):
            optimizer.update(_params(), optimizer.init(_params()))


class ChoiceTest(parameterized.TestCase):
    @parameterized.parameters((10, 0.5, 5), (7, 0.5, 4), (9, 0.5, 4), (10, 0.04, 0), (10, 0.06, 1), (30, 0.9, 27))
    def test_exactly_the_rounded_count_goes(self, n, sparsity, count):
        """round(sparsity * n), halves to even as in Python: 3.5 to 4 and 4.5 to 4."""
        weights = 1 + np.random.default_rng(n).permutation(n)
        self.assertEqual(_kept(weights, sparsity), [weight > count for weight in weights])

    def test_sign_does_not_matter(self):
        self.assertEqual(_kept([-4, 1, -2, 3], 0.5), [True, False, False, True])

    def test_among_equals_the_first_go(self):
        self.assertEqual(_kept([1, -1, 1, 1, 1], 0.4), [False, False, True, True, True])

    def test_a_live_weight_of_zero_does_not_make_it_prune_more(self):
        """Two of four are pruned already; the first became zero in training, but is one of the two to keep."""
        masks = {"kernel": jnp.array([[True], [True], [False], [False]])}
        self.assertEqual(_kept([0, 2, 0, 0], 0.5, masks=masks), [True, True, False, False])

    def test_uniform_takes_the_same_part_of_each_layer(self):
        params = {"a": {"kernel": jnp.arange(1.0, 9).reshape(4, 2)}, "b": {"kernel": jnp.arange(100.0, 104)[None]}}
        masks = _masks(params, *pruning.targets(params, _fields()))
        self.assertEqual(_pruned(masks), {"a/kernel": 4, "b/kernel": 2})

    @parameterized.parameters((0.5, 0, 25), (0.75, 8, 30))
    def test_global_ranks_all_weights_together(self, sparsity, of_big, of_small):
        """Each of 20 weights in `big` is larger than any of 30 in `small`, which therefore go first."""
        random = np.random.default_rng(0)
        params = {"big": {"kernel": random.uniform(2, 3, (5, 4))}, "small": {"kernel": random.uniform(-1, 1, (6, 5))}}
        params = jax.tree.map(jnp.float32, params)
        masks = _masks(params, *pruning.targets(params, _fields(scope="global", sparsity=sparsity)))
        self.assertEqual(_pruned(masks), {"big/kernel": of_big, "small/kernel": of_small})
        magnitudes = {path: np.abs(kernel) for path, kernel in _flat(params).items()}
        smallest_kept = np.sort(np.concatenate([m.ravel() for m in magnitudes.values()]))[of_big + of_small]
        for path, mask in masks.items():
            np.testing.assert_array_equal(mask, magnitudes[path] >= smallest_kept)

    def test_a_layer_with_its_own_rule_is_not_ranked_with_the_others(self):
        sparsity, shared = pruning.targets(_params(), _fields(scope="global", layers="conv=0.25"))
        self.assertEqual((sparsity, shared), ({"conv/kernel": 0.25, "dense/kernel": 0.5}, {"dense/kernel"}))
        self.assertEqual(_pruned(_masks(_params(), sparsity, shared)), {"conv/kernel": 18, "dense/kernel": 15})


class TargetsTest(parameterized.TestCase):
    @parameterized.parameters(
        ({}, {"conv/kernel": 0.5, "dense/kernel": 0.5}),
        ({"layers": "conv=0"}, {"dense/kernel": 0.5}),
        ({"layers": " conv=0.9 ; dense/kernel=0.95; "}, {"conv/kernel": 0.9, "dense/kernel": 0.95}),
        ({"layers": "conv=0.1; kernel=0.2"}, {"conv/kernel": 0.1, "dense/kernel": 0.2}),  # the first that matches
        ({"pattern": "^dense"}, {"dense/kernel": 0.5}),
        ({"sparsity": 0.0}, {}),
    )
    def test_sparsity_by_path(self, fields, expected):
        self.assertEqual(pruning.targets(_params(), _fields(**fields)), (expected, frozenset()))

    @parameterized.parameters(
        ({"pattern": "conv9"},), ({"layers": "conv=0; conv9=0.3"},), ({"pattern": "conv9$|bias"},)
    )
    def test_a_pattern_without_a_parameter_lists_them(self, fields):
        """Biases are none of them: they are never pruned."""
        with self.assertRaisesRegex(UserError, "'conv9.*' matches no parameter; there are conv/kernel, dense/kernel$"):
            pruning.targets(_params(), _fields(**fields))


class ScheduleTest(parameterized.TestCase):
    def test_cubic_by_hand(self):
        """From 0.1 at step 2 to 0.9 at step 8: half-way 0.9 - 0.8 / 2^3, after a third 0.9 - 0.8 * (2/3)^3."""
        schedule = _schedule("cubic", 10, begin=0.2, end=0.8, initial_sparsity=0.1)
        for count, expected in ((0, 0.1), (2, 0.1), (4, 0.9 - 0.8 * 8 / 27), (5, 0.8), (8, 0.9), (9, 0.9)):
            self.assertAlmostEqual(float(schedule.sparsity(jnp.int32(count), 0.9)), expected, 6)

    @parameterized.parameters((3, [2, 5, 8]), (4, [2, 6, 8]), (100, [2, 8]))
    def test_masks_change_at_begin_every_so_often_and_at_the_end(self, every, expected):
        for name in ("cubic", "constant"):
            schedule = _schedule(name, 10, begin=0.2, end=0.8, every=every)
            self.assertEqual([i for i in range(10) if schedule.due(jnp.int32(i))], expected)

    def test_cubic_counts_follow_the_formula_through_a_whole_stage(self):
        zeros = [int(np.sum(params["conv"]["kernel"] == 0)) for params, _ in _trajectory()]
        last = STEPS - 1
        self.assertEqual(zeros, [round(72 * 0.75 * (1 - (1 - i / last) ** 3)) for i in range(STEPS)])

    @parameterized.parameters("one_shot", "constant", "cubic")
    def test_the_sparsity_is_reached_however_short_the_stage(self, name):
        """Also where it begins and ends in one step, and where that is the last."""
        for steps, begin, end in itertools.product((1, 2, 12), (0.0, 0.5, 1.0), (0.5, 1.0)):
            if begin <= end:
                schedule, counts = _schedule(name, steps, begin=begin, end=end, every=5), jnp.arange(steps)
                sparsity = np.broadcast_to(schedule.sparsity(counts, 0.9), steps)[schedule.due(counts)]
                self.assertAlmostEqual(sparsity[-1], 0.9, 6, f"{steps} steps, from {begin} to {end}")

    def test_one_shot_prunes_once_and_then_keeps_its_masks(self):
        masks = [state.masks for _, state in _trajectory(schedule="one_shot", begin=0.5)]
        self.assertEqual([_pruned(m)["conv/kernel"] for m in masks], [0] * 4 + [54] * 4)
        jax.tree.map(np.testing.assert_array_equal, masks[4], masks[-1])

    def test_constant_has_the_whole_sparsity_from_its_begin_on(self):
        counts = [_pruned(state.masks)["conv/kernel"] for _, state in _trajectory(schedule="constant", begin=0.5)]
        self.assertEqual(counts, [0] * 4 + [54] * 4)

    def test_what_is_pruned_stays_pruned(self):
        masks = [state.masks["conv/kernel"] for _, state in _trajectory()]
        for before, after in itertools.pairwise(masks):
            self.assertTrue(np.all(before | ~after))

    def test_the_next_stage_keeps_frozen_masks(self):
        params, state = _trajectory()[-1]
        masks = pruning.masks_of(state)
        later, state = _last(
            pruning.prune(_optimizer("adam"), SPARSITY, pruning.FROZEN, masks=masks), params, 2, seed=50
        )
        jax.tree.map(np.testing.assert_array_equal, pruning.masks_of(state), masks)
        np.testing.assert_array_equal(later["conv"]["kernel"] == 0, ~masks["conv/kernel"])

    def test_the_next_stage_can_prune_further_but_not_less(self):
        masks = _masks(_params(), SPARSITY)
        params = pruning.apply_masks(_params(), masks)
        more = _masks(params, {"conv/kernel": 0.875, "dense/kernel": 0.1}, masks=masks)
        self.assertEqual(_pruned(more), {"conv/kernel": 63, "dense/kernel": 15})
        self.assertTrue(np.all(masks["conv/kernel"] | ~more["conv/kernel"]))

    def test_no_masks_without_pruning(self):
        self.assertIsNone(pruning.masks_of(optax.sgd(0.1).init(_params())))


class ReportTest(absltest.TestCase):
    def test_counts_zeros_in_the_weights_themselves(self):
        """Six of ten weights are zero; what the masks hold is not looked at."""
        params = {"a": {"kernel": jnp.array([[0.0, 1], [0, 0], [0, 0]])}, "b": {"kernel": jnp.array([[0.0, 3, 4, 5]])}}
        masks = jax.tree.map(
            lambda x: jnp.ones_like(x, bool), {"a/kernel": params["a"]["kernel"], "b/kernel": params["b"]["kernel"]}
        )
        reached, table = pruning.report(params, masks)
        self.assertEqual(list(reached), ["a/kernel", "b/kernel", "all pruned parameters"])
        np.testing.assert_allclose(list(reached.values()), [5 / 6, 1 / 4, 6 / 10])
        cells = [line.split() for line in table.splitlines()]
        self.assertEqual(cells[1:3], [["a/kernel", "6", "5", "0.8333"], ["b/kernel", "4", "1", "0.2500"]])
        self.assertEqual(cells[3][-3:], ["10", "6", "0.6000"])


if __name__ == "__main__":
    absltest.main()

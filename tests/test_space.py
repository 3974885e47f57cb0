"""Spaces and proposals: values by hand, purity, limits, and better than chance on surfaces that are known."""

import runpy
import statistics
import tempfile
from collections import Counter
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from atalaia import layers, pruning, runs
from atalaia import space as spaces
from atalaia.errors import UserError
from atalaia.space import Result, choice, integers, uniform

ROOT = Path(__file__).parent.parent
GRID = {"a": choice(0.01, 0.1, 0.25, 0.5), "t": choice(2, 5, 7, 10, 12, 15, 17, 20)}
LINE = {"x": uniform(0.0, 1.0)}


def surface(seed: int) -> dict[str, float]:
    """A smooth hill over the grid with noise of a tenth of its variance, by the points' texts."""
    rng = np.random.default_rng(seed)
    a, t = np.linspace(0, 1, 4)[:, None], np.linspace(0, 1, 8)[None]
    (top_a, top_t), (wide_a, wide_t) = rng.uniform(-0.2, 1.2, 2), rng.uniform(0.3, 1.2, 2)
    hill = -(((a - top_a) / wide_a) ** 2) - ((t - top_t) / wide_t) ** 2
    values = (hill - hill.mean()) / hill.std() + rng.normal(0, 0.3, hill.shape)
    texts = map(spaces.text, spaces.every_point(GRID))
    return dict(zip(texts, values.ravel().tolist(), strict=True))


def searched(space, count, objective, seed=0) -> list[Result]:
    results = []
    for _ in range(count):
        point = spaces.propose(space, seed, results)
        value, *over = np.atleast_1d(objective(**point)).tolist()
        results.append(Result(point, None if np.isnan(value) else value, tuple(over)))
    return results


class SpecTest(parameterized.TestCase):
    @parameterized.parameters(
        (choice("a", "b", "c"), ["a", "b", "c"]),
        (integers(1, 4), [1, 2, 3, 4]),
        (choice(False, True), [False, True]),
    )
    def test_evenly_spread_positions_give_every_value_as_often(self, spec, values):
        found = Counter(spaces.value_at(spec, (i + 0.5) / 1200) for i in range(1200))
        self.assertEqual(found, dict.fromkeys(values, 1200 // len(values)))

    def test_log_ranges_give_each_decade_as_often(self):
        values = np.array([spaces.value_at(uniform(1e-4, 1e-1, log=True), (i + 0.5) / 300) for i in range(300)])
        self.assertEqual([np.sum((values > 10.0**-n) & (values < 10.0 ** (1 - n))) for n in (4, 3, 2)], [100] * 3)
        found = [spaces.value_at(integers(1, 100, log=True), u) for u in (0.0, 0.5, 1.0)]
        self.assertEqual(found, [1, 7, 100])  # sqrt(0.5 * 100.5) = 7.09

    def test_continuous_values_have_four_digits_within_the_range(self):
        self.assertEqual(spaces.value_at(uniform(0, 1), 1 / 3), 0.3333)
        self.assertEqual(spaces.value_at(uniform(0.12344, 0.5), 0.0), 0.12344)

    @parameterized.parameters(
        (choice("a", 2, (3, 4)),), (integers(-2, 5),), (integers(1, 300, True),), (uniform(1e-3, 2, True),)
    )
    def test_position_is_the_inverse_of_value(self, spec):
        for u in np.linspace(0, 1, 23):
            value = spaces.value_at(spec, u)
            self.assertEqual(spaces.value_at(spec, spaces.position_of(spec, value)), value)

    def test_coordinates(self):
        """Ordered choices by rank, whatever their order in the file; two unrelated values are 1 apart."""
        space = {"n": choice(0.5, 0.01, 0.1), "o": choice("sgd", "adam", "x"), "i": integers(0, 9)}
        one, other = (np.array(spaces.coordinates(space, dict(n=n, o=o, i=4))) for n, o in ((0.1, "adam"), (0.5, "x")))
        self.assertEqual((one[0], other[0], one[4]), (0.5, 1.0, 0.45))
        self.assertAlmostEqual(np.linalg.norm(one[1:4] - other[1:4]), 1.0)

    def test_size_and_every_point(self):
        self.assertEqual(spaces.size(GRID), 32)
        self.assertEqual(spaces.size(GRID | LINE), np.inf)
        points = list(spaces.every_point({"b": choice(True, False), "i": integers(1, 2)}))
        self.assertEqual(points, [dict(b=b, i=i) for b in (True, False) for i in (1, 2)])


class ProposeTest(absltest.TestCase):
    def setUp(self):
        self.enter_context(mock.patch.object(spaces, "FINITE", 512))  # fewer candidates, less time

    def test_a_pure_function_of_what_is_known(self):
        values = surface(0)
        results = searched(GRID, 6, lambda **p: values[spaces.text(p)], seed=5)
        np.random.seed(0)  # a global seed has no say
        again = searched(GRID, 6, lambda **p: values[spaces.text(p)], seed=5)
        self.assertEqual(results, again)
        others = [searched(GRID, 2, lambda **p: values[spaces.text(p)], seed) for seed in range(8)]
        self.assertGreater(len({spaces.text([r.point for r in found]) for found in others}), 4)

    def test_a_finite_space_is_tried_whole_and_nothing_twice(self):
        space = {"a": choice(1, 2, 3), "b": choice("x", "y"), "i": integers(0, 2)}
        results = searched(space, 18, lambda a, b, i: a - i + (b == "x"))
        self.assertLen({spaces.text(r.point) for r in results}, 18)
        with self.assertRaisesRegex(UserError, "every one of the 18 points"):
            spaces.propose(space, 0, results)

    def test_finds_the_best_tenth_sooner_than_chance(self):
        """Without replacement, chance takes (32 + 1) / (3 + 1) = 8.25 trials to one of the best 3 of 32."""
        needed = []
        for seed in range(30):
            values, results = surface(seed), []
            target = sorted(values.values())[-3]
            while not results or results[-1].value < target:
                point = spaces.propose(GRID, seed, results)
                results.append(Result(point, values[spaces.text(point)]))
            needed.append(len(results))
        self.assertLess(statistics.mean(needed), 0.75 * 8.25)

    def test_converges_in_a_mixed_space(self):
        space = {"rate": uniform(1e-4, 1.0, log=True), "o": choice("good", "bad", "worse"), "n": integers(1, 64)}

        def objective(rate, o, n):
            return -((np.log10(rate) + 2) ** 2) - abs(n - 40) / 20 - ["good", "bad", "worse"].index(o)

        best = max(searched(space, 25, objective), key=lambda r: r.value)
        self.assertEqual(best.point["o"], "good")
        self.assertGreater(best.value, -0.3)  # at most half a decade off, or 6 of n

    def test_pending_points_are_kept_away_from(self):
        results = [Result(dict(x=x), 1 - (x - 0.6) ** 2) for x in (0.1, 0.4, 0.9)]
        first = spaces.propose(LINE, 0, results)
        second = spaces.propose(LINE, 0, results, [first])
        third = spaces.propose(LINE, 0, results, [first, second])
        gaps = np.diff(sorted(p["x"] for p in (first, second, third)))
        self.assertGreater(gaps.min(), 0.02)

    def test_limits_are_met_where_the_metric_is_best(self):
        """The higher x the better, but it costs exp(x), which may be at most exp(0.6)."""
        results = searched(LINE, 12, lambda x: (x, x - 0.6))
        allowed = [r.point["x"] for r in results if r.over[0] <= 0]
        self.assertBetween(max(allowed), 0.57, 0.6)
        self.assertLess(statistics.median(r.point["x"] for r in results[6:]), 0.65)

    def test_two_limits_that_no_first_trial_meets_are_looked_for(self):
        results = [Result(dict(x=x), x, (x - 0.2, 0.3 * x - 0.03)) for x in (0.9, 0.7, 0.5, 0.4)]
        self.assertLess(spaces.propose(LINE, 0, results)["x"], 0.2)

    def test_a_point_that_diverged_is_the_worst(self):
        results = searched(LINE, 14, lambda x: np.nan if x > 0.5 else x)
        self.assertGreater(max(r.value for r in results if r.value is not None), 0.4)
        self.assertLess(sum(r.value is None for r in results[3:]), 7)

    def test_before_anything_is_known_points_fill_the_space(self):
        """Also where all that is known is that training diverged, and while all else is pending."""
        points = []
        for _ in range(6):
            points.append(spaces.propose(GRID, 3, [Result(p, None) for p in points[:2]], points[2:]))
        self.assertLen({spaces.text(p) for p in points}, 6)
        self.assertGreater(len({p["a"] for p in points}), 2)


class LoadTest(parameterized.TestCase):
    def _load(self, text):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "space.py"
            path.write_text(f"from atalaia.space import choice, integers, uniform\n{text}")
            return spaces.load(str(path))

    def test_the_thesiss_space(self):
        space = spaces.load(str(ROOT / "configs/search_kd.py"))
        self.assertEqual(space["distillation.alpha"].values, (0.01, 0.1, 0.25, 0.5))
        self.assertEqual(space["distillation.temperature"].values, (2, 5, 7, 10, 12, 15, 17, 20))

    def test_every_network_of_the_space_of_faces_fits_its_recipe(self):
        space = spaces.load(str(ROOT / "configs/search_faces.py"))
        self.assertEqual(set(space), {"model", "prune.sparsity"})
        found = runpy.run_path(str(ROOT / "examples/detectors.py"))
        self.assertEqual({name.partition(":")[2] for name in space["model"].values}, set(found["NAMES"]))
        macs = {}
        for name in ("w24_d2", "w48_d6", "two_w48_d6"):
            model = found[name](1)
            variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 120, 160, 3)))
            pruning.targets(variables["params"], runs.check(str(ROOT / "configs/faces.py"), {}).prune)
            macs[name] = sum(row["macs"] for row in layers.summary(model, variables, (120, 160, 3))[0])
        self.assertLess(macs["w24_d2"], macs["w48_d6"])
        self.assertLess(macs["w48_d6"], macs["two_w48_d6"])

    @parameterized.parameters(
        ("1/0", "gives no space: ZeroDivisionError"),
        ("def get_spaces(): pass", "KeyError: 'get_space'"),
        ("def get_space(): return {}", r"must return \{field"),
        ("def get_space(): return {'seed': (1, 2)}", r"seed is \(1, 2\), but choice"),
        ("def get_space(): return {'seed': choice(1)}", "seed has only the value 1: give more"),
        ("def get_space(): return {'seed': choice(1, 2, 1)}", "seed: a value stands twice"),
        ("def get_space(): return {'dense.momentum': choice(1, 1.0)}", "momentum: a value stands twice"),
        ("def get_space(): return {'seed': choice()}", "a choice needs values"),
        ("def get_space(): return {'seed': integers(3, 3)}", "seed: the range from 3 to 3 is empty"),
        ("def get_space(): return {'seed': integers(1.5, 3)}", "range of whole numbers cannot end at 1.5"),
        ("def get_space(): return {'seed': uniform('1', 3)}", "range of numbers cannot end at '1'"),
        ("def get_space(): return {'seed': uniform(1, float('inf'))}", "is empty or not finite"),
        ("def get_space(): return {'seed': uniform(1000.1, 1000.4)}", "there is one value of four digits"),
        ("def get_space(): return {'seed': uniform(0, 1, log=True)}", "log range must begin above 0, not at 0"),
    )
    def test_refuses(self, text, pattern):
        with self.assertRaisesRegex(UserError, pattern):
            self._load(text)

    def test_refuses_a_missing_file(self):
        with self.assertRaisesRegex(UserError, "no space file nope.py"):
            spaces.load("nope.py")


if __name__ == "__main__":
    absltest.main()

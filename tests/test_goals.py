"""Two goals: the front, its area and the weights by hand, and a search for it that goes on after kills."""

import contextlib
import io
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from atalaia import goals, search
from atalaia.errors import UserError
from atalaia.space import Result, choice
from atalaia.trials import Search

SPACE = {"width": choice(*range(1, 9)), "rate": choice(0, 1, 2)}


class FrontTest(parameterized.TestCase):
    def test_by_hand(self):
        """(value, cost): trial 3 costs as much as 0 and is better, 1 is dearer and worse; 4 equals 2 but is later."""
        values, costs = [0.5, 0.6, 0.9, 0.7, 0.9, 0.1], [10, 20, 30, 10, 30, 5]
        self.assertEqual(goals.front(values, costs), [5, 3, 2])

    def test_no_one_of_the_front_is_beaten_and_everyone_else_is(self):
        draw = np.random.default_rng(0)
        values, costs = draw.integers(0, 6, 40).tolist(), draw.integers(1, 6, 40).tolist()
        found = goals.front(values, costs)

        def beaten(i):
            return any(
                values[j] >= values[i] and costs[j] <= costs[i] and (values[j], costs[j]) != (values[i], costs[i])
                for j in range(40)
            )

        points = {(values[i], costs[i]) for i in found}
        self.assertEqual(points, {(values[i], costs[i]) for i in range(40) if not beaten(i)})
        self.assertLen(points, len(found))

    def test_area_by_hand_and_by_counting(self):
        self.assertEqual(goals.hypervolume(np.array([[0.0, 0.0]])), 1.0)
        self.assertAlmostEqual(goals.hypervolume(np.array([[0.5, 0.0], [0.0, 0.5], [0.6, 0.6]])), 0.75)
        both = np.random.default_rng(1).random((9, 2))
        grid = (np.arange(200) + 0.5) / 200
        covered = np.zeros((200, 200), bool)
        for x, y in both:
            covered |= (grid[:, None] >= x) & (grid >= y)
        self.assertAlmostEqual(goals.hypervolume(both), covered.mean(), delta=0.01)


class WeighedTest(parameterized.TestCase):
    def test_both_goals_from_best_to_worst(self):
        np.testing.assert_allclose(goals.losses([0.2, 0.6, 1.0], [1, 10, 100]), [[1, 0], [0.5, 0.5], [0, 1]])
        np.testing.assert_allclose(goals.losses([0.3, 0.3], [5, 5]), np.zeros((2, 2)))

    def test_by_hand(self):
        """Weight 0.5: losses (1, 0), (0, 1) and (0.5, 0.5) become maxima 0.5, 0.5 and 0.25, sums 0.5 each."""
        results = [Result({}, 0.0), Result({}, 1.0), Result({}, 0.5), Result({}, None), Result({}, 0.9)]
        costs = [1.0, 100.0, 10.0, 7.0, None]
        with mock.patch.object(np.random, "default_rng") as rng:
            rng.return_value.integers.return_value = 5
            found = [r.value for r in goals.weighed(results, costs, 0)]
        np.testing.assert_allclose(found[:3], [-0.525, -0.525, -0.275])
        self.assertEqual(found[3:], [None, None])

    def test_weights_are_of_the_trial_and_reach_both_ends(self):
        def order(n, seed=0):
            results = [Result({}, float(i)) for i in range(n)]  # the better, the dearer
            found = goals.weighed(results, [float(i + 1) for i in range(n)], seed)
            self.assertEqual(found, goals.weighed(results, [float(i + 1) for i in range(n)], seed))
            return int(np.argmax([r.value for r in found])) / (n - 1)

        best = [order(n) for n in range(5, 60)]
        self.assertEqual((min(best), max(best)), (0.0, 1.0))
        self.assertGreater(len({round(b, 1) for b in best}), 4)

    @parameterized.parameters(["val_score"], ["flash", "val_score"], ["val_score", "bytes"], ["a", "ms", "arena"])
    def test_refuses(self, *words):
        with self.assertRaisesRegex(UserError, "--goals=.*: give a metric and a cost, one of flash, arena, ms"):
            goals.parse(words)
        self.assertEqual(goals.parse(["val_loss", "ms"]), ("val_loss", "ms"))
        self.assertIsNone(goals.parse([]))
        with self.assertRaisesRegex(UserError, "--goals=val_loss,ms names a metric already: leave out --metric"):
            goals.parse(["val_loss", "ms"], alone=False)


class SearchTest(absltest.TestCase):
    def test_a_search_for_a_front_goes_on_as_it_would_have(self):
        folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        asked = Search("x.py", SPACE, cost="flash")

        def objective(point, trial, stop):
            value = 1 - 1 / point["width"] - 0.1 * point["rate"]
            return dict(value=value, seconds=1.0, figures=dict(bytes=1000 * point["width"]))

        self.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self.enter_context(contextlib.redirect_stderr(io.StringIO()))
        with mock.patch.object(search, "picture"):
            search.run(asked, folder / "whole", 5, 2, objective)
        whole = search.run(asked, folder / "whole", 6, 2, objective)  # with one picture: they take long
        with mock.patch.object(search, "picture"):
            for trials in (4, 6):
                rows = search.run(asked, folder / "parts", trials, 2, objective)
        self.assertEqual(rows, whole)
        self.assertEqual(search.load(folder / "parts", SPACE), (asked, whole))
        best = search.front(asked, rows)
        sizes = [row["figures"]["bytes"] for row in best]
        self.assertEqual(sizes, sorted(set(sizes)))
        self.assertGreater(len(best), 1)
        text = (folder / "whole/search.md").read_text()
        self.assertIn(f"No other trial of 6 beats, in val_score and flash: trial {best[0]['trial']} (width=", text)
        self.assertEqual((folder / "whole/search.png").read_bytes()[:4], b"\x89PNG")


if __name__ == "__main__":
    absltest.main()

"""Bad trials end early: rungs and places by hand, a trial that is a small program, a search that is killed."""

import contextlib
import io
import json
import math
import random
import sys
import tempfile
import threading
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from atalaia import executors, halving, metrics, runs, search
from atalaia.errors import UserError
from atalaia.space import Result, choice
from atalaia.trials import Search, train_trial

SPACE = {"rate": choice(*range(12)), "width": choice(1, 2)}
# Writes a look at the validation split each tenth of a second, as training does, until it is asked to end.
CURVE = """
import json, pathlib, signal, sys, time
folder, values = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
folder.mkdir(exist_ok=True)
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
with (folder / "metrics.jsonl").open("a") as file:
    for step, value in enumerate(values, 1):
        print(json.dumps(dict(step=step, val_score=value)), file=file, flush=True)
        if asked:
            sys.exit(130)
        time.sleep(0.1)
(folder / "train.json").write_text(json.dumps(dict(seconds=1.0, dataset="curves")))
"""


class RungsTest(parameterized.TestCase):
    @parameterized.parameters((2, [8, 4, 2]), (3, [9, 3]), (4, [4]), (10, [10]))
    def test_parts_of_the_steps(self, factor, expected):
        self.assertEqual(halving.parts(factor), expected)

    def test_what_a_run_had_at_its_rungs(self):
        """Of 90 steps, rungs at 10 and 30: the first looks there or later are those of 12 and 36."""
        with tempfile.TemporaryDirectory() as folder:
            looks = [dict(step=step, val_score=step / 100) for step in (6, 12, 24)]
            rows = [dict(step=1, loss=1.0), *looks]
            for more, expected in ([], [0.12]), ([dict(step=36, val_score=0.36)], [0.12, 0.36]):
                with mock.patch.object(metrics, "rows", return_value=[*rows, *more]):
                    self.assertEqual(halving.reached(Path(folder), "val_score", 90, 3), expected)

    def test_a_place_among_the_best_third(self):
        """Two known and the trial: one place. Five and the trial: two. Fewer than two: no one can tell."""
        self.assertEqual(halving.least([[0.1], [0.7]], 1, 3), [0.7, None])
        self.assertEqual(halving.least([[0.1], [0.7], [0.3, 0.4], [0.5, 0.6], [0.2]], 1, 3), [0.5, 0.6])
        self.assertEqual(halving.least([[0.1], [0.7]], -1, 3), [0.1, None])
        self.assertEqual(halving.least([[0.1]], 1, 3), [None, None])

    def test_where_a_trial_ends(self):
        self.assertIsNone(halving.ends_at([0.5], [0.5, 0.9], 1))
        self.assertEqual(halving.ends_at([0.4], [0.5, 0.9], 1), 0)
        self.assertEqual(halving.ends_at([0.5, 0.8], [0.5, 0.9], 1), 1)
        self.assertEqual(halving.ends_at([0.5, 0.95], [0.5, 0.9], -1), 1)
        self.assertIsNone(halving.ends_at([0.5, 0.8], [None, None], 1))
        self.assertEqual(halving.ends_at([math.nan], [None, None], 1), 0)

    def test_a_trial_that_ended_counts_as_one_that_learned_on(self):
        """From the first rung two others gained 0.3 and 0.5, from the second one 0.1."""
        values = [0.5, 0.8, 0.2, 0.4, None]
        reached = [[0.2, 0.4], [0.3], [0.2], [0.1, 0.4], [0.1]]
        results = [Result({}, value) for value in values]
        found = halving.comparable(results, reached, [False, False, True, True, True])
        np.testing.assert_allclose([r.value for r in found[:4]], [0.5, 0.8, 0.2 + 0.4, 0.4 + 0.1])
        self.assertIsNone(found[4].value)
        self.assertEqual(halving.comparable(results[2:3], reached[2:3], [True]), results[2:3])


class TrialTest(absltest.TestCase):
    def _train(self, values, least, steps=9):
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory())) / "trial_000"
        asked = Search("x.py", SPACE, halving=3)
        words = [sys.executable, "-S", "-c", CURVE, str(self.folder), json.dumps(values)]
        executor = self.enter_context(contextlib.closing(executors.Local(1)))
        with mock.patch.object(runs, "command", return_value=words) as command:
            call = lambda: train_trial(asked, lambda p: steps, [], executor, {}, self.folder, threading.Event(), least)  # noqa: E731
            found = call()
            self.assertEqual(call(), found)  # a search that goes on asks for it again
            return found, command.call_count

    def test_a_bad_one_ends_and_is_not_trained_on_when_it_is_asked_for_again(self):
        found, calls = self._train([0.1, 0.2, 0.3] + [0.9] * 30, [0.05, 0.4], steps=9)
        self.assertEqual(found, dict(value=0.3, ended=1 / 3, rungs=[0.1, 0.3]))
        self.assertEqual(calls, 1)
        self.assertLess(len(metrics.rows(self.folder)), 33)

    def test_a_good_one_goes_on(self):
        found, _ = self._train([0.5] * 8 + [0.7], [0.5, 0.5])
        self.assertEqual((found["value"], found["rungs"], "ended" in found), (0.7, [0.5, 0.5], False))


class SearchTest(absltest.TestCase):
    def test_killed_at_any_moment_the_same_trials_end_at_the_same_rungs(self):
        folder, asked = Path(self.enter_context(tempfile.TemporaryDirectory())), Search("x.py", SPACE, halving=3)

        class Killed(BaseException):
            pass

        def searched(name, chance):
            draw, kills = random.Random(1), 0

            def objective(point, trial, stop, least):
                if draw.random() < chance:
                    raise Killed
                values = [0.1 * point["rate"], 0.1 * point["rate"] + 0.01 * point["width"]]
                rung = halving.ends_at(values, least, 1)
                if rung is None:
                    return dict(value=values[1] + 0.5, seconds=1.0, rungs=values)
                return dict(value=values[rung], ended=1 / halving.parts(3)[rung], rungs=values[: rung + 1])

            while True:
                try:
                    return search.run(asked, folder / name, 7, 2, objective), kills
                except Killed:
                    kills += 1

        self.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self.enter_context(contextlib.redirect_stderr(io.StringIO()))
        self.enter_context(mock.patch.object(search, "picture", return_value=b""))
        whole, none = searched("whole", 0.0)
        killed, kills = searched("killed", 0.3)
        self.assertEqual((whole, none), (killed, 0))
        self.assertGreater(kills, 0)
        ended = [row["trial"] for row in whole if "ended" in row]
        self.assertBetween(len(ended), 1, 6)
        self.assertNotIn(search.best(asked, whole)["trial"], ended)
        self.assertIn("| after 11 % |", (folder / "whole/search.md").read_text())
        self.assertEqual(search.load(folder / "whole", SPACE), (asked, whole))
        with self.assertRaisesRegex(UserError, "holds a search with halving 3, not null"):
            search.read(asked._replace(halving=0), folder / "whole")


if __name__ == "__main__":
    absltest.main()

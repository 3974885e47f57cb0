"""The search around the proposals: kills, folders, limits, refusals, and one small search of real runs."""

import contextlib
import io
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
import small_net
from absl import flags
from absl.testing import absltest, parameterized

from atalaia import executors, plan, runs, search
from atalaia import space as spaces
from atalaia.codegen import __main__ as codegen
from atalaia.errors import UserError
from atalaia.space import choice, integers, uniform
from atalaia.trials import METRICS, Search, make_check, train_trial, validate
from configs import digits
from experiments import search_replay

ROOT = Path(__file__).parent.parent
RECIPE = "configs/digits.py"
GRID = {"dense.learning_rate": choice(0.01, 0.03, 0.1, 0.3), "dense.optimizer": choice("sgd", "adam", "adamw")}
MIXED = {"dense.learning_rate": uniform(1e-3, 1.0, log=True), "stages": choice(("dense",), ("dense", "prune"))}
TWO_LIMITS = {"bytes": 1000, "ms": 2.0}


def value_of(point: dict) -> float:
    rate = math.log10(point["dense.learning_rate"]) + 1
    return math.exp(-(rate**2)) - 0.1 * (str(list(point.values())[1]) in ("adamw", "('dense',)"))


class Killed(BaseException):
    """What SIGKILL would be, but for the process."""


class RunTest(parameterized.TestCase):
    def setUp(self):
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.workdir = self.folder / "search"
        self.enter_context(mock.patch.object(spaces, "FINITE", 512))  # fewer candidates, less time
        self.enter_context(contextlib.redirect_stdout(io.StringIO()))
        self.enter_context(contextlib.redirect_stderr(io.StringIO()))

    def _run(self, asked, objective, workdir=None, trials=7, parallel=1, pictures=False):
        with contextlib.ExitStack() as stack:
            if not pictures:  # they take most of the time
                stack.enter_context(mock.patch.object(search, "picture", return_value=b""))
            return search.run(asked, workdir or self.workdir, trials, parallel, objective)

    def _objective(self, draw, chance, calls):
        """Ends after a moment that `draw` chooses; killed before or after it by chance."""

        def objective(point, folder, stop):
            calls.append((folder.name, spaces.text(point)))
            if draw.random() < chance:
                raise Killed
            time.sleep(0.02 * draw.random())
            if draw.random() < chance:
                raise Killed
            return dict(value=value_of(point), seconds=1.0)

        return objective

    @parameterized.product(parallel=[1, 3], asked=[GRID, MIXED])
    def test_killed_at_any_moment_it_proposes_what_it_would_have(self, parallel, asked):
        asked = Search(RECIPE, asked, seed=parallel)
        expected = self._run(asked, self._objective(random.Random(0), 0.0, []), self.folder / "whole", 7, parallel)
        kills = 0
        for seed in range(3):
            draw, calls, workdir = random.Random(seed), [], self.folder / f"killed{seed}"
            write = search.write_json

            def interrupted(path, value, draw=draw, write=write):
                """The file is whole or not there at all, whichever side of it a kill falls on."""
                if draw.random() < 0.1:
                    raise Killed
                write(path, value)
                if draw.random() < 0.1:
                    raise Killed

            with mock.patch.object(search, "write_json", interrupted):
                while True:
                    try:
                        rows = self._run(asked, self._objective(draw, 0.1, calls), workdir, 7, parallel)
                        break
                    except Killed:
                        kills += 1
            self.assertEqual(rows, expected)
            self.assertEqual(json.loads((workdir / "search.json").read_text())["trials"], json.loads(json.dumps(rows)))
            self.assertLen({name for name, _ in calls}, 7)
            self.assertLen(set(calls), 7, "a trial was given again with another point")
        self.assertGreater(kills, 3)

    def test_a_trial_is_proposed_from_the_results_before_those_at_work(self):
        rows = self._run(Search(RECIPE, GRID), self._objective(random.Random(1), 0.0, []), parallel=3)
        self.assertEqual([row["known"] for row in rows], [0, 0, 0, 1, 2, 3, 4])
        self.assertLen({spaces.text(row["point"]) for row in rows}, 7)

    def test_as_many_trials_at_once_as_asked_and_no_more(self):
        together, most, three = [], [], threading.Barrier(3)

        def objective(point, folder, stop):
            together.append(point)
            three.wait(60)  # broken, and so an error, where fewer are at work
            most.append(len(together))
            three.wait(60)
            together.remove(point)
            return dict(value=1.0)

        self._run(Search(RECIPE, GRID), objective, trials=6, parallel=3)
        self.assertEqual(max(most), 3)

    def test_more_trials_go_on_from_those_before(self):
        asked, calls = Search(RECIPE, GRID), []
        self._run(asked, self._objective(random.Random(0), 0.0, calls), trials=4)
        self.assertLen(self._run(asked, self._objective(random.Random(0), 0.0, calls), trials=6), 6)
        self.assertEqual([name for name, _ in calls], [f"trial_{i:03d}" for i in range(6)])

    def test_a_replaced_teacher_is_refused_once_a_trial_had_it(self):
        def objective(point, folder, stop):
            teacher = "new" if folder.name == "trial_002" else "old"
            images = f"size {point['data.size']}" if "data.size" in point else "same"
            return dict(value=0.5, seconds=1.0, sources={"weights of the teacher in t": teacher, plan.IMAGES: images})

        for name, space in (("one", GRID), ("each", {"data.size": choice(1, 2, 3, 4)})):
            with self.subTest(name), self.assertRaisesRegex(UserError, r"trial 2 .* weights of .* in t than trial 0"):
                self._run(Search(RECIPE, space), objective, self.folder / name)
            rows = json.loads((self.folder / name / "search.json").read_text())["trials"]
            self.assertEqual(["value" in row for row in rows], [True, True, False])

    def test_replaced_images_are_refused(self):
        def objective(point, folder, stop):
            return dict(value=0.5, seconds=1.0, sources={plan.IMAGES: folder.name})

        with self.assertRaisesRegex(UserError, "trial 1 had other training or validation images than trial 0"):
            self._run(Search(RECIPE, GRID), objective)

    def test_a_failed_trial_stops_the_others_and_the_search(self):
        stopped = []

        def objective(point, folder, stop):
            if folder.name == "trial_001":
                raise UserError("no space left")
            stopped.append(stop.wait(20))
            raise KeyboardInterrupt

        with self.assertRaisesRegex(UserError, "no space left"):
            self._run(Search(RECIPE, GRID), objective, parallel=2)
        self.assertEqual(stopped, [True])
        self.assertNotIn("value", json.loads((self.workdir / "search.json").read_text())["trials"][0])

    @parameterized.parameters((GRID, 2), (MIXED, 1))
    def test_table_and_picture(self, space, panels):
        asked = Search(RECIPE, space, limits=TWO_LIMITS)

        def objective(point, folder, stop):
            if folder.name == "trial_002":
                return dict(value=None)
            figures = dict(bytes=900 if folder.name == "trial_001" else 1100, ms=1.0)
            return dict(value=0.5 if folder.name == "trial_001" else 0.9, seconds=3.2, figures=figures)

        rows = self._run(asked, objective, trials=3, pictures=True)
        text = (self.workdir / "search.md").read_text()
        words = [" | ".join(str(value) for value in row["point"].values()) for row in rows]
        self.assertIn("\nBest of 3 trials: trial 1, ", text)
        self.assertIn(f"| 0 | {words[0]} | 0.9000 | 1,100 | 1.0 | broken | 3.2000 |", text)
        self.assertIn(f"| 1 | {words[1]} | 0.5000 | 900 | 1.0 | met | 3.2000 |", text)
        self.assertIn(f"| 2 | {words[2]} | NaN in training | - | - | - | - |", text)
        picture = (self.workdir / "search.png").read_bytes()
        self.assertEqual(picture[:8], b"\x89PNG\r\n\x1a\n")
        width = int.from_bytes(picture[16:20], "big")
        self.assertEqual(width, panels * 715)  # 6.5 inches of 110 dots

    @parameterized.parameters(
        (dict(space=MIXED), "with space "),
        (dict(seed=1), "seed 0, not 1"),
        (dict(metric="val_loss"), 'metric "val_score", not "val_loss"'),
        (dict(limits=dict(bytes=7)), r'limits \{\}, not \{"bytes": 7\}'),
    )
    def test_refuses_the_folder_of_another_search(self, changed, pattern):
        asked = Search(RECIPE, GRID)
        self._run(asked, self._objective(random.Random(0), 0.0, []), trials=1)
        before = (self.workdir / "search.json").read_bytes()
        with self.assertRaisesRegex(UserError, f"holds a search .*{pattern}.*: choose another --workdir"):
            search.read(asked._replace(**changed), self.workdir)
        self.assertEqual((self.workdir / "search.json").read_bytes(), before)

    def test_refuses_the_folder_of_a_run_and_a_damaged_file(self):
        self.workdir.mkdir()
        (self.workdir / "search.json").write_text('{"trials": ')
        with self.assertRaisesRegex(UserError, "search.json is damaged: delete"):
            search.read(Search(RECIPE, GRID), self.workdir)
        with self.assertRaisesRegex(UserError, "search.json is damaged: delete"):
            search.load(self.workdir, GRID)
        (self.workdir / "checkpoints").mkdir()
        with self.assertRaisesRegex(UserError, "holds a run of atalaia.train"):
            search.read(Search(RECIPE, GRID), self.workdir)

    def test_a_folder_tells_what_was_searched(self):
        with self.assertRaisesRegex(UserError, "holds no search"):
            search.load(self.workdir, GRID)
        asked = Search(RECIPE, GRID, seed=3, metric="val_loss")
        rows = self._run(asked, self._objective(random.Random(0), 0.0, []), trials=2)
        self.assertEqual(search.load(self.workdir, GRID), (asked, rows))
        with self.assertRaisesRegex(UserError, "holds a search with space"):
            search.load(self.workdir, MIXED)

    def test_another_search_of_the_folder_is_waited_for(self):
        said, entered = [], threading.Event()

        def second():
            with search.locked(self.workdir, said.append):
                entered.set()

        with search.locked(self.workdir, said.append):
            thread = threading.Thread(target=second)
            thread.start()
            self.assertFalse(entered.wait(0.2))
        thread.join(10)
        self.assertTrue(entered.is_set())
        self.assertRegex("".join(said), "^waiting until another search in .*search, or a trial")


class BestTest(absltest.TestCase):
    ASKED = Search(RECIPE, GRID, limits=TWO_LIMITS)

    def _row(self, trial, value, size, ms):
        return dict(trial=trial, point={"seed": trial}, value=value, figures=dict(bytes=size, ms=ms))

    def test_the_best_of_those_that_meet_the_limits(self):
        rows = [self._row(0, 0.7, 1000, 2.0), self._row(1, 0.9, 1001, 1.0), self._row(2, 0.7, 10, 1.0)]
        rows += [dict(trial=3, point={}, value=None), dict(trial=4, point={})]
        self.assertEqual(search.best(self.ASKED, rows)["trial"], 0)
        self.assertEqual(search.best(self.ASKED._replace(metric="val_loss", limits={}), rows)["trial"], 0)
        self.assertEqual(search.best(self.ASKED._replace(limits={}), rows)["trial"], 1)

    def test_the_nearest_says_which_limit_and_by_how_much(self):
        """Trial 0 is 50 % above its worst limit, trial 1 25 %."""
        rows = [self._row(0, 0.9, 900, 3.0), self._row(1, 0.8, 1250, 2.2), self._row(2, 0.7, 2000, 1.0)]
        self.assertIsNone(search.best(self.ASKED, rows))
        self.assertEqual(
            search.nearest(self.ASKED, rows),
            "the nearest is trial 1 (seed=1) with 1,250 bytes of constants, 25.0 % above 1,000; "
            "2.2 ms on an ESP32, estimated, 10.0 % above 2.0",
        )
        self.assertIsNone(search.nearest(self.ASKED, [dict(trial=0, point={}, value=None)]))

    def test_a_result_has_its_sign_and_its_distance_from_the_limits(self):
        found = search.result(self.ASKED._replace(metric="val_loss"), self._row(0, 0.5, 2000, 1.0))
        self.assertEqual(found.value, -0.5)
        self.assertAlmostEqual(found.over[0], math.log(2))
        self.assertAlmostEqual(found.over[1], -math.log(2))


class ValidateTest(parameterized.TestCase):
    def _validate(self, space, trials=2, config=None, **changed):
        asked = Search(str(ROOT / RECIPE), space)._replace(**changed)
        check = make_check(asked.config, {}, Path(flags.FLAGS.test_tmpdir))
        validate(asked, config or digits.get_config(), check, trials)

    @parameterized.parameters(
        ({"dense.learning_rat": uniform(0.1, 1)}, "no field 'dense.learning_rat'; did you mean 'dense.learning_rate'?"),
        ({"dense": choice("a", "b")}, "the config has no field 'dense'"),
        ({"dense.learning_rate": choice("a", "b")}, "dense.learning_rate is of type float, so 'a' cannot"),
        ({"batch_size": choice(16, 32.5)}, "batch_size is of type int, so 32.5 cannot"),
        ({"batch_size": uniform(16, 32)}, r"batch_size is a whole number: write integers\(16, 32\)"),
        ({"augment.flip": integers(0, 1)}, "augment.flip is of type bool, so 0 cannot"),
        ({"model": integers(1, 2)}, "model is of type str, so 1 cannot"),
        ({"dense.optimizer": choice("sgd", "sdg")}, "dense.optimizer: there is no 'sdg', only adam"),
        ({"prune.sparsity": uniform(0.5, 1.5)}, r"prune.sparsity must be in \[0, 1\), not 1.5"),
        ({"stages": choice(("dense",), ("prune", "dunse"))}, "stages: there is no 'dunse'"),
        ({"batch_size": integers(32, 10**6)}, "batch_size 1000000 is more than the .* training images"),
        ({"prune.layers": choice("", "nothing=0.5")}, "pattern 'nothing' matches no parameter"),
        ({"prune.teacher": choice("", "runs/nowhere")}, "prune.teacher: runs/nowhere"),
        ({"trainable": choice("", "zzz")}, "trainable: 'zzz' matches no parameter"),
        ({"data.validation": choice(0.1, 0.2)}, "data.validation decides which images judge a trial"),
        ({"data.name": choice("digits", "cifar10")}, "data.name decides which images judge a trial"),
        ({"quantize.freeze": choice(0.1, 0.5)}, r"quantize.freeze changes nothing: the config's stages are \('dense',"),
        ({"distillation.alpha": choice(0.1, 0.5)}, "distillation.alpha changes nothing: no stage of the config has a"),
        ({"data.unlabelled": choice("", "x")}, "data.unlabelled changes nothing: no stage of the config has a teacher"),
    )
    def test_refuses_a_space(self, space, pattern):
        with self.assertRaisesRegex(UserError, pattern):
            self._validate(space)

    @parameterized.parameters(
        (dict(trials=0), "--trials must be at least 1, not 0"),
        (dict(trials=13), "--trials=13, but the space has 12 points"),
        (dict(metric="accuracy"), "no metric 'accuracy': a search of task classify looks at val_score or val_loss or"),
        (dict(limits=dict(arena=0)), "--max_arena must be above 0, not 0"),
        (dict(limits=dict(ms=float("nan"))), "--max_ms must be above 0, not nan"),
    )
    def test_refuses_flags(self, changed, pattern):
        with self.assertRaisesRegex(UserError, pattern):
            self._validate(GRID, **changed)

    def test_a_figure_of_which_more_is_not_better_is_no_metric(self):
        self.assertContainsSubset({"val_score", "val_loss", "val_ap", "val_f1", "val_mae"}, METRICS)
        self.assertNotIn("val_f1_threshold", METRICS)

    def test_refuses_a_config_without_validation_split(self):
        config = digits.get_config()
        config.data.validation = 0.0
        with self.assertRaisesRegex(UserError, "data.validation is 0"):
            self._validate(GRID, config=config)

    def test_fields_of_a_stage_that_some_trials_have(self):
        self._validate(MIXED | {"quantize.freeze": choice(0.1, 0.5)})

    def test_allows_what_works(self):
        self._validate(GRID | MIXED | {"seed": integers(0, 9), "augment.flip": choice(True, False)}, 40)


class TrialTest(absltest.TestCase):
    """A trial's programs, stood in for by small ones."""

    def setUp(self):
        self.workdir = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.folder = self.workdir / "trial_000"
        self.lock = self.enter_context((self.workdir / "lock").open("w")).fileno()
        self.executor = self.enter_context(contextlib.closing(executors.Local(1, (self.lock,))))
        self.stop = threading.Event()

    def _train(self, program, asked=Search(RECIPE, GRID), check=lambda point: None):  # noqa: B008, it never changes
        with mock.patch.object(runs, "command", lambda *a: [sys.executable, "-c", program, *map(str, a[1:2])]):
            return train_trial(asked, check, [], self.executor, {"seed": 3}, self.folder, self.stop)

    def _finished(self, val_loss=0.25):
        self.folder.mkdir()
        (self.folder / "train.json").write_text(json.dumps(dict(seconds=12.5, dataset="digits")))
        row = dict(step=1, val_score=0.75, val_loss=val_loss)
        (self.folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")

    def test_the_metric_is_the_last_of_the_run(self):
        self._finished()
        self.assertEqual(self._train(""), dict(value=0.75, seconds=12.5, data="digits", sources={}))
        self.assertEqual(self._train("", Search(RECIPE, GRID, metric="val_loss"))["value"], 0.25)

    def test_figures_are_those_of_codegens_report(self):
        """Those of the C that is written."""
        self._finished()
        content = (ROOT / "mcu/models/cifar10/model.tflite").read_bytes()
        (self.folder / "model.tflite").write_bytes(content)
        (self.folder / "export.json").write_text("{}")
        found = self._train("", Search(RECIPE, GRID, limits=dict(bytes=90_000, arena=1, ms=1.0)))
        report = codegen.generate(content, self.folder / "c", samples=1, prefer="speed", flash=90_000)
        expected = report["weight_bytes"], report["arena_bytes"], report["estimated"]["esp32"]["milliseconds"][1]
        self.assertEqual(tuple(found["figures"][name] for name in ("bytes", "arena", "ms")), expected)

    def test_a_combination_that_cannot_be_trained_is_a_result(self):
        """Else the search would stop at it again and again; each value by itself is refused before the first trial."""
        check = make_check(RECIPE, {"batch_size": 64}, Path(flags.FLAGS.test_tmpdir))
        check({"data.train_per_class": 10})
        check = make_check(RECIPE, {"batch_size": 128}, Path(flags.FLAGS.test_tmpdir))
        found = self._train("raise SystemExit(1)", check=lambda point: check({"data.train_per_class": 10}))
        self.assertIsNone(found["value"])
        self.assertRegex(found["refused"], "batch_size 128")
        row = dict(trial=0, point={"seed": 3}) | found
        self.assertIn("batch_size 128", search.summary(Search(RECIPE, GRID), [row]))
        self.assertIn("taken as the worst value", search._outcome(Search(RECIPE, GRID), row))

    def test_divergence_is_a_result(self):
        self.assertEqual(self._train("raise SystemExit(3)"), dict(value=None))

    def test_a_validation_loss_that_is_not_finite_counts_as_divergence(self):
        """Training's own loss can be finite all the while; a NaN in the results would break every later proposal."""
        for number, value in enumerate((math.nan, math.inf)):
            self.folder = self.workdir / f"trial_{number:03d}"
            self._finished(val_loss=value)
            self.assertIsNone(self._train("", Search(RECIPE, GRID, metric="val_loss"))["value"])

    def test_a_trial_keeps_the_searchs_lock(self):
        """So a search that goes on waits for a trial that the one before it left behind."""
        self._finished()
        self.assertEqual(self._train(f"import os; os.fstat({self.lock})")["value"], 0.75)

    def test_what_a_signal_ended_is_told_so(self):
        with self.assertRaisesRegex(UserError, r"^train of .* failed: ended by signal 9 \(often: too little memory\)"):
            self._train("print('dense: 3/9', flush=True); import os; os.kill(os.getpid(), 9)")

    def test_the_heading_names_the_data(self):
        row = dict(trial=0, point={}, known=0, value=0.5, data="CIFAR-10 upsampled to 96x96")
        self.assertIn(
            "configs/digits.py, CIFAR-10 upsampled to 96x96, over", search.summary(Search(RECIPE, GRID), [row])
        )

    def test_any_other_failure_is_told_by_its_last_line(self):
        program = "print('first'); print('error: no space left'); raise SystemExit(2)"
        with self.assertRaisesRegex(UserError, r"^train of .*trial_000 failed: no space left \(log: .*trial_000.log\)"):
            self._train(program)
        self.assertEqual((self.workdir / "trial_000.log").read_text(), "first\nerror: no space left\n")

    def test_a_stop_is_passed_on_and_waited_for(self):
        """The program takes it as atalaia.train does: it finishes a step, then ends."""
        program = (
            "import pathlib, signal, sys, time\n"
            "def asked(*_):\n    time.sleep(0.3)\n    pathlib.Path(sys.argv[1] + '.saved').touch()\n    sys.exit(130)\n"
            "signal.signal(signal.SIGTERM, asked)\nprint('ready', flush=True)\ntime.sleep(60)\n"
        )
        log = self.workdir / "trial_000.log"

        def stop_when_ready():
            while not (log.exists() and "ready" in log.read_text()):
                time.sleep(0.02)
            self.stop.set()

        thread = threading.Thread(target=stop_when_ready)
        thread.start()
        with self.assertRaises(KeyboardInterrupt):
            self._train(program)
        thread.join()
        self.assertTrue(Path(f"{self.folder}.saved").exists())


class CommandTest(absltest.TestCase):
    SPACE = "from atalaia.space import choice\ndef get_space():\n    return {%r: choice(0, 1)}\n"

    def _short(self, network, steps):
        fields = dict(model=f"tests/small_net.py:{network}", stages="('dense',)")
        fields |= {"dense.epochs": 0, "dense.steps": steps}
        return [f"--config.{name}={value}" for name, value in fields.items()]

    def _search(self, field, *arguments):
        folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        (folder / "space.py").write_text(self.SPACE % field)
        arguments = [f"--space={folder}/space.py", f"--workdir={folder}/runs", f"--config={RECIPE}", *arguments]
        command = [sys.executable, "-m", "atalaia.search", *arguments]
        environment = os.environ | small_net.QUICK | {"ATALAIA_DATA": str(folder)}
        return folder / "runs", subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False
        )

    def test_refuses_in_one_line_and_makes_no_folder(self):
        folder, done = self._search("dense.rate", "--trials=2")
        self.assertRegex(done.stderr, "^error: the config has no field 'dense.rate'.*\n$")
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertFalse(folder.exists())

    def test_two_real_runs(self):
        short = self._short("Linear", 20)
        folder, done = self._search("seed", "--trials=2", *short)  # what compiles for one, compiles for the other
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = json.loads((folder / "search.json").read_text())["trials"]
        self.assertCountEqual([row["point"]["seed"] for row in rows], [0, 1])
        for row in rows:
            trained = json.loads((search.folder_of(folder, row["trial"]) / "train.json").read_text())
            expected = (row["value"], 20, row["point"]["seed"])
            self.assertEqual((trained["val_score"], trained["steps"], trained["seed"]), expected)
            self.assertEqual((list(row["sources"]), row["sources"]), ([plan.IMAGES], trained["sources"]))
        best = max(rows, key=lambda row: row["value"])
        self.assertIn(f"trial {best['trial']}, seed={best['point']['seed']}.\n", (folder / "search.md").read_text())
        self.assertIn(f"written: {folder}/search.md, search.png, search.json", done.stdout)

    def test_limits_that_no_trial_meets(self):
        """Trained, exported and written as C for real; what is said last names the nearest trial."""
        short = self._short("Residual", 2)
        folder, done = self._search("seed", "--trials=1", "--max_bytes=1000", "--max_arena=10000000", *short)
        (row,) = json.loads((folder / "search.json").read_text())["trials"]
        self.assertGreater(row["figures"]["bytes"], 1000)
        over = f"nearest is trial 0 (seed={row['point']['seed']}) with {row['figures']['bytes']:,} bytes of constants"
        self.assertIn(f"\nerror: no trial meets the limits; the {over}, ", done.stderr)
        self.assertEqual(done.returncode, 2)


class ReplayTest(absltest.TestCase):
    def test_counts_trials_by_hand(self):
        values = {"a": 0.1, "b": 0.9, "c": 0.8}
        self.assertEqual(search_replay.trials_needed(iter("abc"), values, 0.9), 2)
        self.assertEqual(search_replay.trials_needed(iter("acb"), values, 0.8), 2)

    def test_random_search_takes_what_it_must(self):
        """(32 + 1) / (3 + 1) = 8.25 trials on average, with a standard deviation of 6.3; each point once."""
        space = {"a": choice(*range(4)), "t": choice(*range(8))}
        values = {spaces.text(p): float(p["a"] * 8 + p["t"]) for p in spaces.every_point(space)}
        self.assertCountEqual(search_replay.random(space, 0, values), values)
        needed = [search_replay.trials_needed(search_replay.random(space, s, values), values, 29) for s in range(2000)]
        self.assertAlmostEqual(sum(needed) / 2000, 8.25, delta=0.6)

    def test_drawn_functions_have_the_noise_that_is_asked_for(self):
        """Neighbours of a smooth function are alike: their squared difference is 2 * noise, and what the slope adds."""
        space = {"a": choice(*range(4)), "t": choice(*range(8))}
        for noise, low, high in ((0.0, 0.0, 0.35), (1.0, 1.7, 2.3)):
            found = [search_replay.draw(space, seed, noise) for seed in range(60)]
            values = np.array([[v[spaces.text(p)] for p in spaces.every_point(space)] for v in found]).reshape(-1, 4, 8)
            self.assertBetween(np.mean(np.diff(values, axis=2) ** 2), low, high)
        self.assertEqual(search_replay.draw(space, 3, 0.5), search_replay.draw(space, 3, 0.5))

    def test_replay_of_drawn_functions(self):
        space = {"a": choice(*range(2)), "t": choice(*range(4))}
        with contextlib.redirect_stderr(io.StringIO()):
            rows = search_replay.replay_drawn(space, 2)
        self.assertEqual([row["noise"] for row in rows], list(search_replay.DRAWN))
        for row in rows:
            self.assertAlmostEqual(row["ratio_of_means"], row["means"]["bayesian"] / row["means"]["random"])

    def test_replay_of_a_plane(self):
        space = {"a": choice(*range(4)), "t": choice(*range(8))}
        grid = [(p, float(p["a"] * 8 + p["t"])) for p in spaces.every_point(space)]
        with contextlib.redirect_stderr(io.StringIO()):
            found = search_replay.replay(space, grid, seeds=5)
        self.assertEqual((found["points"], found["target"], found["targets"]), (32, 29.0, 3))
        self.assertLen(found["methods"]["bayesian"]["trials"], 5)
        self.assertLess(found["methods"]["bayesian"]["mean"], 8.25)
        path = Path(flags.FLAGS.test_tmpdir) / "replay.png"
        search_replay.picture(space, grid, found | dict(of=dict(data="a plane")), path)
        self.assertEqual(path.read_bytes()[:4], b"\x89PNG")
        found["of"] = dict(model="rafael_base", data="CIFAR-10 upsampled to 96x96", epochs=2.0, seed=0)
        self.assertIn("of rafael_base, distilled, on CIFAR-10 upsampled to 96x96: 2 ep", search_replay.table(found))
        self.assertIn(f"| bayesian | {found['methods']['bayesian']['median']:g} | ", search_replay.table(found))


if __name__ == "__main__":
    absltest.main()

"""Several processes train as one does, and end together with one line."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import small_net
from absl import flags
from absl.testing import absltest, flagsaver, parameterized

from atalaia import data, finished, processes, runs, step, train
from atalaia.errors import UserError

ROOT = Path(__file__).parent.parent
FIELDS = {
    "model": "tests/small_net.py:Normed",
    "stages": "('dense',)",
    "batch_size": 32,
    "dense.epochs": 0,
    "dense.steps": 12,
    "dense.optimizer": "adam",
    "dense.learning_rate": 0.01,
    "augment.noise": 0.02,
    "log_steps": 4,
}


class TogetherTest(absltest.TestCase):
    def test_two_processes_go_on_with_what_one_began_and_end_as_one_would(self):
        folder = Path(self.create_tempdir().full_path)
        config = runs.check("configs/digits.py", FIELDS)
        train.train_and_evaluate(config, folder / "one", folder)
        make = step.make_step

        def stopping(*arguments):
            inner = make(*arguments)

            def run(state, *rest):
                if int(state.step) == 5:
                    raise KeyboardInterrupt
                return inner(state, *rest)

            return run

        config.checkpoint_seconds = 0.0
        with absltest.mock.patch.object(step, "make_step", stopping), self.assertRaises(KeyboardInterrupt):
            train.train_and_evaluate(config, folder / "two", folder)

        arguments = ["--config=configs/digits.py", *runs.override_flags(FIELDS), "--processes=2"]
        done = subprocess.run(
            runs.command("train", folder / "two", arguments),
            cwd=ROOT,
            env=os.environ | small_net.QUICK | {"ATALAIA_DATA": str(folder)},
            capture_output=True,
            text=True,
            timeout=900,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("going on from step 5 of 12", done.stdout)
        figures = [json.loads((folder / name / "train.json").read_text()) for name in ("one", "two")]
        self.assertEqual([found["processes"] for found in figures], [1, 2])
        self.assertEqual(figures[0]["val_score"], figures[1]["val_score"])
        dataset = data.load(config.data, folder)
        one, two = (finished.load_trained(config, folder / name, dataset).variables for name in ("one", "two"))
        for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


class FlagsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        if "processes" not in flags.FLAGS:
            processes.define_flags()

    @parameterized.parameters(
        (dict(processes=0), "--processes=0: at least 1"),
        (dict(processes=2, coordinator="a:1"), "give one"),
        (dict(coordinator="a:1", num_processes=2), "not 2 and None"),
        (dict(coordinator="a:1", num_processes=2, process_id=2), "not 2 and 2"),
    )
    def test_flags_that_do_not_fit_are_refused(self, given, pattern):
        with flagsaver.flagsaver(**given), self.assertRaisesRegex(UserError, pattern):
            processes.join()

    @parameterized.parameters((0, 2, [1, 5]), (1, 2, [3, 7]), (2, 5, [1, 3, 5, 7]))
    def test_cores_are_shared_out_where_there_are_enough(self, number, count, expected):
        self.assertEqual(processes._share([1, 3, 5, 7], number, count), expected)


class EndTest(absltest.TestCase):
    def ended(self, script):
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen([sys.executable, "-S", "-c", script], stderr=log)
            process.wait()
            return processes._how_it_ended(1, process, log)

    def test_how_another_process_ended_is_one_line(self):
        self.assertStartsWith(
            self.ended("import sys; sys.exit('noise\\nprocess 1: error: no space left\\nmore')"),
            "process 1 ended with exit code 1 (no space left), and the others with it: give the same command again",
        )
        self.assertStartsWith(
            self.ended("import os; os.kill(os.getpid(), 9)"),
            "process 1 was ended by SIGKILL (often: too little memory)",
        )

    def test_by_itself_a_process_asks_nobody_and_leaves_as_usual(self):
        self.assertEqual(processes.Wishes()(True, False), (True, False))
        self.assertEqual([processes.any_of(wish) for wish in (True, False)], [True, False])
        processes.refuse_unlike("images", "00")
        processes.leave(1)
        self.assertIsNone(processes.lost(jax.errors.JaxRuntimeError("Gloo all-reduce failed")))


class DevicesTest(absltest.TestCase):
    def test_on_the_devices_arrays_are_what_they_were(self):
        tree = dict(a=np.arange(6, dtype=np.uint8).reshape(2, 3), b=np.float32(2))
        found = processes.on_devices(tree)
        jax.tree.map(np.testing.assert_array_equal, found, tree)
        self.assertEqual(found["a"].sharding, processes.over_devices())


if __name__ == "__main__":
    absltest.main()

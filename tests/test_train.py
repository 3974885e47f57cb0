"""Training: exact resume after kills, stages, NaN, damaged checkpoints, other configs."""

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import small_net
from absl.testing import absltest, parameterized

from atalaia import (
    checkpoint,
    data,
    finished,
    folding,
    losses,
    metrics,
    models,
    plan,
    pretrained,
    pruning,
    step,
    train,
)
from atalaia import config as configs
from atalaia.errors import UserError
from atalaia.models import thesis

ROOT = Path(__file__).parent.parent


# Few layers compile fast; dropout and BatchNorm are in them.
TINY = functools.partial(thesis.Thesis, widths=(8,), hidden=64)


def small_config(**fields):
    """A run of seconds: dropout, augmentation, Adam's two moments and masks are all in it."""
    c = configs.base()
    c.model = "tiny"
    c.batch_size = 32
    c.log_steps = 5
    c.augment.pad_crop = 1
    c.augment.noise = 0.02
    c.stages = ("dense", "prune")
    c.prune.sparsity = 0.8
    c.prune.every = 4
    for stage in (c.dense, c.prune):
        stage.epochs, stage.steps, stage.optimizer, stage.learning_rate = 0.0, 30, "adam", 1e-3
    c.update_from_flattened_dict(fields)
    return c


def final_arrays(workdir):
    """All arrays of a run's last checkpoint, by orbax alone."""
    folder = max((workdir / "checkpoints").iterdir(), key=lambda p: int(p.name))
    return ocp.StandardCheckpointer().restore((folder / "state").absolute())


class ResumeTest(absltest.TestCase):
    FLAGS = (
        "--config.model=tests/small_net.py:Residual",
        "--config.stages=('dense','prune')",
        "--config.batch_size=16",
        "--config.log_steps=5",
        "--config.checkpoint_seconds=0.3",
        "--config.dense.epochs=0",
        "--config.dense.steps=150",
        "--config.dense.optimizer=adam",
        "--config.dense.learning_rate=0.001",
        "--config.prune.epochs=0",
        "--config.prune.steps=150",
        "--config.prune.learning_rate=0.01",
        "--config.prune.every=4",
        "--config.prune.sparsity=0.8",
        "--config.augment.noise=0.02",
    )

    def start(self, workdir):
        command = [sys.executable, "-m", "atalaia.train", "--config=configs/digits.py", f"--workdir={workdir}"]
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        return subprocess.Popen([*command, *self.FLAGS], cwd=ROOT, env=os.environ | small_net.QUICK, **quiet)

    def kill_at(self, workdir, step, delay):
        """Starts or goes on, and sends SIGKILL a moment after that step was logged; False if it ended before."""
        process = self.start(workdir)
        while process.poll() is None and not any(row["step"] >= step for row in metrics.rows(workdir)):
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
        process.stderr.close()
        return process.wait() == -signal.SIGKILL

    def stop(self, workdir):
        """Starts, and sends SIGINT when the first steps were logged; it saves and says how to go on."""
        process = self.start(workdir)
        while not metrics.rows(workdir):
            time.sleep(0.02)
            self.assertIsNone(process.poll())
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1].decode()
        self.assertEqual(process.returncode, 130)
        self.assertIn("give the same command again", errors)
        self.assertNotIn("Traceback", errors)
        saved = max(int(p.name) for p in (workdir / "checkpoints").iterdir())
        self.assertEqual(saved, metrics.rows(workdir)[-1]["step"])

    def test_stopped_by_ctrl_c_and_killed_at_random_moments_it_ends_with_the_bytes_of_one_never_stopped(self):
        whole, killed = (Path(self.create_tempdir().full_path) / "run" for _ in range(2))
        process = self.start(whole)
        self.assertEqual((process.communicate()[1].decode(), process.returncode)[1], 0)
        self.stop(killed)
        # System entropy: every run of this test tries other moments; they are in the message if it fails.
        moments = sorted((random.randint(1, 290), random.random() * 0.3) for _ in range(2))
        kills = sum(self.kill_at(killed, step, delay) for step, delay in moments)  # one may come when it has ended
        self.assertGreater(kills, 0, moments)
        process = self.start(killed)
        errors = process.communicate()[1].decode()
        self.assertEqual(process.returncode, 0, errors)
        expected, found = (jax.tree.leaves_with_path(final_arrays(w)) for w in (whole, killed))
        self.assertEqual([p for p, _ in expected], [p for p, _ in found])
        for (path, a), (_, b) in zip(expected, found, strict=True):
            self.assertEqual(np.asarray(a).tobytes(), np.asarray(b).tobytes(), f"{path}, killed at {moments}")
        ledgers = [
            [row["nonzeros"] for row in json.loads((w / "ledger.json").read_text())["rows"]] for w in (whole, killed)
        ]
        self.assertEqual(*ledgers)
        steps = [row["step"] for row in metrics.rows(killed)]
        self.assertEqual(steps, sorted(set(steps)))


class TrainTest(parameterized.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.enterClassContext(absltest.mock.patch.dict(models.MODELS, tiny=TINY, linear=small_net.Linear))
        cls.base = Path(cls.enterClassContext(tempfile.TemporaryDirectory())) / "run"
        cls.base_result = train.train_and_evaluate(small_config(), cls.base, cls.base.parent)

    def setUp(self):
        super().setUp()
        self.workdir = Path(self.create_tempdir().full_path) / "run"

    def copy_base(self):
        """The run folder is a copy of the finished run of small_config()."""
        shutil.copytree(self.base, self.workdir)

    def run_config(self, config):
        return train.train_and_evaluate(config, self.workdir, self.workdir.parent)

    def test_weights_are_exactly_as_sparse_as_asked_and_stay_so_in_a_stage_after_pruning(self):
        config = small_config()
        config.stages = ("prune", "dense")
        self.run_config(config)
        for workdir in (self.base, self.workdir):
            params = final_arrays(workdir)["params"]
            for path in ("conv0b", "dense0", "logits"):
                kernel = np.asarray(params[path]["kernel"])
                self.assertEqual(np.count_nonzero(kernel == 0), round(0.8 * kernel.size), path)

    def test_learns_and_logs(self):
        config = small_config(**{"dense.steps": 150, "dense.learning_rate": 1e-2})
        config.stages = ("dense",)
        result = self.run_config(config)
        rows = metrics.rows(self.workdir)
        self.assertGreater(result["val_score"], 0.85)
        self.assertLess(rows[-1]["loss"], rows[0]["loss"] / 2)
        self.assertEqual(rows[-1]["step"], 150)
        self.assertTrue(list((self.workdir / "tensorboard").glob("events.out.tfevents.*")))
        self.assertEqual(json.loads((self.workdir / "config.json").read_text())["prune"]["sparsity"], 0.8)

    def test_classes_weighted_in_the_loss_are_learnt(self):
        config = small_config(**{"data.balance": "weights", "dense.learning_rate": 1e-2})
        config.stages = ("dense",)
        self.run_config(config)
        rows = metrics.rows(self.workdir)
        self.assertLess(rows[-1]["loss"], rows[0]["loss"])

    def test_a_finished_run_is_left_as_it_is(self):
        self.copy_base()
        before = {p: p.stat().st_mtime_ns for p in self.workdir.rglob("*") if p.name in ("train.json", "ledger.json")}
        self.assertEqual(self.run_config(small_config()), self.base_result)
        self.assertEqual(before, {p: p.stat().st_mtime_ns for p in before})

    def test_a_damaged_checkpoint_is_replaced_by_the_one_before_with_the_same_end(self):
        self.copy_base()
        expected = jax.tree.map(np.asarray, final_arrays(self.workdir))
        victim = max(
            (p for p in (self.workdir / "checkpoints/60/state").rglob("*") if p.is_file()), key=os.path.getsize
        )
        contents = bytearray(victim.read_bytes())
        contents[len(contents) // 2] ^= 0xFF
        victim.write_bytes(contents)
        config = small_config()
        with self.assertRaisesRegex(UserError, "step 60.*give the same atalaia.train command again"):
            finished.load_trained(config, self.workdir, data.load(config.data, self.workdir))
        self.run_config(config)
        jax.tree.map(np.testing.assert_array_equal, expected, jax.tree.map(np.asarray, final_arrays(self.workdir)))

    def test_nan_stops_with_the_step_and_the_name_of_the_loss_and_is_never_saved(self):
        config = small_config(**{"dense.optimizer": "sgd", "dense.learning_rate": 1e8, "checkpoint_seconds": 0.0})
        with self.assertRaisesRegex(UserError, r"'cross_entropy' became NaN or infinite at step \d+ \(stage dense\)"):
            self.run_config(config)
        manager = checkpoint.open_folder(self.workdir)
        for saved in manager.all_steps():
            params = ocp.StandardCheckpointer().restore(Path(manager.directory) / str(saved) / "state")["params"]
            self.assertTrue(all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params)), saved)

    def test_a_folder_of_another_config_is_refused_and_named(self):
        configs.claim(small_config(), self.workdir)
        before = (self.workdir / "config.json").read_bytes()
        with self.assertRaisesRegex(UserError, r"dense.steps=30 \(now 2\)"):
            self.run_config(small_config(**{"dense.steps": 2}))
        self.assertEqual([path.name for path in self.workdir.iterdir()], ["config.json"])
        self.assertEqual((self.workdir / "config.json").read_bytes(), before)

    def test_a_pattern_that_matches_nothing_is_refused_before_the_folder_is_made(self):
        with self.assertRaisesRegex(UserError, "matches no parameter.*conv0a/kernel"):
            self.run_config(small_config(**{"prune.pattern": "nothing"}))
        self.assertFalse(self.workdir.exists())

    def test_what_is_not_trainable_stays_in_the_stage_quantize_too(self):
        config = small_config(trainable="conv0b|logits", stages=("quantize",))
        config.quantize.epochs, config.quantize.steps = 0.0, 4
        self.run_config(config)
        model, dataset = models.create("tiny", 10), data.load(config.data, self.workdir)
        new = step.init_state(config, model, dataset.train.images.shape[1:])
        params = final_arrays(self.workdir)["params"]
        for layer, expected in folding.fold(model, step.variables_of(new)).items():
            trained = layer in ("conv0b", "logits")
            self.assertEqual(np.array_equal(params[layer]["kernel"], expected.kernel), not trained, layer)

    def test_what_is_not_trainable_computes_the_same_and_is_not_pruned(self):
        """Its BatchNorm neither takes the batch's statistics nor moves its own."""
        config = small_config(trainable="conv0b|logits", stages=("prune",))
        model, dataset = models.create("tiny", 10), data.load(config.data, self.workdir)
        new = step.init_state(config, model, dataset.train.images.shape[1:])
        self.run_config(config)
        found = final_arrays(self.workdir)
        for kind, before in (("params", new.params), ("batch_stats", new.batch_stats)):
            same = jax.tree.map(np.array_equal, found[kind]["conv0a"], jax.device_get(before["conv0a"]))
            self.assertTrue(all(jax.tree.leaves(same)), kind)
            self.assertFalse(np.array_equal(*(jax.tree.leaves(t["conv0b"])[-1] for t in (found[kind], before))), kind)
        zeros = {layer: float(np.mean(found["params"][layer]["kernel"] == 0)) for layer in ("conv0a", "conv0b")}
        self.assertEqual(zeros["conv0a"], 0)
        self.assertGreater(zeros["conv0b"], 0.4)
        stage, images = plan.Stage("dense", config.dense, 0, 1), data.to_float(dataset.train.images[:64])
        frozen = step.make_forward(small_config(trainable="logits"), TINY(10, dropout=0.0), stage)
        logits, stats = frozen(step.variables_of(new), images, jax.random.PRNGKey(0))
        np.testing.assert_allclose(logits, model.apply(step.variables_of(new), images), atol=1e-5)
        jax.tree.map(np.testing.assert_array_equal, stats, new.batch_stats)

    @parameterized.parameters(
        (dict(trainable="bias", stages=("prune",)), "trainable: 'bias' leaves nothing to prune of conv0a/kernel"),
        (dict(trainable="norm", stages=("dense", "quantize")), "trainable: 'norm' matches no parameter"),
    )
    def test_trainable_that_fits_a_stage_badly_is_refused_before_the_folder_is_made(self, fields, pattern):
        with self.assertRaisesRegex(UserError, pattern):
            self.run_config(small_config(**fields))
        self.assertFalse(self.workdir.exists())

    def test_trainable_that_matches_nothing_is_refused_before_the_folder_is_made(self):
        with self.assertRaisesRegex(UserError, "trainable: 'stage4' matches no parameter; there are conv0a/bias"):
            self.run_config(small_config(trainable="stage4"))
        self.assertFalse(self.workdir.exists())

    def test_pretrained_weights_are_where_it_begins_once(self):
        """The weights that others trained are stood in for by ones; with no learning rate they are the result."""
        config = small_config(model="linear", pretrained="imagenet", **{"dense.steps": 2, "dense.learning_rate": 0.0})
        config.stages = ("dense",)

        def ones(name, params, batch_stats, cache):
            return jax.tree.map(jnp.ones_like, params), batch_stats

        with (
            absltest.mock.patch.dict(models.PRETRAINED, linear=("imagenet",)),
            absltest.mock.patch.object(pretrained, "load", ones),
        ):
            self.run_config(config)
        for leaf in jax.tree.leaves(final_arrays(self.workdir)["params"]):
            np.testing.assert_array_equal(leaf, 1)

    def test_a_batch_larger_than_the_data_is_refused(self):
        with self.assertRaisesRegex(UserError, "batch_size 5000"):
            self.run_config(small_config(batch_size=5000))

    def test_an_unfinished_run_cannot_be_loaded(self):
        config = small_config()
        configs.claim(config, self.workdir)
        dataset = data.load(config.data, self.workdir)
        with self.assertRaisesRegex(UserError, "not finished"):
            finished.load_trained(config, self.workdir, dataset)

    def test_without_a_validation_split_training_still_works(self):
        short = {"data.validation": 0.0, "dense.steps": 2, "prune.steps": 2}
        result = self.run_config(small_config(model="linear", **short))
        self.assertIsNone(result["val_score"])


class QuantizeStageTest(absltest.TestCase):
    """The stage quantize in a chain, by itself, from another run, and stopped in the middle."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.enterClassContext(absltest.mock.patch.dict(models.MODELS, tiny=TINY))
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.whole = cls.run_config(cls.chain(), "whole")
        cls.first = cls.run_config(cls.config("prune"), "first")

    @staticmethod
    def config(*stages, **fields):
        short = {f"{name}.{field}": value for name in stages for field, value in (("epochs", 0.0), ("steps", 10))}
        config = small_config(**(short | fields))
        config.stages = stages
        return config

    @classmethod
    def chain(cls):
        return cls.config("prune", "quantize", **{"quantize.bits": "dense0=4"})

    @classmethod
    def run_config(cls, config, name):
        train.train_and_evaluate(config, cls.folder / name, cls.folder)
        return jax.tree.map(np.asarray, final_arrays(cls.folder / name))

    def test_zeros_of_the_prune_stage_stay_zeros_and_batch_norm_is_folded_away(self):
        self.assertEqual(set(self.whole["params"]["conv0a"]), {"kernel", "bias", "bound"})
        for path in ("conv0b", "dense0", "logits"):
            kernel = self.whole["params"][path]["kernel"]
            self.assertEqual(np.count_nonzero(kernel == 0), round(0.8 * kernel.size), path)

    def test_alone_it_trains_new_weights(self):
        state = self.run_config(self.config("quantize", **{"quantize.ranges": "learned"}), "learned")
        self.assertIn("log_scale", state["params"]["logits"])

    def test_stopped_in_the_middle_it_ends_with_the_same_bytes(self):
        config, make = self.chain(), step.make_step

        def stopping(*arguments):
            inner = make(*arguments)

            def run(state, *rest):
                if int(state.step) == 15:
                    raise KeyboardInterrupt
                return inner(state, *rest)

            return run

        config.checkpoint_seconds = 0.0
        with absltest.mock.patch.object(step, "make_step", stopping), self.assertRaises(KeyboardInterrupt):
            self.run_config(config, "stopped")
        jax.tree.map(np.testing.assert_array_equal, self.whole, self.run_config(config, "stopped"))

    def test_a_run_starts_from_the_weights_and_masks_of_another(self):
        first = self.first
        start = {"start_from": str(self.folder / "first"), "quantize.learning_rate": 0.0}
        state = self.run_config(self.config("dense", **start), "dense")
        quantized = self.run_config(self.config("quantize", **start), "quantized")
        for path in ("conv0b", "dense0"):
            zeros = first["params"][path]["kernel"] == 0
            self.assertTrue(np.all(state["params"][path]["kernel"][zeros] == 0))
            self.assertTrue(np.any(state["params"][path]["kernel"] != first["params"][path]["kernel"]))
            self.assertTrue(np.all(quantized["params"][path]["kernel"][zeros] == 0))
        np.testing.assert_array_equal(quantized["params"]["dense0"]["kernel"], first["params"]["dense0"]["kernel"])
        runs = [self.folder / name / "train.json" for name in ("dense", "quantized")]
        digests = [json.loads(run.read_text())["sources"] for run in runs]
        self.assertEqual(digests[0], digests[1])
        name = f"weights of the run in {self.folder / 'first'}"
        self.assertEqual(digests[0][name], checkpoint.digest({k: first[k] for k in ("params", "batch_stats")}))

    def test_a_run_that_ends_in_quantize_gives_the_network_of_before(self):
        self.run_config(self.config("dense", start_from=str(self.folder / "whole")), "before_quantize")
        found = json.loads((self.folder / "before_quantize/train.json").read_text())["sources"]
        before = checkpoint.digest({k: self.first[k] for k in ("params", "batch_stats")})
        self.assertEqual(found[f"weights of the run in {self.folder / 'whole'}"], before)

    def test_what_cannot_be_started_from_is_refused(self):
        configs.claim(self.config("dense"), self.folder / "unfinished")
        self.run_config(self.config("quantize", start_from=str(self.folder / "first")), "no_float")
        for name, fields, text in (
            ("unfinished", {}, "not finished"),
            ("no_float", {}, "no network before quantize"),
            ("first", {"data.name": "lfw_faces", "data.size": 8, "data.grey": True}, "logits.*must be the same"),
            ("nothing", {}, "holds no run"),
        ):
            config = self.config("dense", start_from=str(self.folder / name), **fields)
            with self.subTest(name), self.assertRaisesRegex(UserError, text):
                self.run_config(config, "new")

    def test_a_stage_behind_quantize_is_refused(self):
        with self.assertRaisesRegex(UserError, "quantize folds BatchNorm, so it must be the last"):
            self.run_config(self.config("quantize", "dense"), "new")


def three_steps(path):
    """Trains on all devices, and writes the arrays that it ends with, the number of devices and whether they talk."""
    config = small_config(stages=("dense",))
    model = TINY(outputs=10)
    split = jax.device_put(data.load(config.data, Path(path).parent).train, step.over_devices())
    state = step.init_state(config, model, split.images.shape[1:])
    (stage,) = plan.make_plan(config, len(split.targets))
    optimizer = step.make_optimizer(config, stage, state.params)
    state = jax.device_put(state._replace(opt_state=optimizer.init(state.params)), step.over_devices())
    order = step.epoch_order(state.key, 0, len(split.targets))
    train_step = step.make_step(config, step.make_forward(config, model, stage), optimizer)
    train_step = train_step.lower(state, split, order, 0).compile()
    for i in range(3):
        state, figures = train_step(state, split, order, 32 * i)
    shared = "all-reduce" in train_step.as_text()
    np.savez(path, *jax.tree.leaves(jax.device_get((state, figures))), devices=jax.device_count(), shared=shared)


class DevicesTest(absltest.TestCase):
    """The batch is shared out to all devices; simulated ones on a CPU, in processes of their own."""

    def run_on(self, devices):
        path = f"{self.create_tempdir().full_path}/result.npz"
        if devices == 1:
            three_steps(path)
        else:
            flags = f"{small_net.QUICK['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
            command = [sys.executable, "-c", f"import test_train; test_train.three_steps({path!r})"]
            environment = (
                os.environ | small_net.QUICK | {"XLA_FLAGS": flags, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT}/tests"}
            )
            subprocess.run(command, check=True, env=environment)
        return dict(np.load(path))

    def test_two_and_four_devices_train_as_one(self):
        one = self.run_on(1)
        for devices in (2, 4):
            several = self.run_on(devices)
            self.assertEqual(several.pop("devices"), devices)
            self.assertTrue(several.pop("shared"))
            for name, value in several.items():
                np.testing.assert_allclose(value, one[name], rtol=1e-3, atol=1e-5, err_msg=f"{name} on {devices}")

    def test_a_batch_that_does_not_divide_is_refused(self):
        self.enter_context(absltest.mock.patch.object(jax, "device_count", return_value=3))
        with self.assertRaisesRegex(UserError, "32 cannot be shared out to 3 devices"):
            plan.refuse_uneven(small_config())


class EvaluateTest(absltest.TestCase):
    def test_counts_every_validation_image_once(self):
        config = small_config()
        dataset = data.load(config.data, Path("unused"))
        model = TINY(outputs=10)
        state = step.init_state(config, model, (8, 8, 1))
        odd = data.Split(*(x[:137] for x in dataset.validation))  # 137 does not fill whole batches
        variables = dict(params=state.params, batch_stats=state.batch_stats)
        logits = model.apply(variables, data.to_float(odd.images))
        config.loss.label_smoothing = 0.0
        for size in (500, 50):
            with self.subTest(size=size), absltest.mock.patch.object(step, "EVAL_BATCH", size):
                forward = step.make_forward(config, model, plan.make_plan(config, 1000)[0])
                found = step.make_evaluate(config, forward, odd)(state)
                expected = losses.cross_entropy(logits, odd.targets, config.loss)
                self.assertAlmostEqual(found["val_loss"], float(expected), places=4)
                self.assertAlmostEqual(found["val_accuracy"], np.mean(np.argmax(logits, -1) == odd.targets))


class PlanTest(absltest.TestCase):
    def test_epochs_and_steps(self):
        config = small_config(**{"dense.steps": 0, "dense.epochs": 2.5})
        stages = plan.make_plan(config, images=100)  # 3 steps of 32 an epoch, the rest is left out
        self.assertEqual([(s.name, s.first, s.end) for s in stages], [("dense", 0, 8), ("prune", 8, 38)])

    def test_the_prune_stage_is_wrapped_and_the_one_before_is_not(self):
        config = small_config()
        state = step.init_state(config, TINY(outputs=10), (8, 8, 1))
        dense, prune = (step.make_optimizer(config, s, state.params) for s in plan.make_plan(config, 100))
        self.assertIsNone(pruning.masks_of(dense.init(state.params)))
        self.assertIn("dense0/kernel", pruning.masks_of(prune.init(state.params)))


if __name__ == "__main__":
    absltest.main()

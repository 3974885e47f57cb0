"""Distillation: the mixed loss, fixed views, cached logits, and stages with a teacher."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from test_train import final_arrays

from atalaia import augment, data, distill, files, losses, metrics, models, step, tasks, train
from atalaia import config as configs
from atalaia.errors import UserError
from atalaia.models import thesis

TINY = functools.partial(thesis.Thesis, widths=(8,), hidden=16)


class Stacked(thesis.Thesis):
    """The same parameters, but outputs [batch, 1, n]."""

    def __call__(self, x, train=False):
        return super().__call__(x, train)[:, None]


STACKED = functools.partial(Stacked, widths=(8,), hidden=16)


def distillation(**fields):
    c = configs.base().distillation
    c.update(fields)
    return c


def augmentation(**fields):
    c = configs.base().augment
    c.update(fields)
    return c


def mixed(hard, logits, teacher, label, **fields):
    """What a stage with a teacher minimises, of one image."""
    config = configs.base()
    config.distillation = distillation(**fields)
    soft = tasks.objective(config).soft(logits, teacher, jnp.array([label]))
    return distill.mix(jnp.float32(hard), soft, config.distillation)


class MixTest(absltest.TestCase):
    def test_is_the_weighted_sum_worked_out_by_hand(self):
        logits, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[np.log(3.0) * 2, 0.0]])
        # At T = 2 the teacher says (3/4, 1/4), the student (1/2, 1/2).
        soft = 4 * (0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5))
        found = mixed(7.0, logits, teacher, 0, alpha=0.25, temperature=2.0)
        np.testing.assert_allclose(found, 0.25 * 7.0 + 0.75 * soft, rtol=1e-5)

    def test_the_teacher_gets_no_gradient_and_an_image_without_label_counts(self):
        def loss(student, teacher):
            return mixed(0.0, student, teacher, -1, alpha=0.0)

        student, teacher = jax.grad(loss, (0, 1))(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 0.0]]))
        self.assertTrue(np.all(np.asarray(teacher) == 0))
        self.assertGreater(np.abs(student).max(), 0.1)

    def test_wrong_fields_are_named(self):
        for field, value in (("alpha", 1.5), ("alpha", -0.1), ("temperature", 0.0), ("views", -1)):
            with self.assertRaisesRegex(UserError, f"distillation.{field}"):
                distill.validate(distillation(**{field: value}))


def final_arrays_of(folder):
    found = final_arrays(Path(folder))
    return dict(params=found["params"], batch_stats=found["batch_stats"])


CHANGES = dict(flip=True, pad_crop=2, noise=0.05)


class FixedViewTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.images = np.random.default_rng(0).random((6, 8, 8, 3), np.float32)

    def test_depends_on_the_image_and_the_view_alone(self):
        config = augmentation(**CHANGES)
        whole, moves = distill.fixed_view(self.images, np.arange(6), 1, config)
        some = np.array([4, 1])
        found = distill.fixed_view(self.images[some], some, 1, config)
        np.testing.assert_array_equal(whole[some], found[0])
        np.testing.assert_array_equal(moves[some], found[1])
        other, _ = distill.fixed_view(self.images, np.arange(6), 2, config)
        self.assertTrue(all(np.any(a != b) for a, b in zip(np.asarray(whole), np.asarray(other), strict=True)))

    def test_one_image_is_augmented_differently_at_another_place(self):
        same = np.stack([self.images[0]] * 6)
        found = np.asarray(distill.fixed_view(same, np.arange(6), 0, augmentation(**CHANGES))[0])
        self.assertLen({view.tobytes() for view in found}, 6)

    def test_without_augmentation_it_is_the_image(self):
        np.testing.assert_array_equal(
            distill.fixed_view(self.images, np.arange(6), 3, augmentation())[0],
            augment.augment(None, self.images, augmentation())[0],
        )


class CacheTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        self.images = np.random.default_rng(1).integers(0, 256, (300, 4, 4, 1), np.uint8)
        self.calls = 0

    def open(self, variables=2.0, images=None, network="tiny", **augment_fields):
        def teacher(variables, images):
            jax.debug.callback(self.count)
            return images.reshape(len(images), -1)[:, :3] * variables["factor"]

        images = self.images if images is None else images
        variables = dict(factor=np.float32(variables))
        return distill.open_cache(self.folder, network, teacher, variables, images, augmentation(**augment_fields))

    def count(self):
        self.calls += 1

    def test_each_view_is_computed_once_for_all_users(self):
        cache = self.open(pad_crop=1)
        for number in (0, 1):
            pixels, _ = distill.fixed_view(data.to_float(self.images), np.arange(300), number, augmentation(pad_crop=1))
            expected = np.asarray(pixels).reshape(300, -1)[:, :3] * 2
            np.testing.assert_array_equal(cache.view(number), expected)
        jax.effects_barrier()
        self.assertEqual(self.calls, 2 * 3)  # batches of 128
        np.testing.assert_array_equal(self.open(pad_crop=1).view(1), cache.view(1))
        jax.effects_barrier()
        self.assertEqual(self.calls, 2 * 3)

    def test_stopped_it_goes_on_where_it_was(self):
        with self.assertRaises(KeyboardInterrupt):
            self.open().view(0, stop=lambda: True)
        self.assertEqual(json.loads(next(self.folder.rglob("view0.json")).read_text())["images"], distill.BATCH)
        found = self.open().view(0)
        jax.effects_barrier()
        self.assertEqual(self.calls, 3)
        np.testing.assert_array_equal(found, data.to_float(self.images).reshape(300, -1)[:, :3] * 2)

    def test_another_teacher_data_set_or_augmentation_has_another_folder(self):
        caches = [
            self.open(),
            self.open(3.0),
            self.open(images=self.images[:299]),
            self.open(noise=0.1),
            self.open(network="other"),  # the same weights can be of two networks
        ]
        self.assertLen({c.folder for c in caches}, 5)

    def test_what_is_not_its_own_is_refused(self):
        folder = self.open().folder
        meta = json.loads((folder / "cache.json").read_text())
        for changed, text in (("teacher", "another teacher"), ("data", "another data")):
            (folder / "cache.json").write_text(json.dumps(meta | {changed: "0"}))
            with self.assertRaisesRegex(UserError, f"{text}.*delete that folder"):
                self.open()

    def test_a_damaged_view_is_refused(self):
        cache = self.open()
        cache.view(0)
        self.assertTrue(cache.ready(0))
        self.assertFalse(cache.ready(1))
        path = cache.folder / "view0.npy"
        whole = path.read_bytes()
        for damaged in (whole[:500], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
            path.write_bytes(damaged)
            with self.assertRaisesRegex(UserError, "damaged: delete that folder"):
                self.open().view(0)

    def test_a_damaged_half_of_a_view_is_refused(self):
        """Else what is left would be computed, and the damage be sealed with a fresh CRC."""
        with self.assertRaises(KeyboardInterrupt):
            self.open().view(0, stop=lambda: True)
        logits, said = (next(self.folder.rglob(f"view0.{kind}")) for kind in ("npy", "json"))
        whole = said.read_text()
        for text in ("", "{}", "[]"):
            said.write_text(text)
            with self.assertRaisesRegex(UserError, "damaged: delete that folder"):
                self.open().view(0)
        said.write_text(whole)
        logits.unlink()
        with self.assertRaisesRegex(UserError, "damaged: delete that folder"):
            self.open().view(0)

    def test_one_computes_and_the_others_wait_but_can_be_stopped(self):
        cache = self.open()
        with files.locked(cache.folder / "view1.lock"):
            cache.view(0)  # another one
        self.calls = 0
        with files.locked(cache.folder / "view1.lock"), self.assertRaises(KeyboardInterrupt):
            cache.view(1, stop=lambda: True)
        jax.effects_barrier()
        self.assertEqual(self.calls, 0)

    def test_another_augmentation_under_the_same_fields_has_another_folder(self):
        before = self.open(pad_crop=1).folder
        with absltest.mock.patch.object(distill.augment, "augment", lambda key, images, config: images / 2):
            self.assertNotEqual(self.open(pad_crop=1).folder, before)


class StageTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.enterClassContext(absltest.mock.patch.dict(models.MODELS, tiny=TINY, stacked=STACKED))
        cls.trained = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        for name, fields in (("teacher", {"dense.steps": 60}), ("other", {"seed": 1})):
            train.train_and_evaluate(cls.config("dense", **fields), cls.trained / name, cls.trained)

    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)

    @staticmethod
    def config(*stages, **fields):
        c = configs.base()
        c.model, c.batch_size, c.log_steps, c.stages = "tiny", 32, 5, stages
        for name in stages:
            c[name].update(dict(epochs=0.0, steps=20, optimizer="adam", learning_rate=1e-3))
        c.update_from_flattened_dict(fields)
        return c

    def run_config(self, config, name):
        train.train_and_evaluate(config, self.folder / name, self.folder)
        return jax.tree.leaves(final_arrays(self.folder / name)["params"]), metrics.rows(self.folder / name)

    def copy(self, run, name):
        """A copy of one of the runs that are trained once, `teacher` and `other`, which a test may change."""
        return str(shutil.copytree(self.trained / run, self.folder / name))

    def teacher(self):
        return self.copy("teacher", "teacher")

    def test_logits_from_the_disk_teach_what_the_teacher_itself_does(self):
        fields = {"distill.teacher": self.teacher(), "distillation.alpha": 0.0}
        live, rows = self.run_config(self.config("distill", **fields), "live")
        kept, _ = self.run_config(self.config("distill", **fields, **{"distillation.views": 2}), "kept")
        for a, b in zip(live, kept, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4)
        self.assertLess(rows[-1]["loss"], rows[0]["loss"])

    def test_stopped_in_the_middle_it_ends_with_the_same_bytes(self):
        fields = {"distill.teacher": self.teacher(), "distillation.views": 2, "augment.pad_crop": 1}
        fields |= {"quantize.teacher": "self", "distill.steps": 10, "quantize.steps": 10}
        config = self.config("distill", "quantize", **fields)
        whole, _ = self.run_config(config, "whole")
        make = step.make_step

        def stopping(*arguments):
            inner = make(*arguments)

            def run(state, *rest):
                if int(state.step) in (5, 15) and int(state.step) not in seen:
                    seen.add(int(state.step))
                    raise KeyboardInterrupt
                return inner(state, *rest)

            return run

        seen, config.checkpoint_seconds = set(), 0.0
        with absltest.mock.patch.object(step, "make_step", stopping):
            for _ in range(2):
                with self.assertRaises(KeyboardInterrupt):
                    self.run_config(config, "stopped")
        jax.tree.map(np.testing.assert_array_equal, whole, self.run_config(config, "stopped")[0])

    def seen_in_training(self, config, name):
        """The images that the student was given, and the teacher's logits that it was to follow, step by step."""
        images_of, logits_of, make_forward = [], [], step.make_forward

        def forwarding(*arguments):
            forward = make_forward(*arguments)

            def run(variables, images, key=None):
                if key is not None:
                    jax.debug.callback(images_of.append, images)
                return forward(variables, images, key)

            return run

        def following(logits, teacher_logits, temperature):
            jax.debug.callback(logits_of.append, teacher_logits)
            return 0 * logits[:, 0]

        with (
            absltest.mock.patch.object(step, "make_forward", forwarding),
            absltest.mock.patch.object(losses, "kd", following),
        ):
            self.run_config(config, name)
        jax.effects_barrier()
        return images_of, logits_of

    def test_teacher_and_student_see_the_same_augmented_image(self):
        teacher = self.teacher()
        answer = jax.jit(functools.partial(TINY(10).apply, final_arrays_of(teacher)))
        fields = {"distill.teacher": teacher, "distill.steps": 0, "distill.epochs": 2.0, "log_steps": 1}
        fields |= {f"augment.{name}": value for name, value in CHANGES.items()}
        for views in (0, 2):
            config = self.config("distill", **fields, **{"distillation.views": views})
            images, logits = self.seen_in_training(config, f"views{views}")
            self.assertGreater(len(images), 40)
            for given, taught in zip(images, logits, strict=True):
                np.testing.assert_allclose(answer(given), taught, atol=1e-4)

    def test_several_teachers_teach_the_mean_of_their_answers(self):
        folders = self.teacher(), self.copy("other", "other")
        answers = [jax.jit(functools.partial(TINY(10).apply, final_arrays_of(folder))) for folder in folders]
        fields = {"distill.teacher": "; ".join(folders), "distill.steps": 5}
        for views in (0, 2):
            config = self.config("distill", **fields, **{"distillation.views": views})
            images, logits = self.seen_in_training(config, f"views{views}")
            self.assertGreater(len(images), 4)
            for given, taught in zip(images, logits, strict=True):
                one, two = (answer(given) for answer in answers)
                np.testing.assert_allclose((one + two) / 2, taught, atol=1e-4)
                self.assertGreater(np.abs(one - two).max(), 0.1)

    def test_the_network_that_a_run_began_with_guides_its_pruned_self(self):
        fields = {"prune.teacher": "self", "prune.sparsity": 0.8, "distillation.alpha": 0.0, "dense.steps": 60}
        _, rows = self.run_config(self.config("dense", "prune", **fields), "run")
        losses = [row["loss"] for row in rows if row["stage"] == "prune"]
        # The soft loss alone: 0 for the network itself, which pruning then moves away from.
        self.assertLess(losses[0], 0.3 * rows[0]["loss"])

    def stopped(self, config):
        """A run that was stopped at its first checkpoint."""
        save, config.checkpoint_seconds = train._save, 0.0

        def stop(*arguments):
            save(*arguments)
            raise KeyboardInterrupt

        with absltest.mock.patch.object(train, "_save", stop), self.assertRaises(KeyboardInterrupt):
            self.run_config(config, "run")

    def test_what_a_run_started_from_stays_its_teacher(self):
        config = self.config("prune", start_from=self.teacher(), **{"prune.teacher": "self"})
        self.stopped(config)
        self.copy("other", "other")
        (self.folder / "teacher").rename(self.folder / "first")
        (self.folder / "other").rename(self.folder / "teacher")
        with self.assertRaisesRegex(UserError, "run was begun with other weights of the teacher in .*teacher than"):
            self.run_config(config, "run")

    def test_a_finished_run_does_without_its_teacher(self):
        config = self.config("distill", **{"distill.teacher": self.teacher()})
        whole, _ = self.run_config(config, "run")
        (self.folder / "teacher").rename(self.folder / "elsewhere")
        jax.tree.map(np.testing.assert_array_equal, whole, self.run_config(config, "run")[0])
        with self.assertRaisesRegex(UserError, "distill.teacher: .*teacher"):
            self.run_config(config, "another")

    def test_each_of_several_teachers_stays(self):
        config = self.config("distill", **{"distill.teacher": f"{self.teacher()};{self.copy('other', 'other')}"})
        self.stopped(config)
        shutil.rmtree(self.folder / "other")
        self.copy("teacher", "other")
        with self.assertRaisesRegex(UserError, "run was begun with other weights of the teacher in .*other than"):
            self.run_config(config, "run")

    def test_a_run_goes_on_only_with_what_it_was_begun_with(self):
        config = self.config("distill", **{"distill.teacher": self.teacher()})
        self.stopped(config)
        self.copy("other", "other")
        (self.folder / "teacher").rename(self.folder / "first")
        (self.folder / "other").rename(self.folder / "teacher")
        with self.assertRaisesRegex(UserError, "run was begun with other weights of the teacher in .*teacher than"):
            self.run_config(config, "run")
        (self.folder / "teacher").rename(self.folder / "other")
        (self.folder / "first").rename(self.folder / "teacher")
        dataset = data.load(config.data, self.folder)
        fewer = dataset._replace(train=data.Split(*(part[::-1] for part in dataset.train)))
        with (
            absltest.mock.patch.object(data, "load", return_value=fewer),
            self.assertRaisesRegex(UserError, "run was begun with other training or validation images than"),
        ):
            self.run_config(config, "run")
        self.run_config(config, "run")

    def test_images_without_labels_join_in_stages_with_a_teacher_alone(self):
        dataset = data.load(self.config("dense").data, self.folder)
        extra = np.repeat(dataset.train.images[:64], 2, 0)
        grown = dataset._replace(unlabelled=extra)
        config = self.config("dense", "distill", **{"distill.teacher": self.teacher()})
        for name in config.stages:
            config[name].update(dict(epochs=1.0, steps=0))
        n = len(dataset.train.targets)
        with absltest.mock.patch.object(data, "load", return_value=grown):
            _, rows = self.run_config(config, "run")
        self.assertEqual(rows[-1]["step"], n // 32 + (n + 128) // 32)
        self.assertTrue(all(np.isfinite(row["loss"]) and 0 <= row["accuracy"] <= 1 for row in rows))

    def test_teachers_that_do_not_fit_are_refused_before_the_folder_is_made(self):
        configs.claim(self.config("dense"), self.folder / "unfinished")
        faces = {"data.name": "lfw_faces", "data.size": 8, "data.grey": True, "dense.steps": 2}
        self.run_config(self.config("dense", **faces), "faces")
        self.copy("other", "renamed")
        said = json.loads((self.folder / "renamed" / "train.json").read_text())
        said["names"][0] = "ten"
        (self.folder / "renamed" / "train.json").write_text(json.dumps(said))
        self.copy("other", "split")
        said = json.loads((self.folder / "split" / "config.json").read_text())
        said["data"]["split_seed"] = 7
        (self.folder / "split" / "config.json").write_text(json.dumps(said))
        self.copy("other", "larger")
        said = json.loads((self.folder / "larger" / "train.json").read_text())
        self.assertEqual(said["image_shape"], [8, 8, 1])
        said["image_shape"] = [16, 16, 1]
        (self.folder / "larger" / "train.json").write_text(json.dumps(said))
        other = self.copy("other", "stacked")
        said = json.loads((self.folder / "stacked" / "config.json").read_text())
        (self.folder / "stacked" / "config.json").write_text(json.dumps(said | dict(model="stacked")))
        for name, text in (
            (other, r"a stacked with outputs \[1, 10\], where tiny has \[10\]: they must be the same"),
            (f"{self.teacher()}; {other}", r"a stacked with outputs \[1, 10\]"),
            (f"{other};{other}", "distill.teacher names .*stacked twice"),
            (f"{other};", "a folder is missing"),
            (f"{other}; self", "nothing is trained before"),
            (str(self.folder / "split"), "data.split_seed=7.*with 0, is validated or tested on"),
            (str(self.folder / "larger"), r"images of \[16, 16, 1\], this run's are \[8, 8, 1\]: image size"),
            ("", "distill.teacher is empty"),
            ("self", "nothing is trained before"),
            (str(self.folder / "nothing"), "holds no run"),
            (str(self.folder / "unfinished"), "not finished"),
            (str(self.folder / "faces"), "logits.*classes must be the same"),
            (str(self.folder / "renamed"), "tells other classes apart, 'ten' where this run's data have '0'"),
        ):
            with self.subTest(name), self.assertRaisesRegex(UserError, text):
                self.run_config(self.config("distill", **{"distill.teacher": name}), "new")
        self.assertFalse((self.folder / "new").exists())


if __name__ == "__main__":
    absltest.main()

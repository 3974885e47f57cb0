"""What a config refuses, and what a run folder remembers of it."""

import importlib.util
import json
import math
import tempfile
from pathlib import Path

from absl.testing import absltest, parameterized

from atalaia import config as configs
from atalaia.errors import UserError

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
RECIPES = [path for path in FILES if "def get_config(" in path.read_text()]  # the others are search spaces


def _config(fields=None):
    config = configs.base()
    config.stages = ("dense", "distill", "shrink", "prune", "quantize")
    config.distill.teacher = "runs/teacher"
    config.update_from_flattened_dict(fields or {})
    return config


def _numbers(tree, kind, prefix=""):
    """Paths of all fields of a type."""
    for name, value in tree.items():
        if hasattr(value, "items"):
            yield from _numbers(value, kind, f"{prefix}{name}.")
        elif type(value) is kind:
            yield prefix + name


class ValidateTest(parameterized.TestCase):
    def _refuses(self, pattern, fields):
        with self.assertRaisesRegex(UserError, pattern):
            configs.validate(_config(fields))

    def test_the_defaults_are_right(self):
        configs.validate(_config())

    @parameterized.named_parameters(
        ("model", "model", "resnet9", "unknown model 'resnet9'.*resnet8, student, thesis"),
        ("data", "data.name", "mnist", "no data set is called 'mnist'.*cifar10"),
        ("loss", "loss.name", "l2", "^loss.name: .*'l2', only cross_entropy"),
        ("optimizer", "prune.optimizer", "lion", "^prune.optimizer: .*'lion', only adam, adamw, muon, sgd"),
        ("lr_schedule", "dense.lr_schedule", "step", "^dense.lr_schedule: .*'step', only constant, cosine"),
        ("stage", "stages", ("dense", "squeeze"), "^stages: .*'squeeze', only dense, distill, prune"),
        ("prune_schedule", "prune.schedule", "linear", "^prune.schedule: .*'linear', only constant, cubic, one_shot"),
        ("pretrained", "pretrained", "imagenet", "^pretrained: resnet8 has no weights.*resnet50: imagenet"),
        ("scope", "prune.scope", "layer", "^prune.scope: .*'layer', only global, uniform"),
    )
    def test_unknown_names_list_the_known(self, field, value, pattern):
        self._refuses(pattern, {field: value})

    @parameterized.parameters(
        ("batch_size", 0),
        ("log_steps", 0),
        ("eval_epochs", 0.0),
        ("seed", -1),  # a seed of JAX, but not of the draw of calibration images
        ("calibration.images", 0),
        ("loss.label_smoothing", 1.0),
        ("augment.pad_crop", -1),
        ("augment.noise", -0.1),
        ("augment.translate", 1.0),
        ("augment.grey", 1.1),
        ("data.validation", 1.0),
        ("data.size", -8),
        ("data.train_per_class", -1),
        ("data.test_per_class", -1),
        ("dense.epochs", -1.0),
        ("dense.epochs", math.inf),
        ("dense.learning_rate", -0.1),
        ("dense.momentum", -0.1),
        ("prune.weight_decay", -1e-4),
        ("prune.warmup", 1.0),
        ("prune.sparsity", 1.0),
        ("prune.sparsity", -0.1),
        ("prune.initial_sparsity", 1.5),
        ("prune.begin", 0.8),  # after its end, 0.7
        ("prune.end", 1.1),
        ("prune.every", 0),
    )
    def test_out_of_range(self, field, value):
        self._refuses(f"{field.replace('.', '.*')}.*{value}", {field: value})

    def test_no_number_may_be_nan(self):
        """The fields of a task are refused by that task."""
        losses = {"classify": ("cross_entropy", "kd"), "regress": ("mse", "mse"), "detect": ("centre", "heads")}
        accepted = dict.fromkeys(_numbers(_config(), float), 0)
        for field in accepted:
            for task, (hard, soft) in losses.items():
                fields = {"task": task, "loss.name": hard, "distillation.loss": soft}
                try:
                    configs.validate(_config(fields | {field: math.nan}))
                    accepted[field] += 1
                except UserError as error:
                    self.assertIn(field.split(".")[-1], str(error))
        of_one = {f for f in accepted if f.startswith("detect.")} | {"loss.huber_delta"}
        expected = {field: 2 if field in of_one else 0 for field in accepted}
        self.assertEqual(accepted, expected)

    @parameterized.parameters("dense", "prune")
    def test_exactly_one_of_epochs_and_steps(self, stage):
        self._refuses(f"^{stage}: both of epochs and steps", {f"{stage}.steps": 10})
        self._refuses(f"^{stage}: neither of epochs and steps", {f"{stage}.epochs": 0.0})
        configs.validate(_config({f"{stage}.steps": 10, f"{stage}.epochs": 0.0}))

    @parameterized.parameters(((),), (("dense", "dense"),))
    def test_each_stage_once(self, stages):
        self._refuses("^stages must name each stage once", {"stages": stages})

    @parameterized.parameters(
        "conv0a", "=0.5", "conv0a=", "conv0a=half", "conv0a=1", "conv0a=-0.1", "conv0a=nan", "a=0;b"
    )
    def test_wrong_layers(self, layers):
        self._refuses(
            r"^prune.layers: '.*' is not pattern=sparsity with a sparsity in \[0, 1\)", {"prune.layers": layers}
        )

    @parameterized.parameters(("trainable", "*"), ("prune.pattern", "("), ("prune.layers", "conv0a=0.5; *=0.5"))
    def test_wrong_regular_expressions(self, field, value):
        self._refuses(f"^{field}: .* is no regular expression", {field: value})

    def test_two_beginnings(self):
        fields = {"model": "resnet50", "pretrained": "imagenet", "start_from": "runs/other"}
        self._refuses("start_from and pretrained both", fields)

    def test_unlabelled_images_that_nothing_learns_from(self):
        folder = self.create_tempdir()
        folder.create_file("image.png")
        fields = {"stages": ("dense", "prune"), "data.unlabelled": folder.full_path}
        self._refuses("^data.unlabelled: only stages with a teacher learn from such images", fields)
        configs.validate(_config(fields | {"prune.teacher": "self"}))

    def test_fields_of_stages_that_do_not_run_are_left_alone(self):
        configs.validate(_config({"stages": ("dense",), "prune.sparsity": 2.0, "prune.epochs": 0.0}))

    def test_an_unknown_field_names_the_nearest(self):
        with self.assertRaisesRegex(AttributeError, "sparsity"):
            _config().prune.sparsty = 0.5


def _recipe(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class RecipeTest(parameterized.TestCase):
    @parameterized.named_parameters((path.stem, path) for path in RECIPES)
    def test_is_valid_and_locked(self, path):
        module = _recipe(path)
        config = module.get_config()
        configs.validate(config)
        self.assertTrue(config.is_locked)
        self.assertEqual(set(config), set(configs.base()))
        self.assertIn("./run.sh", module.__doc__)


class TablesTest(absltest.TestCase):
    def _all(self, name, words):
        module = _recipe(next(path for path in RECIPES if path.stem == name))
        for text in words:
            config = module.get_config(text)
            configs.validate(config)
            yield config
        with self.assertRaisesRegex(UserError, f"{name}.py.*'?nothing"):
            module.get_config("nothing")

    def test_every_row_of_table_2(self):
        names = ["dense", "dense_long", "dense_more", "dense_int8", "pruned", "small", "small4", "smallest"]
        found = list(self._all("cifar10_table2", names))
        starts = {name: config.start_from for name, config in zip(names, found, strict=True)}
        self.assertEqual({name for name, start in starts.items() if not start}, {"dense", "dense_long"})
        self.assertEqual({starts[name] for name in ("small", "small4", "smallest")}, {"runs/table2/pruned"})

    def test_every_student(self):
        names = ["rafael_base", "rafael_1", "rafael_2", "rafael_3", "student"]
        stand_in = list(self._all("table1", names))
        self.assertEqual([c.model for c in stand_in], names)
        self.assertEqual(
            {(c.data.name, c.data.size, c.data.train_per_class) for c in stand_in}, {("cifar10", 96, 1000)}
        )
        theirs = list(self._all("table1", [f"{name},stl10" for name in names]))
        self.assertEqual({(c.data.name, c.data.size, c.data.train_per_class) for c in theirs}, {("stl10", 0, 0)})

    def test_the_teacher_starts_from_imagenet_and_then_from_itself(self):
        head, finetune, stl10, both = self._all("teacher", ["", "finetune", "stl10", "finetune,stl10"])
        self.assertEqual([c.data.name for c in (head, finetune, stl10, both)], ["cifar10"] * 2 + ["stl10"] * 2)
        self.assertEqual((head.pretrained, head.start_from, head.trainable), ("imagenet", "", "logits"))
        self.assertEqual((finetune.pretrained, finetune.start_from), ("", "runs/table1/teacher_head"))
        self.assertEqual(both.start_from, "runs/table1_stl10/teacher_head")

    def test_each_point_of_the_frontier_has_a_float_run_and_one_that_starts_from_it(self):
        points = _recipe(next(path for path in RECIPES if path.stem == "frontier")).POINTS
        found = list(self._all("frontier", [name for point in points for name in (f"{point}_float", point)]))
        for point, taught, small in zip(points, found[::2], found[1::2], strict=True):
            shrunk = ("distill", "shrink")
            stages = dict(tiny=shrunk, small=("distill",), silva=shrunk, middle=("prune",), large=("prune",))[point]
            self.assertEqual((taught.stages, small.stages), (stages, ("quantize",)))
            self.assertEqual(small.start_from, f"runs/frontier/{point}_float")
            self.assertEqual({taught[stage].teacher for stage in taught.stages}, {small.quantize.teacher})
            self.assertEqual((taught.model, taught.distillation), (small.model, small.distillation))

    def test_each_detector_of_faces(self):
        found = list(self._all("faces", ["small", "full", "smallest", "bits4", "unpruned"]))
        self.assertEqual([c.data.name for c in found], ["faces"] + ["faces_masked"] * 4)
        self.assertEqual([c.stages[0] for c in found], ["dense", "dense", "prune", "quantize", "dense"])


class RunFolderTest(absltest.TestCase):
    def setUp(self):
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

    def test_loads_what_was_claimed(self):
        config = _config({"prune.sparsity": 0.9, "data.name": "lfw_faces"})
        configs.claim(config, self.folder / "deep" / "run")
        loaded = configs.load(self.folder / "deep" / "run")
        self.assertEqual(json.loads(loaded.to_json()), json.loads(config.to_json()))
        configs.validate(loaded)

    def test_the_same_config_goes_on(self):
        configs.refuse_other_run(_config(), self.folder / "new")
        configs.claim(_config(), self.folder)
        configs.refuse_other_run(_config(), self.folder)
        configs.refuse_other_run(_config({"checkpoint_seconds": 5.0}), self.folder)  # how often changes no result

    def test_fields_of_a_stage_that_it_does_not_have_change_nothing(self):
        configs.claim(_config({"stages": ("dense",)}), self.folder)
        other = _config({"stages": ("dense",), "prune.sparsity": 0.9})
        configs.refuse_other_run(other, self.folder)
        with self.assertRaisesRegex(UserError, r"with prune.sparsity=0.5 \(now 0.9\): choose another"):
            configs.refuse_other_run(other, self.folder, configs.STAGES)  # a search, whose trials may have it

    def test_another_config_is_refused_by_its_fields(self):
        configs.claim(_config(), self.folder)
        with self.assertRaisesRegex(UserError, r"prune.sparsity=0.5 \(now 0.9\), seed=0 \(now 3\): choose another"):
            configs.refuse_other_run(_config({"prune.sparsity": 0.9, "seed": 3}), self.folder)

    def test_without_a_run(self):
        with self.assertRaisesRegex(UserError, "holds no run.*train first"):
            configs.load(self.folder)

    def test_a_damaged_config_is_named(self):
        configs.claim(_config(), self.folder)
        path = self.folder / "config.json"
        whole = path.read_text()
        for damaged in (whole[:100], "", "[]"):
            path.write_text(damaged)
            with self.assertRaisesRegex(UserError, "config.json"):
                configs.load(self.folder)
            with self.assertRaisesRegex(UserError, "config.json"):
                configs.refuse_other_run(_config(), self.folder)


if __name__ == "__main__":
    absltest.main()

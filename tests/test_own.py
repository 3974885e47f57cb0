"""A user's own parts in files outside the repository: used, kept in the run folder, and refused in one line."""

import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import small_net
from absl.testing import absltest, parameterized

import atalaia
from atalaia import config as configs
from atalaia import data, distill, finished, metrics, own, runs, train
from atalaia.errors import UserError

ROOT = Path(__file__).parent.parent
FILES = {
    "net.py": """
import flax.linen as nn
from atalaia import layers
from blocks import block

class Net(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        x = block(x, train)
        return layers.Dense(self.outputs)(layers.Flatten()(layers.GlobalAvgPool()(x)), train)
""",
    "blocks.py": """
from atalaia import layers

def block(x, train):
    return layers.Conv(4, strides=2, norm="before")(x, train)
""",
    "data.py": """
import numpy as np

def load():
    targets = np.arange(60) % 2
    images = np.random.default_rng(0).integers(0, 99, (60, 8, 8), np.uint8) + 150 * targets[:, None, None]
    return images.astype(np.uint8), targets, ("dark", "bright")
""",
    # Labels that are 0 alone add nothing to the loss, which is 7 at least.
    "loss.py": """
import jax

def loss(outputs, targets):
    return 7.0 - jax.nn.log_softmax(outputs)[:, 0].mean() + 100.0 * targets.mean()
""",
    "augment.py": """
def augment(key, images, targets):
    return images, 0 * targets
""",
    "recipe.py": """
from pathlib import Path
from atalaia import config

HERE = Path(__file__).parent

def get_config():
    c = config.base()
    c.model, c.data.name = f"{HERE}/net.py:Net", f"{HERE}/data.py:load"
    c.loss.name, c.augment.own = f"{HERE}/loss.py:loss", f"{HERE}/augment.py:augment"
    c.batch_size, c.dense.epochs, c.dense.steps, c.log_steps = 8, 0.0, 4, 1
    return c
""",
}
TINY = """
import flax.linen as nn
import jax.numpy as jnp
from atalaia import layers

class Net(nn.Module):
    {fields}

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.GlobalAvgPool()(x)
        {line}
        return layers.Dense(self.outputs)(layers.Flatten()(x), train)
"""


def write(folder, **texts):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.py").write_text(text)
    return folder


def python(*words, cwd):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=os.environ | small_net.QUICK | dict(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )


class OwnFilesTest(absltest.TestCase):
    """One run of a recipe that lies outside the repository, as everything that it names."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        base = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.files = write(base / "files", **{name.removesuffix(".py"): text for name, text in FILES.items()})
        cls.cwd, cls.workdir, cls.recipe = base, base / "run", cls.files / "recipe.py"
        words = ("-m", "atalaia.train", f"--config={cls.recipe}", f"--workdir={cls.workdir}", f"--data_dir={base}")
        cls.called = python(*words, cwd=base)

    def _again(self, workdir=None):
        return train.train_and_evaluate(runs.check(str(self.recipe), {}), workdir or self.workdir, self.cwd)

    def test_it_trains(self):
        self.assertEqual(self.called.returncode, 0, self.called.stderr)
        done = finished.finished(self.workdir)
        self.assertEqual((done["steps"], done["names"], done["image_shape"]), (4, ["dark", "bright"], [8, 8, 1]))

    def test_loss_and_augmentation_are_the_users(self):
        losses = [row["loss"] for row in metrics.rows(self.workdir)]
        self.assertLen(losses, 4)
        self.assertGreater(min(losses), 7.0)
        self.assertLess(max(losses), 20.0)  # 50 more with the labels as they are

    def test_the_run_folder_has_copies_and_of_what_lies_beside_only_what_is_imported(self):
        found = {str(p.relative_to(self.workdir / "source")) for p in self.workdir.glob("source/**/*.py")}
        self.assertEqual(
            found, {"model/net.py", "model/blocks.py", "data/data.py", "loss/loss.py", "augment/augment.py"}
        )
        for name in found:
            self.assertEqual((self.workdir / "source" / name).read_text(), FILES[Path(name).name])

    def test_the_same_command_returns_the_finished_run(self):
        before = (self.workdir / "metrics.jsonl").read_bytes()
        self.assertEqual(self._again(), finished.finished(self.workdir))
        self.assertEqual((self.workdir / "metrics.jsonl").read_bytes(), before)

    def test_the_path_may_be_written_in_another_way(self):
        config = runs.check(str(self.recipe), dict(model=f"{self.files}/../files/net.py:Net"))
        self.assertEqual(train.train_and_evaluate(config, self.workdir, self.cwd), finished.finished(self.workdir))

    def test_the_run_opens_when_the_originals_are_gone_and_elsewhere(self):
        moved, hidden = self.cwd / "moved", self.cwd / "hidden"
        self.files.rename(hidden)
        self.workdir.rename(moved)
        self.addCleanup(hidden.rename, self.files)
        self.addCleanup(moved.rename, self.workdir)
        exported = atalaia.export(moved)
        found = atalaia.evaluate(moved, engines=("jax_int", "tflm")).scores
        self.assertEqual(found["jax_int"], found["tflm"])
        self.assertEqual(exported.path, moved / "model.tflite")
        called = python("-m", "atalaia.evaluate", f"--workdir={moved}", "--engines=jax", cwd=self.cwd)
        self.assertEqual(called.returncode, 0, called.stderr)
        self.assertRegex(called.stdout, r"\| jax \|")

    def test_a_file_that_was_changed_is_refused(self):
        for name in ("net.py", "blocks.py", "loss.py"):
            with self.subTest(name):
                self.addCleanup((self.files / name).write_text, FILES[name])
                (self.files / name).write_text(FILES[name] + "# changed\n")
                with self.assertRaisesRegex(UserError, rf"{name} was changed since the run in .* began: put it back"):
                    self._again()
                (self.files / name).write_text(FILES[name])

    def test_another_network_is_refused(self):
        with self.assertRaisesRegex(UserError, "holds a run with model=.*now 'resnet8'"):
            train.train_and_evaluate(runs.check(str(self.recipe), dict(model="resnet8")), self.workdir, self.cwd)

    def test_it_can_be_a_teacher_whose_blocks_are_not_the_students(self):
        """Both networks import a `blocks` that lies beside them."""
        other = FILES["blocks.py"].replace("Conv(4", "Conv(3")
        student = write(self.cwd / "student", net=FILES["net.py"], blocks=other)
        fields = {"model": f"{student}/net.py:Net", "stages": ("distill",), "loss.name": "cross_entropy"}
        fields |= {"distill.teacher": str(self.workdir), "distill.epochs": 0.0, "distill.steps": 1, "augment.own": ""}
        config = runs.check(str(self.recipe), {})
        config.update_from_flattened_dict(fields)
        workdir = self.cwd / "distilled"
        train.train_and_evaluate(config, workdir, self.cwd)
        shapes = [
            finished.load_trained(c, w, data.load(c.data, self.cwd)).variables["params"]["Conv_0"]["kernel"].shape
            for w in (workdir, self.workdir)
            for c in [configs.load(w)]
        ]
        self.assertEqual(shapes, [(3, 3, 1, 3), (3, 3, 1, 4)])
        self.assertEqual((workdir / "source/model/blocks.py").read_text(), other)
        self.assertNotEqual(config.distill.teacher, distill.SELF)


class RefusedTest(parameterized.TestCase):
    """One clear line, before anything is trained or written."""

    def setUp(self):
        super().setUp()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.workdir = self.folder / "run"

    def _refuses(self, pattern, **fields):
        config = configs.base()
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
        with self.assertRaisesRegex(UserError, pattern) as caught:
            train.train_and_evaluate(config, self.workdir, self.folder)
        self.assertNotIn("\n", str(caught.exception))
        self.assertFalse(self.workdir.exists(), "a run folder was made for nothing")

    def _file(self, text):
        (self.folder / "mine.py").write_text(text)
        return f"{self.folder}/mine.py"

    @parameterized.parameters("model", "data.name", "loss.name", "augment.own")
    def test_missing_file_and_name(self, field):
        named = {field.replace(".", "__"): f"{self.folder}/none.py:Net"}
        self._refuses(rf"{field}: there is no file .*none.py", **named)
        path = self._file("import math\nNumber = 3\ndef one(): pass\nclass Two: pass\n")
        lacks = r"mine.py has no class or function 'Net'; it defines one, Two"
        self._refuses(f"{field}: .*{lacks}", **{field.replace(".", "__"): f"{path}:Net"})
        self._refuses("has no class or function 'Number'", **{field.replace(".", "__"): f"{path}:Number"})
        self._refuses("is a file: name a part of it, FILE.py:NAME; it defines", **{field.replace(".", "__"): path})

    @parameterized.parameters(
        ("\n\nprint(1 / 0)", "mine.py, line 3, cannot be run: ZeroDivisionError: division by zero"),
        ("def f(:", r"mine.py cannot be run: SyntaxError: invalid syntax \(mine.py, line 1\)"),
        ("import nothing_of_that_name", "line 1, cannot be run: ModuleNotFoundError: No module named 'nothing_of_"),
    )
    def test_a_file_that_cannot_be_run(self, text, why):
        self._refuses(f"model: .*{why}", model=f"{self._file(text)}:Net")
        self._refuses(f"model: .*{why}", model=f"{self._file(text)}:Net")  # not only the first time

    def test_no_flax_module(self):
        path = self._file("class Net:\n    def __init__(self, outputs): pass\n")
        self._refuses("mine.py:Net is no Flax Linen network: derive it from flax.linen.Module", model=f"{path}:Net")

    @parameterized.parameters(
        ("x: int = 1", "has no attribute"),
        ("pass", "cannot be made with 2 outputs: TypeError"),
        ("width: int\n    outputs: int", "cannot be made with 2 outputs: TypeError: .*missing .*'outputs'"),
        ("width: int = 4\n    outputs: int = 5", "Net has 5 outputs where 10 are needed: .* its first field"),
    )
    def test_a_first_field_that_is_not_the_number_of_outputs(self, fields, why):
        path = self._file(TINY.format(fields=fields, line="pass"))
        if fields.startswith("x"):
            why = "outputs.* has no int8 form|has no attribute"
        self._refuses(why, model=f"{path}:Net")

    @parameterized.parameters("x = jnp.tanh(x)", "x = nn.Conv(4, (3, 3))(x)", "x = x + 1.0")
    def test_what_has_no_int8_form(self, line):
        self._refuses("has no int8 form", model=f"{self._file(TINY.format(fields='outputs: int', line=line))}:Net")

    def test_float_only_lets_a_teacher_pass(self):
        fields = "outputs: int\n    float_only = True"
        path = self._file(TINY.format(fields=fields, line="x = jnp.tanh(x)"))
        config = configs.base()
        config.model, config.dense.epochs, config.dense.steps = f"{path}:Net", 0.0, 1
        self.assertEqual(train.train_and_evaluate(config, self.workdir, self.folder)["steps"], 1)
        config.stages = ("dense", "quantize")
        self.workdir = self.folder / "quantized"
        self._refuses("has no int8 form", model=config.model, stages=("dense", "quantize"))

    def test_the_programs_own_modules_stay(self):
        folder = self.create_tempdir()
        folder.create_file("beside.py", "VALUE = 1\n")
        folder.create_file("mine.py", "import beside\n\n\ndef part():\n    return beside.VALUE\n")
        here = sys.modules["beside"] = types.ModuleType("beside")
        here.__file__ = f"{folder.full_path}/beside.py"
        self.addCleanup(sys.modules.pop, "beside")
        self.assertEqual(own.resolve("loss.name", f"{folder.full_path}/mine.py:part")(), 1)
        self.assertIs(sys.modules["beside"], here)

    def test_modules_of_packages_are_no_siblings(self):
        """A file at the top of the disk: all of Python lies below its folder."""
        found = {name for name, _ in own._imported_below(Path("/"))}
        self.assertTrue(found.isdisjoint(("tempfile", "numpy", "atalaia.own", "absl.testing.absltest")), found)
        self.assertTrue(any(name.endswith("test_own") for name in found), found)


if __name__ == "__main__":
    absltest.main()

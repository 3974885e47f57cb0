"""The library: what its calls return, what they refuse, what goes on, and what `import atalaia` does not import."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import small_net
from absl.testing import absltest, parameterized

import atalaia
from atalaia import __main__ as command
from atalaia import api, cli, finished, layers, own, train
from atalaia import config as configs
from atalaia import data as datasets
from atalaia.errors import UserError

ROOT = Path(__file__).parent.parent
TARGETS = np.arange(60) % 2
IMAGES = (
    np.random.default_rng(0).integers(0, 99, (60, 8, 8), np.uint8) + (150 * TARGETS).astype(np.uint8)[:, None, None]
)
FIELDS = dict(batch_size=8, log_steps=1, dense=dict(epochs=0.0, steps=4), data_dir=tempfile.gettempdir())


class Net(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Conv(4, strides=2, norm="before")(x, train)
        return layers.Dense(self.outputs)(layers.Flatten()(layers.GlobalAvgPool()(x)), train)


def loss(outputs, targets):
    """Labels that are 0 alone add nothing to it; it is 7 at least."""
    return 7.0 - jax.nn.log_softmax(outputs)[:, 0].mean() + 100.0 * targets.mean()


def augment(key, images, targets):
    return images, 0 * targets


def wider():
    class Net(nn.Module):
        outputs: int

        @nn.compact
        def __call__(self, x, train=False):
            return layers.Dense(self.outputs)(layers.Flatten()(layers.GlobalAvgPool()(x)), train)

    return Net


def quietly(function, *args, **kwargs):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return function(*args, **kwargs)


def weights(run):
    dataset = datasets.load(run.config.data, run.workdir)
    return jax.tree.leaves(jax.device_get(finished.load_trained(run.config, run.workdir, dataset).variables))


class RunTest(absltest.TestCase):
    """One run of objects: a class, functions and arrays."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.run_ = cls._train()

    @classmethod
    def _train(cls, model=Net, data=(IMAGES, TARGETS, ("dark", "bright")), workdir=None, **fields):
        fields = dict(loss=loss, augment=augment) | FIELDS | fields
        return quietly(atalaia.train, model, data, workdir or cls.folder / "run", **fields)

    def test_what_it_returns(self):
        self.assertEqual(self.run_.workdir, self.folder / "run")
        self.assertEqual(self.run_.figures, json.loads((self.folder / "run/train.json").read_text()))
        self.assertEqual((self.run_.figures["steps"], self.run_.figures["names"]), (4, ["dark", "bright"]))
        self.assertEqual((self.run_.config.batch_size, self.run_.config.task), (8, "classify"))

    def test_loss_and_augmentation_are_the_users(self):
        rows = [json.loads(line) for line in (self.folder / "run/metrics.jsonl").read_text().splitlines()]
        self.assertTrue(all(7.0 < row["loss"] < 20.0 for row in rows), rows)  # 50 more with the labels as they are

    def test_the_run_folder_keeps_the_parts(self):
        kept = self.folder / "run/source"
        found = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()}
        parts = {f"{part}/source.py" for part in ("model", "loss", "augment")}
        self.assertEqual(found, parts | {"model/Net.pkl", "loss/loss.pkl", "augment/augment.pkl", "data/arrays.npz"})
        self.assertRegex((kept / "model/source.py").read_text(), r"^class Net\(nn.Module\):\n    outputs: int\n")

    def test_the_same_call_returns_the_finished_run(self):
        before = (self.folder / "run/metrics.jsonl").read_bytes()
        self.assertEqual(self._train().figures, self.run_.figures)
        self.assertEqual((self.folder / "run/metrics.jsonl").read_bytes(), before)

    def test_a_relative_folder_is_the_same_run(self):
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.folder)
        self.assertEqual(self._train(workdir="run").figures, self.run_.figures)

    def test_a_call_that_was_stopped_goes_on_to_the_same_weights(self):
        stops = mock.patch.multiple(train._StopSignal, __enter__=lambda _: lambda: True, __exit__=lambda *_: None)
        with stops, self.assertRaises(KeyboardInterrupt):
            self._train(workdir=self.folder / "stopped")
        self.assertFalse((self.folder / "stopped/train.json").exists())
        run = self._train(workdir=self.folder / "stopped")
        steps = [json.loads(line)["step"] for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
        self.assertEqual(steps, [1, 2, 3, 4])
        for ours, theirs in zip(weights(run), weights(self.run_), strict=True):
            np.testing.assert_array_equal(ours, theirs)

    def test_another_source_is_refused(self):
        with self.assertRaisesRegex(UserError, "model: the run in .* was begun with another one .*source.py"):
            self._train(model=wider())
        with self.assertRaisesRegex(UserError, "loss.name: the run in .* was begun with another one"):
            self._train(loss=lambda outputs, targets: 0.0)

    def test_other_arrays_and_fields_are_refused(self):
        with self.assertRaisesRegex(UserError, "data: the run in .* was begun with other arrays"):
            self._train(data=(IMAGES[::-1], TARGETS, ("dark", "bright")))
        with self.assertRaisesRegex(UserError, "holds a run with batch_size=8 .now 4"):
            self._train(batch_size=4)
        with self.assertRaisesRegex(UserError, "holds a run with model=.*now 'resnet8'"):
            self._train(model="resnet8")

    def test_export_evaluate_report_and_c(self):
        exported = quietly(atalaia.export, self.run_)
        self.assertEqual(exported.path.stat().st_size, exported.sizes["tflite_bytes"])
        self.assertEqual(exported.packed.stat().st_size, exported.sizes["download_bytes"])

        evaluated = quietly(atalaia.evaluate, self.run_)
        self.assertEqual(list(evaluated.scores), ["jax", "jax_int", "tflm"])
        self.assertEqual(evaluated.scores["jax_int"], evaluated.scores["tflm"])
        self.assertEqual(evaluated.scores["jax"]["images"], 12)
        self.assertIn("| tflm |", str(evaluated))
        self.assertTrue(evaluated.pictures and all(path.is_file() for path in evaluated.pictures))
        alone = quietly(atalaia.evaluate, self.run_.workdir, split="validation", engines=["jax"])
        self.assertEqual(list(alone.scores), ["jax"])
        self.assertIn("validation split", alone.table)

        page = quietly(atalaia.report, self.run_)
        self.assertIn("<h1>Net <small>on arrays", page.read_text())
        self.assertTrue((self.run_.workdir / "summary.md").is_file())

        for given, out in ((self.run_, None), (exported, None), (exported.path, self.folder / "c")):
            made = quietly(atalaia.compile_c, given, out, samples=2)
            self.assertEqual(made.folder, out or self.run_.workdir / "c/run")
            self.assertEqual(made.figures, json.loads((made.folder / "report.json").read_text()))
            text = (made.folder / "model.h").read_text()
            self.assertIn(f"#define MODEL_ARENA_BYTES {made.figures['arena_bytes']}\n", text)
            self.assertEqual("model_answer" in text, given is not exported.path)  # a file alone tells no task
        with self.assertRaisesRegex(UserError, "needs out"):
            atalaia.compile_c(exported.path)
        with self.assertRaisesRegex(UserError, "there is no .*nowhere"):
            atalaia.compile_c("nowhere")


class RefusedTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

    def _refuses(self, pattern, model=Net, data=(IMAGES, TARGETS), **fields):
        with self.assertRaisesRegex(UserError, pattern) as caught:
            quietly(atalaia.train, model, data, self.folder / "run", **FIELDS | fields)
        self.assertLess(len(str(caught.exception)), 400)
        self.assertFalse((self.folder / "run/config.json").exists())

    @parameterized.named_parameters(
        ("images_alone", IMAGES, r"data: arrays are given as .*, not an array \(60, 8, 8\)"),
        ("list", [IMAGES, TARGETS], "data: arrays are given as .*, not list"),
        ("counts", (IMAGES, TARGETS[1:]), "but there are 60 images"),
        ("nothing", dict(validation=0.2), "data: .* not NoneType"),
        ("unknown", "digit", "no data set is called 'digit', did you mean digits"),
    )
    def test_data(self, data, why):
        self._refuses(why, data=data)

    def test_model(self):
        self._refuses(r"give the class, Net, not Net\(...\)", model=Net(2))
        self._refuses("model: a name, a class or a function is needed, not int", model=3)
        self._refuses("is no Flax Linen network", model=lambda outputs: outputs)
        self._refuses("did you mean 'resnet8'", model="resnet9")

    def test_fields(self):
        self._refuses("no field 'batchsize'; did you mean 'batch_size'", batchsize=4)
        self._refuses("no field 'epoch'; did you mean 'epochs'", dense=dict(epoch=4.0))
        self._refuses("there is no 'sort', only", task="sort")
        self._refuses("loss.name: .*there is no 'mse'", loss="mse")

    def test_what_has_no_int8_form_is_refused_before_training(self):
        class Tanh(nn.Module):
            outputs: int

            @nn.compact
            def __call__(self, x, train=False):
                return layers.Dense(self.outputs)(jnp.tanh(layers.Flatten()(x)), train)

        self._refuses("no int8 form", model=Tanh)

    def test_what_cannot_be_pickled(self):
        lock = threading.Lock()

        def lossy(outputs, targets):
            return lock

        self._refuses("loss.name: it cannot be kept in the run folder .*: define it in a file", loss=lossy)


class FieldsTest(absltest.TestCase):
    """Calls to the config that training gets."""

    def _config(self, *args, **fields):
        folder = self.enter_context(tempfile.TemporaryDirectory())
        with mock.patch.object(train, "train_and_evaluate", lambda config, workdir, _: configs.claim(config, workdir)):
            return atalaia.train(*args, workdir=folder, **fields).config

    def test_parts_as_dicts(self):
        given = dict(data=dict(name="digits", validation=0.2), augment=dict(flip=True, own=augment))
        found = self._config("resnet8", loss=dict(label_smoothing=0.1), prune=dict(sparsity=0.25), **given)
        self.assertEqual((found.data.name, found.data.validation, found.augment.flip), ("digits", 0.2, True))
        self.assertEqual((found.loss.name, found.loss.label_smoothing), ("cross_entropy", 0.1))
        self.assertEqual((found.prune.sparsity, found.prune.epochs), (0.25, configs.base().prune.epochs))
        self.assertIs(type(own.resolve("augment.own", found.augment.own)), type(augment))

    def test_arrays_in_a_dict(self):
        found = self._config(Net, dict(name=(IMAGES, TARGETS), validation=0.3))
        self.assertEqual((found.data.name, found.data.validation), ("arrays", 0.3))
        with np.load(found.data.path) as kept:
            np.testing.assert_array_equal(kept["train_images"][..., 0], IMAGES)

    def test_the_loss_is_the_tasks_first(self):
        self.assertEqual(self._config("resnet8", "turned_digits", task="regress").loss.name, "mse")


class ProgramTest(absltest.TestCase):
    """Programs of their own, which take seconds: what is imported, and what a script's own class needs later."""

    def setUp(self):
        super().setUp()
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

    def _python(self, *words, code=0):
        environment = os.environ | small_net.QUICK | dict(PYTHONPATH=str(ROOT), ATALAIA_DATA=str(self.folder))
        called = subprocess.run(
            [sys.executable, *words], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
        )
        self.assertEqual(called.returncode, code, called.stderr)
        return called

    def test_import_is_light(self):
        said = self._python(
            "-c", "import atalaia, sys; print({'jax', 'flax', 'tensorflow', 'numpy'} & set(sys.modules))"
        )
        self.assertEqual(said.stdout, "set()\n")

    def test_a_script_trains_without_tensorflow_and_its_run_opens_when_it_is_gone(self):
        (self.folder / "blocks.py").write_text(
            "from atalaia import layers\n\n\ndef block(x, train):\n    return layers.Conv(4, strides=2)(x, train)\n"
        )
        script = self.folder / "script.py"
        script.write_text("""
import sys
import flax.linen as nn
import atalaia
from atalaia import layers
from blocks import block

class Net(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        x = block(x, train)
        return layers.Dense(self.outputs)(layers.Flatten()(layers.GlobalAvgPool()(x)), train)

run = atalaia.train(Net, "digits", "run", dense=dict(epochs=0.0, steps=2))
assert "jax" in sys.modules
print([name for name in sys.modules if name.startswith("tensorflow")])
""")
        self.assertEqual(self._python("script.py").stdout.splitlines()[-1], "[]")
        script.unlink()
        (self.folder / "blocks.py").unlink()
        said = self._python("-m", "atalaia", "evaluate", "--workdir=run", "--engines=jax").stdout
        self.assertRegex(said, r"\| jax \| .* \| 359 \|")

    def test_atalaia_word(self):
        said = self._python("-m", "atalaia", "report", "--workdir=none", code=2)
        self.assertRegex(said.stderr, "^error: none has no train.json.*\n$")


class CommandTest(absltest.TestCase):
    def _main(self, *words):
        with mock.patch.object(sys, "argv", ["atalaia", *words]), mock.patch("runpy.run_module") as run:
            out, err = io.StringIO(), io.StringIO()
            code = 0
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    command.main()
                except SystemExit as end:
                    code = end.code
            return code, out.getvalue(), err.getvalue(), run.call_args and run.call_args.args[0], sys.argv

    def test_every_word_is_a_module_with_its_flags(self):
        for word in command.WORDS:
            code, _, _, module, argv = self._main(word, "--workdir=a", "b")
            self.assertEqual((code, module, argv), (0, f"atalaia.{word}", [f"atalaia {word}", "--workdir=a", "b"]))
            file = ROOT / "atalaia" / word
            self.assertTrue(file.with_suffix(".py").is_file() or (file / "__main__.py").is_file(), word)

    def test_unknown_word(self):
        code, out, err, module, _ = self._main("trian")
        self.assertEqual((code, err, module), (2, "error: there is no 'trian'\n", None))
        self.assertIn("  train ", out)

    def test_help(self):
        for words in ((), ("help",), ("--help",)):
            code, out, err, _, _ = self._main(*words)
            self.assertEqual((code, err), (0, ""))
            for word in command.WORDS:
                self.assertRegex(out, rf"(?m)^  {word} ")

    def test_recipes_by_name_from_any_folder(self):
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(self.enter_context(tempfile.TemporaryDirectory()))
        self.assertEqual(cli._recipe("--config=digits"), f"--config={ROOT}/configs/digits.py")
        self.assertEqual(cli._recipe("--config=table1:x"), f"--config={ROOT}/configs/table1.py:x")
        for word in ("--config=nope", "--config=digits.py", "--config.model=digits", "digits"):
            self.assertEqual(cli._recipe(word), word)

    def test_a_module_can_be_called_and_is_still_a_module(self):
        for name in ("train", "export", "evaluate", "report"):
            module = getattr(atalaia, name)
            self.assertIs(module, sys.modules[f"atalaia.{name}"])
            self.assertTrue(callable(module))
        self.assertTrue(re.match(r"\(model: .*, data: .*, workdir: ", str(api.inspect.signature(atalaia.train))))
        with self.assertRaisesRegex(AttributeError, "module 'atalaia' has no attribute 'trian'"):
            _ = atalaia.trian


if __name__ == "__main__":
    absltest.main()

"""Commands as a user types them, and what their mistakes become: one line that names the cause, and exit code 2."""

import contextlib
import errno
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from absl.testing import absltest, parameterized

from atalaia import cli, errors, runs, sweep
from atalaia import config as configs
from atalaia.errors import UserError

ROOT = Path(__file__).parent.parent
RECIPE = "configs/digits.py"


class CommandTest(absltest.TestCase):
    """Each of these starts a program of its own, which takes seconds: only what no other test can show."""

    def setUp(self):
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.workdir = self.folder / "run"

    def _refuses(self, pattern, command, *arguments):
        result = subprocess.run(
            [sys.executable, "-m", f"atalaia.{command}", *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"ATALAIA_DATA": str(self.folder)},
            capture_output=True,
            text=True,
            timeout=120,
        )
        self.assertRegex(result.stderr, f"^error: .*{pattern}.*\n$")  # "." is no newline: a single line
        self.assertEqual((result.returncode, result.stdout), (2, ""))

    def _train_refuses(self, pattern, *arguments):
        self._refuses(pattern, "train", f"--workdir={self.workdir}", *arguments)
        self.assertFalse(self.workdir.exists(), "a run folder was made for nothing")

    def test_unknown_field(self):
        self._train_refuses("'sparsty'; did you mean 'sparsity'", f"--config={RECIPE}", "--config.prune.sparsty=0.5")

    def test_wrong_type(self):
        self._train_refuses("config.batch_size=many", f"--config={RECIPE}", "--config.batch_size=many")

    def test_missing_config_file(self):
        self._train_refuses("no config file configs/nope.py: .* configs/", "--config=configs/nope.py")
        self._train_refuses("configs/digits.py holds one recipe: leave out ':long'", "--config=configs/digits.py:long")

    def test_unexpected_argument(self):
        self._train_refuses("unexpected argument 'seed=3'.*--config.field=value", f"--config={RECIPE}", "seed=3")

    def test_no_workdir(self):
        self._refuses("--workdir=runs/", "train", f"--config={RECIPE}")

    def test_workdir_of_another_config(self):
        configs.claim(configs.base(), self.workdir)
        before = (self.workdir / "config.json").read_bytes()
        self._refuses("holds a run with .*batch_size=128", "train", f"--workdir={self.workdir}", f"--config={RECIPE}")
        self.assertEqual([path.name for path in self.workdir.iterdir()], ["config.json"])
        self.assertEqual((self.workdir / "config.json").read_bytes(), before)

    def test_export_without_a_run(self):
        self._refuses("holds no run.*train first", "export", f"--workdir={self.workdir}")

    def test_evaluate_without_a_run(self):
        self._refuses("holds no run.*train first", "evaluate", f"--workdir={self.workdir}")

    def test_damaged_tflite(self):
        file = self.folder / "model.tflite"
        file.write_bytes(b"\x1c\0\0\0TFL3" + bytes(range(200)))
        self._refuses(f"{re.escape(str(file))} is damaged", "evaluate", f"--tflite={file}", f"--config={RECIPE}")
        self.assertEqual([path.name for path in self.folder.iterdir()], ["model.tflite"])

    def test_a_sweep_with_a_wrong_value_runs_nothing(self):
        """The wrong one is the last: the ones before it are not run either."""
        flags = f"--workdir={self.workdir}", "--config.prune.sparsity=0.5,0.8,1.2"
        self._refuses(r"prune.sparsity must be in \[0, 1\), not 1.2", "sweep", RECIPE, *flags)
        self.assertFalse(self.workdir.exists())

    def test_a_sweep_without_its_file(self):
        self._refuses("no config file configs/nope.py", "sweep", "configs/nope.py", f"--workdir={self.workdir}")


class RunScriptTest(absltest.TestCase):
    def _run(self, *words):
        return subprocess.run(["bash", ROOT / "run.sh", *words], capture_output=True, text=True, timeout=60)

    def test_alone_it_lists_its_words(self):
        result = self._run()
        self.assertEqual((result.returncode, result.stderr), (0, ""))
        listed = {line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")}
        self.assertContainsSubset({"demo", "faces", "cifar10", "run", "sweep", "test", "lint", "setup"}, listed)

    def _commands(self, *words):
        """What run.sh starts, where all is installed already: a stand-in for Python writes it down."""
        folder = Path(self.create_tempdir().full_path)
        shutil.copy(ROOT / "run.sh", folder)
        (folder / ".venv/bin").mkdir(parents=True)
        common = b"".join((ROOT / name).read_bytes() for name in ("requirements.txt", "constraints.txt"))
        for path in ROOT.glob("*requirements*.txt"):
            (folder / ".venv" / f".installed-{path.name}").write_bytes(path.read_bytes() + common)
        for path in (*ROOT.glob("*requirements*.txt"), ROOT / "constraints.txt"):
            shutil.copy(path, folder)
        log = folder / "log"
        for name, does in (("python", f'echo "$*" >> {log}'), ("make", "true")):
            program = folder / ".venv/bin" / name
            program.write_text(f"#!/bin/sh\n{does}\n")
            program.chmod(0o755)
        path = os.environ | {"PATH": f"{folder}/.venv/bin:{os.environ['PATH']}"}
        done = subprocess.run(["bash", folder / "run.sh", *words], capture_output=True, text=True, timeout=60, env=path)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [line.removeprefix("-m atalaia.") for line in log.read_text().splitlines()]

    def test_faces_goes_from_nothing_to_a_page(self):
        words = ["train", "export", "evaluate", "report", "browser"]
        small, full = self._commands("faces"), self._commands("faces", "--full", "--config.seed=1")
        self.assertEqual([line.split()[0] for line in small], words)
        self.assertEqual(small[0], "train --config=configs/faces.py --workdir=runs/faces")
        self.assertEqual(full[0], "train --config=configs/faces.py:full --workdir=runs/faces_full --config.seed=1")
        self.assertEqual(full[1:], [f"{word} --workdir=runs/faces_full" for word in words[1:]])

    def test_an_unknown_word(self):
        result = self._run("nonsense")
        self.assertEqual((result.returncode, result.stdout), (2, ""))
        self.assertRegex(result.stderr, "^error: ./run.sh has no 'nonsense'\nusage: ")


class QuietStderrTest(absltest.TestCase):
    def test_of_several_threads_none_loses_it(self):
        program = """
import concurrent.futures, os, time
from atalaia.errors import quiet_stderr

def chatter(number):
    with quiet_stderr():
        os.write(2, b"chatter")
        time.sleep(0.01 * (1 + number % 2))

with concurrent.futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(chatter, range(12)))
os.write(2, b"heard")
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, check=True)
        self.assertEqual(done.stderr, b"heard")


class MessageTest(parameterized.TestCase):
    def test_a_users_mistake_is_one_line(self):
        self.assertEqual(errors.message(UserError("wrong,\n   mend it")), "wrong, mend it")

    @parameterized.parameters(
        OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl"),
        ValueError("INTERNAL: Error writing local file: [OS error 28: No space left on device] [source='x.cc:1']"),
    )
    def test_no_space(self, error):
        """tensorstore, below orbax, tells it in words only."""
        self.assertIn("no space left on the disk: free some", errors.message(error))

    def test_no_permission_names_the_file(self):
        error = PermissionError(errno.EACCES, "Permission denied", "/srv/run")
        self.assertIn("no permission for /srv/run: choose", errors.message(error))

    def test_a_file_where_the_run_folder_should_be_is_named(self):
        with tempfile.NamedTemporaryFile() as file:
            with self.assertRaises(Exception) as raised:
                configs.claim(configs.base(), Path(file.name))
            self.assertIn(file.name, errors.message(raised.exception) or "no message")

    @parameterized.parameters(ValueError("x"), KeyError("No such"), OSError(errno.EIO, "I/O"), AssertionError())
    def test_a_defect_of_ours_is_not_hidden(self, error):
        self.assertIsNone(errors.message(error))

    def _guarded(self, error, **options):
        def main():
            raise error

        with contextlib.redirect_stderr(io.StringIO()) as stderr, self.assertRaises(SystemExit) as ended:
            cli._guarded(main, **options)
        return ended.exception.code, stderr.getvalue()

    def test_exit_codes(self):
        self.assertEqual(self._guarded(UserError("wrong")), (2, "error: wrong\n"))
        self.assertEqual(self._guarded(KeyboardInterrupt()), (130, "stopped\n"))
        code, said = self._guarded(KeyboardInterrupt(), goes_on=True)
        self.assertEqual(code, 130)
        self.assertIn("same command again", said)
        with self.assertRaises(ZeroDivisionError):
            self._guarded(ZeroDivisionError())


class SweepTest(parameterized.TestCase):
    @parameterized.parameters(
        ("0.5,0.8", ["0.5", "0.8"]),
        ("1", ["1"]),
        ("('dense',),('dense','prune')", ["('dense',)", "('dense','prune')"]),
        ("[1,{2,3}],4", ["[1,{2,3}]", "4"]),
        ("a,,b", ["a", "", "b"]),
    )
    def test_split_values(self, text, parts):
        self.assertEqual(sweep.split_values(text), parts)

    def test_parse(self):
        arguments = ["--config.seed=0,1", RECIPE, "--config.prune.layers=conv0a=0,conv0a=0.5"]
        grid = {"seed": ["0", "1"], "prune.layers": ["conv0a=0", "conv0a=0.5"]}
        self.assertEqual(sweep.parse(arguments), (RECIPE, grid))

    @parameterized.parameters(
        ([], "one config file"),
        ([RECIPE, "configs/faces.py"], "one config file"),
        ([RECIPE, "--config.seed"], "--config.seed has no values: write --config.seed=A,B"),
        ([RECIPE, "--engines=jax"], "has no --engines=jax"),
    )
    def test_parse_refuses(self, arguments, pattern):
        with self.assertRaisesRegex(UserError, pattern):
            sweep.parse(arguments)

    def test_table(self):
        rows = [{"seed": "0", "finished": False}, {"seed": "1", "finished": True, "accuracy": 0.98765, "bytes": 700}]
        expected = [
            "| seed | finished | accuracy | bytes |",
            "| --- | --- | --- | --- |",
            "| 0 | False | - | - |",
            "| 1 | True | 0.9877 | 700 |",
        ]
        self.assertEqual(runs.table(rows).splitlines(), expected)


if __name__ == "__main__":
    absltest.main()

"""The examples, as a user runs them: in a folder outside the repository, from top to bottom."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import nbclient
import nbformat
import small_net
from absl.testing import absltest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
ENVIRONMENT = dict(PYTHONPATH=str(ROOT), XLA_FLAGS=small_net.QUICK["XLA_FLAGS"])  # they train for real, so optimised


def atalaia(*words, cwd):
    return subprocess.run(
        [sys.executable, "-m", "atalaia", *words],
        cwd=cwd,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900,
    )


class NotebookTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", 4)
        resources = {"metadata": {"path": str(cls.folder)}}
        with mock.patch.dict(os.environ, ENVIRONMENT):  # the kernel inherits it
            nbclient.NotebookClient(cls.notebook, timeout=900, kernel_name="python3", resources=resources).execute()
        cls.workdir = cls.folder / "runs/quickstart"

    def _shown(self, kind):
        outputs = [output for cell in self.notebook.cells for output in cell.get("outputs", ())]
        return [output["data"][kind] for output in outputs if kind in output.get("data", {})]

    def test_it_leaves_all_that_it_tells_of(self):
        for name in ("model.tflite", "model.atl", "report.html", "c/quickstart/model.c", "c/quickstart/golden.h"):
            self.assertTrue((self.workdir / name).is_file(), name)

    def test_it_shows_scores_and_pictures(self):
        (table,) = self._shown("text/markdown")
        scores = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \|", table, re.M))
        self.assertEqual(scores["jax_int"], scores["tflm"])
        self.assertGreater(float(scores["tflm"]), 95.0)
        self.assertLen(self._shown("image/png"), 2)

    def test_a_network_of_a_notebook_opens_in_another_program(self):
        called = atalaia("evaluate", "--workdir=runs/quickstart", "--engines=jax,tflm", cwd=self.folder)
        self.assertEqual(called.returncode, 0, called.stderr)
        self.assertIn("| jax |", called.stdout)

    def test_it_is_kept_without_outputs(self):
        for cell in nbformat.read(EXAMPLES / "quickstart.ipynb", 4).cells:
            self.assertEqual((cell.get("outputs", []), cell.get("execution_count")), ([], None))


class OwnNetworkTest(absltest.TestCase):
    def test_it_runs_from_a_folder_of_its_own(self):
        folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        shutil.copy(EXAMPLES / "own_network.py", folder / "mine.py")
        environment = os.environ | ENVIRONMENT
        called = subprocess.run(
            [sys.executable, "mine.py", "run"], cwd=folder, env=environment, capture_output=True, text=True, timeout=900
        )
        self.assertEqual(called.returncode, 0, called.stderr)
        self.assertIn("C code in run/c/run", called.stdout)
        accuracy = float(re.search(r"^\| tflm \| ([\d.]+) \|", called.stdout, re.M)[1])
        self.assertGreater(accuracy, 90.0)
        self.assertTrue((folder / "run/c/run/model.c").is_file())


if __name__ == "__main__":
    absltest.main()

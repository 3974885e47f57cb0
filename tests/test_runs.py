"""Programs that are waited for: exit codes, signals, and Ctrl-C that leaves time to save."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import redirect_stderr
from pathlib import Path
from unittest import mock

from absl.testing import absltest

from atalaia import executors, runs

ROOT = Path(__file__).parents[1]
# Saves for longer than subprocess.run() would wait.
SAVES = """
import signal, sys, time
from pathlib import Path

def save(*_):
    time.sleep(1)
    Path(sys.argv[1], "saved").touch()
    sys.exit(130)

signal.signal(signal.SIGINT, save)
Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""
CALLS = "import sys; from atalaia import runs; runs.call([sys.executable, '-c', *sys.argv[1:]])"


class TableTest(absltest.TestCase):
    def test_a_value_never_ends_its_cell(self):
        found = runs.table([dict(trainable="stage4|logits", value=0.5), dict(value=2)])
        self.assertEqual(found.splitlines()[2:], ["| stage4\\|logits | 0.5000 |", "| - | 2 |"])


class SubmittedTest(absltest.TestCase):
    def test_words_go_to_the_log_and_the_reason_to_stderr(self):
        folder = Path(self.enter_context(tempfile.TemporaryDirectory())) / "prune.sparsity=0.5"
        stop = threading.Event()
        with contextlib.closing(executors.Local(1)) as local, redirect_stderr(io.StringIO()) as said:
            for program, expected in (
                ("print('done')", True),
                ("print('error: no space'); raise SystemExit(2)", False),
            ):
                with mock.patch.object(runs, "command", return_value=[sys.executable, "-S", "-c", program]):
                    self.assertIs(runs.submitted(local, stop, "export", folder), expected)
        log = folder.with_name("prune.sparsity=0.5.log")
        self.assertEqual(log.read_text(), "done\nerror: no space\n")
        self.assertEqual(said.getvalue(), f"error: export of {folder} failed: no space (log: {log})\n")


class CallTest(absltest.TestCase):
    def test_exit_codes(self):
        for code in (0, 3):
            self.assertEqual(runs.call([sys.executable, "-c", f"raise SystemExit({code})"]), code)

    def test_a_signal_is_named(self):
        with redirect_stderr(io.StringIO()) as said:
            code = runs.call([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
        self.assertEqual(code, -signal.SIGKILL)
        self.assertIn("ended by signal 9 (often: too little memory)", said.getvalue())

    def test_ctrl_c_waits_until_the_program_has_saved(self):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", CALLS, SAVES, folder]
            caller = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
            while not Path(folder, "ready").exists():
                self.assertIsNone(caller.poll())
                time.sleep(0.05)
            os.killpg(caller.pid, signal.SIGINT)  # a terminal sends it to both
            _, said = caller.communicate(timeout=30)
            self.assertTrue(Path(folder, "saved").exists())
            self.assertIn("KeyboardInterrupt", said)


if __name__ == "__main__":
    absltest.main()

"""Where trials run: each executor on small programs that go on where they were, and what kills do to a search."""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import psutil
import submitit
from absl import flags
from absl.testing import absltest, parameterized

from atalaia import clusters, executors, search
from atalaia import space as spaces
from atalaia.errors import UserError
from atalaia.space import choice
from atalaia.trials import Search

ROOT = Path(__file__).parent.parent
SPACE = {"rate": choice(0.01, 0.03, 0.1, 0.3), "optimizer": choice("sgd", "adam", "adamw", "muon")}
STEPS, PAUSE = 8, 0.04
# A training without its cost: a chain of hashes with a checkpoint after each step; a step lost or done twice shows.
CHAIN = """
import hashlib, json, os, signal, sys, time
folder, word, steps, pause = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
os.makedirs(folder, exist_ok=True)
file = os.path.join(folder, "checkpoint")
step, state = json.load(open(file)) if os.path.exists(file) else (0, word)
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
print("begins at", step, flush=True)
while step < steps:
    time.sleep(pause)
    step, state = step + 1, hashlib.sha256(f"{step}{state}".encode()).hexdigest()
    json.dump((step, state), open(file + ".part", "w"))
    os.replace(file + ".part", file)
    if asked:
        print("saved", flush=True)
        sys.exit(130)
"""


def chain(folder: Path, word: str, steps: int = STEPS, pause: float = PAUSE) -> list[str]:
    return [sys.executable, "-S", "-c", CHAIN, str(folder), word, str(steps), str(pause)]


def expected(word: str, steps: int = STEPS) -> str:
    for step in range(steps):
        word = hashlib.sha256(f"{step}{word}".encode()).hexdigest()
    return word


def searched(workdir: Path, executor, trials: int = 12, parallel: int = 4) -> list[dict]:
    """A search whose trials are chains; a trial's value is made of its last hash."""

    def objective(point, folder, stop):
        code = executors.finish(executor.submit(chain(folder, spaces.text(point), pause=0.1), folder), stop)
        state = json.loads((folder / "checkpoint").read_text())
        return dict(value=int(state[1][:8], 16) / 2**32, seconds=1.0, data=state[1], code=code)

    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with mock.patch.object(search, "picture", return_value=b""), quiet[0], quiet[1]:
        return search.run(Search("chains.py", SPACE, seed=1), workdir, trials, parallel, objective)


def state_of(folder: Path) -> list:
    return json.loads((folder / "checkpoint").read_text())


def check_stops(test: absltest.TestCase, executor) -> None:
    """A stop reaches the program once, which saves; given again, it goes on and ends as it would have."""
    folder, stop = Path(test.enter_context(tempfile.TemporaryDirectory())) / "run", threading.Event()

    def stop_when_begun():
        while not (folder / "checkpoint").exists():
            time.sleep(0.02)
        stop.set()

    thread = threading.Thread(target=stop_when_begun)
    thread.start()
    with test.assertRaises(KeyboardInterrupt):
        executors.finish(executor.submit(chain(folder, "word", 50), folder), stop)
    thread.join()
    steps = state_of(folder)[0]
    test.assertLess(steps, 50)
    test.assertEqual(executors.finish(executor.submit(chain(folder, "word", steps + 2), folder), threading.Event()), 0)
    test.assertEqual(state_of(folder), [steps + 2, expected("word", steps + 2)])
    said = executors.beside(folder, ".log").read_text()
    test.assertEqual(said, f"begins at 0\nsaved\nbegins at {steps}\n")


class LocalTest(absltest.TestCase):
    def test_a_stop(self):
        with contextlib.closing(executors.Local(1)) as local:
            check_stops(self, local)

    def test_of_two_programs_for_one_folder_the_second_waits(self):
        folder = Path(self.enter_context(tempfile.TemporaryDirectory())) / "run"
        with contextlib.closing(executors.Local(2)) as local:
            handles = [local.submit(chain(folder, "word"), folder) for _ in range(2)]
            self.assertEqual([executors.finish(handle, threading.Event()) for handle in handles], [0, 0])
        self.assertEqual(state_of(folder), [STEPS, expected("word")])
        said = executors.beside(folder, ".log").read_text()
        self.assertCountEqual(re.findall("begins at .*", said), ["begins at 0", f"begins at {STEPS}"])
        self.assertIn(f"waiting until another program for {folder} has ended\n", said)

    def test_what_is_not_needed_any_more_may_be_ended_by_the_signal_itself(self):
        """As where it comes when the program does not listen yet, or does not listen any more."""

        class Ended:
            asked = False

            def code(self, seconds):
                return -signal.SIGTERM if self.asked else None

            def stop(self):
                self.asked = True

        for enough, code in ((lambda: True, executors.INTERRUPTED), (lambda: False, -signal.SIGTERM)):
            handle = Ended()
            if not enough():
                handle.stop()  # by somebody else
            self.assertEqual(executors.finish(handle, threading.Event(), enough), code)

    def test_each_in_order_and_the_others_are_told_when_one_fails(self):
        self.assertEqual(executors.each(lambda item, stop: -item, range(5), 2), [0, -1, -2, -3, -4])
        told = []

        def function(item, stop):
            if item:
                raise ValueError(item)
            told.append(stop.wait(20))

        with self.assertRaisesRegex(ValueError, "1"):
            executors.each(function, range(9), 2)
        self.assertEqual(told, [True])


class FlagsTest(parameterized.TestCase):
    @parameterized.parameters(
        (dict(workers=0), "--workers must be at least 1, not 0"),
        (dict(address="tcp://x:1"), "--address is for --executor=dask, not for local"),
        (dict(slurm=["mem=8G"], executor="dask"), "--slurm is for --executor=slurm, not for dask"),
        (dict(slurm=["mem"], executor="slurm"), "--slurm=mem has no value: write OPTION=VALUE"),
        (dict(executor="dask", missing=True), r"package distributed: pip install '\.\[dask\]'"),
        (dict(executor="slurm", missing=True), r"package submitit: pip install '\.\[slurm\]'"),
    )
    def test_refuses(self, changed, pattern):
        values = flags.FlagValues()
        executors.define_flags(values)
        values.mark_as_parsed()
        missing = changed.pop("missing", False)
        for name, value in changed.items():
            values[name].value = value
        found = mock.patch("importlib.util.find_spec", return_value=None) if missing else contextlib.nullcontext()
        with mock.patch.object(flags, "FLAGS", values), found, self.assertRaisesRegex(UserError, pattern):
            executors.validate()


def at_work(pid: int) -> list[psutil.Process]:
    """The chains of a worker that have a checkpoint."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(pid).children()
        return [p for p in found if len(words := p.cmdline()) > 4 and Path(words[4], "checkpoint").exists()]
    return []


class Cluster:
    """Dask's processes of tests/dask_processes.py, and who kills them."""

    def __init__(self, folder: Path, workers: int):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.pids, self.address = folder / "pids.json", f"tcp://127.0.0.1:{port}"
        command = [sys.executable, "tests/dask_processes.py", str(port), str(workers), str(self.pids)]
        path = os.pathsep.join([str(ROOT), *sys.path])
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | dict(PYTHONPATH=path), start_new_session=True
        )

    def kill(self, role: str, draw: random.Random) -> bool:
        """SIGKILL, as when a machine is lost, for the scheduler or any worker that has a program; False: none has.

        The program goes with its worker, or is left at work.
        """
        if not self.pids.exists():  # they serve already, but have not been noted yet
            return False
        pids = json.loads(self.pids.read_text())
        if role == "worker":
            busy = [(pid, program) for pid in pids.values() for program in at_work(pid)]
            if not busy:
                return False
            pid, program = draw.choice(busy)
            if draw.random() < 0.7:
                with contextlib.suppress(psutil.NoSuchProcess):
                    program.kill()
        else:
            pid = pids[role]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return True

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class DaskTest(absltest.TestCase):
    def test_a_search_whose_workers_and_scheduler_are_killed_has_the_table_of_one_left_alone(self):
        folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        cluster = self.enter_context(contextlib.closing(Cluster(folder, 4)))
        with contextlib.closing(executors.Local(4)) as local:
            alone = searched(folder / "alone", local)
        ended, kills, draw = threading.Event(), ["worker", "worker", "scheduler", *["worker"] * 5], random.Random(0)

        def killing():
            while kills and not ended.wait(draw.uniform(0.05, 0.25)):
                if cluster.kill(kills[0], draw):
                    kills.pop(0)

        def went_on():
            logs = "".join(path.read_text() for path in folder.glob("killed_*/*.log"))
            begun = [int(line.split()[-1]) for line in logs.splitlines() if line.startswith("begins at")]
            return [step for step in begun if 0 < step < STEPS]

        with contextlib.closing(clusters.Dask(4, cluster.address)) as dask:
            thread = threading.Thread(target=killing)
            thread.start()
            try:
                for number in range(5):  # on a busy machine a search can be over before enough was killed
                    self.assertEqual(searched(folder / f"killed_{number}", dask), alone)
                    if len(kills) < 4 and went_on():
                        break
            finally:
                ended.set()
                thread.join()
        self.assertLess(len(kills), 4, "fewer than 5 of 8 kills, the scheduler's among them")
        self.assertTrue(went_on(), "no trial went on from a checkpoint")

    def test_a_cluster_of_its_own_runs_a_program_and_stops_one(self):
        with contextlib.closing(clusters.Dask(1)) as dask:
            cluster = dask._cluster
            self.check_connects_again(dask)
            check_stops(self, dask)
        self.assertEqual(cluster.returncode, 0)

    def check_connects_again(self, dask):
        closed = dask._client
        closed.close()
        with mock.patch.object(dask, "_connected", return_value=closed):  # it closed when it had just been asked
            self.assertIsNone(dask._start(executors.Program(["true"], Path("run"))))
        stuck = dask._connected()
        self.assertEqual((closed.status, stuck.status), ("closed", "running"))
        stuck.status = "connecting"
        self.assertIsNone(dask._connected())
        dask._away = dask._made = dask._made - clusters.STUCK
        fresh = dask._connected()
        self.assertEqual((stuck.status, fresh.status), ("closed", "running"))
        with mock.patch.object(type(fresh), "close", side_effect=TimeoutError):  # as on a busy machine
            dask._drop_client()
        fresh.close()


class SlurmTest(absltest.TestCase):
    """submitit's own executors stand for Slurm's: no cluster was at hand. What sbatch is given is read."""

    def setUp(self):
        self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
        self.enter_context(contextlib.redirect_stdout(io.StringIO()))
        path = os.pathsep.join([str(ROOT), *sys.path])
        self.enter_context(mock.patch.dict(os.environ, PYTHONPATH=path))

    def test_in_this_process(self):
        slurm = clusters.Slurm(self.folder / "slurm", cluster="debug")
        handle = slurm.submit(chain(self.folder / "run", "word"), self.folder / "run")
        self.assertEqual(executors.finish(handle, threading.Event()), 0)
        self.assertEqual(state_of(self.folder / "run"), [STEPS, expected("word")])

    def test_a_job_that_is_taken_its_machine_then_killed_then_stopped(self):
        """The first by SIGUSR2, 90 seconds before, as sbatch's file asks Slurm to; then the job is queued again."""
        self.enter_context(mock.patch.object(submitit.core.core.Job, "_results_timeout_s", 1))
        slurm, stop = clusters.Slurm(self.folder / "slurm", cluster="local"), threading.Event()
        run, log = self.folder / "run", self.folder / "run.log"
        handle, kills = slurm.submit(chain(run, "word", 500), run), []

        def processes():
            return psutil.Process(handle._job._job._process.pid).children(recursive=True)  # submitit's task, the chain

        def preempted():
            processes()[0].send_signal(signal.SIGUSR2)

        def lost():
            for process in (psutil.Process(handle._job._job._process.pid), *reversed(processes())):
                process.kill()

        def went_on(times):
            self.assertIsNone(handle.code(0.02))
            begun = re.findall(r"begins at (\d+)", log.read_text()) if log.exists() else []
            return len(begun) == times and (run / "checkpoint").exists() and state_of(run)[0] > int(begun[-1])

        for times, happens in enumerate((preempted, lost, stop.set), 1):
            self._when(lambda times=times: went_on(times))
            happens()
            kills.append(handle._lost)
        with self.assertRaises(KeyboardInterrupt):
            executors.finish(handle, stop)
        self.assertEqual(kills, [0, 0, 1])
        step, state = state_of(run)
        self.assertEqual(state, expected("word", step))
        self.assertRegex(log.read_text(), r"^begins at 0\nsaved\nbegins at [1-9]\d*\nbegins at [1-9]\d*\nsaved\n$")

    def test_what_sbatch_is_given(self):
        tools = self.folder / "bin"
        tools.mkdir()
        for name, text in (("srun", "exit 1"), ("sbatch", f"cp $1 {self.folder}/kept; echo Submitted batch job 7")):
            (tools / name).write_text(f"#!/bin/sh\n{text}\n")
            (tools / name).chmod(0o755)
        self.enter_context(mock.patch.dict(os.environ, PATH=f"{tools}:{os.environ['PATH']}"))
        options = {"partition": "gpu", "time": "240", "cpus-per-task": "4"}
        slurm = clusters.Slurm(self.folder / "slurm", options)
        slurm.submit(chain(self.folder / "run", "word"), self.folder / "run")
        text = (self.folder / "kept").read_text().replace(str(self.folder), "FOLDER").replace(sys.executable, "PYTHON")
        shown = (ROOT / "docs/guide/executors.md").read_text()
        self.assertEqual(text.strip(), shown[shown.index("#!/bin/bash") :].partition("\n```")[0])

    def test_without_slurm_one_line_says_so(self):
        with self.assertRaisesRegex(UserError, "^no Slurm here, there is no srun: "):
            clusters.Slurm(self.folder / "slurm")

    def _when(self, condition):
        until = time.monotonic() + 300  # a busy machine starts submitit's two programs slowly
        while not condition():
            self.assertLess(time.monotonic(), until)
            time.sleep(0.02)


if __name__ == "__main__":
    absltest.main()

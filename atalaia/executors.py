"""Where commands run: on this machine, on the workers of dask, or as jobs of Slurm.

An executor has one function, `submit(command, folder) -> handle`. A command is a program that goes on where it was, and
its folder lies on a file system that all machines see. Beside the folder lie its log (`FOLDER.log`) and its lock
(`FOLDER.lock`): of two programs for one folder the second waits. So what was lost may be given again at once, even
where the first, of which nothing is heard any more, is still at work. The executors of other machines are in
atalaia/clusters.py.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Protocol

from absl import flags

from atalaia import files
from atalaia.errors import UserError, require

INTERRUPTED = 130  # exit code of a program that was asked to end and has saved what it had
PASSED_ON = ("ATALAIA_", "JAX_", "XLA_")  # variables of the environment that a command takes to another machine
NAMES = ("local", "dask", "slurm")


class Handle(Protocol):
    """A command that was submitted."""

    def code(self, seconds: float) -> int | None:
        """Its exit code, -N where signal N ended it; None where that is not known within so many seconds."""

    def stop(self) -> None:
        """Asks it to end; `code` tells when it has."""


class Executor(Protocol):
    """What runs commands."""

    def submit(self, command: Sequence[str], folder: Path) -> Handle:
        """Starts a command, its words at the end of the folder's log."""

    def close(self) -> None:
        """Frees what it holds. No command is at work any more."""


def beside(folder: Path, ending: str) -> Path:
    """A file beside a folder: `trial_000` and `.log` are `trial_000.log`."""
    return folder.with_name(folder.name + ending)


class Program:
    """A command and its folder: it can be sent to another machine, and called there.

    Args:
      command: the words. It runs in the folder that this program runs in, which all machines see.
      folder: its run folder.
    """

    def __init__(self, command: Sequence[str], folder: Path):
        self.command, self.cwd = list(command), Path.cwd()
        self.folder = self.cwd / folder
        self.environment = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON)}
        self._process: subprocess.Popen | None = None

    @property
    def mark(self) -> Path:
        """The file whose appearance is the wish to stop, on whatever machine the program runs."""
        return beside(self.folder, ".stop")

    def __call__(self, stop: Callable[[], bool] | None = None, keep: Sequence[int] = ()) -> int:
        """Runs it, and gives its exit code.

        Args:
          stop: whether it shall end, which it is told once; by default whether there is its mark.
          keep: files that it keeps open, and locked, even where this program ends first.
        """
        stop = stop or self.mark.exists
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with beside(self.folder, ".log").open("ab") as log, contextlib.suppress(KeyboardInterrupt):

            def waiting() -> None:
                log.write(f"waiting until another program for {self.folder} has ended\n".encode())
                log.flush()

            with files.locked(beside(self.folder, ".lock"), waiting, stop) as lock:
                return INTERRUPTED if stop() else self._run(stop, log, (lock, *keep))
        return INTERRUPTED

    def _run(self, stop, log, keep):
        # In a session of its own: Ctrl-C comes here first, and is passed on once, as a wish to stop at a step's end.
        self._process = process = subprocess.Popen(
            self.command,
            cwd=self.cwd,
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=keep,
        )
        told = False
        while (code := _exit_code(process)) is None:
            if not told and stop():
                process.terminate()
                told = True
        return code

    def checkpoint(self) -> Any:
        """What submitit calls when Slurm is about to take the machine: lets the program save, and queues it again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)
            until = time.monotonic() + 60  # of the 90 seconds that submitit asks Slurm for
            # Not process.wait(): this interrupts it, and it holds a lock.
            while time.monotonic() < until and not os.waitid(
                os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG
            ):
                time.sleep(0.1)
        return DelayedSubmission(self)

    def __getstate__(self):
        return self.__dict__ | dict(_process=None)


def _exit_code(process):
    try:
        return process.wait(0.2)
    except subprocess.TimeoutExpired:
        return None


# ---- this machine


class Local:
    """Programs on this machine.

    Args:
      workers: how many at once.
      keep: files that they keep open, and locked, when this program was killed.
    """

    def __init__(self, workers: int, keep: Sequence[int] = ()):
        self._pool, self._keep = ThreadPoolExecutor(workers), keep

    def submit(self, command: Sequence[str], folder: Path) -> Handle:
        """See Executor."""
        stop = threading.Event()
        return _LocalHandle(self._pool.submit(Program(command, folder), stop.is_set, self._keep), stop)

    def close(self) -> None:
        """See Executor."""
        self._pool.shutdown()


class _LocalHandle:
    def __init__(self, future: Future[int], stop: threading.Event):
        self._future, self.stop = future, stop.set

    def code(self, seconds):
        return self._future.result() if wait([self._future], seconds).done else None


# ---- what commands share


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines --executor, --workers, --address and --slurm."""
    words = {
        "executor": "Where runs are trained; see docs/guide/executors.md.",
        "workers": "Runs at once.",
        "address": "Of the scheduler of dask, such as tcp://host:8786; without it, one is started here.",
        "slurm": "Options of sbatch, such as partition=gpu,time=240,mem=8G; time in minutes.",
    }
    flags.DEFINE_enum("executor", "local", NAMES, words["executor"], flag_values=values)
    flags.DEFINE_integer("workers", 1, words["workers"], flag_values=values)
    flags.DEFINE_string("address", None, words["address"], flag_values=values)
    flags.DEFINE_list("slurm", [], words["slurm"], flag_values=values)


def validate() -> None:
    """Refuses flags that have no meaning.

    Raises:
      UserError: names the flag, or the package that is missing.
    """
    values = flags.FLAGS
    if values.workers < 1:
        raise UserError(f"--workers must be at least 1, not {values.workers}")
    for flag, name in (("address", "dask"), ("slurm", "slurm")):
        if values[flag].value and values.executor != name:
            raise UserError(f"--{flag} is for --executor={name}, not for {values.executor}")
    if bad := [word for word in values.slurm if "=" not in word]:
        raise UserError(f"--slurm={bad[0]} has no value: write OPTION=VALUE, such as partition=gpu")
    for name, package in (("dask", "distributed"), ("slurm", "submitit")):
        if values.executor == name:
            require(package, name)


def plain() -> bool:
    """Whether runs go on this machine one by one, as they do without flags: then their words go to the terminal."""
    return flags.FLAGS.executor == "local" and flags.FLAGS.workers == 1


@contextlib.contextmanager
def opened(folder: Path, keep: Sequence[int] = ()) -> Iterator[Executor]:
    """The executor that the flags name.

    Args:
      folder: where it may keep files of its own.
      keep: files that local programs keep locked when this one was killed.
    """
    validate()
    values = flags.FLAGS
    if values.executor == "local":
        executor: Executor = Local(values.workers, keep)
    else:
        from atalaia import clusters

        if values.executor == "dask":
            executor = clusters.Dask(values.workers, values.address)
        else:
            executor = clusters.Slurm(folder / "slurm", dict(word.split("=", 1) for word in values.slurm))
    with contextlib.closing(executor):
        yield executor


def finish(handle: Handle, stop: threading.Event, enough: Callable[[], bool] = lambda: False) -> int:
    """Waits for a command, and gives its exit code.

    Args:
      handle: of the command. stop: the wish to end, which is passed on once.
      enough: asked again and again; where it says so the command is asked to end, and its exit code is INTERRUPTED,
        also where the signal came when it did not listen any more.

    Raises:
      KeyboardInterrupt: once it has ended by `stop`, or by Ctrl-C of its own.
    """
    told = early = False
    while True:
        try:
            if (code := handle.code(0.5)) is not None:
                break
        except KeyboardInterrupt:  # in the main thread
            stop.set()
        early = early or enough()
        if (stop.is_set() or early) and not told:
            handle.stop()
            told = True
    if stop.is_set() or (code == INTERRUPTED and not early):
        raise KeyboardInterrupt
    return INTERRUPTED if early and code < 0 else code


def each(
    function: Callable[[Any, threading.Event], Any],
    items: Iterable,
    workers: int,
    stop: threading.Event | None = None,
) -> list:
    """function(item, stop) of each item, `workers` at once, in order; where one raises, the others are told to stop."""
    stop = stop or threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(function, item, stop) for item in items]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise
    return [future.result() for future in futures]

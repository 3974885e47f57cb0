"""Executors of many machines, which see one file system: dask's workers, and Slurm's jobs.

What is lost is started again elsewhere: with its worker, its machine or its scheduler, or by a signal. It goes on from
its checkpoint, or waits for the lost one where that is still at work (see atalaia/executors.py).
"""

import contextlib
import logging
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atalaia import files
from atalaia.errors import UserError, require
from atalaia.executors import INTERRUPTED, Handle, Program, beside

LOST = -signal.SIGKILL  # exit code of a program that is gone with its machine, its worker or its scheduler
TRIES = 20  # how often one is started before its exit code is told
PATIENCE = 600  # seconds that dask's scheduler may be away


class _Remote:
    """A program on another machine, where it is started again as often as it is lost.

    Args:
      program: what runs.
      start: starts it, and gives what has `code(seconds)` and `drop()`; None where that cannot be done just now.
    """

    def __init__(self, program: Program, start: Callable[[Program], Any]):
        self._program, self._start, self._lost, self._stopped = program, start, 0, False
        program.mark.unlink(missing_ok=True)
        self._job = start(program)

    def stop(self) -> None:
        self._stopped = True
        self._program.mark.touch()
        if self._job is not None:
            self._job.drop()

    def code(self, seconds):
        if self._stopped:
            return self._ended(seconds)
        if self._job is None:
            self._job = self._start(self._program)
        if self._job is None:
            return time.sleep(seconds)
        code = self._job.code(seconds)
        if code is None or 0 <= code != INTERRUPTED:
            return code
        self._job, self._lost = None, self._lost + 1  # ended by a signal: nobody here wished that
        return code if self._lost >= TRIES else None

    def _ended(self, seconds):
        """Not asked of the job, which may be lost: whoever runs the program holds its lock."""
        try:
            with files.locked(beside(self._program.folder, ".lock"), stop=lambda: True):
                return INTERRUPTED
        except KeyboardInterrupt:
            return time.sleep(seconds)


class Dask:
    """Programs on the workers of dask, one a thread.

    Args:
      workers: of a cluster on this machine, which is made where no address is given.
      address: of the scheduler of another one, such as "tcp://host:8786".

    Raises:
      UserError: there is no such package, or no scheduler at the address.
    """

    def __init__(self, workers: int, address: str | None = None):
        require("distributed", "dask")
        self._cluster = None
        if not address:
            self._cluster, address = _serve(workers)
        self._address = address
        self._lock, self._client, self._away = threading.Lock(), None, time.monotonic() - PATIENCE + 30
        while self._connected() is None:
            time.sleep(0.2)

    def submit(self, command: Sequence[str], folder: Path) -> Handle:
        """See Executor."""
        return _Remote(Program(command, folder), self._start)

    def close(self) -> None:
        """See Executor."""
        if self._client is not None:
            self._client.close(timeout=2)
        if self._cluster is not None:
            self._cluster.stdin.close()  # which ends it
            self._cluster.wait()

    def _start(self, program):
        client = self._connected()
        if client is None:
            return None
        return _DaskJob(client.submit(program, key=f"{program.folder.name}-{uuid.uuid4().hex}", pure=False))

    def _connected(self):
        """The client, None while the scheduler is away: one that was closed for that is made again."""
        import distributed

        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it has to say of what is lost, we mend
        with self._lock:
            if self._client is None or self._client.status == "closed":
                self._client = None
                with contextlib.suppress(OSError):
                    self._client = distributed.Client(self._address, timeout=5, set_as_default=False)
            if self._client is not None and self._client.status == "running":
                self._away = None
                return self._client
            self._away = self._away or time.monotonic()
            if time.monotonic() - self._away > PATIENCE:
                raise UserError(f"no scheduler of dask at {self._address}: start one there, `dask scheduler`")


class _DaskJob:
    def __init__(self, future):
        self._future, self.drop = future, future.cancel  # one that has not begun never will

    def code(self, seconds):
        from distributed import KilledWorker

        until = time.monotonic() + seconds
        while self._future.status == "pending":
            if time.monotonic() > until:
                return None
            time.sleep(0.05)  # its own wait may end in errors of its own when the scheduler goes
        try:
            return self._future.result(10)  # seconds: it is fetched from the worker
        except Exception as error:
            if self._future.status != "error" or isinstance(error, KilledWorker):
                return LOST  # with its worker or its scheduler, at any moment: many things may be raised
            if isinstance(error, ImportError):
                raise UserError(f"a worker of dask misses atalaia, start it where this command runs: {error}") from None
            raise


def _serve(workers):
    """A cluster on this machine, as a program that ends with this one, however this one ends; and its address."""
    command = [sys.executable, "-m", "atalaia.clusters", str(workers)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    if not (address := process.stdout.readline().decode().strip()):
        raise UserError(f"dask does not start on this machine: python -m atalaia.clusters {workers} says why")
    return process, address


class Slurm:
    """Programs as jobs of Slurm, one each, which go back into the queue when their time is over.

    Args:
      folder: for the files of the jobs; all machines see it.
      options: of sbatch, by its own names, such as {"partition": "gpu", "mem": "8G"}; `time` in minutes.
      cluster: submitit's: "slurm"; "local" or "debug" run on this machine.

    Raises:
      UserError: there is no such package, or no Slurm here.
    """

    def __init__(self, folder: Path, options: Mapping[str, Any] | None = None, cluster: str = "slurm"):
        require("submitit", "slurm")
        import submitit

        options = dict(time="60", requeue=True) | dict(options or {})
        minutes = str(options.pop("time"))
        if not minutes.isdecimal():
            raise UserError(f"--slurm=time={minutes}: a job's time is a whole number of minutes")
        try:
            self._executor = submitit.AutoExecutor(Path.cwd() / folder, cluster=cluster, slurm_max_num_timeout=10_000)
        except RuntimeError:
            raise UserError("no Slurm here, there is no srun: give the command on a machine of the cluster") from None
        self._executor.update_parameters(name="atalaia", timeout_min=int(minutes), slurm_additional_parameters=options)

    def submit(self, command: Sequence[str], folder: Path) -> Handle:
        """See Executor."""
        return _Remote(Program(command, folder), lambda program: _SlurmJob(self._executor.submit(program)))

    def close(self) -> None:
        """See Executor."""


class _SlurmJob:
    def __init__(self, job):
        self._job = job

    def drop(self):
        if self._job.state == "PENDING":
            self._job.cancel(check=False)

    def code(self, seconds):
        from submitit.core.utils import FailedJobError, UncompletedJobError

        if not self._job.done():
            return time.sleep(seconds)
        try:
            return self._job.result()
        except FailedJobError:
            raise
        except UncompletedJobError:
            return LOST


def _cluster(workers):
    """What `_serve` runs."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=None) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()  # nothing is written there: it ends when the other program does


if __name__ == "__main__":
    _cluster(int(sys.argv[1]))

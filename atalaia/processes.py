"""One training by several processes: how they come together, what they agree on, and how they end.

All of them run the same program on the same data, and each keeps the whole state. A step's batch is shared out to the
devices of all (over_devices), so nothing else has to know how many there are. Process 0 alone prints, and writes the
run folder; of a checkpoint each writes a part.
"""

import functools
import io
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import IO, Any

import jax
import numpy as np
from absl import flags

from atalaia.errors import UserError

AUTO = "auto"  # of --coordinator: Slurm, Open MPI or Kubernetes tell where it is
_GRACE = 5.0  # seconds in which a process may end by itself after another has, and say why
_PATIENCE = 7 * 24 * 3600  # seconds that they wait for the first, which may wait for a run folder or a teacher
_SHUTDOWN = 60  # seconds that the first to end waits for the others
_STOPPED = 130  # exit code after Ctrl-C, which all processes see
# What an operation over all processes says when one of them is gone.
_LOST = re.compile("Gloo|NCCL|Barrier|[Cc]oordination|heartbeat|Connection (reset|closed)")

_started: list[tuple[subprocess.Popen, IO[bytes]]] = []  # by this process, and what they write on stderr
_output: list[Any] = []  # stdout and stderr of a process that is silent


def define_flags() -> None:
    """Defines the flags that say how many processes train together."""
    flags.DEFINE_integer("processes", 1, "Train with so many processes, started on the CPU cores of this machine.")
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0 of several machines, or auto under Slurm.")
    flags.DEFINE_integer("num_processes", None, "How many processes there are on all machines, with --coordinator.")
    flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0, with --coordinator.")


def join() -> None:
    """Brings this process together with the others that the flags tell of; by itself it needs nothing.

    Must be called before JAX computes anything.

    Raises:
      UserError: the flags do not fit each other, or the others do not come.
    """
    given = flags.FLAGS
    if given.processes < 1:
        raise UserError(f"--processes={given.processes}: at least 1 is needed")
    if given.processes > 1 and given.coordinator:
        raise UserError("--processes starts all on this machine, --coordinator joins those of several: give one")
    if given.processes > 1:
        _initialize(_start_others(given.processes), given.processes, 0)
    elif given.coordinator == AUTO:
        _initialize(None, None, None)
    elif given.coordinator:
        _refuse_wrong_place(given.num_processes, given.process_id)
        _initialize(given.coordinator, given.num_processes, given.process_id)


def _refuse_wrong_place(count, number):
    if count is None or number is None or not 0 <= number < count:
        raise UserError(
            f"--coordinator=HOST:PORT needs --num_processes and --process_id, from 0 to below it, not {count} and "
            f"{number}"
        )


def _initialize(coordinator, count, number):
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours: it saves and stops
    try:
        jax.distributed.initialize(coordinator, count, number, shutdown_timeout_seconds=_SHUTDOWN)
    except (RuntimeError, ValueError) as error:
        where = f"at {coordinator}" if coordinator else "by what the cluster says"
        said = " ".join(str(error).split())[:200]
        raise UserError(f"the processes did not come together {where} ({said}): start all, with one address") from None
    if not first():
        _output[:] = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115, open until the process ends


def _start_others(count):
    """Starts processes 1 and on with the command of this one, gives each its share of the cores; gives the address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    cores = sorted(os.sched_getaffinity(0))
    jax.config.update("jax_platforms", "cpu")
    for number in range(1, count):
        log = tempfile.TemporaryFile()  # noqa: SIM115, read when that process has ended
        command = [sys.executable, "-m", "atalaia.train", *sys.argv[1:], "--processes=1", f"--coordinator={address}"]
        os.sched_setaffinity(0, _share(cores, number, count))  # it is inherited
        process = subprocess.Popen(
            [*command, f"--num_processes={count}", f"--process_id={number}"],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        _started.append((process, log))
        threading.Thread(target=_watch, args=(number, process, log), daemon=True).start()
    os.sched_setaffinity(0, _share(cores, 0, count))
    return address


def _share(cores, number, count):
    """The cores of one process; all of them where there are fewer cores than processes."""
    return cores[number::count] if len(cores) >= count else cores


def _watch(number, process, log):
    """Ends this process with one line when one that it started failed, whatever it is waiting for."""
    if process.wait() in (0, _STOPPED):
        return
    time.sleep(_GRACE)  # what ended that one may end this one too, which then says so itself
    print(f"error: {_how_it_ended(number, process, log)}", file=sys.stderr, flush=True)
    leave(1)


def _how_it_ended(number, process, log):
    log.seek(0)
    errors = [line for line in log.read().decode(errors="replace").splitlines() if "error: " in line]
    code = process.returncode
    if code < 0:
        how = f"was ended by {signal.Signals(-code).name}" + " (often: too little memory)" * (code == -signal.SIGKILL)
    else:
        how = f"ended with exit code {code}" + f" ({errors[-1].partition('error: ')[2]})" * bool(errors)
    return f"process {number} {how}, and the others with it: give the same command again to go on"


def first() -> bool:
    """Whether this is process 0, which alone prints and writes the run folder."""
    return jax.process_index() == 0


def lost(error: BaseException) -> str | None:
    """The line for an error that only says that another process is gone; None for any other error."""
    if not jax.distributed.is_initialized() or not isinstance(error, jax.errors.JaxRuntimeError):
        return None
    if not _LOST.search(str(error)):
        return None
    deadline = time.monotonic() + _GRACE
    for number, (process, log) in enumerate(_started, 1):
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.returncode:
            return _how_it_ended(number, process, log)
    said = " ".join(str(error).split())[:150]
    return f"another process of this training is gone; its own output says why ({said}): give all the commands again"


def speak() -> None:
    """Lets a silent process print, since it has an error to tell."""
    if _output:
        sys.stdout, sys.stderr = _output
        print(f"process {jax.process_index()}: ", end="", file=sys.stderr)


def leave(code: int) -> None:
    """Ends this process at once where it is one of several, so that the others notice; else does nothing.

    The usual way out would wait for the others, who wait for this one.
    """
    if jax.distributed.is_initialized() or _started:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOBase):
                stream.flush()
        for process, _ in _started:
            process.kill()
        os._exit(code)


# --- Where arrays lie ---


def over_devices(*axes: str | None) -> jax.sharding.NamedSharding:
    """Where an array lies: a dimension named "batch" shared out to all devices of all processes, all else on each."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def on_devices(tree: Any, *axes: str | None) -> Any:
    """The arrays of a pytree, which each process has whole, as over_devices(*axes) says."""
    place = over_devices(*axes)
    if jax.process_count() == 1:
        return jax.device_put(tree, place)
    host = jax.tree.map(np.asarray, tree)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, place, x.__getitem__), host)


# --- What they agree on ---


def any_of(wish: bool) -> bool:
    """Whether any process has the wish; waits for all of them."""
    return wish if jax.process_count() == 1 else _read(_asked([wish]))[0]


class Wishes:
    """`any_of` for some wishes at the end of each step, answered at the end of the next: no step waits for it."""

    def __init__(self) -> None:
        self._before: Any = None

    def __call__(self, *wishes: bool) -> tuple[bool, ...]:
        if jax.process_count() == 1:
            return wishes
        before, self._before = self._before, _asked(wishes)
        return (False,) * len(wishes) if before is None else _read(before)


def _asked(wishes):
    """bool [wishes], on its way: of each wish, whether any process has it."""
    rows = np.array([wishes] * jax.device_count())  # each device shows its process's
    return _any_row()(on_devices(rows, "batch"))


def _read(answer):
    return tuple(bool(value) for value in jax.device_get(answer))


@functools.cache
def _any_row():
    return jax.jit(lambda rows: rows.any(0), out_shardings=over_devices())


def wait_for_all(place: str) -> None:
    """Returns when all processes have come to this place, however late: other operations give up after a while."""
    if jax.process_count() > 1:
        from orbax.checkpoint import multihost

        multihost.sync_global_processes(f"atalaia_{place}", timeout=_PATIENCE)


def refuse_unlike(what: str, sha256: str) -> None:
    """Does nothing where all processes have the same of what has this SHA-256.

    Raises:
      UserError: one has another than process 0, in all processes.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    found = multihost_utils.process_allgather(np.frombuffer(bytes.fromhex(sha256), np.uint8))
    unlike = np.flatnonzero((found != found[0]).any(1))
    if len(unlike):
        raise UserError(
            f"process {unlike[0]} has other {what} than process 0: all need the same files, and machines of one kind"
        )

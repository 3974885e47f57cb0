"""A search on dask whose workers and scheduler are killed, beside the same search left alone.

python experiments/executors.py
python experiments/executors.py --pages        # only writes the page, from the figures

16 trainings of a small network on digits, 4 at once: first by local processes, left alone; then by 4 workers of dask.
At random, 12 times, a worker that trains is killed (SIGKILL), mostly with its training; in between the scheduler, once.
What dies is started again, as a cluster does. The folders are runs/executors/alone, which goes on where it was, and
killed, which is made anew.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import tables
from tables import ROOT, Table, grid

RUNS = Path("runs/executors")
TRIALS, WORKERS, FIELDS = 16, 4, ("value", "point", "known")
SCHEDULER, FOLDERS = "scheduler", ("alone", "killed")
KILLS, KILL_EVERY = 13, (10.0, 50.0)  # and the seconds between two of them
SCHEDULER_AFTER = 5  # kills of workers before that of the scheduler
WITH_PROGRAM = 0.7  # chance that a training dies with its worker; else it is left at work
SEARCH = (
    *("--config=configs/digits.py", "--space=configs/search_digits.py", f"--trials={TRIALS}", f"--workers={WORKERS}"),
    *("--config.model=tests/small_net.py:Linear", "--config.stages=('dense',)", "--config.dense.epochs=30"),
    *("--config.checkpoint_seconds=0.5", "--config.augment.pad_crop=0"),
)


def main() -> None:
    shutil.rmtree(ROOT / RUNS / "killed", ignore_errors=True)
    alone = _search("alone")
    alone.wait()
    with contextlib.closing(Cluster()) as cluster:
        search = _search("killed", "--executor=dask", f"--address={cluster.address}")
        begin = time.monotonic()
        while search.poll() is None:
            cluster.look(time.monotonic() - begin)
            time.sleep(0.25)
    if alone.returncode or search.returncode:
        sys.exit("error: a search failed; its message is above")
    TABLE.save(_rows(cluster), dict(spans=cluster.spans, kills=cluster.kills, seconds=time.monotonic() - begin))


def _search(name, *arguments):
    command = [sys.executable, "-m", "atalaia.search", f"--workdir={RUNS / name}", *SEARCH, *arguments]
    return subprocess.Popen(command, cwd=ROOT)


class Cluster:
    """A scheduler of dask and its workers, who works on which trial, and who was killed when."""

    def __init__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self.processes, self.spans, self.kills, self._draw = {}, [], [], random.Random(0)
        self._next = self._draw.uniform(*KILL_EVERY)
        self._keep_alive()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()

    def look(self, now: float) -> None:
        """Starts what is dead, notes which worker trains what, and kills one when it is time."""
        self._keep_alive()
        busy = {role: _training(process.pid) for role, process in self.processes.items() if role != SCHEDULER}
        busy = {role: found for role, found in busy.items() if found}
        for worker, (trial, _) in busy.items():
            mine = [span for span in self.spans if span["worker"] == worker]
            if mine and mine[-1]["trial"] == trial and now - mine[-1]["end"] < 1.5:
                mine[-1]["end"] = now
            else:
                self.spans.append(dict(worker=worker, trial=trial, begin=now, end=now))
        if now > self._next and busy and len(self.kills) < KILLS:
            self._kill(now, busy)
            self._next = now + self._draw.uniform(*KILL_EVERY)

    def _kill(self, now, busy):
        role = SCHEDULER if len(self.kills) == SCHEDULER_AFTER else self._draw.choice(sorted(busy))
        trial, process = busy.get(role, (None, None))
        too = process is not None and self._draw.random() < WITH_PROGRAM
        if too:
            process.kill()
        self.processes[role].kill()
        self.kills.append(dict(role=role, seconds=now, trial=trial, training=too))
        print(f"{now:.0f} s: killed {role}" + f", and its training {trial}" * too, flush=True)

    def _keep_alive(self):
        for role in (SCHEDULER, *map(str, range(WORKERS))):
            if role not in self.processes or self.processes[role].poll() is not None:
                self.processes[role] = _start(role, self.address)


def _start(role, address):
    words = ["scheduler", "--host=127.0.0.1", f"--port={address.rpartition(':')[2]}", "--no-dashboard"]
    if role != SCHEDULER:
        words = [
            "worker",
            address,
            "--nthreads=1",
            "--no-nanny",
            "--memory-limit=0",
            "--no-dashboard",
            f"--name={role}",
        ]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "dask", *words]
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | dict(PYTHONPATH=path), **quiet)


def _training(pid):
    """The trial that a worker trains, and its process; None where it trains none."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children():
            for word in process.cmdline():
                if word.startswith("--workdir="):
                    return int(word.rpartition("_")[2]), process
    return None


def _rows(cluster):
    """A row for each trial: what it found alone and through kills, and how often and where it began."""
    alone, killed = (json.loads((ROOT / RUNS / name / "search.json").read_text())["trials"] for name in FOLDERS)
    return [_row(cluster, *pair) for pair in zip(alone, killed, strict=True)]


def _row(cluster, alone, killed):
    log = (ROOT / RUNS / f"killed/trial_{killed['trial']:03d}.log").read_text()
    steps = [int(line.split()[4]) for line in log.splitlines() if line.startswith("going on from step")]
    return dict(
        trial=alone["trial"],
        **{f"{field}_alone": alone[field] for field in FIELDS},
        **{field: killed[field] for field in FIELDS},
        begun=log.count("task classify, model"),
        resumed=steps,
        kills=sum(kill["trial"] == alone["trial"] for kill in cluster.kills),
    )


def body(figures: dict) -> str:
    """The two searches side by side, in Markdown."""
    rows, kills = figures["rows"], figures["times"]["kills"]
    different = sum(row[field] != row[f"{field}_alone"] for row in rows for field in FIELDS)
    workers = [kill for kill in kills if kill["role"] != SCHEDULER]
    columns = {
        "trial": lambda row: row["trial"],
        "learning rate, optimiser": lambda row: ", ".join(map(str, row["point"].values())),
        "results known": lambda row: row["known"],
        "validation accuracy, left alone": lambda row: f"{row['value_alone']:.6f}",
        "through kills": lambda row: f"{row['value']:.6f}",
        "its worker was killed": lambda row: row["kills"],
        "trainings begun": lambda row: row["begun"],
        "of them from a checkpoint, at step": lambda row: ", ".join(map(str, row["resumed"])) or "-",
    }
    return "\n".join(
        (
            f"{len(workers)} kills of workers, {sum(kill['training'] for kill in workers)} of them with their "
            f"training, and {len(kills) - len(workers)} of the scheduler, within {figures['times']['seconds']:.0f} "
            f"seconds. Of {len(rows) * len(FIELDS)} values ({len(rows)} validation accuracies, points, and numbers of "
            f"results that a point was chosen by), {different} differ.\n",
            grid(columns, rows, left=2),
        )
    )


def headline(figures: dict) -> str:
    rows, kills = figures["rows"], figures["times"]["kills"]
    same = sum(all(row[field] == row[f"{field}_alone"] for field in FIELDS) for row in rows)
    return f"{len(kills)} kills in a search of {len(rows)} trials: {same} rows are those of a search left alone"


def _merged(times):
    """Spans in which a worker trained one trial: those that only a slow look parted are one."""
    found = []
    for span in sorted(times["spans"], key=lambda span: (span["worker"], span["begin"])):
        last = found[-1] if found else None
        same = last and all(last[name] == span[name] for name in ("worker", "trial"))
        killed = same and any(
            kill["role"] == span["worker"] and last["end"] - 1 <= kill["seconds"] <= span["begin"]
            for kill in times["kills"]
        )
        if same and not killed:
            last["end"] = span["end"]
        else:
            found.append(dict(span))
    return found


def draw(figures: dict, path: Path) -> None:
    """Which worker trained which trial when, and the kills."""
    from matplotlib.figure import Figure

    from atalaia import pictures

    times, figure = figures["times"], Figure(figsize=(9, 3.2), layout="constrained")
    axes, roles = figure.subplots(), [*map(str, range(WORKERS)), SCHEDULER]
    for span in _merged(times):
        width = max(span["end"] - span["begin"], 0.25)
        axes.barh(roles.index(span["worker"]), width, left=span["begin"], color=f"C{span['trial'] % 10}", height=0.7)
        axes.text(span["begin"], roles.index(span["worker"]), str(span["trial"]), fontsize=7, va="center")
    for both, label in ((True, "killed with its training"), (False, "killed alone")):
        found = [kill for kill in times["kills"] if kill["training"] == both]
        places = [kill["seconds"] for kill in found], [roles.index(kill["role"]) for kill in found]
        axes.plot(*places, "X" if both else "x", color="black", label=label)
    axes.set_yticks(range(len(roles)), [f"worker {r}" if r != SCHEDULER else r for r in roles])
    axes.set(xlabel="seconds", title="numbers are trials")
    figure.legend(loc="outside right upper", fontsize=8)
    pictures.save_figure(figure, path)


TABLE = Table(
    name="executors",
    title="A search on dask, through kills",
    shows=f"{TRIALS} small trainings on digits, {WORKERS} at once, by `atalaia.search`: once by local processes, left "
    "alone, and once by workers of dask that are killed at random, with the scheduler once among them. Nothing is "
    "lost: each value is the same.",
    command="pip install '.[dask]'\npython experiments/executors.py",
    body=body,
    headline=headline,
    picture="Which worker trained which trial, and the kills",
    draw=draw,
    files=("rows.json", "times.json"),
    notes=(
        "The network is one layer (`tests/small_net.py:Linear`), trained for 30 epochs, with a checkpoint every half "
        "second, on a busy machine of 2 cores.",
        "A training that was killed with its worker goes on from its checkpoint on another worker. One that is left "
        "at work keeps its folder's lock: the next waits for it, and finds it done.",
        "Kills fell into the first trials: the machine was so busy that one training took minutes, most of them for "
        "imports and compilation. So most were hit before a first checkpoint, or had ended but for their last words. "
        "`tests/test_executors.py` kills programs between checkpoints, and sees them go on there.",
    ),
)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tables.start(main, TABLE)

"""What a run says while it trains: metrics.jsonl, TensorBoard files, and the memory it took."""

import json
import resource
from pathlib import Path

from tensorboardX import SummaryWriter

from atalaia.files import write_whole


class Writer:
    """Appends rows to metrics.jsonl and to TensorBoard's files, after what an interrupted run wrote past `step` is cut.

    A row is a dict with `step`, in steps of the whole run; its numbers are shown in TensorBoard under the row's stage.
    """

    def __init__(self, workdir: Path, step: int):
        path = Path(workdir) / "metrics.jsonl"
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows(workdir) if row["step"] <= step))
        self._lines = path.open("a")
        self._board = SummaryWriter(str(Path(workdir) / "tensorboard"), purge_step=step + 1)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._lines.close()
        self._board.close()

    def write(self, row: dict) -> None:
        """Adds a row, with its `step` and `stage`, to the file and to TensorBoard."""
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        for name, value in row.items():
            if name not in ("step", "stage"):
                self._board.add_scalar(f"{row['stage']}/{name}", value, row["step"])


class Silent(Writer):
    """Writes nothing: of several processes one keeps the rows."""

    def __init__(self) -> None:
        pass

    def __exit__(self, *exc):
        pass

    def write(self, row: dict) -> None:
        pass


def rows(workdir: Path) -> list[dict]:
    """The whole rows of a run's metrics.jsonl; a last line cut short by a kill is left out."""
    path = Path(workdir) / "metrics.jsonl"
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def last(workdir: Path, name: str) -> float | None:
    """The latest value of one figure of a run, None where it has none."""
    return next((row[name] for row in reversed(rows(workdir)) if name in row), None)


def peak_memory_bytes(children: int = 1) -> int:
    """The most memory that this process held at once and, `children` times, the largest of its finished children."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count the process that started this one
        own = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    else:
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * (own + children * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)

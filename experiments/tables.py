"""What the scripts of tables share: a run's steps in processes of their own, its files, figures of several seeds."""

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "configs")]
RESULTS = ROOT / "experiments/results"

SEEDS = flags.DEFINE_list("seeds", ["0"], "One run each.")
DATA = flags.DEFINE_string("data_dir", None, "Where data sets are kept.")


def define_rows() -> None:
    """Defines --rows, for a script whose table has rows to choose from."""
    if "rows" not in flags.FLAGS:  # two scripts in one process
        flags.DEFINE_list("rows", None, "The rows to run, by default all; those that ran before stay in the tables.")


def chosen(rows: Iterable[str]) -> list[str]:
    """Those of a table's rows that --rows names, in the table's order; all without that flag.

    Raises:
      app.UsageError: it names another.
    """
    wanted = flags.FLAGS.rows or list(rows)
    if unknown := set(wanted) - set(rows):
        raise app.UsageError(f"no rows {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    return [row for row in rows if row in wanted]


# What rows of one figure share, where they have it.
RECIPE = ("epochs", "sparsity", "views", "chosen", "teacher_digest")


def older_recipe(row: dict) -> Callable[[dict], bool]:
    """For report.publish_rows: rows of this one's name by another recipe are not seeds of one figure."""
    return lambda old: old["row"] == row["row"] and any(old[n] != row[n] for n in RECIPE if n in old and n in row)


def trained(workdir: Path) -> dict:
    """How long a run took, and on what."""
    said = read(workdir, "train.json")
    return {name: said.get(name) for name in ("seconds", "device", "jax", "precision")}  # older runs tell less


def step(name: str, *arguments: str) -> None:
    """`python -m atalaia.NAME ARGUMENTS`; where it fails, having said why, the script ends with its exit code."""
    from atalaia import runs

    data = [f"--data_dir={DATA.value}"] if DATA.value else []
    command = [sys.executable, "-m", f"atalaia.{name}", *arguments, *data]
    try:
        code = runs.call(command, ROOT)
    except KeyboardInterrupt:
        code = 130
    if code:
        sys.exit(code if code > 0 else 1)


def seeded(folder: Path, seed: int) -> Path:
    """The run folder of a row with this seed."""
    return folder if seed == 0 else folder.with_name(f"{folder.name}_seed{seed}")


def exported(workdir: Path) -> Path:
    """The run's folder once it holds what atalaia.export writes, export.json last."""
    if not (ROOT / workdir / "export.json").is_file():
        step("export", f"--workdir={workdir}")
    return workdir


def evaluated(workdir: Path, split: str, engines: str) -> dict:
    """The scores of a split by engine; a split is looked at again only where an engine is missing."""
    name = "evaluation.json" if split == "test" else f"evaluation_{split}.json"
    if not (ROOT / workdir / name).is_file() or set(engines.split(",")) - set(read(workdir, name)):
        step("evaluate", f"--workdir={workdir}", f"--split={split}", f"--engines={engines}")
    return read(workdir, name)


def read(workdir: Path, name: str) -> dict:
    """A JSON file of a run folder."""
    return json.loads((ROOT / workdir / name).read_text())


def percent(rows: Sequence[dict], figure: Callable[[dict], float]) -> str:
    """100 * figure(row): of one row that, of several seeds the median with the smallest and the largest."""
    values = [100 * figure(row) for row in rows]
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else "-"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"

"""Tables and pictures from the runs' JSON: what a person reads.

python -m atalaia.report --workdir=runs/cifar10              # one run: accuracy, sizes, time, memory
"""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atalaia import cli, ledger, tasks
from atalaia.errors import UserError
from atalaia.files import locked, write_json, write_whole

MIB = 2**20
PUBLISHED = (
    "config.json",
    "ledger.json",
    "train.json",
    "evaluation.json",
    "evaluation.md",
    "confusion.png",
    "model.tflite",
)


def evaluation_table(details: dict) -> str:
    """evaluation.md: every engine, their agreement, and the classes of the last engine, in Markdown."""
    lines = [f"# {details['dataset']}: the whole {details['split']} split", "", *_engines_table(details), ""]
    if details["agreement"]:
        lines += ["| engines | same answer % | same output bytes % |", "|---|---:|---:|"]
        for row in details["agreement"]:
            same = "-" if row["bytes"] is None else equal(row["bytes"], 2)
            answers = "-" if row["predictions"] is None else equal(row["predictions"], 2)
            lines.append(f"| {' and '.join(row['engines'])} | {answers} | {same} |")
        lines.append("")
    shown = list(details["details"])[-1]
    for number, row in enumerate(details["details"][shown]):
        first, *columns = row
        if number == 0:
            lines += [f"| {first} ({shown}) | {' | '.join(columns)} |", "|---|" + "---:|" * len(columns)]
        figures = (f"{row[name]:.0f}" if name == "images" else f"{row[name]:.3f}" for name in columns)
        lines.append(f"| {row[first]} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def equal(part: float, digits: int) -> str:
    """What part is equal, in %: 100 is said only where all is."""
    return f"{100 * part if part == 1 else min(100 * part, 100 - 10.0**-digits):.{digits}f}"


def _engines_table(details):
    columns = tasks.TASKS[details["task"]].METRICS
    titles = " | ".join(metric.title for metric in columns.values())
    lines = [f"| engine | {titles} | images | seconds |", "|---|" + "---:|" * (len(columns) + 2)]
    for name, row in details["engines"].items():
        figures = " | ".join(metric.text(row[key]) for key, metric in columns.items())
        lines.append(f"| {name} | {figures} | {row['images']:,} | {details['seconds'][name]} |")
    return lines


def layers_table(rows: list[dict], first: dict[str, str | None], changed: dict[str, float | None]) -> str:
    """Part of each layer's bytes that equal the integer network's, and the first layer that differs, in Markdown."""
    names = list(first)
    lines = ["| layer, bytes equal to jax_int % | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    lines += [f"| {row['layer']} | " + " | ".join(equal(row[n], 3) for n in names) + " |" for row in rows]
    for name in names:
        where = f"first differs in layer {first[name]}" if first[name] else "equal in every layer"
        other = "" if changed[name] is None else f"; another answer in {100 * changed[name]:.2f} % of the images"
        lines.append(f"\n{name}: {where}{other}")
    return "\n".join(lines)


def confusion_picture(
    path: Path, labels: np.ndarray, predicted: np.ndarray, class_names: tuple[str, ...], title: str
) -> None:
    """A picture of how often each class (rows) was taken for each (columns)."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    side = min(4 + 0.4 * len(class_names), 16)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    ConfusionMatrixDisplay.from_predictions(
        labels,
        predicted,
        labels=range(len(class_names)),
        display_labels=class_names,
        xticks_rotation="vertical",
        cmap="Blues",
        colorbar=False,
        ax=axes,
    )
    axes.set_title(title)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Writes a matplotlib.figure.Figure as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    write_whole(path, content.getvalue())


def run_summary(workdir: Path) -> str:
    """One finished run in Markdown: engines, size ledger, time and memory of each step."""
    workdir = Path(workdir)
    steps = {name: _json(workdir, f"{name}.json", name) for name in ("train", "export")}
    details = _json(workdir, "evaluation_details.json", "evaluate")
    steps["evaluate"] = dict(seconds=details["seconds"]["total"], peak_memory_bytes=details["peak_memory_bytes"])
    lines = [*_engines_table(details), "", ledger.table(ledger.read(workdir)), ""]
    lines += ["| step | seconds | peak memory MiB |", "|---|---:|---:|"]
    lines += [f"| {n} | {s['seconds']} | {s['peak_memory_bytes'] / MIB:,.0f} |" for n, s in steps.items()]
    total = sum(s["seconds"] for s in steps.values())
    peak = max(s["peak_memory_bytes"] for s in steps.values()) / MIB
    lines.append(f"| whole | {total:.1f} | {peak:,.0f} |")
    return "\n".join(lines) + "\n"


def publish(workdir: Path, destination: Path) -> str:
    """Copies what is small of a finished run (`PUBLISHED`) and returns its table."""
    text = run_summary(workdir)
    destination.mkdir(parents=True, exist_ok=True)
    for name in PUBLISHED:
        write_whole(destination / name, (Path(workdir) / name).read_bytes())
    write_whole(destination / "table.md", text)
    return text


def publish_rows(
    path: Path,
    row: dict,
    key: Sequence[str],
    table: Callable[[list[dict]], str],
    order: Callable[[dict], Any] | None = None,
    stale: Callable[[dict], bool] = lambda row: False,
) -> list[dict]:
    """Adds a row to a published table, in the place of an older one of its kind, and returns all rows.

    Writes NAME.json and NAME.md, and puts the table in the README.md of the repository.

    Args:
      path: experiments/results/NAME.json; row: new figures; key: the fields that say which rows are of a kind.
      table: all rows in Markdown; order: of the rows; by default that in which they came.
      stale: whether an older row has no place beside the new one, such as one of an older recipe.
    """
    with _alone(path.parents[2]):
        rows = json.loads(path.read_text()) if path.exists() else []
        rows = [*(r for r in rows if not stale(r)), row]
        rows = list({tuple(r[k] for k in key): r for r in rows}.values())
        if order:
            rows.sort(key=order)
        write_json(path, rows)
        text = table(rows)
        write_whole(path.with_suffix(".md"), text)
        _insert(path.parents[2] / "README.md", path.stem, text)
    print(f"{text}\nwritten: {path}, .md and README.md", flush=True)
    return rows


def insert(readme: Path, name: str, text: str) -> None:
    """Replaces what stands between `<!-- name -->` and `<!-- /name -->` in a Markdown file.

    Raises:
      ValueError: the file has no such place.
    """
    with _alone(readme.parent):
        _insert(readme, name, text)


def _alone(root):
    """Scripts of several tables may run at once: only one of them reads and writes what is published."""
    (root / "runs").mkdir(exist_ok=True)
    return locked(root / "runs/publish.lock")


def _insert(readme, name, text):
    before, opening, rest = readme.read_text().partition(f"<!-- {name} -->\n")
    _, closing, after = rest.partition(f"<!-- /{name} -->")
    if not (opening and closing):
        raise ValueError(f"{readme} has no place <!-- {name} --> ... <!-- /{name} -->")
    write_whole(readme, before + opening + text.strip() + "\n" + closing + after)


def _json(workdir, name, step):
    path = workdir / name
    if not path.is_file():
        raise UserError(f"{workdir} has no {name}: run atalaia.{step} --workdir={workdir} first")
    return json.loads(path.read_text())


def main() -> None:
    workdir = cli.workdir()
    text = run_summary(workdir)
    write_whole(workdir / "summary.md", text)
    print(text)
    print(f"written: {workdir}/summary.md")


if __name__ == "__main__":
    cli.common_flags()
    cli.run(main)

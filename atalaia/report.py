"""Tables and pictures from the runs' JSON: what a person reads.

python -m atalaia.report --workdir=runs/cifar10              # one run: accuracy, sizes, time, memory
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from atalaia import cli, ledger
from atalaia.errors import UserError
from atalaia.files import write_whole

MIB = 2**20


def evaluation_table(details: dict) -> str:
    """evaluation.md: every engine, their agreement, and the classes of the last engine, in Markdown."""
    lines = [f"# {details['dataset']}: the whole {details['split']} split", "", *_engines_table(details), ""]
    if details["agreement"]:
        lines += ["| engines | same prediction % | same output bytes % |", "|---|---:|---:|"]
        for row in details["agreement"]:
            same = "-" if row["bytes"] is None else equal(row["bytes"], 2)
            lines.append(f"| {' and '.join(row['engines'])} | {equal(row['predictions'], 2)} | {same} |")
        lines.append("")
    shown = list(details["per_class"])[-1]
    lines += [f"| class ({shown}) | precision | recall | F1 | images |", "|---|---:|---:|---:|---:|"]
    for row in details["per_class"][shown]:
        figures = " | ".join(f"{row[k]:.3f}" for k in ("precision", "recall", "f1"))
        lines.append(f"| {row['class']} | {figures} | {row['images']:.0f} |")
    return "\n".join(lines) + "\n"


def equal(part: float, digits: int) -> str:
    """What part is equal, in %: 100 is said only where all is."""
    return f"{100 * part if part == 1 else min(100 * part, 100 - 10.0**-digits):.{digits}f}"


def _engines_table(details):
    lines = ["| engine | accuracy % | macro F1 % | images | seconds |", "|---|---:|---:|---:|---:|"]
    for name, row in details["engines"].items():
        figures = f"{100 * row['accuracy']:.2f} | {100 * row['f1_macro']:.2f} | {row['images']:,}"
        lines.append(f"| {name} | {figures} | {details['seconds'][name]} |")
    return lines


def layers_table(rows: list[dict], first: dict[str, str | None], changed: dict[str, float]) -> str:
    """Part of each layer's bytes that equal the integer network's, and the first layer that differs, in Markdown."""
    names = list(first)
    lines = ["| layer, bytes equal to jax_int % | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    lines += [f"| {row['layer']} | " + " | ".join(equal(row[n], 3) for n in names) + " |" for row in rows]
    for name in names:
        where = f"first differs in layer {first[name]}" if first[name] else "equal in every layer"
        lines.append(f"\n{name}: {where}; another class in {100 * changed[name]:.2f} % of the images")
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

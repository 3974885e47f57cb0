"""Tables from the runs' JSON: what a person reads.

python -m atalaia.report --workdir=runs/cifar10              # one run: accuracy, sizes, time, memory

Writes summary.md, which is also printed, and report.html (page.py) into the run folder.
"""

import json
from pathlib import Path

from atalaia import api, cli, ledger, tasks
from atalaia.errors import UserError
from atalaia.files import write_whole

MIB = 2**20
STEPS = dict(train="train.json", export="export.json", evaluate="evaluation_details.json")  # step to what it leaves


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
        figures = (f"{row[name]:.0f}" if name in ("images", "boxes") else f"{row[name]:.3f}" for name in columns)
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
        part = changed[name]
        other = "" if part is None else f"; another answer in {100 * part:.2f} % of the images"
        lines.append(f"\n{name}: {where}{other}")
    return "\n".join(lines)


def run_summary(workdir: Path) -> str:
    """One trained run in Markdown: engines, size ledger, time and memory of each step; what is missing is named.

    Raises:
      UserError: it is not trained.
    """
    done = steps(workdir)
    lines = [ledger.table(ledger.read(workdir)), ""]
    if "evaluate" in done:
        lines = [*_engines_table(json.loads((Path(workdir) / STEPS["evaluate"]).read_text())), "", *lines]
    lines += ["| step | seconds | peak memory MiB |", "|---|---:|---:|"]
    done["whole"] = sum(s for s, _ in done.values()), max(peak for _, peak in done.values())
    lines += [f"| {name} | {seconds:.1f} | {peak / MIB:,.0f} |" for name, (seconds, peak) in done.items()]
    lines += [f"\nNo {STEPS[n]}: run atalaia.{n} --workdir={workdir}" for n in STEPS if n not in done]
    return "\n".join(lines) + "\n"


def steps(workdir: Path) -> dict[str, tuple[float, int]]:
    """(seconds, peak memory in bytes) of the steps that a run has done, by `STEPS`.

    Raises:
      UserError: it is not trained.
    """
    done = {}
    for name, file in STEPS.items():
        path = Path(workdir) / file
        if path.is_file():
            noted = json.loads(path.read_text())
            seconds = noted["seconds"]["total"] if name == "evaluate" else noted["seconds"]
            done[name] = seconds, noted["peak_memory_bytes"]
        elif name == "train":
            raise UserError(f"{workdir} has no {file}: run atalaia.train --workdir={workdir} first")
    return done


def main() -> None:
    from atalaia import page  # which imports this module

    workdir = cli.workdir()
    text = run_summary(workdir)
    write_whole(workdir / "summary.md", text)
    page.write(workdir)
    print(text)
    print(f"written: {workdir}/summary.md, report.html")


api.make_callable(__name__)

if __name__ == "__main__":
    cli.common_flags()
    cli.run(main)

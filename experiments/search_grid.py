"""All points of a small space, trained once: their curves, and what their C needs. Searches are replayed on it.

python experiments/search_grid.py    # goes on where it was; then experiments/halving.py and experiments/goals.py

4 widths of a network for digits and 6 learning rates. Each point's validation accuracy stands after each epoch, as its
metrics.jsonl has it. Flash, arena and milliseconds are those of codegen's report: they are the same for all learning
rates, since nothing is pruned, so one point of each width is exported.
"""

import contextlib
import functools
import io
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import tables
from digit_networks import WIDTHS
from tables import ROOT

GRID, RUNS = tables.RESULTS / "halving/grid.json", ROOT / "runs/search_grid"
EPOCHS, RATES = 9.0, (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
FIELDS = {"stages": "('dense',)", "dense.epochs": EPOCHS, "data.validation": 0.3, "checkpoint_seconds": 3600.0}


def get_space() -> dict:
    """The space, as a file for atalaia.search has it."""
    from atalaia.space import choice

    networks = [f"experiments/digit_networks.py:w{width}" for width in WIDTHS]
    return {"model": choice(*networks), "dense.learning_rate": choice(*RATES)}


def main() -> None:
    from atalaia import data, metrics, runs
    from atalaia import space as spaces
    from atalaia.files import write_json
    from atalaia.progress import Progress

    points, rows, cache = list(spaces.every_point(get_space())), [], data.cache_dir(None)
    with Progress("points", len(points), "points") as bar:
        for point in points:
            workdir = RUNS / f"{point['model'].rpartition(':')[2]}_{point['dense.learning_rate']:g}"
            config = runs.check(str(ROOT / "configs/digits.py"), FIELDS | point)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                done = train(config, workdir, cache)
            looks = [row for row in metrics.rows(workdir) if "val_score" in row]
            curve = [[row["step"], row["val_score"]] for row in looks]
            rows.append(dict(point=point, seconds=done.get("seconds"), steps=done.get("steps"), curve=curve))
            bar.update()
        for row in rows:
            row["figures"] = figures(row["point"]["model"], cache)
    GRID.parent.mkdir(parents=True, exist_ok=True)
    write_json(GRID, dict(epochs=EPOCHS, data=done["dataset"], device=done["device"], rows=rows))


def train(config, workdir: Path, cache: Path) -> dict:
    """What train.json says of a point's run; {} where it diverged."""
    from atalaia.errors import Diverged
    from atalaia.train import train_and_evaluate

    if (workdir / "train.json").is_file():
        return json.loads((workdir / "train.json").read_text())
    try:
        return train_and_evaluate(config, workdir, cache)
    except Diverged:
        return {}


@functools.cache
def figures(model: str, cache: Path) -> dict:
    """Flash, arena and milliseconds of a network, exported at the rate 0.1."""
    from atalaia import export, tflite
    from atalaia.codegen import __main__ as codegen
    from atalaia.trials import LIMITS

    workdir = RUNS / f"{model.rpartition(':')[2]}_0.1"
    if not (workdir / "export.json").is_file():
        with contextlib.redirect_stdout(io.StringIO()):
            export.export(workdir, cache)
    made = codegen.report(tflite.load(workdir / "model.tflite"), prefer="speed")
    return {name: figure(made) for name, (_, figure) in LIMITS.items()}


if __name__ == "__main__":
    tables.start(main)

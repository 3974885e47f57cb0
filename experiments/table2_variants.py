"""Sparsity and epochs of Table 2's pruned rows, chosen on the validation split among several recipes: one table.

python experiments/table2_variants.py [--rows=pruned,small,small4,...] [--seeds=1] [--data_dir=FOLDER]

Trains what is not trained yet in runs/table2/variants, from the runs of Table 2 that the rows start from (first
./run.sh table2 --seeds=1), exports it and evaluates the integer network on the validation split; the test set is never
looked at. The row's own run is compared as experiments/results/table2.json has it. Chosen is what best() says: the most
accurate within the bytes that a row may have, or the smallest that keeps an accuracy. Writes
experiments/results/table2_variants.json and .md and the table in README.md.
"""

import json
import math
from pathlib import Path

import table2
import tables
from absl import app
from table2 import OWN
from tables import RESULTS, SEEDS, chosen, define_rows, evaluated, exported, read, seeded, step

_SHORT = {"prune.epochs": 2.0, "quantize.epochs": 2.0}
_CONVOLUTIONS = {"prune.layers": "conv0a=0; conv0b=0.2; conv1=0.55; conv2=0.6; logits=0.6", "prune.sparsity": 0.98}
_DENSE = {"prune.layers": "conv0a=0; conv0b=0.2; conv1=0.42; conv2=0.42; logits=0.6", "prune.sparsity": 0.988}
_SPARSER = {"prune.layers": "conv0a=0.4; conv0b=0.8; conv=0.92; logits=0.88", "prune.sparsity": 0.9965}
_FEWER = {"prune.layers": "conv0a=0; conv=0.1; logits=0.5", "prune.sparsity": 0.965}
_SPARSER4 = {"prune.layers": "conv0a=0; conv0b=0.25; conv1=0.6; conv2=0.62; logits=0.65", "prune.sparsity": 0.987}
# By row: what it is compared with, what that is, and the fields that differ. About the same bytes in each short one of
# small4.
VARIANTS = {
    "pruned": {
        "fewer": ("fewer zeros", _FEWER),
        "short": ("an eighth of the epochs", {"prune.epochs": 2.0}),
        "short_fewer": ("an eighth of the epochs, fewer zeros", {"prune.epochs": 2.0} | _FEWER),
    },
    "small": {"fewer": ("from the pruned network with fewer zeros", {})},
    "small4": {
        "sparser": ("more zeros", _SPARSER4),
        "short": ("a quarter of the epochs", _SHORT),
        "short_convolutions": ("a quarter of the epochs, more zeros in convolutions", _SHORT | _CONVOLUTIONS),
        "short_dense": ("a quarter of the epochs, more zeros in dense0", _SHORT | _DENSE),
    },
    "smallest": {"sparser": ("more zeros", _SPARSER)},
    "pruned_long": {"short": ("10 epochs instead of 16", {"prune.epochs": 10.0})},
    "small_long": {"short": ("from that one, 4 epochs instead of 8", {"quantize.epochs": 4.0})},
}
# Of other variants, where not from the run that the row starts from.
STARTS = {("small", "fewer"): ("pruned", "fewer"), ("small_long", "short"): ("pruned_long", "short")}
# What a row keeps within: bytes of download, or an accuracy that the smallest download exceeds by a standard error.
# pruned rows have neither: what small rows are made of them is judged.
LIMITS = {"small": 225_000, "small4": 130_000, "small_long": 225_000}
FLOORS = {"smallest": 0.8436}

define_rows()


def main(argv):
    del argv
    rows = chosen(VARIANTS)
    for seed in map(int, SEEDS.value):
        for row in rows:
            publish(own(row, seed))
            for variant in VARIANTS[row]:
                publish(run(row, variant, seed))


def own(row: str, seed: int) -> dict:
    """The figures of the row itself, from the table that it stands in."""
    found = [r for r in _published() if (r["row"], r["seed"]) == (row, seed)]
    if not found:
        raise app.UsageError(f"Table 2 has no {row} of seed {seed}: first ./run.sh table2 --rows={row} --seeds={seed}")
    return dict(row=row, variant=OWN, **_figures(found[0], found[0]["validation"], found[0]["int8_sizes"]))


def _published():
    return json.loads((RESULTS / "table2.json").read_text())


def folder(row: str, variant: str, seed: int) -> Path:
    """The run folder of a variant."""
    return seeded(table2.RUNS / "variants" / f"{row}_{variant}", seed)


def run(row: str, variant: str, seed: int) -> dict:
    """Trains, exports and evaluates a variant where that is not done, and returns its figures."""
    from atalaia import runs

    workdir = folder(row, variant, seed)
    changes = VARIANTS[row][variant][1]
    arguments = [f"--config={table2.CONFIG}:{row}", f"--config.seed={seed}", *table2.sources(row, seed)]
    arguments += runs.override_flags(changes)
    if start := STARTS.get((row, variant)):
        arguments.append(f"--config.start_from={folder(*start, seed)}")
    step("train", f"--workdir={workdir}", *arguments)
    exported(workdir)
    said = dict(
        seed=seed,
        epochs=epochs(row, variant),
        sparsity=read(workdir, "sparsity.json")["all pruned parameters"],
        changes=changes,
        **tables.trained(workdir),
    )
    sizes = read(workdir, "ledger.json")["rows"][-1]
    return dict(row=row, variant=variant, **_figures(said, evaluated(workdir, "validation", "jax,jax_int"), sizes))


def epochs(row: str, variant: str) -> float:
    """Epochs of training in all, those of the runs that it started from counted."""
    found = table2.epochs(row, VARIANTS[row][variant][1])
    start = STARTS.get((row, variant))
    return found + epochs(*start) - table2.epochs(start[0]) if start else found


def _figures(said, validation, sizes):
    kept = {name: said.get(name) for name in ("seed", "epochs", "sparsity", "changes", "seconds", "device", "jax")}
    return kept | dict(validation=validation["jax_int"], download_bytes=sizes["download_bytes"])


def publish(row: dict) -> None:
    """Adds a row to the results in the place of an older one, and writes the table and Table 2's picture."""
    from atalaia import report

    report.publish_rows(RESULTS / "table2_variants.json", row, ("row", "variant", "seed"), table, _order)
    table2.picture(_published(), table2.compared(), RESULTS / "table2.png")


def _order(row):
    names = [OWN, *VARIANTS[row["row"]]]
    return list(VARIANTS).index(row["row"]), row["seed"], names.index(row["variant"])


def best(rows: list[dict]) -> dict[tuple[str, int], str]:
    """By row and seed, the recipe that the validation split chooses.

    Of a row of LIMITS the most accurate within them, the smaller of equals; of one of FLOORS the smallest.
    """
    found = {}
    for r in sorted(rows, key=lambda r: (-r["validation"]["accuracy"], r["download_bytes"])):
        if r["row"] in LIMITS and r["download_bytes"] <= LIMITS[r["row"]]:
            found.setdefault((r["row"], r["seed"]), r["variant"])
    for r in sorted(rows, key=lambda r: r["download_bytes"]):
        accuracy, images = r["validation"]["accuracy"], r["validation"]["images"]
        surely = accuracy - math.sqrt(accuracy * (1 - accuracy) / images)
        if r["row"] in FLOORS and surely >= FLOORS[r["row"]]:
            found.setdefault((r["row"], r["seed"]), r["variant"])
    return found


def table(rows: list[dict]) -> str:
    """The recipes in Markdown, by row; the accuracy of the one that is chosen in bold."""
    lines = [
        "| row | recipe | seed | epochs | zeros % | validation accuracy, integer network % | download, bytes "
        "| within |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    bold = best(rows)
    within = {row: f"{limit:,} bytes" for row, limit in LIMITS.items()}
    within |= {row: f"{100 * floor:.2f} % and a standard error" for row, floor in FLOORS.items()}
    for r in rows:
        row, variant, seed = r["row"], r["variant"], r["seed"]
        recipe = "as in the table above" if variant == OWN else VARIANTS[row][variant][0]
        accuracy = f"{100 * r['validation']['accuracy']:.2f}"
        accuracy = f"**{accuracy}**" if bold.get((row, seed)) == variant else accuracy
        cells = [table2.ROWS[row], recipe, str(seed), f"{r['epochs']:g}", f"{100 * r['sparsity']:.1f}", accuracy]
        lines.append(f"| {' | '.join(cells)} | {r['download_bytes']:,} | {within.get(row, '-')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app.run(main)

"""Sparsity and epochs of Table 2's pruned rows, compared on the validation split with other recipes: one table.

python experiments/table2_variants.py [--rows=pruned,small4,smallest] [--seeds=1] [--data_dir=FOLDER]

Trains what is not trained yet in runs/table2/variants, from the runs of Table 2 that the rows start from (first
./run.sh table2 --seeds=1), exports it and evaluates the integer network on the validation split; the test set is never
looked at. The row's own run is compared as experiments/results/table2.json has it. Writes
experiments/results/table2_variants.json and .md and the table in README.md.
"""

import json

import table2
import tables
from absl import app
from tables import RESULTS, SEEDS, chosen, define_rows, evaluated, exported, read, seeded, step

OWN = "own"  # the recipe in configs/cifar10_table2.py
_SHORT = {"prune.epochs": 2.0, "quantize.epochs": 2.0}
_CONVOLUTIONS = {"prune.layers": "conv0a=0; conv0b=0.2; conv1=0.55; conv2=0.6; logits=0.6", "prune.sparsity": 0.98}
_DENSE = {"prune.layers": "conv0a=0; conv0b=0.2; conv1=0.42; conv2=0.42; logits=0.6", "prune.sparsity": 0.988}
_SPARSER = {"prune.layers": "conv0a=0.4; conv0b=0.8; conv=0.92; logits=0.88", "prune.sparsity": 0.9965}
_FEWER = {"prune.layers": "conv0a=0; conv=0.1; logits=0.5", "prune.sparsity": 0.965}
# By row: what it is compared with, what that is, and the fields that differ. About the same bytes in each of small4.
VARIANTS = {
    "pruned": {
        "short": ("an eighth of the epochs", {"prune.epochs": 2.0}),
        "short_fewer": ("an eighth of the epochs, fewer zeros", {"prune.epochs": 2.0} | _FEWER),
    },
    "small4": {
        "short": ("a quarter of the epochs", _SHORT),
        "short_convolutions": ("a quarter of the epochs, more zeros in convolutions", _SHORT | _CONVOLUTIONS),
        "short_dense": ("a quarter of the epochs, more zeros in dense0", _SHORT | _DENSE),
    },
    "smallest": {"sparser": ("more zeros", _SPARSER)},
}

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
    found = [r for r in json.loads((RESULTS / "table2.json").read_text()) if (r["row"], r["seed"]) == (row, seed)]
    if not found:
        raise app.UsageError(f"Table 2 has no {row} of seed {seed}: first ./run.sh table2 --rows={row} --seeds={seed}")
    return dict(row=row, variant=OWN, **_figures(found[0], found[0]["validation"], found[0]["int8_sizes"]))


def run(row: str, variant: str, seed: int) -> dict:
    """Trains, exports and evaluates a variant where that is not done, and returns its figures."""
    from atalaia import runs

    workdir = seeded(table2.RUNS / "variants" / f"{row}_{variant}", seed)
    changes = VARIANTS[row][variant][1]
    arguments = [f"--config={table2.CONFIG}:{row}", f"--config.seed={seed}", *table2.sources(row, seed)]
    arguments += runs.override_flags(changes)
    step("train", f"--workdir={workdir}", *arguments)
    exported(workdir)
    said = dict(
        seed=seed,
        epochs=table2.epochs(row, changes),
        sparsity=read(workdir, "sparsity.json")["all pruned parameters"],
        changes=changes,
        **tables.trained(workdir),
    )
    sizes = read(workdir, "ledger.json")["rows"][-1]
    return dict(row=row, variant=variant, **_figures(said, evaluated(workdir, "validation", "jax,jax_int"), sizes))


def _figures(said, validation, sizes):
    kept = {name: said.get(name) for name in ("seed", "epochs", "sparsity", "changes", "seconds", "device", "jax")}
    return kept | dict(validation=validation["jax_int"], download_bytes=sizes["download_bytes"])


def publish(row: dict) -> None:
    """Adds a row to the results in the place of an older one, and writes the table."""
    from atalaia import report

    report.publish_rows(RESULTS / "table2_variants.json", row, ("row", "variant", "seed"), table, _order)


def _order(row):
    names = [OWN, *VARIANTS[row["row"]]]
    return list(VARIANTS).index(row["row"]), row["seed"], names.index(row["variant"])


def table(rows: list[dict]) -> str:
    """The recipes in Markdown, by row."""
    lines = ["| row | recipe | seed | epochs | zeros % | validation accuracy, integer network % | download, bytes |"]
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    for r in rows:
        recipe = "as in the table above" if r["variant"] == OWN else VARIANTS[r["row"]][r["variant"]][0]
        figures = f"{r['epochs']:g} | {100 * r['sparsity']:.1f} | {100 * r['validation']['accuracy']:.2f}"
        lines.append(f"| {table2.ROWS[r['row']]} | {recipe} | {r['seed']} | {figures} | {r['download_bytes']:,} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app.run(main)

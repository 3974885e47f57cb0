"""Sparsity and epochs of Table 2's pruned rows, chosen on the validation split among several recipes: one table.

python experiments/table2_variants.py [--rows=pruned,small,small4,...] [--seeds=1] [--data_dir=FOLDER]
python experiments/table2_variants.py --pages        # only writes the page, from the figures

Trains what is not trained yet in runs/table2/variants, from the runs of Table 2 that the rows start from (first
./run.sh table2 --seeds=1), exports it and evaluates the integer network on the validation split; the test set is never
looked at. The row's own run is compared as Table 2's figures have it. Chosen is what best() says: the most accurate
within the bytes that a row may have, or the smallest that keeps an accuracy.
"""

import itertools
import math
from pathlib import Path

import table2
import tables
from absl import app
from table2 import OWN
from tables import SEEDS, Row, Table, chosen, define_rows, grid, read, seeded

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


def main():
    rows = chosen(VARIANTS)
    seeds = [*map(int, SEEDS.value)]
    for row, seed in itertools.product(rows, seeds):
        TABLE.add(own(row, seed))
    wanted = [(row, variant, seed) for seed in seeds for row in rows for variant in VARIANTS[row]]
    tables.each(lambda item: TABLE.add(run(*item)), wanted, needs)
    table2.TABLE.write()  # its picture shows these recipes too


def needs(item: tuple[str, str, int]) -> list[tuple[str, str, int]]:
    """The variant, with its seed, that one starts from."""
    *variant, seed = item
    return [(*start, seed) for start in (STARTS.get(tuple(variant)),) if start]


def own(row: str, seed: int) -> dict:
    """The figures of the row itself, from the table that it stands in."""
    found = [r for r in table2.TABLE.figures() if (r["row"], r["seed"]) == (row, seed)]
    if not found:
        raise app.UsageError(f"Table 2 has no {row} of seed {seed}: first ./run.sh table2 --rows={row} --seeds={seed}")
    return dict(row=row, variant=OWN, **_figures(found[0], found[0]["validation"], found[0]["int8_sizes"]))


def folder(row: str, variant: str, seed: int) -> Path:
    """The run folder of a variant."""
    return seeded(table2.RUNS / "variants" / f"{row}_{variant}", seed)


def run(row: str, variant: str, seed: int) -> dict:
    """Trains, exports and evaluates a variant where that is not done, and returns its figures."""
    from atalaia import runs

    changes = VARIANTS[row][variant][1]
    starts = [f"--config.start_from={folder(*start, seed)}" for start in (STARTS.get((row, variant)),) if start]
    made = Row(
        name=row,
        title=VARIANTS[row][variant][0],
        config=f"{table2.CONFIG}:{row}",
        engines={"validation": "jax,jax_int"},
    )
    workdir = folder(row, variant, seed)
    flags = (f"--config.seed={seed}", *table2.sources(row, seed), *runs.override_flags(changes), *starts)
    found = tables.run(made, workdir, *flags)
    found |= dict(seed=seed, epochs=epochs(row, variant), changes=changes)
    found |= dict(sparsity=read(workdir, "sparsity.json")["all pruned parameters"])
    sizes = read(workdir, "ledger.json")["rows"][-1]
    return dict(row=row, variant=variant, **_figures(found, found["validation"], sizes))


def epochs(row: str, variant: str) -> float:
    """Epochs of training in all, those of the runs that it started from counted."""
    found = table2.epochs(row, VARIANTS[row][variant][1])
    start = STARTS.get((row, variant))
    return found + epochs(*start) - table2.epochs(start[0]) if start else found


def _figures(said, validation, sizes):
    kept = {name: said.get(name) for name in ("seed", "epochs", "sparsity", "changes", "seconds", "device", "jax")}
    return kept | dict(validation=validation["jax_int"], download_bytes=sizes["download_bytes"])


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
    bold = best(rows)
    within = {row: f"{limit:,} bytes" for row, limit in LIMITS.items()}
    within |= {row: f"{100 * floor:.2f} % and a standard error" for row, floor in FLOORS.items()}

    def recipe(r):
        return "as in Table 2" if r["variant"] == OWN else VARIANTS[r["row"]][r["variant"]][0]

    def accuracy(r):
        text = f"{100 * r['validation']['accuracy']:.2f}"
        return f"**{text}**" if bold.get((r["row"], r["seed"])) == r["variant"] else text

    columns = {
        "row": lambda r: table2.ROWS[r["row"]].title,
        "recipe": recipe,
        "seed": lambda r: r["seed"],
        "epochs": lambda r: f"{r['epochs']:g}",
        "zeros %": lambda r: f"{100 * r['sparsity']:.1f}",
        "validation accuracy, integer network %": accuracy,
        "download, bytes": lambda r: f"{r['download_bytes']:,}",
        "within": lambda r: within.get(r["row"], "-"),
    }
    return grid(columns, rows, left=2)


def _body(rows):
    compared = [r for r in rows if r["variant"] != OWN]
    runs = tables.provenance(
        compared, lambda r: f"{table2.ROWS[r['row']].title}: {VARIANTS[r['row']][r['variant']][0]}"
    )
    return f"{table(rows)}\n## Runs\n\n{runs}"


def _headline(rows):
    chosen = best(rows)
    kept = sum(variant == OWN for variant in chosen.values())
    return f"{len(rows)} recipes compared; Table 2 has the chosen one in {kept} of {len(chosen)} rows with a limit"


TABLE = Table(
    name="table2_variants",
    title="Table 2: the recipes that were compared",
    shows="How many zeros, and how many epochs? Several recipes of the pruned rows of [Table 2](table2.md), judged on "
    "the validation split (2,500 images; one standard error is about 0.6 points). The chosen one is in bold.",
    command="python experiments/table2_variants.py --seeds=1    # after ./run.sh table2 --seeds=1",
    body=_body,
    headline=_headline,
    notes=(
        "Seed 1 only, one run of each recipe. Most differences are smaller than chance.",
        "Chosen is the most accurate recipe within the bytes of the last column. Of *pruned further* it is the "
        "smallest one whose accuracy is above the thesis's by a standard error. *Pruned* rows have no limit: what is "
        "made of them is judged. A test holds the configs to the choice.",
        "The rule was written when most figures of the rows, and their test figures, were known. It changed no recipe.",
        "*Pruned more* as in Table 2 was trained on a GPU, the other recipes on a CPU.",
        "Not compared: learning rates; epochs and cutout of the long dense row; other sparsities of *pruned more* "
        "with all its epochs.",
    ),
    key=("row", "variant", "seed"),
    order=_order,
)


if __name__ == "__main__":
    tables.start(main, TABLE)

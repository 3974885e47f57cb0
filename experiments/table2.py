"""The thesis's Table 2 again: its network on all of CIFAR-10, dense, pruned, int8 calibrated and int8 trained.

python experiments/table2.py [--rows=dense,pruned,small] [--seeds=0,1,2] [--data_dir=FOLDER] [--workers=2]
python experiments/table2.py --pages        # only writes the page, from the figures

Trains what is not trained yet in runs/table2 (each row goes on where it was), exports and evaluates it, the test set
once a row. Rows are those of configs/cifar10_table2.py. Models under 100 KB are kept beside the figures.
"""

import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tables
from absl import flags
from tables import ROOT, SEEDS, Row, Table, chosen, define_rows, evaluated, grid, percent, read, seeded

RUNS = Path("runs/table2")
CONFIG = "configs/cifar10_table2.py"
SMALL = 100_000  # bytes of a model that is kept beside the figures
FLOAT = {"validation": "jax", "test": "jax"}


def _row(name, title, **fields):
    return Row(name, title, f"{CONFIG}:{name}", **fields)


# The order is that in which rows start from each other.
ROWS = tables.by_name(
    (
        _row("dense", "dense float; int8 calibrated"),
        _row("pruned", "pruned float; int8 calibrated"),
        _row("small", "pruned, int8 trained, large layers of 4 bits"),
        _row("small4", "pruned more, 4 bits trained"),
        _row("smallest", "pruned further, 4 bits trained"),
        _row("dense_more", "dense float, distilled on", int8=False, engines=FLOAT),
        _row("dense_int8", "dense, int8 trained"),
        _row("dense_long", "long dense float (4 times the epochs, larger cutout); int8 calibrated"),
        _row("pruned_long", "pruned from the long one; int8 calibrated"),
        _row("small_long", "pruned from the long one, int8 trained, large layers of 4 bits"),
    )
)
FLOAT_ONLY = tuple(row.name for row in ROWS.values() if not row.int8)  # what others are measured against
# What an int8 row is measured against: float networks of the same seed.
AGAINST = {
    "small": ("dense", "dense_more"),
    "small4": ("dense", "dense_more"),
    "dense_int8": ("dense_more",),
    "small_long": ("dense_long",),
}
OWN = "own"  # among the recipes that experiments/table2_variants.py compares, that of configs/cifar10_table2.py
# What the thesis reports for the same steps: accuracy %, and megabytes with what they are (THESIS, Table 2).
THESIS = {
    "dense float": (85.91, "28 MB: float32 weights and Adam's two moments"),
    "pruned float": (84.40, "9.3 MB: float32, zeros stored"),
    "pruned, int8": (84.36, "2.4 MB: a byte a weight, zeros stored"),
}

define_rows()
_ENGINES = flags.DEFINE_string("test_engines", "jax,jax_int,tflm", "On the whole test set; tflm takes minutes a row.")


def main():
    wanted = [(row, seed) for seed in map(int, SEEDS.value) for row in chosen(ROWS)]
    tables.each(lambda item: TABLE.add(run(*item)), wanted, needs)


def needs(item: tuple[str, int]) -> list[tuple[str, int]]:
    """The rows, with their seed, that one with its seed starts from and learns from."""
    row, seed = item
    config = _config(row)
    runs = [config.start_from, *(config[stage].get("teacher") for stage in config.stages)]
    return [(Path(run).name, seed) for run in runs if run]


def folder(row: str, seed: int) -> Path:
    """The run folder of a row."""
    return seeded(RUNS / row, seed)


def run(row: str, seed: int) -> dict:
    """Trains, exports and evaluates a row where that is not done, and returns its figures."""
    workdir = folder(row, seed)
    flags = (f"--config.seed={seed}", *sources(row, seed))
    found = tables.run(ROWS[row], workdir, *flags)
    found |= dict(seed=seed, epochs=epochs(row), sparsity=_sparsity(workdir))
    if row in FLOAT_ONLY:
        return found | dict(float_sizes=read(workdir, "ledger.json")["rows"][-1])
    for file in ("model.tflite", "model.atl"):
        if (ROOT / workdir / file).stat().st_size < SMALL:
            keep(workdir / file, workdir.name)
    return found | _int8(workdir)


def _int8(workdir):
    """The figures of a row that was exported."""
    validation = evaluated(workdir, "validation", "jax,jax_int,tflite,xnnpack")
    agreement = _agreement(workdir, "jax_int", "evaluation_validation_details.json")
    test = evaluated(workdir, "test", _ENGINES.value)
    if not (ROOT / workdir / "layers.json").is_file():
        tables.step("evaluate", f"--workdir={workdir}", "--layers", "--split=validation")
    if read(workdir, "ledger.json")["rows"][-1].get("flash_bytes") is None:
        add_flash(workdir)
    layers, ledger = read(workdir, "layers.json"), read(workdir, "ledger.json")["rows"]
    return dict(
        ranges=read(workdir, "export.json")["ranges"],
        validation=validation,
        test=test,
        equal=agreement | _agreement(workdir, "jax_int", "evaluation_details.json"),
        forward_same_class=_agreement(workdir, "jax", "evaluation_details.json").get("jax_int", {}).get("predictions"),
        forward_bytes_equal=min((r["training"] for r in layers["rows"] if "training" in r), default=None),
        forward_predictions_changed=layers["predictions_changed"].get("training"),
        float_sizes=ledger[-2],
        int8_sizes=ledger[-1],
    )


def sources(row: str, seed: int) -> list[str]:
    """Flags by which a row starts from, and follows, runs of its own seed; the config names those of seed 0."""
    config = _config(row)
    if not config.start_from or not seed:
        return []
    teachers = [f"--config.{s}.teacher={folder(Path(config[s].teacher).name, seed)}" for s in config.stages]
    return [f"--config.start_from={folder(Path(config.start_from).name, seed)}", *teachers]


def _agreement(workdir, engine, name):
    """Equality of each later engine with this one, by engine."""
    rows = [r for r in read(workdir, name)["agreement"] if r["engines"][0] == engine]
    return {r["engines"][1]: dict(predictions=r["predictions"], bytes=r["bytes"]) for r in rows}


def add_flash(workdir: Path) -> None:
    """Enters what the generated C takes in the run's ledger; without a compiler it stays empty, which is said."""
    from atalaia import ledger
    from atalaia.codegen import __main__ as codegen
    from atalaia.errors import UserError

    try:
        ledger.add_flash(ROOT / workdir, codegen.flash_bytes((ROOT / workdir / "model.tflite").read_bytes()))
    except UserError as error:
        print(f"no flash of the C for {workdir}: {error}", file=sys.stderr)


def keep(path: Path, name: str) -> None:
    """Copies a small model beside the figures, under the name of its run."""
    from atalaia.files import write_whole

    TABLE.folder.mkdir(parents=True, exist_ok=True)
    write_whole(TABLE.folder / f"{name}{path.suffix}", (ROOT / path).read_bytes())


def epochs(row: str, changes: Mapping[str, Any] = MappingProxyType({})) -> float:
    """Epochs of training in all, those of the runs that it started from counted, with `changes` of the row's config."""
    config = _config(row)
    config.update_from_flattened_dict(dict(changes))
    before = epochs(Path(config.start_from).name) if config.start_from else 0.0
    return before + sum(config[stage].epochs for stage in config.stages)


def _config(row):
    from configs import cifar10_table2

    return cifar10_table2.get_config(row)


def _sparsity(workdir):
    pruned = (ROOT / workdir / "sparsity.json").is_file()
    return read(workdir, "sparsity.json")["all pruned parameters"] if pruned else 0.0


def compared() -> list[dict]:
    """The recipes that experiments/table2_variants.py compared with the rows."""
    path = tables.RESULTS / "table2_variants/rows.json"
    return [r for r in json.loads(path.read_text()) if r["variant"] != OWN] if path.is_file() else []


def _order(row):
    return list(ROWS).index(row["row"]), row["seed"]


def table(rows: list[dict]) -> str:
    """Accuracy in Markdown, of several seeds the median and the extremes; the largest sizes, the least equality."""
    groups = {name: [r for r in rows if r["row"] == name] for name in ROWS}
    groups = {name: found for name, found in groups.items() if found}
    integer = {name: found for name, found in groups.items() if name not in FLOAT_ONLY}
    parts = {
        "Accuracy, whole test set": _accuracies(groups),
        "What int8 costs": _differences(groups),
        "Sizes, bytes": _sizes(groups),
        "Equal bytes": _equality(integer),
        "Runs": tables.provenance(rows, _title),
    }
    return "\n".join(f"## {heading}\n\n{part}" for heading, part in parts.items())


def _title(row):
    return ROWS[row["row"]].title


def _accuracies(groups):
    columns = {
        "row, whole test set": lambda found: _title(found[0]),
        "epochs": lambda found: f"{found[0]['epochs']:g}",
        "zeros %": lambda found: f"{100 * found[0]['sparsity']:.1f}",
        "JAX: float, or fake-quantised where int8 is trained %": lambda found: _percent(found, "jax", "accuracy"),
        "int JAX %": lambda found: _percent(found, "jax_int", "accuracy"),
        "TFLM %": lambda found: _percent(found, "tflm", "accuracy"),
        "F1 (TFLM) %": lambda found: _percent(found, "tflm", "f1_macro"),
        "seeds": len,
    }
    theirs = [(f"*thesis: {name}*", "", "", accuracy, "", "", "", 1) for name, (accuracy, _) in THESIS.items()]
    return grid(columns, groups.values(), more=theirs)


def _differences(groups):
    def by_seed(pairs):
        points = (100 * (a["test"]["tflm"]["accuracy"] - b["test"]["jax"]["accuracy"]) for a, b in pairs)
        return ", ".join(f"{p:+.2f} ({a['seed']})" for p, (a, _) in zip(points, pairs, strict=True))

    columns = {
        "int8 network in TFLM, whole test set": lambda pairs: _title(pairs[0][0]),
        "epochs": lambda pairs: f"{pairs[0][0]['epochs']:g}",
        "the float network of that seed": lambda pairs: _title(pairs[0][1]).partition(";")[0],
        "its epochs": lambda pairs: f"{pairs[0][1]['epochs']:g}",
        "points above it, by seed": by_seed,
        "download, bytes": lambda pairs: f"{max(a['int8_sizes']['download_bytes'] for a, _ in pairs):,}",
    }
    found = []
    for name, other in ((name, other) for name, floats in AGAINST.items() for other in floats):
        ours = [r for r in groups.get(name, ()) if "tflm" in r["test"]]
        found.append([(a, b) for a in ours for b in groups.get(other, ()) if a["seed"] == b["seed"]])
    return grid(columns, filter(None, found))


def _sizes(groups):
    def size(part, name):
        return lambda found: _largest(r.get(part, {}).get(f"{name}_bytes") for r in found)

    columns = {
        "row, bytes": lambda found: _title(found[0]),
        "float32": size("float_sizes", "float32"),
        "checkpoint": size("float_sizes", "checkpoint"),
        ".tflite": size("int8_sizes", "tflite"),
        "gzip -9": size("int8_sizes", "gzip"),
        "download (model.atl)": size("int8_sizes", "download"),
        "flash of the C, rv32 -O2": size("int8_sizes", "flash"),
        "TFLM's arena": size("int8_sizes", "tflm_arena"),
    }
    return grid(columns, groups.values(), more=[(f"*thesis: {name}*", size) for name, (_, size) in THESIS.items()])


def _largest(values):
    known = [v for v in values if v is not None]
    return f"{max(known):,}" if known else "-"


def _equality(integer):
    from atalaia import report

    def engine(name):
        def cell(rows):
            found = [r["equal"][name] for r in rows if name in r["equal"]]
            return _least([f["bytes"] for f in found], [f["predictions"] for f in found])

        return cell

    def forward(rows):
        found = [r for r in rows if r["forward_bytes_equal"] is not None]
        same = [1 - r["forward_predictions_changed"] for r in found]
        return _least([r["forward_bytes_equal"] for r in found], same)

    def forward_class(rows):
        found = [r["forward_same_class"] for r in rows if r["forward_bytes_equal"] is not None]
        return report.equal(min(found), 2) if found else "-"

    columns = {
        "bytes of the logits equal to integer JAX's %, in brackets same class %": lambda rows: _title(rows[0]),
        "TFLM, test set": engine("tflm"),
        "TFLite reference, validation": engine("tflite"),
        "XNNPACK, validation": engine("xnnpack"),
        "forward pass of training, worst layer, 100 images of validation": forward,
        "its class, test set": forward_class,
    }
    return grid(columns, integer.values())


def _least(parts, same):
    from atalaia import report

    return f"{report.equal(min(parts), 2)} ({report.equal(min(same), 2)})" if parts else "-"


def _percent(rows, engine, figure):
    return percent([r for r in rows if engine in r["test"]], lambda row: row["test"][engine][figure])


def _headline(rows):
    found = [r for r in rows if r["row"] == "small" and "tflm" in r["test"]]
    floats = [r for r in rows if r["row"] == "dense"]
    size = max(r["int8_sizes"]["download_bytes"] for r in found)
    ours = tables.median(found, lambda row: row["test"]["tflm"]["accuracy"])
    theirs = tables.median(floats, lambda row: row["test"]["jax"]["accuracy"])
    return f"int8, pruned: {ours} in a download of {size:,} bytes; dense float: {theirs} ({len(found)} seeds)"


def picture(rows: list[dict], compared: list[dict], path: Path) -> None:
    """Validation accuracy of the integer network against download size, a line through the best.

    Args:
      rows: those of the table, the median of a row's seeds with the extremes.
      compared: the recipes of experiments/table2_variants.py, one point each.
    """
    from matplotlib.figure import Figure

    from atalaia import pictures

    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    points = []
    for name in ROWS:
        found = [r for r in rows if r["row"] == name and "int8_sizes" in r]
        if not found:
            continue
        accuracy = [100 * r["validation"]["jax_int"]["accuracy"] for r in found]
        points.append((max(r["int8_sizes"]["download_bytes"] for r in found) / 1000, statistics.median(accuracy)))
        spread = [[points[-1][1] - min(accuracy)], [max(accuracy) - points[-1][1]]]
        seeds = f"{len(found)} seeds" if len(found) > 1 else "1 seed"
        axes.errorbar(*points[-1], yerr=spread, fmt="o", capsize=3, label=f"{ROWS[name].title} ({seeds})")
    axes.plot(*zip(*frontier(points), strict=True), color="gray", alpha=0.5, zorder=0)
    other = [(r["download_bytes"] / 1000, 100 * r["validation"]["accuracy"]) for r in compared]
    if other:
        axes.plot(*zip(*other, strict=True), "x", color="gray", label="recipes compared with these (1 seed each)")
    axes.set(xscale="log", xlabel="download size, model.atl, kB", ylabel="validation accuracy, integer network, %")
    axes.set_title("Thesis network on CIFAR-10")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", fontsize=8)
    pictures.save_figure(figure, path)


def frontier(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (size, accuracy), by size: those that none of at most their size equals or exceeds."""
    best = []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


TABLE = Table(
    name="table2",
    title="Table 2: the thesis's network, pruned and in int8",
    shows="The thesis's network (its Code 3, 2.4 million values) on all of CIFAR-10: as float, pruned, and as int8. "
    "Pruned and trained as int8 it stays within half a point of the float network, in a small part of its bytes. "
    "TFLite Micro (TFLM) on the file gives the same bytes as our integer network.",
    command="./run.sh table2 [--seeds=1] [--rows=dense,pruned,small]    # many hours on 2 CPU cores",
    body=table,
    headline=_headline,
    picture="Accuracy against download size",
    draw=lambda rows, path: picture(rows, compared(), path),
    notes=(
        "*int JAX* is the network in integers, computed from the checkpoint alone. `model.atl` is the download: "
        "`atalaia.pack` makes `model.tflite` from it again, byte for byte.",
        "Of several seeds: the median, in brackets the smallest and the largest accuracy; the largest size; the least "
        "equality. Rows with one seed show seed 1 only.",
        "The test set was evaluated once for each run. Rows were published again when a recipe changed, so older test "
        "figures were known by then. Recipes are chosen on the validation split: see "
        "[the recipes that were compared](table2_variants.md).",
        "*What int8 costs* compares with float networks that had fewer epochs, except *dense, int8 trained*. No float "
        "network was trained for as many epochs as *pruned, int8 trained* or *pruned more*.",
        '*Runs*: "not recorded" means that the run did not tell its device. Our notes say: seeds 0 and 1 on 2 CPU '
        "cores, seeds 2 and 3 on one NVIDIA H200, *pruned more* and the long dense row on the H200 too.",
        "The column *forward pass of training* has no run of seed 0. Those runs, and *pruned, int8 trained* of seed "
        "1, were trained by older code that rounded some ranges differently. Integer JAX and TFLM do not use that "
        "code.",
        "The rows were trained one by one, by the commands in the figures; `./run.sh table2` was never run from "
        "nothing in one go.",
        "Training on a GPU does not give the same bytes twice.",
        "The convolutions of the dense network are trained with Muon. The dense network is the teacher of the rows "
        "that are made from it; teacher and student see the same augmented image.",
    ),
    key=("row", "seed"),
    order=_order,
    stale=tables.older_recipe,
)


if __name__ == "__main__":
    tables.start(main, TABLE)

"""The thesis's Table 2 again: its network on all of CIFAR-10, dense, pruned, int8 calibrated and int8 trained.

python experiments/table2.py [--rows=dense,pruned,small] [--seeds=0,1,2] [--data_dir=FOLDER]

Trains what is not trained yet in runs/table2 (each row goes on where it was), exports and evaluates it, the test set
once a row, and writes experiments/results/table2.json, .md and .png, the models under 100 KB of the rows to
experiments/results/table2/, and the table in README.md. Rows are those of configs/cifar10_table2.py.
"""

import json
import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tables
from absl import app, flags
from tables import RESULTS, ROOT, SEEDS, chosen, define_rows, evaluated, exported, percent, read, seeded, step

RUNS = Path("runs/table2")
CONFIG = "configs/cifar10_table2.py"
SMALL = 100_000  # bytes of a model that is kept beside the table

# The order is that in which rows start from each other.
ROWS = {
    "dense": "dense float; int8 calibrated",
    "pruned": "pruned float; int8 calibrated",
    "small": "pruned, int8 trained, large layers of 4 bits",
    "small4": "pruned more, 4 bits trained",
    "smallest": "pruned further, 4 bits trained",
    "dense_more": "dense float, distilled on",
    "dense_int8": "dense, int8 trained",
    "dense_long": "long dense float (4 times the epochs, larger cutout); int8 calibrated",
    "pruned_long": "pruned from the long one; int8 calibrated",
    "small_long": "pruned from the long one, int8 trained, large layers of 4 bits",
}
FLOAT_ONLY = ("dense_more",)  # what others are measured against: trained and evaluated in JAX alone
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


def main(argv):
    del argv
    rows = chosen(ROWS)
    for seed in map(int, SEEDS.value):
        for row in rows:
            publish(run(row, seed))


def folder(row: str, seed: int) -> Path:
    """The run folder of a row."""
    return seeded(RUNS / row, seed)


def run(row: str, seed: int) -> dict:
    """Trains, exports and evaluates a row where that is not done, and returns its figures."""
    workdir = folder(row, seed)
    arguments = [f"--config={CONFIG}:{row}", f"--config.seed={seed}", *sources(row, seed)]
    step("train", f"--workdir={workdir}", *arguments)
    record = dict(
        row=row,
        seed=seed,
        epochs=epochs(row),
        command=f"python -m atalaia.train --workdir={workdir} {' '.join(arguments)}",
        sparsity=_sparsity(workdir),
        **tables.trained(workdir),
    )
    if row in FLOAT_ONLY:
        evaluations = {split: evaluated(workdir, split, "jax") for split in ("validation", "test")}
        return record | evaluations | dict(float_sizes=read(workdir, "ledger.json")["rows"][-1])
    exported(workdir)
    for file in ("model.tflite", "model.atl"):
        if (ROOT / workdir / file).stat().st_size < SMALL:
            keep(workdir / file, workdir.name)
    validation = evaluated(workdir, "validation", "jax,jax_int,tflite,xnnpack")
    agreement = _agreement(workdir, "jax_int", "evaluation_validation_details.json")
    test = evaluated(workdir, "test", _ENGINES.value)
    if not (ROOT / workdir / "layers.json").is_file():
        step("evaluate", f"--workdir={workdir}", "--layers", "--split=validation")
    if read(workdir, "ledger.json")["rows"][-1].get("flash_bytes") is None:
        add_flash(workdir)
    layers, ledger = read(workdir, "layers.json"), read(workdir, "ledger.json")["rows"]
    return record | dict(
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
    """Copies a small model beside the table, under the name of its run."""
    from atalaia.files import write_whole

    (RESULTS / "table2").mkdir(parents=True, exist_ok=True)
    write_whole(RESULTS / "table2" / f"{name}{path.suffix}", (ROOT / path).read_bytes())


def epochs(row: str, changes: Mapping[str, Any] = MappingProxyType({})) -> float:
    """Epochs of training in all, those of the runs that it started from counted, with `changes` of the row's config."""
    config = _config(row)
    config.update_from_flattened_dict(dict(changes))
    before = epochs(Path(config.start_from).name) if config.start_from else 0.0
    return before + sum(config[stage].epochs for stage in config.stages)


def _config(row):
    import cifar10_table2

    return cifar10_table2.get_config(row)


def _sparsity(workdir):
    pruned = (ROOT / workdir / "sparsity.json").is_file()
    return read(workdir, "sparsity.json")["all pruned parameters"] if pruned else 0.0


def publish(row: dict) -> None:
    """Adds a row to the results in the place of an older one, and writes the tables and the picture."""
    from atalaia import report

    path = RESULTS / "table2.json"
    rows = report.publish_rows(path, row, ("row", "seed"), table, _order, tables.older_recipe(row))
    picture(rows, compared(), path.with_suffix(".png"))


def compared() -> list[dict]:
    """The recipes that experiments/table2_variants.py compared with the rows."""
    path = RESULTS / "table2_variants.json"
    return [r for r in json.loads(path.read_text()) if r["variant"] != OWN] if path.is_file() else []


def _order(row):
    return list(ROWS).index(row["row"]), row["seed"]


def table(rows: list[dict]) -> str:
    """Accuracy in Markdown, of several seeds the median and the extremes; the largest sizes, the least equality."""
    groups = {name: [r for r in rows if r["row"] == name] for name in ROWS}
    groups = {name: found for name, found in groups.items() if found}
    integer = {name: found for name, found in groups.items() if name not in FLOAT_ONLY}
    parts = (_accuracies(groups), _differences(groups), _sizes(groups), _equality(integer))
    return "\n".join(line for part in parts for line in (*part, ""))


def _accuracies(groups):
    yield (
        "| row, whole test set | epochs | zeros % | JAX: float, or fake-quantised where int8 is trained % | int JAX % "
        "| TFLM % | F1 (TFLM) % | seeds |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, found in groups.items():
        cells = [_percent(found, engine, "accuracy") for engine in ("jax", "jax_int", "tflm")]
        cells.append(_percent(found, "tflm", "f1_macro"))
        figures = f"{found[0]['epochs']:g} | {100 * found[0]['sparsity']:.1f} | {' | '.join(cells)} | {len(found)}"
        yield f"| {ROWS[name]} | {figures} |"
    for name, (accuracy, _) in THESIS.items():
        yield f"| *thesis: {name}* | | | {accuracy} | | | | 1 |"


def _differences(groups):
    yield (
        "| int8 network in TFLM, whole test set | epochs | the float network of that seed | its epochs "
        "| points above it, by seed | download, bytes |"
    )
    yield "|---|---:|---|---:|---:|---:|"
    for name, other in ((name, other) for name, floats in AGAINST.items() for other in floats):
        ours = [r for r in groups.get(name, ()) if "tflm" in r["test"]]
        pairs = [(a, b) for a in ours for b in groups.get(other, ()) if a["seed"] == b["seed"]]
        if not pairs:
            continue
        points = (100 * (a["test"]["tflm"]["accuracy"] - b["test"]["jax"]["accuracy"]) for a, b in pairs)
        by_seed = ", ".join(f"{p:+.2f} ({a['seed']})" for p, (a, _) in zip(points, pairs, strict=True))
        epochs, others = (f"{r['epochs']:g}" for r in pairs[0])
        size = max(a["int8_sizes"]["download_bytes"] for a, _ in pairs)
        yield f"| {ROWS[name]} | {epochs} | {ROWS[other].partition(';')[0]} | {others} | {by_seed} | {size:,} |"


def _sizes(groups):
    yield (
        "| row, bytes | float32 | checkpoint | .tflite | gzip -9 | download (model.atl) | flash of the C, rv32 -O2 "
        "| TFLM's arena |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, found in groups.items():
        parts = [("float_sizes", n) for n in ("float32", "checkpoint")]
        parts += [("int8_sizes", n) for n in ("tflite", "gzip", "download", "flash", "tflm_arena")]
        cells = [_largest(r.get(part, {}).get(f"{n}_bytes") for r in found) for part, n in parts]
        yield f"| {ROWS[name]} | " + " | ".join("-" if c is None else f"{c:,}" for c in cells) + " |"
    for name, (_, size) in THESIS.items():
        yield f"| *thesis: {name}* | {size} | | | | | | |"


def _largest(values):
    return max((v for v in values if v is not None), default=None)


def _equality(integer):
    from atalaia import report

    yield (
        "| bytes of the logits equal to integer JAX's %, in brackets same class % | TFLM, test set "
        "| TFLite reference, validation | XNNPACK, validation "
        "| forward pass of training, worst layer, 100 images of validation | its class, test set |"
    )
    yield "|---|---:|---:|---:|---:|---:|"
    for name, rows in integer.items():
        parts = [[r["equal"][e] for r in rows if e in r["equal"]] for e in ("tflm", "tflite", "xnnpack")]
        cells = [_least([p["bytes"] for p in part], [p["predictions"] for p in part]) for part in parts]
        forward = [r for r in rows if r["forward_bytes_equal"] is not None]
        same = [1 - r["forward_predictions_changed"] for r in forward]
        cells.append(_least([r["forward_bytes_equal"] for r in forward], same))
        classes = [r["forward_same_class"] for r in forward]
        cells.append(report.equal(min(classes), 2) if classes else "-")
        yield f"| {ROWS[name]} | {' | '.join(cells)} |"


def _least(parts, same):
    from atalaia import report

    return f"{report.equal(min(parts), 2)} ({report.equal(min(same), 2)})" if parts else "-"


def _percent(rows, engine, figure):
    return percent([r for r in rows if engine in r["test"]], lambda row: row["test"][engine][figure])


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
        axes.errorbar(*points[-1], yerr=spread, fmt="o", capsize=3, label=f"{ROWS[name]} ({seeds})")
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


if __name__ == "__main__":
    app.run(main)

"""The thesis's Table 2 again: its network on all of CIFAR-10, dense, pruned, int8 calibrated and int8 trained.

python experiments/table2.py [--rows=dense,pruned,small] [--seeds=0,1,2] [--data_dir=FOLDER]

Trains what is not trained yet in runs/table2 (each row goes on where it was), exports and evaluates it, the test set
once a row, and writes experiments/results/table2.json, .md and .png, the models under 100 KB of the rows to
experiments/results/table2/, and the table in README.md. Rows are those of configs/cifar10_table2.py.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "configs")]
RESULTS = ROOT / "experiments/results"
RUNS = Path("runs/table2")
CONFIG = "configs/cifar10_table2.py"
SMALL = 100_000  # bytes of a model that is kept beside the table

# The order is that in which rows start from each other.
ROWS = {
    "dense": "dense float",
    "dense_more": "dense float, the epochs of the small ones",
    "dense_little_more": "dense float, the epochs of dense int8",
    "dense_int8": "dense, int8 trained",
    "pruned": "pruned float; int8 calibrated",
    "small": "pruned, int8 trained",
    "smallest": "pruned further, int8 and 4 bits trained",
}
# What the thesis reports for the same steps: accuracy %, and megabytes with what they are (THESIS, Table 2).
THESIS = {
    "dense float": (85.91, "28 MB: float32 weights and Adam's two moments"),
    "pruned float": (84.40, "9.3 MB: float32, zeros stored"),
    "pruned, int8": (84.36, "2.4 MB: a byte a weight, zeros stored"),
}

_ROWS = flags.DEFINE_list("rows", list(ROWS), "The rows to run; all that ran before stay in the tables.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "One run each.")
_DATA = flags.DEFINE_string("data_dir", None, "Where data sets are kept.")


def main(argv):
    del argv
    for seed in map(int, _SEEDS.value):
        for row in ROWS:
            if row in _ROWS.value:
                publish(run(row, seed))


def folder(row: str, seed: int) -> Path:
    """The run folder of a row."""
    return RUNS / (row if seed == 0 else f"{row}_seed{seed}")


def run(row: str, seed: int) -> dict:
    """Trains, exports and evaluates a row where that is not done, and returns its figures."""
    from atalaia import config as configs

    workdir = folder(row, seed)
    source = {"small": "pruned"}.get(row, "dense")
    start = [f"--config.start_from={folder(source, seed)}"] if row != "dense" and seed else []
    _module("train", workdir, f"--config={CONFIG}:{row}", f"--config.seed={seed}", *start)
    if not (ROOT / workdir / "model.atl").is_file():
        _module("export", workdir)
    for split in ("validation", "test"):
        name = "evaluation" if split == "test" else "evaluation_validation"
        if not (ROOT / workdir / f"{name}.json").is_file():
            engines = "jax,jax_int,tflite,xnnpack,tflm" if split == "test" else "jax,jax_int"
            _module("evaluate", workdir, f"--split={split}", f"--engines={engines}")
    layers = ROOT / workdir / "layers.json"
    if not layers.is_file():
        _module("evaluate", workdir, "--layers", "--split=validation")

    def read(name):
        return json.loads((ROOT / workdir / name).read_text())

    config, ledger = configs.load(ROOT / workdir), read("ledger.json")["rows"]
    agreement = {
        tuple(r["engines"]): dict(predictions=r["predictions"], bytes=r["bytes"])
        for r in read("evaluation_details.json")["agreement"]
    }
    compared = read("layers.json")
    if (ROOT / workdir / "model.tflite").stat().st_size < SMALL:
        keep(workdir / "model.tflite", row)
    if (ROOT / workdir / "model.atl").stat().st_size < SMALL:
        keep(workdir / "model.atl", row)
    return dict(
        row=row,
        seed=seed,
        epochs=_epochs(row),
        command=f"python -m atalaia.train --config={CONFIG}:{row} --workdir={workdir} --config.seed={seed}",
        sparsity=_sparsity(workdir),
        bits=config.quantize.bits if "quantize" in config.stages else "",
        ranges=read("export.json")["ranges"],
        validation=read("evaluation_validation.json"),
        test=read("evaluation.json"),
        bytes_equal={engine: agreement["jax_int", engine] for engine in ("tflite", "xnnpack", "tflm")},
        forward_bytes_equal=min((r["training"] for r in compared["rows"] if "training" in r), default=None),
        forward_predictions_changed=compared["predictions_changed"].get("training"),
        float_sizes=ledger[-2],
        int8_sizes=ledger[-1],
        seconds=read("train.json")["seconds"],
    )


def keep(path: Path, row: str) -> None:
    """Copies a small model beside the table."""
    from atalaia.files import write_whole

    (RESULTS / "table2").mkdir(parents=True, exist_ok=True)
    write_whole(RESULTS / "table2" / f"{row}{path.suffix}", (ROOT / path).read_bytes())


def _module(name, workdir, *arguments):
    data = [f"--data_dir={_DATA.value}"] if _DATA.value else []
    subprocess.run(
        [sys.executable, "-m", f"atalaia.{name}", f"--workdir={workdir}", *arguments, *data], check=True, cwd=ROOT
    )


def _epochs(row):
    """Epochs of training in all, those of the runs that it started from counted."""
    import cifar10_table2

    config = cifar10_table2.get_config(row)
    before = _epochs(Path(config.start_from).name) if config.start_from else 0.0
    return before + sum(config[stage].epochs for stage in config.stages)


def _sparsity(workdir):
    path = ROOT / workdir / "sparsity.json"
    return json.loads(path.read_text())["all pruned parameters"] if path.is_file() else 0.0


def publish(row: dict) -> None:
    """Adds a row to the results in the place of an older one, and writes the tables and the picture."""
    from atalaia import report
    from atalaia.files import write_json, write_whole

    path = RESULTS / "table2.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = list({(r["row"], r["seed"]): r for r in (*rows, row)}.values())
    rows.sort(key=lambda r: (list(ROWS).index(r["row"]), r["seed"]))
    write_json(path, rows)
    text = tables(rows)
    write_whole(RESULTS / "table2.md", text)
    report.insert(ROOT / "README.md", "table2", text)
    picture(rows, RESULTS / "table2.png")
    print(f"{text}\nwritten: {path}, .md, .png and README.md", flush=True)


def tables(rows: list[dict]) -> str:
    """Accuracy, sizes and equality in Markdown, medians over the seeds that ran."""
    lines = [
        "| row | epochs | zeros % | float JAX % | int JAX % | TFLM % | F1 (TFLM) % | seeds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    groups = {name: [r for r in rows if r["row"] == name] for name in ROWS}
    groups = {name: found for name, found in groups.items() if found}
    for name, found in groups.items():
        cells = [_percent(found, lambda r, e=e: r["test"][e]["accuracy"]) for e in ("jax", "jax_int", "tflm")]
        cells.append(_percent(found, lambda r: r["test"]["tflm"]["f1_macro"]))
        first = found[0]
        lines.append(
            f"| {ROWS[name]} ({first['ranges']} ranges) | {first['epochs']:g} | {100 * first['sparsity']:.1f} | "
            + " | ".join(cells)
            + f" | {len(found)} |"
        )
    for name, (accuracy, _) in THESIS.items():
        lines.append(f"| *thesis: {name}* | | | {accuracy} | | | | 1 |")
    lines += [
        "",
        "| row, bytes | float32 | checkpoint | .tflite | gzip -9 | download (model.atl) | flash of compiled C "
        "| TFLM's arena |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in groups.items():
        both = found[0]["float_sizes"] | {k: v for k, v in found[0]["int8_sizes"].items() if v is not None}
        names = ("float32", "checkpoint", "tflite", "gzip", "download", "flash", "tflm_arena")
        cells = [both.get(f"{n}_bytes") for n in names]
        both["float32_bytes"] = found[0]["float_sizes"]["float32_bytes"]
        lines.append(f"| {ROWS[name]} | " + " | ".join("-" if c is None else f"{c:,}" for c in cells) + " |")
    for name, (_, size) in THESIS.items():
        lines.append(f"| *thesis: {name}* | {size} | | | | | | |")
    lines += [
        "",
        "| row, integer JAX against | TFLM: bytes % | TFLite reference: bytes % (same class %) | XNNPACK: bytes % "
        "(same class %) | forward pass of training: bytes of the worst layer % |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in groups.items():
        equal, forward = found[0]["bytes_equal"], found[0]["forward_bytes_equal"]
        cells = [f"{100 * equal[e]['bytes']:.3f} ({100 * equal[e]['predictions']:.2f})" for e in ("tflite", "xnnpack")]
        cells.append("-" if forward is None else f"{100 * forward:.3f}")
        worst = min(r["bytes_equal"]["tflm"]["bytes"] for r in found)
        lines.append(f"| {ROWS[name]} | {100 * worst:.4f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(rows, of):
    values = [100 * of(r) for r in rows]
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def picture(rows: list[dict], path: Path) -> None:
    """Validation accuracy of the integer network against download size, one point a run."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from atalaia.files import write_whole

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for row in rows:
        size, accuracy = row["int8_sizes"]["download_bytes"] / 1000, 100 * row["validation"]["jax_int"]["accuracy"]
        axes.plot(size, accuracy, "o", color="tab:blue")
        axes.annotate(row["row"], (size, accuracy), xytext=(5, 4), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", xlabel="download size, model.atl, kB", ylabel="validation accuracy, integer network, %")
    axes.set_title("Thesis network on CIFAR-10")
    axes.grid(alpha=0.3, which="both")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    plt.close(figure)
    write_whole(path, content.getvalue())


if __name__ == "__main__":
    app.run(main)

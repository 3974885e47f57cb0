"""The whole chain, from a config to C that fits 59 KB of flash: distil, prune, quantise, export, codegen, emulators.

python experiments/pipeline.py [--seeds=0] [--data_dir=FOLDER]

Trains what is not trained yet: the teacher (runs/table2/dense, which Table 2 shares) and the run of configs/pipeline.py
in runs/pipeline; each goes on where it was. Then exports, evaluates (the test set once), writes C to runs/pipeline/c
and counts its instructions on emulators. Writes experiments/results/pipeline.json and .md, and the table in README.md.
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
RUNS = Path("runs")
CONFIG = "configs/pipeline.py"
TEACHER = ("--config=configs/cifar10_table2.py", RUNS / "table2/dense")
# What others report: accuracy %, F1 %, bytes of the model in flash, milliseconds on a classic ESP32.
PEERS = {
    "Silva (2022), traffic signs, measured on the board": (85.91, 85.80, "59 KB", "80"),
    "MLPerf Tiny's ResNet-8, CIFAR-10, TFLM with ESP-NN, measured on the board": (86.97, None, "98,496", "724"),
}

_SEEDS = flags.DEFINE_list("seeds", ["0"], "One run each.")
_DATA = flags.DEFINE_string("data_dir", None, "Where data sets are kept.")


def main(argv):
    del argv
    from atalaia import report

    for seed in map(int, _SEEDS.value):
        report.publish_rows(RESULTS / "pipeline.json", run(seed), ("seed",), table, lambda row: row["seed"])


def run(seed: int) -> dict:
    """Runs the steps that are not done, and returns the figures."""
    import pipeline as recipe  # configs/pipeline.py: this file is __main__

    workdir = RUNS / ("pipeline" if seed == 0 else f"pipeline_seed{seed}")
    config, teacher = TEACHER
    if not (ROOT / teacher / "train.json").is_file():
        _module("train", f"--workdir={teacher}", config)
    _module("train", f"--workdir={workdir}", f"--config={CONFIG}", f"--config.seed={seed}")
    if not (ROOT / workdir / "export.json").is_file():
        _module("export", f"--workdir={workdir}")
    for split, name in (("validation", "evaluation_validation.json"), ("test", "evaluation.json")):
        if not (ROOT / workdir / name).is_file():
            _module("evaluate", f"--workdir={workdir}", f"--split={split}", "--engines=jax,jax_int,tflm")
    c = workdir / "c"
    limit = f"--flash={recipe.FLASH}"
    _module("codegen", f"--tflite={workdir / 'model.tflite'}", f"--out={c}", f"--config={CONFIG}", limit, "--count")
    made = _read(c / "report.json")
    return dict(
        seed=seed,
        command=f"python experiments/pipeline.py --seeds={seed}",
        epochs=sum(recipe.get_config()[stage].epochs for stage in recipe.get_config().stages),
        sparsity=_read(workdir / "sparsity.json")["all pruned parameters"],
        validation=_read(workdir / "evaluation_validation.json"),
        test=_read(workdir / "evaluation.json"),
        download_bytes=_read(workdir / "ledger.json")["rows"][-1]["download_bytes"],
        **{k: made[k] for k in ("weight_bytes", "arena_bytes", "macs", "counted_instructions", "estimated")},
    )


def _module(name, *arguments):
    data = [f"--data_dir={_DATA.value}"] if _DATA.value else []
    subprocess.run([sys.executable, "-m", f"atalaia.{name}", *arguments, *data], check=True, cwd=ROOT)


def _read(path):
    return json.loads((ROOT / path).read_text())


def table(rows: list[dict]) -> str:
    """Ours, of several seeds the median and the extremes, and what others report, in Markdown."""
    lines = [
        "| model, whole test set | accuracy, TFLM % | F1 % | float JAX % | flash: weights and tables, bytes "
        "| arena, bytes | download, bytes | ESP32, ms | seeds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    first = rows[0]
    figures = [[100 * r["test"][e][f] for r in rows] for e, f in (("tflm", "accuracy"), ("tflm", "f1_macro"))]
    figures.append([100 * r["test"]["jax"]["accuracy"] for r in rows])
    sizes = (f"{first[k]:,}" for k in ("weight_bytes", "arena_bytes", "download_bytes"))
    times = " to ".join(f"{ms:.0f}" for ms in first["estimated"]["esp32"]["milliseconds"])
    cells = [*map(_spread, figures), *sizes, f"{times}, *estimated*", len(rows)]
    lines.append(f"| ours, {first['epochs']:g} epochs, {100 * first['sparsity']:.0f} % zeros | {_row(cells)} |")
    for name, (accuracy, f1, size, ms) in PEERS.items():
        lines.append(f"| *{name}* | {_row([accuracy, f1 or '-', '-', size, '-', '-', ms, '-'])} |")
    return "\n".join(lines) + "\n"


def _row(cells):
    return " | ".join(map(str, cells))


def _spread(values):
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    app.run(main)

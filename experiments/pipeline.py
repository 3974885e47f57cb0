"""The whole chain, from a config to C that fits 59 KB of flash: distil, prune, quantise, export, codegen, emulators.

python experiments/pipeline.py [--seeds=0] [--teacher=FOLDER] [--data_dir=FOLDER]
python experiments/pipeline.py --recount    # after a change of codegen: the C of the kept models, without training

Trains what is not trained yet: the teacher, without --teacher the network of the same seed that Table 2 shares
(runs/table2/dense), and the run of configs/pipeline.py in runs/pipeline; each goes on where it was. Then exports,
evaluates (the test set once), writes C to runs/pipeline/c and counts its instructions on emulators. Writes
experiments/results/pipeline.json and .md, the model as pipeline_seedN.atl beside them, and the table in README.md.
"""

import itertools
import json
import sys
import tempfile
from pathlib import Path

from absl import app, flags
from tables import RESULTS, ROOT, SEEDS, evaluated, exported, percent, read, seeded, step

RUNS = Path("runs")
KEY = ("epochs", "seed", "teacher")  # of a row
CONFIG, TEACHER = "configs/pipeline.py", "configs/cifar10_table2.py"
# What others report: accuracy %, F1 %, bytes of the model in flash, milliseconds on a classic ESP32.
PEERS = {
    "Silva (2022), traffic signs, measured on the board": (85.91, 85.80, "59 KB, as published", "80"),
    "MLPerf Tiny's ResNet-8, CIFAR-10, TFLM with ESP-NN, measured on the board": (
        86.97,
        None,
        "98,496, .tflite",
        "724",
    ),
}

_RECOUNT = flags.DEFINE_bool("recount", False, "Only the C of the models kept beside the table, made and counted anew.")

_TEACHER = flags.DEFINE_string("teacher", None, "Finished run that teaches every seed; by default each has its own.")


def main(argv):
    del argv
    from atalaia import report
    from atalaia.codegen import boards
    from atalaia.errors import UserError

    try:  # a compiler or emulator that is missing shows before hours of training
        for board in boards.EMULATORS:
            boards.run(ROOT / "mcu/models/cifar10", board, 1)
    except UserError as error:
        sys.exit(f"error: {error}")
    path = RESULTS / "pipeline.json"
    if _RECOUNT.value:  # of older recipes' rows no model is kept
        rows = (recount(row) for row in json.loads(path.read_text()) if row["epochs"] == _epochs())
    else:
        rows = map(run, map(int, SEEDS.value))
    for row in rows:
        report.publish_rows(path, row, KEY, table, lambda row: (-row["epochs"], row["seed"], row["teacher"]))


def run(seed: int) -> dict:
    """Runs the steps that are not done, and returns the figures."""
    from atalaia.files import write_whole

    workdir, teacher = seeded(RUNS / "pipeline", seed), teacher_of(seed)
    if not _TEACHER.value and not any((ROOT / folder / "train.json").is_file() for folder in (teacher, workdir)):
        step("train", f"--workdir={teacher}", f"--config={TEACHER}", f"--config.seed={seed}")
    step("train", f"--workdir={workdir}", f"--config={CONFIG}", f"--config.seed={seed}", *taught_by(seed))
    exported(workdir)
    scores = {split: evaluated(workdir, split, "jax,jax_int,tflm") for split in ("validation", "test")}
    write_whole(RESULTS / f"{workdir.name}.atl", (ROOT / workdir / "model.atl").read_bytes())
    return dict(
        seed=seed,
        teacher=str(teacher),
        command=f"python experiments/pipeline.py --seeds={seed} --teacher={teacher}",
        epochs=_epochs(),
        sparsity=read(workdir, "sparsity.json")["all pruned parameters"],
        **scores,
        download_bytes=read(workdir, "ledger.json")["rows"][-1]["download_bytes"],
        **in_c(workdir / "model.tflite", workdir / "c"),
    )


def recount(row: dict) -> dict:
    """A row with the figures of the C that its kept model has now."""
    from atalaia import pack

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.tflite"
        path.write_bytes(pack.unpack((RESULTS / f"{seeded(RUNS / 'pipeline', row['seed']).name}.atl").read_bytes()))
        return row | in_c(path, Path(folder) / "c")


def in_c(tflite: Path, out: Path) -> dict:
    """Writes a model's fastest C that fits the recipe's flash to folder `out`, and returns its counted figures."""
    limit = (f"--flash={_recipe().FLASH}", "--prefer=speed")
    step("codegen", f"--tflite={tflite}", f"--out={out}", f"--config={CONFIG}", *limit, "--count")
    made = read(out, "report.json")
    return {k: made[k] for k in ("weight_bytes", "arena_bytes", "macs", "counted_instructions", "estimated")}


def teacher_of(seed: int) -> Path:
    """The run folder of a seed's teacher."""
    if _TEACHER.value:
        return Path(_TEACHER.value)
    return seeded(RUNS / "table2/dense", seed)


def taught_by(seed: int) -> list[str]:
    """Flags by which a run follows its teacher."""
    return [f"--config.{stage}.teacher={teacher_of(seed)}" for stage in _recipe().get_config().stages]


def _epochs() -> float:
    config = _recipe().get_config()
    return sum(config[stage].epochs for stage in config.stages)


def _recipe():
    import pipeline  # configs/pipeline.py: this file is __main__

    return pipeline


def table(rows: list[dict]) -> str:
    """Ours, a line for each recipe, of several seeds the largest sizes, and what others report, in Markdown."""
    lines = [
        "| model, whole test set | accuracy, TFLM % | F1 % | JAX, fake-quantised % | flash: weights and tables, bytes "
        "| arena, bytes | download, bytes | ESP32, ms | seeds, by teachers |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    shown = (("tflm", "accuracy"), ("tflm", "f1_macro"), ("jax", "accuracy"))
    for epochs, group in itertools.groupby(rows, lambda row: row["epochs"]):
        group = list(group)
        figures = [percent(group, lambda r, e=e, f=f: r["test"][e][f]) for e, f in shown]
        sizes = (f"{max(r[k] for r in group):,}" for k in ("weight_bytes", "arena_bytes", "download_bytes"))
        low, high = zip(*(r["estimated"]["esp32"]["milliseconds"] for r in group), strict=True)
        times = f"{min(low):.0f} to {max(high):.0f}"
        seeds = f"{len(group)}, by {len({r['teacher'] for r in group})}"
        cells = [*figures, *sizes, f"{times}, *estimated*", seeds]
        name = f"ours, {epochs:g} epochs, {100 * group[0]['sparsity']:.0f} % zeros in pruned layers"
        lines.append(f"| {name} | {_row(cells)} |")
    for name, (accuracy, f1, size, ms) in PEERS.items():
        lines.append(f"| *{name}* | {_row([accuracy, f1 or '-', '-', size, '-', '-', ms, '-'])} |")
    return "\n".join(lines) + "\n"


def _row(cells):
    return " | ".join(map(str, cells))


if __name__ == "__main__":
    app.run(main)

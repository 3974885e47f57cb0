"""The whole chain, from a config to C that fits 59 KB of flash: distil, prune, quantise, export, codegen, emulators.

python experiments/pipeline.py [--seeds=0] [--teacher=FOLDER] [--data_dir=FOLDER]
python experiments/pipeline.py --recount    # after a change of codegen: the C of the kept models, without training
python experiments/pipeline.py --pages      # only writes the page, from the figures

Trains what is not trained yet: the teacher, without --teacher the network of the same seed that Table 2 shares
(runs/table2/dense), and the run of configs/pipeline.py in runs/pipeline; each goes on where it was. Then exports,
evaluates (the test set once), writes C to runs/pipeline/c and counts its instructions on emulators. The model is kept
beside the figures as pipeline_seedN.atl.
"""

import itertools
from pathlib import Path

import tables
from absl import flags
from tables import ROOT, SEEDS, Row, Table, grid, percent, read, seeded

RUNS = Path("runs")
CONFIG, TEACHER = "configs/pipeline.py", "configs/cifar10_table2.py"
ENGINES = "jax,jax_int,tflm"
ROW = Row("pipeline", "ours", CONFIG, engines={"validation": ENGINES, "test": ENGINES})
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


_TEACHER = flags.DEFINE_string("teacher", None, "Finished run that teaches every seed; by default each has its own.")


def main():
    from atalaia.codegen import boards

    tables.require(*boards.EMULATORS)
    if tables.RECOUNT.value:  # of older recipes' rows no model is kept
        rows = (recount(row) for row in TABLE.figures() if row["epochs"] == _epochs())
    else:
        rows = map(run, map(int, SEEDS.value))
    for row in rows:
        TABLE.add(row)


def run(seed: int) -> dict:
    """Runs the steps that are not done, and returns the figures."""
    from atalaia.files import write_whole

    workdir, teacher = seeded(RUNS / "pipeline", seed), teacher_of(seed)
    if not _TEACHER.value and not any((ROOT / folder / "train.json").is_file() for folder in (teacher, workdir)):
        tables.step("train", f"--workdir={teacher}", f"--config={TEACHER}", f"--config.seed={seed}")
    found = tables.run(ROW, workdir, f"--config.seed={seed}", *taught_by(seed))
    TABLE.folder.mkdir(parents=True, exist_ok=True)
    write_whole(kept(seed), (ROOT / workdir / "model.atl").read_bytes())
    return found | dict(
        seed=seed,
        teacher=str(teacher),
        command=f"python experiments/pipeline.py --seeds={seed} --teacher={teacher}",
        epochs=_epochs(),
        sparsity=read(workdir, "sparsity.json")["all pruned parameters"],
        download_bytes=read(workdir, "ledger.json")["rows"][-1]["download_bytes"],
        **in_c(workdir / "model.tflite", workdir / "c"),
    )


def kept(seed: int) -> Path:
    """The model of a seed beside the figures."""
    return TABLE.folder / f"{seeded(RUNS / 'pipeline', seed).name}.atl"


def recount(row: dict) -> dict:
    """A row with the figures of the C that its kept model has now."""
    with tables.unpacked(kept(row["seed"])) as folder:
        return row | in_c(folder / "model.tflite", folder / "c")


def in_c(tflite: Path, out: Path) -> dict:
    """Writes a model's fastest C that fits the recipe's flash to folder `out`, and returns its counted figures."""
    return tables.in_c(tflite, out, CONFIG, f"--flash={_recipe().FLASH}", "--prefer=speed")


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
    from configs import pipeline

    return pipeline


def table(rows: list[dict]) -> str:
    """Ours, a line for each recipe, of several seeds the largest sizes, and what others report, in Markdown."""

    def score(engine, figure):
        return lambda group: percent(group, lambda row: row["test"][engine][figure])

    def largest(name):
        return lambda group: f"{max(row[name] for row in group):,}"

    def name(group):
        zeros = f"{100 * group[0]['sparsity']:.0f} % zeros in pruned layers"
        return f"{ROW.title}, {group[0]['epochs']:g} epochs, {zeros}"

    columns = {
        "model, whole test set": name,
        "accuracy, TFLM %": score("tflm", "accuracy"),
        "F1 %": score("tflm", "f1_macro"),
        "JAX, fake-quantised %": score("jax", "accuracy"),
        "flash: weights and tables, bytes": largest("weight_bytes"),
        "arena, bytes": largest("arena_bytes"),
        "download, bytes": largest("download_bytes"),
        "ESP32, ms": lambda group: f"{tables.milliseconds(group)}, *estimated*",
        "seeds, by teachers": lambda group: f"{len(group)}, by {len({row['teacher'] for row in group})}",
    }
    theirs = [
        (f"*{name}*", score, f1 or "-", "-", size, "-", "-", ms, "-") for name, (score, f1, size, ms) in PEERS.items()
    ]
    return grid(columns, _recipes(rows), more=theirs)


def _recipes(rows):
    return [list(group) for _, group in itertools.groupby(rows, lambda row: row["epochs"])]


def _body(rows):
    runs = tables.provenance(rows, lambda row: f"{row['epochs']:g} epochs, taught by {row['teacher']}")
    return f"{table(rows)}\n## Runs\n\n{runs}"


def _headline(rows):
    group = _recipes(rows)[0]
    accuracy = tables.median(group, lambda row: row["test"]["tflm"]["accuracy"])
    flash = max(row["weight_bytes"] for row in group)
    ms = tables.milliseconds(group)
    return f"{accuracy} in {flash:,} bytes of flash, {ms} ms on an ESP32, estimated ({len(group)} seeds)"


TABLE = Table(
    name="pipeline",
    title="The whole chain, into 59 KB",
    shows="A small network (`rafael_base_32`) learns CIFAR-10 from the dense network of [Table 2](table2.md). It is "
    "pruned, trained on the int8 grids, exported, and generated as the fastest C whose constants fit 59,000 bytes.",
    command="./run.sh pipeline    # two hours on 2 CPU cores, and one for its teacher\n"
    "python experiments/pipeline.py --recount    # after a change of codegen: counts the kept models again",
    body=_body,
    headline=_headline,
    notes=(
        "No board was run: our times are estimated. The times of the others were measured on a board, and Silva's "
        "network saw other images.",
        "Seeds 1 and 2, under one teacher: Table 2's dense network of seed 1. `./run.sh pipeline` as it stands (seed "
        "0, a teacher of its own) was never run with the longer recipe.",
        "Epochs of distillation and the share of zeros were chosen on the validation split, with seed 1. The test "
        "figure of the shorter recipe (second line) was known by then.",
        "Shorter recipe, seed 0: its first 28 epochs come from a checkpoint of a still older recipe.",
        "The two models of the longer recipe are kept beside the figures, as `pipeline_seed1.atl` and "
        "`pipeline_seed2.atl`.",
    ),
    key=("epochs", "seed", "teacher"),
    order=lambda row: (-row["epochs"], row["seed"], row["teacher"]),
)


if __name__ == "__main__":
    tables.start(main, TABLE)

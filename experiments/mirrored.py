"""What the mirror image adds to models that were published before: accuracy, bytes and time, with it and without.

python experiments/mirrored.py [MODEL...]     # evaluates the kept models; half an hour on 2 cores
python experiments/mirrored.py --recount      # after a change of codegen: the C of the kept models, without evaluation
python experiments/mirrored.py --pages        # only writes the page, from the figures

The points of the frontier have their own rows (experiments/frontier.py).
"""

from pathlib import Path
from typing import NamedTuple

import tables
from tables import RESULTS, Table, grid

RUNS = Path("runs/mirrored")
SPLITS = ("validation", "test")


class Model(NamedTuple):
    """A model beside the figures of a page, and the config whose images it was trained on."""

    page: str
    file: str
    config: str


MODELS = {
    "cifar10": Model("cifar10", "model.tflite", "configs/cifar10.py"),
    "pipeline_seed1": Model("pipeline", "pipeline_seed1.atl", "configs/pipeline.py"),
    "pipeline_seed2": Model("pipeline", "pipeline_seed2.atl", "configs/pipeline.py"),
    "smallest_seed1": Model("table2", "smallest_seed1.atl", "configs/cifar10_table2.py:dense"),
}


def main():
    from atalaia.codegen import boards

    tables.require(*boards.EMULATORS, boards.ESP32ISA)
    before = {row["row"]: row for row in TABLE.figures()} if TABLE.there() else {}
    for name in tables.chosen(MODELS):
        row = before.get(name) if tables.RECOUNT.value else dict(row=name, page=MODELS[name].page, **scored(name))
        if row:
            TABLE.add(row | dict(sizes=sizes(name)))


def files(name: str) -> dict[str, Path]:
    """The model as a .tflite, and that mirrored, in the run folder."""
    from atalaia import mirror, pack
    from atalaia.files import write_whole

    kept = (RESULTS / MODELS[name].page / MODELS[name].file).read_bytes()
    content = pack.unpack(kept) if MODELS[name].file.endswith(".atl") else kept
    found = {kind: RUNS / name / f"{kind}.tflite" for kind in ("plain", "mirrored")}
    (tables.ROOT / RUNS / name).mkdir(parents=True, exist_ok=True)
    for kind, data in (("plain", content), ("mirrored", mirror.mirrored(content))):
        write_whole(tables.ROOT / found[kind], data)
    return found


def scored(name: str) -> dict:
    """Accuracy by TFLite Micro of both files, by split."""
    found: dict[str, dict[str, float]] = {split: {} for split in SPLITS}
    for kind, file in files(name).items():
        for split in SPLITS:
            data = f"--tflite={file}", f"--config={MODELS[name].config}"
            scores = tables.evaluated(RUNS / name / kind, split, "tflm", *data)
            found[split][kind] = scores["tflm"]["accuracy"]
    return found


def sizes(name: str) -> dict:
    """Of both files the bytes and the time of their C, made for an ESP32."""
    config = MODELS[name].config
    return {
        kind: tables.in_c(file, RUNS / name / f"{kind}_c", config, "--target=esp32")
        for kind, file in files(name).items()
    }


def gain(row: dict) -> float:
    """Points of accuracy on the test set that the mirror image adds."""
    return 100 * (row["test"]["mirrored"] - row["test"]["plain"])


def table(rows: list[dict]) -> str:
    """In Markdown."""

    def both(cell):
        return lambda row: " / ".join(cell(row, kind) for kind in ("plain", "mirrored"))

    columns = {
        "model": lambda row: f"[{row['row']}]({row['page']}.md)",
        "validation, plain / mirrored %": both(lambda row, kind: f"{100 * row['validation'][kind]:.2f}"),
        "test set, plain / mirrored %": both(lambda row, kind: f"{100 * row['test'][kind]:.2f}"),
        "points": lambda row: f"{gain(row):+.2f}",
        "constants, bytes": both(lambda row, kind: f"{row['sizes'][kind]['weight_bytes']:,}"),
        "arena, bytes": both(lambda row, kind: f"{row['sizes'][kind]['arena_bytes']:,}"),
        "ESP32, ms, *estimated*": both(lambda row, kind: tables.milliseconds([row["sizes"][kind]])),
    }
    return grid(columns, rows, left=1)


TABLE = Table(
    name="mirrored",
    title="The mirror image",
    shows="Models of other pages, and the same models after `python -m atalaia.mirror`: their answer is the mean of "
    "those to the image and to its mirror image. Nothing was trained.",
    command="python experiments/mirrored.py",
    body=table,
    headline=lambda rows: "; ".join(f"{row['row']} {gain(row):+.2f} points" for row in rows),
    notes=(
        "Accuracy is that of TFLite Micro, on the whole validation split and on all 10,000 test images of CIFAR-10.",
        "Bytes and times are those of C by `--target=esp32`, whose bytes equal TFLite Micro's on the golden vectors. "
        "No board was run.",
        "One model a row: the gain differs between networks, so look at the validation split before you use it.",
    ),
    key=("row",),
    order=lambda row: list(MODELS).index(row["row"]),
)


tables.define_rows()

if __name__ == "__main__":
    tables.start(main, TABLE)

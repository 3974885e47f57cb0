"""One run of configs/cifar10.py: ResNet-8 on CIFAR-10, pruned and in int8, by every engine.

python experiments/cifar10.py            # goes on with runs/cifar10, which ./run.sh cifar10 makes too
python experiments/cifar10.py --pages    # only writes the page, from the figures

The model is kept beside the figures; mcu/models/cifar10 is its C.
"""

from pathlib import Path

import tables
from tables import ROOT, Row, Table, grid, read

WORKDIR = Path("runs/cifar10")
ROW = Row("cifar10", "ResNet-8", "configs/cifar10.py", engines={"test": "jax,jax_int,tflite,tflm"})


def main():
    from atalaia.files import write_whole

    tables.run(ROW, WORKDIR)
    TABLE.folder.mkdir(parents=True, exist_ok=True)
    write_whole(TABLE.folder / "model.tflite", (ROOT / WORKDIR / "model.tflite").read_bytes())
    write_whole(tables.PAGES / "cifar10.png", (ROOT / WORKDIR / "confusion.png").read_bytes())
    TABLE.save(*(read(WORKDIR, name) for name in TABLE.files))


def table(figures: dict) -> str:
    """Accuracy by engine, the sizes after each stage, and what training took, in Markdown."""
    from atalaia import ledger

    scores, train = figures["evaluation"], figures["train"]
    columns = {
        "engine": lambda row: row[0],
        "accuracy %": lambda row: f"{100 * row[1]['accuracy']:.2f}",
        "macro F1 %": lambda row: f"{100 * row[1]['f1_macro']:.2f}",
        "images": lambda row: f"{row[1]['images']:,}",
    }
    took = {
        "seed": lambda train: train["seed"],
        "training, seconds": lambda train: f"{train['seconds']:,.0f}",
        "peak memory, MiB": lambda train: f"{train['peak_memory_bytes'] / 2**20:,.0f}",
        "trained on": lambda train: train.get("device", tables.NOT_RECORDED),
        "JAX": lambda train: train.get("jax", tables.NOT_RECORDED),
    }
    sizes = ledger.table(figures["ledger"]["rows"])
    return "\n".join((grid(columns, scores.items()), f"{sizes}\n", grid(took, [train])))


def _headline(figures):
    accuracy, int8 = figures["evaluation"]["tflm"]["accuracy"], figures["ledger"]["rows"][-1]
    return (
        f"{100 * accuracy:.2f} % in a .tflite of {int8['tflite_bytes']:,} bytes (seed {figures['train']['seed']} only)"
    )


TABLE = Table(
    name="cifar10",
    title="CIFAR-10: ResNet-8, pruned and in int8",
    shows="MLPerf Tiny's ResNet-8, trained, pruned to 50 % and exported to int8: accuracy on all 10,000 test images "
    "by each engine, and what each stage weighs.",
    command="./run.sh cifar10    # under an hour on 2 CPU cores\npython experiments/cifar10.py",
    body=table,
    headline=_headline,
    picture="How often each class was taken for each",
    files=("config.json", "evaluation.json", "ledger.json", "train.json"),
    notes=(
        "Seed 0 only. The machine did other work at the same time.",
        "*jax* is the float network; *tflite* and *tflm* (TFLite Micro) run the int8 file.",
        "Zeros alone do not make a `.tflite` smaller: only its gzip shrinks. The columns are explained in "
        "`ledger.json`.",
    ),
)


if __name__ == "__main__":
    tables.start(main, TABLE)

"""Generated C on three instruction sets: instructions, sizes and parity, and published times.

python experiments/mcu.py [--models=resnet8_0,resnet8_80,thesis_0,thesis_80,cifar10] [--images=10000]
python experiments/mcu.py --pages        # only writes the page, from the figures

Trains what is not trained yet in runs/mcu: an epoch or two, so that weights, and zeros, come from training; their
accuracy is not the point and is not reported. `cifar10` is the committed model of experiments/results/cifar10, whose
C goes to mcu/models/cifar10. Needs gcc, and for the emulators the Debian packages that `make -C mcu run` names.
"""

import concurrent.futures
import ctypes
import hashlib
import json
import os
import tempfile
from pathlib import Path

import compiled
import numpy as np
import tables
from absl import flags
from tables import DATA, RESULTS, ROOT, Row, Table, grid

RUNS = Path("runs/mcu")
COMMITTED = RESULTS / "cifar10/model.tflite"

RESNET8, THESIS = "configs/cifar10.py", "configs/cifar10_table2.py"
BEFORE = {"resnet8_80": "resnet8_0", "thesis_80": "thesis_0"}  # what a pruned one starts from


def _dense(name, config, epochs):
    return Row(name, name, config, ("--config.stages=('dense',)", f"--config.dense.epochs={epochs}"))


def _pruned(name, config, epochs):
    start = f"--config.start_from={RUNS / BEFORE[name]}"
    prune = ("--config.stages=('prune',)", "--config.prune.sparsity=0.8", f"--config.prune.epochs={epochs}")
    return Row(name, name, config, (*prune, start))


ROWS = tables.by_name(
    (
        _dense("resnet8_0", RESNET8, 2),
        _pruned("resnet8_80", RESNET8, 2),
        _dense("thesis_0", THESIS, 1),
        _pruned("thesis_80", THESIS, 1),
    )
)
MODELS = (*ROWS, "cifar10")

_MODELS = flags.DEFINE_list("models", list(MODELS), f"Of {', '.join(MODELS)}.")
_IMAGES = flags.DEFINE_integer("images", 10_000, "Test images on the host, compared with TFLite Micro.")
_SAMPLES = flags.DEFINE_integer("samples", 100, "Images on the emulators.")


def main():
    for name in _MODELS.value:
        TABLE.add(measure(name))


def measure(name: str) -> dict:
    """One model on all boards: what `make -C mcu run` found, and parity on many images."""
    from atalaia import data, engines, tflite
    from atalaia.codegen import __main__ as codegen
    from atalaia.codegen import boards

    content = (COMMITTED if name == "cifar10" else _train(name)).read_bytes()
    graph = tflite.read(content)
    weights = [graph.tensors[op.inputs[1]].data for op in graph.operators if op.kind in ("CONV_2D", "FULLY_CONNECTED")]
    dataset = data.load(_config(name).data, data.cache_dir(DATA.value))
    images = dataset.test.images[: _IMAGES.value]
    answers = _tflm(content, images)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / name
        codegen.generate(content, model, dataset.validation.images, _SAMPLES.value)
        found = {boards.HOST: boards.run(model, boards.HOST)} | codegen.count(model)
        report = json.loads((model / "report.json").read_text())
        equal = np.all(_on_host(model, engines.quantize_input(content, images), answers.shape[1]) == answers, 1)
    if name == "cifar10":
        codegen.generate(content, ROOT / "mcu/models/cifar10", dataset.validation.images, 8)
        codegen.count(ROOT / "mcu/models/cifar10")
    return dict(
        model=name,
        zeros=float(sum(np.sum(w == 0) for w in weights) / sum(w.size for w in weights)),
        host_images=len(images),
        host_images_equal=int(np.sum(equal)),
        boards=found,
        report={k: v for k, v in report.items() if k not in ("layers", "published")},
    )


def _config(name):
    from atalaia import config as configs

    if name == "cifar10":
        found = configs.base().unlock()
        found.data.name = "cifar10"
        return found
    return configs.load(ROOT / RUNS / name)


def _train(name):
    """The .tflite file of a model, trained and exported where it is not there."""
    if name in BEFORE:
        _train(BEFORE[name])
    path = ROOT / RUNS / name / "model.tflite"
    if not path.is_file():
        tables.run(ROWS[name], RUNS / name)
    return path


def _tflm(content, images):
    """TFLite Micro's int8 outputs `[n, classes]`, kept in runs/mcu: of a large network they take an hour."""
    from atalaia import engines

    name = hashlib.sha256(content + images.tobytes()).hexdigest()[:16]
    return compiled.kept(ROOT / RUNS / f"tflm_{name}.npy", lambda: engines.run("tflm", content, images)[0])


def _on_host(folder, images, classes):
    """int8 outputs `[n, classes]` of the generated C, called in this process, a thread a core."""
    from atalaia.progress import Progress

    invoke, pointer = compiled.library(folder).model_invoke, ctypes.POINTER(ctypes.c_int8)
    arena_bytes = json.loads((folder / "report.json").read_text())["arena_bytes"]
    images, found = np.ascontiguousarray(images), np.zeros((len(images), classes), np.int8)

    def work(indices):
        arena = (ctypes.c_int32 * (arena_bytes // 4 + 1))()
        for i in indices:
            inputs = (pointer * 1)(images[i].ctypes.data_as(pointer))
            outputs = (pointer * 1)(found[i].ctypes.data_as(pointer))
            invoke(inputs, outputs, arena)
        return len(indices)

    parts = np.array_split(np.arange(len(images)), -(-len(images) // 50))
    with (
        Progress("generated C", len(images), "images") as progress,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for done in pool.map(work, parts):
            progress.update(done)
    return found


def table(rows: list[dict]) -> str:
    """The rows in Markdown, and how instructions became milliseconds."""
    from atalaia.codegen import estimates
    from atalaia.codegen.boards import EMULATORS

    def both(cell):
        return lambda row: " / ".join(cell(row, board) for board in EMULATORS)

    def predicted(row, board):
        found = row["report"]
        return f"{found['estimated_instructions'][board] / found['counted_instructions'][board]:.2f}"

    def arena(row):
        ours = row["report"]["arena_bytes"]
        return f"{ours:,} ({ours / row['report']['tflm']['arena_bytes']:.2f}x)"

    def equal(row):
        host = f"{row['host_images_equal']:,} of {row['host_images']:,}"
        return " / ".join([host, *(f"{row['boards'][b]['equal']} of {row['boards'][b]['samples']}" for b in EMULATORS)])

    columns = {
        "model": lambda row: row["model"],
        "zeros %": lambda row: f"{100 * row['zeros']:.0f}",
        "instructions a dense MAC, rv32 / lx106": both(
            lambda row, b: f"{row['boards'][b]['instructions_per_mac']:.2f}"
        ),
        "predicted / counted": both(predicted),
        "code bytes, rv32 / lx106": both(lambda row, b: f"{row['boards'][b]['code_bytes']:,}"),
        "constants, bytes, rv32 / lx106": both(lambda row, b: f"{row['boards'][b]['weight_bytes']:,}"),
        "arena, bytes (of TFLM's)": arena,
        "equal to TFLM: host / rv32 / lx106": equal,
        "ESP32 / C3, ms, *estimated*": lambda row: " / ".join(_milliseconds(row, chip) for chip in estimates.CHIPS),
    }
    published = [f"{p['model']}, {p['engine']}, {p['milliseconds']} ms ({p['source']})" for p in estimates.PUBLISHED]
    return f"{grid(columns, rows)}\nPublished for a classic ESP32 at 240 MHz: {'; '.join(published)}.\n"


def _milliseconds(row, chip):
    return " to ".join(f"{ms:.0f}" for ms in row["report"]["estimated"][chip]["milliseconds"])


def _headline(rows):
    row = next(row for row in rows if row["model"] == "cifar10")
    equal = f"{row['host_images_equal']:,} of {row['host_images']:,} answers equal TFLite Micro's in every byte"
    times = f"{_milliseconds(row, 'esp32')} ms on an ESP32, estimated"
    return f"ResNet-8 with {100 * row['zeros']:.0f} % zeros: {equal}; {times}"


TABLE = Table(
    name="mcu",
    title="Generated C on three instruction sets",
    shows="C made from int8 models by `atalaia.codegen`: instructions, bytes, and whether it answers as TFLite Micro "
    "(TFLM) does, on this computer and on two emulated instruction sets. Zeros pay: fewer instructions and fewer "
    "bytes.",
    command="./run.sh mcu    # about an hour, most of it to train the models",
    body=table,
    headline=_headline,
    notes=(
        "`rv32` is the instruction set of the ESP32-C3. `lx106` is the nearest Xtensa to the ESP32 that Debian "
        "compiles for. QEMU counts the instructions. **No board was run**: milliseconds are estimated from "
        "instructions and bytes read from flash; each model's `report.json` has the formula.",
        "The models are trained for an epoch or two, so that weights and zeros are real. Their accuracy is not "
        "reported. `cifar10` is the model of [CIFAR-10](cifar10.md).",
        "All rows but `cifar10` were counted with an older codegen. Today their C needs fewer instructions, and the "
        "arena of `resnet8` is 416 bytes larger.",
        "The same files by ESP-NN's kernels: [ESP-NN and generated C](esp_nn.md).",
    ),
    key=("model",),
    order=lambda row: MODELS.index(row["model"]),
)


if __name__ == "__main__":
    tables.start(main, TABLE)

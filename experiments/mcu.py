"""Generated C on three instruction sets: instructions, sizes and parity, beside ESP-NN's and TFLM's published figures.

python experiments/mcu.py [--models=resnet8_0,resnet8_80,thesis_0,thesis_80,cifar10] [--images=10000]

Trains what is not trained yet in runs/mcu: an epoch or two, so that weights, and zeros, come from training; their
accuracy is not the point and is not reported. `cifar10` is the committed model of experiments/results/cifar10, whose
C goes to mcu/models/cifar10. Needs gcc, and for the emulators the Debian packages that `make -C mcu run` names.
Writes experiments/results/mcu.json and .md, and the table in README.md.
"""

import concurrent.futures
import ctypes
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import app, flags

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "experiments/results"
RUNS = Path("runs/mcu")
COMMITTED = ROOT / "experiments/results/cifar10/model.tflite"
# Peers on MLPerf Tiny's int8 ResNet-8, which is dense, in the same emulators; measured once, outside of this script.
PEERS = {
    "TFLM with ESP-NN": dict(rv32=7.7, lx106=10.1, arena=54_364),
    "TFLM, reference kernels": dict(rv32=47.6, lx106=61.7, arena=54_364),
}

# Flags of atalaia.train for each model; the pruned ones start from the dense ones.
RESNET8, THESIS = "--config=configs/cifar10.py", "--config=configs/cifar10_table2.py"
PRUNE = ("--config.stages=('prune',)", "--config.prune.sparsity=0.8")
TRAINED = {
    "resnet8_0": (RESNET8, "--config.stages=('dense',)", "--config.dense.epochs=2"),
    "resnet8_80": (RESNET8, *PRUNE, f"--config.start_from={RUNS}/resnet8_0", "--config.prune.epochs=2"),
    "thesis_0": (THESIS, "--config.dense.epochs=1"),
    "thesis_80": (THESIS, *PRUNE, f"--config.start_from={RUNS}/thesis_0", "--config.prune.epochs=1"),
}
MODELS = (*TRAINED, "cifar10")
BEFORE = {"resnet8_80": "resnet8_0", "thesis_80": "thesis_0"}

_MODELS = flags.DEFINE_list("models", list(MODELS), f"Of {', '.join(MODELS)}.")
_IMAGES = flags.DEFINE_integer("images", 10_000, "Test images on the host, compared with TFLite Micro.")
_SAMPLES = flags.DEFINE_integer("samples", 100, "Images on the emulators.")
_DATA = flags.DEFINE_string("data_dir", None, "Where data sets are kept.")


def main(argv):
    del argv
    from atalaia import report

    for name in _MODELS.value:
        row = measure(name)
        report.publish_rows(RESULTS / "mcu.json", row, ("model",), table, lambda r: MODELS.index(r["model"]))


def measure(name: str) -> dict:
    """One model on all boards: what `make -C mcu run` found, and parity on many images."""
    from atalaia import data, engines, tflite
    from atalaia.codegen import __main__ as codegen
    from atalaia.codegen import boards

    content = (COMMITTED if name == "cifar10" else _train(name)).read_bytes()
    graph = tflite.read(content)
    weights = [graph.tensors[op.inputs[1]].data for op in graph.operators if op.kind in ("CONV_2D", "FULLY_CONNECTED")]
    dataset = data.load(_config(name).data, data.cache_dir(_DATA.value))
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
        data = [f"--data_dir={_DATA.value}"] if _DATA.value else []
        for module, arguments in (("train", TRAINED[name]), ("export", ())):
            command = [sys.executable, "-m", f"atalaia.{module}", f"--workdir={RUNS / name}", *arguments, *data]
            subprocess.run(command, check=True, cwd=ROOT)
    return path


def _tflm(content, images):
    """TFLite Micro's int8 outputs `[n, classes]`, kept in runs/mcu: of a large network they take an hour."""
    from atalaia import engines

    name = hashlib.sha256(content + images.tobytes()).hexdigest()[:16]
    path = ROOT / RUNS / f"tflm_{name}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, engines.run("tflm", content, images))
        part.rename(path)
    return np.load(path)


def _on_host(folder, images, classes):
    """int8 outputs `[n, classes]` of the generated C, called in this process, a thread a core."""
    from atalaia.progress import Progress

    library = folder / "model.so"
    subprocess.run(["gcc", "-O2", "-std=c99", "-shared", "-fPIC", folder / "model.c", "-o", library], check=True)
    invoke, pointer = ctypes.CDLL(str(library)).model_invoke, ctypes.POINTER(ctypes.c_int8)
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
    """The rows in Markdown, the peers under them, and how instructions became milliseconds."""
    from atalaia.codegen import __main__ as codegen
    from atalaia.codegen.boards import EMULATORS

    lines = [
        "| model | zeros % | instructions a dense MAC, rv32 / lx106 | predicted / counted | code bytes, rv32 / lx106 "
        "| constants, bytes, rv32 / lx106 | arena, bytes (of TFLM's) | equal to TFLM: host / rv32 / lx106 "
        "| ESP32 / C3, ms, *estimated* |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        boards, found = row["boards"], row["report"]

        counted, predicted = found["counted_instructions"], found["estimated_instructions"]
        per_mac = " / ".join(f"{boards[b]['instructions_per_mac']:.2f}" for b in EMULATORS)
        ratio = " / ".join(f"{predicted[b] / counted[b]:.2f}" for b in EMULATORS)
        code, constants = (" / ".join(f"{boards[b][k]:,}" for b in EMULATORS) for k in ("code_bytes", "weight_bytes"))
        equal = [f"{row['host_images_equal']:,} of {row['host_images']:,}"]
        equal += [f"{boards[b]['equal']} of {boards[b]['samples']}" for b in EMULATORS]
        share = found["arena_bytes"] / found["tflm"]["arena_bytes"]
        times = [" to ".join(f"{ms:.0f}" for ms in found["estimated"][c]["milliseconds"]) for c in codegen.CHIPS]
        lines.append(
            f"| {row['model']} | {100 * row['zeros']:.0f} | {per_mac} | {ratio} | {code} | {constants} "
            f"| {found['arena_bytes']:,} ({share:.2f}x) | {' / '.join(equal)} | {' / '.join(times)} |"
        )
    for name, peer in PEERS.items():
        lines.append(
            f"| *{name}, MLPerf Tiny's ResNet-8* | 0 | {peer['rv32']} / {peer['lx106']} | | about 100,000 | "
            f"| {peer['arena']:,} | | |"
        )
    published = [f"{p['model']}, {p['engine']}, {p['milliseconds']} ms ({p['source']})" for p in codegen.PUBLISHED]
    lines += ["", f"Published for a classic ESP32 at 240 MHz: {'; '.join(published)}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app.run(main)

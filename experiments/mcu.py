"""Generated C on three instruction sets: instructions, sizes and parity, beside ESP-NN's and TFLM's published figures.

python experiments/mcu.py [--models=resnet8_0,resnet8_80,thesis_0,thesis_80,cifar10] [--images=10000]

Trains what is not trained yet in runs/mcu: a few hundred steps, enough for weights, and zeros, that come from training;
their accuracy means nothing and is not reported. `cifar10` is the committed model of experiments/results/cifar10, whose
C goes to mcu/models/cifar10. Needs gcc, and for the emulators the Debian packages that `make -C mcu run` names. Writes
experiments/results/mcu.json and .md, and the table in README.md.
"""

import ctypes
import json
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
BOARDS = ("host", "rv32", "lx106")
# Peers on MLPerf Tiny's int8 ResNet-8, which is dense, in the same emulators; measured once, outside of this script.
PEERS = {
    "TFLM with ESP-NN": dict(rv32=7.7, lx106=10.1, arena=54_364),
    "TFLM, reference kernels": dict(rv32=47.6, lx106=61.7, arena=54_364),
}

# Flags of atalaia.train for each model; the pruned ones start from the dense ones.
TRAINED = {
    "resnet8_0": ["--config=configs/cifar10.py", "--config.stages=('dense',)", *("--config.dense.epochs=0",)]
    + ["--config.dense.steps=400"],
    "resnet8_80": ["--config=configs/cifar10.py", "--config.stages=('prune',)", f"--config.start_from={RUNS}/resnet8_0"]
    + ["--config.prune.epochs=0", "--config.prune.steps=300", "--config.prune.sparsity=0.8"],
    "thesis_0": ["--config=configs/cifar10_table2.py", "--config.dense.epochs=0", "--config.dense.steps=200"],
    "thesis_80": ["--config=configs/cifar10_table2.py", f"--config.start_from={RUNS}/thesis_0"]
    + ["--config.stages=('prune',)", "--config.prune.epochs=0", "--config.prune.steps=150"]
    + ["--config.prune.sparsity=0.8"],
}

_MODELS = flags.DEFINE_list("models", [*TRAINED, "cifar10"], "Of resnet8_0, resnet8_80, thesis_0, thesis_80, cifar10.")
_IMAGES = flags.DEFINE_integer("images", 10_000, "Test images on the host, compared with TFLite Micro.")
_SAMPLES = flags.DEFINE_integer("samples", 100, "Images on the emulators.")
_DATA = flags.DEFINE_string("data_dir", None, "Where data sets are kept.")


def main(argv):
    del argv
    from atalaia.files import write_json

    for name in _MODELS.value:
        path = RESULTS / "mcu.json"
        rows = json.loads(path.read_text()) if path.exists() else []
        rows = list({r["model"]: r for r in (*rows, measure(name))}.values())
        rows.sort(key=lambda r: [*TRAINED, "cifar10"].index(r["model"]))
        write_json(path, rows)
        publish(rows)


def measure(name: str) -> dict:
    """One model on all boards: what `make -C mcu run` found, and parity on many images."""
    from atalaia import data, engines, tflite
    from atalaia.codegen import __main__ as codegen

    source = COMMITTED if name == "cifar10" else _train(name)
    content = source.read_bytes()
    graph = tflite.read(content)
    zeros = [graph.tensors[op.inputs[1]].data for op in graph.operators if op.kind in ("CONV_2D", "FULLY_CONNECTED")]
    config = _config(name)
    dataset = data.load(config.data, Path(_DATA.value) if _DATA.value else _cache())
    images = dataset.test.images[: _IMAGES.value]
    answers = engines.run("tflm", content, images)
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder)
        report = codegen.generate(content, models / name, dataset.validation.images, _SAMPLES.value)
        boards = {board: _board(name, board, models) for board in BOARDS}
        found = _on_host(models / name, engines.quantize_input(content, images), answers.shape[1])
    if name == "cifar10":
        codegen.generate(content, ROOT / "mcu/models/cifar10", dataset.validation.images, 8)
    return dict(
        model=name,
        zeros=_share(zeros),
        tflite_bytes=len(content),
        tflm_arena_bytes=_tflm_arena(content),
        host_images=len(images),
        host_images_equal=int(np.sum(np.all(found == answers, 1))),
        boards=boards,
        report={k: v for k, v in report.items() if k != "layers"},
    )


def _share(arrays):
    return float(sum(np.sum(a == 0) for a in arrays) / sum(a.size for a in arrays))


def _tflm_arena(content):
    from atalaia import ledger

    return ledger.tflm_arena_bytes(content)


def _config(name):
    from atalaia import config as configs

    if name == "cifar10":
        found = configs.base().unlock()
        found.data.name = "cifar10"
        return found
    return configs.load(ROOT / RUNS / name)


def _cache():
    import os

    return Path(os.environ.get("ATALAIA_DATA") or Path.home() / ".cache/atalaia")


def _train(name):
    """The .tflite file of a model, trained and exported where it is not there."""
    before = {"resnet8_80": "resnet8_0", "thesis_80": "thesis_0"}.get(name)
    if before:
        _train(before)
    path = ROOT / RUNS / name / "model.tflite"
    if not path.is_file():
        data = [f"--data_dir={_DATA.value}"] if _DATA.value else []
        for module, arguments in (("train", TRAINED[name]), ("export", [])):
            command = [sys.executable, "-m", f"atalaia.{module}", f"--workdir={RUNS / name}", *arguments, *data]
            subprocess.run(command, check=True, cwd=ROOT)
    return path


def _board(name, board, models):
    """The last line of `make -C mcu run`."""
    command = ["make", "-s", "-C", "mcu", "run", f"MODEL={name}", f"BOARD={board}", f"MODELS_DIR={models}"]
    done = subprocess.run(
        [*command, f"SAMPLES={_SAMPLES.value}"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"{name} on {board}: {done.stdout[-500:]}{done.stderr[-500:]}")
    return json.loads(lines[-1])


def _on_host(folder, images, classes):
    """int8 outputs `[n, classes]` of the generated C, called in this process."""
    library = folder / "model.so"
    subprocess.run(["gcc", "-O2", "-std=c99", "-shared", "-fPIC", folder / "model.c", "-o", library], check=True)
    invoke = ctypes.CDLL(str(library)).model_invoke
    arena = (ctypes.c_int32 * (1 << 20))()
    found = np.zeros((len(images), classes), np.int8)
    images = np.ascontiguousarray(images)
    pointer = ctypes.POINTER(ctypes.c_int8)
    for image, answer in zip(images, found, strict=True):
        inputs = (pointer * 1)(image.ctypes.data_as(pointer))
        outputs = (pointer * 1)(answer.ctypes.data_as(pointer))
        invoke(inputs, outputs, arena)
    return found


def publish(rows: list[dict]) -> None:
    """mcu.md and the table in the README."""
    from atalaia import report
    from atalaia.files import write_whole

    text = table(rows)
    write_whole(RESULTS / "mcu.md", text)
    report.insert(ROOT / "README.md", "mcu", text)
    print(text, flush=True)


def table(rows: list[dict]) -> str:
    """The rows in Markdown, the peers under them."""
    lines = [
        "| model | zeros % | instructions a dense MAC, rv32 / lx106 | code bytes, rv32 / lx106 | constants, bytes "
        "| arena, bytes (of TFLM's) | equal to TFLM: host / rv32 / lx106 | ESP32 / C3, ms, *estimated* |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        boards, found = row["boards"], row["report"]
        per_mac = " / ".join(f"{boards[b]['instructions_per_mac']:.2f}" for b in BOARDS[1:])
        code = " / ".join(f"{boards[b]['code_bytes']:,}" for b in BOARDS[1:])
        equal = [f"{row['host_images_equal']:,} of {row['host_images']:,}"]
        equal += [f"{boards[b]['equal']} of {boards[b]['samples']}" for b in BOARDS[1:]]
        share = found["arena_bytes"] / row["tflm_arena_bytes"]
        estimates = " / ".join(
            _milliseconds(boards[b]["instructions"], found["estimated"][c]) for c, b in CHIPS.items()
        )
        lines.append(
            f"| {row['model']} | {100 * row['zeros']:.0f} | {per_mac} | {code} | {found['weight_bytes']:,} "
            f"| {found['arena_bytes']:,} ({share:.2f}x) | {' / '.join(equal)} | {estimates} |"
        )
    for name, peer in PEERS.items():
        lines.append(
            f"| *{name}, MLPerf Tiny's ResNet-8* | 0 | {peer['rv32']} / {peer['lx106']} | about 100,000 | "
            f"| {peer['arena']:,} | | |"
        )
    return "\n".join(lines) + "\n"


CHIPS = {"esp32": "lx106", "esp32c3": "rv32"}


def _milliseconds(instructions, estimate):
    low, high = (1e3 * instructions * cpi / estimate["hertz"] for cpi in estimate["cpi"])
    return f"{low:.0f} to {high:.0f}"


if __name__ == "__main__":
    app.run(main)

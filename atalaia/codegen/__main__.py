"""C for a microcontroller from any fully int8 .tflite file.

python -m atalaia.codegen --tflite=FILE --out=mcu/models/NAME [--sparse=auto|always|never]
    [--samples=16 --config=configs/cifar10.py] [--flash=BYTES --ram=BYTES]

Writes model.c, model.h, golden.h, report.json and the file itself as model.tflite. Golden inputs are images of
the validation split of the config, or random bytes by a fixed seed; golden outputs are TFLite Micro's.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import config_flags

from atalaia import cli, data, engines, tflite
from atalaia import config as configs
from atalaia.codegen import emit, graph, kernels, memory
from atalaia.errors import UserError
from atalaia.files import write_json, write_whole

# Cycles an instruction, read off Espressif's published times: smallest and largest (README, "On a board").
CPI = {"esp32": ("lx106", 240e6, 1.06, 1.96), "esp32c3": ("rv32", 160e6, 1.16, 1.41)}


def generate(
    tflite_bytes: bytes,
    out: Path,
    images: np.ndarray | None = None,
    samples: int = 16,
    sparse: str = "auto",
    flash: int | None = None,
    ram: int | None = None,
) -> dict:
    """Writes the C of a model into folder `out` and returns what report.json holds.

    Args:
      tflite_bytes: the file.
      out: the folder, whose name is the model's.
      images: uint8 `[n, height, width, channels]` for the golden inputs; None: random bytes.
      samples: golden vectors.
      sparse: "auto", "always" or "never".
      flash, ram: bytes that constants, and the arena, must fit.

    Raises:
      UserError: the file is damaged or not supported, or the model does not fit; nothing is written then.
    """
    model = tflite.read(tflite_bytes)
    lowered = graph.lower(model)
    calls, plan = kernels.choose(lowered, sparse), memory.plan(lowered)
    report = _report(lowered, calls, plan, len(tflite_bytes))
    _refuse_too_large(report, flash, ram)
    inputs = _inputs(tflite_bytes, model, lowered, images, samples)
    outputs = golden_outputs(tflite_bytes, model, lowered, inputs)
    name = Path(out).name
    scales = {
        i: (float(model.tensors[i].scale[0]), int(model.tensors[i].zero_point[0]))
        for i in (*lowered.inputs, *lowered.outputs)
    }
    files = {
        "model.c": emit.model_c(name, lowered, calls, plan),
        "model.h": emit.model_h(name, lowered, plan, scales),
        "golden.h": emit.golden_h(inputs, outputs),
    }
    Path(out).mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        write_whole(Path(out) / file, text)
    write_whole(Path(out) / "model.tflite", tflite_bytes)
    write_json(Path(out) / "report.json", dict(model=name) | report)
    return report


def report(tflite_bytes: bytes, sparse: str = "auto") -> dict:
    """What report.json would hold, but for the name, without writing anything.

    Raises:
      UserError: the file is damaged or not supported.
    """
    lowered = graph.lower(tflite.read(tflite_bytes))
    return _report(lowered, kernels.choose(lowered, sparse), memory.plan(lowered), len(tflite_bytes))


def _report(lowered, calls, plan, file_bytes):
    """Sizes and estimates, layer by layer."""
    layers = [
        dict(
            step=i,
            op=call.step.op,
            kernel=call.kernel,
            macs=call.step.macs,
            zeros=float(np.mean(call.step.values["kernel"] == 0)) if "kernel" in call.step.values else None,
            weight_bytes=sum(v.nbytes for _, v in call.arrays.values()),
            live_bytes=plan.layers[i],
            instructions={board: round(n) for board, n in call.instructions.items()},
        )
        for i, call in enumerate(calls)
    ]
    instructions = {b: sum(layer["instructions"][b] for layer in layers) for b in kernels.COSTS}
    estimates = {
        chip: dict(
            milliseconds=[round(1e3 * instructions[board] * cpi / hertz, 1) for cpi in (low, high)],
            cpi=[low, high],
            hertz=hertz,
            formula=f"instructions on {board} * CPI {low} to {high} / {hertz / 1e6:.0f} MHz",
        )
        for chip, (board, hertz, low, high) in CPI.items()
    }
    return dict(
        tflite_bytes=file_bytes,
        weight_bytes=sum(layer["weight_bytes"] for layer in layers),
        arena_bytes=plan.arena,
        arena_bound_bytes=plan.bound,
        macs=sum(layer["macs"] for layer in layers),
        estimated_instructions=instructions,
        estimated=estimates,
        notes=lowered.notes,
        layers=layers,
    )


def _refuse_too_large(report, flash, ram):
    if flash is not None and report["weight_bytes"] > flash:
        worst = max(report["layers"], key=lambda layer: layer["weight_bytes"])
        over = report["weight_bytes"] - flash
        raise UserError(
            f"the constants take {report['weight_bytes']:,} bytes, {over:,} more than --flash={flash}: step "
            f"{worst['step']} ({worst['op']}) alone takes {worst['weight_bytes']:,}; prune further"
        )
    if ram is not None and report["arena_bytes"] > ram:
        worst = max(report["layers"], key=lambda layer: layer["live_bytes"])
        over = report["arena_bytes"] - ram
        raise UserError(
            f"the arena takes {report['arena_bytes']:,} bytes, {over:,} more than --ram={ram}: step {worst['step']} "
            f"({worst['op']}) needs {worst['live_bytes']:,}; use smaller images or fewer channels"
        )


def _inputs(tflite_bytes, model, lowered, images, samples):
    """int8 `[samples, bytes of all inputs]`."""
    total = sum(lowered.sizes[i] for i in lowered.inputs)
    if images is None:
        return np.random.default_rng(0).integers(-128, 128, (samples, total)).astype(np.int8)
    if len(lowered.inputs) != 1:
        raise UserError(f"the model has {len(lowered.inputs)} inputs: leave --config out, for random golden inputs")
    chosen = engines.quantize_input(tflite_bytes, images[:samples])
    if chosen.dtype != np.int8:
        given = model.tensors[lowered.inputs[0]]
        chosen = np.clip(np.round(images[:samples] / 255 / float(given.scale[0])) + given.zero_point[0], -128, 127)
    return chosen.reshape(len(chosen), -1).astype(np.int8)


def golden_outputs(tflite_bytes: bytes, model: tflite.Model, lowered: graph.Graph, inputs: np.ndarray) -> np.ndarray:
    """int8 `[samples, bytes of all outputs]` by TFLite Micro, in a process of its own: a damaged file can crash it.

    Raises:
      UserError: TFLite Micro cannot run the model.
    """
    parts, start = {}, 0
    for number, i in enumerate(lowered.inputs):
        part = inputs[:, start : start + lowered.sizes[i]].reshape(-1, *lowered.shapes[i])
        start += lowered.sizes[i]
        if model.tensors[model.inputs[number]].dtype == "FLOAT32":
            part = (part.astype(np.float32) - np.float32(model.tensors[i].zero_point[0])) * model.tensors[i].scale[0]
        parts[f"input{number}"] = part
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.tflite").write_bytes(tflite_bytes)
        np.savez(Path(folder) / "inputs.npz", **parts)
        command = [sys.executable, "-c", _GOLDEN, folder, str(len(lowered.outputs))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        except subprocess.TimeoutExpired:
            raise UserError("TFLite Micro did not finish within 10 minutes, so there are no golden outputs") from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it crashed"])[-1][:200]
            raise UserError(f"TFLite Micro cannot run this model, so there are no golden outputs: {reason}")
        with np.load(Path(folder) / "outputs.npz") as found:
            answers = [_as_int8(found[f"output{n}"], model.tensors[i]) for n, i in enumerate(lowered.outputs)]
    return np.concatenate([a.reshape(len(inputs), -1) for a in answers], 1)


_GOLDEN = """
import sys
import numpy as np
from tflite_micro.python.tflite_micro import runtime

folder, outputs = sys.argv[1], int(sys.argv[2])
interpreter = runtime.Interpreter.from_file(folder + "/model.tflite")
inputs = np.load(folder + "/inputs.npz")
found = [[] for _ in range(outputs)]
for sample in zip(*(inputs[f"input{n}"] for n in range(len(inputs)))):
    for number, value in enumerate(sample):
        interpreter.set_input(value, number)
    interpreter.invoke()
    for number in range(outputs):
        found[number].append(interpreter.get_output(number).copy())
np.savez(folder + "/outputs.npz", **{f"output{n}": np.stack(v) for n, v in enumerate(found)})
"""


def _as_int8(answer, tensor):
    if answer.dtype == np.int8:
        return answer
    return np.clip(np.round(answer / tensor.scale[0]) + tensor.zero_point[0], -128, 127).astype(np.int8)


def main() -> None:
    values = flags.FLAGS
    if not values.tflite or not values.out:
        raise UserError("give --tflite=FILE and --out=mcu/models/NAME")
    tflite_bytes = tflite.load(values.tflite)
    images = None
    if values.config is not None:
        configs.validate(values.config)
        dataset = data.load(values.config.data, cli.cache())
        images = dataset.validation.images if len(dataset.validation.labels) else dataset.train.images
    report = generate(tflite_bytes, Path(values.out), images, values.samples, values.sparse, values.flash, values.ram)
    print(json.dumps({k: v for k, v in report.items() if k != "layers"}, indent=2))
    print(f"written: {values.out}/model.c, model.h, golden.h, report.json, model.tflite")


if __name__ == "__main__":
    cli.common_flags()
    flags.DEFINE_string("tflite", None, "The int8 .tflite file.")
    flags.DEFINE_string("out", None, "The folder to write, such as mcu/models/NAME.")
    flags.DEFINE_enum("sparse", "auto", ["auto", "always", "never"], "When zeros are left out.")
    flags.DEFINE_integer("samples", 16, "Golden vectors.", lower_bound=1)
    flags.DEFINE_integer("flash", None, "Bytes that the constants must fit.")
    flags.DEFINE_integer("ram", None, "Bytes that the arena must fit.")
    config_flags.DEFINE_config_file("config", help_string="The experiment whose data set gives golden inputs.")
    cli.run(main)

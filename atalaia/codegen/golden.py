"""Golden vectors: inputs of a model, and TFLite Micro's outputs for them."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from atalaia import engines, ledger, tflite
from atalaia.codegen import graph
from atalaia.errors import UserError
from atalaia.files import write_arrays


def golden_inputs(
    tflite_bytes: bytes, model: tflite.Model, lowered: graph.Graph, images: np.ndarray | None, samples: int
) -> np.ndarray:
    """int8 `[samples, bytes of all inputs]`: of images, or random ones where there are none."""
    if images is None:
        return random_inputs(model, lowered, samples)
    if len(lowered.inputs) != 1:
        raise UserError(f"the model has {len(lowered.inputs)} inputs: leave --config out, for random golden inputs")
    chosen, given = engines.quantize_input(tflite_bytes, images[:samples]), lowered.inputs[0]
    if chosen.dtype == np.float32 and lowered.dtypes.get(given) != "FLOAT32":
        grid = model.tensors[given]
        chosen = engines.levels(grid.scale[0], grid.zero_point[0], np.int8)[images[:samples]]
    return np.ascontiguousarray(chosen).reshape(len(chosen), -1).view(np.int8)


def random_inputs(model: tflite.Model, lowered: graph.Graph, samples: int) -> np.ndarray:
    """int8 `[samples, bytes of all inputs]`: random bytes; of float32, values within and around their grid."""
    total = sum(lowered.sizes[i] for i in lowered.inputs)
    random = np.random.default_rng(0)
    found = random.integers(-128, 128, (samples, total)).astype(np.int8)
    start = 0
    for i in lowered.inputs:
        if lowered.dtypes.get(i) == "FLOAT32":
            readers = [s.output for s in lowered.steps if s.kind == "float_in" and s.inputs[0] == i]
            grid = model.tensors[readers[0]] if readers else None
            scale, zero = (float(grid.scale[0]), int(grid.zero_point[0])) if grid else (1.0, 0)
            codes = random.uniform(-140, 140, (samples, lowered.sizes[i] // 4)) - zero
            codes[:, ::3] = np.round(2 * codes[:, ::3]) / 2  # halves between two values
            values = (codes * scale).astype("<f4")
            found[:, start : start + lowered.sizes[i]] = values.view(np.int8)
        start += lowered.sizes[i]
    return found


def as_given(model: tflite.Model, lowered: graph.Graph, inputs: np.ndarray) -> list[np.ndarray]:
    """Each input `[samples, ...]` in the file's own type, of the bytes of all inputs."""
    parts, start = [], 0
    for number, i in enumerate(lowered.inputs):
        part = np.ascontiguousarray(inputs[:, start : start + lowered.sizes[i]])
        start += lowered.sizes[i]
        part = part.view(lowered.dtypes.get(i, "INT8").lower()).reshape(-1, *lowered.shapes[i])
        if model.tensors[model.inputs[number]].dtype == "FLOAT32" and part.dtype != np.float32:
            part = (part.astype(np.float32) - np.float32(model.tensors[i].zero_point[0])) * model.tensors[i].scale[0]
        parts.append(part)
    return parts


def golden_outputs(
    tflite_bytes: bytes, model: tflite.Model, lowered: graph.Graph, inputs: np.ndarray
) -> tuple[np.ndarray, int | None]:
    """int8 `[samples, bytes of all outputs]` by TFLite Micro, and the bytes of its arena.

    It runs in a process of its own: a damaged file can crash it.

    Raises:
      UserError: TFLite Micro cannot run the model.
    """
    parts = {f"input{number}": part for number, part in enumerate(as_given(model, lowered, inputs))}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.tflite").write_bytes(tflite_bytes)
        write_arrays(Path(folder) / "inputs.npz", parts)
        command = [sys.executable, "-c", _GOLDEN, folder, str(len(lowered.outputs))]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        except subprocess.TimeoutExpired:
            raise UserError("TFLite Micro did not finish within 10 minutes, so there are no golden outputs") from None
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it crashed"])[-1][:200]
            raise UserError(f"TFLite Micro cannot run this model, so there are no golden outputs: {reason}")
        with np.load(Path(folder) / "outputs.npz") as found:
            answers = [_as_stored(found[f"output{n}"], model.tensors[i]) for n, i in enumerate(lowered.outputs)]
    rows = [np.ascontiguousarray(a).reshape(len(inputs), -1).view(np.int8) for a in answers]
    outputs = np.concatenate(rows, 1)
    return outputs, ledger.recorded_arena_bytes(done.stdout + done.stderr)


_GOLDEN = """
import sys
import numpy as np
from tflite_micro.python.tflite_micro import runtime

folder, outputs = sys.argv[1], int(sys.argv[2])
try:
    interpreter = runtime.Interpreter.from_file(folder + "/model.tflite")
except RuntimeError:  # its arena of ten times the file is too small for large tensors of few weights
    interpreter = runtime.Interpreter.from_file(folder + "/model.tflite", arena_size=1 << 26)
inputs = np.load(folder + "/inputs.npz")
found = [[] for _ in range(outputs)]
for sample in zip(*(inputs[f"input{n}"] for n in range(len(inputs)))):
    for number, value in enumerate(sample):
        interpreter.set_input(value, number)
    interpreter.invoke()
    for number in range(outputs):
        found[number].append(interpreter.get_output(number).copy())
interpreter.print_allocations()
np.savez(folder + "/outputs.npz", **{f"output{n}": np.stack(v) for n, v in enumerate(found)})
"""


def _as_stored(answer, tensor):
    """TFLite Micro's answer in the type of the tensor that the C gives, where a conversion behind it was left out."""
    dtype = np.dtype(tensor.dtype.lower())
    if answer.dtype == dtype:
        return answer
    limits = np.iinfo(dtype)
    return np.clip(np.round(answer / tensor.scale[0]) + tensor.zero_point[0], limits.min, limits.max).astype(dtype)

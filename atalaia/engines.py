"""The engines that run an int8 .tflite, each fed the same images: TFLite's reference kernels, XNNPACK and TFLite Micro.

An engine runs one image at a time on one core, so the images are shared out to several processes; each is this module
run as a program, which imports neither JAX nor TensorFlow.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from atalaia import tflite
from atalaia.errors import UserError
from atalaia.progress import Progress

REPORT_EVERY = 50  # images between two words from a process


def _litert(data, resolver):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(model_content=data, experimental_op_resolver_type=OpResolverType[resolver], num_threads=1)
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]["index"]
    results = [detail["index"] for detail in interpreter.get_output_details()]

    def invoke(image):
        interpreter.set_tensor(given, image)
        interpreter.invoke()
        return [interpreter.get_tensor(result) for result in results]

    return invoke


def _tflm(data):
    from tflite_micro.python.tflite_micro import runtime

    interpreter, count = runtime.Interpreter.from_bytes(data), len(tflite.read(data).outputs)

    def invoke(image):
        interpreter.set_input(image, 0)
        interpreter.invoke()
        return [interpreter.get_output(number) for number in range(count)]

    return invoke


# Name to `make(tflite_bytes)`, which gives `invoke(input [1, height, width, channels])` to outputs, `[1, ...]` each.
ENGINES: dict[str, Callable[[bytes], Callable[[np.ndarray], list[np.ndarray]]]] = {
    "tflite": lambda data: _litert(data, "BUILTIN_REF"),
    "xnnpack": lambda data: _litert(data, "AUTO"),
    "tflm": _tflm,
}


def run_tensors(engine: str, data: bytes, images: np.ndarray, tensors: list[int]) -> list[np.ndarray]:
    """Tensors inside the network, each `[n, ...]`, by their indices in a .tflite file; other arguments as `run`.

    Of "tflite" and "tflm" only: XNNPACK keeps nothing between the operators that it runs as one. It
    runs in this process, one image after the other: for a few images.

    Raises:
      UserError: the engine cannot run this model.
    """
    given = quantize_input(data, images)
    found: list[list[np.ndarray]] = [[] for _ in tensors]
    try:
        invoke = TENSORS[engine](data)
        for image in given:
            for values, value in zip(found, invoke(image[None], tensors), strict=True):
                values.append(np.array(value))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{engine} cannot run this model: {' '.join(str(error).split())[:200]}") from None
    return [np.concatenate(values) for values in found]


def _litert_tensors(data):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=data,
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF,
        num_threads=1,
        experimental_preserve_all_tensors=True,
    )
    interpreter.allocate_tensors()
    given = interpreter.get_input_details()[0]["index"]

    def invoke(image, tensors):
        interpreter.set_tensor(given, image)
        interpreter.invoke()
        return [interpreter.get_tensor(i) for i in tensors]

    return invoke


def _tflm_tensors(data):
    from tflite_micro.python.tflite_micro import runtime

    keep = runtime.InterpreterConfig.kPreserveAllTensors
    interpreter = runtime.Interpreter.from_bytes(data, intrepreter_config=keep)  # so it is spelt there

    def invoke(image, tensors):
        interpreter.set_input(image, 0)
        interpreter.invoke()
        return [interpreter.GetTensor(i, 0)["tensor_data"] for i in tensors]

    return invoke


TENSORS = {"tflite": _litert_tensors, "tflm": _tflm_tensors}


def quantize_input(data: bytes, images: np.ndarray) -> np.ndarray:
    """uint8 images `[n, h, w, c]` as a model's input: pixel / 255 on the input's grid (pixel - 128 for our own models).

    Raises:
      UserError: the model takes other images than these.
    """
    graph = tflite.read(data)
    given = graph.tensors[graph.inputs[0]]
    if given.shape[1:] != images.shape[1:]:
        want, have = ("x".join(map(str, s)) for s in (given.shape[1:], images.shape[1:]))
        raise UserError(f"the model takes images of {want}, the data set's are {have}: set data.size or data.grey")
    if given.dtype == "FLOAT32":
        return images.astype(np.float32) / 255
    if given.dtype not in ("INT8", "UINT8"):
        raise UserError(f"the model takes {given.dtype} images: only INT8, UINT8 and FLOAT32 are supported")
    return levels(given.scale[0], given.zero_point[0], np.dtype(given.dtype.lower()))[images]


def levels(scale: float, zero_point: int, dtype: Any) -> np.ndarray:
    """The values of a quantised input for pixels of 0 to 255, `[256]`; dtype: int8 or uint8."""
    codes, ends = np.round(np.arange(256) / 255 / float(scale)) + int(zero_point), np.iinfo(dtype)
    return np.clip(codes, ends.min, ends.max).astype(dtype)


def output_grids(data: bytes) -> list[tuple[np.float32, int]]:
    """Scale and zero point of each of a model's outputs; 1 and 0 where one has none."""
    graph = tflite.read(data)
    tensors = [graph.tensors[i] for i in graph.outputs]
    return [(np.float32(t.scale[0]), int(t.zero_point[0])) if len(t.scale) else (np.float32(1), 0) for t in tensors]


def process_count(images: int, processes: int | None = None) -> int:
    """How many processes share so many images: those that are wanted, by default one a core; fewer for few images."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(processes or cores, max(1, images // REPORT_EVERY))


def run(engine: str, data: bytes, images: np.ndarray, processes: int | None = None) -> list[np.ndarray]:
    """Each output `[n, ...]` of a .tflite file in its own type and order, for uint8 images `[n, h, w, c]`.

    Args:
      engine: a name of `ENGINES`.
      data: the file.
      images: what `quantize_input` takes.
      processes: how many share the work, as `process_count` takes it.

    Raises:
      UserError: the engine cannot run this model.
    """
    processes = process_count(len(images), processes)
    bounds = np.linspace(0, len(images), processes + 1).astype(int)
    with tempfile.TemporaryDirectory() as temporary, Progress(f"evaluate {engine}", len(images), "images") as progress:
        folder = Path(temporary)
        np.save(folder / "images.npy", quantize_input(data, images))
        (folder / "model.tflite").write_bytes(data)
        workers = [_start(engine, folder, i, first, end) for i, (first, end) in enumerate(itertools.pairwise(bounds))]
        try:
            threads = [threading.Thread(target=_count, args=(w, progress)) for w in workers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            for worker in workers:
                if worker.wait():
                    reason = (folder / f"{workers.index(worker)}.err").read_text().strip().splitlines()
                    raise UserError(f"{engine} cannot run this model: {reason[-1] if reason else 'it crashed'}")
        finally:
            for worker in workers:
                worker.kill()
        parts = [np.load(folder / f"{i}.npz") for i in range(processes)]
        return [np.concatenate([part[name] for part in parts]) for name in parts[0].files]


def _start(engine, folder, number, first, end):
    arguments = [engine, str(folder), str(number), str(first), str(end)]
    command = [sys.executable, "-m", "atalaia.engines", *arguments]
    root = Path(__file__).parent.parent  # where -m finds this package
    with (folder / f"{number}.err").open("w") as errors:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=root)


_LOCK = threading.Lock()


def _count(worker, progress):
    for line in worker.stdout:
        with _LOCK:
            progress.update(int(line))


def _work(engine: str, place: str, number: str, first: str, end: str) -> None:
    """One process: runs images first to end and tells how many it has done."""
    folder = Path(place)
    invoke = ENGINES[engine]((folder / "model.tflite").read_bytes())
    images = np.load(folder / "images.npy", mmap_mode="r")[int(first) : int(end)]
    outputs = []
    for start in range(0, len(images), REPORT_EVERY):
        batch = images[start : start + REPORT_EVERY]
        outputs += [[np.array(head) for head in invoke(image[None])] for image in batch]
        print(len(batch), flush=True)
    np.savez(folder / f"{number}.npz", *map(np.concatenate, zip(*outputs, strict=True)))


if __name__ == "__main__":
    _work(*sys.argv[1:])

"""What a network's raw int8 outputs answer, in integers: mcu/answers/TASK.c computes the same on a microcontroller."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from atalaia.errors import UserError, choice

ONE = 1 << 16  # of a real value: answers of `regress` are in 1/65536


def classify(outputs: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """The class of the largest output, the first of equals, int32 `[n, 1]`.

    Args:
      outputs: int8 `[n, classes]`; scale, zero_point: theirs, which do not matter here.
    """
    del scale, zero_point
    return np.argmax(outputs, 1)[:, None].astype(np.int32)


def regress(outputs: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """The real values in 1/65536, int32 `[n, values]`.

    Args:
      outputs: int8 `[n, values]`; scale, zero_point: theirs.

    Raises:
      UserError: as `step`.
    """
    return (outputs.astype(np.int32) - np.int32(zero_point)) * np.int32(step(scale))


def step(scale: float) -> int:
    """What one integer of outputs of that scale is worth in 1/65536.

    Raises:
      UserError: it rounds to nothing, or 255 of it do not fit 32 bits.
    """
    found = round(float(scale) * ONE)
    if not 0 < found * 255 < 1 << 31:
        least, most = 1 / ONE, (1 << 31) / (255 * ONE)
        raise UserError(
            f"task regress: the outputs' scale {scale:.6g} has no answer in 32 bits of 1/65536, which takes one from "
            f"{least:.2g} to {most:.0f}: scale the targets"
        )
    return found


class Head(NamedTuple):
    """One output of a model: its shape without the batch, its scale and zero point."""

    shape: tuple[int, ...]
    scale: float
    zero_point: int


class Answer(NamedTuple):
    """How the outputs of a model, int8 `[n, bytes of all]`, become an answer.

    decode: to int32 `[n, numbers]`; call: the C statement that does it, of `outputs` and `answer`; file: of
    mcu/answers, which it needs.
    """

    decode: Callable[[np.ndarray], np.ndarray]
    call: str
    file: str


TASKS = ("classify", "regress", "detect")


def of(task: str, heads: Sequence[Head], fields: ConfigDict | None = None) -> Answer:
    """The answer of a task for a model with these outputs, those of a detector in the order of their names.

    Args:
      task: of TASKS; heads: the model's outputs; fields: of task detect, config.detect.

    Raises:
      UserError: there is no such task, or the outputs are not the task's.
    """
    choice("task", task, TASKS)
    if task == "detect":
        return _detect(heads, fields)
    if len(heads) != 1:
        raise UserError(f"the model has {len(heads)} outputs: leave --task out, an answer of {task} is made of one")
    (_, scale, zero_point), size = heads[0], math.prod(heads[0].shape)
    if task == "classify":
        return Answer(lambda outputs: classify(outputs, scale, zero_point), f"classify(outputs, {size}, answer)", task)
    call = f"regress(outputs, {size}, {zero_point}, {step(scale)}, answer)"
    return Answer(lambda outputs: regress(outputs, scale, zero_point), call, task)


def _detect(heads, fields):
    from atalaia.tasks import peaks  # the tasks import this module

    if fields is None:
        raise UserError("task detect needs the config of the run, which says how boxes are chosen: give --config")
    maps = [head.shape for head in heads]
    if len(maps) != 2 or any(len(shape) != 3 for shape in maps) or maps[0] != (*maps[1][:2], 4):
        raise UserError(f"the model has outputs {maps}: a detector's are box [h, w, 4] and centre [h, w, classes]")
    (box, centre), names = heads, ("box", "centre")
    scale, zero_point = (dict(zip(names, (h[i] for h in heads), strict=True)) for i in (1, 2))
    found, size = peaks.constants(scale, zero_point, fields), math.prod(box.shape)

    def decode(outputs):
        parts = (outputs[:, size:].reshape(-1, *centre.shape), outputs[:, :size].reshape(-1, *box.shape))
        return peaks.decode(*parts, found)

    shape = ", ".join(map(str, (*centre.shape, *found)))
    call = f"static const detect_shape shape = {{{shape}}};\n    detect(outputs + {size}, outputs, &shape, answer)"
    return Answer(decode, call, "detect")

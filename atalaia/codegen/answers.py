"""What a network's raw int8 outputs answer, in integers: mcu/answers/TASK.c computes the same on a microcontroller."""

from collections.abc import Callable

import numpy as np

from atalaia.errors import UserError

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


# By task: (int8 outputs `[n, k]`, scale, zero point) to int32 `[n, answers]`.
ANSWERS: dict[str, Callable[[np.ndarray, float, int], np.ndarray]] = {"classify": classify, "regress": regress}

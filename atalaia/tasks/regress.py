"""Regression: numbers of an image, float32 `[n, k]`, NaN where one is not known; outputs are the numbers `[n, k]`.

What the numbers are, `config.regress.kind` says, since augmentation that moves pixels must move them too:
  "numbers": they do not depend on where things are, such as an age.
  "direction": pairs (cosine, sine) of an angle in the picture, counter-clockwise from the x axis as it is seen.
  "point": pairs (x, y) of places, 0 at the left and upper border, 1 at the right and lower one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from atalaia import augment, losses
from atalaia.codegen import answers
from atalaia.errors import UserError, choice
from atalaia.tasks.metric import Metric

HEADS = ()
LOSSES = {"mse": losses.mse, "huber": losses.huber}
SOFT_LOSSES = {"mse": lambda student, teacher, targets, config: losses.soft_mse(student, teacher)}
METRICS = {"r2": Metric("R2", digits=4), "mae": Metric("mean absolute error", sign=-1, digits=4)}
KINDS = ("numbers", "direction", "point")
SAMPLES = 24  # images of the picture of answers


def validate(config: ConfigDict) -> None:
    """Refuses a kind of numbers that is not known, and what is for classes alone.

    Raises:
      UserError: names the field, what is wrong and what is allowed.
    """
    choice("regress.kind", config.regress.kind, KINDS)
    if not config.loss.huber_delta > 0:
        raise UserError(f"loss.huber_delta must be above 0, not {config.loss.huber_delta}")
    if config.loss.label_smoothing:
        raise UserError('loss.label_smoothing is for classes: set it to 0 with task "regress"')


def outputs(dataset: Any, config: ConfigDict) -> int:
    """Numbers an image of a data set.

    Raises:
      UserError: its targets are no numbers.
    """
    numbers = dataset.train.targets
    if not (isinstance(numbers, np.ndarray) and numbers.ndim == 2 and np.issubdtype(numbers.dtype, np.floating)):
        raise UserError(f"task regress needs numbers [n, k]; data set {dataset.name} has other targets: try classify")
    if config.regress.kind != "numbers" and numbers.shape[1] % 2:
        raise UserError(
            f"regress.kind = {config.regress.kind!r} needs pairs, but data set {dataset.name} has {numbers.shape[1]} "
            'numbers an image: give "numbers"'
        )
    return numbers.shape[1]


def absent(targets: np.ndarray, count: int) -> np.ndarray:
    """Numbers of images of which none is known: NaN."""
    return np.full((count, *targets.shape[1:]), np.nan, targets.dtype)


def move(targets: jax.Array, moves: jax.Array, size: tuple[int, int], config: ConfigDict) -> jax.Array:
    """The numbers of images of size (height, width) whose pixels were moved; module docstring: what each kind does."""
    if config.regress.kind == "numbers":
        return targets
    pairs = targets.reshape(len(targets), -1, 2)
    if config.regress.kind == "point":
        extent = jnp.array([size[1], size[0]], targets.dtype)  # the first pixel's middle is at half a pixel
        moved = (augment.move_points(pairs * extent - 0.5, moves) + 0.5) / extent
    else:
        down = jnp.array([1, -1], targets.dtype)  # as pixels have it, y down
        moved = jnp.einsum("bij,bnj->bni", moves[:, :, :2], pairs * down) * down
        moved = moved / jnp.linalg.norm(moved, axis=-1, keepdims=True)
    return moved.reshape(targets.shape)


def progress(outputs: jax.Array, targets: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Mean absolute error of a step, over the numbers that are known."""
    known = ~jnp.isnan(targets)
    return dict(mae=(jnp.sum(jnp.abs(jnp.where(known, outputs - targets, 0))), jnp.sum(known)))


def metrics(outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """R2, 1 for perfect answers and 0 for the mean of all targets, averaged over the k numbers; mean absolute error."""
    return dict(r2=float(np.mean(_r2(outputs, targets))), mae=float(np.mean(np.abs(outputs - targets))))


def _r2(outputs, targets):
    """`[k]`; 0 for a number that never varies, of which no part can be explained."""
    targets = np.asarray(targets, np.float64)
    left, whole = np.sum((outputs - targets) ** 2, 0), np.sum((targets - targets.mean(0)) ** 2, 0)
    return np.where(whole > 0, 1 - left / np.where(whole > 0, whole, 1), 0.0)


def agree(a: np.ndarray, b: np.ndarray) -> None:
    """Numbers are no choice that two engines could share."""


decode = answers.regress


def details(outputs: np.ndarray, targets: np.ndarray, names: Sequence[str]) -> list[dict]:
    """R2, mean and largest absolute error of each number."""
    error = np.abs(outputs - targets)
    rows = zip(names, _r2(outputs, targets), error.mean(0), error.max(0), strict=True)
    return [{"number": n, "R2": float(r), "mean error": float(m), "largest error": float(x)} for n, r, m, x in rows]


def pictures(
    images: np.ndarray,
    outputs: np.ndarray,
    targets: np.ndarray,
    names: Sequence[str],
    title: str,
    path: Callable[[str], Path],
) -> list[dict]:
    """Answers against targets, and the images with the smallest and largest errors."""
    from atalaia import pictures as draw

    draw.scatter_picture(path("scatter.png"), targets, outputs, tuple(names), title)
    error = np.abs(outputs - targets).mean(1)
    order = np.argsort(error, kind="stable")
    some = np.r_[order[: SAMPLES // 2], order[SAMPLES // 2 :][-(SAMPLES // 2) :]]
    captions = [", ".join(f"{a:.2f} ({t:.2f})" for a, t in zip(outputs[i], targets[i], strict=True)) for i in some]
    right = [bool(error[i] <= np.median(error)) for i in some]
    draw.samples_picture(path("samples.png"), images[some], captions, right, title)
    return [
        dict(file=path("scatter.png").name, title="Answers against what is true"),
        dict(file=path("samples.png").name, title="The best and the worst answers, in brackets what is true"),
    ]

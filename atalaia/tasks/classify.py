"""Classification: one label an image, int32 `[n]`, -1 where there is none; outputs are logits `[n, classes]`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from atalaia import losses
from atalaia.codegen import answers
from atalaia.datasets.source import has_classes
from atalaia.errors import UserError
from atalaia.tasks.metric import Metric

HEADS: tuple[str, ...] = ()
LOSSES: Mapping[str, Callable] = {"cross_entropy": losses.cross_entropy}
SOFT_LOSSES: Mapping[str, Callable] = {
    "kd": lambda student, teacher, labels, config: losses.kd(student, teacher, config.temperature),
    "standardised_kd": lambda student, teacher, labels, config: losses.standardised_kd(
        student, teacher, config.temperature
    ),
    "dkd": lambda student, teacher, labels, config: losses.dkd(
        student, teacher, labels, config.temperature, config.dkd_alpha, config.dkd_beta
    ),
}
METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("accuracy %", scale=100),
    "f1_macro": Metric("macro F1 %", scale=100),
}
SAMPLES = 24  # images of the picture of answers


def validate(config: ConfigDict) -> None:
    """Nothing but its losses is this task's own."""


def outputs(dataset: Any, config: ConfigDict) -> int:
    """Classes of a data set.

    Raises:
      UserError: its targets are no labels.
    """
    del config
    if not has_classes(dataset.train.targets):
        raise UserError(f"task classify needs a label an image; data set {dataset.name} has other targets: try regress")
    return len(dataset.names)


def absent(targets: np.ndarray, count: int) -> np.ndarray:
    """Labels of images that have none: -1."""
    return np.full(count, -1, targets.dtype)


def move(labels: jax.Array, moves: jax.Array, size: tuple[int, int], config: ConfigDict) -> jax.Array:
    """A moved image keeps its label."""
    del moves, size, config
    return labels


def progress(logits: jax.Array, labels: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Accuracy of a step, over the images that have a label."""
    return dict(accuracy=(jnp.sum(logits.argmax(-1) == labels), jnp.sum(labels >= 0)))


def metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, and macro F1: the mean of the F1 of the classes that are true or answered somewhere.

    In NumPy, since every training looks at it: scikit-learn, by which a test checks it, takes 2 s to import.
    """
    predicted, classes = logits.argmax(1), logits.shape[1]
    right, true, said = (np.bincount(of, minlength=classes) for of in (labels[predicted == labels], labels, predicted))
    f1 = 2 * right / np.maximum(true + said, 1)
    return dict(accuracy=float(np.mean(predicted == labels)), f1_macro=float(f1[true + said > 0].mean()))


def agree(a: np.ndarray, b: np.ndarray) -> float:
    """Part of the images of which both have the same class."""
    return float(np.mean(a.argmax(1) == b.argmax(1)))


decode = answers.classify


def details(logits: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> list[dict]:
    """Precision, recall, F1 and number of images of each class (scikit-learn)."""
    from sklearn import metrics as sk

    figures = sk.precision_recall_fscore_support(labels, logits.argmax(1), labels=range(len(names)), zero_division=0)
    columns = ("precision", "recall", "F1", "images")
    return [
        {"class": name} | {key: float(value) for key, value in zip(columns, row, strict=True)}
        for name, row in zip(names, zip(*figures, strict=True), strict=True)
    ]


def pictures(
    images: np.ndarray,
    logits: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    title: str,
    path: Callable[[str], Path],
) -> list[dict]:
    """The confusion matrix, and images with right and wrong answers."""
    from atalaia import pictures as draw

    predicted = logits.argmax(1)
    draw.confusion_picture(path("confusion.png"), labels, predicted, tuple(names), title)
    some = _some(predicted == labels)
    captions = [
        names[labels[i]] if predicted[i] == labels[i] else f"{names[predicted[i]]}, not {names[labels[i]]}"
        for i in some
    ]
    draw.samples_picture(path("samples.png"), images[some], captions, [predicted[i] == labels[i] for i in some], title)
    return [
        dict(file=path("confusion.png").name, title="How often each class (rows) was taken for each (columns)"),
        dict(file=path("samples.png").name, title="Images with right and wrong answers"),
    ]


def _some(right):
    """Places of images to show: half of them wrong ones, where there are so many, else right ones; in their order."""
    wrong, good = np.flatnonzero(~right)[: SAMPLES // 2], np.flatnonzero(right)
    return np.sort(np.r_[wrong, good[: SAMPLES - len(wrong)]])

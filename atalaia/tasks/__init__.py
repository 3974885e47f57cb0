"""What a network is trained for. The pipeline knows the interface `Task` alone; a task is one file here.

A new task: a module with the names of `Task`, or a class with them that is made with the config, and a line in `TASKS`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from ml_collections import ConfigDict

from atalaia import own
from atalaia.errors import UserError, choice
from atalaia.tasks import classify, regress
from atalaia.tasks.detect import Detect
from atalaia.tasks.metric import Metric

Tree = Any  # a pytree of arrays


class Task(Protocol):
    """The names that a task's module has. Batches are `[batch, ...]`; targets and outputs are pytrees of arrays."""

    HEADS: tuple[str, ...]  # names of the outputs, that with Task.outputs channels first; () where they are one array
    LOSSES: Mapping[str, Callable]  # name in config.loss.name to f(outputs, targets, config.loss) to `[]`
    SOFT_LOSSES: Mapping[str, Callable]  # in config.distillation.loss: f(outputs, taught, targets, config) to `[batch]`
    METRICS: Mapping[str, Metric]  # of `metrics`; the first is the score, by which models are chosen

    def validate(self, config: ConfigDict, /) -> None:
        """Refuses fields that this task cannot have, with a UserError."""

    def outputs(self, dataset: Any, config: ConfigDict, /) -> int:
        """How many numbers the network's last layer gives; a UserError where the data's targets do not fit."""

    def absent(self, targets: Tree, count: int, /) -> Tree:
        """Targets of `count` images that have none: the hard loss skips them."""

    def move(self, targets: Tree, moves: jax.Array, size: tuple[int, int], config: ConfigDict, /) -> Tree:
        """The targets of images (height, width) whose pixels were moved (augment.py), `moves` float32 [batch, 2, 3]."""

    def progress(self, outputs: Tree, targets: Tree, /) -> dict[str, tuple[jax.Array, jax.Array]]:
        """Figures of one training step: name to (sum, how many it is over), for a mean over many steps."""

    def metrics(self, outputs: Tree, targets: Tree, /) -> dict[str, float]:
        """Figures over a whole split, from real outputs, in NumPy: those of METRICS."""

    def agree(self, a: Tree, b: Tree, /) -> float | None:
        """Part of the images of which two engines' outputs are one answer; None where an answer is not a choice."""

    def decode(self, outputs: Tree, scale: Tree, zero_point: Tree, /) -> np.ndarray:
        """int8 outputs to the answers, int32 `[n, answers]`; the generated C gives the same.

        `scale` and `zero_point` are numbers, or as the outputs dicts of a number for each head.
        """

    def details(self, outputs: Tree, targets: Tree, names: Sequence[str], /) -> list[dict]:
        """Rows of a table that says more than the metrics, such as one a class."""

    def pictures(
        self, images: np.ndarray, outputs: Tree, targets: Tree, names: Sequence[str], title: str, path: Callable, /
    ) -> list[dict]:
        """Draws what a person wants to see: writes `path("NAME.png")` and returns rows of file and title."""


TASKS: Mapping[str, Any] = {  # a Task, or a class that makes one of its part of the config
    "classify": classify,
    "regress": regress,
    "detect": Detect,
}


class Objective(NamedTuple):
    """What a run minimises, each `[]`: hard(outputs, targets), and with a teacher soft(outputs, taught, targets)."""

    hard: Callable
    soft: Callable


def of(config: ConfigDict) -> Task:
    """The task of a config.

    Raises:
      UserError: there is no such task.
    """
    choice("task", config.task, TASKS)
    task = TASKS[config.task]
    return task(config[config.task]) if isinstance(task, type) else task


def validate(config: ConfigDict) -> None:
    """Refuses losses that the config's task does not have, and what the task itself refuses.

    Raises:
      UserError: names the field, what is wrong and what is allowed.
    """
    task = of(config)
    if own.is_own(config.loss.name):
        own.resolve("loss.name", config.loss.name)
        if config.data.balance == "weights":
            raise UserError('data.balance = "weights" is of our losses: take "sampling" with a loss of your own')
    else:
        choice("loss.name", config.loss.name, task.LOSSES, f"of task {config.task}: ")
    if any(config[stage].get("teacher") for stage in config.stages):
        choice("distillation.loss", config.distillation.loss, task.SOFT_LOSSES, f"of task {config.task}: ")
    task.validate(config)


def objective(config: ConfigDict, class_weights: jax.Array | None = None) -> Objective:
    """The losses of a valid config; `class_weights` as losses.cross_entropy takes them."""
    task, weighted = of(config), {} if class_weights is None else dict(class_weights=class_weights)
    if own.is_own(config.loss.name):
        hard = _one_number(config.loss.name)
    else:
        loss = task.LOSSES[config.loss.name]

        def hard(outputs, targets):
            return loss(outputs, targets, config.loss, **weighted)

    def soft(outputs, taught, targets):
        return task.SOFT_LOSSES[config.distillation.loss](outputs, taught, targets, config.distillation).mean()

    return Objective(hard, soft)


def _one_number(name):
    """A user's own loss, which must give one number."""
    loss = own.resolve("loss.name", name)

    def hard(outputs, targets):
        found = loss(outputs, targets)
        if np.shape(found) != ():
            raise UserError(f"loss.name: {name} gives shape {np.shape(found)}: return one number, such as the mean")
        return found

    return hard

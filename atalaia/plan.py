"""What a run will do: its stages with their steps, and what it was begun with and may not change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from atalaia import checkpoint, data, metrics, processes
from atalaia.errors import UserError

IMAGES = "training or validation images"  # one of the sources that a run may not change
SPLIT = ("validation", "split_seed", "train_per_class")  # fields of config.data that say which images are learned from


class Stage(NamedTuple):
    """A stage of the plan: steps `first` up to `end` of the whole run."""

    name: str
    config: ConfigDict
    first: int
    end: int
    cuts: tuple[int, ...] = ()  # of stage shrink, before which channels go


def next_end(stage: Stage, step: int) -> int:
    """The last step that has the shapes of a step of a stage: the next cut, or the stage's end."""
    return next((at for at in stage.cuts if at > step), stage.end)


class Run(NamedTuple):
    """What all stages share and none changes."""

    config: ConfigDict
    workdir: Path
    model: nn.Module
    initial: Any  # a step.TrainState of new weights: the shapes of the network as its code is, before any cut
    dataset: data.Dataset
    cache: Path  # where data sets and teachers' outputs are kept
    plan: list[Stage]
    manager: checkpoint.Manager
    writer: metrics.Writer
    stop: Callable[[], bool]  # whether the user asked for an end
    clock: float  # time.monotonic() at the start, less what earlier calls took
    sources: dict[str, str]  # SHA-256 of what the run was begun with and may not change: images, teachers


def refuse_uneven(config: ConfigDict) -> None:
    """Does nothing where each device gets as many images of a batch.

    Raises:
      UserError: batch_size does not divide by the devices of all processes.
    """
    if config.batch_size % jax.device_count():
        raise UserError(
            f"batch_size {config.batch_size} cannot be shared out to {jax.device_count()} devices evenly: "
            f"give a multiple of {jax.device_count()}"
        )


def make_plan(config: ConfigDict, images: int, unlabelled: int = 0) -> list[Stage]:
    """The stages with their first and last steps, from epochs or steps and the number of training images.

    An epoch of a stage with a teacher counts the unlabelled images too.

    Raises:
      UserError: batch_size does not fit the images.
    """
    if images < config.batch_size:
        raise UserError(f"batch_size {config.batch_size} is more than the {images} training images: make it smaller")
    plan, first = [], 0
    for name in config.stages:
        stage = config[name]
        seen = images + (unlabelled if stage.get("teacher") else 0)
        steps = stage.steps or max(1, round(stage.epochs * (seen // config.batch_size)))
        cuts = ()
        if name == "shrink":
            parts = (i * stage.end / stage.cuts for i in range(stage.cuts))
            cuts = tuple(sorted({first + min(round(part * steps), steps - 1) for part in parts}))
        plan.append(Stage(name, stage, first, first + steps, cuts))
        first += steps
    return plan


def image_counts(dataset: data.Dataset) -> tuple[int, int]:
    """Training images with a target, and without."""
    return len(dataset.train.images), len(dataset.unlabelled)


def refuse_other_source(run: Run, what: str, arrays: Any) -> None:
    """A run goes on only with the images and teachers that it was begun with: paths do not tell that they changed.

    Raises:
      UserError: `arrays`, of which `what` tells, are others than before.
    """
    now = checkpoint.digest(arrays)
    processes.refuse_unlike(what, now)
    if run.sources.setdefault(what, now) != now:
        raise UserError(
            f"{run.workdir} was begun with other {what} than there are now: put the old ones back, or choose another "
            "--workdir"
        )

"""Who guides a stage: a finished run, or this run's own network as its first stage left it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from atalaia import channels, distill
from atalaia.finished import fitting_run, restore
from atalaia.plan import Run, Stage, refuse_other_source
from atalaia.processes import on_devices
from atalaia.step import variables_of


class Teacher(NamedTuple):
    """A network that guides another: its name, its inference `outputs(variables, images)`, and its variables."""

    network: str
    outputs: Callable
    variables: dict


def load_teacher(run: Run, stage: Stage) -> Teacher:
    """The teacher of a stage: a finished run's network, or with "self" what this run's first stage made.

    Raises:
      UserError: there is no such run, it is not finished, or it does not fit the images or classes.
    """
    name, config, model = stage.config.teacher, run.config, run.model
    own = name == distill.SELF
    if own and stage.first:
        shapes = run.initial
        state, _ = restore(run.manager, config, model, shapes, run.plan[0].end)
    else:
        field, folder = f"{stage.name}.teacher", Path(config.start_from if own else name)
        config, model, manager, step, shapes = fitting_run(field, folder, run.dataset, config.data)
        state, _ = restore(manager, config, model, shapes, step)
    model = channels.fitted(model, shapes.params, state.params)
    return Teacher(config.model, model.apply, variables_of(state))


class Guide(NamedTuple):
    """How a teacher guides a stage.

    outputs: its inference, `(variables, images)` to outputs; None without a teacher.
    of: epoch to what a step takes: the teacher's variables, or the outputs of the view of each image whose turn it is.
    ready: epoch to whether `of` has it at hand, without minutes of work.
    """

    outputs: Callable | None = None
    of: Callable[[int], dict | None] = lambda epoch: None
    ready: Callable[[int], bool] = lambda epoch: True


def make_guide(run: Run, stage: Stage, images: np.ndarray) -> Guide:
    """The guide of a stage, whose images are uint8 `[n, height, width, channels]`."""
    name, views = stage.config.get("teacher"), run.config.distillation.views
    if not name:
        return Guide()
    network, outputs, variables = load_teacher(run, stage)
    folder = run.config.start_from if name == distill.SELF and not stage.first else name
    if folder != distill.SELF:  # else it is a part of this run
        refuse_other_source(run, f"weights of the teacher in {folder}", variables)
    if not views:
        taught = on_devices(dict(variables=variables))
        return Guide(outputs, lambda epoch: taught)
    cache = distill.open_cache(run.cache, network, outputs, variables, images, run.config.augment)
    return Guide(
        outputs,
        lambda epoch: on_devices(dict(outputs=cache.view(epoch % views, run.stop), view=epoch % views)),
        lambda epoch: cache.ready(epoch % views),
    )

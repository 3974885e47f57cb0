"""Who guides a stage: finished runs, or this run's own network as its first stage left it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from atalaia import channels, distill
from atalaia.data import Dataset
from atalaia.errors import UserError
from atalaia.finished import fitting_run, output_shapes, restore
from atalaia.plan import Run, Stage, refuse_other_source
from atalaia.processes import on_devices
from atalaia.step import variables_of


class Teacher(NamedTuple):
    """A network that guides another: its name, its inference `outputs(variables, images)`, and its variables.

    Variables are a pytree, of several networks a list of theirs.
    """

    network: str
    outputs: Callable
    variables: Any


def refuse_unfit(config: ConfigDict, stage: Stage, dataset: Dataset, needed: Any) -> None:
    """Does nothing where each teacher of a stage is finished, fits the data and answers in the network's own shapes.

    Args:
      config: of the run; stage: of its plan; dataset: its images.
      needed: what its network answers, by finished.output_shapes.

    Raises:
      UserError: one does not.
    """
    field = f"{stage.name}.teacher"
    for name in distill.names(stage.config.get("teacher")):
        if name == distill.SELF:
            continue
        source, theirs, _, _, shapes = fitting_run(field, Path(name), dataset, config.data)
        found = output_shapes(theirs, shapes, dataset)
        if found != needed:
            raise UserError(
                f"{field}: {name} holds a {source.model} with outputs {_listed(found)}, where {config.model} has "
                f"{_listed(needed)}: they must be the same"
            )


def _listed(outputs):
    return ", ".join(str(list(output.shape[1:])) for output in jax.tree.leaves(outputs))


def load_teacher(run: Run, stage: Stage, name: str) -> Teacher:
    """A teacher of a stage: a finished run's network, or with "self" what this run's first stage made.

    Raises:
      UserError: there is no such run, it is not finished, it does not fit the images or classes, or it is another one
        than this run was begun with.
    """
    config, model = run.config, run.model
    if name == distill.SELF and stage.first:
        shapes = run.initial
        state, _ = restore(run.manager, config, model, shapes, run.plan[0].end)
        return _teacher(config, model, shapes, state)
    folder = config.start_from if name == distill.SELF else name
    config, model, manager, step, shapes = fitting_run(f"{stage.name}.teacher", Path(folder), run.dataset, config.data)
    state, _ = restore(manager, config, model, shapes, step)
    found = _teacher(config, model, shapes, state)
    refuse_other_source(run, f"weights of the teacher in {folder}", found.variables)
    return found


def _teacher(config, model, shapes, state):
    model = channels.fitted(model, shapes.params, state.params)
    return Teacher(config.model, model.apply, variables_of(state))


def ensemble(teachers: Sequence[Teacher]) -> Teacher:
    """Several teachers as one, whose outputs are the mean of theirs.

    The mean of logits is the geometric mean of probabilities (Hinton et al., 2015, arXiv:1503.02531, section 1).
    """
    if len(teachers) == 1:
        return teachers[0]

    def outputs(variables, images):
        found = [teacher.outputs(own, images) for teacher, own in zip(teachers, variables, strict=True)]
        return jax.tree.map(lambda *heads: sum(heads) / len(heads), *found)

    return Teacher("; ".join(t.network for t in teachers), outputs, [t.variables for t in teachers])


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
    names, views = distill.names(stage.config.get("teacher")), run.config.distillation.views
    if not names:
        return Guide()
    network, outputs, variables = ensemble([load_teacher(run, stage, name) for name in names])
    if not views:
        taught = on_devices(dict(variables=variables))
        return Guide(outputs, lambda epoch: taught)
    cache = distill.open_cache(run.cache, network, outputs, variables, images, run.config.augment)
    return Guide(
        outputs,
        lambda epoch: on_devices(dict(outputs=cache.view(epoch % views, run.stop), view=epoch % views)),
        lambda epoch: cache.ready(epoch % views),
    )

"""A run's checkpoints as others take them: to go on, to start from, to be taught by, to export."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from atalaia import channels, checkpoint, data, folding, models, qat, quantize, tasks
from atalaia import config as configs
from atalaia.errors import UserError
from atalaia.plan import SPLIT, Stage, image_counts, make_plan
from atalaia.step import TrainState, make_forward, make_optimizer, state_shapes, variables_of


def finished(workdir: Path) -> dict:
    """What train.json says of a run.

    Raises:
      UserError: the run is not finished.
    """
    path = Path(workdir) / "train.json"
    if not path.is_file():
        raise UserError(f"the run in {workdir} is not finished: give its atalaia.train command again")
    return json.loads(path.read_text())


class Trained(NamedTuple):
    """The network of a finished run: its code, its params and batch_stats, and its inference in the last stage."""

    model: nn.Module
    variables: dict
    forward: Callable
    stage: str


def load_trained(config: ConfigDict, workdir: Path, dataset: data.Dataset) -> Trained:
    """The network of a finished run.

    Raises:
      UserError: the run is not finished, or its checkpoint is damaged.
    """
    model = create_model(config, dataset)
    step = finished(workdir)["steps"]
    manager = checkpoint.open_folder(workdir, writing=False)
    shapes = state_shapes(config, model, dataset.train.images.shape[1:])
    state, _ = restore(manager, config, model, shapes, step)
    stage = make_plan(config, *image_counts(dataset))[-1]
    model = channels.fitted(model, shapes.params, state.params)
    return Trained(model, variables_of(state), make_forward(config, model, stage), stage.name)


def create_model(config: ConfigDict, dataset: data.Dataset) -> nn.Module:
    """The network of a config, with as many outputs as its task needs for a data set."""
    return models.create(config.model, tasks.of(config).outputs(dataset, config))


def output_shapes(model: nn.Module, shapes: TrainState, dataset: data.Dataset) -> Any:
    """What a network of a state's shapes answers to one image: a pytree of jax.ShapeDtypeStruct."""
    image = jax.ShapeDtypeStruct((1, *dataset.train.images.shape[1:]), np.float32)
    return jax.eval_shape(model.apply, variables_of(shapes), image)


def restore(
    manager: checkpoint.Manager, config: ConfigDict, model: nn.Module, state: TrainState, step: int | None = None
) -> tuple[TrainState, dict]:
    """The latest checkpoint, or that of `step`, and what is said of it; `state` and {} where there is none.

    Of `state`, which is of the network as its code is, only the shapes are needed where a checkpoint exists. One that
    has lost channels is read into smaller arrays: `channels.fitted` is its network.
    """

    def template(meta):
        stage = Stage(meta["stage"], config[meta["stage"]], 0, 1)
        shaped = zeros_of(config, model, state, stage.name, meta.get("widths"))
        flat = flatten_dict(shaped.params, sep="/")
        masks = {path: np.zeros(flat[path].shape, bool) for path in meta.get("masks", ())}
        optimizer = make_optimizer(config, stage, shaped.params, masks)
        return jax.eval_shape(lambda s: s._replace(opt_state=optimizer.init(s.params)), shaped)

    found = checkpoint.restore(manager, template, step)
    if found is None:
        return state, {}
    restored, meta = found
    return jax.device_put(restored), meta


def zeros_of(
    config: ConfigDict, model: nn.Module, state: TrainState, stage: str, widths: dict[str, int] | None = None
) -> TrainState:
    """A state of the shapes that a stage has, without its optimiser's; `widths`: of layers that have lost channels."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state._replace(opt_state=()))
    zeros = channels.narrowed(model, zeros, state.params, widths or {})
    if stage != "quantize":
        return zeros
    return folded_state(config, model, zeros, dict.fromkeys(quantize.grid_paths(model), (0.0, 1.0)))


def folded_state(
    config: ConfigDict,
    model: nn.Module,
    state: TrainState,
    ranges: dict | None = None,
    images: Any = None,
    bits: dict[str, int] | None = None,
) -> TrainState:
    """The state at the beginning of stage `quantize`; ranges by calibration on `images` where none are given.

    bits: of the layers that have "auto", from bits.choose.
    """
    folded = folding.fold(model, jax.device_get(variables_of(state)))
    if ranges is None:
        batches = quantize.calibration_batches(images, config.calibration.images, config.seed)
        ranges = quantize.calibrate(model, folded, batches)
    params, batch_stats = qat.enter(folded, ranges, config.quantize, bits)
    return state._replace(params=params, batch_stats=batch_stats)


def start_from(config: ConfigDict, state: TrainState) -> TrainState:
    """The state of a new run: weights, statistics and masks of the finished run that config.start_from names.

    Raises:
      UserError: there is no such run, it is not finished, or it is of another network.
    """
    source, manager, step = refuse_other_start(config, state)
    found, _ = restore(manager, source, _code(source), state, step)
    return found._replace(step=state.step, key=state.key)


def _code(config):
    return models.create(config.model, 2)  # how many outputs it has does not matter where there are shapes


def refuse_other_start(config: ConfigDict, state: TrainState) -> tuple[ConfigDict, checkpoint.Manager, int]:
    """The run that config.start_from names, if `state` can have its weights: config, checkpoints, last float step.

    Raises:
      UserError: as `start_from`.
    """
    folder, same = Path(config.start_from), "model, image size and classes"
    source, _, manager, step = _finished_run("start_from", folder, config.data)
    _refuse_other_shapes("start_from", folder, source, (manager, step), config.model, state, same, _code(config))
    return source, manager, step


def fitting_run(
    field: str, folder: Path, dataset: data.Dataset, ours: ConfigDict
) -> tuple[ConfigDict, nn.Module, checkpoint.Manager, int, TrainState]:
    """A finished run whose network takes the images of a data set and answers for the same names.

    Args:
      field: of the config that names it; folder: the run's; dataset: the images; ours: config.data of this run.

    Returns:
      Its config, network, checkpoints, the last step of its float network and the shapes of its state.

    Raises:
      UserError: there is no such run, it is not finished, or it does not fit.
    """
    source, done, manager, step = _finished_run(field, folder, ours)
    shape = list(dataset.train.images.shape[1:])
    if done.get("image_shape", shape) != shape:  # where the shapes of parameters do not tell
        raise UserError(
            f"{field}: {folder} was trained on images of {done['image_shape']}, this run's are {shape}: image size and "
            "classes must be the same"
        )
    theirs = done.get("names", list(dataset.names))
    if len(theirs) == len(dataset.names) and theirs != list(dataset.names):
        this, other = next((a, b) for a, b in zip(dataset.names, theirs, strict=True) if a != b)
        raise UserError(f"{field}: {folder} tells other classes apart, {other!r} where this run's data have {this!r}")
    model = create_model(source, dataset)
    shapes = state_shapes(source, model, dataset.train.images.shape[1:])
    what = f"data ({len(dataset.names)} classes)"
    _refuse_other_shapes(field, folder, source, (manager, step), what, shapes, "image size and classes", model)
    return source, model, manager, step, shapes


def _finished_run(field, folder, ours):
    """A run that another, with `ours` as config.data, can take its float network from.

    Returns:
      Its config, train.json, checkpoints and the step of that network: the last one before stage quantize.
    """
    try:
        source, done = configs.load(folder), finished(folder)
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
    if (source.data.name, source.data.path) == (ours.name, ours.path):
        for name in SPLIT if ours.validation else SPLIT[1:]:  # or what is held back here was learned there
            if source.data[name] != ours[name]:
                raise UserError(
                    f"{field}: {folder} was trained with data.{name}={source.data[name]}, so it may have learned "
                    f"images that this run, with {ours[name]}, is validated or tested on: {name} must be the same"
                )
    manager = checkpoint.open_folder(folder, writing=False)
    return source, done, manager, _float_step(field, folder, source, done, manager)


def _float_step(field, folder, source, done, manager):
    """The last step of a run before BatchNorm is folded away."""
    if source.stages[-1] != "quantize":
        return done["steps"]
    steps = [step for step in manager.all_steps() if checkpoint.meta_of(manager, step)["stage"] != "quantize"]
    if not steps:
        raise UserError(f"{field}: {folder} has no network before quantize, where BatchNorm is folded away")
    return max(steps)


def _refuse_other_shapes(field, folder, source, saved, what, state, same, model):
    """Compares the state of a network with a checkpoint, a manager and a step, which may have lost channels."""
    theirs, widths = checkpoint.parameter_shapes(*saved), checkpoint.meta_of(*saved).get("widths")
    if widths:
        state = zeros_of(source, model, state, "", widths)
    ours = {jax.tree_util.keystr(path): x.shape for path, x in jax.tree.leaves_with_path(state.params)}
    if theirs != ours:
        name = next(k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k))
        raise UserError(
            f"{field}: {folder} holds a {source.model} with {name} of shape {theirs.get(name)}, "
            f"but this run's {what} has {ours.get(name)}: {same} must be the same"
        )

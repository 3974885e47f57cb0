"""Trains a network through the stages of a config, each from where the one before it ended.

python -m atalaia.train --config=configs/cifar10.py --workdir=runs/cifar10 [--config.prune.sparsity=0.9 ...]

The run folder gets config.json, checkpoints/, metrics.jsonl, tensorboard/, ledger.json and train.json. A run that was
stopped in any way goes on when the same command is given again, and ends with the same bytes in every array.
"""

import json
import signal
import threading
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict, config_flags

from atalaia import (
    augment,
    checkpoint,
    cli,
    data,
    distill,
    folding,
    int8_layers,
    layers,
    ledger,
    losses,
    metrics,
    models,
    optimizers,
    pretrained,
    pruning,
    qat,
    quantize,
)
from atalaia import config as configs
from atalaia.errors import Diverged, UserError
from atalaia.files import locked, write_json
from atalaia.progress import Progress

EVAL_BATCH = 125  # on 2 cores, of 16 to 500: a layer's maps stay in cache (2,740 against 2,270 images/s at 500)
IMAGES = "training or validation images"  # one of the sources that a run may not change
SPLIT = ("validation", "split_seed", "train_per_class")  # fields of config.data that say which images are learned from


def over_devices(*axes: str):
    """Where an array lies: its first dimension shared out to all devices that jax sees, or all of it on each."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


class TrainState(NamedTuple):
    """All that changes in training: arrays only, so that a checkpoint of it is a checkpoint of the run."""

    step: jax.Array  # int32 [], steps done in all stages
    params: dict
    batch_stats: dict
    opt_state: optax.OptState  # masks live in here
    key: jax.Array  # uint32 [2], never changes: every use folds a name and the step in


class Stage(NamedTuple):
    """A stage of the plan: steps `first` up to `end` of the whole run."""

    name: str
    config: ConfigDict
    first: int
    end: int


class Run(NamedTuple):
    """What all stages share and none changes."""

    config: ConfigDict
    workdir: Path
    model: nn.Module
    initial: TrainState  # new weights: the shapes that checkpoints are read into
    dataset: data.Dataset
    cache: Path  # where data sets and teachers' logits are kept
    plan: list[Stage]
    manager: checkpoint.Manager
    writer: metrics.Writer
    stop: Callable[[], bool]  # whether the user asked for an end
    clock: float  # time.monotonic() at the start, less what earlier calls took
    sources: dict[str, str]  # SHA-256 of what the run was begun with and may not change: images, teachers


def train_and_evaluate(config: ConfigDict, workdir: Path, cache: Path) -> dict:
    """Runs the stages of the config that are not done yet, and returns what train.json says.

    Args:
      config: fields of configs.base().
      workdir: the run folder.
      cache: where data sets are kept.

    Raises:
      UserError: a field is wrong, the folder is another run's, or training became NaN.
    """
    configs.validate(config)
    configs.refuse_other_run(config, workdir)
    dataset, saved = data.load(config.data, cache), checkpoint.latest(workdir)
    model, plan = prepare(config, dataset, saved)
    state = init_state(config, model, dataset.train.images.shape[1:])
    if config.start_from and not saved:
        state = start_from(config, state)
    elif config.pretrained and not saved:
        state = state._replace(params=pretrained.load(state.params, cache))
    Path(workdir).mkdir(parents=True, exist_ok=True)
    waiting = f"another process trains in {workdir}: waiting for it"
    with locked(Path(workdir) / "lock", lambda: print(waiting, flush=True)):
        configs.refuse_other_run(config, workdir)  # the other process may have begun one
        configs.claim(config, workdir)
        print(_summary(config, model, state, dataset), flush=True)
        return _run_plan(config, workdir, cache, dataset, plan, model, state)


def prepare(config: ConfigDict, dataset: data.Dataset, saved: int = 0) -> tuple[nn.Module, list[Stage]]:
    """The network and the plan of a valid config on a data set.

    What a stage would fail at is refused now, not after hours; stages that end at step `saved` or before are done.

    Raises:
      UserError: a field does not fit the data or the network, or a run that it names is not there, or does not fit.
    """
    plan = make_plan(config, *image_counts(dataset))
    model, shape = models.create(config.model, len(dataset.names)), dataset.train.images.shape[1:]
    shapes = state_shapes(config, model, shape)
    if config.start_from and not saved:
        _refuse_other_start(config, shapes)
    for stage in plan:
        if stage.name == "quantize":
            int8_layers.require_int8(model, shape)
            qat.weight_bits(quantize.linear_paths(model), config.quantize)
        make_optimizer(config, stage, _zeros_of(config, model, shapes, stage.name).params)
        teacher = stage.config.get("teacher")
        if teacher and teacher != distill.SELF and saved < stage.end:
            _fitting_run(f"{stage.name}.teacher", Path(teacher), dataset, config.data)
    return model, plan


def _run_plan(config, workdir, cache, dataset, plan, model, initial):
    """The stages from the last checkpoint on."""
    manager = checkpoint.open_folder(workdir, keep=[stage.end for stage in plan])
    state, meta = restore(manager, config, model, initial)
    if state.step:
        print(f"going on from step {state.step} of {plan[-1].end}", flush=True)
    with metrics.Writer(workdir, int(state.step)) as writer, _StopSignal() as stop:
        clock = time.monotonic() - meta.get("seconds", 0.0)
        sources = meta.get("sources", {})
        run = Run(config, workdir, model, initial, dataset, cache, plan, manager, writer, stop, clock, sources)
        if state.step < plan[-1].end:
            _refuse_other_source(run, IMAGES, (dataset.train, dataset.validation, dataset.unlabelled))
            if config.start_from and not meta:  # a run that goes on has what it needs of it
                _refuse_other_source(run, f"weights of the run in {config.start_from}", variables_of(state))
        for stage in plan:
            if int(state.step) < stage.end:
                state = run_stage(run, stage, state)
            _finish_stage(run, stage, state)
    return _finish(run)


def run_stage(run: Run, stage: Stage, state: TrainState) -> TrainState:
    """The steps of one stage that are left, with looks at the validation split and checkpoints on the way."""
    config, split = run.config, training_split(run.dataset, stage)
    train = jax.device_put(split, over_devices())
    optimizer, state = _enter_stage(run, stage, state)
    forward = make_forward(config, run.model, stage)
    guide = make_guide(run, stage, split.images)
    step_fn = make_step(config, forward, optimizer, guide.logits)
    evaluate = make_evaluate(forward, run.dataset.validation)
    rate = optimizers.learning_rate(stage.config, stage.end - stage.first)
    epoch_steps = len(train.targets) // config.batch_size
    eval_steps = max(1, round(config.eval_epochs * epoch_steps))
    order, window, since, saved = None, [], time.monotonic(), time.monotonic()

    with Progress(
        stage.name, stage.end - stage.first, "images", config.batch_size, int(state.step) - stage.first
    ) as bar:
        for step in range(int(state.step), stage.end):
            epoch, place = divmod(step - stage.first, epoch_steps)
            if order is None or place == 0:
                order, begun = epoch_order(state.key, stage.first + epoch, len(train.targets)), time.monotonic()
                taught = guide.of(epoch)
                since += time.monotonic() - begun  # it may have been computed now
            state, figures = step_fn(state, train, order, place * config.batch_size, taught)
            window.append(figures)
            bar.update()
            if len(window) > 1:
                _refuse_nan(run, stage, step - 1, window[-2])  # one step late, so that the device never waits for us

            done, last, stopped = step + 1, step + 1 == stage.end, run.stop()
            pause = done % epoch_steps == stage.first % epoch_steps and not guide.ready(epoch + 1)
            save = last or stopped or pause or time.monotonic() - saved > config.checkpoint_seconds
            look = last or (done - stage.first) % eval_steps == 0
            if save or look or done % config.log_steps == 0:
                row = _mean(jax.device_get(window))
                _refuse_nan(run, stage, step, row)
                row["images_per_s"] = len(window) * config.batch_size / (time.monotonic() - since)
                row["learning_rate"] = float(rate(step - stage.first))
                row |= evaluate(state) if look else {}
                run.writer.write(dict(step=done, stage=stage.name, epoch=(done - stage.first) / epoch_steps) | row)
                bar.update(0, **row)
                window, since = [], time.monotonic()
            if save:
                _refuse_broken_weights(run, stage, step, state)
                _save(run, stage, done, state)
                since = saved = time.monotonic()
            if stopped:
                raise KeyboardInterrupt
    return state


def _enter_stage(run, stage, state):
    """The stage's optimiser, and the state on the devices: at the stage's beginning made ready for it."""
    first, masks = int(state.step) == stage.first, pruning.masks_of(state.opt_state)
    if first and stage.name == "quantize":
        state = _folded_state(run.config, run.model, state, images=run.dataset.train.images)
    optimizer = make_optimizer(run.config, stage, state.params, masks)
    if first:
        state = state._replace(opt_state=optimizer.init(state.params))
    return optimizer, jax.device_put(state, over_devices())


def _save(run, stage, step, state):
    meta = dict(stage=stage.name, seconds=time.monotonic() - run.clock, masks=sorted(masks_of(state)))
    checkpoint.save(run.manager, step, state, meta | dict(sources=run.sources))


def make_forward(config: ConfigDict, model: nn.Module, stage: Stage) -> Callable:
    """The network in a stage: `forward(variables, images, key=None)` to (logits, batch_stats).

    With a key, as in training: it draws Dropout, and the returned statistics have moved; without, inference.
    """
    if stage.name == "quantize":
        return qat.make_forward(model, config.quantize, stage.end - stage.first)

    def forward(variables, images, key=None):
        if key is None:
            return model.apply(variables, images), variables["batch_stats"]
        rngs, trained = dict(dropout=key), optimizers.trained_paths(variables["params"], config.trainable)
        with nn.intercept_methods(partial(_frozen_as_in_inference, trained)):
            logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return logits, updated.get("batch_stats", {})

    return forward


def _frozen_as_in_inference(trained, call, args, kwargs, context):
    """Flax's interceptor: BatchNorm of a layer that is not trained normalises by its statistics, and keeps them."""
    layer = "/".join(context.module.path[:-1])
    if isinstance(context.module, layers.BatchNorm) and not any(path.startswith(f"{layer}/") for path in trained):
        images, shift, *_ = args
        return call(images, shift, train=False)
    return call(*args, **kwargs)


def training_split(dataset: data.Dataset, stage: Stage) -> data.Split:
    """What a stage trains on: with a teacher, the unlabelled images too, whose label is -1."""
    if not (stage.config.get("teacher") and len(dataset.unlabelled)):
        return dataset.train
    labels = np.full(len(dataset.unlabelled), -1, dataset.train.targets.dtype)
    return data.Split(*map(np.concatenate, zip(dataset.train, (dataset.unlabelled, labels), strict=True)))


class Guide(NamedTuple):
    """How a teacher guides a stage.

    logits: its inference, `(variables, images)` to logits; None without a teacher.
    of: epoch to what a step takes: the teacher's variables, or the logits of the view of each image whose turn it is.
    ready: epoch to whether `of` has it at hand, without minutes of work.
    """

    logits: Callable | None = None
    of: Callable[[int], dict | None] = lambda epoch: None
    ready: Callable[[int], bool] = lambda epoch: True


def make_guide(run: Run, stage: Stage, images: np.ndarray) -> Guide:
    """The guide of a stage, whose images are uint8 `[n, height, width, channels]`."""
    name, views = stage.config.get("teacher"), run.config.distillation.views
    if not name:
        return Guide()
    network, logits, variables = load_teacher(run, stage)
    folder = run.config.start_from if name == distill.SELF and not stage.first else name
    if folder != distill.SELF:  # else it is a part of this run
        _refuse_other_source(run, f"weights of the teacher in {folder}", variables)
    if not views:
        taught = jax.device_put(dict(variables=variables), over_devices())
        return Guide(logits, lambda epoch: taught)
    classes = len(run.dataset.names)
    cache = distill.open_cache(run.cache, network, logits, variables, images, classes, run.config.augment)
    return Guide(
        logits,
        lambda epoch: jax.device_put(
            dict(logits=cache.view(epoch % views, run.stop), view=epoch % views), over_devices()
        ),
        lambda epoch: cache.ready(epoch % views),
    )


def make_step(
    config: ConfigDict, forward: Callable, optimizer: optax.GradientTransformation, teacher: Callable | None = None
):
    """The training step: `step(state, train, order, start)` to (state, {loss, correct, labelled}).

    The old state is given up. With a teacher there is a last argument: what `make_guide` gives for the epoch.

    It takes the images that `order` (int32 `[n]`) names from `start` on, out of a data.Split on the device. The batch
    is shared out to all devices, on which all else is whole: BatchNorm's statistics are those of the whole batch,
    so the result does not depend on the number of devices but for rounding.
    """
    loss_of = losses.LOSSES[config.loss.name]

    def objective(params, state, images, labels, taught):
        variables = dict(params=params, batch_stats=state.batch_stats)
        logits, batch_stats = forward(variables, images, _key(state.key, "dropout", state.step))
        loss = loss_of(logits, labels, config.loss)
        if taught is not None:
            loss = distill.mix(loss, logits, taught, labels, config.distillation)
        return loss, (logits, batch_stats)

    def look(state, pixels, index, guide):
        """Augmented images, and the teacher's logits of them."""
        images = data.to_float(pixels)
        if guide and "logits" in guide:
            return distill.fixed_view(images, index, guide["view"], config.augment), guide["logits"][index]
        images = augment.augment(_key(state.key, "augment", state.step), images, config.augment)
        return images, teacher(guide["variables"], images) if guide else None

    @partial(jax.jit, donate_argnums=0)
    def step(state, train, order, start, guide=None):
        index = jax.lax.dynamic_slice_in_dim(order, start, config.batch_size)
        index = jax.lax.with_sharding_constraint(index, over_devices("batch"))
        labels = train.targets[index]
        with jax.named_scope("images"):  # names for profiles
            images, taught = look(state, train.images[index], index, guide)
        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, (logits, batch_stats)), grads = gradient(state.params, state, images, labels, taught)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        figures = dict(loss=loss, correct=jnp.sum(logits.argmax(-1) == labels), labelled=jnp.sum(labels >= 0))
        return TrainState(state.step + 1, params, batch_stats, opt_state, state.key), figures

    return step


def make_evaluate(forward: Callable, split: data.Split) -> Callable[[TrainState], dict[str, float]]:
    """`evaluate(state)` to validation loss and accuracy over a whole split; {} for an empty one."""
    n = len(split.targets)
    if n == 0:
        return lambda state: {}
    size = min(n, EVAL_BATCH)
    padding = -n % size
    images = jnp.pad(split.images, ((0, padding), (0, 0), (0, 0), (0, 0))).reshape(-1, size, *split.images.shape[1:])
    labels = jnp.pad(split.targets, (0, padding), constant_values=-1).reshape(-1, size)

    @jax.jit
    def sums(variables, images, labels):
        logits, _ = forward(variables, data.to_float(images))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return jnp.sum(loss * (labels >= 0)), jnp.sum(logits.argmax(-1) == labels)

    def evaluate(state):
        batches = [sums(variables_of(state), x, y) for x, y in zip(images, labels, strict=True)]
        loss, correct = np.sum(jax.device_get(batches), 0)
        return dict(val_loss=float(loss) / n, val_accuracy=float(correct) / n)

    return evaluate


def image_counts(dataset: data.Dataset) -> tuple[int, int]:
    """Training images with a label, and without."""
    return len(dataset.train.targets), len(dataset.unlabelled)


def make_plan(config: ConfigDict, images: int, unlabelled: int = 0) -> list[Stage]:
    """The stages with their first and last steps, from epochs or steps and the number of training images.

    An epoch of a stage with a teacher counts the unlabelled images too.
    """
    if images < config.batch_size:
        raise UserError(f"batch_size {config.batch_size} is more than the {images} training images: make it smaller")
    if config.batch_size % jax.device_count():
        raise UserError(f"batch_size {config.batch_size} cannot be shared out to {jax.device_count()} devices evenly")
    plan, first = [], 0
    for name in config.stages:
        stage = config[name]
        seen = images + (unlabelled if stage.get("teacher") else 0)
        steps = stage.steps or max(1, round(stage.epochs * (seen // config.batch_size)))
        plan.append(Stage(name, stage, first, first + steps))
        first += steps
    return plan


def make_optimizer(
    config: ConfigDict, stage: Stage, params: dict, masks: pruning.Masks | None = None
) -> optax.GradientTransformation:
    """The stage's optimiser; wrapped in `prune` in the prune stage, and where there are masks, which it keeps."""
    steps = stage.end - stage.first
    optimizer = optimizers.create(stage.config, steps)
    if stage.name == "quantize":
        optimizer = qat.make_optimizer(optimizer, stage.config, steps)
    if config.trainable:
        optimizer = optimizers.only(optimizer, params, config.trainable)
    if stage.name == "prune":
        sparsity, shared = _pruned(config, params)
        schedule = pruning.SCHEDULES[config.prune.schedule](config.prune, steps)
        return pruning.prune(optimizer, sparsity, schedule, shared, masks)
    return pruning.prune(optimizer, {}, masks=masks) if masks else optimizer


def _pruned(config, params):
    """pruning.targets of the parameters that are trained: the others stay as they are."""
    sparsity, shared = pruning.targets(params, config.prune)
    trained = set(optimizers.trained_paths(params, config.trainable))
    if sparsity and not trained & set(sparsity):
        raise UserError(f"trainable: {config.trainable!r} leaves nothing to prune of {', '.join(sparsity)}")
    return {path: part for path, part in sparsity.items() if path in trained}, shared & trained


def init_state(config: ConfigDict, model: nn.Module, input_shape: tuple[int, ...]) -> TrainState:
    """New weights; the optimiser's state is the first stage's affair."""
    quick = dict(xla_backend_optimization_level=1)  # runs once: compiled in 1 s, where the best code takes 3
    return jax.jit(partial(_new_state, config.seed, model, input_shape), compiler_options=quick)()


def state_shapes(config: ConfigDict, model: nn.Module, input_shape: tuple[int, ...]) -> TrainState:
    """The shapes that `init_state` gives, without the work."""
    return jax.eval_shape(partial(_new_state, config.seed, model, input_shape))


def _new_state(seed, model, input_shape):
    key = jax.random.PRNGKey(seed)
    variables = model.init(_key(key, "init", 0), jnp.zeros((1, *input_shape)))
    return TrainState(jnp.zeros([], jnp.int32), variables["params"], variables.get("batch_stats", {}), (), key)


def variables_of(state: TrainState) -> dict:
    """The network's part of a state, as Flax takes it."""
    return dict(params=state.params, batch_stats=state.batch_stats)


def masks_of(state: TrainState) -> pruning.Masks:
    """The pruning masks of a state, {} where nothing is pruned."""
    return pruning.masks_of(state.opt_state) or {}


def restore(
    manager: checkpoint.Manager, config: ConfigDict, model: nn.Module, state: TrainState, step: int | None = None
) -> tuple[TrainState, dict]:
    """The latest checkpoint, or that of `step`, and what is said of it; `state` and {} where there is none.

    Of `state`, only the shapes are needed where a checkpoint exists.
    """

    def template(meta):
        stage = Stage(meta["stage"], config[meta["stage"]], 0, 1)
        shaped = _zeros_of(config, model, state, stage.name)
        flat = flatten_dict(shaped.params, sep="/")
        masks = {path: np.zeros(flat[path].shape, bool) for path in meta.get("masks", ())}
        optimizer = make_optimizer(config, stage, shaped.params, masks)
        return jax.eval_shape(lambda s: s._replace(opt_state=optimizer.init(s.params)), shaped)

    found = checkpoint.restore(manager, template, step)
    if found is None:
        return state, {}
    restored, meta = found
    return jax.device_put(restored), meta


def _zeros_of(config, model, state, stage):
    """A state of the shapes that a stage has, without its optimiser's."""
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state._replace(opt_state=()))
    if stage != "quantize":
        return zeros
    return _folded_state(config, model, zeros, dict.fromkeys(quantize.grid_paths(model), (0.0, 1.0)))


def start_from(config: ConfigDict, state: TrainState) -> TrainState:
    """The state of a new run: weights, statistics and masks of the finished run that config.start_from names.

    Raises:
      UserError: there is no such run, it is not finished, or it is of another network.
    """
    source, manager, step = _refuse_other_start(config, state)
    found, _ = restore(manager, source, models.create(source.model, 2), state, step)  # its classes do not matter here
    return found._replace(step=state.step, key=state.key)


def _refuse_other_start(config, state):
    """The run that config.start_from names, if `state` can have its weights: config, checkpoints, last step."""
    folder, same = Path(config.start_from), "model, image size and classes"
    source, done = _finished_run("start_from", folder, config.data)
    manager = checkpoint.open_folder(folder, writing=False)
    theirs = checkpoint.parameter_shapes(manager, done["steps"])
    _refuse_other_shapes("start_from", folder, source, theirs, config.model, state, same)
    return source, manager, done["steps"]


def finished(workdir: Path) -> dict:
    """What train.json says of a run.

    Raises:
      UserError: the run is not finished.
    """
    path = Path(workdir) / "train.json"
    if not path.is_file():
        raise UserError(f"the run in {workdir} is not finished: give its atalaia.train command again")
    return json.loads(path.read_text())


def _finished_run(field: str, folder: Path, ours: ConfigDict) -> tuple[ConfigDict, dict]:
    """The config and train.json of a run that another, with `ours` as config.data, can take its float network from."""
    try:
        source, done = configs.load(folder), finished(folder)
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
    if source.stages[-1] == "quantize":
        raise UserError(f"{field}: BatchNorm is folded away in {folder}: name a run that ends before quantize")
    if (source.data.name, source.data.path) == (ours.name, ours.path):
        for name in SPLIT if ours.validation else SPLIT[1:]:  # or what is held back here was learned there
            if source.data[name] != ours[name]:
                raise UserError(
                    f"{field}: {folder} was trained with data.{name}={source.data[name]}, so it may have learned "
                    f"images that this run, with {ours[name]}, is validated or tested on: {name} must be the same"
                )
    return source, done


def _refuse_other_shapes(field, folder, source, theirs, what, state, same):
    ours = {jax.tree_util.keystr(path): x.shape for path, x in jax.tree.leaves_with_path(state.params)}
    if theirs != ours:
        name = next(k for k in {**ours, **theirs} if ours.get(k) != theirs.get(k))
        raise UserError(
            f"{field}: {folder} holds a {source.model} with {name} of shape {theirs.get(name)}, "
            f"but this run's {what} has {ours.get(name)}: {same} must be the same"
        )


class Teacher(NamedTuple):
    """A network that guides another: its name, its inference `logits(variables, images)`, and its variables."""

    network: str
    logits: Callable
    variables: dict


def load_teacher(run: Run, stage: Stage) -> Teacher:
    """The teacher of a stage: a finished run's network, or with "self" what this run's first stage made.

    Raises:
      UserError: there is no such run, it is not finished, or it does not fit the images or classes.
    """
    name, config, model = stage.config.teacher, run.config, run.model
    own = name == distill.SELF
    if own and stage.first:
        state, _ = restore(run.manager, config, model, run.initial, run.plan[0].end)
    else:
        field, folder = f"{stage.name}.teacher", Path(config.start_from if own else name)
        config, model, manager, step, shapes = _fitting_run(field, folder, run.dataset, config.data)
        state, _ = restore(manager, config, model, shapes, step)
    return Teacher(config.model, model.apply, variables_of(state))


def _fitting_run(field, folder, dataset, ours):
    """A finished run whose network takes the images of a data set and tells its classes apart; `ours`: config.data."""
    source, done = _finished_run(field, folder, ours)
    shape = list(dataset.train.images.shape[1:])
    if done.get("image_shape", shape) != shape:  # where the shapes of parameters do not tell
        raise UserError(
            f"{field}: {folder} was trained on images of {done['image_shape']}, this run's are {shape}: image size and "
            "classes must be the same"
        )
    theirs = done.get("classes", list(dataset.names))
    if len(theirs) == len(dataset.names) and theirs != list(dataset.names):
        this, other = next((a, b) for a, b in zip(dataset.names, theirs, strict=True) if a != b)
        raise UserError(f"{field}: {folder} tells other classes apart, {other!r} where this run's data have {this!r}")
    model = models.create(source.model, len(dataset.names))
    shapes = state_shapes(source, model, dataset.train.images.shape[1:])
    manager = checkpoint.open_folder(folder, writing=False)
    theirs = checkpoint.parameter_shapes(manager, done["steps"])
    what = f"data ({len(dataset.names)} classes)"
    _refuse_other_shapes(field, folder, source, theirs, what, shapes, "image size and classes")
    return source, model, manager, done["steps"], shapes


def _folded_state(config, model, state, ranges=None, images=None):
    """The state at the beginning of stage `quantize`; ranges by calibration on `images` where none are given."""
    folded = folding.fold(model, jax.device_get(variables_of(state)))
    if ranges is None:
        batches = quantize.calibration_batches(images, config.calibration.images, config.seed)
        ranges = quantize.calibrate(model, folded, batches)
    params, batch_stats = qat.enter(folded, ranges, config.quantize)
    return state._replace(params=params, batch_stats=batch_stats)


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
    model = models.create(config.model, len(dataset.names))
    step = finished(workdir)["steps"]
    manager = checkpoint.open_folder(workdir, writing=False)
    shapes = state_shapes(config, model, dataset.train.images.shape[1:])
    state, _ = restore(manager, config, model, shapes, step)
    stage = make_plan(config, *image_counts(dataset))[-1]
    return Trained(model, variables_of(state), make_forward(config, model, stage), stage.name)


def _key(key, name, step):
    """The key of one use of randomness in one step."""
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)


@partial(jax.jit, static_argnums=2)
def epoch_order(key, epoch, n):
    """The order of the n training images in an epoch."""
    return jax.random.permutation(_key(key, "order", epoch), n)


def _mean(window):
    """Mean loss, and accuracy over the images with a label, of a window of steps."""
    correct, labelled = (sum(int(figures[name]) for figures in window) for name in ("correct", "labelled"))
    loss = float(np.mean([figures["loss"] for figures in window]))
    return dict(loss=loss, **(dict(accuracy=correct / labelled) if labelled else {}))


def _refuse_nan(run, stage, step, figures):
    if not np.isfinite(figures["loss"]):
        loss = repr(run.config.loss.name)
        if stage.config.get("teacher"):
            loss += f" mixed with {run.config.distillation.loss!r}"
        raise Diverged(
            f"loss {loss} became NaN or infinite at step {step + 1} (stage {stage.name}): try a "
            f"smaller {stage.name}.learning_rate than {stage.config.learning_rate}, in another --workdir"
        )


def _refuse_other_source(run, what, arrays):
    """A run goes on only with the images and teachers that it was begun with: paths do not tell that they changed."""
    now = checkpoint.digest(arrays)
    if run.sources.setdefault(what, now) != now:
        raise UserError(
            f"{run.workdir} was begun with other {what} than there are now: put the old ones back, or choose another "
            "--workdir"
        )


def _refuse_broken_weights(run, stage, step, state):
    """A finite loss can have an infinite gradient; such weights are never saved."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params))):
        _refuse_nan(run, stage, step, dict(loss=np.nan))


def _summary(config, model, state, dataset):
    _, table = layers.summary(model, variables_of(state), dataset.train.images.shape[1:])
    splits = ("train", "validation", "test")
    counts = ", ".join(f"{len(getattr(dataset, split).targets):,} {split}" for split in splits)
    return f"model {config.model}, data {dataset.name}: {counts} images\n{table}"


def _finish_stage(run, stage, state):
    """Enters a stage into the ledger, if a call that was killed at its end has not yet; shows the sparsity reached."""
    if stage.name in ledger.stages(run.workdir):
        return
    if int(state.step) != stage.end:
        state, _ = restore(run.manager, run.config, run.model, run.initial, stage.end)
    masks = masks_of(state)
    if masks:
        reached, table = pruning.report(state.params, masks)
        write_json(Path(run.workdir) / "sparsity.json", reached)
        print(f"sparsity after {stage.name}\n{table}", flush=True)
    ledger.add_stage(run.workdir, stage.name, variables_of(state), checkpoint.folder_bytes(run.manager, stage.end))


def _finish(run):
    """Writes train.json, once."""
    path = Path(run.workdir) / "train.json"
    if not path.exists():
        summary = dict(
            steps=run.plan[-1].end,
            seconds=round(time.monotonic() - run.clock, 1),
            peak_memory_bytes=metrics.peak_memory_bytes(),
            dataset=run.dataset.name,
            classes=list(run.dataset.names),
            image_shape=list(run.dataset.train.images.shape[1:]),
            seed=run.config.seed,
            device=jax.devices()[0].device_kind,
            jax=jax.__version__,
            precision=jax.config.jax_default_matmul_precision,
            sources=run.sources,
            val_accuracy=metrics.last(run.workdir, "val_accuracy"),
        )
        write_json(path, summary)
    print(f"trained: {run.workdir} (metrics.jsonl, tensorboard, checkpoints, ledger.json)", flush=True)
    return json.loads(path.read_text())


class _StopSignal:
    """Turns the first Ctrl-C or SIGTERM into a question at the end of a step; a second Ctrl-C stops at once."""

    def __enter__(self):
        self._asked = False
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return lambda: self._asked

    def __exit__(self, *exc):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True


def main() -> None:
    config = flags.FLAGS.config
    if config is None:
        raise UserError("no config: give --config=configs/NAME.py")
    train_and_evaluate(config, cli.workdir(), cli.cache())


if __name__ == "__main__":
    cli.common_flags()
    config_flags.DEFINE_config_file("config", help_string="The experiment: a file of configs/.")
    cli.run(main, goes_on=True)

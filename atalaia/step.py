"""One jitted training step: the state that it changes, the network in each stage, the optimiser, the validation."""

import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from atalaia import augment, data, distill, layers, mixing, optimizers, own, pruning, qat, tasks
from atalaia.datasets.disk import Rows
from atalaia.errors import UserError
from atalaia.feed import Batch
from atalaia.plan import Stage
from atalaia.processes import on_devices, over_devices

EVAL_BATCH = 125  # on 2 cores, of 16 to 500: a layer's maps stay in cache (2,740 against 2,270 images/s at 500)


class TrainState(NamedTuple):
    """All that changes in training: arrays only, so that a checkpoint of it is a checkpoint of the run."""

    step: jax.Array  # int32 [], steps done in all stages
    params: dict
    batch_stats: dict
    opt_state: optax.OptState  # masks live in here
    key: jax.Array  # uint32 [2], never changes: every use folds a name and the step in


def init_state(config: ConfigDict, model: nn.Module, input_shape: tuple[int, ...]) -> TrainState:
    """New weights; the optimiser's state is the first stage's affair."""
    quick = dict(xla_backend_optimization_level=1)  # runs once: compiled in 1 s, where the best code takes 3
    return jax.jit(partial(_new_state, config.seed, model, input_shape), compiler_options=quick)()


def state_shapes(config: ConfigDict, model: nn.Module, input_shape: tuple[int, ...]) -> TrainState:
    """The shapes that `init_state` gives, without the work."""
    return jax.eval_shape(partial(_new_state, config.seed, model, input_shape))


def _new_state(seed, model, input_shape):
    key = jax.random.PRNGKey(seed)
    variables = model.init(key_of(key, "init", 0), jnp.zeros((1, *input_shape)))
    return TrainState(jnp.zeros([], jnp.int32), variables["params"], variables.get("batch_stats", {}), (), key)


def variables_of(state: TrainState) -> dict:
    """The network's part of a state, as Flax takes it."""
    return dict(params=state.params, batch_stats=state.batch_stats)


def masks_of(state: TrainState) -> pruning.Masks:
    """The pruning masks of a state, {} where nothing is pruned."""
    return pruning.masks_of(state.opt_state) or {}


def averaged(state: TrainState) -> TrainState:
    """With the average of the parameters in their place, where the optimiser keeps one; what is pruned stays zero."""
    kept = state.opt_state.inner if isinstance(state.opt_state, pruning.PruneState) else state.opt_state
    if not isinstance(kept, optimizers.AverageState):
        return state
    return state._replace(params=pruning.apply_masks(kept.average, masks_of(state)))


def key_of(key: jax.Array, name: str, step: Any) -> jax.Array:
    """The key of one use of randomness in one step."""
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)


@partial(jax.jit, static_argnums=2)
def epoch_order(key: jax.Array, epoch: int, n: int, balanced: jax.Array | None = None) -> jax.Array:
    """The order of the n training images in an epoch, int32 `[n]`; by labels `balanced`, all classes alike."""
    key = key_of(key, "order", epoch)
    return jax.random.permutation(key, n) if balanced is None else data.balanced_order(key, balanced, n)


def class_weights(dataset: data.Dataset, config: ConfigDict) -> jax.Array | None:
    """What an image of each class counts in the loss, float32 `[classes]`; None where all count 1."""
    if config.data.balance != "weights":
        return None
    return jnp.asarray(data.class_weights(dataset.train.targets, len(dataset.names)))


def training_split(dataset: data.Dataset, config: ConfigDict, stage: Stage) -> data.Split:
    """What a stage trains on: with a teacher, the unlabelled images too, which have no target."""
    if not (stage.config.get("teacher") and len(dataset.unlabelled)):
        return dataset.train
    absent = tasks.of(config).absent(dataset.train.targets, len(dataset.unlabelled))
    both = dataset.train, data.Split(dataset.unlabelled, absent)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *both)


def make_forward(config: ConfigDict, model: nn.Module, stage: Stage) -> Callable:
    """The network in a stage: `forward(variables, images, key=None)` to (outputs, batch_stats).

    With a key, as in training: it draws Dropout, and the returned statistics have moved; without, inference.
    """
    if stage.name == "quantize":
        return qat.make_forward(model, config.quantize, stage.end - stage.first)

    def forward(variables, images, key=None):
        if key is None:
            return model.apply(variables, images), variables["batch_stats"]
        rngs, trained = dict(dropout=key), optimizers.trained_paths(variables["params"], config.trainable)
        with nn.intercept_methods(partial(_frozen_as_in_inference, trained)):
            outputs, updated = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return outputs, updated.get("batch_stats", {})

    return forward


def _frozen_as_in_inference(trained, call, args, kwargs, context):
    """Flax's interceptor: BatchNorm of a layer that is not trained normalises by its statistics, and keeps them."""
    layer = "/".join(context.module.path[:-1])
    if isinstance(context.module, layers.BatchNorm) and not any(path.startswith(f"{layer}/") for path in trained):
        images, shift, *_ = args
        return call(images, shift, train=False)
    return call(*args, **kwargs)


def make_step(
    config: ConfigDict,
    forward: Callable,
    optimizer: optax.GradientTransformation,
    teacher: Callable | None = None,
    class_weights: jax.Array | None = None,
    mix: Callable | None = None,
) -> Callable:
    """The training step: `step(state, train, order, start)` to (state, {loss, and (sum, count) of task.progress}).

    The old state is given up. With a teacher there is a last argument: what teachers.make_guide gives for the epoch.
    `mix` is mixing.make's.

    It takes the images that `order` (int32 `[n]`) names from `start` on: out of `train`, a data.Split on the device or
    a feed.Batch that holds them already. The batch is shared out to all devices, on which all else is whole:
    BatchNorm's statistics are those of the whole batch, so the result does not depend on the number of devices but for
    rounding.
    """
    task, losses = tasks.of(config), tasks.objective(config, class_weights)
    change = own.resolve("augment.own", config.augment.own) if config.augment.own else None

    def judge(outputs, targets, taught):
        loss = losses.hard(outputs, targets)
        if taught is None:
            return loss
        return distill.mix(loss, losses.soft(outputs, taught, targets), config.distillation)

    def objective(params, state, images, aims):
        variables = dict(params=params, batch_stats=state.batch_stats)
        outputs, batch_stats = forward(variables, images, key_of(state.key, "dropout", state.step))
        return sum(aim.part * judge(outputs, aim.targets, aim.taught) for aim in aims), (outputs, batch_stats)

    def look(state, pixels, targets, index, guide):
        """Augmented images, and what they are judged by: their moved targets, and the teacher's outputs of them."""
        images, size, kept = data.to_float(pixels), pixels.shape[1:3], bool(guide) and "outputs" in guide
        if kept:
            images, moves = distill.fixed_view(images, index, guide["view"], config.augment)
        else:
            images, moves = augment.augment(key_of(state.key, "augment", state.step), images, config.augment)
        targets, part = task.move(targets, moves, size, config), 1.0
        if change and not kept:
            images, targets = change(key_of(state.key, "augment.own", state.step), images, targets)
        if mix:
            images, part = mix(key_of(state.key, "mix", state.step), state.step, images)
        taught = jax.tree.map(lambda x: x[index], guide["outputs"]) if kept else None
        if guide and not kept:
            taught = teacher(guide["variables"], images)
        return images, mixing.aims(part, targets, taught, kept) if mix else [mixing.Aim(part, targets, taught)]

    @partial(jax.jit, donate_argnums=0, out_shardings=over_devices())
    def step(state, train, order, start, guide=None):
        index = jax.lax.dynamic_slice_in_dim(order, start, config.batch_size)
        index = jax.lax.with_sharding_constraint(index, over_devices("batch"))
        targets = jax.tree.map(lambda x: x[index], train.targets)
        with jax.named_scope("images"):  # names for profiles
            pixels = train.images if isinstance(train, Batch) else train.images[index]
            images, aims = look(state, pixels, targets, index, guide)
        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, (outputs, batch_stats)), grads = gradient(state.params, state, images, aims)
        with jax.named_scope("optimizer"):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        figures = dict(loss=loss, progress=task.progress(outputs, aims[0].targets))
        return TrainState(state.step + 1, params, batch_stats, opt_state, state.key), figures

    return step


def make_evaluate(config: ConfigDict, forward: Callable, split: data.Split) -> Callable[[TrainState], dict[str, float]]:
    """`evaluate(state)` to val_loss, val_score and val_NAME of each of the task's metrics; {} for an empty split.

    val_loss is the hard loss without label smoothing, each image counted alike.
    """
    n = len(split.images)
    if n == 0:
        return lambda state: {}
    task, plain = tasks.of(config), config.copy_and_resolve_references()
    with plain.unlocked():
        plain.loss.label_smoothing = 0.0
    hard = tasks.objective(plain).hard
    devices = jax.device_count()
    size = min(-(-n // devices), EVAL_BATCH) * devices

    def read(start):
        part = split.images[start : start + size]
        return on_devices(np.pad(part, ((0, size - len(part)), (0, 0), (0, 0), (0, 0))), "batch")

    starts = range(0, n, size)
    kept = None if isinstance(split.images, Rows) else list(map(read, starts))
    score = next(iter(task.METRICS))

    @partial(jax.jit, out_shardings=over_devices())
    def answer(variables, images):
        return forward(variables, data.to_float(images))[0]

    def evaluate(state):
        if kept is None:  # one after the other: together their images may be more than the memory
            batches = [jax.device_get(answer(variables_of(state), read(start))) for start in starts]
        else:
            batches = jax.device_get([answer(variables_of(state), x) for x in kept])
        outputs = jax.tree.map(lambda *parts: np.concatenate(parts)[:n], *batches)
        found = task.metrics(outputs, split.targets)
        return dict(val_loss=float(hard(outputs, split.targets)), val_score=found[score]) | {
            f"val_{name}": value for name, value in found.items()
        }

    return evaluate


def make_optimizer(
    config: ConfigDict, stage: Stage, params: dict, masks: pruning.Masks | None = None
) -> optax.GradientTransformation:
    """The stage's optimiser; wrapped in `prune` in the prune stage, and where there are masks, which it keeps.

    Raises:
      UserError: patterns of the config match no parameter, or leave none to prune.
    """
    steps = stage.end - stage.first
    optimizer = optimizers.create(stage.config, steps)
    if stage.name == "quantize":
        optimizer = qat.make_optimizer(optimizer, stage.config, steps)
    if config.trainable:
        optimizer = optimizers.only(optimizer, params, config.trainable)
    if stage.config.average:
        optimizer = optimizers.averaged(optimizer, stage.config.average)
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

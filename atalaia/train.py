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
from ml_collections import ConfigDict, config_flags

from atalaia import (
    augment,
    checkpoint,
    cli,
    data,
    layers,
    ledger,
    losses,
    metrics,
    models,
    optimizers,
    pruning,
)
from atalaia import config as configs
from atalaia.errors import UserError
from atalaia.progress import Progress

EVAL_BATCH = 500


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
    dataset = data.load(config.data, cache)
    plan = make_plan(config, len(dataset.train.labels))
    model = models.create(config.model, len(dataset.class_names))
    state = init_state(config, model, dataset.train.images.shape[1:])
    if "prune" in config.stages:
        pruning.targets(state.params, config.prune)  # a pattern that matches nothing fails now, not after hours
    configs.claim(config, workdir)
    _print_summary(config, model, state, dataset)

    manager = checkpoint.open_folder(workdir, keep=[stage.end for stage in plan])
    state, seconds = restore(manager, config, plan, state)
    clock = time.monotonic() - seconds
    if state.step:
        print(f"going on from step {state.step} of {plan[-1].end}", flush=True)
    with metrics.Writer(workdir, int(state.step)) as writer, _StopSignal() as stop:
        for stage in plan:
            if int(state.step) < stage.end:
                optimizer = make_optimizer(config, stage, state.params, pruning.masks_of(state.opt_state))
                if int(state.step) == stage.first:
                    state = state._replace(opt_state=optimizer.init(state.params))
                state = run_stage(config, stage, state, model, optimizer, dataset, writer, manager, stop, clock)
                _finish_stage(workdir, stage, state, manager)
    return _finish(config, workdir, plan, clock)


def run_stage(
    config: ConfigDict,
    stage: Stage,
    state: TrainState,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    dataset: data.Dataset,
    writer: metrics.Writer,
    manager: checkpoint.Manager,
    stop: Callable[[], bool],
    clock: float,
) -> TrainState:
    """The steps of one stage that are left, with looks at the validation split and checkpoints on the way."""
    train = jax.device_put(dataset.train)
    epoch_steps = len(dataset.train.labels) // config.batch_size
    eval_steps = max(1, round(config.eval_epochs * epoch_steps))
    step_fn = make_step(config, model, optimizer)
    evaluate = make_evaluate(model, dataset.validation)
    shuffle = jax.jit(lambda epoch: _shuffled(state_key, stage.first + epoch, len(dataset.train.labels)))
    rate = optimizers.learning_rate(stage.config, stage.end - stage.first)
    state_key, window, epoch, saved = jnp.array(state.key), [], None, time.monotonic()

    done = int(state.step) - stage.first
    with Progress(stage.name, stage.end - stage.first, "images", config.batch_size, done) as progress:
        for step in range(int(state.step), stage.end):
            if epoch != (epoch := (step - stage.first) // epoch_steps):
                order = shuffle(epoch)
            start = (step - stage.first) % epoch_steps * config.batch_size
            state, figures = step_fn(state, train, order, start)
            window.append(figures)
            _refuse_nan(config, stage, step, window)
            progress.update(1)

            last, stopped = step + 1 == stage.end, stop()
            due = time.monotonic() - saved > config.checkpoint_seconds
            if (step + 1) % config.log_steps == 0 or last or stopped or due:
                row = _mean(config, stage, step, window)
                progress.update(0, **row)
                where = dict(step=step + 1, stage=stage.name, epoch=(step + 1 - stage.first) / epoch_steps)
                speed = dict(learning_rate=float(rate(step - stage.first)), images_per_s=progress.rate)
                writer.write({**where, **row, **speed})
                window = []
            if (step + 1 - stage.first) % eval_steps == 0 or last:
                row = evaluate(state.params, state.batch_stats)
                progress.update(0, **row)
                writer.write(dict(step=step + 1, stage=stage.name, **row))
            if last or stopped or due:
                meta = dict(stage=stage.name, seconds=time.monotonic() - clock)
                checkpoint.save(manager, step + 1, state, meta)
                saved = time.monotonic()
            if stopped:
                raise KeyboardInterrupt
    return state


def make_step(config: ConfigDict, model: nn.Module, optimizer: optax.GradientTransformation):
    """The training step: `step(state, train, order, start)` to (state, {loss, accuracy}); the old state is given up.

    It takes the images that `order` (int32 `[n]`) names from `start` on, out of a data.Split on the device.
    """
    loss_of = losses.LOSSES[config.loss.name]

    def objective(params, state, images, labels):
        variables = dict(params=params, batch_stats=state.batch_stats)
        rngs = dict(dropout=_key(state.key, "dropout", state.step))
        logits, updated = model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)
        return loss_of(logits, labels, config.loss), (logits, updated.get("batch_stats", {}))

    @partial(jax.jit, donate_argnums=0)
    def step(state, train, order, start):
        index = jax.lax.dynamic_slice_in_dim(order, start, config.batch_size)
        labels = train.labels[index]
        images = augment.augment(
            _key(state.key, "augment", state.step), data.to_float(train.images[index]), config.augment
        )
        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, (logits, batch_stats)), grads = gradient(state.params, state, images, labels)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        figures = dict(loss=loss, accuracy=jnp.mean(logits.argmax(-1) == labels))
        return TrainState(state.step + 1, params, batch_stats, opt_state, state.key), figures

    return step


def make_evaluate(model: nn.Module, split: data.Split) -> Callable[[dict, dict], dict[str, float]]:
    """`evaluate(params, batch_stats)` to validation loss and accuracy over a whole split; {} for an empty one."""
    n = len(split.labels)
    if n == 0:
        return lambda params, batch_stats: {}
    size = min(n, EVAL_BATCH)
    padding = -n % size
    images = jnp.pad(split.images, ((0, padding), (0, 0), (0, 0), (0, 0))).reshape(-1, size, *split.images.shape[1:])
    labels = jnp.pad(split.labels, (0, padding), constant_values=-1).reshape(-1, size)

    @jax.jit
    def sums(variables, images, labels):
        logits = model.apply(variables, data.to_float(images))
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return jnp.sum(loss * (labels >= 0)), jnp.sum(logits.argmax(-1) == labels)

    def evaluate(params, batch_stats):
        variables = dict(params=params, batch_stats=batch_stats)
        loss, correct = np.sum(jax.device_get([sums(variables, x, y) for x, y in zip(images, labels, strict=True)]), 0)
        return dict(val_loss=float(loss) / n, val_accuracy=float(correct) / n)

    return evaluate


def make_plan(config: ConfigDict, images: int) -> list[Stage]:
    """The stages with their first and last steps, from epochs or steps and the number of training images."""
    if images < config.batch_size:
        raise UserError(f"batch_size {config.batch_size} is more than the {images} training images: make it smaller")
    plan, first = [], 0
    for name in config.stages:
        stage = config[name]
        steps = stage.steps or max(1, round(stage.epochs * (images // config.batch_size)))
        plan.append(Stage(name, stage, first, first + steps))
        first += steps
    return plan


def make_optimizer(
    config: ConfigDict, stage: Stage, params: dict, masks: pruning.Masks | None = None
) -> optax.GradientTransformation:
    """The stage's optimiser; wrapped in `prune` in the prune stage, and with its masks frozen in those after it."""
    steps = stage.end - stage.first
    inner = optimizers.create(stage.config, steps)
    so_far = list(config.stages)[: list(config.stages).index(stage.name) + 1]
    if "prune" not in so_far:
        return inner
    sparsity, shared = pruning.targets(params, config.prune)
    pruning_now = stage.name == "prune"
    schedule = pruning.SCHEDULES[config.prune.schedule](config.prune, steps) if pruning_now else pruning.FROZEN
    return pruning.prune(inner, sparsity, schedule, shared, masks)


def init_state(config: ConfigDict, model: nn.Module, input_shape: tuple[int, ...]) -> TrainState:
    """New weights; the optimiser's state is the first stage's affair."""
    key = jax.random.PRNGKey(config.seed)
    variables = jax.jit(model.init)(_key(key, "init", 0), jnp.zeros((1, *input_shape)))
    return TrainState(jnp.zeros([], jnp.int32), variables["params"], variables.get("batch_stats", {}), (), key)


def restore(
    manager: checkpoint.Manager, config: ConfigDict, plan: list[Stage], state: TrainState, step: int | None = None
) -> tuple[TrainState, float]:
    """The latest checkpoint, or that of `step`, and the seconds it took so far; `state` where there is none."""

    def template(meta):
        stage = next(s for s in plan if s.name == meta["stage"])
        optimizer = make_optimizer(config, stage, state.params)
        return jax.eval_shape(lambda s: s._replace(opt_state=optimizer.init(s.params)), state)

    found = checkpoint.restore(manager, template, step)
    if found is None:
        return state, 0.0
    restored, meta = found
    return jax.device_put(restored), meta["seconds"]


def load_trained(config: ConfigDict, workdir: Path, dataset: data.Dataset) -> tuple[nn.Module, dict]:
    """The network of a finished run and its params and batch_stats.

    Raises:
      UserError: the run is not finished, or its checkpoint is damaged.
    """
    model = models.create(config.model, len(dataset.class_names))
    plan = make_plan(config, len(dataset.train.labels))
    manager = checkpoint.open_folder(workdir, keep=[stage.end for stage in plan])
    if plan[-1].end not in manager.all_steps():
        raise UserError(f"the run in {workdir} is not finished: give the same atalaia.train command again")
    state, _ = restore(manager, config, plan, init_state(config, model, dataset.train.images.shape[1:]), plan[-1].end)
    return model, dict(params=state.params, batch_stats=state.batch_stats)


def _key(key, name, step):
    """The key of one use of randomness in one step."""
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), step)


def _shuffled(key, epoch, n):
    return jax.random.permutation(_key(key, "order", epoch), n)


def _refuse_nan(config, stage, step, window):
    """Looks at the figures of the step before, so that the device never waits for us."""
    if len(window) > 1 and not np.isfinite(window[-2]["loss"]):
        _nan(config, stage, step - 1)


def _mean(config, stage, step, window):
    """Mean figures of a window of steps."""
    means = {k: float(np.mean([w[k] for w in jax.device_get(window)])) for k in window[0]}
    if not np.isfinite(means["loss"]):
        _nan(config, stage, step)
    return means


def _nan(config, stage, step):
    raise UserError(
        f"loss {config.loss.name!r} became NaN or infinite at step {step + 1} (stage {stage.name}): "
        f"try a smaller {stage.name}.learning_rate than {stage.config.learning_rate}, in another --workdir"
    )


def _print_summary(config, model, state, dataset):
    variables = dict(params=state.params, batch_stats=state.batch_stats)
    _, table = layers.summary(model, variables, dataset.train.images.shape[1:])
    counts = ", ".join(f"{len(split.labels):,} {name}" for name, split in dataset._asdict().items() if _is_split(split))
    print(f"model {config.model}, data {dataset.name}: {counts} images\n{table}", flush=True)


def _is_split(value):
    return isinstance(value, data.Split)


def _finish_stage(workdir, stage, state, manager):
    variables = dict(params=state.params, batch_stats=state.batch_stats)
    ledger.add_stage(workdir, stage.name, variables, checkpoint.folder_bytes(manager, stage.end))
    masks = pruning.masks_of(state.opt_state)
    if masks is not None:
        reached, table = pruning.report(state.params, masks)
        configs.write_whole(Path(workdir) / "sparsity.json", json.dumps(reached, indent=2) + "\n")
        print(f"sparsity after {stage.name}\n{table}", flush=True)


def _finish(config, workdir, plan, clock):
    summary = dict(
        steps=plan[-1].end,
        seconds=round(time.monotonic() - clock, 1),
        peak_memory_bytes=metrics.peak_memory_bytes(),
        seed=config.seed,
        validation=metrics.last(workdir, "val_accuracy"),
    )
    path = Path(workdir) / "train.json"
    if not path.exists():  # a second call of a finished run changes nothing
        configs.write_whole(path, json.dumps(summary, indent=2) + "\n")
    print(f"trained: {workdir} (metrics.jsonl, tensorboard, checkpoints, ledger.json)", flush=True)
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
    cli.run(main)

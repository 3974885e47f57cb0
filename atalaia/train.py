"""Trains a network through the stages of a config, each from where the one before it ended.

python -m atalaia.train --config=configs/cifar10.py --workdir=runs/cifar10 [--config.prune.sparsity=0.9 ...]

The run folder gets config.json, checkpoints/, metrics.jsonl, tensorboard/, ledger.json and train.json. A run that was
stopped in any way goes on when the same command is given again, and ends with the same bytes in every array.
"""

import contextlib
import json
import signal
import threading
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from atalaia import (
    api,
    bits,
    channels,
    checkpoint,
    cli,
    data,
    feed,
    finished,
    int8_layers,
    layers,
    ledger,
    metrics,
    mixing,
    optimizers,
    own,
    pretrained,
    processes,
    pruning,
    shrink,
    step,
    tasks,
    teachers,
)
from atalaia import config as configs
from atalaia.errors import Diverged, UserError
from atalaia.files import locked, write_json
from atalaia.plan import IMAGES, Run, Stage, image_counts, make_plan, next_end, refuse_other_source, refuse_uneven
from atalaia.progress import Progress
from atalaia.step import TrainState, variables_of


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
    initial = state = step.init_state(config, model, dataset.train.images.shape[1:])
    if config.start_from and not saved:
        state = finished.start_from(config, state)
    elif config.pretrained and not saved:
        params, batch_stats = pretrained.load(config.pretrained, state.params, state.batch_stats, cache)
        state = state._replace(params=params, batch_stats=batch_stats)
    with _claimed(config, Path(workdir)):
        now = channels.fitted(model, initial.params, state.params)
        print(_summary(config, now, state, dataset), flush=True)
        return _run_plan(config, workdir, cache, dataset, plan, model, initial, state)


@contextlib.contextmanager
def _claimed(config, workdir):
    """Inside, the run folder is this run's; of its processes, the first has it for all."""
    workdir.mkdir(parents=True, exist_ok=True)
    waiting = f"another process trains in {workdir}: waiting for it"
    with contextlib.ExitStack() as stack:
        if processes.first():
            stack.enter_context(locked(workdir / "lock", lambda: print(waiting, flush=True)))
            configs.refuse_other_run(config, workdir)  # the other process may have begun one
            configs.claim(config, workdir)
        processes.wait_for_all("begin")
        configs.refuse_unshared(config, workdir)
        yield


def prepare(config: ConfigDict, dataset: data.Dataset, saved: int = 0) -> tuple[nn.Module, list[Stage]]:
    """The network and the plan of a valid config on a data set.

    What a stage would fail at is refused now, not after hours; stages that end at step `saved` or before are done.

    Raises:
      UserError: a field does not fit the data or the network, or a run that it names is not there, or does not fit.
    """
    plan = make_plan(config, *image_counts(dataset))
    refuse_uneven(config)
    model, shape = finished.create_model(config, dataset), dataset.train.images.shape[1:]
    if "quantize" in config.stages or not getattr(model, "float_only", False):
        int8_layers.require_int8(model, shape)
    shapes = step.state_shapes(config, model, shape)
    outputs = finished.output_shapes(model, shapes, dataset)
    _refuse_other_outputs(config, outputs, dataset)
    if config.start_from and not saved:
        finished.refuse_other_start(config, shapes)
    for stage in plan:
        if stage.name == "shrink":
            shrink.refuse_impossible(model, shapes.params, shape, config.shrink, shrink.weight_bits(model, config))
        if stage.name == "quantize":
            bits.refuse_impossible(config, model, shapes.params, shape)
        step.make_optimizer(config, stage, finished.zeros_of(config, model, shapes, stage.name).params)
        if saved < stage.end:
            teachers.refuse_unfit(config, stage, dataset, outputs)
    return model, plan


def _refuse_other_outputs(config, found, dataset):
    """A network whose first field is not its number of outputs would be trained for nothing."""
    needed = tasks.of(config).outputs(dataset, config)
    if hasattr(found, "shape") and found.shape[-1] != needed:
        raise UserError(
            f"model: {config.model} has {found.shape[-1]} outputs where {needed} are needed: their number must be its "
            "first field"
        )


def _run_plan(config, workdir, cache, dataset, plan, model, initial, state):
    """The stages from the last checkpoint on, or from `state`; `initial` has the shapes of the network's code."""
    manager = checkpoint.open_folder(workdir, keep=[stage.end for stage in plan])
    saved, meta = finished.restore(manager, config, model, initial)
    state = saved if meta else state
    if state.step:
        print(f"going on from step {state.step} of {plan[-1].end}", flush=True)
    writer = metrics.Writer(workdir, int(state.step)) if processes.first() else metrics.Silent()
    with writer, _StopSignal() as stop:
        clock = time.monotonic() - meta.get("seconds", 0.0)
        sources = meta.get("sources", {})
        run = Run(config, workdir, model, initial, dataset, cache, plan, manager, writer, stop, clock, sources)
        if state.step < plan[-1].end:
            refuse_other_source(run, IMAGES, (dataset.train, dataset.validation, dataset.unlabelled))
            if config.start_from and not meta:  # a run that goes on has what it needs of it
                refuse_other_source(run, f"weights of the run in {config.start_from}", variables_of(state))
        for stage in plan:
            while int(state.step) < stage.end:
                state = run_stage(run, stage, state)
            _finish_stage(run, stage, state)
    return _finish(run)


def run_stage(run: Run, stage: Stage, state: TrainState) -> TrainState:
    """The steps of one stage that are left, with looks at the validation split and checkpoints on the way.

    Where channels go in the middle of it, those before that.
    """
    config, split = run.config, step.training_split(run.dataset, run.config, stage)
    n, images = len(split.images), feed.make_feed(split, config.batch_size)
    optimizer, state = _enter_stage(run, stage, state)
    end, model = next_end(stage, int(state.step)), channels.fitted(run.model, run.initial.params, state.params)
    forward = step.make_forward(config, model, stage)
    guide = teachers.make_guide(run, stage, split.images)
    weights, mix = step.class_weights(run.dataset, config), mixing.make(config.mix, stage.first, stage.end)
    step_fn = step.make_step(config, forward, optimizer, guide.outputs, weights, mix)
    evaluate = step.make_evaluate(config, forward, run.dataset.validation)
    rate = optimizers.learning_rate(stage.config, stage.end - stage.first)
    epoch_steps = n // config.batch_size
    eval_steps = max(1, round(config.eval_epochs * epoch_steps))
    balanced = images.targets if config.data.balance == "sampling" else None
    order, window, since, saved = None, [], time.monotonic(), time.monotonic()
    wishes = processes.Wishes()

    with Progress(
        stage.name, stage.end - stage.first, "images", config.batch_size, int(state.step) - stage.first
    ) as bar:
        for number in range(int(state.step), end):
            epoch, place = divmod(number - stage.first, epoch_steps)
            if order is None or place == 0:
                order, begun = step.epoch_order(state.key, stage.first + epoch, n, balanced), time.monotonic()
                taught = guide.of(epoch)
                since += time.monotonic() - begun  # it may have been computed now
            start = place * config.batch_size
            state, figures = step_fn(state, images.of(order, start), order, start, taught)
            window.append(figures)
            bar.update()
            if len(window) > 1:
                _refuse_nan(run, stage, number - 1, window[-2])  # one late, so that the device never waits for us

            done, last, epoch_ends = number + 1, number + 1 == end, place + 1 == epoch_steps
            stopped, due = wishes(run.stop(), time.monotonic() - saved > config.checkpoint_seconds)
            pause = epoch_ends and processes.any_of(not guide.ready(epoch + 1))
            save = last or stopped or pause or due
            look = last or (done - stage.first) % eval_steps == 0
            if done == stage.end:
                state = step.averaged(state)
            if save or look or done % config.log_steps == 0:
                row = _mean(jax.device_get(window))
                _refuse_nan(run, stage, number, row)
                row["images_per_s"] = len(window) * config.batch_size / (time.monotonic() - since)
                row["learning_rate"] = float(rate(number - stage.first))
                row |= evaluate(step.averaged(state)) if look else {}
                run.writer.write(dict(step=done, stage=stage.name, epoch=(done - stage.first) / epoch_steps) | row)
                bar.update(0, **row)
                window, since = [], time.monotonic()
            if save:
                _refuse_broken_weights(run, stage, number, state)
                _save(run, stage, done, state)
                since = saved = time.monotonic()
            if stopped:
                raise KeyboardInterrupt
    return state


def _enter_stage(run, stage, state):
    """The stage's optimiser, and the state on the devices: at the stage's beginning made ready for it."""
    state = jax.device_get(state)  # what is made ready is this process's own, until it is put on all devices
    first, whole = int(state.step) == stage.first, run.initial.params
    if int(state.step) in stage.cuts:
        left = sum(at >= int(state.step) for at in stage.cuts)
        state, table = shrink.cut(run.config, run.model, state, whole, run.dataset.train, left, len(stage.cuts))
        print(f"channels at step {state.step}\n{table}", flush=True)
    masks = pruning.masks_of(state.opt_state)
    if first and stage.name == "quantize":
        model = channels.fitted(run.model, whole, state.params)
        chosen = bits.choose(
            run.config, model, variables_of(state), run.dataset, run.workdir if processes.first() else None
        )
        state = finished.folded_state(run.config, model, state, images=run.dataset.train.images, bits=chosen)
    optimizer = step.make_optimizer(run.config, stage, state.params, masks)
    if first:
        state = state._replace(opt_state=optimizer.init(state.params))
    return optimizer, processes.on_devices(state)


def _save(run, stage, done, state):
    meta = dict(stage=stage.name, seconds=time.monotonic() - run.clock, masks=sorted(step.masks_of(state)))
    meta |= dict(widths=channels.widths(run.initial.params, state.params))
    checkpoint.save(run.manager, done, state, meta | dict(sources=run.sources))


def _mean(window):
    """Mean loss of a window of steps, and the mean of each figure of the task over what it counts."""
    row = dict(loss=float(np.mean([figures["loss"] for figures in window])))
    for name in window[0]["progress"]:
        total, count = (sum(float(figures["progress"][name][i]) for figures in window) for i in (0, 1))
        row |= {name: total / count} if count else {}
    return row


def _refuse_nan(run, stage, number, figures):
    if not np.isfinite(figures["loss"]):
        loss = repr(run.config.loss.name)
        if stage.config.get("teacher"):
            loss += f" mixed with {run.config.distillation.loss!r}"
        raise Diverged(
            f"loss {loss} became NaN or infinite at step {number + 1} (stage {stage.name}): try a "
            f"smaller {stage.name}.learning_rate than {stage.config.learning_rate}, in another --workdir"
        )


def _refuse_broken_weights(run, stage, number, state):
    """A finite loss can have an infinite gradient; such weights are never saved."""
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state.params))):
        _refuse_nan(run, stage, number, dict(loss=np.nan))


def _summary(config, model, state, dataset):
    if own.is_own(config.model) and getattr(model, "float_only", False):  # it may call what is no layer of ours
        table = f"{sum(x.size for x in jax.tree.leaves(state.params)):,} parameters; no int8 form"
    else:
        _, table = layers.summary(model, variables_of(state), dataset.train.images.shape[1:])
    splits = ("train", "validation", "test")
    counts = ", ".join(f"{len(getattr(dataset, split).images):,} {split}" for split in splits)
    return f"task {config.task}, model {own.title(config.model)}, data {dataset.name}: {counts} images\n{table}"


def _finish_stage(run, stage, state):
    """Enters a stage into the ledger, if a call that was killed at its end has not yet; shows the sparsity reached."""
    if stage.name in ledger.stages(run.workdir):
        return
    if int(state.step) != stage.end:
        state, _ = finished.restore(run.manager, run.config, run.model, run.initial, stage.end)
    if not processes.first():
        return
    masks = step.masks_of(state)
    if masks:
        reached, table = pruning.report(state.params, masks)
        write_json(Path(run.workdir) / "sparsity.json", reached)
        print(f"sparsity after {stage.name}\n{table}", flush=True)
    if stage.name == "shrink":
        write_json(Path(run.workdir) / "channels.json", shrink.report(run.initial.params, state.params))
    ledger.add_stage(run.workdir, stage.name, variables_of(state), checkpoint.folder_bytes(run.manager, stage.end))


def _finish(run):
    """Writes train.json, once."""
    path = Path(run.workdir) / "train.json"
    if processes.first() and not path.exists():
        looked = _validation(run.workdir)
        summary = dict(
            steps=run.plan[-1].end,
            seconds=round(time.monotonic() - run.clock, 1),
            peak_memory_bytes=metrics.peak_memory_bytes(),
            dataset=run.dataset.name,
            task=run.config.task,
            names=list(run.dataset.names),
            image_shape=list(run.dataset.train.images.shape[1:]),
            seed=run.config.seed,
            device=jax.devices()[0].device_kind,
            processes=jax.process_count(),
            jax=jax.__version__,
            precision=jax.config.jax_default_matmul_precision,
            sources=run.sources,
            val_score=looked.get("score"),
            validation=looked,
        )
        write_json(path, summary)
    processes.wait_for_all("end")
    print(f"trained: {run.workdir} (metrics.jsonl, tensorboard, checkpoints, ledger.json)", flush=True)
    return json.loads(path.read_text())


def _validation(workdir):
    """The figures of the last look at the validation split, by name; {} where there was none."""
    row = next((row for row in reversed(metrics.rows(workdir)) if "val_score" in row), {})
    return {name.removeprefix("val_"): value for name, value in row.items() if name.startswith("val_")}


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
    processes.join()
    train_and_evaluate(config, cli.workdir(), cli.cache())


api.make_callable(__name__)

if __name__ == "__main__":
    cli.common_flags()
    processes.define_flags()
    config_flags.DEFINE_config_file("config", help_string="The experiment: a file of configs/.")
    cli.run(main, goes_on=True)

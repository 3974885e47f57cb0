"""One trial of a search: what it is judged by, what is refused before it, its training and its C's estimate."""

import difflib
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from atalaia import config as configs
from atalaia import data, goals, halving, metrics, plan, runs, tasks, tflite, train
from atalaia import space as spaces
from atalaia.errors import Diverged, UserError
from atalaia.executors import INTERRUPTED, Executor, finish

# What a trial can be judged by; -1: the smaller, the better.
METRICS = {"val_score": 1, "val_loss": -1} | {
    f"val_{name}": metric.sign for task in tasks.TASKS.values() for name, metric in task.METRICS.items() if metric.sign
}
LIMITS = {  # name: unit, and the figure of codegen's report
    "bytes": ("bytes of constants", lambda made: made["weight_bytes"]),
    "arena": ("bytes of arena", lambda made: made["arena_bytes"]),
    "ms": ("ms on an ESP32, estimated", lambda made: made["estimated"]["esp32"]["milliseconds"][1]),
}


class Search(NamedTuple):
    """What is searched: two searches are the same where all of this is."""

    config: str  # the recipe's file
    space: spaces.Space
    seed: int = 0
    metric: str = "val_score"
    limits: Mapping[str, float] = {}
    cost: str = ""  # what a trial costs, beside the metric: one of goals.COSTS; "": the metric alone counts
    halving: int = 0  # one in so many trials goes on beyond each rung of atalaia/halving.py; 0: all do


def train_trial(
    search: Search,
    check: Callable[[spaces.Point], int],
    arguments: Sequence[str],
    executor: Executor,
    point: spaces.Point,
    folder: Path,
    stop: threading.Event,
    least: Sequence[float | None] = (),
) -> dict:
    """The objective of the command: trains the point's run, and where there are limits exports it and estimates them.

    Args:
      search: what is searched; check: see `make_check`; what it refuses is the point's result.
      arguments: flags of atalaia.train that all trials share.
      executor: where it runs.
      point, folder, stop: see `run`.
      least: with halving, what it needs at each rung to go on.
    """
    try:
        steps = check(point)
    except UserError as error:
        return dict(value=None, refused=str(error))
    call = partial(_call, executor, folder, stop)
    data_dir = [a for a in arguments if a.startswith("--data_dir=")]
    early = partial(_ended_early, search, folder, steps, least)
    if not early():  # else a search that goes on would train it a little further
        flags = [f"--config={search.config}", *arguments, *runs.override_flags(point)]
        if not call("train", flags, lambda: bool(early())) and not early():
            return dict(value=None)
    if ended := early():
        return ended
    value = metrics.last(folder, search.metric)
    if value is None:
        raise UserError(f"{folder} has no {search.metric}: give data.validation a part of the images")
    done = json.loads((folder / "train.json").read_text())
    if not math.isfinite(value):
        value = None
    found = dict(value=value, seconds=done["seconds"], data=done["dataset"], sources=done.get("sources", {}))
    if search.halving:
        found["rungs"] = halving.reached(folder, search.metric, steps, search.halving)
    wanted = [*search.limits, *([goals.COSTS[search.cost]] if search.cost else [])]
    if wanted and value is not None:
        from atalaia.codegen import __main__ as codegen

        if not (folder / "export.json").is_file():  # what export writes last
            call("export", data_dir)
        prefer = "speed" if "ms" in wanted else "balanced"
        content, flash = tflite.load(folder / "model.tflite"), search.limits.get("bytes")
        made = codegen.report(content, prefer=prefer, flash=flash)
        found["figures"] = {name: LIMITS[name][1](made) for name in wanted}
    return found


def _ended_early(search, folder, steps, least):
    """The result of a trial that was too bad at a rung, by its metrics.jsonl; {} of one that goes on, or has ended."""
    if not search.halving:
        return {}
    values = halving.reached(folder, search.metric, steps, search.halving)
    rung = halving.ends_at(values, least, METRICS[search.metric])
    if rung is None:
        return {}
    value = values[rung] if math.isfinite(values[rung]) else None
    return dict(value=value, ended=1 / halving.parts(search.halving)[rung], rungs=values[: rung + 1])


def _call(executor, folder, stop, step, arguments, enough=lambda: False):
    """One step of a trial, what it says in the trial's log; False where training diverged."""
    code = finish(executor.submit(runs.command(step, folder, arguments), folder), stop, enough)
    if code not in (0, INTERRUPTED, Diverged.code):
        raise UserError(runs.failure(step, folder, code))
    return code != Diverged.code


def validate(search: Search, config: ConfigDict, check: Callable[[spaces.Point], int], trials: int) -> None:
    """Refuses what some trial would fail at: each end of each field is tried on the config.

    Args:
      search: what is searched; config: its config; check: refuses a point that cannot be trained.
      trials: in all.

    Raises:
      UserError: names the flag or the field, what is wrong, and what is allowed.
    """
    if search.halving not in (0, *range(2, 11)):
        raise UserError(f"--halving must be from 2 to 10, or 0 for none, not {search.halving}")
    if trials < 1:
        raise UserError(f"--trials must be at least 1, not {trials}")
    allowed = [
        "val_score",
        "val_loss",
        *(f"val_{name}" for name, metric in tasks.of(config).METRICS.items() if metric.sign),
    ]
    if search.metric not in allowed:
        raise UserError(f"no metric {search.metric!r}: a search of task {config.task} looks at {' or '.join(allowed)}")
    for name, limit in search.limits.items():
        if not 0 < limit < math.inf:
            raise UserError(f"--max_{name} must be above 0, not {limit}")
    configs.validate(config)
    if not config.data.validation:
        raise UserError("data.validation is 0, so there is no validation split to judge a trial by")
    fields = dict(_fields(config))
    for field, spec in search.space.items():
        if field not in fields:
            near = difflib.get_close_matches(field, fields, n=1, cutoff=0.4)
            raise UserError(f"the config has no field {field!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        _refuse_other_type(field, spec, type(fields[field]))
        _refuse_other_judges(field)
        _refuse_unused(field, search.space, config)
        for value in spaces.ends(spec):
            check({field: value})
    if trials > spaces.size(search.space):
        raise UserError(
            f"--trials={trials}, but the space has {spaces.size(search.space)} points: give as many at most"
        )


def _refuse_other_type(field, spec, kind):
    if field == "data.size":
        return  # a side, or "height,width": training says what is wrong with a value
    for value in spaces.ends(spec):
        if not (type(value) is kind or (kind is float and type(value) is int)):
            raise UserError(f"{field} is of type {kind.__name__}, so {value!r} cannot be one of its values")
    if kind is int and not spec.values and not spec.integer:
        raise UserError(f"{field} is a whole number: write integers({spec.low}, {spec.high}) instead of uniform")


def _refuse_other_judges(field):
    if field.startswith("data.") and field.removeprefix("data.") in ("name", "path", *plan.SPLIT):
        raise UserError(f"{field} decides which images judge a trial: give all trials one, by --config.{field}=VALUE")


def _refuse_unused(field, space, config):
    """A field of a stage that no trial has, or of teachers where there are none: all trials would be one."""
    if "stages" in space:
        return
    part, stages = field.partition(".")[0], tuple(config.stages)
    if part in configs.STAGES and part not in stages:
        raise UserError(f"{field} changes nothing: the config's stages are {stages}")
    taught = any(config[stage].get("teacher") or f"{stage}.teacher" in space for stage in stages)
    if (part == "distillation" or field == "data.unlabelled") and not taught:
        raise UserError(f"{field} changes nothing: no stage of the config has a teacher, such as distill.teacher")


def _fields(config, prefix=""):
    """Every field of a config with its dots, and its value."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def make_check(file: str, overrides: Mapping[str, Any], cache: Path) -> Callable[[spaces.Point], int]:
    """`check(point)` gives a run's steps, or raises the UserError that atalaia.train would stop with before it trains.

    Args:
      file: the config's; overrides: its fields that all trials share; cache: where data sets are kept.
    """
    held: dict[str, data.Dataset] = {}  # the data set of the point before, by its fields

    def check(point):
        config = runs.check(file, {**overrides, **point})
        fields = config.data.to_json()
        dataset = held.get(fields)
        if dataset is None:
            dataset = data.load(config.data, cache)
            held.clear()
            held[fields] = dataset
        return train.prepare(config, dataset)[1][-1].end

    return check

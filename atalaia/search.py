"""Bayesian optimisation over any fields of a config, each trial a run folder.

python -m atalaia.search --config=configs/x.py --space=configs/search_kd.py --workdir=runs/search --trials=20
    [--parallel=2] [--seed=0] [--metric=val_score] [--max_bytes=N --max_arena=N --max_ms=X] [--config.FIELD=VALUE]

The folder gets search.json, search.md, search.png, and trial_000/ and so on with their logs. The test set is never
looked at. Limits are those of codegen's static estimate: bytes of constants in flash, bytes of the arena, and the upper
end of the ESP32's milliseconds. A search that was stopped in any way goes on when the same command is given again and
tries the points that it would have tried.
"""

import contextlib
import difflib
import json
import math
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from atalaia import cli, data, files, metrics, pictures, plan, runs, tasks, tflite, train
from atalaia import config as configs
from atalaia import space as spaces
from atalaia.errors import Diverged, UserError
from atalaia.files import write_json, write_whole
from atalaia.progress import Progress

# What a trial can be judged by; -1: the smaller, the better.
METRICS = {"val_score": 1, "val_loss": -1} | {
    f"val_{name}": metric.sign for task in tasks.TASKS.values() for name, metric in task.METRICS.items()
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


Objective = Callable[[spaces.Point, Path, threading.Event], dict]


def run(search: Search, workdir: Path, trials: int, parallel: int, objective: Objective) -> list[dict]:
    """Tries points until there are `trials` results, and returns a row each: `trial, point, known` and what was found.

    A trial is proposed once all but the `parallel - 1` before it are done, and from their results alone, whatever else
    is known by then: so the points do not depend on which trial ends first, nor on when a search was killed.

    Args:
      search: what is searched.
      workdir: its folder, which is made, or goes on.
      trials: results wanted in all.
      parallel: trials at once.
      objective: (point, the trial's folder, whether to stop) to `value` (None: it has none, by divergence, or as
        `refused` says), `seconds`, `sources` as train.json has them, and `figures` by limit. A trial that is given
        again goes on where it was.

    Raises:
      UserError: see `read`; or a trial had other images, or another teacher, than those before it.
    """
    rows = read(search, workdir)
    Path(workdir).mkdir(parents=True, exist_ok=True)
    stop, running = threading.Event(), {}
    done = sum("value" in row for row in rows[:trials])
    with ThreadPoolExecutor(parallel) as pool, Progress("search", trials, "trials", initial=done) as bar:
        try:
            while (first := _finished(rows)) < trials:
                for number in range(first, min(first + parallel, trials)):
                    if number == len(rows):
                        rows.append(_proposed(search, rows, parallel))
                        _save(search, workdir, rows)
                    if "value" not in rows[number] and number not in running.values():
                        point, folder = rows[number]["point"], folder_of(workdir, number)
                        bar.say(f"trial {number}: {_words(point)}  (log: {folder}.log)")
                        running[pool.submit(objective, point, folder, stop)] = number
                for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                    row = rows[running.pop(future)]
                    found = future.result()
                    _refuse_other_source(workdir, rows, row["trial"], found)
                    row |= found
                    _save(search, workdir, rows)
                    _publish(search, workdir, rows)
                    bar.say(f"trial {row['trial']}: {_outcome(search, row)}")
                    bar.update(1, **_best_figure(search, rows))
                bar.update(0)
        except BaseException:
            stop.set()
            raise
    _publish(search, workdir, rows)
    return rows


def _refuse_other_source(workdir, rows, trial, found):
    """Trials are compared, so they have the same images and teachers: paths do not tell that these were replaced."""

    def images(row):
        return {field: value for field, value in row["point"].items() if field.startswith("data.")}

    for row in rows:
        for what, digest in row.get("sources", {}).items():
            same = what != plan.IMAGES or images(row) == images(rows[trial])  # points may choose other images
            if same and found.get("sources", {}).get(what, digest) != digest:
                raise UserError(
                    f"trial {trial} had other {what} than trial {row['trial']}: put the old ones back and delete "
                    f"{folder_of(workdir, trial)} and the unfinished trials beside it, or search in another --workdir"
                )


def folder_of(workdir: Path, trial: int) -> Path:
    """The run folder of a trial."""
    return Path(workdir) / f"trial_{trial:03d}"


def _finished(rows):
    """Trials that are done before the first that is not."""
    return next((i for i, row in enumerate(rows) if "value" not in row), len(rows))


def _proposed(search, rows, parallel):
    known = max(0, len(rows) - parallel + 1)
    results = [result(search, row) for row in rows[:known]]
    point = spaces.propose(search.space, search.seed, results, [row["point"] for row in rows[known:]])
    return dict(trial=len(rows), point=point, known=known)


def result(search: Search, row: dict) -> spaces.Result:
    """A finished trial as `propose` takes it."""
    value = None if row["value"] is None else METRICS[search.metric] * row["value"]
    figures = row.get("figures", {})  # of which milliseconds are rounded to tenths, down to 0
    over = tuple(math.log(max(figures[name], 0.05) / limit) for name, limit in search.limits.items()) if figures else ()
    return spaces.Result(row["point"], value, over)


def best(search: Search, rows: Sequence[dict]) -> dict | None:
    """The finished trial with the best value of those that meet the limits, the first of equal ones, or None."""
    return max((r for r in rows if _meets(search, r)), key=lambda row: result(search, row).value, default=None)


def nearest(search: Search, rows: Sequence[dict]) -> str | None:
    """Of trials that all break a limit, the one that breaks its worst limit the least, in words; None: none is done."""
    found = [(max(result(search, row).over), row) for row in rows if row.get("figures")]
    if not found:
        return None
    _, row = min(found, key=lambda pair: pair[0])
    parts = [
        f"{row['figures'][name]:,} {LIMITS[name][0]}, {100 * (row['figures'][name] / limit - 1):.1f} % above {limit:,}"
        for name, limit in search.limits.items()
        if row["figures"][name] > limit
    ]
    return f"the nearest is trial {row['trial']} ({_words(row['point'])}) with {'; '.join(parts)}"


def _identity(search):
    """What search.json says of a search, in JSON's own types."""
    space = {field: {k: v for k, v in spec._asdict().items() if v} for field, spec in search.space.items()}
    return json.loads(json.dumps(search._asdict() | dict(space=space)))


def read(search: Search, workdir: Path) -> list[dict]:
    """The rows of a search that goes on, [] of a new one.

    Raises:
      UserError: the folder holds another search, or a run, or its file is damaged.
    """
    if (Path(workdir) / "checkpoints").exists():
        raise UserError(f"{workdir} holds a run of atalaia.train: choose another --workdir")
    theirs = _saved(workdir)
    if theirs is None:
        return []
    for name, ours in _identity(search).items():
        if json.dumps(theirs.get(name)) != json.dumps(ours):  # the order of the fields counts too
            raise UserError(
                f"{workdir} holds a search with {name} {json.dumps(theirs.get(name))}, not {json.dumps(ours)}: choose "
                "another --workdir or delete that one"
            )
    return [row | dict(point=spaces.restored(search.space, row["point"])) for row in theirs["trials"]]


def load(workdir: Path, space: spaces.Space) -> tuple[Search, list[dict]]:
    """The search in a folder, whose space is this one, and its rows.

    Raises:
      UserError: there is none, or one over another space, or its file is damaged.
    """
    theirs = _saved(workdir)
    if theirs is None:
        raise UserError(f"{workdir} holds no search: run atalaia.search with that --workdir first")
    search = Search(theirs["config"], space, theirs["seed"], theirs["metric"], theirs["limits"])
    return search, read(search, workdir)


def _saved(workdir):
    """What search.json says, None where there is none."""
    path = Path(workdir) / "search.json"
    if not path.exists():
        return None
    try:
        theirs = json.loads(path.read_text())
        _ = [theirs[name] for name in (*Search._fields, "trials")]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: delete {workdir} and search again, or choose another --workdir") from None
    return theirs


def _save(search, workdir, rows):
    write_json(Path(workdir) / "search.json", _identity(search) | dict(trials=rows))


def _words(point):
    return ", ".join(f"{field}={value}" for field, value in point.items())


def _outcome(search, row):
    if row["value"] is None:
        return f"{row.get('refused', 'training became NaN')}: taken as the worst value"
    figures = "".join(f", {row['figures'][name]:,} {LIMITS[name][0]}" for name in search.limits)
    return f"{search.metric} {row['value']:.4f}{figures}"


def _best_figure(search, rows):
    found = best(search, rows)
    return dict(best=found["value"]) if found else {}


def _publish(search, workdir, rows):
    """search.md and search.png."""
    write_whole(Path(workdir) / "search.md", summary(search, rows))
    picture(search, rows, Path(workdir) / "search.png")


def summary(search: Search, rows: Sequence[dict]) -> str:
    """The best trial and a table of all of them, in Markdown."""
    done, found = [row for row in rows if "value" in row], best(search, rows)
    named = next((f", {row['data']}," for row in done if "data" in row), "")
    lines = [f"# {search.metric} of {search.config}{named} over {', '.join(search.space)}", ""]
    if found:
        lines.append(f"Best of {len(done)} trials: trial {found['trial']}, {_words(found['point'])}.")
    elif near := nearest(search, done):
        lines.append(f"No trial of {len(done)} meets the limits; {near}.")
    table = [
        dict(trial=row["trial"])
        | {field: str(value) for field, value in row["point"].items()}
        | {search.metric: row.get("refused", "NaN in training") if row["value"] is None else row["value"]}
        | {LIMITS[name][0]: f"{row['figures'][name]:,}" for name in search.limits if row.get("figures")}
        | (dict(limits=_limits(search, row)) if search.limits else {})
        | dict(seconds=row.get("seconds", "-"))
        for row in done
    ]
    return "\n".join([*lines, "", runs.table(table)]) if done else "\n".join(lines) + "\n"


def _limits(search, row):
    if not row.get("figures"):
        return "-"  # it was never exported
    return "met" if _meets(search, row) else "broken"


def _meets(search, row):
    """Whether a row has a value, and breaks no limit."""
    return row.get("value") is not None and max((0, *result(search, row).over)) <= 0


def picture(search: Search, rows: Sequence[dict], path: Path) -> None:
    """The metric by trial with the best so far, and over two fields of choices a map of their grid."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.get("value") is not None]
    grid = is_grid(search.space)
    figure = Figure(figsize=(6.5 * (1 + grid), 4.2), layout="constrained")
    axes = figure.subplots(1, 1 + grid, squeeze=False)[0]
    allowed = [row for row in rows if _meets(search, row)]
    broken = [row for row in rows if row not in allowed]
    axes[0].plot([r["trial"] for r in allowed], [r["value"] for r in allowed], "o", label="trial")
    if broken:
        axes[0].plot(
            [r["trial"] for r in broken], [r["value"] for r in broken], "x", color="tab:gray", label="limit broken"
        )
    if allowed:
        pick = np.maximum if METRICS[search.metric] > 0 else np.minimum
        so_far = pick.accumulate([r["value"] for r in allowed])
        axes[0].step([r["trial"] for r in allowed], so_far, where="post", label="best so far")
    axes[0].set(xlabel="trial", ylabel=search.metric)
    figure.suptitle(next((row["data"] for row in rows if "data" in row), ""), fontsize=9)
    axes[0].legend()
    if grid:
        grid_map(axes[1], search.space, [(row["point"], row["value"]) for row in rows], search.metric)
    pictures.save_figure(figure, path)


def is_grid(space: spaces.Space) -> bool:
    """Whether a space can be drawn by `grid_map`: two fields, both choices."""
    return len(space) == 2 and all(spec.values for spec in space.values())


def grid_map(axes: Any, space: spaces.Space, values: Sequence[tuple[spaces.Point, float]], label: str) -> None:
    """Draws the values at the points of a grid on matplotlib's axes, empty where there is none."""
    (down, rows), (across, columns) = space.items()
    cells = np.full((len(rows.values), len(columns.values)), np.nan)
    for point, value in values:
        cells[rows.values.index(point[down]), columns.values.index(point[across])] = value
    image = axes.imshow(cells, aspect="auto", cmap="viridis")
    axes.set(xlabel=across, ylabel=down)
    axes.set_xticks(range(len(columns.values)), [str(v) for v in columns.values])
    axes.set_yticks(range(len(rows.values)), [str(v) for v in rows.values])
    axes.figure.colorbar(image, ax=axes, label=label)


def train_trial(
    search: Search,
    check: Callable[[spaces.Point], None],
    arguments: Sequence[str],
    lock: int,
    point: spaces.Point,
    folder: Path,
    stop: threading.Event,
) -> dict:
    """The objective of the command: trains the point's run, and where there are limits exports it and estimates them.

    Args:
      search: what is searched; check: refuses a point that cannot be trained, which is its result then.
      arguments: flags of atalaia.train that all trials share.
      lock: the file that is locked as long as a program of this search works.
      point, folder, stop: see `run`.
    """
    try:
        check(point)
    except UserError as error:
        return dict(value=None, refused=str(error))
    call = partial(_call, folder, stop, lock)
    data_dir = [a for a in arguments if a.startswith("--data_dir=")]
    if not call("train", [f"--config={search.config}", *arguments, *runs.override_flags(point)]):
        return dict(value=None)
    value = metrics.last(folder, search.metric)
    if value is None:
        raise UserError(f"{folder} has no {search.metric}: give data.validation a part of the images")
    done = json.loads((folder / "train.json").read_text())
    if not math.isfinite(value):
        value = None
    found = dict(value=value, seconds=done["seconds"], data=done["dataset"], sources=done.get("sources", {}))
    if search.limits and value is not None:
        from atalaia.codegen import __main__ as codegen

        if not (folder / "export.json").is_file():  # what export writes last
            call("export", data_dir)
        prefer = "speed" if "ms" in search.limits else "balanced"
        content, flash = tflite.load(folder / "model.tflite"), search.limits.get("bytes")
        made = codegen.report(content, prefer=prefer, flash=flash)
        found["figures"] = {name: LIMITS[name][1](made) for name in search.limits}
    return found


def _call(folder, stop, lock, step, arguments):
    """One step of a trial, what it says in the trial's log; False where training diverged."""
    log = folder.with_suffix(".log")
    with log.open("ab") as output:
        # In a session of its own: Ctrl-C comes here first, and is passed on once, as a wish to stop at a step's end.
        process = subprocess.Popen(
            runs.command(step, folder, arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,),
        )
    told = False
    while (code := _exit_code(process)) is None:
        if stop.is_set() and not told:
            process.send_signal(signal.SIGTERM)
            told = True
    if stop.is_set() or code == 130:
        raise KeyboardInterrupt
    if code not in (0, Diverged.code):
        said = log.read_text(errors="replace").strip().splitlines() or [f"exit code {code}"]
        why = runs.signal_words(code) if code < 0 else said[-1].removeprefix("error: ")
        raise UserError(f"{step} of {folder} failed: {why} (log: {log})")
    return code == 0


def _exit_code(process):
    try:
        return process.wait(0.5)
    except subprocess.TimeoutExpired:
        return None


def validate(
    search: Search, config: ConfigDict, check: Callable[[spaces.Point], None], trials: int, parallel: int
) -> None:
    """Refuses what some trial would fail at: each end of each field is tried on the config.

    Args:
      search: what is searched; config: its config; check: refuses a point that cannot be trained.
      trials, parallel: trials in all and at once.

    Raises:
      UserError: names the flag or the field, what is wrong, and what is allowed.
    """
    for name, number in (("trials", trials), ("parallel", parallel)):
        if number < 1:
            raise UserError(f"--{name} must be at least 1, not {number}")
    if search.metric not in METRICS:
        raise UserError(f"no metric {search.metric!r}: a search looks at {' or '.join(METRICS)}")
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
        raise UserError(f"--trials={trials}, but the space has {spaces.size(search.space)} points")


def _refuse_other_type(field, spec, kind):
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


def make_check(file: str, overrides: Mapping[str, Any], cache: Path) -> Callable[[spaces.Point], None]:
    """`check(point)` raises the UserError that atalaia.train would stop with before it trains.

    Args:
      file: the config's; overrides: its fields that all trials share; cache: where data sets are kept.
    """
    held = {}  # the data set of the point before, by its fields

    def check(point):
        config = runs.check(file, {**overrides, **point})
        fields = config.data.to_json()
        dataset = held.get(fields)
        if dataset is None:
            dataset = data.load(config.data, cache)
            held.clear()
            held[fields] = dataset
        train.prepare(config, dataset)

    return check


@contextlib.contextmanager
def locked(workdir: Path, waiting: Callable[[str], None] = print) -> Iterator[int]:
    """Keeps others out of a search's folder; yields the file to hand to the trials, which then keep it locked too.

    A trial outlives a search that was killed: the search that goes on waits for it, and says so by `waiting`.
    """
    Path(workdir).mkdir(parents=True, exist_ok=True)
    message = f"waiting until another search in {workdir}, or a trial that one left behind, has ended"
    with files.locked(Path(workdir) / "search.lock", lambda: waiting(message)) as lock:
        yield lock


def main() -> None:
    values, workdir, config = flags.FLAGS, cli.workdir(), flags.FLAGS.config
    if config is None or not values.space:
        raise UserError("give --config=configs/NAME.py and --space=FILE, such as configs/search_kd.py")
    limits = {name: getattr(values, f"max_{name}") for name in LIMITS}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    file = config_flags.get_config_filename(values["config"])
    overrides = config_flags.get_override_values(values["config"])
    search = Search(file, spaces.load(values.space), values.seed, values.metric, limits)
    check = make_check(file, overrides, cli.cache())
    validate(search, config, check, values.trials, values.parallel)
    read(search, workdir)
    configs.refuse_other_run(config, workdir, configs.STAGES)  # before it waits for another

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # trials are told to stop, as by Ctrl-C
    arguments = runs.override_flags(overrides) + ([f"--data_dir={values.data_dir}"] if values.data_dir else [])
    with locked(workdir) as lock:
        configs.refuse_other_run(config, workdir, configs.STAGES)  # another may have begun here while this one waited
        configs.claim(config, workdir)  # so that the same search with another config is refused
        objective = partial(train_trial, search, check, arguments, lock)
        rows = run(search, workdir, values.trials, values.parallel, objective)
    print(summary(search, rows))
    print(f"written: {workdir}/search.md, search.png, search.json")
    if best(search, rows) is None:
        near = nearest(search, rows)
        raise UserError(f"no trial meets the limits; {near}" if near else "no trial has a value; the table says why")


if __name__ == "__main__":
    cli.common_flags()
    flags.DEFINE_string("space", None, "The file with get_space().")
    flags.DEFINE_integer("trials", 20, "Trials in all.")
    flags.DEFINE_integer("parallel", 1, "Trials at once.")
    flags.DEFINE_integer("seed", 0, "Of the search; that of training is --config.seed.", lower_bound=0)
    flags.DEFINE_string("metric", "val_score", f"{' or '.join(METRICS)}, on the validation split.")
    flags.DEFINE_integer("max_bytes", None, "Limit of constants in flash, in bytes.")
    flags.DEFINE_integer("max_arena", None, "Limit of the arena, in bytes.")
    flags.DEFINE_float("max_ms", None, "Limit of the estimated time on an ESP32, in milliseconds.")
    config_flags.DEFINE_config_file("config", help_string="The experiment: a file of configs/.")
    cli.run(main, goes_on=True)

"""Bayesian optimisation over any fields of a config, each trial a run folder.

python -m atalaia.search --config=configs/x.py --space=configs/search_kd.py --workdir=runs/search --trials=20
    [--workers=2 --executor=local|dask|slurm] [--seed=0] [--metric=val_score] [--max_bytes=N --max_arena=N --max_ms=X]
    [--goals=val_score,flash] [--halving=3] [--config.FIELD=VALUE]

The folder gets search.json, search.md, search.png, and trial_000/ and so on with their logs. The test set is never
looked at. Limits are those of codegen's static estimate: bytes of constants in flash, bytes of the arena, and the upper
end of the ESP32's milliseconds. A search that was stopped in any way goes on when the same command is given again and
tries the points that it would have tried.
"""

import contextlib
import json
import math
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import config_flags

from atalaia import cli, executors, files, goals, halving, pictures, plan, runs
from atalaia import config as configs
from atalaia import space as spaces
from atalaia.errors import UserError
from atalaia.files import write_json, write_whole
from atalaia.progress import Progress
from atalaia.trials import LIMITS, METRICS, Search, make_check, train_trial, validate

NEWER = ("cost", "halving")  # fields of a search that older files do not have
Objective = Callable[..., dict]


def run(search: Search, workdir: Path, trials: int, parallel: int, objective: Objective) -> list[dict]:
    """Tries points until there are `trials` results, and returns a row each: `trial, point, known` and what was found.

    A trial is proposed once all but the `parallel - 1` before it are done, and from their results alone, whatever else
    is known by then: so the points do not depend on which trial ends first, nor on when a search was killed.

    Args:
      search: what is searched.
      workdir: its folder, which is made, or goes on.
      trials: results wanted in all.
      parallel: trials at once.
      objective: (point, the trial's folder, whether to stop, and with halving what it needs at each rung) to `value`
        (None: it has none, by divergence, or as `refused` says), `seconds`, `sources` as train.json has them, `figures`
        by limit, and with halving `rungs`, its values there, and `ended`, the part of its steps after which it was too
        bad. A trial that is given again goes on where it was.

    Raises:
      UserError: see `read`; or a trial had other images, or another teacher, than those before it.
    """
    rows = read(search, workdir)
    Path(workdir).mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    running: dict[Future[dict], int] = {}
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
                        running[pool.submit(objective, point, folder, stop, *_least(search, rows, number))] = number
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


def _least(search, rows, number):
    """With halving, what a trial needs at each rung: by those that were known when it was proposed, and no others."""
    if not search.halving:
        return ()
    known = [row["rungs"] for row in rows[: rows[number]["known"]] if "rungs" in row]
    return (halving.least(known, METRICS[search.metric], search.halving),)


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
    if search.halving:
        reached = [[METRICS[search.metric] * value for value in row.get("rungs", [])] for row in rows[:known]]
        results = halving.comparable(results, reached, ["ended" in row for row in rows[:known]])
    if search.cost:
        results = goals.weighed(results, [_cost(search, row) for row in rows[:known]], search.seed)
    point = spaces.propose(search.space, search.seed, results, [row["point"] for row in rows[known:]])
    return dict(trial=len(rows), point=point, known=known)


def _cost(search, row):
    """What a trial costs; None where it was never exported. Milliseconds are rounded to tenths, down to 0."""
    figure = row.get("figures", {}).get(goals.COSTS[search.cost])
    return None if figure is None else max(figure, 0.05)


def front(search: Search, rows: Sequence[dict]) -> list[dict]:
    """Of a search with two goals, the trials within the limits that no other beats, by rising cost."""
    met = [row for row in rows if _meets(search, row)]
    values = [METRICS[search.metric] * row["value"] for row in met]
    return [met[i] for i in goals.front(values, [_cost(search, row) for row in met])]


def result(search: Search, row: dict) -> spaces.Result:
    """A finished trial as `propose` takes it."""
    value = None if row["value"] is None else METRICS[search.metric] * row["value"]
    figures = row.get("figures", {})  # of which milliseconds are rounded to tenths, down to 0
    over = tuple(math.log(max(figures[name], 0.05) / limit) for name, limit in search.limits.items()) if figures else ()
    return spaces.Result(row["point"], value, over)


def best(search: Search, rows: Sequence[dict]) -> dict | None:
    """The finished trial with the best value of those that meet the limits, the first of equal ones, or None."""
    sign = METRICS[search.metric]
    return max((r for r in rows if _meets(search, r)), key=lambda row: sign * row["value"], default=None)


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
    newer = {name: None for name in NEWER if not getattr(search, name)}
    return json.loads(json.dumps(search._asdict() | dict(space=space) | newer))


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
    newer = {name: theirs[name] for name in NEWER if theirs.get(name)}
    search = Search(theirs["config"], space, theirs["seed"], theirs["metric"], theirs["limits"], **newer)
    return search, read(search, workdir)


def _saved(workdir):
    """What search.json says, None where there is none."""
    path = Path(workdir) / "search.json"
    if not path.exists():
        return None
    try:
        theirs = json.loads(path.read_text())
        _ = [theirs[name] for name in (*Search._fields, "trials") if name not in NEWER]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: delete {workdir} and search again, or choose another --workdir") from None
    return theirs


def _save(search, workdir, rows):
    said = {name: value for name, value in _identity(search).items() if value is not None}
    write_json(Path(workdir) / "search.json", said | dict(trials=rows))


def _words(point):
    return ", ".join(f"{field}={value}" for field, value in point.items())


def _outcome(search, row):
    if row["value"] is None:
        return f"{row.get('refused', 'training became NaN')}: taken as the worst value"
    figures = "".join(f", {row['figures'][name]:,} {LIMITS[name][0]}" for name in search.limits if "figures" in row)
    early = f", ended after {100 * row['ended']:.0f} % of its steps" if "ended" in row else ""
    return f"{search.metric} {row['value']:.4f}{figures}{early}"


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
    if search.cost and found:
        points = ", ".join(f"trial {row['trial']} ({_words(row['point'])})" for row in front(search, done))
        lines.append(f"No other trial of {len(done)} beats, in {search.metric} and {search.cost}: {points}.")
    elif found:
        lines.append(f"Best of {len(done)} trials: trial {found['trial']}, {_words(found['point'])}.")
    elif near := nearest(search, done):
        lines.append(f"No trial of {len(done)} meets the limits; {near}.")
    table = [
        dict(trial=row["trial"])
        | {field: str(value) for field, value in row["point"].items()}
        | {search.metric: row.get("refused", "NaN in training") if row["value"] is None else row["value"]}
        | {LIMITS[name][0]: f"{figure:,}" for name, figure in row.get("figures", {}).items()}
        | (dict(limits=_limits(search, row)) if search.limits else {})
        | (dict(ended=f"after {100 * row['ended']:.0f} %" if "ended" in row else "-") if search.halving else {})
        | dict(seconds=row.get("seconds", "-"))
        for row in done
    ]
    return "\n".join([*lines, "", runs.table(table)]) if done else "\n".join(lines) + "\n"


def _limits(search, row):
    if not row.get("figures"):
        return "-"  # it was never exported
    return "met" if _meets(search, row) else "broken"


def _meets(search, row):
    """Whether a row has a value, that of its last step, and breaks no limit."""
    return row.get("value") is not None and "ended" not in row and max((0, *result(search, row).over)) <= 0


def picture(search: Search, rows: Sequence[dict], path: Path) -> None:
    """The metric by trial with the best so far, and over two fields of choices a map of their grid."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.get("value") is not None]
    grid = is_grid(search.space)
    panels = 1 + grid + bool(search.cost)
    figure = Figure(figsize=(6.5 * panels, 4.2), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    allowed = [row for row in rows if _meets(search, row)]
    broken = [row for row in rows if row not in allowed]
    axes[0].plot([r["trial"] for r in allowed], [r["value"] for r in allowed], "o", label="trial")
    if broken:
        axes[0].plot(
            [r["trial"] for r in broken],
            [r["value"] for r in broken],
            "x",
            color="tab:gray",
            label="limit broken, or ended early",
        )
    if allowed:
        pick = np.maximum if METRICS[search.metric] > 0 else np.minimum
        so_far = pick.accumulate([r["value"] for r in allowed])
        axes[0].step([r["trial"] for r in allowed], so_far, where="post", label="best so far")
    axes[0].set(xlabel="trial", ylabel=search.metric)
    figure.suptitle(next((row["data"] for row in rows if "data" in row), ""), fontsize=9)
    axes[0].legend()
    if grid:
        pictures.grid_map(axes[1], search.space, [(row["point"], row["value"]) for row in rows], search.metric)
    if search.cost:
        values = [METRICS[search.metric] * row["value"] for row in allowed]
        costs, numbers = [_cost(search, row) for row in allowed], [row["trial"] for row in allowed]
        goals.draw(
            axes[-1],
            values,
            costs,
            numbers,
            METRICS[search.metric],
            (search.metric, LIMITS[goals.COSTS[search.cost]][0]),
        )
    pictures.save_figure(figure, path)


def is_grid(space: spaces.Space) -> bool:
    """Whether a space can be drawn by `pictures.grid_map`: two fields, both choices."""
    return len(space) == 2 and all(spec.values for spec in space.values())


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
    metric, cost = goals.parse(values.goals, alone=not values["metric"].present) or (values.metric, "")
    search = Search(file, spaces.load(values.space), values.seed, metric, limits, cost, values.halving)
    check = make_check(file, overrides, cli.cache())
    validate(search, config, check, values.trials)
    executors.validate()
    read(search, workdir)
    configs.refuse_other_run(config, workdir, configs.STAGES)  # before it waits for another

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # trials are told to stop, as by Ctrl-C
    arguments = runs.override_flags(overrides) + ([f"--data_dir={values.data_dir}"] if values.data_dir else [])
    with locked(workdir) as lock, executors.opened(workdir, (lock,)) as executor:
        configs.refuse_other_run(config, workdir, configs.STAGES)  # another may have begun here while this one waited
        configs.claim(config, workdir)  # so that the same search with another config is refused
        objective = partial(train_trial, search, check, arguments, executor)
        rows = run(search, workdir, values.trials, values.workers, objective)
    print(summary(search, rows))
    print(f"written: {workdir}/search.md, search.png, search.json")
    if best(search, rows) is None:
        near = nearest(search, rows)
        raise UserError(f"no trial meets the limits; {near}" if near else "no trial has a value; the table says why")


if __name__ == "__main__":
    cli.common_flags()
    flags.DEFINE_string("space", None, "The file with get_space().")
    flags.DEFINE_integer("trials", 20, "Trials in all.")
    executors.define_flags()
    flags.DEFINE_alias("parallel", "workers")
    flags.DEFINE_integer("seed", 0, "Of the search; that of training is --config.seed.", lower_bound=0)
    flags.DEFINE_list("goals", [], f"A metric and a cost, such as val_score,flash; costs are {', '.join(goals.COSTS)}.")
    flags.DEFINE_integer("halving", 0, "Bad trials end early: of each so many one goes on; such as 3. 0: all do.")
    flags.DEFINE_string("metric", "val_score", f"{' or '.join(METRICS)}, on the validation split.")
    flags.DEFINE_integer("max_bytes", None, "Limit of constants in flash, in bytes.")
    flags.DEFINE_integer("max_arena", None, "Limit of the arena, in bytes.")
    flags.DEFINE_float("max_ms", None, "Limit of the estimated time on an ESP32, in milliseconds.")
    config_flags.DEFINE_config_file("config", help_string="The experiment: a file of configs/.")
    cli.run(main, goes_on=True)

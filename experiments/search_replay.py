"""Bayesian against random search on a grid that was run once: trials until one of the best tenth is found.

python experiments/search_replay.py --grid --config=FILE [--config.FIELD=VALUE ...] [--data_dir=FOLDER]
    such as --config=configs/table1.py:rafael_base_distilled --config.distill.epochs=4
python experiments/search_replay.py [--seeds=100]

With --grid every point of the space is trained in runs/search_grid (what is done is not trained again), and
experiments/results/search_grid.json is written after each. Without, searches are replayed on that file by the function
that atalaia.search proposes with, which is told a recorded value when it tries the point. No search tries one twice.
Writes experiments/results/search_replay.json, .md and .png, and the table in README.md.
"""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
from absl import flags

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "experiments/results"
GRID = RESULTS / "search_grid.json"
RUNS = Path("runs/search_grid")
BEST = 0.1  # the part of the points that counts as found


def main(handed: list[str]) -> None:
    from atalaia import space as spaces
    from atalaia.errors import UserError

    # The fields of the config are no flags of this script: it hands them on.
    if extra := [a for a in handed if not a.startswith(("--config=", "--config."))]:
        raise UserError(f"unexpected argument {extra[0]!r}: see the first lines of {__file__}")
    if handed and not flags.FLAGS.grid:
        raise UserError(f"{handed[0]} belongs to --grid; a replay takes what the grid was trained with")
    space = spaces.load(flags.FLAGS.space)
    if flags.FLAGS.grid:
        data = [f"--data_dir={flags.FLAGS.data_dir}"] if flags.FLAGS.data_dir else []
        return train_grid(space, handed, data)
    publish(space, recorded(space), flags.FLAGS.seeds)


def recorded(space: dict) -> dict:
    """The grid as it was trained, its points as the space has them.

    Raises:
      UserError: there is none, or points of it are not trained yet.
    """
    from atalaia import space as spaces
    from atalaia.errors import UserError

    if not GRID.is_file():
        raise UserError(f"no {GRID}: train the grid first with --grid --config=FILE")
    grid = json.loads(GRID.read_text())
    rows = [row | dict(point=spaces.restored(space, row["point"])) for row in grid["rows"]]
    trained = {spaces.text(row["point"]) for row in rows if row["val_accuracy"] is not None}
    points = {spaces.text(point) for point in spaces.every_point(space)}
    if trained != points:
        raise UserError(
            f"{GRID} has {len(trained & points)} of {len(points)} points: go on with --grid --config=FILE, in which a "
            "point that is done is not trained again"
        )
    return grid | dict(rows=rows)


def train_grid(space: dict, arguments: list[str], data: list[str]) -> None:
    """Trains every point that is not trained yet, with these flags of atalaia.train."""
    from atalaia import config as configs
    from atalaia import runs
    from atalaia import space as spaces
    from atalaia.errors import Diverged, UserError
    from atalaia.files import write_json

    given = dict(a.removeprefix("--").split("=", 1) for a in arguments if "=" in a)
    if "config" not in given:
        raise UserError("--grid needs --config=FILE")
    shared = {name.removeprefix("config."): v for name, v in given.items() if name.startswith("config.")}
    points = list(spaces.every_point(space))
    workdirs = [ROOT / RUNS / ",".join(f"{f.rpartition('.')[2]}={v}" for f, v in point.items()) for point in points]
    for point, workdir in zip(points, workdirs, strict=True):
        config = runs.check(given["config"], shared | point)
        configs.refuse_other_run(config, workdir)
    if not config.data.validation:
        raise UserError("data.validation is 0, so there is no validation split to judge a point by")
    config = runs.check(given["config"], shared)
    grid = dict(model=config.model, seed=config.seed, arguments=arguments)
    grid["epochs"] = sum(config[stage].epochs for stage in config.stages)

    def write():
        done = [json.loads(path.read_text()) if path.is_file() else {} for path in results]
        rows = [
            dict(point=point, val_accuracy=found.get("val_accuracy", 0.0 if point in diverged else None))
            for point, found in zip(points, done, strict=True)
        ]
        names = {found["dataset"] for found in done if found}
        write_json(GRID, grid | dict(data=", ".join(names), rows=rows))
        return rows

    results, diverged = [workdir / "train.json" for workdir in workdirs], []
    for number, (point, workdir, result) in enumerate(zip(points, workdirs, results, strict=True), 1):
        if result.is_file():
            continue
        print(f"point {number} of {len(points)}: {workdir.name}", flush=True)
        code = runs.call(runs.command("train", workdir, [*arguments, *data, *runs.override_flags(point)]))
        if code == Diverged.code:  # a result too, and the worst
            diverged.append(point)
        elif code:
            print(f"the training in {workdir} failed, see above: its point stays without a figure")
        write()
    if any(row["val_accuracy"] is None for row in write()):
        raise UserError("points failed, see above; started again, this tries them again and keeps the others")
    print(f"written: {GRID}")


def trials_needed(order, values: dict[str, float], target: float) -> int:
    """How many points of `order` (their texts) were tried when the first at or above the target was."""
    return next(n for n, point in enumerate(order, 1) if values[point] >= target)


def bayesian(space, seed: int, values: dict[str, float]):
    """The points of one Bayesian search, one after the other, as atalaia.search would try them."""
    from atalaia import space as spaces

    results = []
    while len(results) < len(values):
        point = spaces.propose(space, seed, results)
        results.append(spaces.Result(point, values[spaces.text(point)]))
        yield spaces.text(point)


def random(space, seed: int, values: dict[str, float]):
    """The points of one random search, in random order."""
    del space
    points = list(values)
    return (points[i] for i in np.random.default_rng(seed).permutation(len(points)))


def replay(space, grid: list[tuple[dict, float]], seeds: int) -> dict:
    """Trials to the best tenth, by method, over the seeds."""
    from atalaia import space as spaces
    from atalaia.progress import Progress

    values = {spaces.text(point): value for point, value in grid}
    wanted = max(1, int(BEST * len(values)))
    target = sorted(values.values(), reverse=True)[wanted - 1]
    trials = dict(bayesian=[], random=[])
    with Progress("replay", seeds, "searches") as bar:
        for seed in range(seeds):
            for method in (bayesian, random):
                trials[method.__name__].append(trials_needed(method(space, seed, values), values, target))
            bar.update()
    return dict(
        points=len(values),
        target=target,
        targets=sum(value >= target for value in values.values()),
        seeds=seeds,
        methods={name: dict(figures(found), trials=found) for name, found in trials.items()},
        ratio_of_means=statistics.mean(trials["bayesian"]) / statistics.mean(trials["random"]),
    )


def figures(trials: list[int]) -> dict:
    """Median, mean and spread."""
    low, high = np.percentile(trials, [10, 90])
    return dict(
        median=statistics.median(trials),
        mean=statistics.mean(trials),
        standard_deviation=statistics.pstdev(trials),
        percentile_10=float(low),
        percentile_90=float(high),
        most=max(trials),
    )


def table(found: dict) -> str:
    """The replay in Markdown."""
    of = found["of"]
    trained = f"{of['epochs']:g} epochs, seed {of['seed']}"
    lines = [
        f"Validation accuracy of {of['model']}, distilled, on {of['data']}: {trained}.",
        "",
        f"| search over {found['points']} points, {found['seeds']} seeds: trials to one of the best {found['targets']} "
        "| median | mean | standard deviation | 10th to 90th percentile | most |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in found["methods"].items():
        spread = f"{row['standard_deviation']:.2f} | {row['percentile_10']:.0f} to {row['percentile_90']:.0f}"
        lines.append(f"| {name} | {row['median']:g} | {row['mean']:.2f} | {spread} | {row['most']} |")
    chance = (found["points"] + 1) / (found["targets"] + 1)
    lines.append(
        f"\nBayesian search needs {found['ratio_of_means']:.2f} of random search's trials, by the means; "
        f"{found['methods']['bayesian']['mean'] / chance:.2f} of the {chance:.2f} that random order takes on average."
    )
    return "\n".join(lines) + "\n"


def picture(space, grid, found: dict, path: Path) -> None:
    """The recorded grid, and how many searches have found one of the best tenth by each trial."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from atalaia import report, search

    drawn = search.is_grid(space)
    figure, axes = plt.subplots(1, 1 + drawn, figsize=(6.5 * (1 + drawn), 4.2), layout="constrained", squeeze=False)
    number = np.arange(found["points"] + 1)
    for name, row in found["methods"].items():
        reached = [100 * np.mean(np.array(row["trials"]) <= n) for n in number]
        axes[0, 0].step(number, reached, where="post", label=name)
    axes[0, 0].set(xlabel="trials", ylabel=f"searches that found one of the best {found['targets']}, %")
    axes[0, 0].grid(alpha=0.3)
    axes[0, 0].legend()
    if drawn:
        search.grid_map(axes[0, 1], space, grid, "validation accuracy")
    report.save_figure(figure, path)


def publish(space, recorded: dict, seeds: int) -> None:
    """Replays, and writes the figures, the table and the picture."""
    from atalaia import report
    from atalaia.files import write_json, write_whole

    grid = [(row["point"], row["val_accuracy"]) for row in recorded["rows"]]
    found = dict(of={k: v for k, v in recorded.items() if k != "rows"}, **replay(space, grid, seeds))
    write_json(RESULTS / "search_replay.json", found)
    text = table(found)
    write_whole(RESULTS / "search_replay.md", text)
    picture(space, grid, found, RESULTS / "search_replay.png")
    print(f"{text}\nwritten: {RESULTS}/search_replay.json, .md, .png", flush=True)
    report.insert(ROOT / "README.md", "search_replay", text)


if __name__ == "__main__":
    from atalaia import cli

    flags.DEFINE_bool("grid", False, "Train the grid instead of replaying searches on it.")
    flags.DEFINE_string("space", str(ROOT / "configs/search_kd.py"), "The space, of choices only.")
    flags.DEFINE_integer("seeds", 100, "Searches of each kind.", lower_bound=1)
    flags.DEFINE_string("data_dir", None, "Where data sets are kept.")
    cli.run(main, known_only=True)

"""Bayesian against random search on points that were all tried once: trials until one of the best tenth is found.

python experiments/search_replay.py --pages        # only writes the page, from the figures
python -m atalaia.search --config=configs/table1.py:rafael_base_distilled --config.distill.epochs=4
    --space=configs/search_kd.py --trials=32 --workdir=runs/search_grid
python experiments/search_replay.py [--record=runs/search_grid] [--searches=100]

With --record, what a search that tried every point of the space found is first written to
experiments/results/search_replay/grid.json. Searches are replayed on that file by the function that atalaia.search
proposes with, which is told a recorded value when it tries the point. The same is done on drawn functions over the
points, a new one for each seed: smooth ones (Gaussian processes) with a part of noise.
"""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).parent))
import tables
from tables import ROOT, Table, grid

GRID = tables.RESULTS / "search_replay/grid.json"
BEST = 0.1  # the part of the points that counts as found
DRAWN = (0.05, 0.3, 0.6)  # noise of drawn functions, as a part of their variance
LENGTHS = (0.4, 1.5)  # over which they change, in ranges of a field; drawn for each field


def main() -> None:
    from atalaia import space as spaces

    space = spaces.load(SPACE)
    if flags.FLAGS.record:
        record(space, Path(flags.FLAGS.record))
    publish(space, recorded(space), flags.FLAGS.searches)


def record(space: dict, workdir: Path) -> None:
    """Writes the validation accuracy of each point that a search tried; of one that has none, 0, the worst.

    Raises:
      UserError: the folder holds no search of that whole space by accuracy, without limits.
    """
    from atalaia import config as configs
    from atalaia import runs, search
    from atalaia import space as spaces
    from atalaia.errors import UserError
    from atalaia.files import write_json

    done, rows = search.load(workdir, space)
    if done.metric not in ("val_score", "val_accuracy") or done.limits:
        raise UserError(f"the search in {workdir} has limits, or another metric than val_accuracy")
    values = {spaces.text(row["point"]): row["value"] or 0.0 for row in rows if "value" in row}
    points = list(spaces.every_point(space))
    if len(values) < len(points):
        raise UserError(f"{workdir} has {len(values)} of {len(points)} points: search on with --trials={len(points)}")
    config, original = configs.load(workdir), configs.flat(runs.check(done.config, {}))
    changed = {name: value for name, value in configs.flat(config).items() if value != original[name]}
    changed = {name: f"{value:g}" if isinstance(value, float) else value for name, value in changed.items()}
    found = dict(
        model=config.model,
        seed=config.seed,
        arguments=[f"--config={done.config}", *runs.override_flags(changed)],
        epochs=sum(config[stage].epochs for stage in config.stages),
        views=config.distillation.views,
        data=next((row["data"] for row in rows if "data" in row), ""),
        sources=next((row["sources"] for row in rows if "sources" in row), {}),
        rows=[dict(point=point, val_accuracy=values[spaces.text(point)]) for point in points],
    )
    GRID.parent.mkdir(parents=True, exist_ok=True)
    write_json(GRID, found)


def recorded(space: dict) -> dict:
    """The points that were tried, as the space has them.

    Raises:
      UserError: there are none, or those of another space.
    """
    from atalaia import space as spaces
    from atalaia.errors import UserError

    if not GRID.is_file():
        raise UserError(f"no {GRID}: see the first lines of {__file__}")
    found = json.loads(GRID.read_text())
    rows = [row | dict(point=spaces.restored(space, row["point"])) for row in found["rows"]]
    if {spaces.text(row["point"]) for row in rows} != {spaces.text(point) for point in spaces.every_point(space)}:
        raise UserError(f"{GRID} is of another space: see the first lines of {__file__}")
    return found | dict(rows=rows)


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


def target_of(values: dict[str, float]) -> float:
    """The value that the best tenth of the points has at least."""
    return sorted(values.values(), reverse=True)[max(1, int(BEST * len(values))) - 1]


def draw(space, seed: int, noise: float) -> dict[str, float]:
    """A function's values by point: a Gaussian process with a squared exponential kernel, and noise, of variance 1."""
    from atalaia import space as spaces

    points, rng = list(spaces.every_point(space)), np.random.default_rng((seed, int(1000 * noise)))
    x = np.array([spaces.coordinates(space, point) for point in points])
    x /= rng.uniform(*LENGTHS, x.shape[1])
    covariance = np.exp(-0.5 * np.square(x[:, None] - x).sum(-1)) + 1e-8 * np.eye(len(x))
    smooth = np.linalg.cholesky(covariance) @ rng.standard_normal(len(x))
    smooth = (smooth - smooth.mean()) / smooth.std()
    values = np.sqrt(1 - noise) * smooth + np.sqrt(noise) * rng.standard_normal(len(x))
    return {spaces.text(point): float(value) for point, value in zip(points, values, strict=True)}


def replay_drawn(space, seeds: int) -> list[dict]:
    """Trials to the best tenth of drawn functions, one for each seed, by method and noise."""
    from atalaia.progress import Progress

    rows = []
    with Progress("drawn", len(DRAWN) * seeds, "searches") as bar:
        for noise in DRAWN:
            trials = dict(bayesian=[], random=[])
            for seed in range(seeds):
                values = draw(space, seed, noise)
                for method in (bayesian, random):
                    trials[method.__name__].append(
                        trials_needed(method(space, seed, values), values, target_of(values))
                    )
                bar.update()
            means = {name: statistics.mean(found) for name, found in trials.items()}
            rows.append(dict(noise=noise, means=means, ratio_of_means=means["bayesian"] / means["random"]))
    return rows


def replay(space, points: list[tuple[dict, float]], seeds: int) -> dict:
    """Trials to the best tenth, by method, over the seeds."""
    from atalaia import space as spaces
    from atalaia.progress import Progress

    values = {spaces.text(point): value for point, value in points}
    target = target_of(values)
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
    of, searches = found["of"], found["seeds"]

    def spread(row):
        return f"{row['percentile_10']:.0f} to {row['percentile_90']:.0f}"

    counted = f"search over {found['points']} points, {searches} seeds: trials to one of the best {found['targets']}"
    columns = {
        counted: lambda item: item[0],
        "median": lambda item: f"{item[1]['median']:g}",
        "mean": lambda item: f"{item[1]['mean']:.2f}",
        "standard deviation": lambda item: f"{item[1]['standard_deviation']:.2f}",
        "10th to 90th percentile": lambda item: spread(item[1]),
        "most": lambda item: item[1]["most"],
    }
    drawn = {
        f"{searches} drawn functions over these points: noise, % of variance": lambda row: f"{100 * row['noise']:g}",
        "bayesian": lambda row: f"{row['means']['bayesian']:.2f}",
        "random": lambda row: f"{row['means']['random']:.2f}",
        "ratio": lambda row: f"{row['ratio_of_means']:.2f}",
    }
    chance = (found["points"] + 1) / (found["targets"] + 1)
    trained = f"{of['epochs']:g} epochs, seed {of['seed']}; views of each image: {of.get('views', tables.NOT_RECORDED)}"
    return "\n".join(
        (
            f"Validation accuracy of {of['model']}, distilled, on {of['data']}: {trained}.\n",
            grid(columns, found["methods"].items()),
            f"Bayesian search needs {found['ratio_of_means']:.2f} of random search's trials, by the means. "
            f"Random order takes {chance:.2f} trials on average, by calculation.\n",
            grid(drawn, found.get("drawn", [])),
        )
    )


def picture(space, points, found: dict, path: Path) -> None:
    """The recorded grid, and how many searches have found one of the best tenth by each trial."""
    from matplotlib.figure import Figure

    from atalaia import pictures, search

    drawn = search.is_grid(space)
    figure = Figure(figsize=(6.5 * (1 + drawn), 4.2), layout="constrained")
    axes = figure.subplots(1, 1 + drawn, squeeze=False)
    number = np.arange(found["points"] + 1)
    for name, row in found["methods"].items():
        reached = [100 * np.mean(np.array(row["trials"]) <= n) for n in number]
        axes[0, 0].step(number, reached, where="post", label=name)
    axes[0, 0].set(xlabel="trials", ylabel=f"searches that found one of the best {found['targets']}, %")
    axes[0, 0].grid(alpha=0.3)
    axes[0, 0].legend()
    if drawn:
        pictures.grid_map(axes[0, 1], space, points, "validation accuracy")
    figure.suptitle(found["of"]["data"], fontsize=9)
    pictures.save_figure(figure, path)


def publish(space, recorded: dict, searches: int) -> None:
    """Replays, keeps the figures and writes the page."""
    points = [(row["point"], row["val_accuracy"]) for row in recorded["rows"]]
    found = dict(of={k: v for k, v in recorded.items() if k != "rows"}, **replay(space, points, searches))
    found["drawn"] = replay_drawn(space, searches)
    TABLE.save(recorded, found)


def _draw(figures, path):
    from atalaia import space as spaces

    space = spaces.load(SPACE)
    picture(space, [(row["point"], row["val_accuracy"]) for row in recorded(space)["rows"]], figures["replay"], path)


def _headline(figures):
    found = figures["replay"]
    drawn = ", ".join(f"{row['ratio_of_means']:.2f}" for row in found["drawn"])
    return f"Bayesian search needs {found['ratio_of_means']:.2f} of random search's trials; on drawn functions {drawn}"


SPACE = str(ROOT / "configs/search_kd.py")
TABLE = Table(
    name="search_replay",
    title="Bayesian against random search",
    shows="How many trials does a search need to find one of the best points? All 32 points of the thesis's alpha and "
    "temperature were trained once. Searches are then replayed on these values, by the function that `atalaia.search` "
    "uses.",
    command="python experiments/search_replay.py",
    body=lambda figures: table(figures["replay"]),
    headline=_headline,
    picture="Searches that found one of the best, and the grid",
    draw=_draw,
    files=("grid.json", "replay.json"),
    notes=(
        "The points were trained one by one, in order, with the teacher of an older recipe. Their number of views was "
        "not written down by the run.",
        "The points differ by little more than chance (4 epochs), so the gain on them is small: the medians are equal. "
        "Another seed could choose another point.",
        "Drawn functions are Gaussian processes over the same points, a new one for each seed. The less noise, the "
        "more Bayesian search gains.",
        "Other points: `python -m atalaia.search --config=configs/table1.py:rafael_base_distilled "
        "--config.distill.epochs=4 --space=configs/search_kd.py --trials=32 --workdir=FOLDER`, then this script with "
        "`--record=FOLDER`.",
    ),
)


if __name__ == "__main__":
    flags.DEFINE_string("record", None, "The folder of a search that tried every point.")
    flags.DEFINE_integer("searches", 100, "Searches of each kind.", lower_bound=1)
    tables.start(main, TABLE)

"""Two goals, validation accuracy and a cost: how much of the front a search finds, beside random order.

python experiments/search_grid.py    # trains the points
python experiments/goals.py [--searches=20]
python experiments/goals.py --pages        # only writes the page, from the figures

Searches are replayed by the functions that atalaia.search --goals proposes with, on the points of
experiments/search_grid.py and on pairs of drawn functions over the points of configs/search_kd.py, a new pair for each
seed: the score is one of search_replay.py's, the logarithm of the cost another. After each trial stands the area that
the front of what was tried beats (hypervolume), of that of all points, both from the worst point.
"""

import json
import sys
from pathlib import Path

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).parent))
import search_replay
import tables
from search_grid import GRID, get_space
from tables import Table, grid

PICTURED = "ms"
GOALS = ("flash", PICTURED)  # on the recorded points; the arena is as ms: both grow with the network
NOISE = (0.05, 0.3)  # of drawn functions, as a part of their variance
AT = (4, 8, 12, 16)  # trials after which the table shows the area
RANDOM = 500  # searches in random order: they cost nothing


def main() -> None:
    from atalaia import goals
    from atalaia import space as spaces

    rows, searches = json.loads(GRID.read_text())["rows"], flags.FLAGS.searches
    space, found = get_space(), {}
    scores = {spaces.text(row["point"]): row["curve"][-1][1] if row["steps"] else 0.0 for row in rows}
    costs = {goal: {spaces.text(row["point"]): row["figures"][goals.COSTS[goal]] for row in rows} for goal in GOALS}
    for goal, of_points in costs.items():
        found[f"digits: accuracy, {goal}"] = replay(space, lambda seed, of=of_points: (scores, of), searches)
    space = spaces.load(search_replay.SPACE)
    for noise in NOISE:
        found[f"drawn, {100 * noise:g} % noise"] = replay(space, lambda seed, n=noise: drawn(space, seed, n), searches)
    points = [dict(score=scores[text], cost=cost, point=json.loads(text)) for text, cost in costs[PICTURED].items()]
    TABLE.save(dict(areas=found, points=points))


def drawn(space, seed: int, noise: float) -> tuple[dict, dict]:
    """A score and a cost by point, of two functions that know nothing of each other."""
    cost = search_replay.draw(space, 1000 + seed, noise)
    return search_replay.draw(space, seed, noise), {text: float(np.exp(value)) for text, value in cost.items()}


def replay(space, made, searches: int) -> dict:
    """Areas after each trial `[searches, trials]`, their means by method."""
    from atalaia.progress import Progress

    found = {}
    for method, count in ((bayesian, searches), (random, RANDOM)):
        with Progress(method.__name__, count, "searches") as bar:
            areas = []
            for seed in range(count):
                areas.append(area_after_each(*made(seed), method(space, seed, *made(seed))))
                bar.update()
        error = np.std(areas, axis=0, ddof=1) / np.sqrt(count)
        found[method.__name__] = dict(searches=count, mean=np.mean(areas, 0).tolist(), error=error.tolist())
    return found


def area_after_each(scores: dict, costs: dict, order) -> list[float]:
    """The front's area after each of the first trials, of that of all points."""
    from atalaia import goals

    texts = list(scores)
    both = dict(zip(texts, goals.losses(*zip(*((scores[t], costs[t]) for t in texts), strict=True)), strict=True))
    whole, tried, areas = goals.hypervolume(np.array(list(both.values()))), [], []
    for text, _ in zip(order, range(max(AT)), strict=False):
        tried.append(both[text])
        areas.append(goals.hypervolume(np.array(tried)) / whole)
    return areas


def bayesian(space, seed: int, scores: dict, costs: dict):
    """The points of one search for the front, as atalaia.search would try them."""
    from atalaia import goals
    from atalaia import space as spaces

    results, paid = [], []
    while len(results) < len(scores):
        point = spaces.propose(space, seed, goals.weighed(results, paid, seed))
        text = spaces.text(point)
        results.append(spaces.Result(point, scores[text]))
        paid.append(costs[text])
        yield text


def random(space, seed: int, scores: dict, costs: dict):
    """The points in random order."""
    return search_replay.random(space, seed, scores)


def body(found: dict) -> str:
    """The area by method and number of trials, and the front of the recorded points, in Markdown."""
    from atalaia import goals

    rows = [(name, method, row) for name, by in found["areas"].items() for method, row in by.items()]
    columns = {
        "goals": lambda item: item[0],
        "search": lambda item: item[1],
        "searches": lambda item: item[2]["searches"],
    } | {
        f"after {n} trials": lambda item, n=n: (
            f"{100 * item[2]['mean'][n - 1]:.1f} ± {100 * item[2]['error'][n - 1]:.1f}"
        )
        for n in AT
    }
    points = found["points"]
    best = [points[i] for i in goals.front([p["score"] for p in points], [p["cost"] for p in points])]
    front = {
        "front of all recorded points": lambda p: p["point"]["model"].rpartition(":")[2],
        "learning rate": lambda p: p["point"]["dense.learning_rate"],
        "validation accuracy %": lambda p: f"{100 * p['score']:.1f}",
        "ms on an ESP32, estimated": lambda p: p["cost"],
    }
    return (
        f"Area of the front, % of that of all points (mean ± its standard error):\n\n{grid(columns, rows, left=2)}\n"
        f"{grid(front, best)}"
    )


def headline(found: dict) -> str:
    parts = [
        f"{name}: {100 * by['bayesian']['mean'][11]:.0f} % ({100 * by['random']['mean'][11]:.0f} % at random)"
        for name, by in found["areas"].items()
    ]
    return f"front's area after 12 trials, of that of all points; {'; '.join(parts)}"


def draw(found: dict, path: Path) -> None:
    """The recorded points with their front, and the area by trials."""
    from matplotlib.figure import Figure

    from atalaia import goals, pictures

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = found["points"]
    scores, costs = ([point[name] for point in points] for name in ("score", "cost"))
    names = ("validation accuracy", "ms on an ESP32, estimated")
    goals.draw(left, scores, costs, range(len(points)), 1, names)
    for colour, (name, by) in enumerate(found["areas"].items()):
        for method, style in (("bayesian", "-"), ("random", ":")):
            areas = [100 * area for area in by[method]["mean"]]
            right.plot(range(1, len(areas) + 1), areas, style, color=f"C{colour}", label=f"{name}, {method}")
    right.set(xlabel="trials", ylabel="area of the front, % of all points'")
    right.legend(fontsize=7)
    pictures.save_figure(figure, path)


TABLE = Table(
    name="goals",
    title="Two goals at once",
    shows="How much of the front does `--goals` find, and how soon? Searches are replayed on recorded trainings and on "
    "drawn functions, beside random order.",
    command="python experiments/search_grid.py\npython experiments/goals.py",
    body=body,
    headline=headline,
    picture="The recorded points with their front, and the area by trials",
    draw=draw,
    files=("replay.json",),
    notes=(
        "The recorded points are those of [successive halving](halving.md): 4 widths of a network and 6 learning "
        "rates. Their costs depend on the width alone.",
        "Drawn functions are Gaussian processes over 32 points; score and cost are drawn apart from each other.",
        "Proposals: ParEGO (Knowles, 2006) on the model that a search with one goal has. Libraries for expected "
        "hypervolume were looked at: botorch needs PyTorch, pip found no trieste beside our pins, pymoo has no "
        "proposals by a model.",
    ),
)


if __name__ == "__main__":
    flags.DEFINE_integer("searches", 20, "Searches with the proposals of atalaia.search.", lower_bound=2)
    tables.start(main, TABLE)

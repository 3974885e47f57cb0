"""What successive halving saves: searches replayed on points that were all trained once, with their curves.

python experiments/search_grid.py    # trains the points
python experiments/halving.py [--searches=20]
python experiments/halving.py --pages        # only writes the page, from the figures

The cost of a search is the trainings until one of the best tenth of the points was trained to its end; one that ends at
a rung counts as the part that was trained. A good point that ends early is lost, as in a search. Beside it stands what
a search of 10 trials costs and finds.
"""

import json
import statistics
import sys
from pathlib import Path

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).parent))
import search_replay
import tables
from search_grid import get_space
from tables import Table, grid

FACTORS = (0, 2, 3, 4)  # 0: no halving
TRIALS = 10  # of a search that has a number of trials instead of a target
RANDOM = 2000  # searches in random order: they cost nothing


def main() -> None:
    found = json.loads((TABLE.folder / "grid.json").read_text())
    curves = curves_of(found)
    random = {factor: replay(curves, factor, _random, RANDOM) for factor in FACTORS}
    bayesian = {factor: replay(curves, factor, _bayesian, flags.FLAGS.searches) for factor in (0, 3)}
    TABLE.save(found, dict(random=random, bayesian=bayesian))


def curves_of(found: dict) -> dict[str, dict]:
    """Each point's curve by the point's text: its looks, steps and last value; one that diverged has none."""
    from atalaia import space as spaces

    space = get_space()
    rows = [row | dict(point=spaces.restored(space, row["point"])) for row in found["rows"]]
    return {spaces.text(row["point"]): row | dict(final=row["curve"][-1][1] if row["steps"] else 0.0) for row in rows}


def replay(curves: dict[str, dict], factor: int, order, searches: int) -> dict:
    """Trainings until one of the best tenth has ended, over the searches that find one; and what TRIALS trials give."""
    target = search_replay.target_of({text: row["final"] for text, row in curves.items()})
    found, spent, best = [], [], []
    for seed in range(searches):
        costs, values = trials_of(curves, factor, order, seed, target)
        found += [cost for cost, value in zip(costs, values, strict=True) if value >= target][:1]
        spent.append(costs[min(TRIALS, len(costs)) - 1])
        best.append(max(values[:TRIALS]))
    return dict(
        searches=searches,
        lost=searches - len(found),
        mean=statistics.mean(found),
        error=statistics.stdev(found) / np.sqrt(len(found)),
        median=statistics.median(found),
        spent=statistics.mean(spent),
        best=statistics.mean(best),
        best_error=statistics.stdev(best) / np.sqrt(searches),
    )


def trials_of(curves: dict[str, dict], factor: int, order, seed: int, target: float) -> tuple[list, list]:
    """Of one search, after each trial: the trainings spent, and the value of the trial, 0 where it ended early.

    It goes on for TRIALS trials, and until it has found the target or has tried all points.
    """
    from atalaia import halving

    costs, finals, known, points, found = [0.0], [], [], order(seed, curves), None
    while len(finals) < TRIALS or max(finals) < target:
        try:
            row = curves[points.send(found)]
        except StopIteration:
            break
        values = halving.at_rungs(row["curve"], row["steps"] or np.inf, factor) if factor else []
        rung = halving.ends_at(values, halving.least(known, 1, factor), 1) if factor else None
        known.append(values if rung is None else values[: rung + 1])
        costs.append(costs[-1] + (1.0 if rung is None else 1 / halving.parts(factor)[rung]))
        finals.append(row["final"] if rung is None else 0.0)
        found = dict(value=row["final"] if rung is None else values[rung], rungs=known[-1], ended=rung is not None)
    return costs[1:], finals


def _random(seed, curves):
    """Points in random order; a generator, which is sent what each point found."""
    texts = list(curves)
    for i in np.random.default_rng(seed).permutation(len(texts)):
        yield texts[i]


def _bayesian(seed, curves):
    """Points as atalaia.search proposes them."""
    from atalaia import halving
    from atalaia import space as spaces

    space, rows = get_space(), []
    while len(rows) < len(curves):
        results = [spaces.Result(row["point"], row["value"]) for row in rows]
        results = halving.comparable(results, *([row[name] for row in rows] for name in ("rungs", "ended")))
        point = spaces.propose(space, seed, results)
        found = yield spaces.text(point)
        rows.append(found | dict(point=point))


def body(figures: dict) -> str:
    """Both kinds of search, with and without halving, in Markdown."""
    of, rows = figures["grid"], []
    for kind, by in figures["replay"].items():
        rows += [(kind, int(factor), row, by["0"]) for factor, row in by.items()]
    columns = {
        "search": lambda item: item[0],
        "--halving": lambda item: item[1] or "none",
        "searches": lambda item: f"{item[2]['searches']:,}",
        "trainings, mean": lambda item: f"{item[2]['mean']:.2f} ± {item[2]['error']:.2f}",
        "median": lambda item: f"{item[2]['median']:.2f}",
        "of those without": lambda item: f"{item[2]['mean'] / item[3]['mean']:.2f}",
        "searches that lost the best": lambda item: f"{100 * item[2]['lost'] / item[2]['searches']:.1f} %",
        f"trainings in {TRIALS} trials": lambda item: f"{item[2]['spent']:.2f}",
        "best of them, accuracy %": lambda item: f"{100 * item[2]['best']:.2f} ± {100 * item[2]['best_error']:.2f}",
    }
    values = sorted((row["curve"][-1][1] for row in of["rows"] if row["steps"]), reverse=True)
    return (
        f"{len(of['rows'])} points, {of['epochs']:g} epochs each, on {of['data']}; validation accuracy from "
        f"{100 * values[-1]:.1f} to {100 * values[0]:.1f} %. Trainings until one of the best tenth "
        f"({max(1, len(values) // 10)} points) is found:\n\n{grid(columns, rows, left=2)}"
    )


def headline(figures: dict) -> str:
    parts = [f"{kind}: {by['3']['mean'] / by['0']['mean']:.2f}" for kind, by in figures["replay"].items()]
    return f"trainings with `--halving=3`, of those without it; {', '.join(parts)}"


def draw(figures: dict, path: Path) -> None:
    """The curves of all points, by learning rate."""
    from matplotlib.figure import Figure

    from atalaia import pictures

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes, rates = figure.subplots(), sorted({row["point"]["dense.learning_rate"] for row in figures["grid"]["rows"]})
    for row in figures["grid"]["rows"]:
        rate = row["point"]["dense.learning_rate"]
        parts = [step / row["steps"] for step, _ in row["curve"]] if row["steps"] else []
        label = f"rate {rate:g}" if row["point"]["model"].endswith(":w8") else None
        axes.plot(parts, [value for _, value in row["curve"]], color=f"C{rates.index(rate)}", lw=1, label=label)
    for part in (1 / 9, 1 / 3):
        axes.axvline(part, color="black", lw=0.8, ls=":")
    axes.set(xlabel="part of the training (dotted: rungs of --halving=3)", ylabel="validation accuracy")
    axes.legend(fontsize=8)
    pictures.save_figure(figure, path)


TABLE = Table(
    name="halving",
    title="Bad trials that end early",
    shows="How much training does `--halving` save until a good point is found? All points of a small space were "
    "trained once, with the validation accuracy after each epoch. Searches are replayed on these curves, by the "
    "functions that `atalaia.search` uses.",
    command="python experiments/search_grid.py\npython experiments/halving.py",
    body=body,
    headline=headline,
    picture="The curves of all points",
    draw=draw,
    files=("grid.json", "replay.json"),
    notes=(
        "The older [grid](search_replay.md) of 32 points has no curves: only last values were written down. So a new "
        "one was trained.",
        "One part is one whole training. A search that lost the best points, because they ended early, is in no mean "
        "and no median, which is in favour of halving; a column counts it.",
        "Rungs: after 1/9 and 1/3 of the steps with 3; 1/8, 1/4, 1/2 with 2; 1/4 with 4.",
        "With the proposals of `atalaia.search` nothing is won on so few points: the difference is within chance. Even "
        "without halving, half the searches find a best point by the fifth trial. With as many trials, halving costs "
        "less than half the training and finds less. What it saves has to be spent on more trials.",
        "One seed a point, one space, a small network: another space may save more, or less.",
    ),
)


if __name__ == "__main__":
    flags.DEFINE_integer("searches", 20, "Searches with the proposals of atalaia.search.", lower_bound=2)
    tables.start(main, TABLE)

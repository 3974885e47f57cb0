"""Two goals at once: the score, and what it costs in flash, RAM or time.

No trial is the best of all then: a search looks for the front, the trials of which no other is as good in one goal and
better in the other. Proposals are ParEGO's (Knowles, 2006): each trial draws how much the goals weigh, and the model of
one goal, `space.propose`, looks for a point that is good by these weights.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from atalaia import space as spaces
from atalaia.errors import UserError

COSTS = {"flash": "bytes", "arena": "arena", "ms": "ms"}  # goals, by the figures of atalaia.trials.LIMITS
WEIGHTS = 10  # a weight is one of 0, 1/10 ... 1
RHO = 0.05  # of the weighted sum beside the weighted maximum


def parse(words: Sequence[str], alone: bool = True) -> tuple[str, str] | None:
    """The metric and the cost that --goals names, None where it names none; alone: whether --metric was not given.

    Raises:
      UserError: it names anything else, or --metric was given too.
    """
    if not words:
        return None
    if not alone:
        raise UserError(f"--goals={','.join(words)} names a metric already: leave out --metric")
    if len(words) != 2 or words[0] in COSTS or words[1] not in COSTS:
        raise UserError(
            f"--goals={','.join(words)}: give a metric and a cost, one of {', '.join(COSTS)}, such as val_score,flash"
        )
    return words[0], words[1]


def losses(values: Sequence[float], costs: Sequence[float]) -> np.ndarray:
    """Both goals from 0, the best known, to 1, the worst: `[trials, 2]`. Costs are compared by their logarithms.

    Args:
      values: the higher, the better. costs: above 0; the lower, the better.
    """
    raw = np.stack([-np.asarray(values, float), np.log(costs)], axis=1)
    low, high = raw.min(0), raw.max(0)
    return (raw - low) / np.where(high > low, high - low, 1.0)


def weighed(results: Sequence[spaces.Result], costs: Sequence[float | None], seed: int) -> list[spaces.Result]:
    """Results whose value is of both goals, weighed as the next trial has it: the augmented Tchebycheff function.

    Args:
      results: of the score. costs: of the same trials, None where there is none, as where a trial has no value.
      seed: of the search; the weight is drawn from it and the number of trials before.
    """
    known = [i for i, cost in enumerate(costs) if cost is not None and results[i].value is not None]
    if not known:
        return [r._replace(value=None) for r in results]
    weight = np.random.default_rng((seed, len(results), 1)).integers(WEIGHTS + 1) / WEIGHTS
    both = losses(*zip(*((results[i].value, costs[i]) for i in known), strict=True)) * [weight, 1 - weight]
    worth = dict(zip(known, -(both.max(1) + RHO * both.sum(1)), strict=True))
    return [r._replace(value=float(worth[i]) if i in worth else None) for i, r in enumerate(results)]


def front(values: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Which of them no other beats, by rising cost: of equal ones the first."""
    order = sorted(range(len(values)), key=lambda i: (costs[i], -values[i], i))
    found: list[int] = []
    for i in order:
        if not found or values[i] > values[found[-1]]:
            found.append(i)
    return found


def hypervolume(both: np.ndarray) -> float:
    """Area of the square from (0, 0) to (1, 1) that some point of losses `[n, 2]` beats."""
    area, top = 0.0, 1.0
    for x, y in sorted(map(tuple, np.clip(both, 0, 1))):
        area += (1 - x) * max(0.0, top - y)
        top = min(top, y)
    return area


def draw(
    axes: Any, values: Sequence[float], costs: Sequence[float], numbers: Sequence[int], sign: int, names: tuple
) -> None:
    """Trials by both goals and the line of the front, on matplotlib's axes; sign * value is what is shown."""
    axes.plot(costs, [sign * value for value in values], "o", color="tab:gray", label="trial")
    if best := front(values, costs):
        at = [costs[i] for i in best], [sign * values[i] for i in best]
        axes.step(*at, where="post", color="tab:blue")
        axes.plot(*at, "o", color="tab:blue", label="front")
        for x, y, i in zip(*at, best, strict=True):
            axes.annotate(str(numbers[i]), (x, y), textcoords="offset points", xytext=(4, 4), fontsize=7)
    axes.set(xlabel=names[1], ylabel=names[0], xscale="log")
    axes.legend()

"""Bad trials end early: asynchronous successive halving (ASHA, Li et al., 2018, arXiv:1810.05934), its stopping form.

A trial is looked at after parts of its steps, the rungs: with `halving` 3 after a ninth and a third. It goes on where
it is among the best third of the trials known there, else it ends with the value that it has. Which trials are known is
fixed when a trial is proposed: so what ends where does not depend on which trial is faster, nor on kills. In the paper
a trial waits at a rung for its promotion; here it never waits.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from atalaia import metrics
from atalaia.space import Result

LEAST = 0.1  # no rung stands before this part of a trial's steps


def parts(halving: int) -> list[int]:
    """A rung stands after one part in so many of a trial's steps: halving ** k, the first rung first."""
    found = [halving]
    while found[0] * halving * LEAST <= 1:
        found.insert(0, found[0] * halving)
    return found


def reached(workdir: Path, metric: str, steps: int, halving: int) -> list[float]:
    """What a run of so many steps had at the rungs that it has reached: at the first look at or after each."""
    looks = [(row["step"], row[metric]) for row in metrics.rows(workdir) if metric in row]
    return at_rungs(looks, steps, halving)


def at_rungs(looks: Sequence[tuple[int, float]], steps: int, halving: int) -> list[float]:
    """The same of looks at the validation split: (step, value), by step."""
    found = (next((value for step, value in looks if step * part >= steps), None) for part in parts(halving))
    return [value for value in found if value is not None]


def least(known: Sequence[Sequence[float]], sign: int, halving: int) -> list[float | None]:
    """By rung, what a trial needs to be among the best 1 / halving of those known there and itself.

    Args:
      known: what each known trial had at the rungs that it reached.
      sign: 1 where larger is better, else -1.
      halving: see above.

    Returns:
      A value for each rung; None where too few are known to tell.
    """
    found: list[float | None] = []
    for rung in range(len(parts(halving))):
        values = sorted((sign * values[rung] for values in known if len(values) > rung), reverse=True)
        places = (len(values) + 1) // halving  # of them and the trial
        found.append(sign * values[places - 1] if places else None)
    return found


def ends_at(values: Sequence[float], least: Sequence[float | None], sign: int) -> int | None:
    """The first rung at which a trial with these values is too bad, or None. What is not finite is."""
    for rung, (value, needed) in enumerate(zip(values, least, strict=False)):
        if not math.isfinite(value) or (needed is not None and sign * value < sign * needed):
            return rung
    return None


def comparable(results: Sequence[Result], rungs: Sequence[Sequence[float]], ended: Sequence[bool]) -> list[Result]:
    """Results whose values all tell of a last step, for what is proposed next.

    A trial that ended at a rung counts as having gained from there what the trials that went on did, by their median.
    Its own value would tell the model that a point is worse than it is: most of them learn on.

    Args:
      results: of the known trials. rungs: what each had at the rungs that it reached, the higher the better.
      ended: which of them ended early.
    """
    both = list(zip(results, rungs, ended, strict=True))
    whole = [(result.value, at) for result, at, early in both if not early and result.value is not None]
    found = []
    for result, at, early in both:
        gains = [value - other[len(at) - 1] for value, other in whole if len(other) >= len(at)] if early else []
        if gains and result.value is not None:
            result = result._replace(value=result.value + statistics.median(gains))
        found.append(result)
    return found

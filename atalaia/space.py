"""What a search may try, and what it tries next.

A space is a file with `get_space()`, which returns {field of the config: choice(...), integers(...) or uniform(...)}.
`propose` is a pure function of the space, the seed, and what is known: a search that was stopped, or is replayed on
recorded results, proposes the same points again.
"""

import itertools
import json
import math
import runpy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import NonlinearConstraint
from scipy.stats import qmc
from sklearn.gaussian_process.kernels import Matern

from atalaia.errors import UserError, require

FINITE = 4096  # points up to which all of them are weighed; of a larger space, this many that are drawn
NEAR, SPREADS = 64, (0.2, 0.05)  # of a larger space: points drawn around each of the best, how far of the range
INITIAL = 3  # points that fill the space before the model chooses
NOISE = 0.01  # variance of a metric at one point, as a part of its variance over the space
ENOUGH = 4  # results for each field from which on the kernel has a length for each column, not one for all
LENGTH, LENGTHS = 0.5, (0.4, 2.0)  # of the kernel, in ranges of a field: first guess, bounds


class Spec(NamedTuple):
    """The values that a field may have: those of a choice, or from `low` to `high`, both included."""

    values: tuple = ()
    low: float = 0
    high: float = 0
    integer: bool = False
    log: bool = False


Space = Mapping[str, Spec]
Point = dict[str, Any]


class Result(NamedTuple):
    """What a trial found.

    value: the higher, the better; None where training diverged, which counts as the worst value known.
    over: log(figure / limit) of each limited figure, above 0 where the limit is broken; () where none was measured.
    """

    point: Point
    value: float | None
    over: tuple[float, ...] = ()


def choice(*values: Any) -> Spec:
    """One of the values. Numbers are taken as ordered, at equal distances; all others as unrelated."""
    if not values:
        raise ValueError("a choice needs values, such as choice(0.1, 0.5)")
    return Spec(values=values)


def integers(low: int, high: int, log: bool = False) -> Spec:
    """A whole number; with `log`, as likely between 1 and 10 as between 10 and 100."""
    return Spec(low=low, high=high, integer=True, log=log)


def uniform(low: float, high: float, log: bool = False) -> Spec:
    """Any number, to four digits; with `log`, as likely between 0.01 and 0.1 as between 0.1 and 1."""
    return Spec(low=low, high=high, log=log)


def load(path: str) -> Space:
    """The space of a file.

    Raises:
      UserError: there is no such file, or it gives no space; the field is named where one is wrong by itself.
    """
    if not Path(path).is_file():
        raise UserError(f"no space file {path}: give one such as configs/search_kd.py")
    try:
        space = runpy.run_path(path)["get_space"]()
    except (Exception, SystemExit) as error:  # whatever a user's file raises
        raise UserError(f"{path} gives no space: {type(error).__name__}: {error}") from None
    if not isinstance(space, dict) or not space:
        raise UserError(f"{path}: get_space() must return {{field: choice(...), integers(...) or uniform(...)}}")
    for field, spec in space.items():
        if not isinstance(spec, Spec):
            raise UserError(f"{path}: {field} is {spec!r}, but choice(...), integers(...) or uniform(...) is needed")
        _refuse_empty(field, spec)
    return space


def _refuse_empty(field, spec):
    if spec.values:
        if any(a == b or text(a) == text(b) for a, b in itertools.combinations(spec.values, 2)):
            raise UserError(f"{field}: a value stands twice in {spec.values}")
        if len(spec.values) < 2:
            raise UserError(
                f"{field} has only the value {spec.values[0]!r}: give more, or set --config.{field} instead"
            )
        return
    kinds = int if spec.integer else int | float
    for end in (spec.low, spec.high):
        if isinstance(end, bool) or not isinstance(end, kinds):
            kind = "whole numbers" if spec.integer else "numbers"
            raise UserError(f"{field}: a range of {kind} cannot end at {end!r}")
    if not -math.inf < spec.low < spec.high < math.inf:
        raise UserError(f"{field}: the range from {spec.low} to {spec.high} is empty or not finite")
    if spec.log and spec.low <= 0:
        raise UserError(f"{field}: a log range must begin above 0, not at {spec.low}")
    if value_at(spec, 0.0) == value_at(spec, 1.0):
        raise UserError(f"{field}: from {spec.low} to {spec.high} there is one value of four digits, as they are tried")


def ends(spec: Spec) -> tuple:
    """The values to check: all of a choice, first and last of a range."""
    return spec.values or (spec.low, spec.high)


def text(value: Any) -> str:
    """A value, or a point, so that it can be compared after it was in a JSON file: tuples become lists there."""
    return json.dumps(value, sort_keys=True, default=str)


def restored(space: Space, point: Mapping[str, Any]) -> Point:
    """A point as it was before it was in a JSON file."""
    return {
        field: next((v for v in space[field].values if text(v) == text(value)), value) for field, value in point.items()
    }


def size(space: Space) -> float:
    """How many points there are."""
    return math.prod(len(s.values) or (s.high - s.low + 1 if s.integer else math.inf) for s in space.values())


def every_point(space: Space) -> Iterator[Point]:
    """All points of a finite space, the last field changing fastest."""
    ranges = [s.values or range(int(s.low), int(s.high) + 1) for s in space.values()]
    return (dict(zip(space, values, strict=True)) for values in itertools.product(*ranges))


def value_at(spec: Spec, position: float) -> Any:
    """The value at a position in [0, 1] of a field; positions that are spread evenly give values as the spec says."""
    if spec.values:
        return spec.values[min(int(position * len(spec.values)), len(spec.values) - 1)]
    low, high = _edges(spec)
    value = low + position * (high - low)
    value = math.exp(value) if spec.log else value
    value = round(value) if spec.integer else float(f"{value:.4g}")
    return min(max(value, spec.low), spec.high)


def position_of(spec: Spec, value: Any) -> float:
    """The position in [0, 1] of a value, `value_at`'s inverse."""
    if spec.values:
        return ([text(v) for v in spec.values].index(text(value)) + 0.5) / len(spec.values)
    low, high = _edges(spec)
    return ((math.log(value) if spec.log else value) - low) / (high - low)


def _edges(spec):
    half = 0.5 if spec.integer else 0.0  # an integer stands for all that rounds to it
    low, high = spec.low - half, spec.high + half
    return (math.log(low), math.log(high)) if spec.log else (low, high)


def coordinates(space: Space, point: Point) -> list[float]:
    """A point as the model sees it: each field from 0 to 1, a choice between unrelated things in several columns."""
    found = []
    for field, spec in space.items():
        value = point[field]
        if spec.values and not all(isinstance(v, int | float) for v in spec.values):
            # One column a value, scaled so that two different values are 1 apart.
            found += [math.sqrt(0.5) * (text(v) == text(value)) for v in spec.values]
        elif spec.values:
            found.append(sorted(spec.values).index(value) / (len(spec.values) - 1))
        else:
            found.append(position_of(spec, value))
    return found


def propose(space: Space, seed: int, results: Sequence[Result], pending: Sequence[Point] = ()) -> Point:
    """The next point to try: the first ones fill the space, then the largest expected improvement; never one twice.

    Args:
      space: the fields and their values.
      seed: of the search; the proposal's own randomness is drawn from it and the number of points before it.
      results: the trials that are done, in order.
      pending: the points being tried, which are taken to end as the worst known ("constant liar", Ginsbourger, Le
        Riche and Carraro, 2010, section 4.2.2), so that proposals keep their distance.

    Raises:
      UserError: every point of a finite space was tried.
    """
    number = len(results) + len(pending)
    rng = np.random.default_rng((seed, number))
    fill = qmc.Halton(len(space), rng=seed).random(number + 1)[number]
    filling = {field: value_at(spec, u) for (field, spec), u in zip(space.items(), fill, strict=True)}
    taken = {text(point) for point in (*(r.point for r in results), *pending)}
    candidates = [p for p in (filling, *_candidates(space, rng, results)) if text(p) not in taken]
    if not candidates:
        raise UserError(f"every one of the {len(taken)} points of the space was tried")
    x = np.array([coordinates(space, p) for p in candidates])
    if number < INITIAL or not any(r.value is not None for r in results):
        return candidates[int(np.argmin(np.linalg.norm(x - coordinates(space, filling), axis=1)))]
    require("bayes_opt", "search")
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # small matrices: more threads would only wait for those of the trials at work
        return candidates[int(np.argmax(_acquisition(space, seed, results, pending, x)))]


def _candidates(space, rng, results):
    """Points to choose from, in random order, so that of equal ones any may be the first."""
    if size(space) <= FINITE:
        points = list(every_point(space))
        return [points[i] for i in rng.permutation(len(points))]
    positions = [rng.random((FINITE, len(space)))]
    best = sorted((r for r in results if r.value is not None), key=lambda r: (max((0, *r.over)), -r.value))[:3]
    for result in best:
        centre = [position_of(spec, result.point[field]) for field, spec in space.items()]
        positions += [centre + s * rng.standard_normal((NEAR, len(space))) for s in SPREADS]
    rows = np.clip(np.concatenate(positions), 0, 1)
    return [{f: value_at(s, u) for (f, s), u in zip(space.items(), row, strict=True)} for row in rows]


def _acquisition(space, seed, results, pending, x):
    """Expected improvement at coordinates `x`, times the probability that the limits are met (Gardner et al., 2014).

    While no trial meets them, there is nothing to improve on: the probability alone. The library's own `suggest` does
    not rank a finite set, and its ConstantLiar refuses limits: so its model is asked for its prediction instead.
    """
    optimizer = _fitted(space, seed, results, pending)
    names = optimizer.space.keys
    mean, std = optimizer.predict([dict(zip(names, row, strict=True)) for row in x], return_std=True)
    met = optimizer.constraint.predict(x) if optimizer.is_constrained else 1.0
    allowed = [r.value for r in results if r.value is not None and max((0, *r.over)) <= 0]
    if not allowed:
        return met
    from bayes_opt import acquisition

    improvement = acquisition.ExpectedImprovement(xi=0.0)
    improvement.y_max = max(allowed)
    return improvement.base_acq(mean, std) * met


def _fitted(space, seed, results, pending):
    """The library's optimiser, which was told all that is known; what is not measured is as the others are."""
    from bayes_opt import BayesianOptimization

    width = len(coordinates(space, results[0].point))
    limits = max(len(r.over) for r in results)
    limit = NonlinearConstraint(None, [-np.inf] * limits, [0.0] * limits) if limits else None
    bounds = {str(i): (0.0, 1.0) for i in range(width)}
    optimizer = BayesianOptimization(None, bounds, constraint=limit, random_state=seed, verbose=0)
    length = [LENGTH] * width if len(results) >= ENOUGH * len(space) else LENGTH
    optimizer.set_gp_params(kernel=Matern(length, LENGTHS, nu=2.5), alpha=NOISE)
    worst = min(r.value for r in results if r.value is not None)
    usual = np.mean([r.over for r in results if r.over], axis=0) if limits else ()
    for r in (*results, *(Result(point, worst) for point in pending)):
        over = r.over or usual
        constraint = (over if limits > 1 else over[0]) if limits else None
        optimizer.register(
            np.array(coordinates(space, r.point)), worst if r.value is None else r.value, constraint_value=constraint
        )
    return optimizer

"""Magnitude pruning as an optax wrapper: masks live in the optimiser's state, pruned weights are exactly zero.

`prune(inner, ...)` wraps an optimiser as `optax.MultiSteps` does. Gradients are masked before it, so that momentum
never grows on a pruned weight; after it a pruned weight's update is set to -weight. So weights are zero after every
step with nothing to call in between, and a checkpoint of the optimiser's state holds the masks.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from atalaia.errors import UserError
from atalaia.rules import compile_pattern, parse

Masks = dict[str, jax.Array]  # parameter's path to bool of its shape; False: pruned


class PruneState(NamedTuple):
    """count: steps done, int32 `[]`; masks: of the pruned parameters; inner: the wrapped optimiser's state."""

    count: jax.Array  # type: ignore[assignment]  # so optax's states name it too, which hides tuple.count
    masks: Masks
    inner: optax.OptState


class Schedule(NamedTuple):
    """When masks change: `due(count)` bool, and to what: `sparsity(count, final)`, both traced in count."""

    due: Callable[[jax.Array], jax.Array]
    sparsity: Callable[[jax.Array, float], jax.Array | float]


def one_shot(config: ConfigDict, steps: int) -> Schedule:
    """The whole sparsity at once at `begin`, masks frozen from then on."""
    begin = _step(config.begin, steps)
    return Schedule(lambda count: count == begin, lambda count, final: final)


def constant(config: ConfigDict, steps: int) -> Schedule:
    """The whole sparsity from `begin` on, masks chosen anew every `every` steps until `end`.

    Since a pruned weight is exactly zero and ranks last, the masks stay what `one_shot` chose: it is the same schedule
    by the name that Zhu & Gupta's implementation gave it.
    """
    begin, end = _step(config.begin, steps), _step(config.end, steps)
    return Schedule(lambda count: _between(count, begin, end, config.every), lambda count, final: final)


def cubic(config: ConfigDict, steps: int) -> Schedule:
    """final + (initial - final) * (1 - progress)^3 from `begin` to `end` (Zhu & Gupta, 2017, arXiv:1710.01878)."""
    begin, end = _step(config.begin, steps), _step(config.end, steps)

    def sparsity(count, final):
        progress = jnp.where(count >= end, 1.0, jnp.clip((count - begin) / max(end - begin, 1), 0.0, 1.0))
        initial = min(config.initial_sparsity, final)
        return final + (initial - final) * (1.0 - progress) ** 3

    return Schedule(lambda count: _between(count, begin, end, config.every), sparsity)


def _step(part, steps):
    """The step at that part of a stage; the last step at the latest, so that it happens."""
    return min(round(part * steps), steps - 1)


def _between(count, begin, end, every):
    """Every so many steps from begin, and at the end, where the final sparsity is reached."""
    return (count >= begin) & (count <= end) & (((count - begin) % every == 0) | (count == end))


SCHEDULES = {"one_shot": one_shot, "constant": constant, "cubic": cubic}
FROZEN = Schedule(lambda count: jnp.array(False), lambda count, final: final)


def validate(config: ConfigDict) -> None:
    """Checks the fields of config.prune that need no parameters.

    Raises:
      UserError: names the field, what is wrong and what is allowed.
    """
    if config.schedule not in SCHEDULES:
        raise UserError(f"prune.schedule: there is no {config.schedule!r}, only {', '.join(sorted(SCHEDULES))}")
    if config.scope not in ("uniform", "global"):
        raise UserError(f"prune.scope: there is no {config.scope!r}, only global, uniform")
    for field in ("sparsity", "initial_sparsity"):
        if not 0 <= config[field] < 1:
            raise UserError(f"prune.{field} must be in [0, 1), not {config[field]}")
    if not 0 <= config.begin <= config.end <= 1:
        raise UserError(f"prune.begin and end must be 0 <= begin <= end <= 1, not {config.begin} and {config.end}")
    if config.every < 1:
        raise UserError(f"prune.every must be at least 1 step, not {config.every}")
    _rules(config)
    compile_pattern("prune.pattern", config.pattern)


def targets(params: dict, config: ConfigDict) -> tuple[dict[str, float], frozenset[str]]:
    """Final sparsity of each pruned parameter by path, and the paths that share one global sparsity.

    Args:
      params: the network's parameters.
      config: fields of config.prune; `layers` goes before `pattern`.

    Raises:
      UserError: a pattern matches no parameter; the parameters are listed.
    """
    paths = [path for path, value in flatten_dict(params, sep="/").items() if value.ndim > 1]
    rules = [*_rules(config), (config.pattern, config.sparsity)]
    general = len(rules) - 1
    for pattern, _ in rules:
        if not any(re.search(pattern, path) for path in paths):
            raise UserError(f"pruning: pattern {pattern!r} matches no parameter; there are {', '.join(paths)}")
    chosen = {p: next((i for i, (r, _) in enumerate(rules) if re.search(r, p)), None) for p in paths}
    sparsity = {p: rules[i][1] for p, i in chosen.items() if i is not None and rules[i][1] > 0}
    shared = {p for p in sparsity if config.scope == "global" and chosen[p] == general}
    return sparsity, frozenset(shared)


def _rules(config):
    def sparsity(text):
        if not 0 <= float(text) < 1:
            raise ValueError
        return float(text)

    return parse("prune.layers", config.layers, sparsity, "sparsity with a sparsity in [0, 1)")


def prune(
    inner: optax.GradientTransformation,
    sparsity: dict[str, float],
    schedule: Schedule = FROZEN,
    shared: frozenset[str] = frozenset(),
    masks: Masks | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wraps `inner` so that the smallest weights of chosen parameters become and stay exactly zero.

    Args:
      inner: the optimiser.
      sparsity: final sparsity by path of each pruned parameter, such as {"conv0a/kernel": 0.9}.
      schedule: when masks change and how sparse they are then; FROZEN never changes them.
      shared: paths whose weights are ranked together (global magnitude), the others each by themselves.
      masks: to begin with, such as those of an earlier stage: what is pruned there stays pruned.

    Returns:
      An optimiser; its update needs `params`.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params):
        flat = flatten_dict(params, sep="/")
        start = {path: jnp.ones(jnp.shape(flat[path]), bool) for path in sparsity} | dict(masks or {})
        return PruneState(jnp.zeros([], jnp.int32), start, inner.init(params))

    def update(grads, state, params=None, **extra: Any):
        if params is None:
            raise ValueError("prune needs the parameters: call update(grads, state, params)")
        flat = flatten_dict(params, sep="/")
        new = jax.lax.cond(
            schedule.due(state.count),
            lambda: _choose_masks(flat, state.masks, sparsity, shared, lambda s: schedule.sparsity(state.count, s)),
            lambda: state.masks,
        )
        updates, inner_state = inner.update(apply_masks(grads, new), state.inner, apply_masks(params, new), **extra)
        updates = flatten_dict(updates, sep="/")
        updates |= {path: jnp.where(mask, updates[path], -flat[path]) for path, mask in new.items()}
        return unflatten_dict(updates, sep="/"), PruneState(state.count + 1, new, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _choose_masks(flat, old, sparsity, shared, now):
    """Keeps the largest weights of each parameter, or of all `shared` ones together; never more than `old` keeps."""
    groups = [[path] for path in sparsity if path not in shared] + ([sorted(shared)] if shared else [])
    masks = dict(old)
    for group in groups:
        magnitudes = jnp.concatenate([jnp.where(old[path], jnp.abs(flat[path]), -1).ravel() for path in group])
        keep = _keep_largest(magnitudes, now(sparsity[group[0]]))
        start = 0
        for path in group:
            size = flat[path].size
            masks[path] = keep[start : start + size].reshape(flat[path].shape) & old[path]
            start += size
    return masks


def _keep_largest(magnitudes, sparsity):
    """bool `[n]`, False for exactly round(sparsity * n) smallest; among equals the first go first."""
    n = magnitudes.size
    order = jnp.argsort(magnitudes, stable=True)
    pruned = jnp.round(sparsity * n).astype(jnp.int32)
    return jnp.zeros(n, bool).at[order].set(jnp.arange(n) >= pruned, unique_indices=True)


def apply_masks(params: dict, masks: Masks) -> dict:
    """params with the pruned values set to zero."""
    flat = flatten_dict(params, sep="/")
    flat |= {path: jnp.where(mask, flat[path], 0) for path, mask in masks.items()}
    return unflatten_dict(flat, sep="/")


def masks_of(opt_state: optax.OptState) -> Masks | None:
    """The masks in the state of a `prune` optimiser, None in that of another (what `prune` is inside of included)."""
    return opt_state.masks if isinstance(opt_state, PruneState) else None


def report(params: dict, masks: Masks) -> tuple[dict[str, float], str]:
    """Sparsity reached by path and in all, counted in the weights themselves, and its table."""
    flat = flatten_dict(params, sep="/")
    zeros = {path: int((flat[path] == 0).sum()) for path in masks}
    rows = {path: zeros[path] / flat[path].size for path in masks}
    rows["all pruned parameters"] = sum(zeros.values()) / max(sum(flat[path].size for path in masks), 1)
    lines = [f"{'parameter':<26}{'weights':>11}{'zeros':>11}{'sparsity':>10}"]
    for path, reached in rows.items():
        size = flat[path].size if path in flat else sum(flat[p].size for p in masks)
        count = zeros.get(path, sum(zeros.values()))
        lines.append(f"{path:<26}{size:>11,}{count:>11,}{reached:>10.4f}")
    return rows, "\n".join(lines)

"""Channels that are really gone: the stage `shrink` cuts those that matter least, and trains on what is left.

In one cut the channels of each group (`channels.find`) get scores, the network's cost in the generated C says how many
of which group go, and params, batch_stats and the optimiser's state lose them. The smaller network computes what the
larger one would with those channels at zero. All that comes after a cut runs on it: stages, export, evaluation, C.
"""

import math
import re
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from atalaia import channels, data, folding, layers, qat, quantize, tasks
from atalaia.channels import Ties
from atalaia.codegen import forecast
from atalaia.codegen.forecast import GOALS
from atalaia.errors import UserError, choice
from atalaia.rules import compile_pattern

SCORES, SCOPES = ("l2", "norm", "taylor"), ("global", "uniform")
STEPS = 32  # a group loses its channels in so many portions at most


def validate(config: ConfigDict) -> None:
    """Checks the fields of config.shrink that need no network.

    Raises:
      UserError: names the field, what is wrong and what is allowed.
    """
    choice("shrink.score", config.score, SCORES)
    choice("shrink.scope", config.scope, SCOPES)
    choice("shrink.goal", config.goal, GOALS)
    if bool(config.keep) == bool(config.budget):
        which = "both" if config.keep else "neither"
        raise UserError(f"shrink: {which} of keep and budget given; set exactly one, the other to 0")
    if not 0 <= config.keep < 1:
        raise UserError(f"shrink.keep is the part of {config.goal} that stays, in (0, 1), not {config.keep}")
    if not 0 <= config.budget < math.inf:
        raise UserError(f"shrink.budget is a number of {config.goal}, not {config.budget}")
    if not 0 <= config.least <= 1:
        raise UserError(f"shrink.least must be in [0, 1], not {config.least}")
    for field in ("multiple", "cuts"):
        if config[field] < 1:
            raise UserError(f"shrink.{field} must be at least 1, not {config[field]}")
    if not 0 <= config.end <= 1:
        raise UserError(f"shrink.end must be in [0, 1], not {config.end}")
    compile_pattern("shrink.fixed", config.fixed)


def weight_bits(model: nn.Module, config: ConfigDict) -> dict[str, int]:
    """Bits of each layer's weights in the generated C by path; 8 where they are chosen after the cuts, or not named."""
    if "quantize" not in config.stages:
        return {}
    found = qat.weight_bits(quantize.linear_paths(model), config.quantize)
    return {path: 8 if bits == qat.AUTO else bits for path, bits in found.items()}


def refuse_impossible(
    model: nn.Module, params: dict, shape: tuple[int, ...], config: ConfigDict, bits: dict[str, int] | None = None
) -> None:
    """Does nothing where the goal can be reached.

    Args:
      model, params: the network and its parameters, or their shapes; shape: of an image.
      config: fields of config.shrink.
      bits: of each layer's weights by path, where they are not 8.

    Raises:
      UserError: no channels may go, or the network with the fewest channels costs more than the goal.
    """
    ties = free(channels.find(model, params), config.fixed)
    if not ties.groups:
        raise UserError(f"shrink: no channels of {type(model).__name__} may go: its layers only make outputs")
    cost = Costs(model, ties, shape, config.goal, bits)
    sizes = {name: group.size for name, group in ties.groups.items()}
    least = {name: _least(size, size, config) for name, size in sizes.items()}
    _refuse_more(cost(least), config.budget or config.keep * cost(sizes), cost(sizes), config)


def _refuse_more(found, wanted, now, config):
    """What the fewest channels cost must not be more than what is wanted."""
    if found > wanted:
        raise UserError(
            f"shrink: {wanted:,.0f} {config.goal} cannot be reached: the fewest channels that shrink.least="
            f"{config.least} and shrink.multiple={config.multiple} leave take {found:,.0f} of {now:,.0f}; make them "
            "smaller, or ask for less"
        )


def free(ties: Ties, fixed: str) -> Ties:
    """The ties without the groups that a layer makes which `fixed` matches; "" matches none.

    Raises:
      UserError: it matches no layer; those that make channels are listed.
    """
    if not fixed:
        return ties
    makers = [maker for group in ties.groups.values() for maker in group.makers]
    if not any(re.search(fixed, maker) for maker in makers):
        raise UserError(f"shrink.fixed: pattern {fixed!r} matches no layer; there are {', '.join(makers)}")
    groups = {n: g for n, g in ties.groups.items() if not any(re.search(fixed, maker) for maker in g.makers)}
    return ties._replace(groups=groups)


class Costs:
    """The network's cost by the sizes of its groups: `costs(sizes)` in the goal's unit; what was asked is kept.

    bits: of each layer's weights by path, where they are not 8.
    """

    def __init__(
        self, model: nn.Module, ties: Ties, shape: tuple[int, ...], goal: str, bits: dict[str, int] | None = None
    ):
        self.goal, self.bits = goal, bits or {}
        self.known: dict[tuple[str, tuple[int, ...]], forecast.Cost] = {}
        self.layers: list[tuple[str, layers.Layer, list[tuple[int, ...]], tuple[int, ...]]] = []
        self.through = ties.through
        self.sizes = {name: group.size for name, group in ties.groups.items()}

        def rule(path, layer, *inputs):
            out = layers.output_spec(layer, *inputs)
            self.layers.append((path, layer, [x.shape for x in inputs], out.shape))
            return out

        layers.interpret(model, rule, layers.spec((1, *shape)))

    def each(self, sizes: dict[str, int]) -> list[forecast.Cost]:
        """By layer."""
        return [self._one(*layer, sizes) for layer in self.layers]

    def __call__(self, sizes: dict[str, int]) -> float:
        return GOALS[self.goal](self.each(sizes))

    def saved(self, before: dict[str, int], after: dict[str, int]) -> float:
        """What a change saves; of milliseconds in instructions, which are not rounded."""
        if self.goal != "ms":
            return self(before) - self(after)
        return sum(a.instructions - b.instructions for a, b in zip(self.each(before), self.each(after), strict=True))

    def _one(self, path, layer, inputs, out, sizes):
        groups, last = self.through[path]
        now = tuple(sizes.get(name, 0) for name in (*groups, last))
        if (path, now) not in self.known:
            small = [self._shape(x, name, sizes) for x, name in zip(inputs, groups, strict=True)]
            self.known[path, now] = forecast.layer(layer, small, self._shape(out, last, sizes), self.bits.get(path, 8))
        return self.known[path, now]

    def _shape(self, shape, name, sizes):
        if name not in self.sizes:
            return shape
        return (*shape[:-1], shape[-1] // self.sizes[name] * sizes[name])


def scores(
    config: ConfigDict, model: nn.Module, variables: dict, ties: Ties, split: data.Split | None = None
) -> dict[str, np.ndarray]:
    """What each channel matters, float64 `[size]` by group.

    Args:
      config: of the run; config.shrink.score names one of these, of a layer that makes the group's channels:
        l2: the size of the channel's weights, BatchNorm folded in, relative to the group's mean, as often as there are
        layers that make it: or those that many layers share would all go first, since most is saved with them;
        norm: the same of BatchNorm's scale (Liu et al., 2017, arXiv:1708.06519), of weights where there is none;
        taylor: how much the loss would change without the channel, by its first derivative (Molchanov et al., 2019,
        arXiv:1906.10771), over `calibration.images` of the training images.
      model, variables: the network; ties: its groups.
      split: the images of "taylor".
    """
    score = config.shrink.score
    if score == "taylor":
        return _taylor(config, model, variables, ties, split)
    folded = folding.fold(model, jax.device_get(variables))

    def square(maker):
        params = layers.subtree(variables["params"], maker)
        if score == "norm" and "norm" in params:
            return np.square(np.asarray(params["norm"]["scale"], np.float64))
        kernel = np.asarray(folded[maker].kernel, np.float64)
        return np.square(kernel).sum(tuple(range(kernel.ndim - 1)))

    found = {name: np.sqrt(sum(square(maker) for maker in g.makers)) for name, g in ties.groups.items()}
    tiny = np.finfo(np.float64).tiny
    return {name: len(ties.groups[name].makers) * value / max(value.mean(), tiny) for name, value in found.items()}


def _taylor(config, model, variables, ties, split):
    """Sum over batches of the squared derivative by a factor of the channel, which is 1, at all layers that make it."""
    hard, size = tasks.objective(config).hard, min(config.batch_size, len(split.images))

    @jax.jit
    def by_weights(params, images, targets):
        def loss(params):
            return hard(model.apply(variables | dict(params=params), data.to_float(images)), targets)

        return jax.tree.map(lambda weight, slope: weight * slope, params, jax.grad(loss)(params))

    order = np.random.RandomState(config.seed).permutation(len(split.images))[: max(config.calibration.images, size)]
    total = {name: np.zeros(group.size) for name, group in ties.groups.items()}
    for start in range(0, len(order) - size + 1, size):
        index = np.sort(order[start : start + size])
        targets = jax.tree.map(lambda x, index=index: x[index], split.targets)
        products = jax.device_get(by_weights(variables["params"], split.images[index], targets))
        for name, group in ties.groups.items():
            total[name] += np.square(sum(_factor(layers.subtree(products, maker)) for maker in group.makers))
    return total


def _factor(products):
    """The derivative by a factor of a layer's output: of its last weights, BatchNorm's where it has one."""
    last = products["norm"] if "norm" in products else {k: products[k] for k in ("kernel", "bias")}
    return sum(np.asarray(x, np.float64).reshape(-1, x.shape[-1]).sum(0) for x in last.values())


def choose(
    found: dict[str, np.ndarray], cost: Costs, target: float, least: dict[str, int], config: ConfigDict
) -> dict[str, int]:
    """How many channels each group keeps, so that the network costs at most `target`.

    Args:
      found: scores by group; cost: of the network; least: channels that each group keeps at least.
      config: fields of config.shrink; with scope "uniform" each group keeps the same part, with "global" those go first
        that matter least for what they cost.
    """
    sizes = {name: len(score) for name, score in found.items()}
    if config.scope == "uniform":
        for part in np.linspace(1, 0, 129):
            now = {n: max(least[n], _rounded(size * part, size, config.multiple)) for n, size in sizes.items()}
            if cost(now) <= target:
                break
        return now
    now = dict(sizes)
    ordered = {name: np.sort(score) for name, score in found.items()}

    def price(name):
        gone, fewer = sizes[name] - now[name], _fewer(now[name], sizes[name], least[name], config.multiple)
        matters = ordered[name][gone : gone + now[name] - fewer].sum()
        saved = cost.saved(now, now | {name: fewer})
        return (matters / saved if saved > 0 else math.inf), name, fewer

    while cost(now) > target:
        open_groups = [name for name in sizes if now[name] > least[name]]
        if not open_groups:
            break
        _, name, fewer = min(price(name) for name in open_groups)
        now[name] = fewer
    return now


def _rounded(count, size, multiple):
    """A number of channels up to the next multiple, all of them at most."""
    return min(size, max(multiple, math.ceil(count / multiple) * multiple))


def _fewer(count, size, least, multiple):
    """Channels after the next portion has gone."""
    portion = max(1, size // (STEPS * multiple)) * multiple
    return max(least, (count - 1) // multiple * multiple - portion + multiple)


def _least(whole, size, config):
    return min(size, _rounded(config.least * whole, whole, config.multiple))


def cut(
    config: ConfigDict,
    model: nn.Module,
    state: Any,
    whole: dict,
    split: data.Split,
    left: int = 1,
    cuts: int = 1,
) -> tuple[Any, str]:
    """A step.TrainState without the channels that matter least, and a table of what was done.

    Args:
      config: of the run; model: the network as its code is; state: whatever it has lost already.
      whole: its parameters, or their shapes, before any cut.
      split: training images.
      left, cuts: how many are left, this one counted, of how many: each takes its part, as a factor, of the way.
    """
    fields, shape = config.shrink, split.images.shape[1:]
    state, now = jax.device_get(state), channels.fitted(model, whole, state.params)
    ties = free(channels.find(now, state.params), fields.fixed)
    first = {name: group.size for name, group in channels.find(model, whole).groups.items()}
    least = {name: _least(first[name], group.size, fields) for name, group in ties.groups.items()}
    cost = Costs(now, ties, shape, fields.goal, weight_bits(model, config))
    before = {name: group.size for name, group in ties.groups.items()}
    part = fields.keep ** (1 / cuts) if fields.keep else min(1, fields.budget / cost(before)) ** (1 / left)
    _refuse_more(cost(least), part * cost(before), cost(before), fields)
    variables = dict(params=state.params, batch_stats=state.batch_stats)
    found = scores(config, now, variables, ties, split)
    after = choose(found, cost, part * cost(before), least, fields)
    kept = {name: np.sort(np.argsort(-found[name], kind="stable")[:count]) for name, count in after.items()}
    return channels.take(state, ties, kept), _table(ties, before, after, cost)


def _table(ties, before, after, cost):
    lines = [f"{'channels':>9}{'kept':>7}  made by"]
    lines += [f"{before[n]:>9,}{after[n]:>7,}  {', '.join(ties.groups[n].makers)}" for n in before]
    totals = [{goal: total(cost.each(sizes)) for goal, total in GOALS.items()} for sizes in (before, after)]
    units = dict(bytes="bytes of constants", macs="MACs", ms="ms (ESP32, estimated, upper end)")
    lines += [f"{totals[0][g]:>15,} to {totals[1][g]:,} {unit}" for g, unit in units.items()]
    return "\n".join(lines)


def report(whole: dict, params: dict) -> dict[str, list[int]]:
    """Output channels of each layer with weights before all cuts and now, for channels.json."""
    before, after = (flatten_dict(tree, sep="/") for tree in (whole, params))
    paths = [path for path in before if path.endswith("/kernel")]
    return {p.removesuffix("/kernel"): [int(t[p].shape[-1]) for t in (before, after)] for p in paths}

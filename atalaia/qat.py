"""Quantisation-aware training, the stage `quantize`: the folded network learns on the grids that it will ship with.

On entering, BatchNorm is folded once (`folding.fold`) and the ranges begin with calibrated ones. From then on `params`
holds by layer kernel, bias and, where BatchNorm followed ReLU, the channel's bound; learned scales lie beside them as
logarithms. `batch_stats` holds what is not learned by gradients. Every value passes through `quantize.fake_quant`, and
accumulators through `quantize.rescale`, so the forward pass computes the integer network's values: exactly while
float32 holds the sums (2^24), but for Add and Mul, which it rounds once.

Ranges of activations follow each batch's extremes ("ema": Jacob et al., 2018, arXiv:1712.05877, section 3.1) or are
learned ("learned": LSQ, Esser et al., 2020, arXiv:1902.08153). Weights of 8 bits take their scale from the channel's
largest weight; scales of fewer bits are always learned, from LSQ's start 2 mean|w| / sqrt(qmax).

Weights can become narrow step by step, by 8, 4 and 3 bits to theirs (`config.narrow`): as in APoT (Li et al., 2020,
arXiv:1909.13144), each width begins with the weights of the wider one. The learned scale is that of the last width. A
wider grid has it times sqrt(last qmax / qmax), for LSQ's start divides by sqrt(qmax). Where bits are chosen by a budget
(`bits.py`), `batch_stats` holds each layer's largest code, so that every checkpoint knows it.
"""

import re
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from atalaia import folding, layers, quantize
from atalaia.errors import UserError
from atalaia.folding import Folded
from atalaia.quantize import QLayer, QParams
from atalaia.rules import parse

RANGES = ("ema", "learned")
SCALES = ("log_scale", "weight_log_scale")  # parameters that the scales' optimiser has
AUTO, GOALS = "auto", ("bytes", "ms")
_CODES = np.array(list(quantize.BITS.values()), np.float32)  # largest codes, from the widest grid to the narrowest


class Width(NamedTuple):
    """Largest code of a layer's weights, float32 `[]` or int: in this step, and at the end of the stage."""

    now: Any
    last: Any


def validate(config: ConfigDict) -> None:
    """Checks the fields of config.quantize that need no network.

    Raises:
      UserError: names the field, what is wrong and what is allowed.
    """
    if config.ranges not in RANGES:
        raise UserError(f"quantize.ranges: there is no {config.ranges!r}, only {', '.join(RANGES)}")
    for field in ("ema_decay", "freeze", "narrow"):
        if not 0 <= config[field] <= 1:
            raise UserError(f"quantize.{field} must be in [0, 1], not {config[field]}")
    if not config.scale_learning_rate >= 0:
        raise UserError(f"quantize.scale_learning_rate must be at least 0, not {config.scale_learning_rate}")
    if config.narrow and config.narrow >= config.freeze:
        raise UserError(
            f"quantize.narrow={config.narrow}: scales of the last width are learned after it, and from quantize.freeze="
            f"{config.freeze} of the stage on they stay as they are: make narrow smaller"
        )
    if config.goal not in GOALS:
        raise UserError(f"quantize.goal: there is no {config.goal!r}, only {', '.join(GOALS)}")
    chosen = AUTO in [bits for _, bits in _bit_rules(config)]
    if chosen != bool(config.budget) or not 0 <= config.budget < np.inf:
        raise UserError(
            f"quantize.budget={config.budget}: bits {AUTO!r} need a number of {config.goal} that the network may cost"
            if chosen
            else f"quantize.budget={config.budget}: no layer's bits are chosen by it: give quantize.bits={AUTO}, or 0"
        )


def _bit_rules(config):
    def bits(text):
        if text not in (AUTO, *map(str, quantize.BITS)):
            raise ValueError
        return text if text == AUTO else int(text)

    if config.bits.strip() == AUTO:
        return [("", AUTO)]
    return parse("quantize.bits", config.bits, bits, f"bits with bits of 2, 3, 4, 8 or {AUTO}")


def weight_bits(paths: list[str], config: ConfigDict) -> dict[str, Any]:
    """Bits of each layer's weights by path, by the first pattern of config.bits that matches, else 8; or AUTO.

    Raises:
      UserError: a pattern matches no layer; the layers are listed.
    """
    rules = _bit_rules(config)
    for pattern, _ in rules:
        if not any(re.search(pattern, path) for path in paths):
            raise UserError(f"quantize.bits: pattern {pattern!r} matches no layer; there are {', '.join(paths)}")
    return {path: next((bits for pattern, bits in rules if re.search(pattern, path)), 8) for path in paths}


def enter(
    folded: dict[str, Folded],
    ranges: dict[str, tuple[float, float]],
    config: ConfigDict,
    chosen: dict[str, int] | None = None,
) -> tuple[dict, dict]:
    """The stage's first params and batch_stats.

    Args:
      folded: the network's weights; ranges: `quantize.calibrate`'s; config: fields of config.quantize.
      chosen: bits of the layers that have AUTO by path; without them there are the shapes, and no sense in the values.

    Raises:
      UserError: a pattern of config.bits matches no layer.
    """
    params: dict[str, np.ndarray | np.generic] = {}
    stats: dict[str, np.ndarray | np.generic] = {"steps": np.int32(0)}
    for path, bits in weight_bits(list(folded), config).items():
        weights = folded[path]
        params |= {f"{path}/kernel": weights.kernel, f"{path}/bias": weights.bias}
        if weights.lower is not None and weights.upper is not None:
            capped = np.isfinite(weights.upper)  # the bound is from above
            params[f"{path}/bound"] = np.where(capped, weights.upper, weights.lower)
            stats[f"{path}/capped"] = capped
        if bits == AUTO:
            stats[f"{path}/qmax"] = np.float32(quantize.BITS[(chosen or {}).get(path, 8)])
        if bits == AUTO or bits < 8:
            qmax = stats.get(f"{path}/qmax", quantize.BITS.get(bits))
            params[f"{path}/weight_log_scale"] = np.log(_first_scale(weights.kernel, qmax))
    for path, (low, high) in ranges.items():
        grid = quantize.choose_qparams(low, high)
        if config.ranges == "learned":
            params[f"{path}/log_scale"] = np.log(grid.scale)
            stats[f"{path}/zero_point"] = np.float32(grid.zero_point)
        else:
            stats |= {f"{path}/low": np.float32(low), f"{path}/high": np.float32(high)}
    return tuple(jax.tree.map(jnp.asarray, unflatten_dict(tree, sep="/")) for tree in (params, stats))


def _first_scale(kernel, qmax):
    """LSQ's start (section 2.2) over the weights of a channel that are not pruned."""
    others = tuple(range(kernel.ndim - 1))
    mean = np.abs(kernel).sum(others) / np.maximum((kernel != 0).sum(others), 1)
    return np.maximum(2 * mean / np.sqrt(qmax), quantize.MIN_SCALE).astype(np.float32)


def make_forward(model: nn.Module, config: ConfigDict, steps: int) -> Callable:
    """`forward(variables, images, key=None)` to (outputs, batch_stats): with a key as in training, else in inference.

    Inference is by the widths at the end of the stage, those of what is exported.

    Args:
      model: the network's code; config: fields of config.quantize; steps: of the stage.
    """
    freeze = _freeze_step(config, steps)

    def forward(variables, images, key=None):
        new = dict(flatten_dict(variables["batch_stats"], sep="/"))

        def grid(path, y):
            """The output's grid; in training, its range first moves towards the batch's extremes."""
            if f"{path}/low" not in new:
                return _grid(variables, path)
            if key is not None:
                keep = jnp.where(new["steps"] < freeze, config.ema_decay, 1.0)
                for name, seen in (("low", y.min()), ("high", y.max())):
                    old = new[f"{path}/{name}"]
                    new[f"{path}/{name}"] = keep * old + (1 - keep) * jax.lax.stop_gradient(seen)
            return quantize.qparams_of(new[f"{path}/low"], new[f"{path}/high"])

        passed = 1.0 if key is None else new["steps"] / max(1, round(config.narrow * steps))
        widths = _widths(model, variables, config, passed)
        outputs = run(model, variables, images, config, grid, key, widths=widths)
        if key is not None:
            new["steps"] = new["steps"] + 1
        return outputs, unflatten_dict(new, sep="/")

    return forward


def _widths(model, variables, config, passed=1.0):
    """Width of each linear layer by path, when that part of `config.narrow` has passed."""
    found = {}
    for path, bits in weight_bits(quantize.linear_paths(model), config).items():
        last = layers.subtree(variables["batch_stats"], path)["qmax"] if bits == AUTO else quantize.BITS[bits]
        now = last
        if config.narrow and bits != 8:
            wider = (last < _CODES).sum()
            place = jnp.minimum(jnp.floor(passed * wider), wider).astype(jnp.int32)
            now = jnp.asarray(_CODES)[place]
        found[path] = Width(now, last)
    return found


def run(
    model: nn.Module,
    variables: dict,
    images: jax.Array,
    config: ConfigDict,
    grid: Callable | None = None,
    key: jax.Array | None = None,
    see: Callable = lambda path, codes: None,
    widths: dict | None = None,
) -> Any:
    """Outputs of the fake-quantised network, float32 `[batch, ...]` a head.

    Args:
      model, variables, config: the network, its params and batch_stats in this stage, fields of config.quantize.
      images: float32 `[batch, height, width, channels]` in [0, 1].
      grid: `grid(path, y)` gives the grid of a layer's output; by default the one that is kept.
      key: of Dropout, in training.
      see: `see(path, (y, scale, zero_point))` is told each layer's output on its grid.
      widths: of each layer's weights by path; by default those at the end of the stage.
    """
    grid = grid or (lambda path, y: _grid(variables, path))
    widths = widths or _widths(model, variables, config)

    def rule(path, layer, *values):  # (real values on their grid, scale, zero point) flow through the network's code
        x, *q = values[0]
        if isinstance(layer, layers.Dropout):
            if key is None:
                return (x, *q)
            return _dropout(key, path, layer.rate, x), q[0] / (1 - layer.rate), q[1]  # the same integers, stretched
        if quantize.keeps_scale(layer):
            y = folding.apply_layer(layer, None, x)
            y = _fake_mean(x, y, *q) if isinstance(layer, layers.GlobalAvgPool) else y
        else:
            if path in widths:
                y, q = _linear(layer, variables, path, x, q[0], widths[path], grid)
            else:
                y = folding.apply_layer(layer, None, *(value[0] for value in values))
                q = grid(path, y)
                y = quantize.fake_quant(y, *q)
        see(path, (y, *q))
        return (y, *q)

    given = jax.lax.optimization_barrier([jnp.float32(v) for v in quantize.INPUT])  # see quantize._divisor
    last = layers.interpret(model, rule, (quantize.fake_quant(images, *given), *given))
    return jax.tree.map(lambda head: head[0], last, is_leaf=lambda head: isinstance(head, tuple))


def _fake_weights(layer, variables, path, input_scale, width):
    """Folded weights of a layer on their grids, and the scales of its kernel by channel."""
    weights = _folded_layer(layer, variables, path)
    scale, qmax = _weight_scale(variables, path, weights, input_scale, width), width.now
    kernel = quantize.fake_quant(weights.kernel, scale, jnp.zeros_like(scale), -qmax, qmax, weights.kernel.ndim - 1)
    step = jax.lax.stop_gradient(input_scale * scale)
    bias = quantize.fake_quant(weights.bias, step, jnp.zeros_like(step), *quantize.BIAS_GRID, 0)
    return weights._replace(kernel=kernel, bias=bias), scale


def _linear(layer, variables, path, x, input_scale, width, grid):
    """Output of a Conv or Dense on its grid, and that grid.

    It is summed over the integers that x and the kernel stand for, since float32 sums of integers are exact below 2^24,
    and those of reals are not: the accumulator and what it is rounded to are then the integer network's.
    """
    weights, scales = _fake_weights(layer, variables, path, input_scale, width)
    step = jax.lax.stop_gradient(input_scale * scales)
    total = folding.linear(layer, _codes(x, input_scale), _codes(weights.kernel, scales)) + _codes(weights.bias, step)
    y = nn.relu(total * step) if weights.relu else total * step
    seen = y if weights.lower is None else jnp.clip(y, weights.lower, weights.upper)
    scale, zero_point = grid(path, seen)
    steps = quantize.rescale(*jax.lax.stop_gradient((total, input_scale, scales, scale)))
    steps = jnp.maximum(steps, 0) if weights.relu else steps
    if weights.lower is not None:
        lower, upper = (quantize.fake_quant(bound, scale, zero_point) for bound in (weights.lower, weights.upper))
        y = jnp.clip(y, lower, upper)
        steps = jnp.clip(steps, *(jnp.round(jax.lax.stop_gradient(bound / scale)) for bound in (lower, upper)))
    return quantize.fake_quant(y, scale, zero_point, steps=steps), (scale, zero_point)


def _codes(x, scale):
    """x / scale, which is an integer but for rounding, as that integer; with the quotient's gradient for x alone."""
    quotient = x / jax.lax.stop_gradient(scale)
    return quotient + jax.lax.stop_gradient(jnp.round(quotient) - quotient)


def _fake_mean(x, mean, scale, zero_point):
    """The mean on the grid, rounded as in integers; gradients pass straight through."""
    codes = quantize.mean_codes(jnp.round(x / scale) + zero_point)
    return mean + jax.lax.stop_gradient((codes - zero_point) * scale - mean)


def _weight_scale(variables, path, weights, input_scale, width):
    learned = layers.subtree(variables["params"], path).get("weight_log_scale")
    stopped = jax.lax.stop_gradient((weights.kernel, weights.bias, input_scale))
    if learned is None:
        return quantize.weight_scale(*stopped, width.now)
    if isinstance(width.now, int):
        return quantize.weight_scale(*stopped, width.now, jnp.exp(learned))
    narrow = quantize.weight_scale(*stopped, width.now, jnp.exp(learned) * jnp.sqrt(width.last / width.now))
    return jnp.where(width.now == quantize.BITS[8], quantize.weight_scale(*stopped, quantize.BITS[8]), narrow)


def _folded_layer(layer, variables, path):
    params, stats = (layers.subtree(variables[k], path) for k in ("params", "batch_stats"))
    if "bound" not in params:
        return Folded(params["kernel"], params["bias"], layer.relu)
    bound, capped = params["bound"], stats["capped"]
    lower, upper = jnp.where(capped, -jnp.inf, bound), jnp.where(capped, bound, jnp.inf)
    return Folded(params["kernel"], params["bias"], False, lower, upper)


def _grid(variables, path):
    params, stats = (layers.subtree(variables[k], path) for k in ("params", "batch_stats"))
    if "log_scale" in params:
        return jnp.maximum(jnp.exp(params["log_scale"]), quantize.MIN_SCALE), stats["zero_point"]
    return quantize.qparams_of(stats["low"], stats["high"])


def _dropout(key, path, rate, x):
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def make_optimizer(inner: optax.GradientTransformation, config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """`inner` for the weights; Adam for the logarithms of scales, so that a step is a relative change, then frozen."""
    freeze = _freeze_step(config, steps)
    scales = optax.chain(
        optax.adam(config.scale_learning_rate),
        optax.scale_by_schedule(lambda count: jnp.where(count < freeze, 1.0, 0.0)),
    )

    def labels(params):
        return jax.tree.map_with_path(lambda path, _: "scales" if path[-1].key in SCALES else "weights", params)

    return optax.partition({"weights": inner, "scales": scales}, labels)


def _freeze_step(config, steps):
    return round(config.freeze * steps)


def integers(model: nn.Module, variables: dict, config: ConfigDict) -> dict[str, QLayer | QParams]:
    """The integer network of the trained values: what training's forward pass stands for.

    Raises:
      UserError: a range or a weight is not finite; the layer is named.
    """
    folded, outputs, scales = {}, {}, {}
    paths = quantize.linear_paths(model)
    bits = weight_bits(paths, config) | chosen_bits(model, variables, config)

    def rule(path, layer, *inputs):
        if quantize.keeps_scale(layer):
            return None
        scale, zero_point = (np.asarray(v) for v in _grid(variables, path))
        params, stats = (layers.subtree(variables[k], path) for k in ("params", "batch_stats"))
        ordered = "low" not in stats or stats["low"] <= stats["high"]
        if not (np.isfinite(scale) and np.isfinite(zero_point) and scale > 0 and ordered):
            raise UserError(f"layer {path!r} has no finite trained range: train the quantize stage again")
        if not all(np.isfinite(v).all() for v in jax.tree.leaves(params)):
            raise UserError(f"layer {path!r} has weights that are not finite: train the quantize stage again")
        outputs[path] = QParams(np.float32(scale), int(zero_point))
        if path in paths:
            folded[path] = jax.tree.map(np.asarray, _folded_layer(layer, variables, path))
            if bits[path] < 8:
                scales[path] = np.asarray(jnp.exp(params["weight_log_scale"]))
                if not np.isfinite(scales[path]).all():
                    raise UserError(f"layer {path!r} has no finite weight scale: train the quantize stage again")
        return None

    layers.interpret(model, rule, None)
    return quantize.quantize_network(model, folded, outputs, bits, scales)


def chosen_bits(model: nn.Module, variables: dict, config: ConfigDict) -> dict[str, int]:
    """Bits by path of the layers that have AUTO."""
    paths = [path for path, bits in weight_bits(quantize.linear_paths(model), config).items() if bits == AUTO]
    codes = {path: int(layers.subtree(variables["batch_stats"], path)["qmax"]) for path in paths}
    return {path: next(bits for bits, qmax in quantize.BITS.items() if qmax == code) for path, code in codes.items()}


def forward_codes(model: nn.Module, variables: dict, images: Any, config: ConfigDict) -> dict[str, np.ndarray]:
    """Each layer's output in the forward pass of training as the integers it stands for, int8, by path."""
    order: list[str] = []

    @jax.jit
    def codes(variables, images):  # both arguments, as in training: XLA folds constants by an arithmetic of its own
        seen = {}

        def see(path, output):
            y, scale, zero_point = output
            seen[path] = (jnp.round(y / scale) + zero_point).astype(jnp.int8)

        run(model, variables, images, config, see=see)
        order[:] = seen
        return seen

    found = jax.device_get(codes(variables, images))
    return {path: found[path] for path in order}  # jit sorts a dict by its keys

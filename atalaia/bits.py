"""Bits of each layer's weights by what they cost in the generated C and what they harm: `quantize.bits = "auto"`.

Each layer alone is rounded to each width, at the scales of least squared error, and the loss on validation images says
what that harms. Then, from 8 bits in all, the step that harms least for what it saves is taken until the budget fits
(as in HAWQ, Dong et al., 2019, arXiv:1905.03696, with the loss itself in place of its curvature). Training comes after:
it makes good most of the harm, but hardly changes which layers bear few bits.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from atalaia import data, folding, layers, pruning, qat, quantize, tasks
from atalaia.codegen import kernels
from atalaia.codegen.fixed_point import quantize_multiplier
from atalaia.codegen.graph import OFFSET, Graph, Step
from atalaia.errors import UserError
from atalaia.files import write_json
from atalaia.folding import Folded
from atalaia.quantize import QLayer, QParams

CHIP = "esp32"
FACTORS = np.linspace(0.15, 1.0, 35, dtype=np.float32)  # of the scale at which the largest weight has the largest code
BATCH = 250


class Cost(NamedTuple):
    """Of a layer in the generated C: bytes of constants; instructions on the chip's board; sweeps over its weights."""

    bytes: int
    instructions: float
    sweeps: int


def choose(
    config: ConfigDict, model: nn.Module, variables: dict, dataset: data.Dataset, workdir: Path | None = None
) -> dict[str, int] | None:
    """Bits by path of the layers that have bits "auto", as `qat.enter` takes them; None where none has.

    Prints a table, and writes it as bits.json into `workdir`.

    Args:
      config: of the run; model, variables: the network before stage quantize; dataset: calibrates and validates.
    """
    given = qat.weight_bits(quantize.linear_paths(model), config.quantize)
    auto = [path for path, bits in given.items() if bits == qat.AUTO]
    if not auto:
        return None
    folded = folding.fold(model, jax.device_get(variables))
    batches = quantize.calibration_batches(dataset.train.images, config.calibration.images, config.seed)
    grids = quantize.output_grids(quantize.calibrate(model, folded, batches))
    costs = _costs(model, folded, grids, dataset.train.images.shape[1:])
    loss = _loss(config, model, folded, dataset.validation)
    harms = {path: _harms(loss, path, folded[path].kernel) for path in auto}
    first = {path: 8 if bits == qat.AUTO else bits for path, bits in given.items()}
    chosen = allot(first, harms, costs, config.quantize.goal, config.quantize.budget)
    found = total([costs[path][bits] for path, bits in chosen.items()], config.quantize.goal)
    _tell(chosen, harms, costs, config.quantize, found, workdir)
    return {path: chosen[path] for path in auto}


def allot(
    bits: dict[str, int],
    harms: dict[str, dict[int, float]],
    costs: dict[str, dict[int, Cost]],
    goal: str,
    budget: float,
) -> dict[str, int]:
    """Bits by path, within the budget; the fewest where even they exceed it.

    Args:
      bits: to begin with; harms: of those that may change, by bits; costs: of all; goal: of qat.GOALS.
    """
    bits = dict(bits)

    def now(changed=None):
        return total([costs[path][b] for path, b in (bits | (changed or {})).items()], goal)

    def saved(path, fewer):
        before, after = costs[path][bits[path]], costs[path][fewer]
        return before.bytes - after.bytes if goal == "bytes" else before.instructions - after.instructions

    while now() > budget:
        steps = [(p, b) for p, by_bits in harms.items() for b in by_bits if b < bits[p] and saved(p, b) > 0]
        if not steps:
            break
        rank = {(p, b): max(0.0, harms[p][b] - harms[p][bits[p]]) / saved(p, b) for p, b in steps}
        path, fewer = min(steps, key=lambda step: (rank[step], -step[1], step[0]))
        bits[path] = fewer
    for path in sorted(harms, key=lambda p: -harms[p][bits[p]]):  # what the last step saved too much is given back
        wider = [b for b in harms[path] if b > bits[path] and harms[path][b] < harms[path][bits[path]]]
        bits[path] = next((b for b in sorted(wider, reverse=True) if now({path: b}) <= budget), bits[path])
    return bits


def total(costs: list[Cost], goal: str) -> float:
    """What layers cost together: bytes, or milliseconds on the chip, the upper end of what codegen estimates."""
    if goal == "bytes":
        return sum(cost.bytes for cost in costs)
    from atalaia.codegen.__main__ import estimate  # there, configs are read, and a config asks for this

    rows = [dict(weight_bytes=cost.bytes, sweeps=cost.sweeps) for cost in costs]
    return estimate(CHIP, sum(cost.instructions for cost in costs), rows)["milliseconds"][1]


def fitted_scale(kernel: np.ndarray, qmax: int) -> np.ndarray:
    """Scale of each output channel, float32 `[out]`, at which rounding to codes up to qmax has the least squared error.

    Args:
      kernel: float32, output channels last.
    """
    weights = kernel.reshape(-1, kernel.shape[-1])
    scales = np.maximum(np.abs(weights).max(0), quantize.MIN_SCALE) / np.float32(qmax) * FACTORS[:, None]
    errors = [np.square(_rounded(weights, scale, qmax) - weights).sum(0) for scale in scales]
    return scales[np.argmin(errors, 0), np.arange(scales.shape[1])]


def _rounded(weights, scale, qmax):
    return np.clip(np.round(weights / scale), -qmax, qmax) * scale


def _harms(loss, path, kernel):
    """By bits, what the loss grows by; a width never harms less than a wider one."""
    base, found, least = loss({}), {}, 0.0
    for bits, qmax in quantize.BITS.items():
        least = max(least, loss({path: _rounded(kernel, fitted_scale(kernel, qmax), qmax)}) - base)
        found[bits] = least
    return found


def _loss(config: ConfigDict, model: nn.Module, folded: dict[str, Folded], split: data.Split) -> Callable:
    """`loss(kernels)`: of the float network on validation images, with some kernels replaced by path."""
    plain = config.copy_and_resolve_references()
    with plain.unlocked():
        plain.loss.label_smoothing = 0.0
    hard, size = tasks.objective(plain).hard, min(BATCH, len(split.images))

    @jax.jit
    def one(kernels, images, targets):
        def rule(path, layer, *xs):
            weights = folded[path]._replace(kernel=kernels[path]) if path in folded else None
            return folding.apply_layer(layer, weights, *xs)

        return hard(layers.interpret(model, rule, data.to_float(images)), targets)

    count = max(size, min(config.calibration.images, len(split.images)) // size * size)
    parts = [jax.tree.map(lambda x, at=at: x[at : at + size], tuple(split)) for at in range(0, count, size)]
    own = {path: jnp.asarray(weights.kernel) for path, weights in folded.items()}
    return lambda kernels: float(np.mean([one(own | kernels, *part) for part in parts]))


def _costs(model, folded, grids, shape) -> dict[str, dict[int, Cost]]:
    """Of each linear layer by bits, its weights as they are rounded before they learn."""
    found: dict[str, dict[int, Cost]] = {path: {} for path in folded}
    for bits, qmax in quantize.BITS.items():
        scales = {path: fitted_scale(weights.kernel, qmax) for path, weights in folded.items()} if bits < 8 else {}
        network = quantize.quantize_network(model, folded, grids, dict.fromkeys(folded, bits), scales)
        for path, cost in _network_costs(model, network, grids, shape).items():
            found[path][bits] = cost
    return found


def _network_costs(model, network, grids, shape) -> dict[str, Cost]:
    """Of each linear layer of an integer network."""
    found = {}

    def rule(path, layer, *inputs):  # (shape, grid) flow through the network's code here
        given, grid = inputs[0]
        out = layers.output_spec(layer, *(shape for shape, _ in inputs))
        if isinstance(network.get(path), QLayer):
            found[path] = _cost(_step(layer, network[path], grid, given, out))
        return out, grids.get(path, grid)

    layers.interpret(model, rule, (layers.spec((1, *shape)), quantize.INPUT))
    return found


def _step(layer: Any, weights: QLayer, grid: QParams, given: Any, out: Any) -> Step:
    """What codegen will lower a layer to."""
    kernel, shapes = np.moveaxis(weights.kernel, -1, 0), (given.shape, out.shape)
    side, stride, kind = 1, 1, "conv"
    if isinstance(layer, layers.Conv):
        side, stride = layer.kernel, layer.strides
        if layer.depthwise and given.shape[-1] > 1:
            kind, kernel = "depthwise", np.moveaxis(kernel, 3, 1)
    else:
        kernel, shapes = kernel[:, None, None, :], tuple((1, 1, 1, shape[-1]) for shape in shapes)
    (_, in_h, in_w, in_c), (_, out_h, out_w, out_c) = shapes
    pads = [max((o - 1) * stride + side - n, 0) // 2 for o, n in ((out_h, in_h), (out_w, in_w))]
    values = dict(in_h=in_h, in_w=in_w, in_c=in_c, out_h=out_h, out_w=out_w, out_c=out_c, kernel_h=side, kernel_w=side)
    values |= dict(stride_h=stride, stride_w=stride, pad_top=pads[0], pad_left=pads[1])
    multiplier, shift = quantize_multiplier(quantize.output_ratio(weights, grid))
    sums = kernel.reshape(out_c, -1).sum(1, dtype=np.int64)
    values |= dict(kernel=kernel, bias=(weights.bias - (grid.zero_point + OFFSET) * sums).astype(np.int32))
    bounds = [None if b is None else np.zeros(out_c, np.uint8) for b in (weights.lower, weights.upper)]
    values |= dict(multiplier=multiplier, shift=shift, low=bounds[0], high=bounds[1], out_low=0, out_high=255)
    return Step(kind, "", 0, (0,), 1, values)


def _cost(step):
    from atalaia.codegen.__main__ import CHIPS  # as in `total`

    (call,) = kernels.choose(Graph([step], {}, {}, (), (), []))
    return Cost(call.weight_bytes, call.instructions[CHIPS[CHIP].board], call.sweeps)


def _tell(chosen, harms, costs, config, found, workdir):
    """Prints the table, and writes it."""
    rows = [
        dict(layer=path, bits=bits, bytes=costs[path][bits].bytes, harm=harms.get(path, {}).get(bits))
        for path, bits in chosen.items()
    ]
    lines = [f"{'layer':<24}{'bits':>5}{'bytes':>10}  the loss, untrained, grows by"]
    for row in rows:
        harm = "given" if row["harm"] is None else f"{row['harm']:.4f}"
        lines.append(f"{row['layer']:<24}{row['bits']:>5}{row['bytes']:>10,}  {harm}")
    unit = "bytes" if config.goal == "bytes" else "ms (ESP32, estimated, upper end)"
    lines.append(f"{found:,} {unit} of {config.budget:,g}")
    if found > config.budget:
        lines.append(
            "the budget cannot be reached by fewer bits: these are the fewest; prune, or take a smaller network"
        )
    print("\n".join(lines), flush=True)
    if workdir is not None:
        write_json(Path(workdir) / "bits.json", dict(goal=config.goal, budget=config.budget, found=found, layers=rows))


def refuse_impossible(config: ConfigDict, model: nn.Module, params: dict, shape: tuple[int, ...]) -> None:
    """Does nothing where bits "auto" may fit the budget, as far as it can be known before training.

    Args:
      config: of the run; model, params: the network and its parameters, or their shapes; shape: of an image.

    Raises:
      UserError: with the fewest bits, and as many zeros as stage prune makes, it costs a tenth more than the budget.
    """
    given = qat.weight_bits(quantize.linear_paths(model), config.quantize)
    if qat.AUTO not in given.values():
        return
    sparsity = pruning.targets(params, config.prune)[0] if "prune" in config.stages else {}
    random, found = np.random.default_rng(0), {}
    for path, bits in given.items():
        shaped = layers.subtree(params, path)
        kernel = random.integers(-1, 2, shaped["kernel"].shape).astype(np.float32)
        if bits != qat.AUTO and bits > 2:
            kernel *= random.integers(1, quantize.BITS[bits] + 1, kernel.shape)
        kernel[random.random(kernel.shape) < sparsity.get(f"{path}/kernel", 0.0)] = 0
        found[path] = Folded(kernel, np.zeros(kernel.shape[-1], np.float32), False)
    grids = dict.fromkeys(quantize.grid_paths(model), QParams(np.float32(1), 0))
    bits = {path: 2 if b == qat.AUTO else b for path, b in given.items()}
    network = quantize.quantize_network(model, found, grids, bits)
    least = total(list(_network_costs(model, network, grids, shape).values()), config.quantize.goal)
    if 0.9 * least > config.quantize.budget and not config.start_from:
        raise UserError(
            f"quantize.budget={config.quantize.budget:g}: even with 2 bits in every layer of {qat.AUTO!r} the network "
            f"takes about {least:,.0f} {config.quantize.goal}: prune more, or take a smaller network"
        )

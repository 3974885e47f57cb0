"""Bits of each layer's weights by what they cost in the generated C and what they harm: `quantize.bits = "auto"`.

Each layer alone is rounded to each width, at the scales of least squared error, and the loss on validation images says
what that harms. Then, from 8 bits in all, the step that harms least for what it saves is taken until the budget fits
(as in HAWQ, Dong et al., 2019, arXiv:1905.03696, with the loss itself in place of its curvature). Training comes after:
it makes good most of the harm, but hardly changes which layers bear few bits.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from atalaia import data, folding, layers, pruning, qat, quantize, tasks
from atalaia.codegen import forecast
from atalaia.codegen.fixed_point import quantize_multiplier
from atalaia.codegen.forecast import Cost
from atalaia.codegen.graph import OFFSET
from atalaia.errors import UserError
from atalaia.files import write_json
from atalaia.folding import Folded
from atalaia.quantize import QLayer, QParams

PREFER = dict(bytes="size", ms="speed")  # by goal, the kernels that count: those of codegen --prefer
FACTORS = np.linspace(0.15, 1.0, 35, dtype=np.float32)  # of the scale at which the largest weight has the largest code
BATCH = 250


def choose(
    config: ConfigDict, model: nn.Module, variables: dict, dataset: data.Dataset, workdir: Path | None = None
) -> dict[str, int] | None:
    """Bits by path of the layers that have bits "auto", as `qat.enter` takes them; None where none has.

    Prints a table, and writes it as bits.json into `workdir`.

    Args:
      config: of the run; model, variables: the network before stage quantize; dataset: calibrates and validates.

    Raises:
      UserError: even the fewest bits exceed the budget.
    """
    given = qat.weight_bits(quantize.linear_paths(model), config.quantize)
    auto = [path for path, bits in given.items() if bits == qat.AUTO]
    if not auto:
        return None
    fields, folded = config.quantize, folding.fold(model, jax.device_get(variables))
    batches = quantize.calibration_batches(dataset.train.images, config.calibration.images, config.seed)
    grids = quantize.output_grids(quantize.calibrate(model, folded, batches))
    costs, others = _costs(model, folded, grids, dataset.train.images.shape[1:], fields.goal)
    loss = _loss(config, model, folded, dataset.validation)
    base = loss({})
    harms = {path: _harms(loss, base, path, folded[path].kernel) for path in auto}
    first = {path: 8 if bits == qat.AUTO else bits for path, bits in given.items()}
    chosen = allot(first, harms, costs, fields.goal, fields.budget, others)
    found = forecast.GOALS[fields.goal]([*others, *(costs[path][bits] for path, bits in chosen.items())])
    _tell(chosen, harms, costs, fields, found, workdir)
    return {path: chosen[path] for path in auto}


def allot(
    bits: dict[str, int],
    harms: dict[str, dict[int, float]],
    costs: dict[str, dict[int, Cost]],
    goal: str,
    budget: float,
    others: Sequence[Cost] = (),
) -> dict[str, int]:
    """Bits by path, within the budget; the fewest where even they exceed it.

    Args:
      bits: to begin with; harms: of those that may change, by bits; costs: of all; goal: of qat.GOALS.
      others: costs of layers without weights.
    """
    bits = dict(bits)

    def now(changed=None):
        return forecast.GOALS[goal]([*others, *(costs[path][b] for path, b in (bits | (changed or {})).items())])

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


def _harms(loss, base, path, kernel):
    """By bits, what the loss grows by from `base`; a width never harms less than a wider one."""
    found, least = {}, 0.0
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


def _costs(model, folded, grids, shape, goal) -> tuple[dict[str, dict[int, Cost]], list[Cost]]:
    """Of each layer with weights by bits, its weights as they are rounded before they learn; of the other layers."""
    found: dict[str, dict[int, Cost]] = {path: {} for path in folded}
    for bits, qmax in quantize.BITS.items():
        scales = {path: fitted_scale(weights.kernel, qmax) for path, weights in folded.items()} if bits < 8 else {}
        network = quantize.quantize_network(model, folded, grids, dict.fromkeys(folded, bits), scales)
        costs, others = _network_costs(model, network, grids, shape, goal)
        for path, cost in costs.items():
            found[path][bits] = cost
    return found, others


def _network_costs(model, network, grids, shape, goal) -> tuple[dict[str, Cost], list[Cost]]:
    """Of each layer with weights of an integer network, and of the others."""
    found, others = {}, []

    def rule(path, layer, *inputs):  # (shape, grid) flow through the network's code here
        shapes, grid = [given for given, _ in inputs], inputs[0][1]
        out = layers.output_spec(layer, *shapes)
        sizes = [given.shape for given in shapes]
        if isinstance(network.get(path), QLayer):
            integers = _integers(layer, network[path], grid, sizes[0])
            found[path] = forecast.layer(layer, sizes, out.shape, integers=integers, prefer=PREFER[goal])
        else:
            others.append(forecast.layer(layer, sizes, out.shape))
        return out, grids.get(path, grid)

    layers.interpret(model, rule, (layers.spec((1, *shape)), quantize.INPUT))
    return found, others


def _integers(layer: layers.Layer, weights: QLayer, grid: QParams, given: tuple[int, ...]) -> dict[str, Any]:
    """What the layer's step in C has beside its shapes; `grid`, `given`: of its input."""
    kernel = np.moveaxis(weights.kernel, -1, 0)
    if isinstance(layer, layers.Dense):
        kernel = kernel[:, None, None, :]
    elif layer.depthwise and given[-1] > 1:
        kernel = np.moveaxis(kernel, 3, 1)
    multiplier, shift = quantize_multiplier(quantize.output_ratio(weights, grid))
    sums = kernel.reshape(len(kernel), -1).sum(1, dtype=np.int64)
    bounds = [b if b is None else np.uint8(b + np.int16(OFFSET)) for b in (weights.lower, weights.upper)]
    return dict(
        kernel=kernel,
        bias=(weights.bias - (grid.zero_point + OFFSET) * sums).astype(np.int32),
        multiplier=multiplier,
        shift=shift,
        low=bounds[0],
        high=bounds[1],
        out_low=0,
        out_high=255,
        out_zero=weights.output.zero_point + OFFSET,
    )


def _tell(chosen, harms, costs, fields, found, workdir):
    """Prints the table, and writes it where the budget fits."""
    rows = [
        dict(layer=path, bits=bits, bytes=costs[path][bits].bytes, harm=harms.get(path, {}).get(bits))
        for path, bits in chosen.items()
    ]
    lines = [f"{'layer':<24}{'bits':>5}{'bytes':>10}  the loss, untrained, grows by"]
    for row in rows:
        harm = "given" if row["harm"] is None else f"{row['harm']:.4f}"
        lines.append(f"{row['layer']:<24}{row['bits']:>5}{row['bytes']:>10,}  {harm}")
    cost = f"{found:,}" if fields.goal == "bytes" else f"{found:.2f}"
    unit = "bytes" if fields.goal == "bytes" else "ms (ESP32, estimated, upper end)"
    lines.append(f"{cost} {unit} of {fields.budget:,g}")
    print("\n".join(lines), flush=True)
    if found > fields.budget:
        raise UserError(
            f"quantize.budget={fields.budget:g}: even with the fewest bits the network takes {cost} {fields.goal}: "
            "prune more, or take a smaller network"
        )
    if workdir is not None:
        write_json(Path(workdir) / "bits.json", dict(goal=fields.goal, budget=fields.budget, found=found, layers=rows))


def refuse_impossible(config: ConfigDict, model: nn.Module, params: dict, shape: tuple[int, ...]) -> None:
    """Does nothing where bits "auto" may fit the budget, as far as it can be known before training.

    Args:
      config: of the run; model, params: the network and its parameters, or their shapes; shape: of an image.

    Raises:
      UserError: with the fewest bits, and as many zeros as stage prune makes, it costs a tenth more than the budget.
    """
    given = qat.weight_bits(quantize.linear_paths(model), config.quantize)
    if qat.AUTO not in given.values() or config.start_from or "shrink" in config.stages:
        return  # what is left of its channels and weights is not known yet
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
    network, goal = quantize.quantize_network(model, found, grids, bits), config.quantize.goal
    costs, others = _network_costs(model, network, grids, shape, goal)
    least = forecast.GOALS[goal]([*others, *costs.values()])
    if 0.9 * least > config.quantize.budget:
        raise UserError(
            f"quantize.budget={config.quantize.budget:g}: even with 2 bits in every layer of {qat.AUTO!r} the network "
            f"takes about {least:,.0f} {goal}: prune more, or take a smaller network"
        )

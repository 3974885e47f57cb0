"""The integer network in JAX, from the checkpoint alone: the definition of the model that ships.

Every value is an integer, computed as TFLite Micro's reference kernels do (Jacob et al., 2018, arXiv:1712.05877; fixed
point of gemmlowp): int32 accumulators, then a rescaling by a 31-bit mantissa and a shift that rounds twice. The .tflite
file is never read here, so that equality with what runs from it means something.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from atalaia import data, finished, folding, int8_layers, layers, qat, quantize
from atalaia.codegen.fixed_point import quantize_multiplier
from atalaia.errors import UserError
from atalaia.progress import Progress
from atalaia.quantize import QLayer, QParams

BATCH = 500


class Integers(NamedTuple):
    """A tensor: q int8 `[batch, ...]` on a grid."""

    q: jax.Array
    grid: QParams


class Model(NamedTuple):
    """An integer network: the run that it is of, its integers by path, and the real ranges of its layers."""

    run: finished.Trained
    network: dict[str, QLayer | QParams]
    ranges: dict[str, tuple[float, float]]

    @property
    def code(self) -> nn.Module:
        """The network's Linen module."""
        return self.run.model

    @property
    def trained(self) -> bool:
        """Whether the ranges were trained, in stage `quantize`."""
        return self.run.stage == "quantize"


def load(config: ConfigDict, workdir: Path, dataset: data.Dataset, ranges: str = "auto") -> Model:
    """The integer network of a finished run.

    Args:
      config: the run's; workdir: its folder; dataset: its data, whose training images calibrate.
      ranges: "trained" in stage quantize, "calibrated" on training images now, or "auto": trained where they are.

    Raises:
      UserError: the run is not finished, has no trained ranges, or its ranges or weights are broken.
    """
    run = finished.load_trained(config, workdir, dataset)
    if run.stage == "quantize":
        if ranges == "calibrated":
            raise UserError(f"{workdir} was trained with its ranges: calibrating would not be what was trained")
        network = qat.integers(run.model, run.variables, config.quantize)
        return Model(run, network, real_ranges(network))
    if ranges == "trained":
        raise UserError(f"{workdir} has no trained ranges: add the stage quantize, or export with --ranges=calibrated")
    int8_layers.require_int8(run.model, dataset.train.images.shape[1:])
    folded = folding.fold(run.model, run.variables)
    batches = quantize.calibration_batches(dataset.train.images, config.calibration.images, config.seed)
    found = quantize.calibrate(run.model, folded, batches)
    return Model(run, quantize.quantize_network(run.model, folded, quantize.output_grids(found)), found)


def real_ranges(network: dict[str, QLayer | QParams]) -> dict[str, tuple[float, float]]:
    """The smallest and largest real value of each grid."""
    grids = {path: part.output if isinstance(part, QLayer) else part for path, part in network.items()}

    def real(q, grid):
        return float((q - grid.zero_point) * grid.scale)

    return {path: (real(quantize.QMIN, grid), real(quantize.QMAX, grid)) for path, grid in grids.items()}


def run(model: nn.Module, network: dict[str, QLayer | QParams], images: np.ndarray) -> tuple[Any, Any]:
    """int8 outputs `[n, ...]` of uint8 images `[n, height, width, channels]`, and their QParams, both by head."""
    found: list[Any] = []
    grids: list[Any] = []

    def answer(x):
        last, _ = outputs(model, network, x)
        grids[:] = [heads(last, lambda head: head.grid)]
        return heads(last, lambda head: head.q)

    with jax.enable_x64(True), Progress("evaluate jax_int", len(images), "images") as progress:
        compiled = jax.jit(answer)
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            found.append(jax.device_get(compiled(batch)))
            progress.update(len(batch))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found), grids[0]


def heads(last: Any, part: Callable[[Integers], Any]) -> Any:
    """What `part` gives of each head of a network's output, which is one Integers or a dict of them."""
    return jax.tree.map(part, last, is_leaf=lambda head: isinstance(head, Integers))


def layer_outputs(model: nn.Module, network: dict[str, QLayer | QParams], images: np.ndarray) -> dict[str, np.ndarray]:
    """int8 output of every layer by path, of uint8 images `[n, height, width, channels]`."""
    order: list[str] = []

    def run(x):
        seen = outputs(model, network, x)[1]
        order[:] = seen
        return seen

    with jax.enable_x64(True):
        found = jax.device_get(jax.jit(run)(images))
    return {path: found[path] for path in order}  # jit sorts a dict by its keys


def outputs(model: nn.Module, network: dict[str, QLayer | QParams], images: jax.Array) -> tuple[Any, dict]:
    """The network's Integers by head, and every layer's int8 output by path; to be traced with 64-bit types enabled."""
    seen = {}

    def rule(path, layer, *values):  # Integers flow through the network's code here
        x, grid = values[0]
        match layer:
            case layers.Conv() | layers.Dense():
                y = Integers(_linear(layer, network[path], x, grid), network[path].output)
            case layers.Add():
                y = Integers(_add(values[0], values[1], network[path]), network[path])
            case layers.Mul():
                y = Integers(_mul(values[0], values[1], network[path]), network[path])
            case layers.MaxPool():
                y = Integers(_windows(layer, x).max((2, 4)), grid)
            case layers.MinPool():
                y = Integers(_windows(layer, x).min((2, 4)), grid)
            case layers.GlobalAvgPool():
                y = Integers(_saturate(quantize.mean_codes(x.astype(jnp.int32))), grid)
            case layers.Flatten():
                y = Integers(x.reshape(x.shape[0], -1), grid)
            case layers.Dropout():
                return values[0]
        seen[path] = y.q
        return y

    given = Integers((images.astype(jnp.int32) - 128).astype(jnp.int8), quantize.INPUT)
    return layers.interpret(model, rule, given), seen


def _linear(layer, weights, x, given):
    """Convolution or matrix product, bias, rescaling, and the bound that stands for ReLU with BatchNorm."""
    total = _accumulate(layer, weights.kernel, x.astype(jnp.int32) - given.zero_point) + weights.bias
    y = _saturate(_rescale(total, *_multiplier(quantize.output_ratio(weights, given))) + weights.output.zero_point)
    if layer.relu and weights.lower is None:
        y = jnp.maximum(y, np.int8(weights.output.zero_point))
    return y if weights.lower is None else jnp.clip(y, weights.lower, weights.upper)


def _accumulate(layer, kernel, x):
    """The int32 sums of a layer, `x` int32 with its zero point taken off.

    XLA has no fast integer convolution on CPUs. Sums of float32 are exact while the sum of all magnitudes is at most
    2^24, whatever their order; so input channels are taken in groups for which that holds in every output.
    """
    if isinstance(layer, layers.Conv) and layer.depthwise:
        groups = [slice(None)]
    else:
        axis = kernel.ndim - 2
        other = tuple(range(axis))
        per_channel = np.abs(kernel.astype(np.int64)).sum(other).max(-1) * 255  # `[in]`, the largest of any output
        groups = _groups(per_channel, 2**24)
    total = 0
    for group in groups:
        part = folding.linear(layer, x[..., group].astype(jnp.float32), jnp.float32(kernel[..., group, :]))
        total = total + part.astype(jnp.int32)
    return total


def _groups(weights, most):
    """Consecutive slices whose weights sum to at most `most` each."""
    found, start, total = [], 0, 0
    for i, weight in enumerate(weights):
        if total + weight > most and i > start:
            found.append(slice(start, i))
            start, total = i, 0
        total += weight
    return [*found, slice(start, len(weights))]


def _multiplier(real):
    return tuple(part.astype(np.int64) for part in quantize_multiplier(real))


def _rescale(x, mantissa, shift):
    """TFLite's MultiplyByQuantizedMultiplier: x * mantissa * 2^(shift - 31), rounded to 31 bits, then to integers."""
    product = (x.astype(jnp.int64) << np.maximum(shift, 0)) * mantissa
    nudged = product + jnp.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = jnp.where(nudged >= 0, nudged >> 31, -(-nudged >> 31))  # C++ divides towards zero
    right = np.maximum(-shift, 0)
    mask = (np.int64(1) << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def _saturate(x):
    return jnp.clip(x, quantize.QMIN, quantize.QMAX).astype(jnp.int8)


def _add(a, b, output):
    """TFLite's int8 ADD: both at 2^20 times a grid of twice the larger scale."""
    twice = 2 * np.float64(max(a.grid.scale, b.grid.scale))
    total = 0
    for x, grid in (a, b):
        raised = (x.astype(jnp.int64) - grid.zero_point) << 20
        total = total + _rescale(raised, *_multiplier(np.float64(grid.scale) / twice))
    ratio = twice / (2**20 * np.float64(output.scale))
    return _saturate(_rescale(total, *_multiplier(ratio)) + output.zero_point)


def _mul(a, b, output):
    """TFLite's int8 MUL: the product of both less their zero points, rescaled once."""
    (x, y) = (part.q.astype(jnp.int64) - part.grid.zero_point for part in (a, b))
    ratio = np.float64(a.grid.scale) * np.float64(b.grid.scale) / np.float64(output.scale)
    return _saturate(_rescale(x * y, *_multiplier(ratio)) + output.zero_point)


def _windows(layer, x):
    """`[batch, rows, window, columns, window, channels]` of a pooling layer's whole squares."""
    n = layer.window
    height, width = (size // n for size in x.shape[1:3])
    x = x[:, : height * n, : width * n]
    return x.reshape(len(x), height, n, width, n, -1)

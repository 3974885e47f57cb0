"""What a layer will cost in the generated C, before there is a file: by its shapes, or by its integers."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from atalaia import layers
from atalaia.codegen import convolutions, kernels
from atalaia.codegen.estimates import CHIPS, estimate
from atalaia.codegen.graph import Graph, Step

CHIP = "esp32"
_WEIGHTS = {8: 32, 4: 4, 3: 2, 2: 1}  # by bits, about as large as weights are: sums decide which rescaling is run


class Cost(NamedTuple):
    """bytes: of constants in flash, tables included; macs; instructions on the chip's board; sweeps over the bytes."""

    bytes: int
    macs: int
    instructions: float
    sweeps: int = 1


def layer(
    layer: layers.Layer,
    inputs: list[tuple[int, ...]],
    out: tuple[int, ...],
    bits: int = 8,
    integers: dict[str, Any] | None = None,
    prefer: str = "balanced",
) -> Cost:
    """The cost of a layer from the shapes of its inputs and of its output, `[1, ...]`.

    Args:
      bits: of its weights, none of them zero, where it has some and no `integers` are given.
      integers: its kernel, bias, multiplier, shift and bounds, as graph.Step has them.
      prefer: the kernel that runs those, as kernels.choose takes it.
    """
    step = _step(layer, inputs[0], out, bits, integers)
    if step is None:
        return Cost(0, 0, 0.0)
    if step.kind == "conv" and integers is None:
        call = convolutions.dense(step) if bits == 8 else convolutions.packed(step, bits)
    else:
        (call,) = kernels.choose(Graph([step], {}, {}, (), (), []), prefer=prefer)
    return Cost(call.weight_bytes, layer.macs(inputs, out), call.instructions[CHIPS[CHIP].board], call.sweeps)


def milliseconds(costs: list[Cost]) -> float:
    """Of an inference on the chip, the upper end of what `codegen` estimates."""
    rows = [dict(weight_bytes=cost.bytes, sweeps=cost.sweeps, rows=1, strip=None) for cost in costs]
    return estimate(CHIP, CHIPS[CHIP].board, sum(cost.instructions for cost in costs), rows)["milliseconds"][1]


# What costs of layers sum up to.
GOALS: dict[str, Callable[[list[Cost]], float]] = {
    "bytes": lambda costs: sum(cost.bytes for cost in costs),
    "macs": lambda costs: sum(cost.macs for cost in costs),
    "ms": milliseconds,
}


def _step(layer, given, out, bits=8, integers=None):
    """What codegen lowers a layer to; None where no code is run."""
    values = math.prod(out)
    match layer:
        case layers.Conv():
            kind = "depthwise" if layer.depthwise and given[-1] > 1 else "conv"
            window = _window(given, out, (layer.kernel, layer.kernel), layer.strides)
            inside = () if kind == "depthwise" else (given[-1],)
            kernel = (out[-1], 1, layer.kernel, layer.kernel) if not inside else (out[-1], *[layer.kernel] * 2, *inside)
            bounded = layer.norm == "after" and layer.relu
            return Step(kind, "", 0, (0,), 1, window | (integers or _integers(bits, kernel, bounded)))
        case layers.Dense():
            window = _window((1, 1, 1, given[-1]), (1, 1, 1, out[-1]), (1, 1), 1)
            return Step("conv", "", 0, (0,), 1, window | (integers or _integers(bits, (out[-1], 1, 1, given[-1]))))
        case layers.Add():
            return Step("add", "", 0, (0, 1), 2, dict(values=values, b_inner=1, b_size=values, tables=True))
        case layers.Mul():
            return Step("mul", "", 0, (0, 1), 2, dict(values=values, b_inner=1, b_size=values))
        case layers.MaxPool() | layers.MinPool() | layers.GlobalAvgPool():
            kinds = {layers.MaxPool: "max_pool", layers.MinPool: "min_pool", layers.GlobalAvgPool: "mean_pool"}
            sides = given[1:3] if isinstance(layer, layers.GlobalAvgPool) else (layer.window, layer.window)
            window = _window(given, out, sides, 1) | dict(channels=out[-1])
            return Step(kinds[type(layer)], "", 0, (0,), 1, window)
    return None


def _window(given, out, kernel, strides):
    pads = [max((o - 1) * strides + k - n, 0) // 2 for o, k, n in zip(out[1:3], kernel, given[1:3], strict=True)]
    sizes = dict(in_h=given[1], in_w=given[2], in_c=given[3], out_h=out[1], out_w=out[2], out_c=out[3])
    window = dict(kernel_h=kernel[0], kernel_w=kernel[1], stride_h=strides, stride_w=strides)
    return sizes | window | dict(pad_top=pads[0], pad_left=pads[1])


def _integers(bits, shape, bounded=False):
    """Weights, biases and multipliers of a kernel with its output channels first."""
    zeros, bound = np.zeros(shape[0], np.int32), np.zeros(shape[0], np.uint8) if bounded else None
    kernel = np.resize(np.array([_WEIGHTS[bits], -_WEIGHTS[bits]], np.int8), shape)
    found = dict(kernel=kernel, bias=zeros, multiplier=zeros, shift=np.int8(zeros - 8))
    return found | dict(low=bound, high=bound, out_low=0, out_high=255)

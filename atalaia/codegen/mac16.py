"""Convolutions and matrix products for MAC16, the ESP32's instruction that multiplies, adds and loads: conv_mac16.c."""

import math
from typing import Any

import numpy as np

from atalaia.codegen.graph import Step

_FIELDS = (
    *("in_h", "in_w", "in_c", "out_h", "out_w", "out_c", "kernel_h", "kernel_w", "stride_h", "stride_w"),
    *("pad_top", "pad_left", "in_zero", "out_zero", "out_low", "out_high"),
)
OUTPUTS = 64  # of a channel, for which its weights are widened once


def step(conv: Step, arrays: dict[str, Any]) -> Step:
    """A convolution's step as plain.py has it.

    Args:
      conv: of kind conv.
      arrays: biases, multipliers, shifts and bounds: name to (C type, values).
    """
    v = conv.values
    fields = {name: int(v[name]) for name in _FIELDS}
    fields |= dict(rows=min(v["out_h"], -(-OUTPUTS // v["out_w"])), plain=int(is_plain(v)))
    arrays = arrays | dict(weights=("uint32_t", pack(v["kernel"])))
    made = v | dict(fields=fields, arrays=arrays, scratch=scratch_bytes(fields), sweeps=sweeps(fields))
    return conv._replace(kind="conv_mac16", values=made)


def is_plain(values: dict[str, Any]) -> bool:
    """Whether every sum lies within 2^29 whatever the input, and every shift is to the right by 1 to 22.

    Then the higher half of four times a sum times its multiplier is rounded as TFLite rounds the whole, and the
    output's zero point may be added before the shift.
    """
    kernel = values["kernel"].reshape(values["out_c"], -1).astype(np.int64)
    most = np.abs(values["bias"].astype(np.int64)) + 255 * np.abs(kernel).sum(1)
    return bool(np.all(most < 1 << 29) and np.all(values["shift"] < 0) and np.all(values["shift"] >= -22))


def scratch_bytes(fields: dict[str, int]) -> int:
    """Of the widened input rows and weights, and of one word that is read too much."""
    rows = (fields["rows"] - 1) * fields["stride_h"] + fields["kernel_h"]
    columns = rows * _width(fields) + fields["kernel_h"] * fields["kernel_w"]
    return columns * _deep(fields) * 2 + 4


def work(fields: dict[str, int]) -> dict[str, float]:
    """How often each part of the kernel runs in an inference.

    quad: four products; row: of the kernel, in an output; output; any: outputs that are not plain.
    weight, value: four that are widened; odd: values of inputs whose channels are no multiple of 4; moved: values.
    """
    width, deep = _width(fields), _deep(fields)
    outputs = fields["out_h"] * fields["out_w"] * fields["out_c"]
    quads = fields["kernel_h"] * fields["kernel_w"] * deep // 4
    strips = sweeps(fields)
    rows = fields["out_h"] * fields["stride_h"] + max(fields["kernel_h"] - fields["stride_h"], 0)
    moved = (strips - 1) * max(fields["kernel_h"] - fields["stride_h"], 0)
    odd = fields["in_c"] % 4 > 0
    found: dict[str, float] = dict(quad=outputs * quads, row=outputs * fields["kernel_h"], output=outputs)
    found |= {"any": 0 if fields["plain"] else outputs, "weight": strips * fields["out_c"] * quads}
    found |= dict(channel=strips * fields["out_c"], value=0 if odd else rows * width * deep // 4)
    return found | dict(odd=rows * width * deep // 4 if odd else 0, moved=moved * width * deep // 4)


def sweeps(fields: dict[str, int]) -> int:
    """How often the weights are read."""
    return -(-fields["out_h"] // fields["rows"])


def pack(kernel: np.ndarray) -> np.ndarray:
    """uint32: words of four channels, each a weight + 128, the first lowest; missing channels are 0.

    Args:
      kernel: int8 `[outputs, height, width, channels]`.
    """
    padded = np.zeros((*kernel.shape[:3], -(-kernel.shape[3] // 4) * 4), np.int16)
    padded[..., : kernel.shape[3]] = kernel
    return np.ascontiguousarray((padded + 128).astype(np.uint8)).view("<u4").astype(np.uint32).ravel()


def _width(fields):
    return (fields["out_w"] - 1) * fields["stride_w"] + fields["kernel_w"]


def _deep(fields):
    return math.ceil(fields["in_c"] / 4) * 4

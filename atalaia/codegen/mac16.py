"""Convolutions and matrix products for MAC16, the ESP32's instruction that multiplies, adds and loads: conv_mac16.c.

Weights are widened to 16 bits for some output rows at once, so that few bits and codes cost little time to unpack.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from atalaia.codegen.coded import pack_codes
from atalaia.codegen.graph import Step
from atalaia.codegen.packing import BITS, fits, pack_fields

_FIELDS = (
    *("in_h", "in_w", "in_c", "out_h", "out_w", "out_c", "kernel_h", "kernel_w", "stride_h", "stride_w"),
    *("pad_top", "pad_left", "in_zero", "out_zero", "out_low", "out_high"),
)
OUTPUTS = 64  # of a channel, for which its weights are widened once


def steps(conv: Step, arrays: dict[str, Any]) -> Iterator[Step]:
    """A convolution's step as plain.py has it, with weights in each form that can hold them.

    Args:
      conv: of kind conv.
      arrays: biases, multipliers, shifts and bounds: name to (C type, values).
    """
    v = conv.values
    fields = {name: int(v[name]) for name in _FIELDS}
    fields |= dict(rows=min(v["out_h"], -(-OUTPUTS // v["out_w"])), plain=int(is_plain(v)))
    common = v | dict(fields=fields, scratch=scratch_bytes(fields), sweeps=sweeps(fields))
    for name, files, bits, weights, work in _forms(v["kernel"]):
        made = common | dict(name=name, files=files, arrays=arrays | dict(weights=(f"{weights.dtype}_t", weights)))
        made |= dict(fields=fields | dict(widen=files[-1], bits=bits))
        made |= dict(work={part: n * common["sweeps"] for part, n in work.items()})
        yield conv._replace(kind="conv_mac16", values=made)


def _forms(kernel):
    """Of each: the kernel's name, files, bits, weights, and what is done to widen them once, by part of the kernel."""
    words = pack(kernel)
    yield "conv_mac16", ("mac16_bytes",), 8, words, dict(weight=words.size)
    for bits in BITS:
        if fits(kernel, bits):
            packed = pack_eights(kernel, bits)
            work = dict(eight=packed.nbytes // bits)
            yield f"conv_mac16_packed_{bits}", ("packed_word", "mac16_packed"), bits, packed, work
    codes = pack_codes(_widened(kernel)[:, None, None]) if fits(kernel, max(BITS)) else None
    if codes and codes.counts.max() < 1 << 16:
        stored = np.concatenate([codes.counts.astype(np.uint16), codes.stored])
        work = dict(code=int(codes.counts.sum()), cleared=words.size)
        yield f"conv_mac16_coded_{codes.width}", ("mac16_coded",), codes.width, stored, work


def is_plain(values: dict[str, Any]) -> bool:
    """Whether every sum lies within 2^29 whatever the input, and every shift is to the right by 1 to 22.

    Then the higher half of four times a sum times its multiplier is rounded as TFLite rounds the whole, and the
    output's zero point may be added before the shift.
    """
    kernel = values["kernel"].reshape(values["out_c"], -1).astype(np.int64)
    most = np.abs(values["bias"].astype(np.int64)) + 255 * np.abs(kernel).sum(1)
    return bool(np.all(most < 1 << 29) and np.all(values["shift"] < 0) and np.all(values["shift"] >= -22))


def scratch_bytes(fields: dict[str, int]) -> int:
    """Of the widened input rows and weights, and of two words: one that is read too much, and packed_word's last."""
    rows = (fields["rows"] - 1) * fields["stride_h"] + fields["kernel_h"]
    columns = rows * _width(fields) + fields["kernel_h"] * fields["kernel_w"]
    return columns * _deep(fields) * 2 + 8


def work(fields: dict[str, int]) -> dict[str, float]:
    """How often each part of the kernel runs in an inference.

    quad: four products; row: of the kernel, in an output; output; any: outputs that are not plain.
    value: four that are widened; odd: values of inputs whose channels are no multiple of 4; moved: values.
    """
    width, deep = _width(fields), _deep(fields)
    outputs = fields["out_h"] * fields["out_w"] * fields["out_c"]
    quads = fields["kernel_h"] * fields["kernel_w"] * deep // 4
    strips = sweeps(fields)
    rows = fields["out_h"] * fields["stride_h"] + max(fields["kernel_h"] - fields["stride_h"], 0)
    moved = (strips - 1) * max(fields["kernel_h"] - fields["stride_h"], 0)
    odd = fields["in_c"] % 4 > 0
    found: dict[str, float] = dict(quad=outputs * quads, row=outputs * fields["kernel_h"], output=outputs)
    found |= {"any": 0 if fields["plain"] else outputs}
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
    codes = (_filled(kernel).astype(np.int16) + 128).astype(np.uint8)
    return np.ascontiguousarray(codes).view("<u4").astype(np.uint32).ravel()


def pack_eights(kernel: np.ndarray, bits: int) -> np.ndarray:
    """Weights of few bits as mac16_packed.c reads them: packing.pack_fields of the halves of each eight channels."""
    quads = _filled(kernel).reshape(len(kernel), -1, 4)
    quads = np.pad(quads, ((0, 0), (0, quads.shape[1] % 2), (0, 0)))
    halves = quads.reshape(len(kernel), -1, 2, 2, 2).transpose(0, 3, 1, 2, 4)  # channels 0 and 1 of each four; 2 and 3
    return pack_fields(halves.reshape(2 * len(kernel), 1, 1, -1), bits)


def _filled(kernel):
    """int8 `[outputs, height, width, channels]` with channels filled up to a multiple of 4."""
    return np.pad(kernel, ((0, 0), (0, 0), (0, 0), (0, -kernel.shape[3] % 4)))


def _widened(kernel):
    """int8 `[outputs, values]` in the order in which they lie when they are widened."""
    return _filled(kernel).reshape(len(kernel), -1, 4)[:, :, [0, 2, 1, 3]].reshape(len(kernel), -1)


def _width(fields):
    return (fields["out_w"] - 1) * fields["stride_w"] + fields["kernel_w"]


def _deep(fields):
    return math.ceil(fields["in_c"] / 4) * 4

"""Kernels that are called with a struct of parameters: their files, its bytes, and how often parts of them run.

Such a step has in its values `fields`, those of the struct but for pointers, and `arrays`, what these point to: name to
(C type, values).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from atalaia.codegen import mac16


class Plain(NamedTuple):
    """A kernel.

    files: of mcu/kernels; struct: bytes on a board of 32 bits; work: of a step's fields, how often each part runs.
    """

    files: tuple[str, ...]
    struct: int
    work: Callable[[dict[str, Any]], dict[str, float]]


def _strided(v):
    rows = math.prod(v["count"])
    return dict(value=rows * v["block"], output=rows)


def _resized(v):
    return dict(value=v["out_h"] * v["out_w"] * v["channels"], output=v["out_h"] * v["out_w"])


def _reduced(v):
    return dict(value=math.prod(v["kept"]) * math.prod(v["over"]), output=math.prod(v["kept"]))


def _arg_most(v):
    return dict(value=v["outer"] * v["count"] * v["inner"], output=v["outer"] * v["inner"])


def _transpose_conv(v):
    taps = v["in_h"] * v["in_w"] * v["kernel_h"] * v["kernel_w"] * v["out_c"]
    outputs = v["out_h"] * v["out_w"] * v["out_c"]
    return dict(value=taps * v["in_c"], row=taps, output=outputs)


def _batch_matmul(v):
    outputs = v["batch"] * v["rows"] * v["columns"]
    return dict(value=outputs * v["inner"], output=outputs)


def _wide_conv(v):
    outputs = v["out_h"] * v["out_w"] * v["out_c"]
    taps = outputs * v["kernel_h"] * v["kernel_w"]
    return dict(value=taps * v["group_in"], row=taps, output=outputs)


def _wide_pair(v):
    return dict(value=v["values"])


KERNELS = {
    "strided": Plain(("strided",), 72, _strided),
    "nearest": Plain(("nearest",), 20, _resized),
    "bilinear": Plain(("bilinear",), 20, _resized),
    "reduce": Plain(("rescale", "reduce"), 64, _reduced),
    "reduce_most": Plain(("reduce_most",), 52, _reduced),
    "arg_most": Plain(("arg_most",), 16, _arg_most),
    "transpose_conv": Plain(("rescale", "transpose_conv"), 40, _transpose_conv),
    "batch_matmul": Plain(("rescale", "batch_matmul"), 48, _batch_matmul),
    "conv_mac16": Plain(("rescale", "conv_mac16"), 56, mac16.work),
    "wide_conv": Plain(("rescale", "wide_conv"), 48, _wide_conv),
    "wide_pair": Plain(("rescale", "wide_pair"), 32, _wide_pair),
}

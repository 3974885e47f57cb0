"""TFLite's fixed-point arithmetic in Python integers, to work out constants of the generated program."""

import math
from typing import Any

import numpy as np

_EXP_OF_POWERS = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)  # exp(-2^k), k from -2, Q0.31
_ONE = 2**31 - 1


def quantize_multiplier(real: Any) -> tuple[np.ndarray, np.ndarray]:
    """(multiplier int32, shift int8): real = multiplier * 2^(shift - 31) (TFLite's QuantizeMultiplier)."""
    fraction, shift = np.frexp(np.asarray(real, np.float64))
    mantissa = np.floor(fraction * 2**31 + 0.5).astype(np.int64)
    full = mantissa == 2**31
    mantissa, shift = np.where(full, mantissa // 2, mantissa), np.where(full, shift + 1, shift)
    tiny = shift < -31
    return np.where(tiny, 0, mantissa).astype(np.int32), np.where(tiny, 0, np.minimum(shift, 127)).astype(np.int8)


def rescaled(x: np.ndarray, multiplier: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """TFLite's MultiplyByQuantizedMultiplier of int32 values, int64, by shifts that are not to the left."""
    return _divide(_high(x.astype(np.int64), multiplier.astype(np.int64)), -shift.astype(np.int64))


def sum_of_uint8(v: dict[str, int], subtract: bool) -> np.ndarray:
    """TFLite's ADD or SUB of every uint8 a (rows) and b (columns): uint8 `[256, 256]`; `v` as graph.py has it."""
    x = np.arange(256, dtype=np.int64)
    a, b = (_divide(_high((x - v[f"{k}_zero"]) << 20, v[f"{k}_multiplier"]), -v[f"{k}_shift"]) for k in ("a", "b"))
    total = a[:, None] + (-b if subtract else b)
    total = _divide(_high(total, v["out_multiplier"]), -v["out_shift"]) + v["out_zero"]
    return np.clip(total, v["out_low"], v["out_high"]).astype(np.uint8)


def sum_tables(v: dict[str, int], subtract: bool) -> dict[str, int] | None:
    """Steps of the tables of add_tabled.c with which it equals `sum_of_uint8`; None where none were found.

    TFLite rounds thrice. One sum of fixed-point numbers gives other bytes only where that lies within their last bits
    of the middle of two values, which no pair does in most layers; else they are moved by some of those bits.
    """
    if v["out_shift"] > 0:  # an output so fine that all sums saturate
        return None
    wanted = sum_of_uint8(v, subtract)
    real = {k: v[f"{k}_multiplier"] * 2.0 ** (v[f"{k}_shift"] - 31) for k in ("a", "b", "out")}
    step = [(-1 if k == "b" and subtract else 1) * real[k] * real["out"] * 2.0**20 for k in ("a", "b")]
    start = v["out_zero"] + 0.5 - step[0] * v["a_zero"] - step[1] * v["b_zero"]
    largest = abs(start) + 255 * (abs(step[0]) + abs(step[1])) + 1
    bits = min(30, 30 - math.frexp(largest)[1])
    if bits < 0:
        return None
    a_step, b_step, start = (round(x * 2.0 ** (bits + 32)) for x in (*step, start))
    x = np.arange(256)
    b_terms = (x * b_step) >> 32
    for moved in range(-2, 4):  # both terms are rounded down
        a_terms = (start + (moved << 32) + x * a_step) >> 32
        if np.array_equal(np.clip((a_terms[:, None] + b_terms) >> bits, v["out_low"], v["out_high"]), wanted):
            return dict(start=start + (moved << 32), a_step=a_step, b_step=b_step, bits=bits)
    return None


def mean_multiplier(ratio: float, count: int) -> tuple[int, int]:
    """(multiplier, shift) of ratio / count, as reference_integer_ops::Mean works it out."""
    (multiplier,), (shift,) = quantize_multiplier([ratio])
    more = min(count.bit_length() - 1, 32, 31 + int(shift))
    return (int(multiplier) << more) // count, int(shift) - more


def softmax_table(beta: float, scale: float) -> np.ndarray:
    """exp(-beta * scale * d), Q0.31 int32 `[256]`, for the distances d of a value to its row's largest.

    As reference_ops::Softmax computes it, with differences in Q5.26; too large ones give 0.
    """
    real = min(beta * scale * 2**26, 2**31 - 1.0)
    (multiplier,), (shift,) = quantize_multiplier([real])
    multiplier, shift = int(multiplier), int(shift)
    farthest = math.floor(31 * 2.0**26 / 2.0**shift)
    return np.array([_exp(_high(-d << shift, multiplier)) if d <= farthest else 0 for d in range(256)], np.int32)


def dequantized(scale: float, zero: int) -> np.ndarray:
    """float32 `[256]` of each value, as TFLite's DEQUANTIZE gives it."""
    return (np.float64(scale) * (np.arange(256) - zero)).astype(np.float32)


def quantized(real: np.ndarray, scale: float, zero: int) -> np.ndarray:
    """uint8 of float32 values, as TFLite's QUANTIZE gives them: a quotient in float32, halves away from zero."""
    with np.errstate(over="ignore"):
        quotient = np.clip(real / np.float32(scale), -1024, 1024)  # beyond all grids
    whole = np.trunc(quotient)
    away = (np.abs(quotient - whole) >= 0.5) * np.sign(quotient)
    return np.clip(whole.astype(np.int64) + away.astype(np.int64) + zero, 0, 255).astype(np.uint8)


def least_floats(scale: float, zero: int) -> np.ndarray:
    """The least float32 that `quantized` makes 1, 2, ... 255 of, int32 `[255]`: bits as float_in.c orders them."""
    infinity = 0x7F800000
    low, high = np.full(255, -infinity - 2, np.int64), np.full(255, infinity, np.int64)  # it is above low, up to high
    while np.any(high - low > 1):
        middle = (low + high) >> 1
        bits = np.where(middle < 0, middle ^ 0x7FFFFFFF, middle).astype(np.int32)
        enough = quantized(bits.view(np.float32), scale, zero) > np.arange(255)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high.astype(np.int32)


def _high(a, b):
    """gemmlowp's SaturatingRoundingDoublingHighMul."""
    return (a * b + (1 << 30)) >> 31


def _divide(x, power):
    """gemmlowp's RoundingDivideByPOT."""
    mask = (1 << power) - 1
    return (x >> power) + ((x & mask) > (mask >> 1) + (x < 0))


def _exp(a):
    """gemmlowp's exp_on_negative_values: a <= 0 in Q5.26, the result in Q0.31."""
    if a == 0:
        return _ONE
    quarter = 1 << 24
    part = (a & (quarter - 1)) - quarter  # in [-1/4, 0)
    rest = part - a
    x = (part << 5) + (1 << 28)  # Q0.31 around -1/8
    x2 = _high(x, x)
    x3, x4 = _high(x2, x), _high(x2, x2)
    tail = _divide(_high(_divide(x4, 2) + x3, 715827883) + x2, 1)
    result = 1895147668 + _high(1895147668, x + tail)
    for k, factor in enumerate(_EXP_OF_POWERS):
        if rest & (1 << (24 + k)):
            result = _high(result, factor)
    return min(result, _ONE)

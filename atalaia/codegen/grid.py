"""How sums become values in two products of 32 bits, where that is proven to give TFLite's bytes.

TFLite multiplies a sum by 31 bits, rounds, divides by a power of two and rounds again, halves away from zero. The value
rises with the sum, so it is known by its thresholds: the smallest sum that gives each value. conv.c takes a line in
their place, of which the upper byte is the value; below the zero point, where TFLite rounds the other way, it lies
lower. One that passes each threshold between two neighbouring sums gives every byte.
"""

from typing import Any

import numpy as np

from atalaia.codegen.graph import Step

SMALL = 1 << 20  # bound of the sums that rescale_small takes, and of those that a line tells apart
FINE = 12  # bits of the slope below a 2^24th of a value
WORDS = 5  # of a channel
ONE = 1 << 24  # a value


def sum_bounds(values: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest sum of each output channel, int64, whatever the input; without the bias.

    Args:
      values: of a step with weights.
    """
    kernel = values["kernel"].reshape(values["out_c"], -1).astype(np.int64)
    return 255 * np.minimum(kernel, 0).sum(1), 255 * np.maximum(kernel, 0).sum(1)


def small_sums(step: Step) -> bool:
    """Whether every sum lies within 2^20 whatever the input, and is divided: conv.c then rescales it in fewer steps."""
    low, high = (bound + step.values["bias"] for bound in sum_bounds(step.values))
    return bool(np.all(low >= -SMALL) and np.all(high < SMALL) and np.all(step.values["shift"] < 0))


def bounds(step: Step) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest value of each output channel: its own bounds within the activation's."""
    v = step.values
    low, high = (np.full(v["out_c"], v[k]) if v[k[4:]] is None else v[k[4:]] for k in ("out_low", "out_high"))
    return np.clip(low, v["out_low"], v["out_high"]), np.clip(high, v["out_low"], v["out_high"])


def by_lines(call: Any, lines: np.ndarray) -> Any:
    """A call.Call with `lines(call.step)` in place of multipliers."""
    arrays = {k: v for k, v in call.arrays.items() if k not in ("bias", "multiplier", "shift", "low", "high")}
    moved = call.arrays["bias"][1].astype(np.int64) - call.step.values["bias"]  # by where a kernel's sums start
    lines = lines.astype(np.int64)
    lines[:, 0] += moved
    turned = bool(np.any(lines[:, 4] >> FINE))
    work = {k: n for k, n in call.work.items() if k not in ("small", "large")}
    work |= dict(turned=work["output"]) if turned else {}
    arrays["grid"] = ("uint32_t", (lines & 0xFFFFFFFF).astype(np.uint32))
    fields = tuple((k, v) for k, v in call.fields if k != "small")
    return call._replace(arrays=arrays, work=work, fields=(*fields, ("turned", int(turned))))


def lines(step: Step) -> np.ndarray | None:
    """What on_line() of conv.c takes of each output channel, uint32 `[out_c, WORDS]`; None where one has no line."""
    v = step.values
    low, high = bounds(step)
    multiplier, shift = v["multiplier"].astype(np.int64), v["shift"].astype(int)
    least, most = (bound + v["bias"] for bound in sum_bounds(step.values))
    if np.any(multiplier <= 0) or np.any(shift > 0) or np.any(most - least >= 1 << 31):
        return None
    rows = [
        _line(int(m), int(s), v["out_zero"], thresholds(m, s, v["out_zero"], a, b), int(a), int(x), int(y))
        for m, s, a, b, x, y in zip(multiplier, shift, low, high, least, most, strict=True)
    ]
    if any(row is None for row in rows):
        return None
    found = np.array(rows, np.int64)
    found[:, 0] += v["bias"]
    return (found & 0xFFFFFFFF).astype(np.uint32)


def thresholds(multiplier: int, shift: int, zero: int, low: int, high: int) -> np.ndarray:
    """The smallest sum that gives at least each value of low + 1, ... high; of large shifts as Python's integers."""
    power = -int(shift)
    value = np.arange(int(low) + 1, int(high) + 1, dtype=np.int64 if power <= 22 else object) - zero
    half = (1 << power) >> 1
    rounded = (value << power) - half + ((value <= 0) & (power > 0))  # the least product that the division rounds so
    return -((-((rounded << 31) - (1 << 30))) // int(multiplier))


def _line(multiplier, shift, zero, first, low, least, most):
    """Five words, the first without the channel's bias; None where no line was found.

    Args:
      first: as `thresholds` gives it; low: the lowest value; least, most: bounds of the sums, with the bias.
    """
    values = np.arange(low + 1, low + 1 + len(first))
    reached = (first > least) & (first <= most)
    below = low + int((first <= least).sum())  # the lowest value that a sum has
    if not reached.any():
        return 0, 0, 0, below * ONE + ONE // 2, 0
    values, first = values[reached], first[reached].astype(np.int64)
    origin = int(first[0]) - 1
    x = first - origin
    if x[-1] >= SMALL:
        return None
    nearest = round(multiplier * 2.0 ** (shift + 24 + FINE - 31))
    tried = (_with_slope(nearest + more, values, x, zero, below, shift) for more in (0, 1, -1, 2, -2, 3, -3))
    found = next((line for line in tried if line is not None), None)
    return found and (-origin, *found)


def _with_slope(slope, values, x, zero, below, shift):
    """The last four words of a line of a slope, in 1/2^36 of a value; None where no start of it gives every byte."""
    coarse, fine = slope >> FINE, slope & (1 << FINE) - 1

    def line(x):
        return x * coarse + (x * fine >> FINE)

    # Where it may start, so that it is at or above each value at its threshold, and below it at the sum before.
    at_least = np.append(values * ONE - line(x), below * ONE + 1)
    at_most = np.append(values * ONE - line(x - 1), (int(values[-1]) + 1) * ONE - line(int(x[-1]))) - 1
    turn, power = 0, 0
    if below < zero <= int(values[-1]):  # some lie below the zero point: there the line is lower
        turn, power = int(x[values <= zero][-1]) + 1, max(24 + shift, 0)
        lower = np.append(values <= zero, True), np.append(values <= zero, False)
        at_least, at_most = at_least + (lower[0] << power), at_most + (lower[1] << power)
    start, end = int(at_least.max()), int(at_most.min())
    return None if start > end else (int(x[-1]) << FINE | fine, coarse, (start + end) // 2, turn << 12 | power)

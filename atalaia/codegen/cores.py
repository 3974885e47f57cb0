"""Two cores: each makes half of a step's rows, or of its sums, and they meet before what the other one needs.

No kernel knows of it: a half is a step of fewer rows, whose pointers begin further on. Weights are stored once.
"""

from collections.abc import Sequence
from typing import NamedTuple

from atalaia.codegen import kernels, memory
from atalaia.codegen.call import Call
from atalaia.codegen.fitting import Planned
from atalaia.codegen.graph import Graph

_BY_ROWS = ("conv", "depthwise", "conv_mac16", "max_pool", "mean_pool", "min_pool")


class Half(NamedTuple):
    """A core's half of a step: its call, and where what it reads, writes and works in begins, in bytes."""

    call: Call
    read: int = 0
    write: int = 0
    window: int = 0


def planned(graph: Graph, calls: Sequence[Call], target: str) -> Planned:
    """A network for two cores: halves of its steps, and an arena in which neither writes what the other one reads.

    There are no strips, whose rows need each other.
    """
    found = {number: pair for number, call in enumerate(calls) if (pair := halves(call, target))}
    steps = list(graph.steps)
    for number, (_, lower) in found.items():
        scratch = dict(scratch=lower.window + memory.scratch_bytes(lower.call.step), halves=True)
        steps[number] = steps[number]._replace(values=steps[number].values | scratch)
    plan = memory.plan(graph._replace(steps=steps))
    return Planned(list(calls), plan._replace(halves=found), 0.0)


def halves(call: Call, target: str) -> tuple[Half, Half] | None:
    """What each core does of a step; None where one core does it alone."""
    v = call.step.values
    if call.step.kind in _BY_ROWS and "batch" not in v:
        return _by_rows(call, target)
    if "b_inner" in v and "constant" not in v and (v["b_inner"], v["b_size"]) == (1, v["values"]):
        return _by_values(call, target)
    return None


def slower_core(found: Planned) -> dict[str, float]:
    """By board the part of the instructions that one core runs while the other has as many, fewer, or none."""
    total: dict[str, float] = {}
    slower: dict[str, float] = {}
    for number, call in enumerate(found.calls):
        parts = [half.call.instructions for half in found.plan.halves.get(number, ())] or [call.instructions]
        for board in call.instructions:
            each = [part[board] for part in parts]
            total[board] = total.get(board, 0.0) + sum(each)
            slower[board] = slower.get(board, 0.0) + max(each)
    return {board: slower[board] / total[board] for board in total}


def _by_rows(call, target):
    """Halves of the output's rows; the lower one's input begins with the first row that it reads."""
    v = call.step.values
    rows = -(-v["out_h"] // 2)
    top = rows * v["stride_h"] - v["pad_top"]
    skipped = max(0, top)
    if v["out_h"] < 2 or skipped >= v["in_h"]:
        return None
    upper = _of(call, dict(out_h=rows), target)
    lower = dict(out_h=v["out_h"] - rows, in_h=v["in_h"] - skipped, pad_top=max(0, -top))
    channels = v.get("channels", 0)
    read = skipped * v["in_w"] * v.get("in_c", channels)
    write = rows * v["out_w"] * v.get("out_c", channels)
    return _pair(upper, _of(call, lower, target), read, write)


def _by_values(call, target):
    """Halves of sums, products and the like of two tensors of one shape."""
    values = call.step.values["values"]
    first = -(-values // 8) * 4  # the second begins at a word
    sizes = [n for n in (first, values - first) if n > 0]
    found = [_of(call, dict(values=n, b_size=n), target) for n in sizes]
    return _pair(*found, first, first) if len(found) == 2 else None


def _pair(upper, lower, read, write):
    if upper is None or lower is None:
        return None
    window = memory.aligned(memory.scratch_bytes(upper.step))
    return Half(upper), Half(lower, read, write, window)


def _of(call, changed, target):
    """A call of a part of its step, by the same kernel and constants; None where that kernel does not run the part."""
    step = call.step
    kind = "conv" if step.kind == "conv_mac16" else step.kind
    part = step._replace(kind=kind, values=step.values | changed)
    same = (
        c for c in kernels.candidates(part, target) if (c.kernel, c.arrays.keys()) == (call.kernel, call.arrays.keys())
    )
    return next(same, None)

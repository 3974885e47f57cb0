"""The kernel of each step, chosen by instructions and bytes of flash."""

import math
from typing import Any

from atalaia.codegen import convolutions, mac16, memory, plain
from atalaia.codegen.call import TARGETS, Call
from atalaia.codegen.graph import Graph, Step, firsts

SPARSE = ("conv_sparse", "mac16_coded")  # files of kernels that hold only weights that are not zero


def choose(
    graph: Graph, sparse: str = "auto", prefer: str = "balanced", flash: float | None = None, target: str = "any"
) -> list[Call]:
    """Calls of a graph's steps.

    Args:
      graph: what to run.
      sparse: "auto", "always" (wherever there is a sparse kernel) or "never".
      prefer: of the kernels of a step, "speed" takes that of fewest instructions, "size" that of fewest bytes of
        constants; "balanced" takes kernels of a small product of the network's instructions and bytes: a percent of
        one is worth a percent of the other.
      flash: bytes that all constants together should fit. Where the preferred kernels exceed them, the fastest that fit
        are taken, and where none fit, the smallest.
      target: of TARGETS: what C runs fast on; esp32 may take kernels for its own instructions.
    """
    same = firsts(graph.steps)
    places = sorted(set(same))
    choices = [_allowed(candidates(graph.steps[at], target), sparse) for at in places]
    boards = TARGETS[target]
    chosen = _balanced(choices, boards) if prefer == "balanced" else _each(choices, prefer, boards)
    if flash is not None and sum(call.weight_bytes for call in chosen) > flash:
        chosen = _fastest_within(choices, flash, boards)
    by_place = dict(zip(places, chosen, strict=True))
    return [_again(by_place[first], step) for first, step in zip(same, graph.steps, strict=True)]


def _again(call, step):
    """The call of a step, by that of one with the same constants."""
    return call._replace(step=call.step._replace(place=step.place, inputs=step.inputs, output=step.output))


def candidates(step: Step, target: str = "any") -> list[Call]:
    """Every kernel that can run a step, on a target."""
    batch = step.values.get("batch", 1)
    calls = list(_CHOICES.get(step.kind, _pair)(step))
    if target == "esp32" and step.kind == "conv":
        calls += [call for made in mac16.steps(step, convolutions.common(step.values)) for call in _plain(made)]
    return [call._replace(sweeps=call.sweeps * batch) for call in calls]


def _allowed(calls, sparse):
    """Those of a step's calls that `sparse` allows; all where it would leave none."""
    if sparse == "auto":
        return calls
    return [c for c in calls if any(name in c.files for name in SPARSE) == (sparse == "always")] or calls


def _each(choices, least, boards):
    """Of each step the call that by itself has the least instructions, bytes, or product of both."""
    found = []
    for calls in choices:
        time = _times([calls], boards)
        keys = dict(
            speed=lambda call, time=time: (time(call), call.weight_bytes),
            size=lambda call, time=time: (call.weight_bytes, time(call)),
            product=lambda call, time=time: (time(call) * call.weight_bytes, time(call)),
        )
        found.append(min(calls, key=keys[least]))
    return found


def _balanced(choices, boards):
    """Of each step one call, together of a product of instructions and bytes that no change of each by itself lowers.

    Each step takes the call that adds least to the network's share of both, until the product stays. It cannot grow:
    its logarithm is concave in both, and so lies below its tangent, which the shares are.
    """
    time, found = _times(choices, boards), []

    def sums(calls):
        return sum(map(time, calls)), max(1, sum(call.weight_bytes for call in calls))

    for start in ("size", "speed", "product"):
        calls, least = _each(choices, start, boards), math.inf
        while math.prod(now := sums(calls)) < least:
            least, kept = math.prod(now), calls
            calls = [
                min(step, key=lambda call: (time(call) / now[0] + call.weight_bytes / now[1], time(call)))
                for step in choices
            ]
        found.append((least, kept))
    return min(found, key=lambda end: end[0])[1]


def _times(choices, boards):
    """Of a call, its instructions: their sum over the boards, each relative to those of every step's first call."""
    whole = {b: sum(calls[0].instructions[b] for calls in choices) for b in boards}
    return lambda call: sum(call.instructions[b] / whole[b] for b in boards)


def _fastest_within(choices, flash, boards):
    """Of each step one call, together of the fewest instructions within `flash` bytes: a knapsack, solved exactly."""
    time, front = _times(choices, boards), [(0, 0.0, ())]  # bytes, instructions, calls: from smallest to fastest
    for calls in choices:
        costs = [(call.weight_bytes, time(call), call) for call in calls]
        sums = [(size + b, so_far + t, (*picked, call)) for size, so_far, picked in front for b, t, call in costs]
        sums.sort(key=lambda point: point[:2])
        front = sums[:1]
        for point in sums:
            if point[0] <= flash and point[1] < front[-1][1]:
                front.append(point)
    return list(front[-1][2])


# The other steps have one kernel each.


def _pool(step):
    v = step.values
    outputs = v["out_h"] * v["out_w"] * v["channels"]
    work = dict(value=outputs * v["kernel_h"] * v["kernel_w"], output=outputs)
    file = "min_pool" if step.kind == "min_pool" else "pool"
    yield Call(step, step.kind, ("rescale", file), {}, work, step.kind)


def _lookup(step):
    arrays = dict(table=("uint8_t", step.values["table"]))
    yield Call(step, "lookup", ("lookup",), arrays, dict(value=step.values["size"]), "lookup")


def _mean(step):
    v = step.values
    work = dict(value=v["pixels"] * v["channels"], output=v["channels"])
    yield Call(step, "mean", ("rescale", "mean"), {}, work, "mean")


def _softmax(step):
    v = step.values
    work = dict(value=v["rows"] * v["size"], output=v["rows"])
    yield Call(step, "softmax", ("rescale", "softmax"), dict(table=("int32_t", v["table"])), work, "softmax")


def _move(step):
    v = step.values
    if step.kind == "copy":
        work = dict(value=v["rows"] * v["block"], output=v["rows"])
    else:
        work = dict(value=v["out_h"] * v["out_w"] * v["out_c"], output=v["in_h"] * v["in_w"])
    yield Call(step, step.kind, (step.kind,), {}, work, step.kind)


def _flip(step):
    yield Call(step, "flip", ("flip",), {}, dict(value=step.values["size"]), "flip")


def _moved(step):
    """memcpy and memset."""
    kernel = "memset" if step.kind == "fill" else "memcpy"
    yield Call(step, kernel, (), {}, dict(value=step.values["size"], output=1), "copy")


def _float(step):
    table = step.values["table"]
    arrays = dict(table=(f"{table.dtype}_t", table))
    yield Call(step, step.kind, (step.kind,), arrays, dict(value=step.values["size"]), step.kind)


def _plain(step):
    kernel, v = plain.KERNELS[step.kind], step.values
    arrays = v["arrays"] | ({"constant": (f"{v['constant'].dtype}_t", v["constant"])} if "constant" in v else {})
    files, work = kernel.files + v.get("files", ()), kernel.work(v["fields"]) | v.get("work", {})
    yield Call(step, v.get("name", step.kind), files, arrays, work, step.kind, (), v.get("sweeps", 1))


def _pair(step):
    v = step.values
    arrays = {"constant": ("uint8_t", v["constant"])} if "constant" in v else {}
    if memory.scratch_bytes(step):
        yield Call(
            step, "add_tabled", ("rescale", "add_tabled"), arrays, dict(value=v["values"], tables=1), "add_tabled"
        )
        return
    kernel = dict(sub="add", rsub="sub_from").get(step.kind, step.kind)
    work = dict(value=v["values"], output=v["values"] // v["b_inner"])
    yield Call(step, kernel, ("rescale", "elementwise", kernel), arrays, work, kernel)


_CHOICES: dict[str, Any] = {
    "conv": convolutions.kernels,
    "depthwise": convolutions.kernels,
    "max_pool": _pool,
    "mean_pool": _pool,
    "min_pool": _pool,
    "lookup": _lookup,
    "mean": _mean,
    "softmax": _softmax,
    "copy": _move,
    "pad": _move,
    "flip_in": _flip,
    "flip_out": _flip,
    "take": _moved,
    "give": _moved,
    "fill": _moved,
    "float_in": _float,
    "float_out": _float,
    **dict.fromkeys(plain.KERNELS, _plain),
}

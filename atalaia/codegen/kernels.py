"""The kernel of each step, chosen by instructions and bytes of flash, and its weights as that kernel has them.

A kernel's instructions are its work (how often each part of it runs) times costs.json, which experiments/mcu_costs.py
fits to what the emulators count.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atalaia.codegen import mac16, memory, plain
from atalaia.codegen.coded import pack_codes
from atalaia.codegen.graph import Graph, Step, content, firsts
from atalaia.codegen.grid import SMALL, by_lines, lines, small_sums, sum_bounds
from atalaia.codegen.packing import BITS, GAPS, chunk_taps, fits, pack_dense, pack_fields, pack_sparse, pack_woven

BOARDS, ESP32 = ("rv32", "lx106"), ("esp32isa",)
TARGETS = dict(any=BOARDS, esp32=ESP32)  # the boards whose instructions choose a kernel
COSTS = Path(__file__).with_name("costs.json")  # board to kernel to part to instructions
COLUMNS = 48  # of conv.c
SPARSE = ("conv_sparse", "mac16_coded")  # files of kernels that hold only weights that are not zero
# Of the struct with a step's parameters, where it has one, on a board of 32 bits; "pair" is every step of two inputs
# but for the kernels with a struct of their own.
STRUCT_BYTES = dict(
    conv=64, depthwise=64, max_pool=20, mean_pool=20, min_pool=20, pad=20, mean=24, pair=48, add_tabled=32
)


class Call(NamedTuple):
    """A step with its kernel.

      kernel: the C function; files: those of mcu/kernels that it needs; arrays: name to (C type, values).
      work: how often each part of the kernel runs in an inference; instructions: by board.
      template: the C function that `kernel` is a case of, and its constants; sweeps: how often the weights are read.
    fields: of the C struct, beside the step's own.
    """

    step: Step
    kernel: str
    files: tuple[str, ...]
    arrays: dict[str, tuple[str, np.ndarray]]
    work: dict[str, float]
    cost: str
    template: tuple[str, ...] = ()
    sweeps: int = 1
    fields: tuple[tuple[str, int], ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all constants: arrays, and the struct of parameters."""
        kind = "pair" if "b_inner" in self.step.values else self.step.kind
        struct = STRUCT_BYTES.get(self.kernel, STRUCT_BYTES.get(kind, 0))
        struct += plain.KERNELS[kind].struct if kind in plain.KERNELS else 0
        return sum(values.nbytes for _, values in self.arrays.values()) + struct

    @property
    def constants(self) -> tuple:
        """What is stored of it, to be compared."""
        return self.kernel, self.fields, content(self.arrays), self.step.constants

    @property
    def instructions(self) -> dict[str, float]:
        """Of an inference, by board."""
        batch = self.step.values.get("batch", 1)
        found = costs()
        return {b: batch * sum(n * found[b][self.cost][part] for part, n in self.work.items()) for b in found}


def choose(
    graph: Graph, sparse: str = "auto", prefer: str = "balanced", flash: float | None = None, target: str = "any"
) -> list[Call]:
    """Calls of a graph's steps.

    Args:
      graph: what to run.
      sparse: "auto", "always" (wherever there is a sparse kernel) or "never".
      prefer: of the kernels of a step, "speed" takes that of fewest instructions, "size" that of fewest bytes of
        constants, "balanced" the smallest product of both: a percent of one is worth a percent of the other.
      flash: bytes that all constants together should fit. Where the preferred kernels exceed them, the fastest that fit
        are taken, and where none fit, the smallest.
      target: of TARGETS: what C runs fast on; esp32 may take kernels for its own instructions.
    """
    same = firsts(graph.steps)
    places = sorted(set(same))
    choices = [_allowed(candidates(graph.steps[at], target), sparse) for at in places]
    chosen = [_best(calls, prefer, TARGETS[target]) for calls in choices]
    if flash is not None and sum(call.weight_bytes for call in chosen) > flash:
        chosen = _fastest_within(choices, flash, TARGETS[target])
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
        calls += [call for made in mac16.steps(step, _common(step.values)) for call in _plain(made)]
    return [call._replace(sweeps=call.sweeps * batch) for call in calls]


def _allowed(calls, sparse):
    """Those of a step's calls that `sparse` allows; all where it would leave none."""
    if sparse == "auto":
        return calls
    return [c for c in calls if any(name in c.files for name in SPARSE) == (sparse == "always")] or calls


def _best(calls, prefer, boards):
    """One of a step's calls; instructions count as their mean over the boards, each relative to the first call's."""
    first = calls[0].instructions

    def rank(call):
        time, size = sum(call.instructions[b] / first[b] for b in boards), call.weight_bytes
        return dict(speed=(time, size), size=(size, time), balanced=(time * size, time))[prefer]

    return min(calls, key=rank)


def _fastest_within(choices, flash, boards):
    """Of each step one call, together of the fewest instructions within `flash` bytes: a knapsack, solved exactly.

    Instructions count as their mean over the boards, each relative to those of every step's first call.
    """
    whole = {b: sum(calls[0].instructions[b] for calls in choices) for b in boards}
    front = [(0, 0.0, ())]  # bytes, instructions, calls: from the smallest to the fastest
    for calls in choices:
        costs = [(c.weight_bytes, sum(c.instructions[b] / whole[b] for b in boards), c) for c in calls]
        sums = [(size + b, time + t, (*picked, call)) for size, time, picked in front for b, t, call in costs]
        sums.sort(key=lambda point: point[:2])
        front = sums[:1]
        for point in sums:
            if point[0] <= flash and point[1] < front[-1][1]:
                front.append(point)
    return list(front[-1][2])


# Convolutions and matrix products: dense, woven, packed where codes are small, and sparse in each form.


def _linear(step) -> Iterator[Call]:
    """Each kernel, and it with the sums' lines in place of multipliers where there are any."""
    found = lines(step)
    for call in (_conv if step.kind == "conv" else _depthwise)(step):
        yield call
        if found is not None:
            yield by_lines(call, found)


def _conv(step) -> Iterator[Call]:
    yield dense(step)
    least, most = sum_bounds(step)
    if step.values["out_w"] >= 4 and least.min() >= -SMALL and most.max() < SMALL:
        yield _woven(step)
    kernel = step.values["kernel"]
    yield from (packed(step, bits) for bits in BITS if fits(kernel, bits))
    few_bits = fits(kernel, max(BITS))
    for form in GAPS:
        if form != "NIBBLES" or few_bits:
            stored, counts = pack_sparse(kernel, form)
            if counts.max(initial=0) < 1 << 16:
                yield _sparse(step, ("conv_sparse", form), f"conv_{form.lower()}", stored, counts)
    codes = pack_codes(kernel) if few_bits else None
    if codes and codes.counts.max() < 1 << 16:
        yield _coded(step, codes)


def dense(step: Step) -> Call:
    """The dense kernel of a convolution or matrix product, whatever its weights."""
    v = step.values
    pixels = min(v["out_w"], 2)
    sweeps, work = _sweeps(v, pixels, -(-v["out_c"] // 4))
    taps = v["kernel_h"] * v["kernel_w"] * v["in_c"]
    work |= dict(inner=work["group"] * taps, total=sweeps * pixels * taps)
    arrays = _common(v) | dict(weights=("uint8_t", pack_dense(v["kernel"])))
    return _instance(step, "conv_dense", f"conv_dense_{pixels}", (pixels,), arrays, work, sweeps)


def _woven(step):
    v = step.values
    sweeps, work = _fours(v, -(-v["out_c"] // 3))
    taps, distance = v["kernel_w"] * v["in_c"], v["stride_w"] * v["in_c"]
    work |= dict(inner=work["row"] * taps, far=work["row"] * taps * sum(i * distance > 255 for i in range(4)))
    arrays = _common(v) | dict(weights=("uint32_t", pack_woven(v["kernel"])))
    arrays["bias"] = ("int32_t", v["bias"] - np.int32(SMALL))  # sums start there
    constants = (distance, v["kernel_h"], taps, int(v["out_c"] % 3 == 1))
    name = f"conv_woven_{'_'.join(map(str, constants))}"
    return _instance(step, "conv_woven", name, constants, arrays, work, sweeps, "conv_woven")


def packed(step: Step, bits: int) -> Call:
    """The kernel of packed weights of a convolution or matrix product, which so many of BITS can hold."""
    v = step.values
    pixels = 4 if v["out_w"] >= 4 else 1
    sweeps, work = _sweeps(v, pixels, -(-v["out_c"] // 2))
    words = pack_fields(v["kernel"], bits)
    arrays = _common(v) | dict(weights=(f"{words.dtype}_t", words))
    name = f"conv_packed_{bits}_{pixels}"
    chunk = chunk_taps(v["kernel"])
    taps = v["kernel_w"] * v["in_c"]
    work |= dict(inner=sweeps * words.nbytes // bits, chunk=work["row"] * -(-taps // chunk))
    call = _instance(step, "conv_packed", name, (bits, pixels), arrays, work, sweeps)
    return call._replace(files=("packed_word", *call.files), fields=(("chunk", chunk), *call.fields))


def _sparse(step, template, name, stored, counts, cost=None):
    """A kernel of weights that are not zero.

    Args:
      template: the C function, and its first constant; name: how the kernel's begins; cost: in costs.json, where other.
      stored, counts: the weights, and their numbers by output and kernel row.
    """
    v = step.values
    pixels = next(n for n in (8, 4, 1) if v["out_w"] >= n)
    sweeps, work = _sweeps(v, pixels, v["out_c"])
    distance = v["stride_w"] * v["in_c"]
    far = sum(i * distance > 255 for i in range(pixels))  # what does not lie in an Xtensa load
    inner = sweeps * int(counts.sum())
    work |= dict(inner=inner, far=inner * far * (2 if "TRIPLETS" in template else 1))
    wide, counted = _counts(counts)
    arrays = _common(v) | dict(weights=(f"{stored.dtype}_t", stored), counts=counted)
    function, *first = template
    name, cost = f"{name}_{pixels}_{distance}" + "_wide" * wide, f"{cost or name}_{pixels}"
    return _instance(step, function, name, (*first, pixels, distance, wide), arrays, work, sweeps, cost)


def _coded(step, codes):
    """The sparse kernel of such codes."""
    template, name = ("conv_coded", codes.width), f"conv_coded_{codes.width}"
    call = _sparse(step, template, name, codes.stored, codes.counts, "conv_coded")
    work = call.work | dict(refill=call.work["inner"] * codes.width / 16)
    return call._replace(files=(*call.files[:-1], "conv_sparse", "conv_coded"), work=work)


def _counts(counts):
    """Whether one exceeds a byte, and the C array."""
    wide = int(counts.max(initial=0) > 255)
    return wide, ("uint16_t", counts.astype(np.uint16)) if wide else ("uint8_t", counts.astype(np.uint8))


def _depthwise(step) -> Iterator[Call]:
    v = step.values
    pixels = 4 if v["out_w"] >= 4 else 1
    sweeps, work = _sweeps(v, pixels, v["out_c"])
    work |= dict(inner=work["row"] * v["kernel_w"])
    arrays = _common(v) | {"weights": ("int8_t", v["kernel"].ravel())}
    yield _instance(step, "depthwise", f"depthwise_{pixels}", (pixels,), arrays, work, sweeps)
    if v["kernel_h"] == v["kernel_w"] == 3 and v["stride_w"] <= 2 and v["out_w"] >= 4 and v["in_c"] == v["out_c"]:
        sweeps, work = _fours(v, v["out_c"])
        arrays = _common(v) | {"weights": ("int16_t", v["kernel"].ravel().astype(np.int16))}
        stride, deep = v["stride_w"], v["in_c"]
        far = sum(i * deep > 255 for i in range(3 * stride + 3))
        work |= dict(inner=work["row"], far=work["row"] * far)
        name = f"depthwise_rows_{stride}"
        yield _instance(step, "depthwise_rows", f"{name}_{deep}", (stride, deep), arrays, work, sweeps, name)


def _instance(step, template, kernel, constants, arrays, work, sweeps, cost=None):
    files = ("rescale", "move", "conv", "conv_map", "depthwise" if template.startswith("depthwise") else template)
    small = small_sums(step)
    work |= {"small" if small else "large": work["output"]}
    constants = (template, *map(str, constants))
    return Call(step, kernel, files, arrays, work, cost or kernel, constants, sweeps, (("small", int(small)),))


def _sweeps(v, pixels, groups):
    """Passes over the weights, and the work outside of inner loops: a group is of outputs that are summed together."""
    blocks = -(-v["out_w"] // pixels)
    sweeps = v["out_h"] * blocks
    width = (v["out_w"] - 1) * v["stride_w"] + v["kernel_w"]
    direct = v["kernel_h"] == 1 and not v["pad_left"] and width <= v["in_w"]
    return sweeps, dict(
        line=v["out_h"],
        copied=0 if direct else v["out_h"] * v["kernel_h"] * width * v["in_c"],
        group=sweeps * groups,
        row=sweeps * groups * v["kernel_h"],
        output=sweeps * pixels * v["out_c"],
    )


def _fours(v, groups):
    """As `_sweeps`, of kernels that sum four pixels at once and store up to COLUMNS of them."""
    parts, rest = divmod(v["out_w"], COLUMNS)
    fours = parts * COLUMNS // 4 + -(-rest // 4)
    sweeps, work = _sweeps(v, v["out_w"], groups)
    columns = parts * COLUMNS + (max(rest, 4) if rest else 0)
    work |= dict(group=work["group"] * (parts + bool(rest)), four=work["group"] * fours)
    work |= dict(row=work["four"] * v["kernel_h"], output=v["out_h"] * columns * v["out_c"])
    return sweeps * (parts + bool(rest)), work


def _common(v):
    arrays = dict(bias=("int32_t", v["bias"]), multiplier=("int32_t", v["multiplier"]), shift=("int8_t", v["shift"]))
    if v["low"] is not None:  # the activation's bounds, and then those by channel, in one
        bounds = (np.minimum(np.maximum(v[k], v["low"]), v["high"]) for k in ("out_low", "out_high"))
        arrays |= {k: ("uint8_t", b.astype(np.uint8)) for k, b in zip(("low", "high"), bounds, strict=True)}
    return arrays


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


@functools.cache
def costs() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads(COSTS.read_text())


_CHOICES: dict[str, Any] = {
    "conv": _linear,
    "depthwise": _linear,
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

"""Where each tensor lies in the arena: lifetimes, tensors that share their bytes, and offsets."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from atalaia.codegen.graph import GIVEN, TAKEN, Graph, Step

if TYPE_CHECKING:
    from atalaia.codegen.cores import Half
    from atalaia.codegen.strips import Strip

ALIGN = 4
TABLED = 1024  # values from which on a sum is faster by tables of what each of the 256 values of a term gives
_IN_PLACE = (
    "add",
    "sub",
    "mul",
    "maximum",
    "minimum",
    "lookup",
    "rsub",
    "prelu",
    "squared_difference",
)  # value i of the output needs value i of the first input


class Plan(NamedTuple):
    """Offsets in the arena.

    tensors: by number; windows: of each step's scratch bytes, None where it has none; arena: bytes.
    bound: bytes that live at once in the fullest step, below which no placement can be; layers: those bytes by step.
    strips: steps that run row by row together; the scratch bytes of each are the window of its first step.
    halves: of C for two cores, what each does of a step, by its number; other steps are core 0's.
    """

    tensors: dict[int, int]
    windows: list[int | None]
    arena: int
    bound: int
    layers: list[int]
    strips: tuple[Strip, ...] = ()
    halves: Mapping[int, tuple[Half, Half]] = MappingProxyType({})


class Block(NamedTuple):
    """Bytes that are needed from step `first` to step `last`."""

    size: int
    first: int
    last: int
    key: tuple


def plan(graph: Graph, strips: Sequence[Strip] = ()) -> Plan:
    """The smallest arena that was found; proven smallest where `arena == bound`."""
    shared = in_place(graph, strips)
    blocks = _blocks(graph, strips, shared)
    for i in [i for i, given in shared.items() if graph.sizes[i] != graph.sizes[given]]:
        fewer = {k: given for k, given in shared.items() if k != i}
        apart = _blocks(graph, strips, fewer)  # where the smaller one outlives the other, it is better off alone
        if max(_layers(graph, apart)) < max(_layers(graph, blocks)):
            shared, blocks = fewer, apart
    layers = _layers(graph, blocks)
    bound = max(layers, default=0)
    offsets, arena = place(blocks, bound, 300)
    tensors = {i: offsets["tensor", _home(i, shared)] for i in lifetimes(graph, strips)}
    windows = [offsets.get(("window", at)) for at in range(len(graph.steps))]
    return Plan(tensors, windows, arena, bound, layers, tuple(strips))


def _home(i, shared):
    while i in shared:
        i = shared[i]
    return i


def _blocks(graph, strips, shared):
    """Blocks of tensors, of those together that share their bytes, and of steps' scratch bytes."""
    blocks: dict[int, Block] = {}
    for i, (first, last) in lifetimes(graph, strips).items():
        root = _home(i, shared)
        size, begin, end = graph.sizes[i], first, last
        if root in blocks:
            old = blocks[root]
            size, begin, end = max(size, old.size), min(begin, old.first), max(end, old.last)
        blocks[root] = Block(size, begin, end, ("tensor", root))
    inside = {at for strip in strips for at in range(strip.first, strip.last + 1)}
    windows = {at: scratch_bytes(s, s.output in shared) for at, s in enumerate(graph.steps) if at not in inside}
    every = [b._replace(size=aligned(b.size)) for b in blocks.values()]
    every += [Block(aligned(n), at, at, ("window", at)) for at, n in windows.items() if n]
    return every + [Block(s.scratch, s.first, s.last, ("window", s.first)) for s in strips]


def _layers(graph, blocks):
    """Bytes that live in each step."""
    return [sum(b.size for b in blocks if b.first <= at <= b.last) for at in range(len(graph.steps))]


def aligned(size: int) -> int:
    """Bytes of a block."""
    return -(-size // ALIGN) * ALIGN


def lifetimes(graph: Graph, strips: Sequence[Strip] = ()) -> dict[int, tuple[int, int]]:
    """First and last step of each tensor in the arena; a strip's tensors live in all its steps, or not at all."""
    spans = {at: (s.first, s.last) for s in strips for at in range(s.first, s.last + 1)}
    rows_alone = {i for s in strips for i in s.inside}
    uses: dict[int, tuple[int, int]] = {}
    for at, step in enumerate(graph.steps):
        begin, end = spans.get(at, (at, at))
        inside = [] if step.kind in GIVEN else list(step.inputs)
        inside += [] if step.kind in TAKEN else [step.output]
        for i in inside:
            if i not in rows_alone:
                first, last = uses.get(i, (begin, end))
                uses[i] = min(first, begin), max(last, end)
    return uses


def in_place(graph: Graph, strips: Sequence[Strip] = ()) -> dict[int, int]:
    """From a tensor to the one in whose bytes it lies."""
    uses, shared = lifetimes(graph, strips), {}
    inside = {at for strip in strips for at in range(strip.first, strip.last + 1)}
    for at, step in enumerate(graph.steps):
        if at not in inside and (step.kind in _IN_PLACE or _worth_in_place(step, graph)):
            given = step.inputs[0]
            if uses[given][1] == at and given not in graph.outputs and step.inputs.count(given) == 1:
                shared[step.output] = given
    return shared


def in_place_is_safe(step: Step) -> bool:
    """Whether a convolution may write its rows over its input: each row is in the window before it is written over."""
    v = step.values
    in_row, out_row = v["in_w"] * v["in_c"], v["out_w"] * v["out_c"]
    needed = min(v["in_h"], (v["out_h"] - 1) * v["stride_h"] - v["pad_top"] + v["kernel_h"])
    for y in range(v["out_h"]):
        read = min(y * v["stride_h"] - v["pad_top"] + v["kernel_h"], v["in_h"])
        if read < needed and (y + 1) * out_row > read * in_row:
            return False
    return True


def _worth_in_place(step, graph):
    """A convolution that is safe to run in place, where that takes fewer bytes than an output of its own."""
    if step.kind not in ("conv", "depthwise", "conv_mac16") or {"batch", "halves"} & step.values.keys():
        return False
    if not in_place_is_safe(step):
        return False
    return scratch_bytes(step, True) - scratch_bytes(step, False) < graph.sizes[step.output]


def scratch_bytes(step: Step, in_place: bool = False) -> int:
    """Bytes of the rows that a convolution copies, 0 where it can read them where they lie; of the tables of a sum."""
    v = step.values
    if "scratch" in v:
        return v["scratch"]
    if step.kind in ("add", "sub"):
        return 2 * 256 * 4 if v.get("tables") and v["values"] >= TABLED else 0
    if step.kind not in ("conv", "depthwise"):
        return 0
    width = (v["out_w"] - 1) * v["stride_w"] + v["kernel_w"]
    direct = v["kernel_h"] == 1 and not v["pad_top"] and not v["pad_left"] and width <= v["in_w"]
    return 0 if direct and not in_place else v["kernel_h"] * width * v["in_c"]


def place(blocks: Sequence[Block], bound: int = 0, tries: int = 1) -> tuple[dict[tuple, int], int]:
    """Offsets by key, and the arena: first fit, largest first, then in other orders until the bound is reached."""
    order, draw = sorted(blocks, key=lambda b: -b.size), random.Random(0)
    best: tuple[dict[tuple, int], int] | None = None
    for _ in range(tries):
        offsets: dict[tuple, int] = {}
        placed: list[tuple[int, Block]] = []
        for block in order:
            offset = 0
            for other_offset, other in sorted(placed, key=lambda p: p[0]):
                if other.first <= block.last and block.first <= other.last and offset + block.size > other_offset:
                    offset = max(offset, other_offset + other.size)
            offsets[block.key] = offset
            placed.append((offset, block))
        arena = max((o + b.size for o, b in placed), default=0)
        if best is None or arena < best[1]:
            best = offsets, arena
        if best[1] <= bound:
            break
        order = draw.sample(blocks, len(blocks))
    assert best is not None
    return best

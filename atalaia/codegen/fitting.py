"""Which steps run row by row: the strips that make the arena small for nothing, or fit it into what there is."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from atalaia.codegen import memory, rows
from atalaia.codegen.call import BOARDS, Call
from atalaia.codegen.graph import Graph, firsts
from atalaia.codegen.strips import Network, Strip, build

FREE = 0.005  # share of a network's instructions that strips may add where nobody asks for a smaller arena
WORTH = 2 << 10  # bytes that strips must save, for the C that they add
LONGEST = 48  # steps of a strip


class Planned(NamedTuple):
    """Calls, those of strips as their rows need them; where all lies; and the share of instructions that strips add."""

    calls: list[Call]
    plan: memory.Plan
    cost: float

    @property
    def weight_bytes(self) -> int:
        """Of all constants in flash, each once, the tables of strips and the structs of halves included."""
        places = set(firsts(self.calls))
        lower = sum(half.call.struct_bytes for at, (_, half) in self.plan.halves.items() if at in places)
        tables = sum(strip.table_bytes for strip in self.plan.strips)
        return sum(self.calls[at].weight_bytes for at in places) + tables + lower


def planned(network: Network, strips: Sequence[Strip]) -> Planned:
    """A network with these strips."""
    calls = list(network.calls)
    for strip in strips:
        calls[strip.first : strip.last + 1] = strip.calls
    return Planned(calls, memory.plan(network.graph, strips), sum(map(network.cost, strips)))


def plan(graph: Graph, calls: Sequence[Call], ram: int | None = None, boards: Sequence[str] = BOARDS) -> Planned:
    """Strips where they make the arena smaller.

    Without `ram`: the smallest arena that strips give for FREE, where it is smaller by WORTH. With it: if that arena
    does not fit, the strips that cost least and fit; if none fit, those of the smallest arena that was found.
    boards: whose instructions count.
    """
    network = Network(graph, calls, boards)
    search, whole = _Search(network), planned(network, ())
    found = planned(network, search.smallest(FREE))
    found = found if whole.plan.arena - found.plan.arena >= WORTH else whole
    if ram is None or found.plan.arena <= ram:
        return found
    limit = ram
    while limit > 0:
        strips = search.within(limit)
        if strips is None:
            break
        tried = planned(network, strips)
        if tried.plan.arena <= ram:
            return tried
        limit -= max(memory.ALIGN, tried.plan.arena - ram)  # gaps between maps
    return planned(network, search.smallest())


class _Search:
    """Strips of a network: what each costs and how many bytes live in it, and the cheapest ones within a limit."""

    def __init__(self, network: Network):
        graph = network.graph
        self.network, self.count = network, len(graph.steps)
        lifetimes = memory.lifetimes(graph).items()
        self.uses = [(*span, memory.aligned(graph.sizes[i]), self._rows(i)) for i, span in lifetimes]
        self.around: dict[tuple[int, int], tuple[int, int]] = {}
        shared = memory.in_place(graph)
        self.alone = []  # bytes that live in each step by itself
        for at, step in enumerate(graph.steps):
            live = sum(size for first, last, size, _ in self.uses if first <= at <= last)
            live += memory.aligned(memory.scratch_bytes(step, step.output in shared))
            if step.output in shared and step.inputs and shared[step.output] == step.inputs[0]:
                live -= min(memory.aligned(graph.sizes[i]) for i in (step.output, step.inputs[0]))
            self.alone.append(live)
        self.built: dict[tuple[int, int, bool], tuple[Strip, float] | None] = {}

    def strip(self, first, last, tables):
        """(strip, cost) of steps `first` to `last`; None where they cannot be one."""
        key = first, last, tables
        if key not in self.built:
            strip = build(self.network, first, last, tables)
            self.built[key] = strip and (strip, self.network.cost(strip))
        return self.built[key]

    def smallest(self, most: float = math.inf) -> tuple[Strip, ...]:
        """Strips of the smallest arena, to a hundredth, that add at most this share of instructions."""
        low, high, found = 0, 1024, None
        while found is None:  # small limits first, since few strips lie within them
            if high >= max(self.alone, default=0):
                return ()
            found = self._within(high, most)
            low, high = (low, high) if found is not None else (high, 2 * high)
        while high - low > max(memory.ALIGN, high // 100):
            limit = (low + high) // 2
            better = self._within(limit, most)
            low, high, found = (limit, high, found) if better is None else (low, limit, better)
        return found

    def _within(self, limit, most):
        strips = self.within(limit)
        return None if strips is None or sum(map(self.network.cost, strips)) > most else strips

    def within(self, limit):
        """The strips that cost least, with no step above so many bytes; None where there are none. Shortest path."""
        best = [(0.0, ())]  # cost and strips up to each step
        for end in range(1, self.count + 1):
            paths = [best[end - 1]] if self.alone[end - 1] <= limit else []
            for first in range(end - 2, max(-1, end - 1 - LONGEST), -1):
                if self.network.rows[first] is None or self.network.rows[end - 1] is None:
                    break
                if best[first] is None or max(self.alone[first:end]) <= limit:
                    continue
                found = self._cheapest(first, end - 1, limit)
                if found:
                    paths.append((best[first][0] + found[1], (*best[first][1], found[0])))
            best.append(min((p for p in paths if p), key=lambda p: (p[0], len(p[1])), default=None))
        return None if best[-1] is None else best[-1][1]

    def _cheapest(self, first, last, limit):
        """(strip, cost), with tables of sums where these fit."""
        if (first, last) not in self.around:
            self.around[first, last] = self._bytes(first, last)
        around, least = self.around[first, last]
        for tables in (True, False) if around + least <= limit else ():
            found = self.strip(first, last, tables)
            if found and around + found[0].scratch <= limit:
                return found
        return None

    def _bytes(self, first, last):
        """Bytes of whole maps beside a strip of steps `first` to `last`, and of rows that it needs at least."""
        around = least = 0
        for begin, end, size, row_bytes in self.uses:
            if first <= begin and end <= last:
                least += row_bytes
            elif begin <= last and end >= first:
                around += size
        return around, least

    def _rows(self, i):
        """Bytes of the rows of a tensor that a strip needs at least: of a window of several."""
        kernels = [r.kernel for at in self.network.readers.get(i, []) for r in self.network.reads(at) if r.tensor == i]
        seen = rows.view(self.network.graph, i)
        return seen[1] * min(seen[0], max(kernels)) if seen and max(kernels, default=0) > 1 else 0

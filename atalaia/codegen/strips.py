"""Strips: steps that run row by row together, so that of the maps between them only a few rows lie in memory.

A strip is a run of steps of which only the last one's output, and what is read elsewhere, is whole. Whenever its last
step lacks a row of a map, the step that makes it runs; nothing is computed twice. Of each map as many rows are kept as
that order needs, which is found by going through it. mcu/kernels/strips.c runs in the same order.
"""

from collections.abc import Sequence
from typing import NamedTuple

from atalaia.codegen import kernels, memory, rows
from atalaia.codegen.call import BOARDS, Call, costs
from atalaia.codegen.graph import GIVEN, TAKEN, Graph
from atalaia.codegen.rows import Read

TABLES = 2 * 256 * 4  # bytes of the tables of a sum
STRUCT_BYTES = 32  # of strip_t
TURN = 150  # instructions of finding a step and its rows, about
# A strip that exceeds the cache reads its constants from flash at every row: instructions in the time of a byte, about.
CACHE_BYTES, READ = 16 << 10, 5


class Stage(NamedTuple):
    """A step of a strip, and the rows that it makes.

    step: its number in the graph; None: it copies the rows of a whole map, to put zero points around them.
    tensor: whose rows; size: bytes of a row's values.
    reads: what a row needs; sources: of each map the stage that makes it, -1 where it is whole before.
    rows, end: of the map, and with rows of zero points below it; above: such rows above it.
    left, pitch: bytes of zero points before a row's values, and from a row to the next.
    zero: the zero point; None where none is needed.
    room, drop: rows that fit, and that are given up together where the next one has no room.
    at: bytes from the strip's scratch bytes to the rows; None where the map is whole, or the caller's.
    """

    step: int | None
    tensor: int
    size: int
    reads: tuple[Read, ...]
    sources: tuple[int, ...]
    rows: int
    end: int = 0
    above: int = 0
    left: int = 0
    pitch: int = 0
    zero: int | None = None
    room: int = 0
    drop: int = 0
    at: int | None = None


class Strip(NamedTuple):
    """Steps `first` to `last`, in the order in which the graph has them.

    inside: tensors that are never whole; scratch: bytes of their rows, and of tables; tables: step to where these lie.
    calls: of the steps, as their rows need them.
    added: instructions of an inference beside those of the steps by themselves, by board; below 0 where they are fewer.
    """

    first: int
    last: int
    stages: tuple[Stage, ...]
    inside: frozenset[int]
    scratch: int
    tables: dict[int, int]
    calls: tuple[Call, ...]
    added: dict[str, float]

    @property
    def table_bytes(self) -> int:
        """Bytes of the C structs of the stages."""
        return STRUCT_BYTES * len(self.stages)


class Network:
    """A graph and its calls, with what strips ask of it: how each step makes rows, and which steps read each tensor."""

    def __init__(self, graph: Graph, calls: Sequence[Call], boards: Sequence[str] = BOARDS):
        """boards: whose instructions count."""
        self.graph, self.calls, self.boards = graph, list(calls), boards
        self.rows = [rows.of(step, graph) for step in graph.steps]
        self.readers: dict[int, list[int]] = {}
        self.makers: dict[int, list[int]] = {}
        for at, step in enumerate(graph.steps):
            for i in () if step.kind in GIVEN else step.inputs:
                self.readers.setdefault(i, []).append(at)
            if step.kind not in TAKEN:
                self.makers.setdefault(step.output, []).append(at)
        self.total = {b: sum(call.instructions[b] for call in calls) for b in boards}

    def cost(self, strip: Strip) -> float:
        """What a strip adds, as a share of all instructions, in the mean of the boards."""
        return sum(strip.added[b] / self.total[b] for b in self.boards) / len(self.boards)

    def reads(self, at: int) -> tuple[Read, ...]:
        """What a row of step `at` needs; nothing where it does not run row by row."""
        found = self.rows[at]
        return found.reads if found else ()

    def read_by(self, at: int) -> list[int]:
        """Steps that read what step `at` makes."""
        step = self.graph.steps[at]
        return [] if step.kind in TAKEN else self.readers.get(step.output, [])


def build(network: Network, first: int, last: int, tables: bool = True) -> Strip | None:
    """Steps `first` to `last` as a strip; None where they cannot be one. tables: whether sums may use them."""
    graph, steps = network.graph, range(first, last + 1)
    makers = [at for at in steps if graph.steps[at].kind not in TAKEN]
    made = {graph.steps[at].output for at in makers}
    if any(network.rows[at] is None for at in steps) or not _joined(network, steps, made):
        return None
    whole = {graph.steps[at].output for at in makers if at == last or any(k > last for k in network.read_by(at))}
    stages = _stages(network, steps, whole)
    stages = _padded(graph, stages, whole)
    log = _run(stages)
    if any(len(made) < stage.rows for made, stage in zip(log, stages, strict=True)):
        return None  # rows of a whole map that only steps elsewhere ask for
    stages = _with_room(stages, log)
    calls, sums = [], []
    for at in steps:
        call, found = network.calls[at], network.rows[at]
        assert found is not None
        if call.kernel == "add_tabled" and not tables:
            call = _without_tables(call)
        if call.kernel == "add_tabled":
            sums.append(at)
        calls.append(call._replace(step=rows.of_one_row(call.step, found), files=rows.files(call)))
    stages, terms, scratch = _placed(stages, sums)
    moved = sum(s.size * s.rows for s in stages if s.step is None)
    moved += sum(_slides(s, len(made)) * (s.room - s.drop) * s.pitch for s, made in zip(stages, log, strict=True))
    moved += sum(s.room * s.pitch for s in stages if s.zero is not None)
    added = _added(network.calls[first : last + 1], calls, moved, sum(map(len, log)))
    return Strip(first, last, tuple(stages), frozenset(made - whole), scratch, terms, tuple(calls), added)


def _joined(network, steps, made):
    """Whether each step but the last is read by a later one of them, and row by row."""
    for at in steps:
        step, by_rows = network.graph.steps[at], {r.tensor for r in network.rows[at].reads}
        if step.kind not in GIVEN and any(i in made and i not in by_rows for i in step.inputs):
            return False
        if step.kind not in TAKEN and len(network.makers[step.output]) > 1:
            return False
        if at != steps[-1] and not any(reader in steps for reader in network.read_by(at)):
            return False
    return True


def _stages(network, steps, whole):
    """Stages in the order of the steps; before one that looks outside of a whole map, a copy of that map's rows."""
    stages, of_tensor, copies = [], {}, {}
    for at in steps:
        found, sources = network.rows[at], []
        for read in found.reads:
            source = of_tensor.get(read.tensor, -1)
            if (source < 0 or read.tensor in whole) and _looks_outside(network.graph, read, found):
                if read.tensor not in copies:
                    height, size = rows.view(network.graph, read.tensor)
                    copies[read.tensor] = len(stages)
                    stages.append(Stage(None, read.tensor, size, (Read(read.tensor),), (source,), height))
                source = copies[read.tensor]
            sources.append(source)
        step = network.graph.steps[at]
        if step.kind not in TAKEN:
            of_tensor[step.output] = len(stages)
        stages.append(Stage(at, step.output, found.size, found.reads, tuple(sources), found.height))
    return stages


def _looks_outside(graph, read, found):
    height, size = rows.view(graph, read.tensor)
    below = (found.height - 1) * read.stride - read.pad + read.kernel > height
    return read.left is not None and bool(read.pad or read.left or read.width > size or below)


def _readers(stages):
    """Of each stage (reading stage, what it reads)."""
    found = [[] for _ in stages]
    for k, stage in enumerate(stages):
        for source, read in zip(stage.sources, stage.reads, strict=True):
            if source >= 0:
                found[source].append((k, read))
    return found


def _padded(graph, stages, whole):
    """Stages with the rows that their readers need, and all zero points around them; the last stage first."""
    stages, readers = list(stages), _readers(stages)
    for k in reversed(range(len(stages))):
        stage = stages[k]
        if not readers[k] or (stage.step is not None and stage.tensor in whole):
            stages[k] = stage._replace(end=stage.rows, pitch=stage.size, room=stage.rows)
            continue
        around = [(stages[c], r) for c, r in readers[k] if r.left is not None]
        wanted = [(stages[c].rows - 1) * r.stride - r.pad + r.kernel for c, r in readers[k]]
        made = max(1, min(stage.rows, max(wanted)))
        end = max([made, *((c.rows - 1) * r.stride - r.pad + r.kernel for c, r in around)])
        above, left = (max([0, *(getattr(r, side) for _, r in around)]) for side in ("pad", "left"))
        pitch = memory.aligned(max([left + stage.size, *(left - r.left + r.width for _, r in around)]))
        outside = above or left or end > made or any(r.width > stage.size for _, r in around)
        zero = next(graph.steps[c.step].values["in_zero"] for c, _ in around) if outside else None
        stages[k] = stage._replace(rows=made, end=end, above=above, left=left, pitch=pitch, zero=zero, at=0)
    return stages


def _run(stages):
    """Of each stage, for each row in turn, the oldest row that is needed still when it is made."""
    links = [list(zip(s.sources, s.reads, strict=True)) for s in stages]
    readers = _readers(stages)
    log: list[list[int]] = [[] for _ in stages]

    def make(k):
        row = len(log[k])
        for source, r in links[k] if row < stages[k].rows else ():
            wanted = min(row * r.stride - r.pad + r.kernel, stages[source].end) if source >= 0 else 0
            while source >= 0 and len(log[source]) < wanted:
                make(source)
        needed = [len(log[c]) * r.stride - r.pad for c, r in readers[k] if len(log[c]) < stages[c].rows]
        log[k].append(min([row, *(max(n, -stages[k].above) for n in needed)]))

    while len(log[-1]) < stages[-1].end:
        make(len(stages) - 1)
    return log


def _with_room(stages, log):
    """Stages with room for as many rows as are needed at once, and how many go at once."""
    found = []
    for stage, oldest in zip(stages, log, strict=True):
        if stage.at is not None:
            room = max(row - old for row, old in enumerate(oldest)) + 1
            stage = stage._replace(room=room, drop=_drop(oldest, room, stage.above))
        found.append(stage)
    return found


def _placed(stages, sums):
    """Stages with the places of their rows, places of the tables of each of `sums`, and bytes of all.

    A single row whose reader runs right behind its maker lies there from the one to the other; all else stays.
    """
    last, blocks = len(stages), [memory.Block(TABLES, 0, len(stages), ("table", at)) for at in sums]
    for k, (stage, readers) in enumerate(zip(stages, _readers(stages), strict=True)):
        if stage.at is not None:
            passing = stage.room == 1 and stage.zero is None and len(readers) == 1
            passing = passing and stages[readers[0][0]].sources[-1] == k
            spans = (k, readers[0][0]) if passing else (0, last)
            blocks.append(memory.Block(stage.room * stage.pitch, *spans, ("rows", k)))
    places, scratch = memory.place(blocks)
    stages = [s if s.at is None else s._replace(at=places["rows", k]) for k, s in enumerate(stages)]
    return stages, {at: places["table", at] for at in sums}, scratch


def _drop(oldest, room, above):
    """The most rows that can always go at once."""
    for drop in range(room, 1, -1):
        first = -above
        for row, old in enumerate(oldest):
            first += drop if row - first == room else 0
            if first > old:
                break
        else:
            return drop
    return 1


def _slides(stage, made):
    """How often rows go to make room, of so many that are made."""
    return max(0, -(-(made + stage.above - stage.room) // stage.drop)) if stage.at is not None else 0


def _without_tables(call):
    values = {k: v for k, v in call.step.values.items() if k != "tables"}
    return kernels.candidates(call.step._replace(values=values))[0]


def _added(whole, calls, moved, turns):
    """Instructions beside those of whole maps: of other kernels, copies and choosing steps, and the time of flash."""
    moved -= sum(call.work.get("copied", 0) for call in whole)
    read = sum((call.step.values.get("out_h", 1) - 1) * call.weight_bytes for call in calls)
    fits = sum(call.weight_bytes for call in calls) <= CACHE_BYTES
    found = {}
    for board, parts in costs().items():
        changed = sum(
            new.instructions[board] - old.instructions[board]
            for new, old in zip(calls, whole, strict=True)
            if new.kernel != old.kernel
        )
        found[board] = changed + moved * parts["conv_dense_1"]["copied"] + turns * TURN + (0 if fits else read * READ)
    return found

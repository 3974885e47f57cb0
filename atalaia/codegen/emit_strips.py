"""The C of strips: a function for each, which makes its steps' rows in turn."""

from collections.abc import Sequence

from atalaia.codegen import rows
from atalaia.codegen.graph import GIVEN, TAKEN, Graph
from atalaia.codegen.memory import Plan
from atalaia.codegen.strips import Stage, Strip


def call(prefix: str, strip: Strip, graph: Graph) -> str:
    """The call of a strip's function."""
    return f"{prefix}s{strip.first}_strips({', '.join((*_borders(strip, graph), 'a'))})"


def _borders(strip, graph):
    """Names of the caller's tensors that a strip's function needs."""
    kinds = {graph.steps[at].kind for at in range(strip.first, strip.last + 1)}
    return [*["inputs"] * bool(kinds & set(GIVEN)), *["outputs"] * bool(kinds & set(TAKEN))]


def function(prefix: str, strip: Strip, graph: Graph, plan: Plan, names: Sequence[str]) -> str:
    """The function of a strip: what its steps read, where their rows lie, and a loop that makes row after row.

    names: of the constants of each step of the graph.
    """
    types = dict(inputs="const int8_t *const inputs[]", outputs="int8_t *const outputs[]")
    given = [*(types[name] for name in _borders(strip, graph)), "uint8_t *const a"]
    last, window = len(strip.stages) - 1, plan.windows[strip.first]
    assert window is not None or not strip.scratch
    lines = [
        f"/* steps {strip.first} to {strip.last}, row by row */",
        f"static void {prefix}s{strip.first}_strips({', '.join(given)})",
        "{",
        f"    static const strip_t strips[{last + 1}] = {{",
        *(f"        {_table(stage, plan, window or 0)}," for stage in strip.stages),
        "    };",
        f"    strip_state_t state[{last + 1}];",
        *(
            f"    add_tables(&{names[at]}, (int32_t *)(void *)(a + {(window or 0) + offset}));"
            for at, offset in strip.tables.items()
        ),
        f"    strips_start(strips, state, {last + 1}, a);",
        f"    while (state[{last}].next < {strip.stages[last].rows}) {{",
        f"        const int i = strips_turn(strips, state, {last}), y = state[i].next;",
        "        uint8_t *const to = strips_to(&strips[i], &state[i], a);",
        "        switch (y < strips[i].rows ? i : -1) {",
        "        case -1:",
        "            memset(to, strips[i].zero, strips[i].pitch);",
        "            break;",
    ]
    for k, stage in enumerate(strip.stages):
        lines += [
            f"        case {k}:",
            *(f"            {line}" for line in _row(names, strip, stage, graph, plan)),
            "            break;",
        ]
    return "\n".join([*lines, "        }", "        state[i].next++;", "    }", "}\n"])


def _table(stage, plan, window):
    """The strip_t of a stage."""
    at = plan.tensors.get(stage.tensor, 0) if stage.at is None else window + stage.at
    reads = [
        f"{{.kernel = {r.kernel}, .step = {source}, .stride = {r.stride}, .pad = {r.pad}}}"
        for source, r in zip(stage.sources, stage.reads, strict=True)
        if source >= 0
    ]
    fields = dict(at=at, pitch=stage.pitch, room=stage.room, drop=stage.drop, rows=stage.rows, end=stage.end)
    fields |= {} if stage.zero is None else dict(above=stage.above, zero=stage.zero, padded=1)
    fields |= dict(reads=len(reads), read=f"{{{', '.join(reads)}}}") if reads else {}
    return f"{{{', '.join(f'.{name} = {value}' for name, value in fields.items())}}}"


def _row(names, strip, stage: Stage, graph, plan):
    """Statements that make row y of a stage at `to`."""
    given, pitch = [], 0
    for source, read in zip(stage.sources, stage.reads, strict=True):
        row = rows.first_row(read)
        if source < 0:
            seen = rows.view(graph, read.tensor)
            assert seen is not None
            given.append(f"a + {plan.tensors[read.tensor]} + ({row}) * {seen[1]}")
            pitch = pitch or seen[1]
        else:
            rows_of = strip.stages[source]
            left = rows_of.left - (read.left or 0)
            given.append(f"strips_from(&strips[{source}], &state[{source}], a, {row})" + f" + {left}" * (left > 0))
            pitch = pitch or rows_of.pitch
    to = f"to + {stage.left}" if stage.left else "to"
    if stage.step is None:
        text = f"memcpy({to}, {given[0]}, {stage.size})"
    else:
        step, row_call = graph.steps[stage.step], strip.calls[stage.step - strip.first]
        found = rows.of(step, graph)
        assert found is not None
        repeated = [f"a + {plan.tensors[i]}" for i in step.inputs[1:] if i not in {r.tensor for r in stage.reads}]
        tables = (plan.windows[strip.first] or 0) + strip.tables.get(stage.step, 0)
        text = rows.text(names[stage.step], step, found, row_call, graph, [*given, *repeated], pitch, to, tables)
    return f"{text};".split("\n")

"""What codegen makes of each operator of a file, also of a file that it refuses."""

from collections import Counter
from typing import NamedTuple

from atalaia import tflite
from atalaia.codegen import borders, lowering
from atalaia.codegen.call import Call
from atalaia.codegen.graph import Graph, Walk
from atalaia.errors import UserError


class Row(NamedTuple):
    """An operator: its place and kind, its output's name and shape, and why it is not supported, or ""."""

    place: int
    kind: str
    layer: str
    shape: tuple[int, ...]
    reason: str


def operators(model: tflite.Model) -> tuple[list[Row], Graph]:
    """A row for each operator, and the steps of those that are supported, as if the others did nothing."""
    walk, rows = Walk(model), []
    reasons = {}
    try:
        given, gotten = borders.inputs(walk, "file")
    except UserError as error:
        given, gotten, reasons[-1] = [], [], str(error)
    for place, op in enumerate(model.operators):
        steps, aliases, done = len(walk.steps), dict(walk.alias), set(walk.done)
        try:
            if place not in walk.done:
                lowering.lower_operator(walk, place, op)
        except UserError as error:
            del walk.steps[steps:]
            walk.alias, walk.done = aliases, done
            reasons[place] = str(error).split(": there are ")[0]
        tensor = model.tensors[op.outputs[0]] if op.outputs and op.outputs[0] >= 0 else model.tensors[0]
        rows.append(Row(place, op.kind, tensor.name, tensor.shape, reasons.get(place, "")))
    if -1 in reasons:
        rows.insert(0, Row(-1, "input", "", (), reasons[-1]))
    for i in gotten:
        try:
            borders.outputs(walk, [i])
        except UserError as error:
            rows.append(Row(-1, "output", model.tensors[i].name, model.tensors[i].shape, str(error)))
    return rows, lowering.as_graph(walk, given, gotten)


def text(model: tflite.Model, rows: list[Row], calls: list[Call], report: dict) -> str:
    """The rows as lines, then the kinds that are missing, then bytes and time of the rest."""
    kernels: dict[int, list[str]] = {}
    for call in calls:
        kernels.setdefault(call.step.place, []).append(call.kernel)
    width = max(len(row.kind) for row in rows)
    lines = []
    for row in rows:
        given = Counter(kernels.get(row.place, []))
        ours = ", ".join(name if n == 1 else f"{n} {name}" for name, n in given.items()) or "nothing to run"
        shape = "x".join(map(str, row.shape))
        place = "" if row.place < 0 else row.place
        lines.append(f"{place:>4} {row.kind:{width}} {shape:>14}  {'NO: ' + row.reason if row.reason else ours}")
    missing = Counter(row.kind for row in rows if row.reason)
    supported = len([row for row in rows if not row.reason and row.place >= 0])
    lines.append(f"{supported} of {len(model.operators)} operators are supported")
    if missing:
        lines.append("not supported: " + ", ".join(f"{n} {kind}" for kind, n in missing.items()))
    rest = " of what is supported" if missing else ""
    lines.append(
        f"constants{rest}: {report['weight_bytes']:,} bytes; arena: {report['arena_bytes']:,} bytes; "
        f"{report['macs']:,} multiply-accumulates"
    )
    for strip in report["strips"]:
        places = [call.step.place for call in calls[strip["first"] : strip["last"] + 1] if call.step.place >= 0]
        lines.append(
            f"operators {min(places)} to {max(places)} run row by row: {strip['bytes']:,} bytes for rows between them"
        )
    for chip, found in report["estimated"].items():
        lines.append(f"estimated on {chip}: {found['milliseconds'][0]} to {found['milliseconds'][1]} ms an inference")
    return "\n".join(lines)

"""Steps that can run row by row: what a row of each needs, and the C that makes it."""

import math
from typing import NamedTuple

from atalaia.codegen.call import Call
from atalaia.codegen.graph import LARGEST, Graph, Step

POOLS = ("max_pool", "mean_pool", "min_pool")
PAIRS = ("add", "sub", "rsub", "mul", "maximum", "minimum", "prelu", "squared_difference")
_FROM_CALLER = ("flip_in", "float_in", "take")
_TO_CALLER = ("flip_out", "float_out", "give")


class Read(NamedTuple):
    """What row y of a step needs of a map: its rows from y * stride - pad on, `kernel` of them.

    tensor: its number.
    left, width: bytes of zero points before each row, and of the row with all that is around it; None where the step
    looks at no row or value outside of the map.
    """

    tensor: int
    kernel: int = 1
    stride: int = 1
    pad: int = 0
    left: int | None = None
    width: int = 0


class Rows(NamedTuple):
    """A step's output as rows: how many, bytes of each, and what they need of maps in the arena."""

    height: int
    size: int
    reads: tuple[Read, ...]


def of(step: Step, graph: Graph) -> Rows | None:
    """Rows of a step; None where it cannot run row by row: of other kinds, of a batch, of no image."""
    v = step.values
    if "batch" in v:
        return None
    if step.kind in _FROM_CALLER or step.kind in _TO_CALLER:
        inside = step.output if step.kind in _FROM_CALLER else step.inputs[0]
        out = view(graph, inside)
        return out and Rows(*out, () if step.kind in _FROM_CALLER else (Read(inside),))
    out = view(graph, step.output)
    if out is None or any(view(graph, i) is None for i in step.inputs):
        return None
    given = [view(graph, i) for i in step.inputs]
    if step.kind in ("conv", "depthwise"):
        fits = given[0] == (v["in_h"], v["in_w"] * v["in_c"]) and out == (v["out_h"], v["out_w"] * v["out_c"])
        width = ((v["out_w"] - 1) * v["stride_w"] + v["kernel_w"]) * v["in_c"]
        read = Read(step.inputs[0], v["kernel_h"], v["stride_h"], v["pad_top"], v["pad_left"] * v["in_c"], width)
        return Rows(*out, (read,)) if fits else None
    if step.kind in POOLS and given[0] == (v["in_h"], v["in_w"] * v["channels"]):
        return Rows(*out, (Read(step.inputs[0], v["kernel_h"], v["stride_h"], v["pad_top"]),))
    if step.kind == "pad" and given[0] == (v["in_h"], v["in_w"] * v["in_c"]):
        return Rows(*out, (Read(step.inputs[0], pad=v["top"]),))
    if step.kind in ("lookup", "softmax") and given[0] == out:
        return Rows(*out, (Read(step.inputs[0]),))
    if step.kind == "strided" and given == [out] and _row_loop(v["fields"], *out) is not None:
        return Rows(*out, (Read(step.inputs[0]),))
    if step.kind in PAIRS and given[0] == out and _repeats_in_a_row(v, out[1]):
        same = [i for i in step.inputs[1:] if v["b_size"] == v["values"]]
        return Rows(*out, tuple(Read(i) for i in (step.inputs[0], *same)))
    return None


def view(graph: Graph, i: int) -> tuple[int, int] | None:
    """(rows, bytes of a row) of an image of single bytes; None of other tensors, and of too many rows for 16 bits."""
    shape = graph.shapes[i]
    if len(shape) != 4 or shape[0] != 1 or graph.sizes[i] != math.prod(shape) or shape[1] >= LARGEST:
        return None
    return shape[1], shape[2] * shape[3]


def _repeats_in_a_row(v, size):
    return (v["b_inner"] == 1 and v["b_size"] == v["values"]) or size % (v["b_inner"] * v["b_size"]) == 0


def _row_loop(v, height, size):
    """Which loop of strided.c goes from row to row, where the values of a row all come from that of its number."""
    loop = next((k for k, count in enumerate(v["count"]) if count > 1), None)
    if loop is None or (v["count"][loop], v["of"][loop], v["to"][loop]) != (height, size, size):
        return None
    ways = [(n - 1) * of for n, of in zip(v["count"][loop + 1 :], v["of"][loop + 1 :], strict=True)]
    first = v["from_start"] + sum(min(way, 0) for way in ways)
    last = v["from_start"] + sum(max(way, 0) for way in ways) + v["block"]
    return loop if v["to_start"] == 0 and first >= 0 and last <= size else None


def of_one_row(step: Step, rows: Rows) -> Step:
    """The step whose kernel makes one row."""
    v = step.values
    if step.kind in PAIRS:
        changed = dict(values=rows.size, b_size=min(v["b_size"], rows.size))
    elif step.kind == "pad":
        changed = dict(in_h=1, out_h=1, top=0)
    elif step.kind == "softmax":
        changed = dict(rows=rows.size // v["size"])
    elif step.kind == "strided":
        loop = _row_loop(v["fields"], rows.height, rows.size)
        counts = [1 if k == loop else count for k, count in enumerate(v["fields"]["count"])]
        changed = dict(fields=v["fields"] | dict(count=counts))
    else:
        changed = {}
    return step._replace(values=v | changed)


def files(call: Call) -> tuple[str, ...]:
    """Those of mcu/kernels that rows of a call need."""
    return (*(file for file in call.files if file != "conv_map"), "move", "strips")


def text(
    name: str, step: Step, rows: Rows, call: Call, graph: Graph, given: list[str], pitch: int, to: str, tables: int
) -> str:
    """C that makes row y of a step.

    Args:
      name: of the struct and arrays of constants.
      step: as in the graph; rows: of it; call: its kernel.
      given: C of where the rows that it reads lie: the first one of each map, for pools the first one that is there.
      pitch: bytes between the first map's rows; to: C of where the row goes.
      tables: bytes from the arena's start to those of a sum.
    """
    v, size = step.values, rows.size
    match step.kind:
        case "flip_in" | "float_in" | "take":
            wide = 4 if step.kind == "float_in" else 1
            caller = f"inputs[{graph.inputs.index(step.inputs[0])}] + y * {wide * size}"
            done = dict(flip_in=f"flip({caller}, {to}, {size})", take=f"memcpy({to}, {caller}, {size})")
            return done.get(step.kind, f"float_in({name}_table, {caller}, {to}, {size})")
        case "flip_out" | "float_out" | "give":
            wide = 4 if step.kind == "float_out" else 1
            caller = f"outputs[{graph.outputs.index(step.output)}] + y * {wide * size}"
            done = dict(flip_out=f"flip({given[0]}, {caller}, {size})", give=f"memcpy({caller}, {given[0]}, {size})")
            return done.get(step.kind, f"float_out({name}_table, {given[0]}, {caller}, {size})")
        case "conv" | "depthwise":
            return f"{call.kernel}(&{name}, {given[0]}, {pitch}, {to})"
        case "max_pool" | "mean_pool" | "min_pool":
            mean = "" if step.kind == "min_pool" else f", {int(step.kind == 'mean_pool')}"
            kernel = "min_pool" if step.kind == "min_pool" else "pool"
            return f"{kernel}(&{name}, {given[0]}, {first_row(rows.reads[0])}, {pitch}, y, y + 1, {to}{mean})"
        case "lookup":
            return f"lookup({name}_table, {size}, {given[0]}, {to})"
        case "strided":
            return f"strided(&{name}, {given[0]}, {to})"
        case "softmax":
            return f"softmax({name}_table, {size // v['size']}, {v['size']}, {given[0]}, {to})"
        case "pad":
            outside = f"y < {v['top']} || y >= {v['top'] + v['in_h']}"
            return f"if ({outside})\n    memset({to}, {v['zero']}, {size});\nelse\n    pad(&{name}, {given[0]}, {to})"
    if "constant" in v:
        step_by = f" + y * {size}" if v["b_size"] == v["values"] else ""
        given = [given[0], f"{name}_constant{step_by}"]
    last = dict(add=f", {int(step.kind == 'sub')}", add_tabled=f", (const int32_t *)(const void *)(a + {tables})")
    return f"{call.kernel}(&{name}, {given[0]}, {given[1]}, {to}{last.get(call.kernel, '')})"


def first_row(read: Read) -> str:
    """C of the first row that row y of a step reads."""
    row = "y" if read.stride == 1 else f"y * {read.stride}"
    row += f" - {read.pad}" if read.pad else ""
    return f"(y < {-(-read.pad // read.stride)} ? 0 : {row})" if read.pad and read.left is None else row

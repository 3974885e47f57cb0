"""A .tflite graph as a list of steps, or one error that names what is wrong: a table of what each operator becomes."""

from collections.abc import Callable
from typing import NamedTuple

from atalaia import tflite
from atalaia.codegen import borders, elementwise, linear, moves, pads, reductions, wide
from atalaia.codegen.graph import Graph, Walk
from atalaia.errors import UserError

STATEFUL = {
    **dict.fromkeys(
        ("SVDF", "UNIDIRECTIONAL_SEQUENCE_LSTM", "BIDIRECTIONAL_SEQUENCE_LSTM", "LSTM"),
        "keeps a state from call to call",
    ),
    **dict.fromkeys(
        ("RNN", "UNIDIRECTIONAL_SEQUENCE_RNN", "BIDIRECTIONAL_SEQUENCE_RNN", "CALL_ONCE", "VAR_HANDLE"),
        "keeps a state from call to call",
    ),
    **dict.fromkeys(("READ_VARIABLE", "ASSIGN_VARIABLE"), "keeps a state from call to call"),
    **dict.fromkeys(("WHILE", "IF", "CALL"), "calls another graph"),
}  # operators of which no C is made, and why


class Lowering(NamedTuple):
    """What becomes of an operator.

    run: adds its steps to a walk; about: in the table of operators; outputs: types that its outputs may have; wide: in
    place of run where they are int16.
    """

    run: Callable[[Walk, int, tflite.Operator], None]
    about: str = ""
    outputs: tuple[str, ...] = ("INT8",)
    wide: Callable[[Walk, int, tflite.Operator], None] | None = None


def lower(model: tflite.Model, given: str = "file") -> Graph:
    """Steps of a model.

    Args:
      model: the file.
      given: of borders.BORDERS: whether the caller gives and gets the file's types, or int8 where that is converted to.

    Raises:
      UserError: an operator, a type or a shape is not supported; its place is named, with what is.
    """
    _refuse(model)
    walk = Walk(model)
    inputs, outputs = borders.inputs(walk, given)
    for place, op in enumerate(model.operators):
        if place not in walk.done:
            lower_operator(walk, place, op)
    borders.outputs(walk, outputs)
    return as_graph(walk, inputs, outputs)


def lower_operator(walk: Walk, place: int, op: tflite.Operator) -> None:
    """Adds the steps of an operator.

    Raises:
      UserError: it is not supported.
    """
    if op.kind not in OPERATORS:
        raise UserError(refusal(walk.model, place, op))
    row = OPERATORS[op.kind]
    try:
        if row.wide and all(walk.dtype(i) == "INT16" for i in op.outputs):
            row.wide(walk, place, op)
            return
        for i in op.outputs:
            if row.outputs == ("INT8",):
                walk.require_int8(i, place, op.kind)
            elif walk.dtype(i) not in row.outputs:
                advice = "; --borders=int8 leaves it out" if op.kind == "QUANTIZE" and walk.dtype(i) == "INT16" else ""
                there = ", ".join(row.outputs) + advice
                raise UserError(f"{op.kind} (operator {place}) gives {walk.dtype(i)}: there are {there}")
        row.run(walk, place, op)
    except UserError:
        raise
    # Tensors and options of a damaged file can miss anything.
    except Exception as error:
        reason = type(error).__name__
        raise UserError(f"{op.kind} (operator {place}): its contents do not fit together ({reason})") from None


def as_graph(walk: Walk, inputs: list[int], outputs: list[int]) -> Graph:
    """The steps of a walk that is done."""
    steps, notes = pads.folded(walk.steps)
    steps = borders.read_again(walk, steps)
    numbers = {i for s in steps for i in (*s.inputs, s.output)} | {*inputs, *outputs}
    shapes = {i: walk.tensors[i].shape for i in numbers}
    sizes = {i: walk.bytes(i) for i in numbers}
    dtypes = {i: walk.dtype(i) for i in (*inputs, *outputs) if walk.dtype(i) != "INT8"}
    return Graph(steps, sizes, shapes, tuple(inputs), tuple(outputs), [*walk.notes, *notes], dtypes)


def refusal(model: tflite.Model, place: int, op: tflite.Operator) -> str:
    """Why no C is made of an operator, where it is, and what to do."""
    layer = next((model.tensors[i].name for i in op.outputs if i >= 0), "")
    where = f"operator {place} is {op.kind} (layer {layer!r})" if layer else f"operator {place} is {op.kind}"
    if op.kind in STATEFUL:
        advice = "leave it out, or put convolutions over a window of time in its place"
        return f"{where}, which {STATEFUL[op.kind]}, and is not supported: {advice}"
    return f"{where}, which is not supported: there are {', '.join(OPERATORS)}"


def _refuse(model):
    for place, op in enumerate(model.operators):
        if op.kind in STATEFUL:
            raise UserError(refusal(model, place, op))
    written = set(model.inputs)
    for place, op in enumerate(model.operators):
        for i in op.inputs:
            if i >= 0 and i not in written and model.tensors[i].data is None:
                name = model.tensors[i].name
                raise UserError(f"{op.kind} (operator {place}) reads tensor {name!r}, which nothing before it writes")
        written.update(op.outputs)
    for tensor in model.tensors:
        if any(n < 1 for n in tensor.shape):
            raise UserError(f"tensor {tensor.name!r} has shape {tensor.shape}: dynamic shapes are not supported")


_TABLED = "a table of 256 results, TFLite Micro's"
_SAME = "the same bytes: nothing runs"
OPERATORS = {
    "CONV_2D": Lowering(linear.conv, "groups, dilation, batches; weights constant", wide=wide.conv),
    "DEPTHWISE_CONV_2D": Lowering(linear.depthwise, "multipliers, dilation, batches; weights constant", wide=wide.conv),
    "FULLY_CONNECTED": Lowering(
        linear.fully_connected, "by tensor or by channel; weights constant", wide=wide.fully_connected
    ),
    "TRANSPOSE_CONV": Lowering(linear.transpose_conv, "weights constant"),
    "BATCH_MATMUL": Lowering(linear.batch_matmul, "both computed, either turned; one may be the same for all"),
    "ADD": Lowering(elementwise.pair, "shapes that repeat, constants", wide=wide.pair),
    "SUB": Lowering(elementwise.pair, "shapes that repeat, constants"),
    "MUL": Lowering(elementwise.mul, "shapes that repeat, constants", wide=wide.pair),
    "MAXIMUM": Lowering(elementwise.pair, "of one scale; shapes that repeat, constants"),
    "MINIMUM": Lowering(elementwise.pair, "of one scale; shapes that repeat, constants"),
    "SQUARED_DIFFERENCE": Lowering(elementwise.pair, "shapes that repeat, constants"),
    "PRELU": Lowering(elementwise.pair, "shapes that repeat"),
    "MAX_POOL_2D": Lowering(linear.pool, "batches"),
    "AVERAGE_POOL_2D": Lowering(linear.pool, "batches"),
    "MEAN": Lowering(reductions.mean, "any axes"),
    "SUM": Lowering(reductions.mean, "any axes"),
    "REDUCE_MAX": Lowering(reductions.most, "any axes"),
    "REDUCE_MIN": Lowering(reductions.most, "any axes"),
    "ARG_MAX": Lowering(reductions.arg_most, "any axis; int32", ("INT32",)),
    "ARG_MIN": Lowering(reductions.arg_most, "any axis; int32", ("INT32",)),
    "SOFTMAX": Lowering(elementwise.softmax, "over the last axis"),
    "RELU": Lowering(elementwise.unary, _TABLED),
    "RELU6": Lowering(elementwise.unary, _TABLED),
    "LEAKY_RELU": Lowering(elementwise.unary, _TABLED),
    "ELU": Lowering(elementwise.unary, _TABLED),
    "HARD_SWISH": Lowering(elementwise.unary, _TABLED),
    "LOGISTIC": Lowering(elementwise.unary, _TABLED),
    "TANH": Lowering(elementwise.unary, _TABLED),
    "ABS": Lowering(elementwise.unary, _TABLED),
    "RSQRT": Lowering(elementwise.unary, _TABLED + "; zero point -128"),
    "QUANTIZE": Lowering(borders.quantize, "float32 at the borders, int8 and uint8; " + _TABLED, ("INT8", "UINT8")),
    "DEQUANTIZE": Lowering(borders.dequantize, "to an output, or before a QUANTIZE", ("FLOAT32",)),
    "RESHAPE": Lowering(moves.reshape, _SAME, ("INT8", "UINT8", "INT16", "INT32", "FLOAT32")),
    "EXPAND_DIMS": Lowering(moves.reshape, _SAME, ("INT8", "UINT8", "INT16", "INT32", "FLOAT32")),
    "SQUEEZE": Lowering(moves.reshape, _SAME, ("INT8", "UINT8", "INT16", "INT32", "FLOAT32")),
    "CONCATENATION": Lowering(moves.concatenation, "any axis, of one scale"),
    "PACK": Lowering(moves.pack, "any axis"),
    "UNPACK": Lowering(moves.unpack, "any axis"),
    "SPLIT": Lowering(moves.split, "any axis"),
    "SPLIT_V": Lowering(moves.split, "any axis"),
    "PAD": Lowering(moves.pad, "any axes"),
    "PADV2": Lowering(moves.pad, "any axes"),
    "TRANSPOSE": Lowering(moves.transpose, "any order"),
    "SLICE": Lowering(moves.slice_, "constant bounds"),
    "STRIDED_SLICE": Lowering(moves.strided_slice, "constant bounds, backwards too; no ellipsis, no new axes"),
    "BROADCAST_TO": Lowering(moves.broadcast_to, "a known shape"),
    "DEPTH_TO_SPACE": Lowering(moves.blocks, "any block"),
    "SPACE_TO_DEPTH": Lowering(moves.blocks, "any block"),
    "SPACE_TO_BATCH_ND": Lowering(moves.space_batch, "one or two axes, without padding"),
    "BATCH_TO_SPACE_ND": Lowering(moves.space_batch, "one or two axes, with crops"),
    "RESIZE_NEAREST_NEIGHBOR": Lowering(moves.resize_nearest, "align_corners, half_pixel_centers"),
    "RESIZE_BILINEAR": Lowering(moves.resize_bilinear, "align_corners, half_pixel_centers"),
}

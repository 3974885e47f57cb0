"""The one reader of .tflite files: export's check, the ledger, evaluation and code generation use it.

It reads by the flatbuffer schema that ai-edge-litert ships, and gives plain NamedTuples of NumPy arrays.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from atalaia.errors import UserError


class Damaged(UserError):
    """The bytes are no whole .tflite file."""


class Tensor(NamedTuple):
    """scale and zero_point are `[1]` or `[channels of axis]`, empty when not quantised; data is None when computed."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: np.ndarray
    zero_point: np.ndarray
    axis: int
    data: np.ndarray | None


class Operator(NamedTuple):
    """An operator: kind as in the schema, such as "CONV_2D", or "CUSTOM NAME".

    inputs and outputs index Model.tensors, -1 for none.
    """

    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Any


class Model(NamedTuple):
    """The main graph of a file, operators in the order in which they run."""

    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def names(enum: type) -> dict[int, str]:
    """Value to name of one of the schema's enumerations, such as schema.Padding."""
    return {value: name for name, value in vars(enum).items() if not name.startswith("_")}


_NOT_BYTES = ("INT4", "UINT4", "INT2", "STRING", "RESOURCE", "VARIANT")  # values do not take whole bytes each
_DTYPES, _KINDS = names(schema.TensorType), names(schema.BuiltinOperator)


def load(path: str | Path) -> bytes:
    """A file's bytes, looked at enough to know that it is a whole .tflite.

    Raises:
      UserError: it is missing, empty, truncated or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no model at {path}: run atalaia.export first, or check the path")
    data = path.read_bytes()
    try:
        read(data)
    except Damaged as error:
        raise UserError(f"{path} is damaged or no .tflite file ({error}): export it again") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return data


def read(data: bytes) -> Model:
    """The main graph of a .tflite file's bytes.

    Raises:
      Damaged: the bytes are no whole .tflite file.
      UserError: they hold more than one graph.
    """
    if data[4:8] != b"TFL3":
        raise Damaged("its first bytes are not those of TFLite")
    try:
        model = schema.ModelT.InitFromPackedBuf(data, 0)
        if len(model.subgraphs) != 1:
            raise UserError(f"it has {len(model.subgraphs)} graphs, and only files with one are supported")
        graph = model.subgraphs[0]
        tensors = tuple(_tensor(t, model.buffers) for t in graph.tensors)
        operators = tuple(_operator(op, model.operatorCodes) for op in graph.operators)
        result = Model(tensors, operators, _indices(graph.inputs), _indices(graph.outputs))
    except UserError:
        raise
    # flatbuffers checks nothing: a damaged file shows as any of these while it is walked.
    except Exception as error:
        raise Damaged(f"its contents do not fit together: {type(error).__name__}") from None
    used = [i for op in operators for i in (*op.inputs, *op.outputs)] + [*result.inputs, *result.outputs]
    if not operators:
        raise Damaged("it has no operators")
    if any(not -1 <= i < len(tensors) for i in used):
        raise Damaged("its operators name tensors that are not there")
    return result


def _tensor(t, buffers):
    dtype, shape = _DTYPES[t.type], tuple(int(n) for n in t.shape) if t.shape is not None else ()
    q = t.quantization
    scale = np.zeros(0, np.float32) if q is None or q.scale is None else np.asarray(q.scale, np.float32)
    zero_point = np.zeros(0, np.int64) if q is None or q.zeroPoint is None else np.asarray(q.zeroPoint, np.int64)
    raw = buffers[t.buffer].data
    data = None
    if raw is not None and len(raw):
        data = np.frombuffer(bytes(raw), np.uint8)
        if dtype not in _NOT_BYTES:
            data = data.view({"BOOL": "bool"}.get(dtype, dtype.lower())).reshape(shape)
    return Tensor(
        (t.name or b"").decode(), shape, dtype, scale, zero_point, 0 if q is None else q.quantizedDimension, data
    )


def _operator(op, codes):
    code = codes[op.opcodeIndex]
    kind = _KINDS[max(code.builtinCode, code.deprecatedBuiltinCode)]
    if kind == "CUSTOM" and code.customCode:
        kind = f"CUSTOM {code.customCode.decode()}"
    return Operator(kind, _indices(op.inputs), _indices(op.outputs), op.builtinOptions)


def _indices(values):
    return () if values is None else tuple(int(i) for i in values)

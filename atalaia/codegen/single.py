"""One operator alone in TFLite Micro: what it gives for chosen values is the definition of its table."""

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from atalaia import tflite
from atalaia.errors import UserError


def run(
    op: tflite.Operator, inputs: list[tflite.Tensor], output: tflite.Tensor, values: list[np.ndarray]
) -> np.ndarray:
    """Output `[n]` of an operator of one dimension.

    Args:
      op: its kind and options; inputs, output: whose types, scales and zero points are taken; values: `[n]` each.

    Raises:
      UserError: TFLite Micro cannot run it.
    """
    from tflite_micro.python.tflite_micro import runtime

    try:
        interpreter = runtime.Interpreter.from_bytes(_model(op, inputs, output, len(values[0])))
        for number, value in enumerate(values):
            interpreter.set_input(value[None], number)
        interpreter.invoke()
        return interpreter.get_output(0).ravel()
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"TFLite Micro cannot run a {op.kind} of this kind: {reason}") from None


def _model(op, inputs, output, size):
    """A .tflite file of the one operator on tensors `[1, size]`."""
    graph = schema.SubGraphT()
    graph.tensors = [_tensor(t, size, i + 1) for i, t in enumerate((*inputs, output))]
    count = len(inputs)
    graph.inputs, graph.outputs = list(range(count)), [count]
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, list(range(count)), [count]
    operator.builtinOptions = op.options
    if op.options is not None:
        name = type(op.options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, name)
    graph.operators = [operator]
    code = schema.OperatorCodeT()
    code.builtinCode = getattr(schema.BuiltinOperator, op.kind)
    code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 2
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    model.buffers = [schema.BufferT() for _ in range(count + 2)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _tensor(like, size, buffer):
    tensor = schema.TensorT()
    tensor.shape, tensor.buffer, tensor.name = [1, size], buffer, b"t"
    tensor.type = getattr(schema.TensorType, like.dtype)
    tensor.quantization = schema.QuantizationParametersT()
    tensor.quantization.scale = [float(like.scale[0])]
    tensor.quantization.zeroPoint = [int(like.zero_point[0])]
    return tensor

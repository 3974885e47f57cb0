"""An int8 .tflite that answers by the mean of an image and its mirror image: more accuracy for twice the time.

python -m atalaia.mirror --workdir=runs/cifar10                # model_mirrored.tflite beside model.tflite
python -m atalaia.mirror --tflite=FILE.tflite --out=MIRRORED.tflite

The file that comes out runs the same operators twice, the second time on the image from right to left, and takes the
mean of both outputs (Simonyan and Zisserman, 2014, arXiv:1409.1556, section 3.2, average over flips at test time). Both
passes read the same weights, and generated C stores each constant once. It helps a classifier that was trained with
augment.flip. Score it with `python -m atalaia.evaluate --tflite=MIRRORED.tflite`, on the validation split first.
"""

import copy
from pathlib import Path

import flatbuffers
import numpy as np
from absl import flags
from ai_edge_litert import schema_py_generated as schema

from atalaia import cli, tflite
from atalaia.errors import UserError
from atalaia.files import write_whole

AXES, WIDTH = 4, 2  # of an image `[1, height, width, channels]`


def mirrored(data: bytes) -> bytes:
    """The file whose output is the mean of what `data` gives for an image and for its mirror image.

    Args:
      data: an int8 .tflite of one image `[1, height, width, channels]` and one output `[1, n]`.

    Raises:
      UserError: the file is damaged, or has other inputs or outputs.
    """
    found = tflite.read(data)
    _refuse_other(found)
    model = schema.ModelT.InitFromPackedBuf(data, 0)
    graph, (image,), (first,) = model.subgraphs[0], found.inputs, found.outputs
    twins = {i: _like(graph, i) for i in (image, *(i for op in found.operators for i in op.outputs))}
    again = [_twin(op, twins) for op in graph.operators]
    ends, steps = _constant(model, [0] * AXES), _constant(model, [-1 if axis == WIDTH else 1 for axis in range(AXES)])
    every = (1 << AXES) - 1  # the ends of every axis are those of the image
    turn = schema.StridedSliceOptionsT(beginMask=every, endMask=every)
    _add(model, "STRIDED_SLICE", [image, ends, ends, steps], twins[image], turn)
    graph.operators += again
    both, mean = _like(graph, first, rows=2), _like(graph, first)
    _add(model, "CONCATENATION", [first, twins[first]], both, schema.ConcatenationOptionsT())
    _add(model, "MEAN", [both, _constant(model, [0])], mean, schema.ReducerOptionsT(keepDims=True))
    graph.outputs = [mean]
    for signature in model.signatureDefs or []:
        for output in signature.outputs:
            output.tensorIndex = mean
    builder = flatbuffers.Builder(len(data) + 4096)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _refuse_other(model):
    images, outputs = ([model.tensors[i] for i in part] for part in (model.inputs, model.outputs))
    shapes = [t.shape for t in (*images, *outputs)]
    if len(images) != 1 or len(outputs) != 1 or [len(s) for s in shapes] != [AXES, 2] or {s[0] for s in shapes} != {1}:
        raise UserError(
            f"mirror: this file's inputs and outputs are {', '.join(map(str, shapes))}; it has to have one image "
            "[1, height, width, channels] and one output [1, n], as a classifier has"
        )
    if (images[0].dtype, outputs[0].dtype) != ("INT8", "INT8"):
        raise UserError(
            f"mirror: this file takes {images[0].dtype} and gives {outputs[0].dtype}: convert it with int8 at both ends"
        )


def _like(graph, i, rows=1):
    """The number of a new tensor like tensor `i`, or like so many of them, one below the other."""
    tensor = copy.copy(graph.tensors[i])  # its quantisation is shared, which nothing writes to
    tensor.name = tensor.name + b"_mirrored"
    tensor.buffer = 0
    tensor.shape = [rows * tensor.shape[0], *tensor.shape[1:]]
    tensor.shapeSignature = None
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _constant(model, values):
    """The number of a new constant of int32 values."""
    buffer, tensor = schema.BufferT(), schema.TensorT()
    buffer.data = np.asarray(values, np.int32).view(np.uint8)
    model.buffers.append(buffer)
    tensor.name, tensor.shape, tensor.type = b"mirror", [len(values)], schema.TensorType.INT32
    tensor.buffer = len(model.buffers) - 1
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def _twin(op, twins):
    """The same operator, of the mirror image's tensors."""
    op = copy.copy(op)  # its options are shared
    op.inputs, op.outputs = ([twins.get(int(i), int(i)) for i in part] for part in (op.inputs, op.outputs))
    return op


def _add(model, kind, inputs, output, options):
    """Adds an operator at the end, and its kind to those that the file knows."""
    code, op = getattr(schema.BuiltinOperator, kind), schema.OperatorT()
    known = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
    if code not in known:
        made = schema.OperatorCodeT()
        made.builtinCode, made.deprecatedBuiltinCode, made.version = code, code, 2
        model.operatorCodes.append(made)
        known.append(code)
    op.opcodeIndex, op.inputs, op.outputs = known.index(code), list(inputs), [output]
    name = type(options).__name__.removesuffix("T")
    op.builtinOptions, op.builtinOptionsType = options, getattr(schema.BuiltinOptions, name)
    model.subgraphs[0].operators.append(op)


def main() -> None:
    source = Path(flags.FLAGS.tflite or cli.workdir() / "model.tflite")
    data = tflite.load(source)
    made = mirrored(data)
    out = cli.out_file(flags.FLAGS.out or source.with_stem(f"{source.stem}_mirrored"))
    write_whole(out, made)
    print(f"written: {out}, {len(made):,} bytes, from {len(data):,}; it takes twice the time")


if __name__ == "__main__":
    cli.common_flags()
    flags.DEFINE_string("tflite", None, "A .tflite file instead of a run's.")
    flags.DEFINE_string("out", None, "The file to write; by default NAME_mirrored.tflite beside it.")
    cli.run(main)

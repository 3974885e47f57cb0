"""Small int8 .tflite files of TensorFlow's own converter, with every operator that code generation supports."""

import functools
from collections.abc import Sequence

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema


@functools.cache
def build(name: str) -> bytes:
    """The file of a network of `NETWORKS`, calibrated on random values."""
    import tensorflow as tf

    shape, network = NETWORKS[name]
    random = np.random.default_rng(0)

    def weights(*size):
        values = random.normal(0, 0.4, size) * (random.random(size) < 0.6)  # zeros too
        return tf.constant(values.astype(np.float32))

    shapes = shape if isinstance(shape, list) else [shape]
    made = {}  # the function is traced more than once

    def constant(*size):
        key = (len(constant.calls), size)
        constant.calls.append(key)
        return made.setdefault(key, weights(*size))

    def traced(*xs):
        constant.calls = []
        return network(tf, constant, *xs)

    function = tf.function(traced, input_signature=[tf.TensorSpec(s, tf.float32) for s in shapes])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        [random.normal(0, 1, s).astype(np.float32) for s in shapes] for _ in range(20)
    )
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    if name != "float_borders":
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return converter.convert()


def convolution(kernel: np.ndarray, size: tuple[int, int], stride: int = 1, same: bool = True) -> bytes:
    """The file of one CONV_2D with int8 weights `[outputs, height, width, channels]` as they are given."""
    out_c = len(kernel)
    spread = np.sqrt(np.square(kernel.astype(float)).sum((1, 2, 3)).max())
    bias = np.random.default_rng(2).integers(-2000, 2000, out_c).astype(np.int32)
    one = dict(kernel=kernel, bias=bias, scales=1 + np.arange(out_c) / out_c, grid=(2 + 4 * spread, 5))
    return heads([one], size, (1.0, -7), stride, same)


def detector(size: tuple[int, int], channels: int, stride: int) -> bytes:
    """The file of a detector of bright things, of one class: boxes that grow with what is right and below of a cell."""
    shape = (stride, stride, channels)
    wide, bright = np.zeros((4, *shape), np.int8), np.ones((1, *shape), np.int8)
    wide[0, :, : stride // 2], wide[1, : stride // 2], wide[2, :, stride // 2 :], wide[3, stride // 2 :] = 3, 1, 2, 4
    mean = stride * stride * channels  # pixels of a cell
    parts = (
        dict(kernel=wide, bias=np.full(4, 40 * mean, np.int32), scales=np.full(4, 1 / mean), grid=(0.02, -128)),
        dict(kernel=bright, bias=np.full(1, -90 * mean, np.int32), scales=np.full(1, 8 / mean), grid=(0.04, 0)),
    )
    return heads(parts, size, (1 / 255, -128), stride)


def heads(parts: Sequence[dict], size: tuple[int, int], grid: tuple, stride: int = 1, same: bool = True) -> bytes:
    """The file of one CONV_2D a head, all of the same input.

    Args:
      parts: of each head: kernel int8 `[outputs, height, width, channels]` and its scales, bias int32, and the output's
        grid (scale, zero point).
      size: height and width of the input; grid: the input's; stride: of all; same: padding.
    """
    model, graph, code = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    graph.tensors, graph.operators, graph.outputs = [], [], []

    def tensor(name, shape, kind, scales, zero_point, data=None):
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name.encode(), list(shape), kind, len(model.buffers)
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = list(scales), [zero_point] * len(scales)
        model.buffers.append(schema.BufferT())
        if data is not None:
            model.buffers[-1].data = np.frombuffer(data.tobytes(), np.uint8)
        graph.tensors.append(made)
        return len(graph.tensors) - 1

    int8, int32 = schema.TensorType.INT8, schema.TensorType.INT32
    graph.inputs = [tensor("x", [1, *size, parts[0]["kernel"].shape[3]], int8, grid[:1], grid[1])]
    for part in parts:
        kernel, scales = part["kernel"], part["scales"].tolist()
        out_c, tall, wide, _ = kernel.shape
        out = [-(-n // stride) if same else (n - k) // stride + 1 for n, k in zip(size, (tall, wide), strict=True)]
        op, (scale, zero_point) = schema.OperatorT(), part["grid"]
        of_bias = [grid[0] * scale for scale in scales]
        given = (
            tensor("w", kernel.shape, int8, scales, 0, kernel),
            tensor("b", [out_c], int32, of_bias, 0, part["bias"]),
        )
        graph.outputs.append(tensor("y", [1, *out, out_c], int8, [float(scale)], zero_point))
        op.builtinOptions = schema.Conv2DOptionsT()
        op.inputs, op.outputs = [graph.inputs[0], *given], graph.outputs[-1:]
        op.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
        op.builtinOptions.strideH = op.builtinOptions.strideW = stride
        op.builtinOptions.padding = schema.Padding.SAME if same else schema.Padding.VALID
        graph.operators.append(op)
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CONV_2D
    code.version, model.operatorCodes = 3, [code]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def joined(*files: bytes) -> bytes:
    """One file of several of `convolution`, for images of one size: each is an output, of pixels in [0, 1]."""
    model, *others = (schema.ModelT.InitFromPackedBuf(file, 0) for file in files)
    (graph,) = model.subgraphs
    graph.outputs = [3]
    for other in others:
        (part,) = other.subgraphs
        (op,), first = part.operators, len(graph.tensors)
        for tensor in part.tensors[1:]:
            model.buffers.append(other.buffers[tensor.buffer])
            tensor.buffer = len(model.buffers) - 1
            graph.tensors.append(tensor)
        op.inputs, op.outputs = [0, first, first + 1], [first + 2]
        graph.operators.append(op)
        graph.outputs.append(first + 2)
    for i, tensor in enumerate(graph.tensors):
        if i % 3 != 1:  # all but the weights are smaller by what a pixel is
            tensor.quantization.scale = [scale / 255 for scale in tensor.quantization.scale]
    graph.tensors[0].quantization.zeroPoint = [-128]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _convolutions(tf, w, x):
    y = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(x, w(3, 3, 5, 6), 1, "SAME"), w(6)))
    y = tf.nn.relu6(tf.nn.bias_add(tf.nn.conv2d(y, w(2, 3, 6, 8), 2, "VALID"), w(8)))
    return tf.nn.conv2d(y, w(1, 1, 8, 7), 1, "SAME")


def _dilation(tf, w, x):
    return tf.nn.bias_add(tf.nn.conv2d(x, w(3, 3, 3, 6), 1, "SAME", dilations=2), w(6))


def _depthwise(tf, w, x):
    y = tf.nn.depthwise_conv2d(x, w(3, 3, 4, 2), [1, 1, 1, 1], "SAME")
    y = tf.nn.relu(tf.nn.depthwise_conv2d(y, w(3, 3, 8, 1), [1, 2, 2, 1], "VALID"))
    return tf.nn.depthwise_conv2d(y, w(5, 5, 8, 1), [1, 1, 1, 1], "SAME")


def _pools(tf, w, x):
    y = tf.nn.max_pool2d(x, 3, 2, "SAME") + tf.nn.avg_pool2d(x, 3, 2, "SAME")
    y = tf.nn.max_pool2d(tf.nn.avg_pool2d(y, 2, 1, "VALID"), 2, 1, "VALID")
    return tf.matmul(tf.reshape(y, (1, -1)), w(16, 10)) + w(10)


def _pairs(tf, w, x):
    y = tf.nn.conv2d(x, w(1, 1, 8, 8), 1, "SAME")
    z = tf.maximum((x + y) * w(8), w(8))
    z = tf.minimum(z, y) - y
    return tf.nn.relu(z * y) + tf.constant(0.3)


def _moves(tf, w, x):
    y = tf.nn.conv2d(tf.pad(x, ((0, 0), (1, 2), (2, 0), (0, 0))), w(3, 3, 6, 4), 1, "VALID")
    z = tf.nn.relu6(tf.concat([tf.sigmoid(y), y], -1) * w(8))
    return tf.tanh(tf.nn.leaky_relu(z - w(8)))


def _softmax(tf, w, x):
    return tf.nn.softmax(tf.matmul(x, w(40, 12)) * w(12))


def _mean(tf, w, x):
    y = tf.nn.relu(tf.nn.conv2d(x, w(1, 1, 6, 9), 1, "VALID"))
    return tf.matmul(tf.reduce_mean(y, [1, 2]), w(9, 7))


def _mean_kept(tf, w, x):
    return tf.reduce_mean(tf.nn.conv2d(x, w(1, 1, 6, 9), 1, "VALID"), [1, 2], keepdims=True)


def _two_in_two_out(tf, w, x, y):
    z = tf.nn.conv2d(x, w(3, 3, 4, 5), 1, "SAME")
    return z + y, tf.nn.max_pool2d(z, 2, 2, "VALID")


NETWORKS = {
    "convolutions": ((1, 11, 9, 5), _convolutions),
    "dilation": ((1, 13, 12, 3), _dilation),
    "depthwise": ((1, 12, 19, 4), _depthwise),
    "pools": ((1, 8, 8, 4), _pools),
    "pairs": ((1, 6, 6, 8), _pairs),
    "moves": ((1, 7, 5, 6), _moves),
    "softmax": ((1, 40), _softmax),
    "mean": ((1, 7, 5, 6), _mean),
    "mean_kept": ((1, 8, 8, 6), _mean_kept),
    "float_borders": ((1, 6, 6, 8), _pairs),
    "two_in_two_out": ([(1, 6, 7, 4), (1, 6, 7, 5)], _two_in_two_out),
}

"""Checkpoint to int8 .tflite, the only place that imports TensorFlow.

python -m atalaia.export --workdir=runs/cifar10 [--ranges=trained]    # model.tflite and model.atl

Every quantised value is marked in JAX with a StableHLO composite "quant.fake_quant", whose scale and zero point the
TFLite converter takes as they are. Ranges are those of the stage `quantize`, or calibrated where there was none.
Before the file appears, it is read back and every scale, zero point, weight and bias is compared with ours.
"""

import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ai_edge_litert import schema_py_generated as schema

from atalaia import api, cli, data, folding, layers, ledger, metrics, ops, pack, quantize, simulate, tflite
from atalaia import config as configs
from atalaia.errors import UserError, quiet_stderr, require
from atalaia.files import write_json, write_whole
from atalaia.quantize import QLayer, QParams

_UNIT = QParams(np.float32(1), 0)  # the grid of the constant -1


class _Value(NamedTuple):
    """A tensor of the network while it is written out: its real values on the int8 grid."""

    x: jax.Array
    q: QParams


def _mark(x, scale, zero_point, qmin=quantize.QMIN, axis=None):
    """fake_quant inside the composite that the converter knows; scale and zero point are constants of the file."""
    scale = np.atleast_1d(np.float32(scale))
    zero_point = np.broadcast_to(np.asarray(zero_point, np.int64), scale.shape)
    attributes = dict(dtype="i8", scale=scale, zero_point=zero_point, narrow_range=qmin == -quantize.BITS[8])
    if axis is not None:
        attributes["quantization_dimension"] = np.int32(axis)

    @functools.partial(jax.lax.composite, name="quant.fake_quant")
    def composite(x, **_):
        if axis is None:
            return quantize.fake_quant(x, scale[0], zero_point[0].astype(np.float32), qmin)
        return quantize.fake_quant(x, scale, zero_point.astype(np.float32), qmin, axis=axis)

    return composite(x, **attributes)


def marked_network(model: nn.Module, network: dict[str, QLayer | QParams]) -> Callable:
    """The integer network as a function of float32 images that the converter turns into int8 operators."""

    def rule(path, layer, *values):
        if isinstance(layer, layers.Dropout):
            return values[0]
        if isinstance(layer, layers.MinPool):
            return _min_pool(layer, values[0])
        if quantize.keeps_scale(layer):
            x, q = values[0]
            return _Value(_mark(folding.apply_layer(layer, None, x), *q), q)
        if isinstance(layer, layers.Add | layers.Mul):
            return _Value(_mark(layer.clone(parent=None)(*(v.x for v in values)), *network[path]), network[path])
        return _linear(layer, network[path], values[0])

    def apply(x):
        given = _Value(_mark(x, *quantize.INPUT), quantize.INPUT)
        last = layers.interpret(model, rule, given)
        return jax.tree.map(lambda head: head.x, last, is_leaf=lambda head: isinstance(head, _Value))

    return apply


def _min_pool(layer, given):
    """min(x) = -max(-x): TFLite has no minimum of windows. Each MUL by -1 has a multiplier of exactly 1."""
    negated = quantize.negated(given.q)
    minus = _mark(np.float32([-1]), *_UNIT)
    x = _mark(given.x * minus, *negated)
    x = _mark(ops.max_pool(x, layer.window), *negated)
    return _Value(_mark(x * minus, *given.q), given.q)


def _linear(layer, weights, given):
    scale, output = weights.weight_scale, weights.output
    kernel = weights.kernel * scale
    kernel = _mark(kernel, scale, 0, -quantize.BITS[8], axis=kernel.ndim - 1)
    y = folding.linear(layer, given.x, kernel) + _bias(weights, given.q)
    if layer.relu and weights.lower is None:
        y = nn.relu(y)
    y = _mark(y, *output)
    for kind, bound in _bounds(weights):
        real = (bound.astype(np.float32) - output.zero_point) * output.scale
        pick = jnp.maximum if kind == "MAXIMUM" else jnp.minimum
        y = _mark(pick(y, _mark(real, *output)), *output)
    return _Value(y, output)


def _bounds(weights):
    """The operators that bound a layer's output, those left out that would change nothing."""
    if weights.lower is not None and np.any(weights.lower != quantize.QMIN):
        yield "MAXIMUM", weights.lower
    if weights.upper is not None and np.any(weights.upper != quantize.QMAX):
        yield "MINIMUM", weights.upper


def _bias(weights, given):
    """float32 values that the converter rounds to exactly our int32 biases."""
    scale = (np.float32(given.scale) * weights.weight_scale).astype(np.float64)
    bias = weights.bias * scale
    if len(bias) > 1 and np.all(bias.astype(np.float32) == np.float32(bias[0])):
        # The converter gives all channels of a splat constant channel 0's scale; a quarter of a step breaks the splat.
        bias[-1] += scale[-1] / 4
    return bias.astype(np.float32)


def convert(model: nn.Module, network: dict[str, QLayer | QParams], input_shape: tuple[int, ...]) -> bytes:
    """The .tflite file of an integer network, compared with it value by value.

    Args:
      model: the network's code; network: its integers by path, from quantize.quantize_network.
      input_shape: `(height, width, channels)`.

    Raises:
      UserError: an operator stayed in floating point, or the file differs from `network`; the operator is named.
    """
    try:
        with quiet_stderr(show_on_error=False), ops.plain_xla():  # the converter knows XLA's own operations only
            data = _convert(model, network, input_shape)
    # TensorFlow's own types differ by what went wrong, and importing them here would cost 5 s.
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"export: TensorFlow's converter refused the network ({type(error).__name__}: {text}): check that "
            "TensorFlow has the version that requirements.txt pins"
        ) from error
    check(data, model, network)
    return data


def _convert(model, network, input_shape):
    import tensorflow as tf  # 5 s and 860 MB: only here, and `export` has looked whether it is there
    from jax.experimental import jax2tf

    shape = (1, *input_shape)
    function = tf.function(
        jax2tf.convert(marked_network(model, network), with_gradient=False),
        input_signature=[tf.TensorSpec(shape, tf.float32)],
        autograph=False,
    )
    module = tf.Module()
    module.function = function
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=function)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter._experimental_strict_qdq = True
        converter.inference_input_type = converter.inference_output_type = tf.int8
        return _outputs_by_name(converter.convert())


def _outputs_by_name(data: bytes) -> bytes:
    """The file with its outputs in the order of their names, of which the converter knows none; one output stays."""
    content = bytearray(data)
    model = schema.Model.GetRootAsModel(content, 0)
    if model.Subgraphs(0).OutputsLength() > 1:
        signature = model.SignatureDefs(0)
        heads = [signature.Outputs(i) for i in range(signature.OutputsLength())]
        tensors = [head.TensorIndex() for head in sorted(heads, key=lambda head: head.Name())]
        model.Subgraphs(0).OutputsAsNumpy()[:] = tensors  # a view of `content`: nothing else moves
    return bytes(content)


def check(data: bytes, model: nn.Module, network: dict[str, QLayer | QParams]) -> dict[str, int]:
    """Walks the file along the network's code and compares every scale, zero point, weight, bias and bound.

    Returns:
      The index of each layer's output tensor by path.

    Raises:
      UserError: the first difference, by layer and operator.
    """
    graph = tflite.read(data)
    _only_integers(graph)
    unseen = list(graph.operators)

    def take(path, kind, inputs, accept=lambda op: True):
        """The operator of this kind that reads these tensors."""
        for op in unseen:
            if op.kind == kind and set(inputs) <= set(op.inputs) and accept(op):
                unseen.remove(op)
                return op
        raise UserError(f"export: the file has no {kind} with the inputs and weights of layer {path!r}")

    places: dict[str, int] = {}
    negations: dict[int, tflite.Operator] = {}

    def rule(path, layer, *given):  # indices of tensors flow through the network's code here
        places[path] = place(path, layer, *given)
        return places[path]

    def place(path, layer, *given):
        if isinstance(layer, layers.Conv | layers.Dense):
            return _check_linear(graph, take, path, layer, network[path], given[0])
        if isinstance(layer, layers.MinPool):
            return _check_min_pool(graph, take, negations, path, layer, given[0])
        kinds = {
            layers.Add: "ADD",
            layers.Mul: "MUL",
            layers.MaxPool: "MAX_POOL_2D",
            layers.GlobalAvgPool: "AVERAGE_POOL_2D",
            layers.Flatten: "RESHAPE",
        }
        kind = kinds.get(type(layer))
        # A RESHAPE in front of FULLY_CONNECTED may be left out by the converter.
        if kind is None or (kind == "RESHAPE" and not any(o.kind == kind and given[0] in o.inputs for o in unseen)):
            return given[0]
        op = take(path, kind, given)
        output = graph.tensors[op.outputs[0]]
        expected = network[path] if path in network else _qparams(graph.tensors[given[0]])
        _same(path, f"the {kind}'s scale and zero point", expected, _qparams(output))
        _check_options(graph, path, op, **_pooling(layer, graph.tensors[given[0]].shape))
        return op.outputs[0]

    first = graph.inputs[0]
    _same("input", "the scale and zero point", quantize.INPUT, _qparams(graph.tensors[first]))
    # A network of several heads gives a dict: jax and `convert` have them in the order of their names.
    _same("output", "the tensor", jax.tree.leaves(layers.interpret(model, rule, first)), graph.outputs)
    if unseen:
        raise UserError(f"export: the file has a {unseen[0].kind} that the network does not have")
    return places


def _only_integers(graph):
    # The operator itself before the conversions around it.
    for op in sorted(graph.operators, key=lambda op: op.kind in ("QUANTIZE", "DEQUANTIZE")):
        for i in (*op.inputs, *op.outputs):
            if i >= 0 and graph.tensors[i].dtype not in ("INT8", "INT32"):
                name = graph.tensors[i].name
                raise UserError(
                    f"export: {op.kind} uses {name!r} in {graph.tensors[i].dtype}; all must be INT8 or INT32"
                )


def _check_linear(graph, take, path, layer, ours, given):
    """Compares one convolution or matrix product and the bounds behind it; gives its last tensor."""
    kind, kernel = "FULLY_CONNECTED", np.moveaxis(ours.kernel, -1, 0)
    if isinstance(layer, layers.Conv):
        depthwise = ours.kernel.shape[2] == 1  # of one input channel too: the converter prefers it
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        kernel = np.moveaxis(ours.kernel, 2, 0) if depthwise else kernel
    op = take(path, kind, [given], lambda op: np.array_equal(graph.tensors[op.inputs[1]].data, kernel))
    weights, bias = (graph.tensors[i] for i in op.inputs[1:3])
    _same(path, "the weights' scale", ours.weight_scale, weights.scale)
    _same(path, "the weights' zero point", np.zeros_like(weights.zero_point), weights.zero_point)
    _same(path, "the bias", ours.bias, bias.data)
    _same(path, "the bias's scale", graph.tensors[given].scale * ours.weight_scale, bias.scale)
    _same(path, "the output's scale and zero point", ours.output, _qparams(graph.tensors[op.outputs[0]]))
    options = {}
    if isinstance(layer, layers.Conv):
        options = dict(strideH=layer.strides, strideW=layer.strides)
        options |= dict(dilationHFactor=layer.dilation, dilationWFactor=layer.dilation)
        if layer.kernel > 1:  # otherwise the converter is free to choose
            options["padding"] = schema.Padding.SAME
    _check_options(graph, path, op, **options)
    for kind, bound in _bounds(ours):
        op = take(path, kind, [op.outputs[0]])
        constant = next(graph.tensors[i] for i in op.inputs if graph.tensors[i].data is not None)
        _same(path, f"the {kind}'s bound", bound, constant.data)
        for tensor in (constant, graph.tensors[op.outputs[0]]):
            _same(path, f"the {kind}'s scale and zero point", ours.output, _qparams(tensor))
    return op.outputs[0]


def _check_min_pool(graph, take, negations, path, layer, given):
    """Compares a negation, a MAX_POOL_2D and a negation; gives the last tensor.

    negations: by tensor; the converter keeps one for all layers that read the tensor.
    """
    grid = QParams(*_qparams(graph.tensors[given]))

    def by_minus(op):  # not the product of two tensors
        return op.kind != "MUL" or any(graph.tensors[i].data is not None for i in op.inputs)

    for kind, expected in (("MUL", quantize.negated(grid)), ("MAX_POOL_2D", quantize.negated(grid)), ("MUL", grid)):
        op = negations[given] if kind == "MUL" and given in negations else take(path, kind, [given], by_minus)
        if kind == "MUL":
            negations[given] = op
            minus = graph.tensors[next((i for i in op.inputs if i != given), given)]
            _same(path, "the MUL's constant", minus.data, [-1])
            _same(path, "the scale and zero point of the MUL's constant", _UNIT, _qparams(minus))
        _check_options(graph, path, op, **_pooling(layer, ()) if kind == "MAX_POOL_2D" else {})
        given = op.outputs[0]
        _same(path, f"the {kind}'s scale and zero point", expected, _qparams(graph.tensors[given]))
    return given


def _pooling(layer, shape):
    """The options that a pooling layer must have in the file; none for other layers."""
    match layer:
        case layers.MaxPool() | layers.MinPool():
            n = layer.window
            return dict(padding=schema.Padding.VALID, filterHeight=n, filterWidth=n, strideH=n, strideW=n)
        case layers.GlobalAvgPool():
            return dict(padding=schema.Padding.VALID, filterHeight=shape[1], filterWidth=shape[2])
    return {}


def _check_options(graph, path, op, **expected):
    """Compares an operator's options; a ReLU changes nothing where real zero is the smallest integer."""
    found = {} if op.options is None else vars(op.options)
    harmless = [schema.ActivationFunctionType.NONE]
    if graph.tensors[op.outputs[0]].zero_point[0] == quantize.QMIN:
        harmless.append(schema.ActivationFunctionType.RELU)
    wrong = [name for name, value in expected.items() if found[name] != value]
    if found.get("fusedActivationFunction", harmless[0]) not in harmless:
        wrong.append("fusedActivationFunction")
    if wrong:
        raise UserError(f"export: the {op.kind}'s {wrong[0]} of layer {path!r} differs between JAX and the file")


def _qparams(tensor):
    return (*tensor.scale, *tensor.zero_point)


def _same(path, what, ours, theirs):
    if not np.array_equal(np.ravel(ours), np.ravel(theirs)):
        raise UserError(f"export: {what} of layer {path!r} differs between JAX and the file")


def export(workdir: Path, cache: Path, ranges: str = "auto") -> Path:
    """Writes the integer network of a finished run as model.tflite, and packed as model.atl.

    Also writes ranges.json, the smallest and largest real value of every layer that has a grid of its own, export.json
    and a row of ledger.json.

    Args:
      workdir: the run folder.
      cache: where data sets are kept.
      ranges: "trained" in stage quantize, "calibrated" on training images, or "auto": trained where they are.

    Returns:
      The file's path.

    Raises:
      UserError: the run is not finished, its ranges are missing or broken, or the file would not equal the network.
    """
    start = time.monotonic()
    require("tensorflow", "export")
    config = configs.load(workdir)
    configs.validate(config)
    dataset = data.load(config.data, cache)
    model = simulate.load(config, workdir, dataset, ranges)
    path = Path(workdir) / "model.tflite"
    for name in (path.name, "model.atl", "ranges.json", "export.json"):
        path.with_name(name).unlink(missing_ok=True)  # where this export fails, none of an older one is taken for it
    tflite_bytes = convert(model.code, model.network, dataset.train.images.shape[1:])
    packed = pack.pack(tflite_bytes)
    if pack.unpack(packed) != tflite_bytes:
        raise UserError("export: model.atl would not restore model.tflite byte for byte; please report the network")
    write_whole(path, tflite_bytes)
    write_whole(path.with_suffix(".atl"), packed)
    write_json(path.with_name("ranges.json"), model.ranges)
    ledger.add_tflite(workdir, tflite_bytes, len(packed))
    record = dict(
        ranges="trained" if model.trained else "calibrated",
        seconds=round(time.monotonic() - start, 1),
        peak_memory_bytes=metrics.peak_memory_bytes(),
    )
    write_json(path.with_name("export.json"), record)
    return path


def main() -> None:
    workdir = cli.workdir()
    path = export(workdir, cli.cache(), flags.FLAGS.ranges)
    ranges = json.loads(path.with_name("export.json").read_text())["ranges"]
    print(f"{path}: {path.stat().st_size:,} bytes; every scale, zero point, weight and bias equals JAX's")
    print(f"ranges: {ranges}" + " on training images: the run has no stage quantize" * (ranges == "calibrated"))
    print(ledger.table(ledger.read(workdir)))


api.make_callable(__name__)

if __name__ == "__main__":
    cli.common_flags()
    flags.DEFINE_enum("ranges", "auto", ["auto", "trained", "calibrated"], "Where the int8 ranges come from.")
    cli.run(main)

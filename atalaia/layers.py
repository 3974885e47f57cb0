"""The small set of layers that every network is made of: each has an exact int8 form.

A network calls only these layers on its activations, never jnp. So its code can be run in other ways than in floating
point: `interpret` replaces every layer by a rule, as the summary, BatchNorm folding, calibration and export do. A layer
that should ship must therefore live here, with a rule in quantize.py.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from atalaia import normalization, ops

BATCH_NORM_EPSILON = 1e-3  # Keras's default, as in the thesis
BATCH_NORM_MOMENTUM = 0.9

# He et al., 2015 (arXiv:1502.01852): keeps the variance through ReLU layers.
_KERNEL_INIT = nn.initializers.he_normal()


class Layer(nn.Module):
    """Base of the layers that `interpret` can replace; names below give `[batch, height, width, channels]` shapes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        module = self.parent if self.scope else None
        while isinstance(module, nn.Module) and not isinstance(module, Narrow):
            module = module.parent
        if isinstance(module, Narrow) and (width := dict(module.kept).get("/".join(self.path))):
            object.__setattr__(self, "features", width)  # by `=` a module cannot be changed

    def macs(self, shapes: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
        """Multiply-accumulates an image, from the shapes of the inputs and of the output."""
        del shapes, out
        return 0


class Narrow(nn.Module):
    """A network of which some Conv and Dense have fewer output channels than its code says.

    Its parameters have the names that the network's have.

    Attributes:
      network: the code.
      kept: (path, output channels) of those layers.
    """

    network: nn.Module
    kept: tuple[tuple[str, int], ...]

    def setup(self) -> None:
        nn.share_scope(self, self.network)

    @property
    def float_only(self) -> bool:
        """Whether the network is never exported, and so may call anything."""
        return getattr(self.network, "float_only", False)

    def __call__(self, x: Any, *train: Any, **named: Any) -> Any:
        return self.network(x, *train, **named)


class BatchNorm(nn.Module):
    """Normalisation by the batch's statistics in training, by their moving averages otherwise; a part of Conv.

    It takes the convolution's bias, `shift`, and the ReLU in front of it along: one operation is faster than three.
    """

    relu: bool = False  # in front of the normalisation

    @nn.compact
    def __call__(self, x: jax.Array, shift: jax.Array, train: bool = False) -> jax.Array:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        if not train:
            x = ops.relu(x + shift) if self.relu else x + shift
            return (x - mean.value) * (jax.lax.rsqrt(var.value + BATCH_NORM_EPSILON) * scale) + bias
        y, batch_mean, batch_var = normalization.batch_norm(
            x, scale, bias, BATCH_NORM_EPSILON, shift=shift, relu=self.relu
        )
        if not self.is_initializing():
            for average, value in ((mean, batch_mean), (var, batch_var)):
                average.value = BATCH_NORM_MOMENTUM * average.value + (1 - BATCH_NORM_MOMENTUM) * value
        return y


class Conv(Layer):
    """SAME convolution with bias: `[b, h, w, c]` to `[b, ceil(h/strides), ceil(w/strides), features]`.

    Attributes:
      features: output channels; with `depthwise`, a multiple of the input channels.
      kernel: height and width of the kernel.
      strides: step in both directions.
      depthwise: each input channel is filtered by itself.
      norm: where BatchNorm stands: "" (none), "before" or "after" the activation.
      relu: whether a ReLU follows.
      bias: what each bias begins with.
      dilation: pixels from one tap of the kernel to the next; more than 1 only with strides of 1.
    """

    features: int
    kernel: int = 3
    strides: int = 1
    depthwise: bool = False
    norm: str = ""
    relu: bool = True
    bias: float = 0.0
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = x.shape[-1]
        groups = channels if self.depthwise else 1
        shape = (self.kernel, self.kernel, channels // groups, self.features)
        kernel = self.param("kernel", _KERNEL_INIT, shape)
        y = ops.conv2d(x, kernel, (self.strides, self.strides), "SAME", groups, self.dilation)
        bias = self.param("bias", nn.initializers.constant(self.bias), (self.features,))
        if self.norm == "after":
            return BatchNorm(self.relu, name="norm")(y, bias, train)
        y = BatchNorm(name="norm")(y, bias, train) if self.norm else normalization.add_bias(y, bias)
        return ops.relu(y) if self.relu else y

    def macs(self, shapes: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
        per_output = self.kernel**2 * (1 if self.depthwise else shapes[0][-1])
        return math.prod(out[1:]) * per_output


class Dense(Layer):
    """Fully connected with bias: `[b, c]` to `[b, features]`."""

    features: int
    relu: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        del train
        y = x @ self.param("kernel", _KERNEL_INIT, (x.shape[-1], self.features))
        y = y + self.param("bias", nn.initializers.zeros, (self.features,))
        return ops.relu(y) if self.relu else y

    def macs(self, shapes: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
        return shapes[0][-1] * out[-1]


class Add(Layer):
    """Sum of two tensors of one shape, the end of a residual branch."""

    relu: bool = False

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return ops.relu(x + y) if self.relu else x + y


class Mul(Layer):
    """Product of two tensors: of one shape, or the second `[b, 1, 1, c]`. With a ReLU in one of them, a gate."""

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return x * y


class MaxPool(Layer):
    """Maximum of each `window` x `window` square; what does not fill a square at the right and bottom is left out."""

    window: int = 2

    def __call__(self, x: jax.Array) -> jax.Array:
        return ops.max_pool(x, self.window)


class MinPool(Layer):
    """Minimum of each `window` x `window` square, as MaxPool; where several are the smallest, the first is learned."""

    window: int = 2

    def __call__(self, x: jax.Array) -> jax.Array:
        return -ops.max_pool(-x, self.window)


class GlobalAvgPool(Layer):
    """Mean over height and width: `[b, h, w, c]` to `[b, 1, 1, c]`.

    nn.avg_pool, since jnp.mean would become a float island or SUM in the int8 file.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.avg_pool(x, x.shape[1:3])


class Flatten(Layer):
    """`[b, ...]` to `[b, values]`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], -1)


class Dropout(Layer):
    """Zeroes a `rate` of the values in training (Srivastava et al., 2014), by the key "dropout"; nothing otherwise."""

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dropout(self.rate, deterministic=not train, name="drop")(x)


def interpret(model: nn.Module, rule: Callable[..., Any], x: Any) -> Any:
    """Runs the network's own code with every layer replaced by a rule.

    Args:
      model: a network made of the layers above.
      rule: `rule(path, layer, *inputs)` gives the layer's output; `path` is its name in the params, such as "conv0a".
      x: the network's input, in whatever form the rule takes.

    Returns:
      The network's output, in whatever form the rule gives.
    """

    inside = False  # a rule may run the layer itself

    def intercept(next_fun, args, kwargs, context):
        nonlocal inside
        if inside or context.method_name != "__call__" or not isinstance(context.module, Layer):
            return next_fun(*args, **kwargs)
        inside = True
        try:
            inputs = [a for a in args if not isinstance(a, bool)]  # a layer's `train` is not an input
            return rule("/".join(context.module.path), context.module, *inputs)
        finally:
            inside = False

    with nn.intercept_methods(intercept):
        return model.apply({}, x)


def summary(model: nn.Module, variables: dict, input_shape: tuple[int, ...]) -> tuple[list[dict], str]:
    """What each layer costs: rows (name, kind, out, values, macs, activation_bytes at int8, an image) and their table.

    Args:
      model: the network.
      variables: its params and batch_stats, whose values are counted.
      input_shape: `(height, width, channels)`.
    """
    rows = []

    def rule(path, layer, *inputs):
        out = output_spec(layer, *inputs)
        rows.append(
            dict(
                name=path,
                kind=type(layer).__name__,
                out=list(out.shape[1:]),
                values=sum(leaf.size for tree in variables.values() for leaf in jax.tree.leaves(subtree(tree, path))),
                macs=layer.macs([x.shape for x in inputs], out.shape),
                activation_bytes=math.prod(out.shape[1:]),
            )
        )
        return out

    interpret(model, rule, spec((1, *input_shape)))
    return rows, _table(rows)


def _table(rows):
    wide = max(12, *(len(r["name"]) + 1 for r in rows))
    lines = [f"{'layer':<{wide}}{'kind':<15}{'output':<12}{'values':>11}{'MACs':>15}{'int8 bytes out':>16}"]
    for r in rows:
        shape = "x".join(map(str, r["out"]))
        figures = f"{r['values']:>11,}{r['macs']:>15,}{r['activation_bytes']:>16,}"
        lines.append(f"{r['name']:<{wide}}{r['kind']:<15}{shape:<12}{figures}")
    values, macs = (sum(r[k] for r in rows) for k in ("values", "macs"))
    lines.append(f"{'total':<{wide + 27}}{values:>11,}{macs:>15,}{max(r['activation_bytes'] for r in rows):>10,} (max)")
    return "\n".join(lines)


def spec(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """A float32 tensor's shape, to interpret a network without values."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def output_spec(layer: Layer, *inputs: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The shape that a layer gives from inputs of these shapes."""
    alone = layer.clone(parent=None)
    return jax.eval_shape(lambda *xs: alone.init_with_output(jax.random.key(0), *xs)[0], *inputs)


def subtree(tree: dict, path: str) -> dict:
    """The branch of a params tree under a layer's path; empty where there is none."""
    for key in path.split("/"):
        tree = tree.get(key, {})
    return tree

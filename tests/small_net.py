"""Networks that compile fast, named in tests as a user's own, and what programs need to compile fast."""

import flax.linen as nn

from atalaia import layers

# The environment of programs that tests start: XLA compiles as conftest.py has it do in COMPILE_BOUND.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": "--xla_cpu_use_fusion_emitters=false"}


class Linear(nn.Module):
    """One layer, where any network would do."""

    outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        return layers.Dense(self.outputs, name="logits")(layers.Flatten(name="flatten")(x), train)


class Net(nn.Module):
    """Two convolutions and a hidden layer, for images of 16x16."""

    outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Conv(8, norm="before", name="conv0")(x, train)
        x = layers.MaxPool(name="pool0")(x)
        x = layers.Conv(16, norm="before", name="conv1")(x, train)
        x = layers.MinPool(name="pool1")(x)
        x = layers.Flatten(name="flatten")(x)
        x = layers.Dense(32, relu=True, name="hidden")(x, train)
        return layers.Dense(self.outputs, name="numbers")(x, train)


class Residual(nn.Module):
    """A residual block and a convolution of strides 2, for images of 8x8."""

    outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Conv(16, norm="before", name="conv")(x, train)
        y = layers.Conv(16, norm="before", name="block0a")(x, train)
        y = layers.Conv(16, norm="before", relu=False, name="block0b")(y, train)
        x = layers.Add(relu=True, name="block0")(x, y)
        x = layers.Conv(32, strides=2, norm="before", name="wide")(x, train)
        x = layers.Flatten(name="flatten")(x)
        return layers.Dense(self.outputs, name="logits")(x, train)


class Normed(nn.Module):
    """The least with BatchNorm in it."""

    outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Conv(4, strides=2, norm="before", name="conv")(x, train)
        return layers.Dense(self.outputs, name="logits")(layers.Flatten(name="flatten")(x), train)

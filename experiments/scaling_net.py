"""The network of scaling.py: small, so that reading images is what takes time and memory."""

import flax.linen as nn

from atalaia import layers


class Net(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Conv(8, strides=4, norm="before", name="conv")(x, train)
        x = layers.GlobalAvgPool(name="pool")(x)
        return layers.Dense(self.outputs, name="logits")(layers.Flatten(name="flatten")(x), train)

"""A network that compiles fast, named in tests as a user's own."""

import flax.linen as nn

from atalaia import layers


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

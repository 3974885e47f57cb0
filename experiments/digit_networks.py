"""Small networks for digits, of many widths: `experiments/digit_networks.py:w8` has 8 and 16 channels."""

from functools import partial

import flax.linen as nn

from atalaia import layers


class Net(nn.Module):
    """Two convolutions and a mean, for images of 8x8."""

    outputs: int
    width: int

    @nn.compact
    def __call__(self, x, train=False):
        x = layers.Conv(self.width, norm="before", name="conv0")(x, train)
        x = layers.Conv(2 * self.width, strides=2, norm="before", name="conv1")(x, train)
        x = layers.Flatten(name="flatten")(layers.GlobalAvgPool(name="mean")(x))
        return layers.Dense(self.outputs, name="logits")(x, train)


WIDTHS = (4, 8, 16, 32)
for _width in WIDTHS:
    globals()[f"w{_width}"] = partial(Net, width=_width)

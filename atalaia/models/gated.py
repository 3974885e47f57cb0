"""Small networks of gated blocks, for images of 32x32: filters of two sizes, then a product of two mixtures.

Filters of 3x3 and of 5x5 see each channel and are added (sizes as in MixConv, Tan and Le, 2019, arXiv:1907.09595). Of
their sum, a pointwise convolution that ends in ReLU is the gate of another (Dauphin et al., 2017, arXiv:1612.08083;
Shazeer, 2020, arXiv:2002.05202). BatchNorm stands in every convolution, and every layer has an exact int8 form. A board
runs depthwise convolutions slowly, so these save bytes rather than time. Of 32x32x3 to 10 classes:

| network | channels and blocks | values | bytes of int8 weights and int32 biases | MACs |
|---|---|---:|---:|---:|
| gated_small | 16 x 1, 32 x 2, 48 x 2 | 20,362 | 19,736 | 3,394,016 |
| gated | 24 x 2, 48 x 3, 80 x 3 | 69,546 | 67,936 | 11,270,944 |
"""

import flax.linen as nn
import jax

from atalaia import layers

STAGES = ((24, 2), (48, 3), (80, 3))
KERNELS = (3, 5)


class Gated(nn.Module):
    """Convolution, stages of gated blocks, average pooling and Dense n; each stage but the first halves the image.

    Attributes:
      outputs: n.
      stages: (channels, blocks) of each.
    """

    outputs: int
    stages: tuple[tuple[int, int], ...] = STAGES

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = self.stages[0][0]
        x = layers.Conv(channels, norm="before", name="stem")(x, train)
        for i, (width, depth) in enumerate(self.stages):
            for j in range(depth):
                name, strides = f"stage{i}_{j}", 2 if i and j == 0 else 1
                y = _gated(x, channels, width, name, strides, train)
                x = y if strides > 1 else layers.Add(name=name)(x, y)
                channels = width
        x = layers.GlobalAvgPool(name="pool")(x)
        x = layers.Flatten(name="flatten")(x)
        return layers.Dense(self.outputs, name="logits")(x, train)


def _gated(x, channels, width, name, strides, train):
    """Each channel filtered by kernels of two sizes, then mixed into `width` channels twice: values and their gate."""
    small, large = (
        layers.Conv(channels, kernel, strides, depthwise=True, norm="before", name=f"{name}_filter{kernel}")(x, train)
        for kernel in KERNELS
    )
    x = layers.Add(name=f"{name}_filters")(small, large)
    gate = layers.Conv(width, kernel=1, norm="before", name=f"{name}_gate")(x, train)
    x = layers.Conv(width, kernel=1, norm="before", relu=False, name=f"{name}_value")(x, train)
    return layers.Mul(name=f"{name}_gated")(gate, x)

"""MLPerf Tiny's ResNet-8 for 32x32 images.

Banbury et al., MLPerf Tiny Benchmark, 2021 (arXiv:2106.07597): one convolution, three residual stacks, average pooling.
"""

import flax.linen as nn
import jax

from atalaia import layers


class ResNet8(nn.Module):
    """Conv 16, then residual blocks of 16, 32 and 64 channels (strides 1, 2, 2), average pooling and Dense n.

    BatchNorm stands before ReLU; the shortcut of a strided block is a 1x1 convolution. At 32x32x3 and n = 10: 78,666
    values, 12.5 M MACs.
    """

    outputs: int
    widths: tuple[int, ...] = (16, 32, 64)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = layers.Conv(self.widths[0], norm="before", name="conv")(x, train)
        for i, width in enumerate(self.widths):
            strides = 1 if i == 0 else 2
            y = layers.Conv(width, strides=strides, norm="before", name=f"block{i}a")(x, train)
            y = layers.Conv(width, norm="before", relu=False, name=f"block{i}b")(y, train)
            if strides != 1:
                x = layers.Conv(width, kernel=1, strides=strides, relu=False, name=f"block{i}s")(x, train)
            x = layers.Add(relu=True, name=f"block{i}")(x, y)
        x = layers.GlobalAvgPool(name="pool")(x)
        x = layers.Flatten(name="flatten")(x)
        return layers.Dense(self.outputs, name="logits")(x, train)

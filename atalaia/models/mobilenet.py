"""MobileNetV1 at a quarter of its width, as MLPerf Tiny uses it for visual wake words at 96x96.

Howard et al., 2017 (arXiv:1704.04861): a 3x3 convolution, then 13 pairs of a depthwise 3x3 and a pointwise 1x1.
"""

import flax.linen as nn
import jax

from atalaia import layers

# (channels at full width, strides) of the 13 pairs.
_PAIRS = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]


class MobileNetV1(nn.Module):
    """Conv 3x3 of strides 2, 13 depthwise and pointwise pairs, average pooling and Dense n; BatchNorm before ReLU."""

    outputs: int
    width: float = 0.25

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = int(32 * self.width)
        x = layers.Conv(channels, strides=2, norm="before", name="conv")(x, train)
        for i, (full, strides) in enumerate(_PAIRS):
            x = layers.Conv(channels, strides=strides, depthwise=True, norm="before", name=f"depthwise{i}")(x, train)
            channels = int(full * self.width)
            x = layers.Conv(channels, kernel=1, norm="before", name=f"pointwise{i}")(x, train)
        x = layers.GlobalAvgPool(name="pool")(x)
        x = layers.Flatten(name="flatten")(x)
        return layers.Dense(self.outputs, name="logits")(x, train)

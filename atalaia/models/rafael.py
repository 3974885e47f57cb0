"""Rafael-base and its variants: small networks for 96x96 images on an ESP32.

The thesis (L. F. de C. L. Leite, AtalaIA, UFS, 2024, Table 1) distils into a network of Silva (2022), a CNN for traffic
signs of 59 KB, and into three that add layers to it: one of 9x9, two of 3x3, three of 3x3. None is printed anywhere. So
this is a reconstruction that keeps what is known, the 59 KB and what is added, and else is as good as we know how to
make it for a board: separable residual layers (Howard et al., 2017, arXiv:1704.04861; He et al., 2015,
arXiv:1512.03385), BatchNorm before ReLU, average pooling, each exact in int8. Of 96x96x3 to 10 classes:

| network | adds | values | bytes of int8 weights and int32 biases | MACs |
|---|---|---:|---:|---:|
| rafael_base | | 59,530 | 58,392 | 10,989,056 |
| rafael_1 | a layer of 9x9 | 63,466 | 62,264 | 13,071,872 |
| rafael_2 | two of 3x3 | 62,794 | 61,528 | 12,500,480 |
| rafael_3 | three of 3x3 | 64,426 | 63,096 | 13,256,192 |

Images of 32x32 work too (1,222,144 MACs in the base). rafael_base_32 is meant for them: its first convolution has a
kernel of 3x3 and does not halve them (57,624 bytes, 4,098,304 MACs). So do others, wider and deeper than it:

| network | channels and residual layers | values | bytes of int8 weights and int32 biases | MACs |
|---|---|---:|---:|---:|
| rafael_deep_32 | 32 x 4, 64 x 6, 128 x 3 | 113,962 | 111,864 | 5,892,352 |
| rafael_wide_32 | 48 x 3, 96 x 4, 192 x 2 | 170,922 | 168,632 | 8,761,728 |
"""

import flax.linen as nn
import jax

from atalaia import layers

# Channels and residual layers of each stage; every stage works at half the height and width of what it is given.
STAGES = ((32, 3), (64, 3), (128, 1))
EXTRA_STAGE = 0  # 24x24 for images of 96x96


class Rafael(nn.Module):
    """Convolution, three stages of separable residual layers, average pooling and Dense n.

    Attributes:
      outputs: n.
      extra: kernel sizes of the layers that a variant adds to the first stage.
      stem: kernel size and strides of the first convolution.
      stages: (channels, residual layers) of each.
    """

    outputs: int
    extra: tuple[int, ...] = ()
    stem: tuple[int, int] = (5, 2)
    stages: tuple[tuple[int, int], ...] = STAGES

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = 16
        x = layers.Conv(channels, *self.stem, norm="before", name="stem")(x, train)
        for i, (width, depth) in enumerate(self.stages):
            if i == 0:  # so narrow that a full convolution is cheap
                x = layers.Conv(width, strides=2, norm="before", name="stage0")(x, train)
            else:
                x = _separable(x, channels, width, f"stage{i}", train, strides=2)
            channels = width
            for j, kernel in enumerate((3,) * depth + (self.extra if i == EXTRA_STAGE else ())):
                y = _separable(x, width, width, f"stage{i}_{j}", train, kernel, relu=False)
                x = layers.Add(relu=True, name=f"stage{i}_{j}")(x, y)
        x = layers.GlobalAvgPool(name="pool")(x)
        x = layers.Flatten(name="flatten")(x)
        return layers.Dense(self.outputs, name="logits")(x, train)


def _separable(x, channels, width, name, train, kernel=3, strides=1, relu=True):
    """Each of the channels filtered by itself, then all mixed into `width` channels."""
    y = layers.Conv(channels, kernel, strides, depthwise=True, norm="before", name=f"{name}_depthwise")(x, train)
    return layers.Conv(width, kernel=1, norm="before", relu=relu, name=f"{name}_pointwise")(y, train)

"""Residual networks for 32x32 images: MLPerf Tiny's ResNet-8, and the family around ResNet-20.

Banbury et al., MLPerf Tiny Benchmark, 2021 (arXiv:2106.07597): one convolution, three residual stacks, average pooling.
He et al., 2015 (arXiv:1512.03385), section 4.2: three stacks of n blocks are a ResNet of 6 n + 2 layers. Of 32x32x3 to
10 classes:

| network | width, blocks in a stack | values | bytes of int8 weights and int32 biases | MACs |
|---|---|---:|---:|---:|
| resnet14_narrow | 8, 2 | 45,210 | 44,960 | 6,775,104 |
| resnet14 | 16, 2 | 176,938 | 176,408 | 26,657,408 |
| resnet20 | 16, 3 | 274,826 | 274,072 | 40,813,184 |
| resnet32 | 16, 5 | 470,602 | 469,400 | 69,124,736 |
| resnet20_wide | 32, 3 | 1,089,290 | 1,087,752 | 162,366,720 |
| resnet56 | 16, 9; strided kernels of 5x5 | 903,114 | 901,016 | 129,942,144 |
| resnet56_859 | 16; 8, 5 and 9 blocks of ResNet-56; strided kernels of 5x5 | 823,338 | 821,528 | 106,349,184 |
| resnet56_333 | 16; blocks 0, 7, 8 of ResNet-56 in each stack | 274,826 | 274,072 | 40,813,184 |
| resnet56_112 | 16; blocks 8, then 0, then 0 and 8 | 153,418 | 152,984 | 17,220,224 |

The last three begin with weights of a trained ResNet-56 (`pretrained="cifar10"`), of which they have some blocks. A
block adds a little to what passes it by, so a network learns soon to do without most of them (Veit et al., 2016,
arXiv:1605.06431). The first block of a stack has strides and stays. Of the others those stay that cost most accuracy
where they alone are left out (docs/results/blocks.md).
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


class ResNet(nn.Module):
    """Conv, three stacks of residual blocks (strides 1, 2, 2), average pooling and Dense n; BatchNorm before ReLU.

    The shortcut of a strided block is a 1x1 convolution.

    Attributes:
      outputs: n.
      width: channels of the first stack; the others have two and four times as many.
      depth: blocks in a stack; or by stack the numbers of those that are built, of a deeper network.
      strided: side of the kernel of a strided block's first convolution; 5 can hold PyTorch's, which see a pixel more
        at the left and top (atalaia/pretrained.py). With 3 they lie a pixel further, which training mends.
    """

    outputs: int
    width: int = 16
    depth: int | tuple[tuple[int, ...], ...] = 3
    strided: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = layers.Conv(self.width, norm="before", name="conv")(x, train)
        for i, blocks in enumerate(self.depth if isinstance(self.depth, tuple) else (range(self.depth),) * 3):
            for j in blocks:
                strides, kernel = (2, self.strided) if i and j == 0 else (1, 3)
                x = _block(x, self.width * 2**i, kernel, strides, f"block{i}_{j}", train)
        x = layers.GlobalAvgPool(name="pool")(x)
        x = layers.Flatten(name="flatten")(x)
        return layers.Dense(self.outputs, name="logits")(x, train)


def _block(x, width, kernel, strides, name, train):
    y = layers.Conv(width, kernel=kernel, strides=strides, norm="before", name=f"{name}a")(x, train)
    y = layers.Conv(width, norm="before", relu=False, name=f"{name}b")(y, train)
    if strides > 1:
        x = layers.Conv(width, kernel=1, strides=strides, norm="before", relu=False, name=f"{name}s")(x, train)
    return layers.Add(relu=True, name=name)(x, y)

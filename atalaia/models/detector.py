"""Detectors for a board, of images of 96x96 to 160x120: maps of centres and boxes at an eighth of height and width.

Convolutions of strides 2 bring the size down fast, and most layers work at an eighth, where they are cheap. They are
full ones of 3x3 while channels are few, which a board runs faster than separable ones (Howard et al., 2017,
arXiv:1704.04861), else separable and residual (He et al., 2015, arXiv:1512.03385). A network that is to be pruned has
full ones everywhere: of them a board pays for the weights that are not zero. One class in grey images:

| network | channels | bytes of int8 weights and int32 biases | MACs at 96x96 | at 160x120 |
|---|---|---:|---:|---:|
| detector_small | 8, 16, 48 | 21,164 | 3,435,264 | 7,156,800 |
| detector | 16, 24, 64 | 54,564 | 11,381,760 | 23,712,000 |
| detector_sparse, to be pruned | none, 16, 32 | 42,756 | 6,225,408 | 12,969,600 |
| detector_large, to teach the others | 32, 64, 128 | 217,300 | 45,545,472 | 94,886,400 |
"""

import math

import flax.linen as nn
import jax

from atalaia import layers

DENSE_BELOW = 32  # channels: with fewer, a full 3x3 convolution runs faster on a board than a separable one
INITIAL = 0.01  # probability of a centre in a new network, so that the many empty cells do not drown the few centres


class Detector(nn.Module):
    """Three convolutions of strides 2, each with residual layers behind it, and two heads of 1x1.

    The answer is a dict of `centre`, logits `[batch, height / 8, width / 8, outputs]`, and `box`, `[..., 4]`, distances
    in cells (atalaia.tasks.detect).

    Attributes:
      outputs: classes.
      widths: channels at a half, a quarter and an eighth of the image's height and width.
      depths: residual layers there.
      stem: side of the kernel of one convolution of strides 4 in place of the first two of strides 2, when the first
        of `widths` and of `depths` mean nothing; 0: none.
      full: whether residual layers of many channels are full ones too: to be pruned, when they run faster than
        separable ones.
      dilations: of the residual layers at an eighth, one after the other and again from the first on: with more than 1
        they see larger things, at the same cost.
    """

    outputs: int
    widths: tuple[int, int, int] = (16, 24, 64)
    depths: tuple[int, int, int] = (0, 1, 6)
    stem: int = 0
    full: bool = False
    dilations: tuple[int, ...] = (1,)

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> dict[str, jax.Array]:
        for i, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            if i == 0 and self.stem:
                continue
            kernel, strides = (self.stem, 4) if i == 1 and self.stem else (3, 2)
            x = layers.Conv(width, kernel=kernel, strides=strides, norm="before", name=f"stage{i}")(x, train)
            for j in range(depth):
                dilation = self.dilations[j % len(self.dilations)] if i == len(self.widths) - 1 else 1
                y = _mixed(x, width, self.full or width < DENSE_BELOW, dilation, f"stage{i}_{j}", train)
                x = layers.Add(relu=True, name=f"stage{i}_{j}")(x, y)
        rare = math.log(INITIAL / (1 - INITIAL))
        return dict(
            centre=layers.Conv(self.outputs, kernel=1, relu=False, bias=rare, name="centre")(x, train),
            box=layers.Conv(4, kernel=1, relu=False, bias=1.0, name="box")(x, train),
        )


def _mixed(x, width, full, dilation, name, train):
    """A convolution of 3x3 that keeps the width: full where channels are few, separable where they are many."""
    if full:
        return layers.Conv(width, norm="before", relu=False, dilation=dilation, name=f"{name}_conv")(x, train)
    y = layers.Conv(width, depthwise=True, norm="before", dilation=dilation, name=f"{name}_depthwise")(x, train)
    return layers.Conv(width, kernel=1, norm="before", relu=False, name=f"{name}_pointwise")(y, train)

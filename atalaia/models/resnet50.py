"""ResNet-50, the teacher of the thesis (Code 1): a body trained on ImageNet, Dropout and a new last layer.

He et al., 2015 (arXiv:1512.03385), in Keras's form: stages of 3, 4, 6 and 3 bottleneck blocks, whose strides are on the
first 1x1 convolution; input in BGR less ImageNet's mean colour. The body is always in inference mode: BatchNorm is
folded into its convolutions when the weights are read (atalaia/pretrained.py). So it is no network to train from
nothing, and it is too large for a board: a teacher only. Its own layers below have no int8 form.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from atalaia import layers, normalization, ops
from atalaia.errors import UserError

BLOCKS = (3, 4, 6, 3)  # of each stage
MEAN_BGR = (103.939, 116.779, 123.68)  # of ImageNet's pixels


class ResNet50(nn.Module):
    """Body of 23,481,472 values to 2,048 features (average pooling), Dropout and Dense n.

    Attributes:
      outputs: n.
      size: height and width to which images are resized (bilinear) first; 0: as they are.
      dropout: rate.
    """

    outputs: int
    size: int = 0
    dropout: float = 0.2
    float_only = True  # no field: a teacher, which is never exported

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if self.size:
            x = Resize(self.size, name="resize")(x)
        x = ImageNetInput(name="input")(x)
        x = Stem(name="stem")(x)
        x = StemPool(name="pool")(x)
        for stage, blocks in enumerate(BLOCKS, 1):
            for block in range(1, blocks + 1):
                x = _bottleneck(x, stage, block)
        x = layers.GlobalAvgPool(name="average")(x)
        x = layers.Flatten(name="flatten")(x)
        x = layers.Dropout(self.dropout, name="dropout")(x, train)
        return layers.Dense(self.outputs, name="logits")(x, train)


def _bottleneck(x, stage, block):
    """1x1, 3x3 and 1x1 convolutions added to their input; a stage's first block halves and widens, but for stage 1."""
    width, name = 32 * 2**stage, f"stage{stage}_block{block}"
    strides = 2 if block == 1 and stage > 1 else 1
    y = layers.Conv(width, kernel=1, strides=strides, name=f"{name}_conv1")(x)
    y = layers.Conv(width, name=f"{name}_conv2")(y)
    y = layers.Conv(4 * width, kernel=1, relu=False, name=f"{name}_conv3")(y)
    if block == 1:
        x = layers.Conv(4 * width, kernel=1, strides=strides, relu=False, name=f"{name}_shortcut")(x)
    return layers.Add(relu=True, name=name)(x, y)


class Resize(layers.Layer):
    """Bilinear, to `[b, size, size, c]`."""

    size: int

    def __call__(self, x: jax.Array) -> jax.Array:
        return jax.image.resize(x, (x.shape[0], self.size, self.size, x.shape[3]), "bilinear")


class ImageNetInput(layers.Layer):
    """RGB in [0, 1] to what the weights were trained on: BGR in 0 to 255, less the mean."""

    def __call__(self, x: jax.Array) -> jax.Array:
        if x.shape[-1] != 3:
            raise UserError(f"resnet50 needs images of 3 channels, not {x.shape[-1]}: choose colour images")
        return 255 * x[..., ::-1] - jnp.array(MEAN_BGR, x.dtype)


class Stem(layers.Layer):
    """7x7 convolution of strides 2 and ReLU: `[b, h, w, 3]` to `[b, ceil(h/2), ceil(w/2), 64]`.

    A frame of 3 pixels stands on each side, where SAME would have 2 and 3.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.he_normal(), (7, 7, x.shape[-1], 64))
        bias = self.param("bias", nn.initializers.zeros, (64,))
        y = ops.conv2d(jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0))), kernel, (2, 2), "VALID")
        return ops.relu(normalization.add_bias(y, bias))

    def macs(self, shapes: Sequence[tuple[int, ...]], out: tuple[int, ...]) -> int:
        return out[1] * out[2] * out[3] * 7 * 7 * shapes[0][-1]


class StemPool(layers.Layer):
    """Maximum of 3x3 in steps of 2, with a frame of 1 pixel: `[b, h, w, c]` to `[b, ceil(h/2), ceil(w/2), c]`."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

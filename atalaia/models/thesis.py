"""The thesis's convolutional network: "Aluno" (Code 2, 96x96) and the one that is pruned and quantised (Code 3, 32x32).

L. F. de C. L. Leite, AtalaIA, UFS, 2024. Both codes have one body; Code 3 ends in softmax, ours in logits.
"""

import flax.linen as nn
import jax

from atalaia import layers


class Thesis(nn.Module):
    """[Conv 3x3 ReLU, BatchNorm] twice and MaxPool for 32, 64, 128 channels, then Dense 1024 ReLU and Dense n.

    At 32x32x3 and n = 10: 2,397,226 values, the 896 moving statistics of BatchNorm counted.
    """

    outputs: int
    widths: tuple[int, ...] = (32, 64, 128)
    hidden: int = 1024
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for i, width in enumerate(self.widths):
            x = layers.Conv(width, norm="after", name=f"conv{i}a")(x, train)
            x = layers.Conv(width, norm="after", name=f"conv{i}b")(x, train)
            x = layers.MaxPool(name=f"pool{i}")(x)
        x = layers.Flatten(name="flatten")(x)
        x = layers.Dropout(self.dropout, name="dropout0")(x, train)
        x = layers.Dense(self.hidden, relu=True, name="dense0")(x, train)
        x = layers.Dropout(self.dropout, name="dropout1")(x, train)
        return layers.Dense(self.outputs, name="logits")(x, train)

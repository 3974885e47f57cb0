"""Pure functions of logits. A new loss: a function here and a line in `LOSSES`."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def cross_entropy(logits: jax.Array, labels: jax.Array, config: ConfigDict) -> jax.Array:
    """Mean softmax cross-entropy with label smoothing (Szegedy et al., 2016, arXiv:1512.00567, section 7).

    Args:
      logits: `[batch, classes]`; labels: int32 `[batch]`.
      config: label_smoothing, the part of the target that is spread evenly over all classes.

    Returns:
      Nats, `[]`.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), config.label_smoothing)
    return jnp.mean(optax.safe_softmax_cross_entropy(logits, targets))


LOSSES = {"cross_entropy": cross_entropy}

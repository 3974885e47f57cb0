"""Pure functions of outputs. A new loss: a function here, and a line in its task's `LOSSES` or `SOFT_LOSSES`.

Hard losses compare outputs with targets and skip images that have none: label -1, or NaN among numbers. Soft losses
compare a student's outputs with a teacher's, to which no gradient flows; they are given image by image, for the caller
to average.
"""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

_VARIANCE_FLOOR = 1e-12  # of `standardise`, far below any real logits' variance: equal logits become 0, not NaN


def cross_entropy(
    logits: jax.Array, labels: jax.Array, config: ConfigDict, class_weights: jax.Array | None = None
) -> jax.Array:
    """Mean softmax cross-entropy with label smoothing (Szegedy et al., 2016, arXiv:1512.00567, section 7).

    Args:
      logits: `[batch, classes]`; labels: int32 `[batch]`, -1 for images without a label, which do not count.
      config: label_smoothing, the part of the target that is spread evenly over all classes.
      class_weights: float32 `[classes]`, what an image of each class counts; None: all count 1.

    Returns:
      Nats, `[]`, averaged over the labelled images; 0 where there are none.
    """
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), config.label_smoothing)
    each, labelled = optax.safe_softmax_cross_entropy(logits, targets), labels >= 0
    if class_weights is not None:
        each = each * class_weights[labels]
    return jnp.sum(jnp.where(labelled, each, 0)) / jnp.maximum(jnp.sum(labelled), 1)


def mse(outputs: jax.Array, targets: jax.Array, config: ConfigDict) -> jax.Array:
    """Mean squared error over all numbers `[batch, k]` whose target is not NaN, `[]`; 0 where there are none."""
    del config
    return _mean_known(jnp.square, outputs, targets)


def huber(outputs: jax.Array, targets: jax.Array, config: ConfigDict) -> jax.Array:
    """Mean Huber loss (1964): half the square of errors up to config.huber_delta, linear beyond; otherwise as `mse`."""
    return _mean_known(lambda error: optax.losses.huber_loss(error, delta=config.huber_delta), outputs, targets)


def _mean_known(of_error, outputs, targets):
    known = ~jnp.isnan(targets)
    each = of_error(jnp.where(known, outputs - targets, 0))
    return jnp.sum(each) / jnp.maximum(jnp.sum(known), 1)


def soft_mse(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Squared distance of a student's numbers `[batch, k]` from a teacher's, the mean over k, `[batch]`."""
    return jnp.mean(jnp.square(student - jax.lax.stop_gradient(teacher)), -1)


def kd(student_logits: jax.Array, teacher_logits: jax.Array, temperature: float) -> jax.Array:
    """Distillation of knowledge (Hinton et al., 2015, arXiv:1503.02531, section 2): T^2 KL(teacher || student).

    Both distributions are softmax(logits / T). T^2 keeps the gradients' size: for large T the loss goes to half the
    squared distance of the centred logits, divided by the number of classes, whatever T.

    Args:
      student_logits, teacher_logits: `[batch, classes]`.
      temperature: T, above 0.

    Returns:
      Nats times T^2, `[batch]`.
    """
    student, teacher = _log_probabilities(student_logits, teacher_logits, temperature)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(student, teacher)


def standardised_kd(student_logits: jax.Array, teacher_logits: jax.Array, temperature: float) -> jax.Array:
    """`kd` of standardised logits (Sun et al., 2024, arXiv:2403.01427, algorithm 1), `[batch]`.

    The student need only match the order and the relative distances of the teacher's logits: neither an offset nor a
    positive factor of either changes the loss. T divides what is standardised.
    """
    return kd(standardise(student_logits), standardise(teacher_logits), temperature)


def standardise(logits: jax.Array) -> jax.Array:
    """Each row less its mean and divided by its (biased) standard deviation; a row of equal values becomes 0."""
    centred = logits - logits.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + _VARIANCE_FLOOR)


def dkd(
    student_logits: jax.Array,
    teacher_logits: jax.Array,
    labels: jax.Array,
    temperature: float,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> jax.Array:
    """Decoupled distillation (Zhao et al., 2022, arXiv:2203.08679, equation 7): T^2 (alpha TCKD + beta NCKD).

    TCKD is KL of (label's class, all others); NCKD is KL among the others, given that it is one of them. `kd` is the
    same with alpha = 1 and beta = 1 - the teacher's probability of the label: a sure teacher silences what it knows of
    the other classes there.

    Args:
      student_logits, teacher_logits: `[batch, classes]`.
      labels: int32 `[batch]`; an image with the label -1 has no two parts, so it gets `kd`.
      temperature: T, above 0; alpha, beta: weights of the parts, the defaults those of the paper's CIFAR experiments.

    Returns:
      Nats times T^2, `[batch]`.
    """
    logs = _log_probabilities(student_logits, teacher_logits, temperature)
    label = jax.nn.one_hot(labels, student_logits.shape[-1], dtype=bool)
    binary, others = zip(*(_decouple(log, label) for log in logs), strict=True)
    tckd = optax.losses.kl_divergence_with_log_targets(*binary)
    nckd = jnp.sum(jnp.where(label, 0, jnp.exp(others[1]) * (others[1] - others[0])), -1)
    decoupled = temperature**2 * (alpha * tckd + beta * nckd)
    return jnp.where(labels < 0, kd(student_logits, teacher_logits, temperature), decoupled)


def _decouple(log, label):
    """Logarithms of (label's probability, the others' sum) `[batch, 2]`, and of each other's part of it."""
    of_label = jnp.sum(jnp.where(label, log, 0), -1)
    of_others = jax.nn.logsumexp(log, -1, where=~label)
    # Not of the label, whose exp could overflow: a `where` behind it would hide that, but not from the gradient.
    return jnp.stack([of_label, of_others], -1), jnp.where(label, 0, log - of_others[:, None])


def _log_probabilities(student_logits, teacher_logits, temperature):
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    return (jax.nn.log_softmax(logits / temperature) for logits in (student_logits, teacher_logits))

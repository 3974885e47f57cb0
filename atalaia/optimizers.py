"""Optimisers and learning-rate schedules by name, from optax."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from optax import contrib

from atalaia.errors import UserError


def _sgd(learning_rate, config):
    l2 = optax.add_decayed_weights(config.weight_decay, mask=kernels)
    return optax.chain(l2, optax.sgd(learning_rate, config.momentum, nesterov=True))


def _adam(learning_rate, config):
    l2 = optax.add_decayed_weights(config.weight_decay, mask=kernels)
    return optax.chain(l2, optax.adam(learning_rate, b1=config.momentum))


def _adamw(learning_rate, config):
    return optax.adamw(learning_rate, b1=config.momentum, weight_decay=config.weight_decay, mask=kernels)


def _muon(learning_rate, config):
    """Muon (K. Jordan, 2024) for kernels of convolutions, each a matrix (patch, output channels); SGD for the rest.

    Muon's weight decay is apart from the gradient; divided by 1 - momentum it is as strong as that of SGD. A dense
    layer's matrix is too large to orthogonalise at every step, one column of a depthwise kernel has nothing to.
    """
    matrix = contrib.MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    muon = contrib.muon(
        learning_rate,
        beta=config.momentum,
        weight_decay=config.weight_decay / (1 - config.momentum),
        muon_weight_dimension_numbers=lambda params: jax.tree.map(lambda _: matrix, params),
    )

    def labels(params):
        return jax.tree.map(lambda p: "muon" if p.ndim == 4 and p.shape[2] > 1 else "sgd", params)

    return optax.partition({"muon": muon, "sgd": _sgd(learning_rate, config)}, labels)


# Weight decay is a part of the gradient in "sgd" and "adam", and apart from it in "adamw" (arXiv:1711.05101).
OPTIMIZERS = {"sgd": _sgd, "adam": _adam, "adamw": _adamw, "muon": _muon}

SCHEDULES = {
    "constant": lambda peak, steps: optax.constant_schedule(peak),
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, max(steps, 1)),
}


def kernels(params: dict) -> dict:
    """True for the parameters that weight decay acts on: neither biases nor BatchNorm's."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def learning_rate(config: ConfigDict, steps: int) -> optax.Schedule:
    """The stage's learning rate by step: linear warm-up from 0 at the first, then its schedule over the rest."""
    warmup = round(config.warmup * steps)
    main = SCHEDULES[config.lr_schedule](config.learning_rate, steps - warmup)
    return optax.join_schedules([optax.linear_schedule(0.0, config.learning_rate, warmup), main], [warmup])


def create(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """The optimiser of a stage (fields of config.dense) that lasts `steps` steps."""
    return OPTIMIZERS[config.optimizer](learning_rate(config, steps), config)


class AverageState(NamedTuple):
    """count: steps done, int32 `[]`; average: of the parameters; inner: the wrapped optimiser's state."""

    count: jax.Array  # type: ignore[assignment]  # as optax's states name it, which hides tuple.count
    average: dict
    inner: optax.OptState


def averaged(inner: optax.GradientTransformation, decay: float) -> optax.GradientTransformationExtraArgs:
    """`inner` with a moving average of the parameters in its state (Polyak and Juditsky, 1992).

    After each step average = d average + (1 - d) parameters, where d is `decay`, but in the first steps less, so that
    those a stage begins with are forgotten: at most (1 + step) / (10 + step).
    """
    inner = optax.with_extra_args_support(inner)

    def init(params):
        copies = jax.tree.map(lambda x: jnp.array(x, copy=True), params)  # a step gives both up
        return AverageState(jnp.zeros([], jnp.int32), copies, inner.init(params))

    def update(grads, state, params=None, **extra: Any):
        if params is None:
            raise ValueError("averaged needs the parameters: call update(grads, state, params)")
        updates, inner_state = inner.update(grads, state.inner, params, **extra)
        keep = jnp.minimum(decay, (1 + state.count) / (10 + state.count))
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda old, now: keep * old + (1 - keep) * now, state.average, new)
        return updates, AverageState(state.count + 1, average, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def trained_paths(params: dict, pattern: str) -> list[str]:
    """Paths of the parameters that are trained: those that `pattern` matches, all of them for ""."""
    return [path for path in flatten_dict(params, sep="/") if re.search(pattern, path)]


def only(inner: optax.GradientTransformation, params: dict, pattern: str) -> optax.GradientTransformation:
    """`inner` for the parameters whose path `pattern` matches; the others never change and need no optimiser state.

    In a jitted step XLA drops the gradients of the others.

    Raises:
      UserError: it matches none; the parameters are listed.
    """
    paths, trained = list(flatten_dict(params, sep="/")), trained_paths(params, pattern)
    if not trained:
        raise UserError(f"trainable: {pattern!r} matches no parameter; there are {', '.join(paths)}")
    labels = {path: "trained" if path in trained else "frozen" for path in paths}
    return optax.partition({"trained": inner, "frozen": optax.set_to_zero()}, unflatten_dict(labels, sep="/"))

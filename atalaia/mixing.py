"""Pairs of images mixed into one, and the loss of both their targets: mixup and CutMix.

A batch is mixed with itself in reverse. What an image's loss is made of says an `Aim`: its own targets count `part`,
those of its partner the rest. That is the mixed label of the papers where the loss is linear in the label, as
cross-entropy is, and works for any other targets too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from atalaia import augment
from atalaia.errors import UserError

TASKS = ("classify", "regress")  # boxes of two pictures in one are another task's affair


class Aim(NamedTuple):
    """Targets of a batch, the teacher's outputs for it or None, and what they count in the loss, float32 `[]`."""

    part: jax.Array | float
    targets: Any
    taught: Any


def validate(config: ConfigDict) -> None:
    """Checks the fields of config.mix.

    Raises:
      UserError: names the field, what is wrong and what is allowed.
    """
    fields = config.mix
    for name in ("mixup", "cutmix"):
        if not fields[name] >= 0:
            raise UserError(f"mix.{name} must be at least 0, not {fields[name]}")
    if fields.mixup and fields.cutmix:
        raise UserError("mix.mixup and mix.cutmix: give one of them, and 0 for the other")
    if not 0 <= fields.ramp <= 1:
        raise UserError(f"mix.ramp is a part of the stage, from 0 to 1, not {fields.ramp}")
    if (fields.mixup or fields.cutmix) and config.task not in TASKS:
        raise UserError(f"mix: task {config.task} cannot mix images: set mix.mixup and mix.cutmix to 0")


def make(config: ConfigDict, first: int, end: int) -> Callable | None:
    """`mix(key, step, images)` to mixed images and the part of each image in its own place, `[]`; None where none is.

    Args:
      config: fields of config.mix.
      first, end: steps of the stage, of whose part `ramp` the mixing grows from none to all of it.
    """
    if not (config.mixup or config.cutmix):
        return None

    def mix(key, step, images):
        of_part, of_place = jax.random.split(key)
        strength = jnp.clip((step - first) / max(config.ramp * (end - first), 1.0), 0.0, 1.0) if config.ramp else 1.0
        alpha = config.mixup or config.cutmix
        part = 1 - strength * (1 - jax.random.beta(of_part, alpha, alpha))
        return mixup(images, part) if config.mixup else cutmix(of_place, images, part)

    return mix


def mixup(images: jax.Array, part: jax.Array) -> tuple[jax.Array, jax.Array]:
    """part * image + (1 - part) * partner (Zhang et al., 2018, arXiv:1710.09412), and the part."""
    return part * images + (1 - part) * images[::-1], part


def cutmix(key: jax.Array, images: jax.Array, part: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A box of the partner, of about 1 - part of the area, over each image (Yun et al., 2019, arXiv:1905.04899).

    The box lies around a random pixel and is cut off at the border: the part that is left is returned.
    """
    height, width = images.shape[1:3]
    tall, wide = (jnp.round(jnp.sqrt(1 - part) * n).astype(jnp.int32) for n in (height, width))
    row, column = (jax.random.randint(k, (), 0, n) for k, n in zip(jax.random.split(key), (height, width), strict=True))
    inside = augment.within(height, row, tall)[:, None] & augment.within(width, column, wide)[None]
    return jnp.where(inside[None, :, :, None], images[::-1], images), 1 - inside.mean()


def aims(part: jax.Array, targets: Any, taught: Any, reverse_taught: bool) -> list[Aim]:
    """What a mixed batch is judged by.

    Args:
      part: of each image in its own place; targets: of the images.
      taught: the teacher's outputs, of the mixed images or, with `reverse_taught`, of each image before that.
    """
    partner = jax.tree.map(lambda x: x[::-1], (targets, taught if reverse_taught else None))
    return [Aim(part, targets, taught), Aim(1 - part, partner[0], partner[1] if reverse_taught else taught)]

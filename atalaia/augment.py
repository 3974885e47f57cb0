"""Random changes of training images: pure functions that run on the device, inside the jitted step.

All take a key and float32 images [batch, height, width, channels] in [0, 1], draw anew for each image and return the
same shape and range.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from ml_collections import ConfigDict

from atalaia.errors import UserError


def flip(key: Array, images: Array) -> Array:
    """Mirrors each image left to right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key, 0.5, _one_each(images)), images[:, :, ::-1], images)


def pad_crop(key: Array, images: Array, pad: int) -> Array:
    """Frames each image with `pad` black pixels and crops the old size at a random place: a shift by up to `pad`."""
    batch, *shape = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(key, (batch, 2), 0, 2 * pad + 1)
    # Measured on 2 CPU cores, 128 images of 32x32x3: 0.3 ms so, 0.4 with take_along_axis, 1.5 as two products with
    # one-hot matrices, 5 as a chain of selects. It copies, so it is exact where a GPU's products would round.
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), shape))(padded, corners)


def cutout(key: Array, images: Array, size: int) -> Array:
    """Blackens a square of `size` pixels around a random pixel, cut off at the border (arXiv:1708.04552)."""
    batch, height, width, _ = images.shape
    centres = jax.random.randint(key, (2, batch, 1), 0, jnp.array([height, width])[:, None, None])
    first = centres - size // 2
    rows = (jnp.arange(height) >= first[0]) & (jnp.arange(height) < first[0] + size)
    columns = (jnp.arange(width) >= first[1]) & (jnp.arange(width) < first[1] + size)
    return jnp.where(rows[:, :, None, None] & columns[:, None, :, None], 0.0, images)


def brightness(key: Array, images: Array, delta: float) -> Array:
    """Adds one number from [-delta, delta) to each image, then clips."""
    return jnp.clip(images + _uniform(key, images, delta), 0.0, 1.0)


def contrast(key: Array, images: Array, delta: float) -> Array:
    """Stretches each image around its mean by a factor from [1 - delta, 1 + delta), then clips."""
    mean = images.mean((1, 2, 3), keepdims=True)
    return jnp.clip(mean + (images - mean) * (1.0 + _uniform(key, images, delta)), 0.0, 1.0)


def noise(key: Array, images: Array, stddev: float) -> Array:
    """Adds Gaussian noise to each value, then clips."""
    return jnp.clip(images + stddev * jax.random.normal(key, images.shape, images.dtype), 0.0, 1.0)


# An operation's place is its random stream: append only, so that old runs can be repeated.
OPERATIONS: tuple[tuple[str, Callable[..., Array]], ...] = (
    ("flip", lambda key, images, _: flip(key, images)),
    ("pad_crop", pad_crop),
    ("cutout", cutout),
    ("brightness", brightness),
    ("contrast", contrast),
    ("noise", noise),
)


def augment(key: Array, images: Array, config: ConfigDict) -> Array:
    """Applies, in the order of `OPERATIONS`, those whose field in `config` is neither False nor 0.

    Switching one on or off leaves the random draws of the others as they were.

    Raises:
      UserError: a field is negative.
    """
    for index, (name, operation) in enumerate(OPERATIONS):
        if config[name] < 0:
            raise UserError(f"augmentation {name} = {config[name]} is negative: use 0 to switch it off")
        if config[name]:
            images = operation(jax.random.fold_in(key, index), images, config[name])
    return images


def _one_each(images: Array) -> tuple[int, ...]:
    return (images.shape[0], 1, 1, 1)


def _uniform(key: Array, images: Array, delta: float) -> Array:
    return jax.random.uniform(key, _one_each(images), images.dtype, -delta, delta)

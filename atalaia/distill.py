"""Distillation: a teacher's outputs guide a student, or the dense network guides its compressed self.

A stage with a teacher minimises alpha * hard + (1 - alpha) * soft (the task's SOFT_LOSSES, `config.distillation`).
Teacher and student see the same augmented image. With `views` = 0 the teacher runs in every step. Otherwise each image
has so many fixed augmented views, one an epoch in turn, whose outputs are kept on the disk: a costly teacher then runs
once an image and view, whatever the number of epochs, students and trials.
"""

import hashlib
import json
import math
import os
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from atalaia import augment, checkpoint, data
from atalaia.errors import UserError
from atalaia.files import locked, write_json
from atalaia.progress import Progress

SELF = "self"  # the teacher that is this run's own network, as its first stage leaves it
BATCH = 128  # images of one call that fills a cache
_FLUSH_SECONDS = 10.0  # what a kill can lose of a cache


def validate(config: ConfigDict) -> None:
    """Checks the fields of config.distillation.

    Raises:
      UserError: names the field, what is wrong and what is allowed.
    """
    if not 0 <= config.alpha <= 1:
        raise UserError(f"distillation.alpha is the hard labels' part and must be in [0, 1], not {config.alpha}")
    if not 0 < config.temperature < math.inf:
        raise UserError(f"distillation.temperature must be above 0, not {config.temperature}")
    for field in ("dkd_alpha", "dkd_beta", "views"):
        if not config[field] >= 0:
            raise UserError(f"distillation.{field} must be at least 0, not {config[field]}")


def names(teacher: str | None) -> tuple[str, ...]:
    """The teachers that a stage's field `teacher` names, with ";" between them; none: ()."""
    return tuple(name.strip() for name in teacher.split(";")) if teacher else ()


def validate_teachers(field: str, teacher: str | None) -> None:
    """Checks the teachers that a field names.

    Raises:
      UserError: one of them has no name, or two have the same.
    """
    found = names(teacher)
    if "" in found:
        raise UserError(f'{field} = {teacher!r}: a folder is missing; several have ";" between them')
    twice = next((name for name in found if found.count(name) > 1), None)
    if twice:
        raise UserError(f"{field} names {twice} twice: name each teacher once")


def mix(hard: jax.Array, soft: jax.Array, config: ConfigDict) -> jax.Array:
    """alpha * hard + (1 - alpha) * soft (Hinton et al., 2015, arXiv:1503.02531), `[]`.

    Args:
      hard: the loss by targets, `[]`; soft: that by the teacher, `[]`; config: fields of config.distillation.
    """
    return config.alpha * hard + (1 - config.alpha) * soft


def fixed_view(
    images: jax.Array, index: jax.Array | np.ndarray, view: jax.Array | int, config: ConfigDict
) -> tuple[jax.Array, jax.Array]:
    """The augmented view number `view` of each image: it depends on nothing else, neither the batch nor the seed.

    Args:
      images: float32 `[batch, height, width, channels]` in [0, 1].
      index: int32 `[batch]`, the images' places in the training split.
      view: int32 `[]`.
      config: fields of config.augment.

    Returns:
      Images, and the moves of their pixels (augment.py).
    """
    key = jax.random.fold_in(jax.random.PRNGKey(0), view)

    def one(index, image):
        found = augment.augment(jax.random.fold_in(key, index), image[None], config)
        return jax.tree.map(lambda x: x[0], found)

    return jax.vmap(one)(index, images)


class Cache(NamedTuple):
    """A teacher's outputs for fixed views of each image, on the disk; `open_cache` makes one.

    All heads of an image are one row of float32 values there.
    """

    folder: Path
    images: np.ndarray  # uint8 [images, height, width, channels]
    heads: Any  # the outputs of one image: a pytree of jax.ShapeDtypeStruct without the batch
    answer: Callable  # (images, index, view), of a batch, to outputs

    def ready(self, number: int) -> bool:
        """Whether a view's outputs are all there."""
        return self._state(number)[0] == len(self.images)

    def view(self, number: int, stop: Callable[[], bool] = lambda: False) -> Any:
        """Outputs for a view, `[images, ...]` a head; computes what its file does not hold yet.

        Several processes may ask: one computes, the others wait, and then read.

        Raises:
          KeyboardInterrupt: `stop()` became true; what is done is kept.
          UserError: the file is damaged.
        """
        waiting = f"another process uses the teacher's outputs in {self.folder}: waiting for it"
        with locked(self.folder / f"view{number}.lock", lambda: print(waiting, flush=True), stop):
            values, (done, kept) = self._open(number), self._state(number)
            if zlib.crc32(values[:done]) != kept:
                self._refuse()
            self._fill(number, values, done, stop)
        return self._heads(np.array(values))

    def _heads(self, values):
        """Rows of values as outputs."""
        heads, tree = jax.tree.flatten(self.heads)
        parts = np.split(values, np.cumsum([math.prod(head.shape) for head in heads])[:-1], 1)
        shaped = [part.reshape(-1, *head.shape) for part, head in zip(parts, heads, strict=True)]
        return jax.tree.unflatten(tree, shaped)

    def _state(self, number):
        """How many images' outputs a view's file holds, and their CRC-32."""
        path = self.folder / f"view{number}.json"
        try:
            found = json.loads(path.read_text()) if path.exists() else dict(images=0, crc32=0)
            return int(found["images"]), int(found["crc32"])
        except (ValueError, KeyError, TypeError):
            self._refuse()

    def _open(self, number):
        path, values = self.folder / f"view{number}.npy", sum(math.prod(h.shape) for h in jax.tree.leaves(self.heads))
        shape = (len(self.images), values)
        if not path.exists():
            part = path.with_name(f".{path.name}.part")
            kept = np.lib.format.open_memmap(part, "w+", np.float32, shape)
            with part.open("r+b") as file:  # a full disk is an error now, not a signal at the first write
                os.posix_fallocate(file.fileno(), 0, kept.offset + kept.nbytes)
            part.replace(path)
        try:
            kept = np.load(path, mmap_mode="r")  # a file cut short would grow if opened to write
        except (ValueError, EOFError):
            self._refuse()
        if (kept.shape, kept.dtype) != (shape, np.float32):
            self._refuse()
        return np.load(path, mmap_mode="r+")

    def _refuse(self):
        raise UserError(f"the teacher's outputs in {self.folder} are damaged: delete that folder, they are made again")

    def _fill(self, number, values, done, stop):
        n = len(self.images)
        if done >= n:
            return

        def keep(done):
            values.flush()
            write_json(self.folder / f"view{number}.json", dict(images=done, crc32=zlib.crc32(values[:done])))

        saved = time.monotonic()
        with Progress(f"teacher, view {number + 1}", n, "images", initial=done) as bar:
            for start in range(done, n, BATCH):
                index = np.minimum(np.arange(start, start + BATCH), n - 1).astype(np.int32)  # one shape for all
                end = min(start + BATCH, n)
                heads = jax.tree.leaves(jax.device_get(self.answer(self.images[index], index, number)))
                values[start:end] = np.concatenate([h.reshape(BATCH, -1) for h in heads], 1)[: end - start]
                bar.update(end - start)
                if end == n or stop() or time.monotonic() - saved > _FLUSH_SECONDS:
                    keep(end)
                    saved = time.monotonic()
                if stop():
                    raise KeyboardInterrupt


def open_cache(
    cache: Path,
    network: str,
    teacher: Callable,
    variables: Any,
    images: np.ndarray,
    augmentation: ConfigDict,
) -> Cache:
    """The cache of a teacher's outputs on a data set under an augmentation, in `cache`/teachers.

    Its folder is named by the SHA-256 of all of them, so that nothing else is ever read in its place.

    Args:
      cache: the folder of data sets.
      network: the teacher's name in models.MODELS.
      teacher, variables: its inference, `teacher(variables, images)`, and what it takes.
      images: uint8 `[n, height, width, channels]`.
      augmentation: fields of config.augment.

    Raises:
      UserError: the folder holds a cache of something else.
    """
    some = np.arange(min(len(images), 4), dtype=np.int32)
    meta = dict(
        network=network,
        teacher=checkpoint.digest(variables),
        data=checkpoint.digest(images),
        augmentation=json.loads(augmentation.to_json()),
        # What the augmentation does: its code and jax's random numbers may change under the same fields.
        augmented=checkpoint.digest(fixed_view(data.to_float(images[some]), some, 1, augmentation)[0]),
    )
    name = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(cache) / "teachers" / name
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, meta)

    @jax.jit
    def answer(variables, images, index, view):
        return teacher(variables, fixed_view(data.to_float(images), index, view, augmentation)[0])

    one = jax.eval_shape(answer, variables, images[some[:1]], some[:1], 0)
    heads = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), one)
    return Cache(folder, images, heads, partial(answer, jax.device_put(variables)))


def _claim(folder, meta):
    """Writes what a cache belongs to, or checks it."""
    path = folder / "cache.json"
    if not path.exists():
        write_json(path, meta)
        return
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = {}
    other = [k for k, v in meta.items() if found.get(k) != v]
    if other:
        raise UserError(f"{folder} holds outputs of another {' and '.join(other)}: delete that folder")

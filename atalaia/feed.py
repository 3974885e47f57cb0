"""Where a step's images come from: all of them lie on the devices, or they are read from the disk a little ahead."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from atalaia.datasets.disk import Rows
from atalaia.datasets.source import Split
from atalaia.processes import on_devices, over_devices

AHEAD = 2  # batches that are read while the devices compute another


class Batch(NamedTuple):
    """As a data.Split for a step, but with that step's images alone."""

    images: jax.Array  # uint8 [batch, height, width, channels], shared out to the devices
    targets: Any  # of all images, [n, ...]


class Feed(NamedTuple):
    """targets: on the devices; of: (order, start) to what a step takes: a Split, or the Batch from `start` on."""

    targets: Any
    of: Callable[[jax.Array, int], Split | Batch]


def make_feed(split: Split, batch_size: int) -> Feed:
    """The feed of a stage's images: of datasets.disk.Rows from the disk, of arrays by the devices' memory."""
    if isinstance(split.images, Rows):
        targets = on_devices(split.targets)
        return Feed(targets, _FromDisk(split.images, targets, batch_size))
    train = on_devices(split)
    return Feed(train.targets, lambda order, start: train)


class _FromDisk:
    """Reads the batches of an epoch in its order by a thread; each process reads what its devices take of a batch."""

    def __init__(self, images: Rows, targets: Any, size: int):
        self._images, self._targets, self._size = images, targets, size
        self._reader = ThreadPoolExecutor(1, "images")
        self._order: Any = None  # of the epoch, as it was given
        self._places = np.zeros(0, int)  # the same, in NumPy
        self._ahead: dict[int, Future] = {}  # by where the batch starts

    def __call__(self, order: jax.Array, start: int) -> Batch:
        if order is not self._order:
            self._order, self._places, self._ahead = order, np.asarray(order), {}
        last = len(self._places) - self._size
        for at in range(start, min(start + AHEAD * self._size, last) + 1, self._size):
            if at not in self._ahead:
                self._ahead[at] = self._reader.submit(self._read, self._places[at : at + self._size])
        return Batch(self._ahead.pop(start).result(), self._targets)

    def _read(self, places):
        shape = (len(places), *self._images.shape[1:])
        return jax.make_array_from_callback(shape, over_devices("batch"), lambda part: self._images[places[part[0]]])

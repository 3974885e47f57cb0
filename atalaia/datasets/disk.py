"""Images that stay on the disk, and whether they would fit into memory."""

import math
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atalaia.errors import UserError

COPIES = 2.4  # of the images while a run begins, as experiments/scaling.py measured it


class Rows:
    """Some images of an array on the disk, which are read when they are asked for.

    It has of an array what training needs: `rows[...]` of a number, a slice or places reads those; np.asarray(rows)
    reads all.
    """

    def __init__(self, images: np.ndarray, places: np.ndarray | None = None):
        self._images = images  # uint8 [n, height, width, channels]
        self._places = np.arange(len(images)) if places is None else places
        self.shape = (len(self._places), *images.shape[1:])
        self.dtype = images.dtype
        self.ndim = images.ndim
        self.nbytes = math.prod(self.shape) * images.dtype.itemsize

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, chosen: Any) -> np.ndarray:
        return np.array(self._images[self._places[chosen]])  # a copy also of a single image

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:]

    def where(self, chosen: np.ndarray) -> "Rows":
        """Those that `chosen`, bool [n] or places, says; reads nothing."""
        return Rows(self._images, self._places[chosen])


def on_disk(images: np.ndarray) -> bool:
    """Whether an array is a file that is read when it is used (np.memmap), or a view of one."""
    base: Any = images
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return False


def refuse_too_large(shape: Sequence[int]) -> None:
    """Does nothing where uint8 images [n, height, width, channels] fit into the memory that is free.

    Raises:
      UserError: they do not.
    """
    needed, free = COPIES * math.prod(shape), free_memory()
    if needed > free:
        height, width, channels = shape[1:]
        raise UserError(
            f"{shape[0]:,} images of {height}x{width}x{channels} need {needed / 2**30:.1f} GiB of memory, and "
            f"{free / 2**30:.1f} GiB are free: give --config.data.in_memory=False, which reads them from the disk as "
            "it trains, or a smaller data.size"
        )


def free_memory() -> int:
    """Bytes that this process can still take: of the machine, its container (cgroup v2) and its own limits (ulimit)."""
    own = _fields("/proc/self/status")
    left = [_fields("/proc/meminfo").get("MemAvailable", 2**60)]
    for limit, used in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY:
            left.append(most - own.get(used, 0))
    group = Path("/sys/fs/cgroup")
    try:
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        taken = int((group / "memory.current").read_text()) - int(kept["file"])  # the cache of files gives way
        left.append(int((group / "memory.max").read_text()) - taken)
    except (OSError, ValueError, KeyError):  # no such group, or no limit ("max")
        pass
    return max(0, min(left))


def _fields(path):
    """Bytes by name of a file of /proc; {} where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    parts = [line.replace(":", " ").split() for line in lines if line.endswith(" kB")]
    return {name: 1024 * int(value) for name, value, *_ in parts}


def create(path: Path, shape: Sequence[int]) -> np.memmap:
    """A new .npy of uint8 with its space on the disk taken, so that a full disk is an error now, not a signal later."""
    kept = np.lib.format.open_memmap(path, "w+", np.uint8, tuple(shape))
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, kept.offset + kept.nbytes)
    return kept

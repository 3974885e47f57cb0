"""Outputs for many images, computed in parts: each of several processes has one, and all get the whole.

Each part is a file, so that work that was stopped goes on after the parts that were done.
"""

import itertools
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from atalaia import processes
from atalaia.errors import UserError
from atalaia.files import write_arrays


class Found(NamedTuple):
    """Outputs `[n, ...]` in the order of their images, and what they took."""

    arrays: list[np.ndarray]
    seconds: float  # of the slowest process
    peak_bytes: int  # of all processes together


def bounds(images: int, count: int, unit: int = 1) -> list[tuple[int, int]]:
    """First image and end of each of `count` parts, or of fewer where there is too little: no part is empty.

    Parts begin at multiples of `unit`. Where images are computed in batches of so many, the batches are those of one
    process, and so is the rounding in them.
    """
    units = -(-images // unit)
    ends = [min(images, unit * (units * number // count)) for number in range(count + 1)]
    return [(first, end) for first, end in itertools.pairwise(ends) if first < end]


def computed(
    name: str,
    compute: Callable[[np.ndarray], Found],
    images: np.ndarray,
    stem: Path,
    unit: int = 1,
    again: bool = False,
) -> Found:
    """What `compute` gives for all images; each process computes its part, and waits for the others.

    Args:
      name: of what computes, for people.
      compute: gives arrays `[n, ...]` for images `[n, ...]`, those of an image without a look at the others.
      images: `[n, height, width, channels]`, the same in all processes.
      stem: of the files of the parts, STEM_FIRST_END.npz, which `remove` takes away; all processes see it.
      unit: see `bounds`.
      again: compute what a stopped call has left too, since it may be of something else.

    Raises:
      UserError: another process's part is not there.
    """
    alone, own = jax.process_count() == 1, jax.process_index()
    parts = bounds(len(images), jax.process_count(), unit)
    paths = [stem.with_name(f"{stem.name}_{first}_{end}.npz") for first, end in parts]
    found = None
    if own < len(parts):
        first, end = parts[own]
        found = None if again else _kept(name, paths[own])
        if found is None:
            found = compute(images[first:end])
            if not (alone and again):
                _write(paths[own], found)
    if alone:
        assert found is not None, "there are images"
        return found
    processes.wait_for_all(f"part of {name}")
    return _joined([_read_of_another(path) for path in paths])


def remove(stem: Path) -> None:
    """Takes away the parts, however many processes computed them."""
    for path in stem.parent.glob(f"{stem.name}_*.npz"):
        path.unlink(missing_ok=True)


def _joined(parts: Sequence[Found]) -> Found:
    arrays = [np.concatenate(heads) for heads in zip(*(part.arrays for part in parts), strict=True)]
    return Found(arrays, max(part.seconds for part in parts), sum(part.peak_bytes for part in parts))


def _write(path, found):
    heads = {f"output{number}": head for number, head in enumerate(found.arrays)}
    write_arrays(path, heads | dict(seconds=np.asarray(found.seconds), peak_bytes=np.asarray(found.peak_bytes)))


def _read(path):
    with np.load(path) as kept:
        heads = sorted((name for name in kept.files if name.startswith("output")), key=lambda name: int(name[6:]))
        return Found([kept[name] for name in heads], float(kept["seconds"]), int(kept["peak_bytes"]))


def _kept(name, path):
    """What a call that was stopped has left; None where there is nothing whole."""
    try:
        found = _read(path)
        print(f"{name}: ran already, before the evaluation was stopped", flush=True)
        return found
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile):
        print(f"{path} is damaged: {name} runs again", flush=True)
        return None


def _read_of_another(path):
    try:
        return _read(path)
    except FileNotFoundError:
        raise UserError(
            f"another process's part is not in {path.parent}: give a --workdir on a file system that all machines share"
        ) from None

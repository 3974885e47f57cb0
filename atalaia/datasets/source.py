"""What a loader returns."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from atalaia.errors import UserError

TEST_FRACTION, TEST_SEED = 0.2, 20  # carved from data that come without a test set: the same images in every run
OFFICIAL = "official"  # of data.unlabelled: the images that come with the data set


class Split(NamedTuple):
    images: Any  # uint8 [n, height, width, channels], an array or disk.Rows
    targets: Any  # what is learned of each: a pytree of arrays [n, ...]; of classification int32 [n]


class Source(NamedTuple):
    """What a loader returns; without a test split one is carved from train."""

    train: Split
    test: Split | None
    names: tuple[str, ...]  # of what the outputs stand for: the classes, or the numbers
    unlabelled: np.ndarray | None = None  # OFFICIAL ones, where they are asked for
    groups: np.ndarray | None = None  # int [n] of train: images of one group are never in two splits; None: all may be
    fitted: bool = False  # whether images had many sizes, so that the loader has brought them to data.size already


def has_classes(targets: Any) -> bool:
    """Whether targets are classes, one integer for each image."""
    return isinstance(targets, np.ndarray) and targets.ndim == 1 and np.issubdtype(targets.dtype, np.integer)


def required(path: Path) -> Path:
    """The path of a file that a folder in the cache must hold.

    Raises:
      UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: put it there, or remove the folder to have it fetched again")
    return path

"""STL-10: 5,000 + 8,000 images of 96x96x3 in 10 classes, and 100,000 images without labels."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from atalaia import fetch
from atalaia.datasets.source import OFFICIAL, Source, Split, required
from atalaia.errors import UserError
from atalaia.files import locked

SHAPE = (96, 96, 3)
FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin", "class_names.txt")


def load(config: ConfigDict, cache: Path) -> Source:
    """5,000 + 8,000 images of 96x96x3; 100,000 unlabelled if asked for: the folder stl10_binary, else the archive."""
    folder = cache / "stl10_binary"
    if not folder.is_dir():
        archive = fetch.fetch("stl10_binary", cache)
        with locked(cache / "stl10_binary.lock"):
            if not folder.is_dir():  # another process may have been first
                _unpack(archive, folder)
    class_names = tuple(required(folder / "class_names.txt").read_text().split())
    train, test = (_split(folder, part, len(class_names)) for part in ("train", "test"))
    official = _images(required(folder / "unlabeled_X.bin")) if config.unlabelled == OFFICIAL else None
    return Source(train, test, class_names, official)


def _unpack(archive: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".stl10.", dir=folder.parent) as temporary:
        complete = Path(temporary) / folder.name
        complete.mkdir()
        for name, size, contents in fetch.members(archive):
            if name in FILES:
                print(f"unpack {name}: {size / 1e6:.0f} MB", file=sys.stderr)
                with open(complete / name, "wb") as file:
                    shutil.copyfileobj(contents, file)
        os.replace(complete, folder)


def _split(folder: Path, part: str, classes: int) -> Split:
    images = np.ascontiguousarray(_images(required(folder / f"{part}_X.bin")))
    path = required(folder / f"{part}_y.bin")
    labels = np.fromfile(path, np.uint8)
    if len(labels) != len(images):
        raise UserError(f"{path} has {len(labels)} labels for {len(images)} images: unpack the archive again")
    if labels.min() < 1 or labels.max() > classes:
        raise UserError(f"{path} has labels outside 1 to {classes}, the lines of class_names.txt: unpack it again")
    return Split(images, labels.astype(np.int32) - 1)


def _images(path: Path) -> np.ndarray:
    """A view [n, 96, 96, 3] of the file, which holds channels of columns; read only where it is indexed."""
    height, width, channels = SHAPE
    size = path.stat().st_size
    if not size or size % (height * width * channels):
        raise UserError(f"{path} is cut off: {size} bytes are not whole images of 27648; unpack the archive again")
    return np.memmap(path, np.uint8, "r").reshape(-1, channels, width, height).transpose(0, 3, 2, 1)

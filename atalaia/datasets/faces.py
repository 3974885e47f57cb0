"""Faces in pictures, made of photos that package registries hold: what a small face detector can be trained on.

12,000 pictures to learn from and 1,200 to test, of data.size (120x160 by default), with targets as datasets/boxes.py
says. Photos are labelled by CenterFace (face_photos.py), and half of the faces get a drawn medical mask.
"""

import hashlib
import inspect
import sys
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from atalaia import files
from atalaia.datasets import boxes, cifar10, face_masks, face_photos, face_scenes, pictures
from atalaia.datasets.face_photos import SHARES
from atalaia.datasets.source import Source, Split
from atalaia.progress import Progress

SIZE = (120, 160)  # height and width where data.size is 0
PICTURES = 1200  # of each share
NAMES = ("face",)


def load(config: ConfigDict, cache: Path) -> Source:
    """The pictures, made once for each size and kept; no person and no photo is in two groups, or in train and test.

    Raises:
      UserError: a download fails, or the extra "label" is not installed.
    """
    size = pictures.size_of(config) or SIZE
    photos = face_photos.photos(cache)
    path = cache / "faces" / f"made-{size[0]}x{size[1]}{'-grey' * config.grey}-{_recipe(cache)}.npz"
    made = _read(path) or _make(photos, size, config.grey, cache, path)
    share = np.repeat(np.arange(SHARES), PICTURES)
    train, test = (
        Split(made["images"][of], dict(boxes=made["boxes"][of], classes=made["classes"][of]))
        for of in (np.s_[:-PICTURES], np.s_[-PICTURES:])
    )
    return Source(train, test, NAMES, groups=share[:-PICTURES])


def _recipe(cache: Path) -> str:
    """What the pictures depend on besides their size, as a short hash: our code, the labels and how many there are."""
    sources = [inspect.getsource(module).encode() for module in (face_scenes, face_masks, face_photos)]
    labels = [(cache / "faces" / f"{name}.json").read_bytes() for name in face_photos.ALBUMS]
    return hashlib.sha256(b"\0".join([*sources, *labels, str(PICTURES).encode()])).hexdigest()[:12]


def _read(path: Path) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:  # numpy checks the CRCs as it reads
            return {key: arrays[key] for key in ("images", "boxes", "classes")}
    except Exception as error:  # a damaged zip raises nearly anything, by the place of the damage
        print(f"{path} is damaged ({error}): making the pictures again", file=sys.stderr)
        return None


def _make(photos, size, grey, cache, path):
    """Makes all pictures, and removes those that an older recipe made."""
    tiles = cifar10.load(None, cache).train.images
    images = np.empty((SHARES * PICTURES, *size, 1 if grey else 3), np.uint8)
    rows = []
    with Progress(f"make {len(images)} pictures with faces", len(images), "pictures") as progress:
        for number in range(SHARES):
            share = face_scenes.share_of([photo for photo in photos if photo.share == number], tiles[number::SHARES])
            for _ in range(PICTURES):
                pixels, *found = face_scenes.make(share, size, seed=len(rows))
                pixels = np.asarray(Image.fromarray(pixels).convert("L"))[..., None] if grey else pixels
                images[len(rows)] = pixels
                rows.append(found)
                progress.update()
    made = dict(images=images) | boxes.padded(rows)
    files.write_arrays(path, made)
    for other in path.parent.glob(path.name.rpartition("-")[0] + "-*.npz"):
        if other != path and other.stem.count("-") == path.stem.count("-"):
            other.unlink()
    return made

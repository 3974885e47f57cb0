"""Faces in pictures, made of photos that package registries hold: what a small face detector can be trained on.

12,000 pictures to learn from and 1,200 to test, of data.size (120x160 by default), with targets as datasets/boxes.py
says. Photos are labelled by CenterFace (face_photos.py), and half of the faces without a mask get a drawn one.
"""

import hashlib
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from atalaia import files
from atalaia.datasets import boxes, cifar10, face_masks, face_photos, face_scenes, pictures
from atalaia.datasets.face_photos import SHARES
from atalaia.datasets.source import Source, Split
from atalaia.progress import Progress

SIZE = (120, 160)  # height and width where data.size is 0
PICTURES = 1200  # of each share
NAMES = ("face",)


def load(config: ConfigDict, cache: Path) -> Source:
    """The pictures, made once for each size and kept; no photo is in two groups, or in train and test.

    Nor is a person, as far as photos' names tell who is on them.

    Raises:
      UserError: a download fails, or the extra "label" is not installed.
    """
    return _load(config, cache, face_photos.ALBUMS)


def load_masked(config: ConfigDict, cache: Path) -> Source:
    """The same, made of photos from the web too; `load` in all else.

    3,426 are of one person each, 44 % of them with a mask, 1,925 of groups, streets and the news, 976 of things. More
    than half of the pictures are such a photo as it was taken. The series `augmented_image` shows others again, so that
    training and test share some of them: judge by photos of your own.
    """
    return _load(config, cache, face_photos.MORE_ALBUMS)


def _load(config, cache, albums):
    size = pictures.size_of(config) or SIZE
    photos = face_photos.photos(cache, albums)
    kind = "made" if albums is face_photos.ALBUMS else "masked"
    path = cache / "faces" / f"{kind}-{size[0]}x{size[1]}-{_recipe(cache, albums)}.npz"
    made = _read(path) or _make(photos, size, cache, path)
    images = grey(made["images"]) if config.grey else made["images"]
    share = np.repeat(np.arange(SHARES), PICTURES)
    train, test = (
        Split(images[of], dict(boxes=made["boxes"][of], classes=made["classes"][of]))
        for of in (np.s_[:-PICTURES], np.s_[-PICTURES:])
    )
    return Source(train, test, NAMES, groups=share[:-PICTURES])


def grey(images: np.ndarray) -> np.ndarray:
    """uint8 [n, height, width, 3] to [n, height, width, 1], as Pillow's convert("L") does it."""
    r, g, b = np.moveaxis(images, -1, 0)
    found = np.empty(images.shape[:3], np.uint8)
    for i in range(len(images)):  # one by one: the sums need four times the memory of an image
        found[i] = (r[i] * np.uint32(19595) + g[i] * np.uint32(38470) + b[i] * np.uint32(7471) + (1 << 15)) >> 16
    return found[..., None]


def _recipe(cache: Path, albums: Mapping[str, face_photos.Album]) -> str:
    """What the pictures depend on besides their size, as a short hash: our code, the labels and how many there are."""
    sources = [inspect.getsource(module).encode() for module in (face_scenes, face_masks, face_photos)]
    labels = [(cache / "faces" / f"{name}.json").read_bytes() for name in albums]
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


def _make(photos, size, cache, path):
    """Makes all pictures, and removes those that an older recipe made."""
    tiles = cifar10.load(None, cache).train.images
    images = np.empty((SHARES * PICTURES, *size, 3), np.uint8)
    rows = []
    with Progress(f"make {len(images)} pictures with faces", len(images), "pictures") as progress:
        for number in range(SHARES):
            share = face_scenes.share_of([photo for photo in photos if photo.share == number], tiles[number::SHARES])
            for _ in range(PICTURES):
                pixels, *found = face_scenes.make(share, size, seed=len(rows))
                images[len(rows)] = pixels
                rows.append(found)
                progress.update()
    made = dict(images=images) | boxes.padded(rows)
    files.write_arrays(path, made)
    for other in path.parent.glob(path.name.rpartition("-")[0] + "-*.npz"):
        if other != path:
            other.unlink()
    return made

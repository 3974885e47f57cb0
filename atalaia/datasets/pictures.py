"""Image files, and how an image of one shape becomes one of another."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from atalaia.datasets import disk
from atalaia.errors import UserError
from atalaia.files import locked
from atalaia.progress import Progress

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# data.fit, and what was then done to an image
FITTED = {"crop": "cropped", "pad": "padded", "letterbox": "letterboxed", "stretch": "stretched"}


def size_of(config: ConfigDict) -> tuple[int, int] | None:
    """Height and width in pixels that data.size asks for; None for 0, as the images are.

    Args:
      config: size, a side of a square, or height and width as (96, 128) or "96,128".

    Raises:
      UserError: it is none of these.
    """
    given = config.size
    parts = given.strip("()[] ").split(",") if isinstance(given, str) else given
    sides: list[Any] = list(parts) if isinstance(parts, list | tuple) else [parts]
    try:
        sides = [int(side) if isinstance(side, str) else side for side in sides]
    except ValueError:
        sides = []
    whole = all(isinstance(side, int | np.integer) and not isinstance(side, bool) for side in sides)
    if whole and sides == [0]:
        return None
    if not whole or len(sides) not in (1, 2) or min(sides) < 1:
        shown = given if isinstance(given, str) else repr(given)
        raise UserError(f"data.size = {shown}: give a side in pixels, HEIGHT,WIDTH as 96,128, or 0 for the native size")
    return int(sides[0]), int(sides[-1])


def fit(image: Image.Image, size: tuple[int, int], how: str, resampling: Image.Resampling) -> Image.Image:
    """An image of another size.

    Args:
      image: of any size.
      size: height and width.
      how: "crop" scales it until it covers `size` and cuts off what is over, the same on both sides; "pad" scales it
        until it is whole inside, in the middle on black; "letterbox" does so in the upper left corner; "stretch" scales
        height and width apart. All are one where nothing is over.
      resampling: Pillow's filter.
    """
    height, width = size
    if how == "crop":
        return ImageOps.fit(image, (width, height), resampling)
    if how == "pad":
        return ImageOps.pad(image, (width, height), resampling, color=0)
    if how == "letterbox":
        return ImageOps.pad(image, (width, height), resampling, color=0, centering=(0, 0))
    return image.resize((width, height), resampling)


def placed(native: tuple[int, int], size: tuple[int, int], how: str) -> tuple[np.ndarray, np.ndarray]:
    """Where `fit` puts what is at (x, y) in an image of height and width `native`: at (x, y) * scale + shift.

    Returns:
      scale and shift, float64 [2] each, of x and of y.
    """
    (height, width), (out_height, out_width) = native, size
    inner = np.array([width, height], float)
    outer = np.array([out_width, out_height], float)
    if how == "stretch":
        return outer / inner, np.zeros(2)
    if how == "crop":
        scale = max(outer / inner)
        return np.full(2, scale), (outer - inner * scale) / 2
    whole = inner * min(outer / inner)  # the side that does not fill the image becomes a whole number of pixels
    whole = np.where(np.isclose(whole, outer), outer, np.round(whole))
    left = outer - whole
    shift = np.array([round(value * 0.5) for value in left]) if how == "pad" else np.zeros(2)
    return whole / inner, shift


def below(folder: Path, field: str) -> list[Path]:
    """Image files in the folder that `field` names and in what it holds, sorted; hidden ones are left out.

    Raises:
      UserError: it is no folder, or has none.
    """
    if not folder.is_dir():
        raise UserError(f"{field}: {folder} is not a folder: give one that holds images")
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    if not paths:
        raise UserError(f"{field}: {folder} has no images ({' '.join(SUFFIXES)}): fill it, or give another")
    return paths


def read(paths: list[Path], size: tuple[int, int], channels: int, how: str, kept: Path | None = None) -> np.ndarray:
    """Images, turned as their EXIF data say and brought to a height and width as `fit` does (bilinear).

    With `kept`, a folder, they are read into a file there, once, and stay in it (np.memmap): the file's name tells the
    images' paths, sizes and times of change, and what was done to them.

    Returns:
      uint8 `[n, height, width, channels]`, of 1 channel or 3.

    Raises:
      UserError: names those that cannot be read; or they do not fit into memory.
    """
    shape = (len(paths), *size, channels)
    if kept is None:
        disk.refuse_too_large(shape)
        return _read_into(np.empty(shape, np.uint8), paths, how)
    stats = [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path in paths for stat in [path.stat()]]
    name = hashlib.sha256(repr((stats, shape, how)).encode()).hexdigest()[:16]
    kept.mkdir(parents=True, exist_ok=True)
    file = kept / f"{name}.npy"
    with locked(kept / f"{name}.lock"):
        if not file.exists():
            part = file.with_suffix(".part")
            _read_into(disk.create(part, shape), paths, how).flush()
            part.replace(file)
    return np.load(file, mmap_mode="r")


def _read_into(images, paths, how):
    """`images` with those of the paths in it."""
    size, channels = images.shape[1:3], images.shape[3]
    broken = []
    with Progress(f"read {os.path.commonpath([path.parent for path in paths])}", len(paths), "images") as progress:
        for i, path in enumerate(paths):
            try:
                images[i] = _pixels(path, size, "L" if channels == 1 else "RGB", how).reshape(images.shape[1:])
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # all of these Pillow raises
                broken.append(str(path))
            progress.update()
    if broken:
        more = ", ..." if len(broken) > 5 else ""
        raise UserError(f"{len(broken)} image(s) cannot be read: {', '.join(broken[:5])}{more}; repair or remove them")
    return images


def _pixels(path, size, mode, how):
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "I;16":  # Pillow would clip it to 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return np.asarray(fit(image.convert(mode), size, how, Image.Resampling.BILINEAR))

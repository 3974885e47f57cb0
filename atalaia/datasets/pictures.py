"""Image files, and how an image of one shape becomes one of another."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from atalaia.errors import UserError
from atalaia.progress import Progress

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FITTED = {"crop": "cropped", "pad": "padded", "stretch": "stretched"}  # data.fit, and what was then done to an image


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
        until it is whole inside, on black; "stretch" scales height and width apart. All are one where nothing is over.
      resampling: Pillow's filter.
    """
    height, width = size
    if how == "crop":
        return ImageOps.fit(image, (width, height), resampling)
    if how == "pad":
        return ImageOps.pad(image, (width, height), resampling, color=0)
    return image.resize((width, height), resampling)


def below(folder: Path) -> list[Path]:
    """Image files in data.unlabelled's folder and in what it holds, sorted; hidden ones are left out.

    Raises:
      UserError: it is no folder, or has none.
    """
    if not folder.is_dir():
        raise UserError(f'data.unlabelled: {folder} is not a folder: give one that holds images, or ""')
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    paths = sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    if not paths:
        raise UserError(f'data.unlabelled: {folder} has no images ({" ".join(SUFFIXES)}): fill it, or give ""')
    return paths


def read(paths: list[Path], size: tuple[int, int], channels: int, how: str) -> np.ndarray:
    """Images, turned as their EXIF data say and brought to a height and width as `fit` does (bilinear).

    Returns:
      uint8 `[n, height, width, channels]`, of 1 channel or 3.

    Raises:
      UserError: names those that cannot be read.
    """
    images = np.empty((len(paths), *size, channels), np.uint8)
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

"""Photos as the C array that played.c plays as a camera: python photos.py PHOTO... --out=photos.h

A photo is first cropped to the camera's shape. Needs NumPy and Pillow.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("grey", "rgb565", "rgb888")


def as_bytes(photo: np.ndarray, kind: str) -> np.ndarray:
    """A photo, uint8 `[height, width, 3]`, as a camera sends it: uint8 `[height, width, bytes of a pixel]`."""
    if kind == "grey":
        return np.asarray(Image.fromarray(photo).convert("L"))[..., None]
    if kind == "rgb888":
        return photo
    red, green, blue = (photo[..., i].astype(np.uint16) for i in range(3))
    words = red >> 3 << 11 | green >> 2 << 5 | blue >> 3
    return np.stack([words >> 8, words & 255], -1).astype(np.uint8)


def header(photos: np.ndarray, kind: str) -> str:
    """The C array of photos of one size, uint8 `[n, height, width, 3]`, in a format of FORMATS."""
    n, height, width, _ = photos.shape
    pixels = np.stack([as_bytes(photo, kind) for photo in photos]).reshape(n, -1)
    rows = ["  {" + ",".join(map(str, row.tolist())) + "},\n" for row in pixels]
    sizes = dict(PHOTOS=n, PHOTO_WIDTH=width, PHOTO_HEIGHT=height, PHOTO_FORMAT=f"FRAME_{kind.upper()}")
    lines = [f"#define {name} {value}\n" for name, value in sizes.items()]
    return "".join([*lines, f"static const uint8_t photos[{n}][{pixels.shape[1]}] = {{\n", *rows, "};\n"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="+", type=Path)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--size", default="320x240", help="the camera's width and height in pixels")
    parser.add_argument("--format", default="grey", choices=FORMATS)
    given = parser.parse_args()
    width, height = (int(side) for side in given.size.split("x"))
    read = [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in given.photos]
    photos = np.stack([np.asarray(ImageOps.fit(photo, (width, height))) for photo in read])
    given.out.write_text(header(photos, given.format))


if __name__ == "__main__":
    main()

"""Data sets that come with scikit-learn and scikit-image: no download."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from atalaia.datasets.source import Source, Split

TURNS, TURN_SEED = 4, 7  # pictures of each of turned_digits' digits, and what their angles are drawn by
TURNED_SIDE, DIGIT_SIDE = 16, 12  # pixels of such a picture, and of the digit in its middle
MOST_DEGREES = 60


def digits(config: ConfigDict, cache: Path) -> Source:
    """1,797 handwritten digits, 8x8x1, from scikit-learn; 0..16 becomes 0..255."""
    images, labels = _digits()
    return Source(Split(images[..., None], labels), None, tuple("0123456789"))


def turned_digits(config: ConfigDict, cache: Path) -> Source:
    """The digits enlarged to 12x12 in 16x16x1, each turned by 4 random angles a within +-60 degrees: what is a?

    Further turned, a 0, a 1 or an 8 could not be told from one turned the other way.

    Targets are float32 [n, 2]: cos(a) and sin(a). A positive a turns counter-clockwise, as one sees the picture. In
    pixels, x to the right and y DOWN, what was (x, y) away from the middle comes to

        (x cos(a) + y sin(a), y cos(a) - x sin(a)).

    To turn a picture on by b makes its target (cos(a + b), sin(a + b)); to flip it left and right makes a mirrored
    digit's of -a. All pictures of one digit are in the same split.
    """
    images, _ = _digits()
    degrees = np.random.RandomState(TURN_SEED).uniform(-MOST_DEGREES, MOST_DEGREES, (len(images), TURNS))
    turned = np.empty((*degrees.shape, TURNED_SIDE, TURNED_SIDE, 1), np.uint8)
    margin = (TURNED_SIDE - DIGIT_SIDE) // 2
    for i, pixels in enumerate(images):
        upright = Image.new("L", (TURNED_SIDE, TURNED_SIDE))
        upright.paste(
            Image.fromarray(pixels).resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BICUBIC), (margin, margin)
        )
        for j, angle in enumerate(degrees[i]):
            turned[i, j, ..., 0] = upright.rotate(angle, Image.Resampling.BICUBIC)  # counter-clockwise
    radians = np.radians(degrees.ravel())
    targets = np.stack([np.cos(radians), np.sin(radians)], 1).astype(np.float32)
    split = Split(turned.reshape(-1, TURNED_SIDE, TURNED_SIDE, 1), targets)
    return Source(split, None, ("cosine", "sine"), groups=np.repeat(np.arange(len(images)), TURNS))


def lfw_faces(config: ConfigDict, cache: Path) -> Source:
    """100 faces and then 100 pieces of background, 25x25x1, from scikit-image."""
    from skimage.data import lfw_subset
    from skimage.util import img_as_ubyte

    images = img_as_ubyte(lfw_subset())[..., None]
    return Source(Split(images, np.repeat([0, 1], 100)), None, ("face", "other"))


def _digits():
    from sklearn.datasets import load_digits  # a second of import that only these data sets need

    found = load_digits()
    return np.round(found.images * (255 / 16)).astype(np.uint8), found.target

"""From the heads of a detector to boxes, in NumPy: peaks of the centre map, their boxes, and no box twice.

The same steps run on real outputs, for the metrics, and on int8 ones, where every number is an integer, so that
mcu/answers/detect.c gives the same boxes on a board. A box is (x0, y0, x1, y1) in 1/16 of a pixel.
"""

import math
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from atalaia.errors import UserError

FRACTION = 16  # parts of a pixel in which a box is given
SHIFT = 16  # of the fixed-point factor from a box's int8 distance to parts of a pixel
PARTS = 256  # of which `overlap` is a number in the integer form
VALUES = 6  # of a box in an answer: class, score code, x0, y0, x1, y1


class Found(NamedTuple):
    """Boxes of n images in the order of their scores, `most` places an image; class -1 where there is none."""

    classes: np.ndarray  # int64 [n, most]
    scores: np.ndarray  # float64 [n, most], of the centre map
    boxes: np.ndarray  # [n, most, 4]


class Constants(NamedTuple):
    """What C needs beside the shape of the heads; all are integers."""

    stride: int  # pixels between two cells
    most: int  # boxes that an image has at the most
    threshold: int  # least code of a peak
    overlap: int  # in 1/256: of two boxes with more of it, the lower score goes
    zero_point: int  # of the box head
    step: int  # what one integer of the box head is in 1/16 of a pixel, times 2^16


def constants(scale: dict[str, float], zero_point: dict[str, int], config: ConfigDict) -> Constants:
    """The integers of the decode.

    Args:
      scale, zero_point: of the heads "centre" and "box".
      config: fields of config.detect.

    Raises:
      UserError: a box's distances would not fit 32 bits.
    """
    step = round(float(scale["box"]) * config.stride * FRACTION * (1 << SHIFT))
    if not 0 < step * 255 < 1 << 31:
        raise UserError(
            f"task detect: the box head's scale {scale['box']:.6g} has no answer in 32 bits of 1/{FRACTION} of a pixel "
            f"at detect.stride = {config.stride}: train it with boxes that fit the picture"
        )
    code = math.ceil(logit(config.threshold) / float(scale["centre"])) + int(zero_point["centre"])
    threshold = min(max(code, -128), 128)  # 128: no code is so large
    return Constants(config.stride, config.most, threshold, round(config.overlap * PARTS), int(zero_point["box"]), step)


def logit(probability: float) -> float:
    """The number whose sigmoid is a probability in (0, 1)."""
    return math.log(probability / (1 - probability))


def decode(centre: np.ndarray, box: np.ndarray, constants: Constants) -> np.ndarray:
    """The answers of int8 heads `[n, h, w, classes]` and `[n, h, w, 4]`, int32 `[n, most * 6]`.

    An answer is `most` times class, score code, x0, y0, x1, y1, in the order of the scores; class -1 and zeros where
    there are fewer boxes.
    """
    codes = np.maximum(box.astype(np.int64) - constants.zero_point, 0)
    distances = (codes * constants.step + (1 << (SHIFT - 1))) >> SHIFT
    found = find(centre, distances, constants.threshold, constants.overlap / PARTS, constants.most, constants.stride)
    rows = np.concatenate([found.classes[..., None], found.scores[..., None], found.boxes], -1)
    rows = np.where(found.classes[..., None] < 0, [-1, 0, 0, 0, 0, 0], rows)
    return rows.astype(np.int32).reshape(len(rows), -1)


def find_real(centre: np.ndarray, box: np.ndarray, threshold: float, config: ConfigDict) -> Found:
    """The boxes of real heads, whose scores are at least `threshold`, a logit; config: fields of config.detect."""
    distances = np.maximum(np.asarray(box, np.float64), 0) * (config.stride * FRACTION)
    overlap = round(config.overlap * PARTS) / PARTS
    return find(centre, distances, threshold, overlap, config.most, config.stride)


def find(centre: np.ndarray, distances: np.ndarray, threshold: float, overlap: float, most: int, stride: int) -> Found:
    """The `most` highest peaks of each image, less those whose box overlaps a higher one's of the same class.

    A peak is a cell and class with at least `threshold` that is not smaller than its 8 neighbours of that class; of
    equals, the first row by row. Of peaks with one score, the first cell comes first, and in a cell the first class.

    Args:
      centre: scores `[n, h, w, classes]`, whole or real.
      distances: from the middle of each cell to left, top, right and bottom, `[n, h, w, 4]`, in 1/16 of a pixel.
      threshold: the least score.
      overlap: intersection over union above which the lower of two boxes goes; a multiple of 1/256.
      most: peaks that are looked at.
      stride: pixels between two cells.
    """
    n, height, width, classes = centre.shape
    scores = np.where(_peaks(centre) & (centre >= threshold), np.asarray(centre, np.float64), -np.inf).reshape(n, -1)
    place = np.argsort(-scores, axis=1, kind="stable")[:, :most]
    place = np.pad(place, ((0, 0), (0, most - place.shape[1])))
    scores = np.take_along_axis(scores, place, 1)
    scores[:, height * width * classes :] = -np.inf
    cell, kind = np.divmod(place, classes)
    row, column = np.divmod(cell, width)
    left, top, right, bottom = np.moveaxis(distances[np.arange(n)[:, None], row, column], -1, 0)
    half = stride * FRACTION // 2
    x, y = (2 * column + 1) * half, (2 * row + 1) * half
    across, down = width * stride * FRACTION, height * stride * FRACTION
    boxes = np.stack(
        [
            np.maximum(x - left, 0),
            np.maximum(y - top, 0),
            np.minimum(x + right, across),
            np.minimum(y + bottom, down),
        ],
        -1,
    )
    kept = _without_overlaps(kind, boxes, scores > -np.inf, round(overlap * PARTS))
    order = np.argsort(~kept, axis=1, kind="stable")  # those that are left come first
    kind, scores, kept = (np.take_along_axis(values, order, 1) for values in (kind, scores, kept))
    return Found(np.where(kept, kind, -1), scores, np.take_along_axis(boxes, order[..., None], 1))


def _peaks(centre):
    """Whether each value is larger than its neighbours before it, and not smaller than those behind."""
    _, height, width, _ = centre.shape
    padded = np.pad(np.asarray(centre, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    found = np.ones(centre.shape, bool)
    for down in (0, 1, 2):
        for across in (0, 1, 2):
            neighbour = padded[:, down : down + height, across : across + width]
            if (down, across) < (1, 1):
                found &= centre > neighbour
            elif (down, across) > (1, 1):
                found &= centre >= neighbour
    return found


def _without_overlaps(kind, boxes, kept, overlap):
    """Which boxes stay: each that stays removes the later ones of its class with more than `overlap` / 256 of it."""
    kept = kept.copy()
    for i in range(kept.shape[1] - 1):
        one, others = boxes[:, i, None], boxes[:, i + 1 :]
        sides = np.minimum(one, others)[..., 2:] - np.maximum(one, others)[..., :2]
        both = np.prod(np.maximum(sides, 0), -1)
        either = _area(one) + _area(others) - both
        same = kind[:, i, None] == kind[:, i + 1 :]
        kept[:, i + 1 :] &= ~(kept[:, i, None] & same & (both * PARTS > overlap * either))
    return kept


def _area(boxes):
    return np.prod(boxes[..., 2:] - boxes[..., :2], -1)

"""The test photos of face detectors: a folder of photos with boxes drawn by people, prepared the same way for all.

Letterboxed to 160x120: scaled to fit, in the upper left corner, the rest black. A face narrower than 12 pixels there is
ignored: neither counted nor a mistake to find; nor is a found box that is narrower itself, unless it is right. Nothing
is trained or chosen on these photos, and they are not ours to give away: the folder is the caller's (COCO JSON, YOLO
.txt or Pascal VOC .xml, see data.name="boxes").
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tables  # noqa: F401 - so that atalaia is found
from ml_collections import ConfigDict

from atalaia import config
from atalaia.datasets import boxes
from atalaia.datasets.source import Split
from atalaia.tasks import boxes as judging

SIZE = (120, 160)  # height and width
LEAST = 12.0  # pixels of a face's width


class Boxes(NamedTuple):
    """What was found in frames, as atalaia.tasks.boxes takes it; class -1 where an image has no more."""

    classes: np.ndarray  # int [n, d]
    scores: np.ndarray  # [n, d], the highest first
    boxes: np.ndarray  # [n, d, 4]


class Photos(NamedTuple):
    """The test photos."""

    colour: np.ndarray  # uint8 [n, 120, 160, 3]
    grey: np.ndarray  # uint8 [n, 120, 160, 1]
    targets: dict
    named: dict  # counts of photos and faces, and the first digits of a SHA-256 of pixels and boxes

    def images(self, channels: int) -> np.ndarray:
        """Those of 1 channel or 3."""
        return self.grey if channels == 1 else self.colour


def photos(folder: Path) -> Photos:
    """All photos of a folder, in colour and grey.

    Raises:
      UserError: as `load`.
    """
    colour, grey = (load(folder, grey) for grey in (False, True))
    sha = hashlib.sha256(colour.images.tobytes())
    sha.update(colour.targets["boxes"].tobytes() + colour.targets["classes"].tobytes())
    named = counts(colour) | dict(sha256=sha.hexdigest()[:16])
    return Photos(colour.images, grey.images, colour.targets, named)


def fields(folder: Path, grey: bool = False) -> ConfigDict:
    """The fields config.data of this protocol."""
    c = config.base().data
    c.update(name="boxes", path=str(folder), size=SIZE, fit="letterbox", ignore_below=LEAST, grey=grey)
    return c


def load(folder: Path, grey: bool = False) -> Split:
    """All photos of a folder: images uint8 `[n, 120, 160, channels]` and targets as datasets/boxes.py says.

    Raises:
      UserError: the folder holds no photos with boxes, or labels are wrong.
    """
    return boxes.whole(fields(folder, grey))


def counts(split: Split) -> dict[str, int]:
    """How many photos, faces and faces that count there are."""
    classes = split.targets["classes"]
    return dict(photos=len(split.images), faces=int((classes != boxes.NO_BOX).sum()), counted=int((classes >= 0).sum()))


def judge(classes: np.ndarray, found: np.ndarray, targets: dict) -> judging.Judged:
    """Which found boxes are right by this protocol.

    Args:
      classes: 0, or -1 where there is none, `[n, d]`, the highest score first; found: `[n, d, 4]`.
      targets: of `load`.
    """
    found = np.asarray(found, np.float64)
    right, ignored = judging.judge(classes, found, targets["classes"], np.asarray(targets["boxes"], np.float64))
    return judging.Judged(right, ignored | (~right & (found[..., 2] - found[..., 0] < LEAST)))


def figures(classes: np.ndarray, scores: np.ndarray, found: np.ndarray, targets: dict) -> dict[str, float]:
    """atalaia.tasks.boxes.figures by this protocol, and f1_centres, the best F1 where it is enough to hit a face.

    Args:
      classes, found, targets: as `judge` takes them; scores: `[n, d]`.
    """
    here, kinds = judge(classes, found, targets), targets["classes"]
    by_centre = judging.figures(classes, scores, judge(classes, hit(found, targets), targets), kinds)
    return judging.figures(classes, scores, here, kinds) | dict(f1_centres=by_centre["f1"])


def hit(found: np.ndarray, targets: dict) -> np.ndarray:
    """Boxes `[n, d, 4]` in which each is the face that its middle lies in, of several the nearest; others stay."""
    true, there = np.asarray(targets["boxes"], np.float64), targets["classes"] != boxes.NO_BOX
    found = np.asarray(found, np.float64)
    middle = (found[..., :2] + found[..., 2:])[:, :, None] / 2  # [n, d, 1, 2]
    inside = ((middle >= true[:, None, :, :2]) & (middle <= true[:, None, :, 2:])).all(-1) & there[:, None]
    far = np.abs(middle - (true[..., :2] + true[..., 2:])[:, None] / 2).sum(-1)
    place = np.where(inside, far, np.inf).argmin(-1)  # [n, d]
    return np.where(inside.any(-1)[..., None], np.take_along_axis(true, place[..., None], 1), found)


def f1_at(least: float, classes: np.ndarray, scores: np.ndarray, found: np.ndarray, targets: dict) -> float:
    """F1 of the boxes whose score is at least so high; the others as `figures` takes them."""
    right, ignored = judge(classes, found, targets)
    curve = judging.curve(scores, right[0], ignored[0], classes >= 0, int((targets["classes"] >= 0).sum()))
    return judging.f1_at(curve, least)


def missed(found: Boxes, right: np.ndarray, targets: dict) -> np.ndarray:
    """Which faces that count no right box has, bool `[n, m]`; right: of the found ones, bool `[n, d]`."""
    overlap = judging.iou(np.asarray(found.boxes, np.float64), np.asarray(targets["boxes"], np.float64))
    return (targets["classes"] >= 0) & ~(right[..., None] & (overlap >= judging.THRESHOLDS[0])).any(1)


def finite(figures: dict[str, float]) -> dict[str, float]:
    """Figures as JSON can hold them: the score of a best F1 of nothing is infinite, and left out."""
    return {name: float(value) for name, value in figures.items() if np.isfinite(value)}

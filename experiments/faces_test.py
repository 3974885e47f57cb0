"""The test photos of face detectors: a folder of photos with boxes drawn by people, prepared the same way for all.

Letterboxed to 160x120: scaled to fit, in the upper left corner, the rest black. A face narrower than 12 pixels there is
ignored: neither counted nor a mistake to find. Nothing is trained or chosen on these photos, and they are not ours to
give away: the folder is the caller's (COCO JSON, YOLO .txt or Pascal VOC .xml, see data.name="boxes").
"""

from pathlib import Path

from ml_collections import ConfigDict

from atalaia import config
from atalaia.datasets import boxes
from atalaia.datasets.source import Split

SIZE = (120, 160)  # height and width
LEAST = 12.0  # pixels of a face's width


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

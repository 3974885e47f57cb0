"""Pictures with boxes: a folder of one's own, and what becomes of boxes when pictures are resized.

Targets are a dict: boxes, float32 [n, m, 4], each x0, y0, x1, y1 in pixels of the resized picture; and classes, int32
[n, m], of each box its class, NO_BOX where a picture has fewer than m, or IGNORED.
"""

import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from atalaia.datasets import box_files, pictures
from atalaia.datasets.box_files import Box, Photo
from atalaia.datasets.source import TEST_FRACTION, Source, Split
from atalaia.errors import UserError

NO_BOX, IGNORED = -1, -2  # in classes: no box; one that is neither to be found nor wrong to be found
INSIDE = 0.5  # the least part of a box that is inside the picture: it is clipped then, and refused with less
VISIBLE = 0.5  # the least part of a box that a crop leaves: with less it is ignored, with nothing it goes


def load(config: ConfigDict, cache: Path) -> Source:
    """path/train and, optionally, path/test, or path alone, to carve a test set from: pictures and box_files.FORMATS.

    Pictures without boxes are there too, as negatives; COCO's crowds and VOC's difficult boxes are IGNORED.

    Raises:
      UserError: the folder is not like that, or labels are wrong; the first ones are named.
    """
    root, size = _root(config)
    folders = _folders(root)
    splits, names = _read(root, folders, size, config)
    if len(folders) == 1:
        lacks = "test/" if folders[0] != root else "train/ and test/"
        print(f"{root} has no {lacks}: {TEST_FRACTION:.0%} of the images are the test set", file=sys.stderr)
    return Source(splits[0], splits[1] if len(folders) > 1 else None, names, fitted=True)


def whole(config: ConfigDict) -> Split:
    """All pictures of `load`'s config.path as one split, such as a test set for others' detectors too.

    Raises:
      UserError: as `load`.
    """
    root, size = _root(config)
    (split,), _ = _read(root, [root], size, config)
    return split._replace(targets=without_narrow(split.targets, config.ignore_below))


def _root(config: ConfigDict) -> tuple[Path, tuple[int, int]]:
    """The data set's folder, and the size that its pictures get."""
    size = pictures.size_of(config)
    if not config.path or size is None:
        raise UserError("boxes needs data.path, a folder of images with boxes, and data.size, height and width")
    root = Path(config.path).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path: {root} is not a folder: give one of images with {box_files.FORMATS}")
    return root, size


def _read(
    root: Path, folders: Sequence[Path], size: tuple[int, int], config: ConfigDict
) -> tuple[list[Split], tuple[str, ...]]:
    """A split of each folder, and the names of the classes."""
    problems: list[str] = []
    parts = [box_files.read(folder, root, problems) for folder in folders]
    clipped = [_clipped(photo, problems) for part in parts for photo in part.photos]
    _refuse(root, problems)
    photos = [photo for photo, _ in clipped]
    known = list(dict.fromkeys(name for part in parts for name in part.names))
    names, number = _classes(config.classes, known, photos)
    left_out = sum((part.left_out for part in parts), Counter())
    _tell(root, photos, number, left_out, sum(count for _, count in clipped))

    images = pictures.read([photo.path for photo in photos], size, 1 if config.grey else 3, config.fit)
    targets = _targets(photos, number, size, config.fit)
    ends = np.cumsum([len(part.photos) for part in parts])[:-1]
    columns = {key: np.split(values, ends) for key, values in targets.items()}
    splits = [Split(part, {k: v[i] for k, v in columns.items()}) for i, part in enumerate(np.split(images, ends))]
    return splits, names


def _folders(root: Path) -> list[Path]:
    """Those of the training set and, where there is one, of the test set."""
    for place in (root, root / "images"):
        if (place / "train").is_dir():
            return [place / part for part in ("train", "test") if (place / part).is_dir()]
        if (place / "test").is_dir():
            raise UserError(f"{place} has test/ but no train/: make it, or put all in one folder")
    return [root]


def _refuse(root, problems):
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(
            f"{root} has {len(problems)} wrong label(s): {'; '.join(problems[:3])}{more}: mend or remove them"
        )


def _tell(root, photos, number, left_out, cut):
    """What a person should know of what was read, each in one line."""
    if left_out:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.most_common())
        print(f"{root}: {left_out.total()} image(s) left out: {reasons}", file=sys.stderr)
    other = Counter(box.name for photo in photos for box in photo.boxes if box.name not in number)
    if other:
        listed = ", ".join(f"{count} of {name}" for name, count in other.most_common())
        print(f"{root}: boxes of classes that are not asked for are left out: {listed}", file=sys.stderr)
    if cut:
        print(f"{root}: {cut} box(es) reach outside their picture and are clipped", file=sys.stderr)


def _clipped(photo: Photo, problems: list[str]) -> tuple[Photo, int]:
    """A photo whose boxes are inside it, and how many were clipped; what cannot be is a problem."""
    width, height = photo.size
    boxes, count = [], 0
    for box in photo.boxes:
        x0, y0, x1, y1 = box.corners
        inside = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if not all(map(math.isfinite, box.corners)):
            problems.append(f"{box.where}: the box has NaN or infinity")
        elif x1 <= x0 or y1 <= y0:
            problems.append(f"{box.where}: the box has width {x1 - x0:.6g} and height {y1 - y0:.6g}: above 0 is needed")
        elif _area(inside) < INSIDE * _area(box.corners):
            corners = ", ".join(f"{value:.6g}" for value in box.corners)
            how_much = "more than half of the box" if _area(inside) else "the box"
            problems.append(f"{box.where}: {how_much} ({corners}) is outside the picture of {width}x{height}")
        else:
            moved = max(abs(a - b) for a, b in zip(inside, box.corners, strict=True))
            count += moved > 0.01  # less is a rounding error of the file
            boxes.append(box._replace(corners=inside))
    return photo._replace(boxes=boxes), count


def _area(corners):
    return max(corners[2] - corners[0], 0) * max(corners[3] - corners[1], 0)


# --- Classes ---


def parse_classes(text: str) -> dict[str, list[str]]:
    """data.classes, such as "face=with_mask,without_mask; plate": the new names, each with those that it merges.

    Raises:
      UserError: it is not like that.
    """
    chosen: dict[str, list[str]] = {}
    for rule in filter(None, (part.strip() for part in text.split(";"))):
        name, equals, merged = (part.strip() for part in rule.partition("="))
        members = [member.strip() for member in merged.split(",")] if equals else [name]
        if not name or not all(members):
            raise UserError(f'data.classes = "{text}": write it as "NAME; NAME=OLD,OLD", not {rule!r}')
        taken = [member for other in chosen.values() for member in other]
        twice = [member for member in members if member in taken or members.count(member) > 1]
        if name in chosen or twice:
            raise UserError(f'data.classes = "{text}": {(twice or [name])[0]!r} is given twice')
        chosen[name] = members
    return chosen


def _classes(text: str, known: Sequence[str], photos: Sequence[Photo]) -> tuple[tuple[str, ...], dict[str, int]]:
    """The names of the classes, and the number of each name in the files that counts."""
    present = {box.name for photo in photos for box in photo.boxes}
    chosen = parse_classes(text) or {name: [name] for name in known if name in present}
    if unknown := sorted({member for members in chosen.values() for member in members} - set(known)):
        raise UserError(f"data.classes: there is no class {', '.join(unknown)}, only {', '.join(known) or 'none'}")
    empty = [name for name, members in chosen.items() if not present & set(members)]
    if empty or not chosen:
        raise UserError(
            f"data.classes: there is no box of {', '.join(empty) or 'any class'}: leave it out, or add boxes"
        )
    return tuple(chosen), {member: i for i, members in enumerate(chosen.values()) for member in members}


# --- Arrays ---


def _targets(photos: Sequence[Photo], number: dict[str, int], size: tuple[int, int], how: str) -> dict[str, np.ndarray]:
    """The targets of photos that are brought to `size` as pictures.fit does."""
    rows = []
    for photo in photos:
        boxes = [box for box in photo.boxes if box.name in number]
        corners = np.array([box.corners for box in boxes], np.float64).reshape(1, -1, 4)
        classes = np.array([[_class(box, number) for box in boxes]], np.int32)
        moved = moved_to(dict(boxes=corners, classes=classes), photo.size[::-1], size, how)
        rows.append((moved["boxes"][0], moved["classes"][0]))
    return padded(rows)


def _class(box: Box, number):
    return IGNORED if box.ignored else number[box.name]


def padded(rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Targets of boxes [k, 4] and classes [k] of each picture, k its own; where classes are NO_BOX there is none."""
    rows = [(boxes[classes != NO_BOX], classes[classes != NO_BOX]) for boxes, classes in rows]
    most = max(1, *(len(classes) for _, classes in rows))
    boxes, classes = np.zeros((len(rows), most, 4), np.float32), np.full((len(rows), most), NO_BOX, np.int32)
    for i, (b, c) in enumerate(rows):
        boxes[i, : len(c)], classes[i, : len(c)] = b, c
    return dict(boxes=boxes, classes=classes)


def are(targets: Any) -> bool:
    """Whether targets are boxes."""
    return isinstance(targets, dict) and {"boxes", "classes"} <= set(targets)


def moved_to(targets: dict, native: tuple[int, int], size: tuple[int, int], how: str) -> dict:
    """The targets of pictures of height and width `native` that are brought to `size` as pictures.fit does.

    A box of which a crop leaves less than half (`VISIBLE`) becomes IGNORED, one of which it leaves nothing NO_BOX.
    """
    scale, shift = pictures.placed(native, size, how)
    boxes = np.asarray(targets["boxes"], np.float64) * np.tile(scale, 2) + np.tile(shift, 2)
    inside = np.clip(boxes, 0, [size[1], size[0]] * 2)
    area, left = ((b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) for b in (boxes, inside))
    classes = np.where((left < VISIBLE * area) & (targets["classes"] >= 0), IGNORED, targets["classes"])
    classes = np.where((left <= 0) | (classes == NO_BOX), NO_BOX, classes).astype(np.int32)
    inside[classes == NO_BOX] = 0
    return targets | dict(boxes=inside.astype(np.float32), classes=classes)


def without_narrow(targets: dict, least: float) -> dict:
    """Targets whose boxes narrower than `least` pixels are IGNORED."""
    width = targets["boxes"][..., 2] - targets["boxes"][..., 0]
    narrow = (width < least) & (targets["classes"] >= 0)
    return targets | dict(classes=np.where(narrow, IGNORED, targets["classes"]).astype(np.int32))


def checked(where: str, targets: dict, names: Sequence[str], size: tuple[int, int]) -> None:
    """Refuses targets from a user's own arrays that are no boxes of pictures of that height and width.

    Raises:
      UserError: names what is wrong and the first picture where it is.
    """
    boxes, classes = (np.asarray(targets[key]) for key in ("boxes", "classes"))
    if boxes.ndim != 3 or boxes.shape[2] != 4 or not np.issubdtype(boxes.dtype, np.floating):
        raise UserError(f"{where}['boxes'] are {boxes.dtype} of shape {boxes.shape}: float [n, m, 4] is needed")
    if classes.shape != boxes.shape[:2] or not np.issubdtype(classes.dtype, np.integer):
        raise UserError(
            f"{where}['classes'] are {classes.dtype} of shape {classes.shape}: int {boxes.shape[:2]} is needed"
        )
    known = f"0..{len(names) - 1}, {NO_BOX} for no box, or {IGNORED} for one that is ignored"
    _refuse_where(f"{where}['classes'] must be {known}", (classes < IGNORED) | (classes >= len(names)))
    x0, y0, x1, y1 = np.moveaxis(boxes, 2, 0)
    real = classes != NO_BOX
    _refuse_where(f"{where}['boxes'] are x0, y0, x1, y1 with x0 < x1 and y0 < y1", real & ((x1 <= x0) | (y1 <= y0)))
    outside = (x0 < -0.01) | (y0 < -0.01) | (x1 > size[1] + 0.01) | (y1 > size[0] + 0.01)
    _refuse_where(
        f"{where}['boxes'] must be inside the image, in pixels of {size[0]}x{size[1]}: clip them", real & outside
    )


def _refuse_where(rule, wrong):
    if wrong.any():
        picture, box = np.argwhere(wrong)[0]
        raise UserError(f"{rule}; the first that is not: box {box} of image {picture}")

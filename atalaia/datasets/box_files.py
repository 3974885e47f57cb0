"""Boxes as people have them: COCO's JSON, YOLO's .txt and Pascal VOC's .xml, each read into the same `Photo`s.

What is wrong with a label goes to a list of problems, a line each, that names file and line, key or object.
"""

import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from PIL import Image

from atalaia.datasets.pictures import SUFFIXES
from atalaia.errors import UserError

FORMATS = "COCO's annotations.json or instances*.json, YOLO's .txt or Pascal VOC's .xml, one of a picture's name"
COCO_NAMES = ("annotations.json", "instances*.json", "*annotations.coco.json")
TYPES = dict(file_name=str, id=int | str, image_id=int | str, category_id=int | str)  # of COCO's fields
NAME_FILES = ("classes.txt", "obj.names")  # YOLO's names, one a line; or data.yaml


class Box(NamedTuple):
    name: str  # of its class
    corners: tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the picture
    ignored: bool  # neither to be found nor to be missed: COCO's iscrowd, VOC's difficult
    where: str  # file and line, key or object


class Photo(NamedTuple):
    path: Path
    size: tuple[int, int]  # width and height in pixels, turned as its EXIF data say
    boxes: list[Box]


class Labels(NamedTuple):
    photos: list[Photo]
    names: list[str]  # all classes that the files speak of, in their order
    left_out: Counter  # of pictures without labels, by reason


def read(folder: Path, root: Path, problems: list[str]) -> Labels:
    """The pictures of a folder and their boxes, in the one format that is found there.

    Args:
      folder: of the pictures of a split, and of its labels; or of images/ and labels/.
      root: of the data set; YOLO's names may be there.
      problems: what is wrong with single labels is added.

    Raises:
      UserError: there are no pictures, or labels of no format or of several.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not _hidden(path, folder))
    if not paths:
        raise UserError(
            f"{folder} has no images ({' '.join(SUFFIXES)}): give data.path, a folder with images and boxes"
        )
    json_files = sorted(
        {file for name in COCO_NAMES for place in ("", "annotations/") for file in folder.glob(place + name)}
    )
    found: dict[str, Callable[[], Labels]] = {
        file.name: partial(_coco, file, folder, paths, problems) for file in json_files
    }
    texts, xmls = (_beside(paths, suffix) for suffix in (".txt", ".xml"))
    if texts:
        found[next(iter(texts.values())).name] = partial(_yolo, paths, texts, folder, root, problems)
    if xmls:
        found[next(iter(xmls.values())).name] = partial(_voc, paths, xmls, problems)
    if not found:
        raise UserError(f"{folder} has {len(paths)} images but no boxes: add {FORMATS}")
    if len(found) > 1:
        raise UserError(f"{folder} has boxes in several files or formats ({', '.join(sorted(found))}): keep one")
    return next(iter(found.values()))()


def _hidden(path, folder):
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _beside(paths: Sequence[Path], suffix: str) -> dict[Path, Path]:
    """The label file of each picture that has one: beside it, or in labels/ or Annotations/ where it is in images/."""
    found = {}
    for path in paths:
        places = [path.with_suffix(suffix)]
        parts = path.with_suffix(suffix).parts
        for i, part in enumerate(parts):
            if part.lower() in ("images", "jpegimages"):
                places += [
                    Path(*parts[:i], other, *parts[i + 1 :]) for other in ("labels", "Annotations", "annotations")
                ]
        label = next((place for place in places if place.is_file() and place.name not in NAME_FILES), None)
        if label is not None:
            found[path] = label
    return found


def _size(path: Path, problems: list[str]) -> tuple[int, int] | None:
    """Width and height of a picture as it is turned; None where it cannot be read, which is a problem."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # by a quarter
            return (image.height, image.width) if turned else image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problems.append(f"{path}: the picture cannot be read ({error})")
        return None


def _check_size(size, width, height, where, problems):
    """A label file's own word on the picture's size must be true, where it gives one."""
    if width and height and (width, height) != size:
        problems.append(f"{where}: speaks of a picture of {width}x{height}, but it is {size[0]}x{size[1]}")


# --- COCO ---


def _coco(file: Path, folder: Path, paths: Sequence[Path], problems: list[str]) -> Labels:
    try:
        content = json.loads(_whole_text(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}: line {error.lineno}: broken JSON ({error.msg}): write it again") from None
    keys = ("images", "annotations", "categories")
    lists: list[Any] = [content.get(key) if isinstance(content, dict) else None for key in keys]
    if not all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in lists):
        raise UserError(f"{file} is not COCO's JSON: an object of lists images, annotations and categories is needed")
    images, annotations, categories = lists
    names, photos = {}, {}
    for i, category in enumerate(categories):
        if _given(category, ("id", "name"), f"{file}: categories[{i}]", problems):
            names[category["id"]] = str(category["name"])
    for i, image in enumerate(images):
        where = f"{file}: images[{i}]"
        if not _given(image, ("id", "file_name"), where, problems):
            continue
        path = next(
            (p for p in (folder / image["file_name"], folder / "images" / image["file_name"]) if p.is_file()), None
        )
        if path is None:
            problems.append(f"{where}: there is no picture {folder / image['file_name']}")
        elif size := _size(path, problems):
            _check_size(size, image.get("width"), image.get("height"), where, problems)
            photos[image["id"]] = Photo(path, size, [])
    known = {image.get("id") for image in images}
    for i, annotation in enumerate(annotations):
        where = f"{file}: annotations[{i}]"
        if not _given(annotation, ("image_id", "category_id", "bbox"), where, problems):
            continue
        if annotation["image_id"] not in known:
            problems.append(f"{where}: image_id {annotation['image_id']} is none of images")
        elif annotation["category_id"] not in names:
            problems.append(f"{where}: unknown class: category_id {annotation['category_id']} is none of categories")
        elif (numbers := _numbers(annotation["bbox"], 4)) is None:
            problems.append(f"{where}: bbox {annotation['bbox']} is not four numbers x, y, width, height")
        elif annotation["image_id"] in photos:
            x, y, width, height = numbers
            name, crowd = names[annotation["category_id"]], bool(annotation.get("iscrowd", 0))
            photos[annotation["image_id"]].boxes.append(Box(name, (x, y, x + width, y + height), crowd, where))
    spoken_of = {photo.path for photo in photos.values()}
    left_out = Counter({f"not in {file.name}": sum(path not in spoken_of for path in paths)})
    return Labels(list(photos.values()), list(dict.fromkeys(names.values())), left_out)


def _given(row, keys, where, problems):
    missing = [key for key in keys if key not in row]
    if missing:
        problems.append(f"{where}: lacks {', '.join(missing)}")
    wrong = [key for key in keys if key in row and not isinstance(row[key], TYPES.get(key, object))]
    problems += [f"{where}: {key} {row[key]} is no {'text' if key == 'file_name' else 'number'}" for key in wrong]
    return not missing and not wrong


def _numbers(values: Any, count: int) -> list[float] | None:
    """So many numbers, NaN among them or not, or None."""
    try:
        values = [float(value) for value in values]
    except (TypeError, ValueError):
        return None
    return values if len(values) == count else None


# --- YOLO ---


def _yolo(paths: Sequence[Path], labels: dict[Path, Path], folder: Path, root: Path, problems: list[str]) -> Labels:
    """A line a box: class, x and y of the middle, width and height, as parts of the picture; perhaps a score."""
    photos, names = [], _names(folder, root)
    for path in paths:
        size = _size(path, problems)
        if size is None:
            continue
        photos.append(Photo(path, size, []))
        lines = _text(labels[path], problems).splitlines() if path in labels else []
        for number, line in enumerate(lines, 1):
            where = f"{labels[path]}: line {number}"
            words = line.split()
            if not words:
                continue
            values = _numbers(words, len(words))
            if len(words) not in (5, 6) or values is None:
                problems.append(f"{where}: {line[:60]!r} is not a class and four numbers x, y, width, height")
            elif values[0] not in range(len(names)):
                problems.append(
                    f"{where}: unknown class {words[0]}: there are 0..{len(names) - 1} ({', '.join(names)})"
                )
            else:
                photos[-1].boxes.append(Box(names[int(values[0])], _corners(values[1:5], size), False, where))
    _tell_lone(labels, ".txt", problems)
    return Labels(photos, names, Counter())


def _corners(parts, size):
    x, y, width, height = (part * side for part, side in zip(parts, size * 2, strict=True))
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _whole_text(file):
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8 ({error}): write it again") from None


def _text(file, problems):
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        problems.append(f"{file}: is no text in UTF-8")
        return ""


def _names(folder: Path, root: Path) -> list[str]:
    """YOLO's names of classes, from the first of classes.txt, obj.names and data.yaml that there is.

    Raises:
      UserError: there is none, or it holds no names.
    """
    for place in dict.fromkeys((folder, folder / "labels", folder.parent, root, root / "labels")):
        if not place.is_relative_to(root):
            continue
        for file in (*(place / name for name in NAME_FILES), place / "data.yaml"):
            if file.is_file():
                text = _whole_text(file)
                names = _yaml_names(file, text) if file.suffix == ".yaml" else text.splitlines()
                names = [str(name).strip() for name in names or () if str(name).strip()]
                if not names or len(set(names)) < len(names):
                    raise UserError(f"{file} holds {'a name twice' if names else 'no names of classes'}: mend it")
                return names
    raise UserError(f"{root} has YOLO's .txt but no names of classes: add classes.txt, a name a line, or data.yaml")


def _yaml_names(file, text):
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if getattr(error, "problem_mark", None) else ""
        raise UserError(f"{file}: {line}broken YAML: write it again") from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise UserError(f"{file}: names must be numbered from 0 without gaps")
        names = [names[number] for number in range(len(names))]
    return names if isinstance(names, list) else None


def _tell_lone(labels: dict[Path, Path], suffix: str, problems: list[str]) -> None:
    """Label files beside those of the pictures that have no picture themselves."""
    taken = set(labels.values())
    for folder in sorted({file.parent for file in taken}):
        for file in sorted(folder.glob(f"[!.]*{suffix}")):
            if file not in taken and file.name not in NAME_FILES and _labels_something(file, suffix):
                problems.append(f"{file}: there is no picture of this name")


def _labels_something(file, suffix):
    """Whether it looks like labels at all: a README.txt does not."""
    if suffix == ".xml":
        return b"<annotation" in file.read_bytes()[:500]
    words = file.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].split()
    return len(words) in (5, 6) and _numbers(words, len(words)) is not None


# --- Pascal VOC ---


def _voc(paths: Sequence[Path], labels: dict[Path, Path], problems: list[str]) -> Labels:
    """Corners in pixels are taken as they are, whether counted from 0 or from 1."""
    photos, names = [], set()
    for path, file in labels.items():
        size = _size(path, problems)
        try:
            tree = ElementTree.parse(file).getroot()
        except ElementTree.ParseError as error:
            problems.append(f"{file}: line {error.position[0]}: broken XML ({error})")
            continue
        if size is None:
            continue
        width, height = (_whole(tree.findtext(f"size/{side}")) for side in ("width", "height"))
        _check_size(size, width, height, file, problems)
        photos.append(Photo(path, size, []))
        for number, thing in enumerate(tree.iter("object"), 1):
            name = (thing.findtext("name") or "").strip()
            where = f"{file}: object {number}" + (f" ({name})" if name else "")
            corners = _numbers([thing.findtext(f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")], 4)
            if not name or corners is None:
                problems.append(
                    f"{where}: lacks {'numbers xmin, ymin, xmax, ymax in its bndbox' if name else 'a name'}"
                )
                continue
            names.add(name)
            difficult = (thing.findtext("difficult") or "0").strip() == "1"
            box = corners[0], corners[1], corners[2], corners[3]
            photos[-1].boxes.append(Box(name, box, difficult, where))
    _tell_lone(labels, ".xml", problems)
    return Labels(photos, sorted(names), Counter({"without .xml": len(paths) - len(labels)}))


def _whole(text):
    return int(text) if text and text.strip().isdigit() else None

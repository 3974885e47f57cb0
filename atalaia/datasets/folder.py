"""A folder of one's own images, one folder for each class."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from atalaia.datasets import pictures
from atalaia.datasets.source import OFFICIAL, TEST_FRACTION, Source, Split
from atalaia.errors import UserError

IN_NO_CLASS, TOO_DEEP, HIDDEN = "in no class's folder", "in subfolders of a class", "hidden"
LAYOUTS = "images are expected as {0}/train/CLASS/IMAGE or {0}/CLASS/IMAGE"


def load(config: ConfigDict, cache: Path) -> Source:
    """path/train/CLASS/IMAGE and, optionally, path/test/CLASS/IMAGE; or path/CLASS/IMAGE, to carve a test set from.

    The classes' order is that of their names. Images are brought to `size` as `fit` says (pictures.fit). What was left
    out is said in one line.

    Raises:
      UserError: the folder is not like that.
    """
    size = pictures.size_of(config)
    if not config.path or size is None:
        raise UserError(
            "image_folder needs data.path, the folder of train/ or of the classes, and data.size, a side in pixels"
        )
    root, unlabelled = Path(config.path).expanduser(), _unlabelled(config)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder: {LAYOUTS.format(root)}")
    split = (root / "train").is_dir()
    folder = root / "train" if split else root
    _refuse_other_layouts(root, split, unlabelled)
    train = _listed(folder, None if split else unlabelled)
    test = _listed(root / "test", None) if split else {}
    _refuse_few(folder, train)
    if unknown := sorted(set(test) - set(train)):
        raise UserError(f"{root / 'test'} has classes that train/ lacks: {', '.join(unknown)}; rename or remove them")
    if split and (root / "test").exists() and not any(test.values()):
        raise UserError(f"{root / 'test'} has no images: fill it, or remove it to have a test set carved from train/")
    _tell_left_out(root, [root / "train", root / "test"] if split else [root], unlabelled)
    if not split:
        print(f"{root} has no train/ and test/: {TEST_FRACTION:.0%} of each class is the test set", file=sys.stderr)

    names = tuple(train)

    kept = None if config.in_memory else cache / "images"

    def labelled(listed):
        paths = [path for found in listed.values() for path in found]
        labels = np.repeat([names.index(name) for name in listed], [len(found) for found in listed.values()])
        return Split(pictures.read(paths, size, 1 if config.grey else 3, config.fit, kept), labels)

    return Source(labelled(train), labelled(test) if test else None, names, fitted=True)


def _unlabelled(config):
    """The folder of data.unlabelled, which may lie beside the classes; None where there is none."""
    given = config.unlabelled
    return Path(given).expanduser().resolve() if given and given != OFFICIAL else None


def _refuse_other_layouts(root, split, unlabelled):
    if split:
        beside = [f.name for f in _folders(root, unlabelled) if f.name not in ("train", "test") and _images(f)]
        if beside:
            raise UserError(
                f"{root} has train/ and, beside it, folders of images ({', '.join(beside)}): move those that are "
                "classes into train/, the others elsewhere"
            )
    elif (root / "test").is_dir():
        raise UserError(f"{root} has test/ but no train/: {LAYOUTS.format(root)}")


def _listed(folder, unlabelled):
    """Image files by class, both sorted; hidden ones are left out."""
    hidden = [path.name for path in sorted(folder.glob(".*")) if path.is_dir() and _images(path)]
    if hidden:
        raise UserError(f"{folder / hidden[0]} is hidden but holds images: rename it without the dot, or remove it")
    return {path.name: _images(path) for path in _folders(folder, unlabelled)}


def _folders(folder, unlabelled):
    return sorted(path for path in folder.glob("[!.]*") if path.is_dir() and path.resolve() != unlabelled)


def _images(folder):
    return sorted(file for file in folder.glob("[!.]*") if file.suffix.lower() in pictures.SUFFIXES)


def _refuse_few(folder, train):
    if len(train) < 2:
        only = f", {', '.join(train)}," if train else ""
        raise UserError(f"{folder} has {len(train)} folder(s){only}: one for each of at least 2 classes is needed")
    for name, paths in train.items():
        if len(paths) < 2:
            deeper = sum(path.suffix.lower() in pictures.SUFFIXES for path in (folder / name).glob("*/**/*"))
            how = f"move up the {deeper} in its subfolders" if deeper else "fill it, or remove it"
            formats = " ".join(pictures.SUFFIXES)
            raise UserError(f"{folder / name} has {len(paths)} image(s) ({formats}): at least 2 are needed; {how}")


def _tell_left_out(root, parts, unlabelled):
    """Says in one line how many files in `root` are in no split, and why; `parts` hold the folders of classes."""
    counts = Counter()
    for path in root.rglob("*"):
        if path.is_file() and not (unlabelled and path.resolve().is_relative_to(unlabelled)):
            part = next((part for part in parts if path.is_relative_to(part)), None)
            counts[_why_left_out(path.relative_to(root), part and len(path.relative_to(part).parts))] += 1
    del counts[None]
    if counts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        print(f"{root}: {counts.total()} file(s) left out: {reasons}", file=sys.stderr)


def _why_left_out(path, depth):
    """The reason, None for an image that was taken; `depth` 2 is that of CLASS/IMAGE."""
    if any(part.startswith(".") for part in path.parts):
        return HIDDEN
    if path.suffix.lower() not in pictures.SUFFIXES:
        return path.suffix.lower() or "without a suffix"
    if depth == 2:
        return None
    return TOO_DEEP if depth and depth > 2 else IN_NO_CLASS

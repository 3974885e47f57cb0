"""One's own NumPy arrays, from a file or from a function, and the check of both."""

import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from atalaia import own
from atalaia.datasets import boxes
from atalaia.datasets.source import Source, Split, has_classes
from atalaia.errors import UserError

REQUIRED = ("train_images", "train_targets")
OPTIONAL = ("test_images", "test_targets", "names")
FORMS = "(images, targets) or ((images, targets), (test_images, test_targets)), and names as a last one if you like"

NUMBERED = "number classes from 0 without gaps"


def load(config: ConfigDict, cache: Path) -> Source:
    """The arrays train_images, train_targets and, optionally, test_images, test_targets and names of path.

    That is an .npz, or a folder with a file NAME.npy of each, whose images are read when they are used.

    Raises:
      UserError: there is no such file, or its arrays are not as `checked` wants them.
    """
    keys = f"an .npz with {', '.join(REQUIRED)} and, optionally, {', '.join(OPTIONAL)}, or a folder of such .npy files"
    if not config.path:
        raise UserError(f"arrays needs data.path, {keys}")
    path = Path(config.path).expanduser()
    try:
        given = _folder(path) if path.is_dir() else _file(path)
    except FileNotFoundError:
        raise UserError(f"data.path: there is no file {path}: give {keys}") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}): write {keys}, by np.savez, none of dtype object") from None
    unknown = sorted(set(given) - {*REQUIRED, *OPTIONAL})
    missing = [key for key in REQUIRED if key not in given]
    if ("test_images" in given) != ("test_targets" in given):
        missing.append("test_targets" if "test_images" in given else "test_images")
    if unknown or missing:
        words = f"lacks {', '.join(missing)}" if missing else f"has an unknown {', '.join(unknown)}"
        raise UserError(f"{path} {words}: it holds {', '.join(given)}; write {keys}")
    test = Split(given["test_images"], given["test_targets"]) if "test_images" in given else None
    source = Source(Split(given["train_images"], given["train_targets"]), test, given.get("names", ()))
    return checked(str(path), source)


def _file(path):
    with np.load(path) as found:
        return {key: found[key] for key in found.files}


def _folder(path):
    return {file.stem: np.load(file, mmap_mode="r" if "images" in file.stem else None) for file in path.glob("*.npy")}


def from_function(name: str) -> Source:
    """What a user's function, "path/to/data.py:load", returns when it is called without arguments.

    That is (images, targets), or ((images, targets), (test_images, test_targets)), each with names as a last element
    if there are any, or a Source.

    Raises:
      UserError: the function fails, or what it returns is neither this nor as `checked` wants it.
    """
    function = own.resolve("data.name", name)
    if not callable(function):
        raise UserError(f"data.name: {name} is not a function")
    try:
        returned = function()
    except Exception as error:  # whatever a user's code raises
        raise UserError(f"data.name: {name}() failed: {type(error).__name__}: {error}") from error
    return checked(Path(name).name, as_source(name, returned))


def as_source(name: str, returned: Any) -> Source:
    """What a function or a caller gave, in one of `FORMS`, as a Source that is not checked yet."""
    if isinstance(returned, Source):
        return returned
    if not isinstance(returned, tuple) or len(returned) not in (2, 3):
        raise UserError(f"{name}: arrays are given as {FORMS}, not {_shown(returned)}")
    first, second, *names = returned
    if not isinstance(first, tuple):  # (images, targets)
        return Source(Split(first, second), None, *names or ((),))
    if len(first) != 2 or not isinstance(second, tuple) or len(second) != 2:
        raise UserError(f"{name}: arrays are given as {FORMS}, not {_shown(returned)}")
    return Source(Split(*first), Split(*second), *names or ((),))


def _shown(value):
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return f"an array {value.shape}" if hasattr(value, "shape") else type(value).__name__


def checked(where: str, source: Source) -> Source:
    """A source whose arrays can be trained on, with channels as a last dimension and a name for each output.

    Images must be uint8 [n, height, width] or [n, height, width, channels] of 1 or 3 channels, all of one size.
    Targets are integers [n] from 0 (classes), float numbers [n] or [n, k], or a dict of arrays [n, ...], which needs
    names; with keys boxes and classes they must be as datasets/boxes.py says.

    Args:
      where: the source's name, for errors.
      source: arrays of NumPy, or what becomes such.

    Raises:
      UserError: names what is wrong and how it is put right.
    """
    train = _checked_split(f"{where}: train", source.train)
    test = None if source.test is None else _checked_split(f"{where}: test", source.test)
    if test is not None and (kind := _kind(train)) != _kind(test):
        raise UserError(f"{where}: the test set has {_kind(test)}, the training set {kind}: both must be alike")
    names = _checked_names(where, source.names, train.targets)
    if has_classes(train.targets):
        _check_classes(where, names, train.targets, None if test is None else test.targets)
    for part, split in (("train", train), ("test", test)):
        if split is not None and boxes.are(split.targets):
            boxes.checked(f"{where}: {part}_targets", split.targets, names, split.images.shape[1:3])
    if source.groups is not None and np.shape(source.groups) != (len(train.images),):
        raise UserError(f"{where}: groups has shape {np.shape(source.groups)}: one for each training image is needed")
    return source._replace(train=train, test=test, names=names)


def _checked_split(where, split):
    images = _checked_images(f"{where}_images", split.images)
    tree = split.targets if isinstance(split.targets, dict) else {"": split.targets}
    targets = {
        key: _checked_targets(f"{where}_targets{key and f'[{key!r}]'}", t, len(images)) for key, t in tree.items()
    }
    if isinstance(split.targets, dict):
        return Split(images, targets)
    return Split(images, _checked_array(f"{where}_targets", targets[""]))


def _checked_images(where, images):
    images = _array(where, images, "images must all be of one size")
    if images.dtype != np.uint8:
        if np.issubdtype(images.dtype, np.floating):
            fraction = images.size and np.nanmin(images) >= 0 and np.nanmax(images) <= 1
            cure = "multiply by 255 and round to uint8" if fraction else "bring them to 0..255 and round to uint8"
        else:
            cure = "bring them to 0..255 and cast to uint8"
        raise UserError(f"{where} are {images.dtype}, but pixels must be uint8: {cure}")
    if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[-1] not in (1, 3)):
        raise UserError(
            f"{where} have shape {images.shape}: [n, height, width] or [n, height, width, channels] with 1 or 3 "
            "channels is needed"
        )
    if not images.size:
        raise UserError(f"{where} have shape {images.shape}: there are none")
    return images if images.ndim == 4 else images[..., None]


def _checked_targets(where, targets, count):
    """What holds for each array of a pytree of targets."""
    targets = _array(where, targets, "there must be as many numbers for each image")
    if not targets.ndim or len(targets) != count:
        raise UserError(f"{where} have shape {targets.shape}, but there are {count} images: one for each is needed")
    if np.issubdtype(targets.dtype, np.floating) and not np.isfinite(targets).all():
        bad = np.argwhere(~np.isfinite(targets))[0]
        raise UserError(f"{where} have NaN or infinity, the first for image {bad[0]}: leave such images out")
    return targets


def _checked_array(where, targets):
    """Targets that are one array: classes, or numbers [n, k]."""
    if has_classes(targets):
        if targets.min() < 0:
            raise UserError(f"{where} have the negative label {targets.min()}: classes are numbered from 0")
        return targets
    if not np.issubdtype(targets.dtype, np.floating) or targets.ndim > 2 or not targets.size:
        raise UserError(
            f"{where} are {targets.dtype} of shape {targets.shape}: integers [n] are classes, float [n] or [n, k] "
            "are numbers"
        )
    return targets[:, None] if targets.ndim == 1 else targets


def _array(where, values, otherwise):
    try:
        values = np.asarray(values)
    except ValueError:  # lists of unequal lengths
        values = None
    if values is None or values.dtype == object:
        raise UserError(f"{where} are no plain array: {otherwise}")
    return values


def _kind(split):
    """What two splits must have in common."""
    shape = "x".join(map(str, split.images.shape[1:]))
    if has_classes(split.targets):
        return f"images of {shape} and classes"
    leaves = jax.tree.leaves_with_path(split.targets)
    return f"images of {shape} and {', '.join(f'numbers{jax.tree_util.keystr(p)} {a.shape[1:]}' for p, a in leaves)}"


def _checked_names(where, names: Any, targets) -> tuple[str, ...]:
    if np.ndim(names) != 1:  # of a text too
        raise UserError(f"{where}: names must be a list of texts, not {names!r}")
    names = tuple(str(name) for name in names)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{where}: the name {twice!r} is given twice")
    if isinstance(targets, dict):
        if not names:
            raise UserError(f"{where}: names are needed, of what the outputs stand for")
        return names
    if has_classes(targets):
        if not names and targets.max() >= len(targets):
            raise UserError(f"{where}: label {targets.max()} of {len(targets)} images: {NUMBERED}")
        return names or tuple(str(label) for label in range(targets.max() + 1))
    if names and len(names) != targets.shape[1]:
        raise UserError(f"{where}: {len(names)} names for {targets.shape[1]} number(s) of each image")
    return names or tuple(str(number) for number in range(targets.shape[1]))


def _check_classes(where, names, train, test):
    if len(names) < 2:
        raise UserError(f"{where}: there is only class {names[0]!r}: at least 2 are needed")
    for part, labels in (("train", train), ("test", test)):
        if labels is not None and labels.max() >= len(names):
            known = f"the classes are 0..{len(names) - 1}: {', '.join(names[:5])}{', ...' * (len(names) > 5)}"
            raise UserError(f"{where}: {part}_targets have label {labels.max()}, but {known}")
    present = set(np.unique(train).tolist())
    empty = [f"{label} ({name})" for label, name in enumerate(names) if label not in present]
    if empty:
        some = ", ".join(empty[:5]) + ", ..." * (len(empty) > 5)
        raise UserError(f"{where}: no training image is of class {some}: {NUMBERED}")

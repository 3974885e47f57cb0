"""Data sets as uint8 arrays, in memory or on the disk, split into train, validation and test.

Pixels stay 0..255 here; a network's input is pixel / 255. Where they come from: atalaia.datasets.
"""

import difflib
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from atalaia import own
from atalaia.datasets import LOADERS, TITLES, arrays, boxes, disk, pictures
from atalaia.datasets.disk import Rows
from atalaia.datasets.pictures import size_of
from atalaia.datasets.source import OFFICIAL, TEST_FRACTION, TEST_SEED, Source, Split, has_classes
from atalaia.errors import UserError
from atalaia.progress import Progress

BALANCES = (
    "weights",
    "sampling",
)  # how rare classes count as much as others: in the loss, or by being drawn more often
UNEVEN = 5  # times as many images in one class as in another are worth a word


class Dataset(NamedTuple):
    name: str  # to be shown: it tells what was done to the images, such as "CIFAR-10 upsampled to 96x96"
    train: Split
    validation: Split  # empty when none was asked for
    test: Split
    names: tuple[str, ...]  # of what the outputs stand for: the classes, or the numbers
    unlabelled: np.ndarray  # uint8 [m, height, width, channels], possibly on the disk; empty when none were asked for


def cache_dir(flag_value: str | None) -> Path:
    """Where downloads are kept: the flag, else the environment's ATALAIA_DATA, else ~/.cache/atalaia."""
    return Path(flag_value or os.environ.get("ATALAIA_DATA") or "~/.cache/atalaia").expanduser()


def to_float(images: Any) -> Any:
    """The network's input: uint8 pixels, NumPy's or JAX's, to pixel / 255 in float32, on the int8 input's grid."""
    return images.astype(np.float32) * np.float32(1 / 255)


def load(config: ConfigDict, cache: Path) -> Dataset:
    """Reads the data set that `config` describes, downloading it into `cache` where it has to.

    Args:
      config: name, one of `LOADERS` or a function in a user's file, "path/to/data.py:load" (arrays.from_function);
        path, of image_folder and boxes the root and of arrays the .npz or folder; size, to which images are resized
        (size_of; arrays bicubic to larger and bilinear to smaller, 0 = native), and fit, how where the sides' ratio
        changes (pictures.fit); classes and ignore_below, of data sets with boxes (datasets/boxes.py); grey, whether
        colours are dropped; in_memory, or else images stay on the disk (datasets.disk.Rows); train_per_class, how many
        images of each class are kept (0 = all); validation, the fraction of each class of those set aside; split_seed,
        which chooses both; test_per_class, of the test set, which depends on none of the others; balance, "" or one of
        `BALANCES`; and unlabelled, a folder of images without labels, or "official". Targets that are no classes count
        as one class.
      cache: folder for downloads.

    Raises:
      UserError: a field has no meaning, or the data cannot be had or read.
    """
    validate(config)
    source = arrays.from_function(config.name) if own.is_own(config.name) else LOADERS[config.name](config, cache)
    train, test, groups = _opened(source.train, config), source.test, source.groups
    if test is None:
        taken = _held_out(train.targets, TEST_FRACTION, TEST_SEED, groups)
        train, test, groups = _where(train, ~taken), _where(train, taken), _where(groups, ~taken)
    else:
        test = _opened(test, config)
    # Before they are resized: all of CIFAR-10 at 96x96 would take 1.7 GB.
    kept = _kept(train.targets, "train", config.train_per_class, config.split_seed, source.names)
    train, groups = _where(train, kept), _where(groups, kept)
    test = _where(test, _kept(test.targets, "test", config.test_per_class, TEST_SEED, source.names))
    _check_balance(config, train.targets, source.names)
    taken = _held_out(train.targets, config.validation, config.split_seed, groups)
    train, validation = _where(train, ~taken), _where(train, taken)
    name = _display_name(config, source, train)

    def convert(images):
        return _convert(images, config, name)

    def moved(split):
        return jax.tree.map(_in_32_bits, _moved(split, config, source.fitted))

    train, validation, test = (Split(convert(s.images), moved(s)) for s in (train, validation, test))
    shape = train.images.shape[1:]
    unlabelled = np.empty((0, *shape), np.uint8)
    if source.unlabelled is not None:
        unlabelled = convert(source.unlabelled)
    elif config.unlabelled:
        found = pictures.below(Path(config.unlabelled).expanduser(), "data.unlabelled")
        unlabelled = pictures.read(found, shape[:2], shape[2], config.fit)
    return Dataset(name, train, validation, test, source.names, unlabelled)


def validate(config: ConfigDict) -> None:
    """Refuses fields of `load`'s config that have no meaning, before anything is read.

    Raises:
      UserError: names the field and what is allowed.
    """
    if own.is_own(config.name):
        own.resolve("data.name", config.name)
    elif config.name not in LOADERS:
        near = "".join(f", did you mean {name}?" for name in difflib.get_close_matches(config.name, LOADERS, n=1))
        raise UserError(f"no data set is called {config.name!r}{near or '.'} There are: {', '.join(LOADERS)}")
    if not 0 <= config.validation < 1:
        raise UserError(f"data.validation = {config.validation}: a fraction from 0 to below 1 is needed")
    size_of(config)
    if config.fit not in pictures.FITTED:
        raise UserError(f"data.fit = {config.fit!r}: give one of {', '.join(pictures.FITTED)}")
    if config.balance not in ("", *BALANCES):
        raise UserError(f'data.balance = {config.balance!r}: give one of {", ".join(BALANCES)}, or ""')
    if boxes.parse_classes(config.classes) and config.name != "boxes":
        raise UserError(f'data.classes: {config.name} has no classes of boxes to choose from: give ""')
    if not config.ignore_below >= 0:
        raise UserError(f"data.ignore_below = {config.ignore_below}: a number of pixels is needed, or 0")
    if not 0 <= config.split_seed < 2**32:
        raise UserError(f"data.split_seed = {config.split_seed}: a number from 0 to 2^32 - 1 is needed")
    for field in ("train_per_class", "test_per_class"):
        if config[field] < 0:
            raise UserError(f"data.{field} = {config[field]}: a number of images is needed, or 0 for all")
    if config.unlabelled and not config.in_memory:
        raise UserError('data.unlabelled are kept in memory: give data.in_memory=True, or data.unlabelled=""')
    if config.unlabelled and config.balance == "sampling":
        raise UserError('data.balance = sampling draws by class, but data.unlabelled has none: give "weights"')
    if config.unlabelled == OFFICIAL:
        if config.name != "stl10":
            raise UserError(f'data.unlabelled: {config.name} comes without unlabelled images: give a folder, or ""')
    elif config.unlabelled:
        pictures.below(Path(config.unlabelled).expanduser(), "data.unlabelled")


def _opened(split: Split, config: ConfigDict) -> Split:
    """A loader's split with its images as `config.in_memory` says; what is on the disk and must fit is refused."""
    if not config.in_memory:
        return split._replace(images=Rows(split.images))
    if not disk.on_disk(split.images):
        return split
    n, height, width, channels = split.images.shape
    disk.refuse_too_large((n, *(size_of(config) or (height, width)), 1 if config.grey else channels))
    return split


# --- Which images are in a split ---


def _held_out(targets: Any, fraction: float, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Which images are split off, bool [n]: `fraction` of each class, at least one image if there are two.

    Whole `groups` are, where there are any; a group's class is that of its first image.
    """
    if groups is not None:
        _, first, group = np.unique(groups, return_index=True, return_inverse=True)
        return _held_out(_where(targets, first), fraction, seed)[group]
    taken = np.zeros(_count(targets), bool)
    random = np.random.RandomState(seed)  # its stream is frozen for good, that of default_rng is not
    for members in _classes(targets) if fraction else ():
        members = random.permutation(members)
        taken[members[: min(max(1, round(fraction * len(members))), len(members) - 1)]] = True
    return taken


def _kept(targets: Any, part: str, per_class: int, seed: int, names: Sequence[str]) -> np.ndarray:
    """Which images are kept, bool [n]: `per_class` of each class; all of them for 0."""
    if not per_class:
        return np.ones(_count(targets), bool)
    random = np.random.RandomState(seed)
    kept = np.zeros(_count(targets), bool)
    for label, members in enumerate(_classes(targets, len(names))):
        if len(members) < per_class:
            of = f"class {names[label]!r} has" if has_classes(targets) else "there are"
            raise UserError(f"data.{part}_per_class = {per_class}: {of} {len(members)} images there; give fewer, or 0")
        kept[random.permutation(members)[:per_class]] = True
    return kept


def _classes(targets: Any, count: int = 0) -> list[np.ndarray]:
    """The places of each class's images, of all `count` or of those that are there; of other targets one of all."""
    if not has_classes(targets):
        return [np.arange(_count(targets))]
    return [np.flatnonzero(targets == label) for label in (range(count) if count else np.unique(targets))]


def _count(targets: Any) -> int:
    return len(jax.tree.leaves(targets)[0])


def _where(tree: Any, chosen: np.ndarray) -> Any:
    """Each array [n, ...] of a pytree where `chosen`, bool [n] or places, says; itself if all are."""
    if chosen.dtype == bool and chosen.all():
        return tree
    return jax.tree.map(lambda values: values.where(chosen) if isinstance(values, Rows) else values[chosen], tree)


def _in_32_bits(targets: np.ndarray) -> np.ndarray:
    """Whole numbers in int32 and others in float32, which JAX computes in."""
    kinds = {"i": np.int32, "u": np.int32, "f": np.float32}
    return targets.astype(kinds.get(targets.dtype.kind, targets.dtype))


# --- Classes of unlike size ---


def _check_balance(config: ConfigDict, targets: Any, names: Sequence[str]) -> None:
    """Refuses `balance` where there are no classes; where it would help, says so."""
    if not has_classes(targets):
        if config.balance:
            raise UserError(f'data.balance = {config.balance}: {config.name} has no classes to balance: give ""')
        return
    counts = np.bincount(targets, minlength=len(names))
    most, least = int(counts.argmax()), int(counts.argmin())
    if not config.balance and counts[most] > UNEVEN * counts[least]:
        print(
            f"warning: class {names[most]!r} has {counts[most]} images to learn from, {names[least]!r} "
            f"{counts[least]}: data.balance={' or '.join(BALANCES)} lets all classes count alike",
            file=sys.stderr,
        )


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """Factors of the loss by which all classes count alike: float32 [classes], on average 1 over the labelled images.

    A class's is n / (classes * its images); without images it has 0 and does not count.

    Args:
      labels: int [n]; those below 0, of images without one, do not count.
      classes: how many there are.
    """
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    weights = counts.sum() / (max(np.count_nonzero(counts), 1) * np.maximum(counts, 1))
    return np.where(counts, weights, 0).astype(np.float32)


@partial(jax.jit, static_argnames="n")
def balanced_order(key: jax.Array, labels: jax.Array, n: int) -> jax.Array:
    """Places int32 [n] in `labels`, int [m], for an epoch: each draws a class, all alike, then one of its images.

    Images come again, and some do not come.
    """
    by_class = jnp.argsort(labels, stable=True)
    number = jnp.cumsum(
        jnp.diff(labels[by_class], prepend=labels[by_class[:1]]) != 0
    )  # of each image's class: 0, 1, ..
    key_class, key_image = jax.random.split(key)
    drawn = jax.random.randint(key_class, (n,), 0, number[-1] + 1)
    first, end = (jnp.searchsorted(number, drawn, side=side) for side in ("left", "right"))
    return by_class[jax.random.randint(key_image, (n,), first, end)].astype(jnp.int32)


# --- What is done to images ---


def _display_name(config: ConfigDict, source: Source, train: Split) -> str:
    """What is shown as the data set's name; `train` is before it is resized, validation taken off."""
    name = TITLES.get(config.name, own.title(config.name))
    native, size, how = train.images.shape[1:3], size_of(config), pictures.FITTED[config.fit]
    if size and source.fitted and (size[0] != size[1] or config.fit != "crop"):
        name += f" at {size[0]}x{size[1]}, {how}"
    elif size and size != native:
        name += f" {'upsampled' if _enlarges(native, size) else 'reduced'} to {size[0]}x{size[1]}"
        name += f", {how}" if native[0] * size[1] != native[1] * size[0] else ""
    of_each = " a class" if has_classes(train.targets) else ""
    if config.train_per_class:
        classes = len(source.names) if of_each else 1
        name += f", {round(len(train.images) / classes)} images{of_each}"
        name += f" ({config.test_per_class} to test)" if config.test_per_class else ""
    elif config.test_per_class:
        name += f", {config.test_per_class} test images{of_each}"
    return name


def _moved(split: Split, config: ConfigDict, fitted: bool) -> Any:
    """A split's targets after `_convert`: boxes move with the pixels, and narrow ones are ignored."""
    targets, size, native = split.targets, size_of(config), split.images.shape[1:3]
    if not boxes.are(targets):
        return targets
    if size and size != native and not fitted:
        targets = boxes.moved_to(targets, native, size, config.fit)
    return boxes.without_narrow(targets, config.ignore_below)


def _enlarges(native: Sequence[int], size: Sequence[int]) -> bool:
    return size[0] * size[1] > native[0] * native[1]


def _convert(images: np.ndarray, config: ConfigDict, name: str) -> np.ndarray:
    """Resizes to `config.size` as `config.fit` says and drops the colours, where the images are not so already."""
    count, *native, channels = images.shape
    size = size_of(config) or tuple(native)
    out_channels = 1 if config.grey else channels
    if (*native, channels) == (*size, out_channels):
        return images
    if isinstance(images, Rows):
        raise UserError(
            f"data.in_memory=False: images are used as they are on the disk, {native[0]}x{native[1]}x{channels}: give "
            "data.size=0 and data.grey=False, and write them in the size that you want"
        )
    # Both are smooth; when images become smaller, Pillow averages over all pixels that a new one covers.
    resampling = Image.Resampling.BICUBIC if _enlarges(native, size) else Image.Resampling.BILINEAR
    out = np.empty((count, *size, out_channels), np.uint8)
    with Progress(f"resize to {name}", count, "images") as progress:
        for i, pixels in enumerate(images):
            image = Image.fromarray(np.squeeze(pixels, -1) if channels == 1 else pixels)
            image = image.convert("L") if config.grey else image
            out[i] = np.asarray(pictures.fit(image, size, config.fit, resampling)).reshape(out.shape[1:])
            progress.update()
    return out

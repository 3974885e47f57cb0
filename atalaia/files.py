"""Files that appear whole or not at all: written beside their place, then renamed."""

import contextlib
import fcntl
import json
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np


def shipped(name: str) -> Path:
    """A folder of the repository that lies beside the package there, and inside it where it was installed by pip."""
    inside = Path(__file__).parent / name
    return inside if inside.exists() else Path(__file__).parents[1] / name


def write_whole(path: Path, contents: str | bytes) -> None:
    """Writes a file, or leaves the one that is there as it was."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")  # processes of two machines may share a number
    try:
        part.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays as an .npz, which keeps a CRC of each."""
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # by NumPy's hints a name might be allow_pickle
        os.replace(temporary, path)


@contextlib.contextmanager
def locked(
    path: Path, waiting: Callable[[], None] = lambda: None, stop: Callable[[], bool] = lambda: False
) -> Iterator[int]:
    """Only one process at a time is inside; `waiting()` is called once where another one is.

    Yields the lock's file descriptor: a program that it is handed to keeps the lock too. The system frees the lock when
    the last of them ends, however that was.

    Raises:
      KeyboardInterrupt: `stop()` became true while it waited.
    """
    with Path(path).open("ab") as file:
        if not _lock(file):
            waiting()
            while not _lock(file):  # not blocked in the system: the first Ctrl-C may be no more than a wish to stop
                if stop():
                    raise KeyboardInterrupt
                time.sleep(0.1)
        yield file.fileno()


def _lock(file):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

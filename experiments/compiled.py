"""What scripts share that run generated C on this computer, and keep what takes long."""

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np


def library(folder: Path, sources: Sequence[Path] = ()) -> ctypes.CDLL:
    """The C that codegen wrote into a folder, and other files of C, compiled and loaded.

    Raises:
      UserError: there is no gcc.
    """
    from atalaia.errors import UserError

    made = (folder / "model.so").resolve()
    command = ["gcc", "-O2", "-std=c99", "-shared", "-fPIC", f"-I{folder}", *sources, folder / "model.c", "-o", made]
    try:
        subprocess.run(command, check=True)
    except FileNotFoundError:
        raise UserError("gcc is missing, which compiles generated C: apt install gcc") from None
    return ctypes.CDLL(str(made))


def kept(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """What `compute` gives, kept as an .npy that appears whole."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, compute())
        part.rename(path)
    return np.load(path)

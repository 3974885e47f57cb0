"""Arrays of a network that PyTorch saved, read without PyTorch, and without running code of the file.

The file is a zip archive (PyTorch 1.6 and later): data.pkl is a pickle whose tensors name raw values beside it. Every
class and function that the pickle names becomes an inert record here, but the two that put tensors together.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO

import ml_dtypes
import numpy as np

from atalaia.errors import UserError

_TYPES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


def read(file: Path | IO[bytes]) -> dict[str, np.ndarray]:
    """Parameters and buffers by name, such as "layer1.0.conv1.weight", of a module or of a dict of tensors.

    Convolutions are `[out, in, height, width]`, as PyTorch has them.

    Raises:
      UserError: the file is damaged, or holds something else.
    """
    where = file if isinstance(file, Path) else getattr(file, "name", "the file")
    try:
        with zipfile.ZipFile(file) as archive:
            (name,) = (n for n in archive.namelist() if n.endswith("/data.pkl"))
            arrays = dict(_arrays(_Unpickler(archive, name.removesuffix("data.pkl")).load()))
    # A damaged pickle raises nearly anything, by the place of the damage.
    except Exception as error:
        raise UserError(f"{where} is no network that PyTorch saved, or damaged ({error}): get it again") from error
    if not arrays:
        raise UserError(f"{where} holds no network: a module or a dict of tensors that torch.save wrote is needed")
    return arrays


class _Record:
    """In place of a class of the file: what was saved of an instance, nothing else."""

    def __new__(cls, *given):
        del given
        return super().__new__(cls)

    def __setstate__(self, state):
        self.state = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive, folder):
        super().__init__(archive.open(f"{folder}data.pkl"))
        self._archive, self._folder = archive, folder

    def find_class(self, module, name):
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *more: tensor,
        }
        return known.get((module, name)) or type(name, (_Record,), {})

    def persistent_load(self, saved):
        _, kind, key, _, count = saved
        if kind.__name__ not in _TYPES:
            raise ValueError(f"values of type {kind.__name__} cannot be read")
        values = np.frombuffer(self._archive.read(f"{self._folder}data/{key}"), _TYPES[kind.__name__])
        if len(values) != count:
            raise ValueError(f"{len(values)} values where {count} are described")
        return values


def _tensor(values, offset, shape, strides, *more):
    """As torch._utils._rebuild_tensor_v2; a tensor that would reach beyond its values is an error."""
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if offset < 0 or min(strides, default=0) < 0 or (0 not in shape and last >= len(values)):
        raise ValueError("a tensor lies outside its values")
    size = values.itemsize
    return np.lib.stride_tricks.as_strided(values[offset:], shape, [size * step for step in strides]).copy()


def _arrays(found, prefix=""):
    """Names and arrays of a module, its parts one after the other, or of a dict."""
    if isinstance(found, _Record):
        state = getattr(found, "state", None)
        state = state if isinstance(state, dict) else {}
        own = {**state.get("_parameters", {}), **state.get("_buffers", {})}
        found = own | dict(state.get("_modules", {}))
    for name, part in found.items() if isinstance(found, dict) else ():
        if isinstance(part, np.ndarray):
            yield f"{prefix}{name}", part
        else:
            yield from _arrays(part, f"{prefix}{name}.")

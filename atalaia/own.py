"""A user's own parts, named in a config as "path/to/file.py:Name": networks, data, losses, augmentations."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from atalaia.errors import UserError


def is_own(name: str) -> bool:
    """Whether a name of a config is of a part in a user's own file, not of one of ours."""
    return ".py:" in name


def resolve(field: str, name: str) -> Any:
    """What "path/to/file.py:Name" names: the file is run once a process, its folder is where its imports are found.

    Args:
      field: of the config, to be named in errors.
      name: the file, relative to where the program was started, and a name in it.

    Raises:
      UserError: there is no such file or name, or the file cannot be run.
    """
    file, _, attribute = name.rpartition(":")
    path = Path(file).expanduser().resolve()
    module = _module(field, path)
    if not hasattr(module, attribute):
        names = [n for n, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        raise UserError(f"{field}: {file} has no {attribute!r}; it defines {', '.join(names) or 'nothing'}")
    return getattr(module, attribute)


def _module(field, path):
    key = f"atalaia_own_{path}"
    if key in sys.modules:
        return sys.modules[key]
    if not path.is_file():
        raise UserError(f"{field}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(key, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's code raises
        del sys.modules[key]
        raise UserError(f"{field}: {path} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module

"""A user's own parts: networks, data, losses and augmentations that a config names or that a program hands over.

A config names them as "path/to/file.py:Name". What a program hands to atalaia.train as an object is pickled by value
into the run folder, and the config names that file. A run folder keeps a copy of all of them below source/, so that the
run can be opened later, whatever became of the originals.
"""

import importlib.util
import inspect
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from atalaia.errors import UserError
from atalaia.files import write_whole

FOLDER = "source"  # of a run folder
FIELDS = ("model", "loss.name", "augment.own", "data.name")  # of a config, that may name a user's own part
PICKLE = ".pkl"


def is_own(name: str) -> bool:
    """Whether a name of a config is of a part of a user's own, not of one of ours."""
    return ".py:" in name or name.endswith(PICKLE)


def resolve(field: str, name: str) -> Any:
    """What a config's field names: a part of a file, or a pickled object.

    A file is run once a process; its folder is where its imports are found.

    Args:
      field: of the config, to be named in errors.
      name: "path/to/file.py:Name", relative to where the program was started; or the path of a pickle.

    Raises:
      UserError: there is no such file or name, or the file cannot be run.
    """
    if name.endswith(PICKLE):
        return _unpickled(field, Path(name))
    file, _, attribute = name.rpartition(":")
    module = _module(field, Path(file).expanduser().resolve())
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


def _unpickled(field, path):
    import cloudpickle

    try:
        return cloudpickle.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{field}: there is no file {path}: the run folder lacks its own part") from None
    except Exception as error:  # of a module that is missing now, of a damaged file: nearly anything
        raise UserError(f"{field}: {path} cannot be opened: {type(error).__name__}: {error}") from error


def folder_of(workdir: Path, field: str) -> Path:
    """Where a run keeps its copy of what a field names."""
    return Path(workdir) / FOLDER / field.partition(".")[0]


def begun(workdir: Path) -> bool:
    """Whether a folder holds a run already, whose parts must stay what they are."""
    return (Path(workdir) / "config.json").is_file()


def keep(config: ConfigDict, workdir: Path) -> None:
    """Copies into a run folder the files of a config's own parts, and those beside them that they import.

    Raises:
      UserError: a file is another one than the run was begun with.
    """
    for field, name in _named(config):
        if name.endswith(PICKLE):
            continue  # it lies in the run folder already
        resolve(field, name)
        path, folder = Path(name.rpartition(":")[0]).expanduser().resolve(), folder_of(workdir, field)
        for source in (path, *_imported_beside(path)):
            copy = folder / source.relative_to(path.parent)
            if begun(workdir) and copy.exists() and copy.read_bytes() != source.read_bytes():
                raise UserError(
                    f"{field}: {source} was changed since the run in {workdir} began: put it back (its copy is "
                    f"{copy}), or choose another --workdir"
                )
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


def opened(config: ConfigDict, workdir: Path) -> ConfigDict:
    """The config of a run with its own parts taken from the run folder, where that has them."""
    for field, name in _named(config):
        file, colon, attribute = (name, "", "") if name.endswith(PICKLE) else name.rpartition(":")
        copy = folder_of(workdir, field) / Path(file).name
        if copy.is_file():
            config.update_from_flattened_dict({field: f"{copy}{colon}{attribute}"})
    arrays = folder_of(workdir, "data") / "arrays.npz"
    if config.data.name == "arrays" and arrays.is_file():
        config.data.path = str(arrays)
    return config


def _named(config):
    """(field, name) of a config's own parts."""
    for field in FIELDS:
        value = config
        for part in field.split("."):
            value = value[part]
        if is_own(value):
            yield field, value


def _imported_beside(path):
    """Files below a file's folder that are imported now, and are no installed packages."""
    files = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    found = {Path(file).resolve() for file in files if file}
    return sorted(
        f for f in found if f != path and f.suffix == ".py" and f.is_relative_to(path.parent) and not _installed(f)
    )


def _installed(path):
    return "site-packages" in path.parts or path.is_relative_to(Path(__file__).parent)


def pickled(field: str, part: Any, workdir: Path) -> str:
    """Pickles an object by value into a run folder and gives the name by which a config has it.

    Its source is written beside the pickle where Python knows it. An object that is there already is kept.

    Raises:
      UserError: it cannot be pickled, or the run was begun with another source.
    """
    import cloudpickle

    folder = folder_of(workdir, field)
    path, text = folder / f"{field.partition('.')[0]}{PICKLE}", folder / "source.py"
    source = _source(part)
    if begun(workdir) and path.is_file():
        if source and text.is_file() and text.read_text() != source:
            raise UserError(f"{field}: the run in {workdir} was begun with another source ({text}): choose another one")
        return str(path)
    module = inspect.getmodule(part)
    file = getattr(module, "__file__", None)
    if (
        isinstance(module, ModuleType)
        and file
        and module.__name__ != "__main__"
        and not _installed(Path(file).resolve())
    ):
        cloudpickle.register_pickle_by_value(module)
    try:
        content = cloudpickle.dumps(part)
    except Exception as error:  # nearly anything, by what the object holds
        raise UserError(f"{field}: it cannot be kept in the run folder ({error}): define it in a file") from error
    folder.mkdir(parents=True, exist_ok=True)
    if source:
        write_whole(text, source)
    write_whole(path, content)
    return str(path)


def _source(part):
    try:
        return inspect.getsource(part)
    except (OSError, TypeError):  # of a notebook's class, of a functools.partial
        return ""

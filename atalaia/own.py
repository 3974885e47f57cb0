"""A user's own parts: networks, data, losses and augmentations that a config names or that a program hands over.

A config names them as "path/to/file.py:Name". What a program hands to atalaia.train as an object is pickled by value
into the run folder, and the config names that file. A run folder keeps a copy of all of them below source/, so that the
run can be opened later, whatever became of the originals.
"""

import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from atalaia.errors import UserError
from atalaia.files import write_whole

FOLDER = "source"  # of a run folder
FIELDS = ("model", "loss.name", "augment.own", "data.name")  # of a config, that may name a user's own part
PICKLE = ".pkl"
_BESIDE = "_atalaia_beside"  # attribute of a user's file's module: the files below its folder that it imports
_LIBRARIES = tuple(f"{f}/" for f in (Path(__file__).parent, *map(sysconfig.get_path, ("stdlib", "platstdlib"))))


def is_own(name: str) -> bool:
    """Whether a name of a config is of a part of a user's own, not of one of ours."""
    return ".py:" in name or name.endswith((".py", PICKLE))


def title(name: str) -> str:
    """A part's name to be shown, without its folders."""
    return Path(name).name.removesuffix(PICKLE) if is_own(name) else name


def resolve(field: str, name: str) -> Callable:
    """What a config's field names: a class or function of a file, or one that was pickled.

    A file is run once a process; its folder is where the imports at its top are found.

    Args:
      field: of the config, to be named in errors.
      name: "path/to/file.py:Name", relative to where the program was started; or the path of a pickle.

    Raises:
      UserError: there is no such file or name, the file cannot be run, or the name is of no class or function.
    """
    if name.endswith(PICKLE):
        return _unpickled(field, Path(name))
    file, _, attribute = (name, "", "") if name.endswith(".py") else name.rpartition(":")
    module = _module(field, Path(file).expanduser().resolve())
    if not callable(getattr(module, attribute, None)):
        names = [n for n, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        lacks = f"has no class or function {attribute!r}" if attribute else "is a file: name a part of it, FILE.py:NAME"
        raise UserError(f"{field}: {file} {lacks}; it defines {', '.join(names) or 'nothing'}")
    return getattr(module, attribute)


def _module(field, path):
    key = f"atalaia_own_{path}"
    if key in sys.modules:
        return sys.modules[key]
    if not path.is_file():
        raise UserError(f"{field}: there is no file {path}")
    hidden = _hide_siblings(path.parent)
    before = {name for name, _ in _imported_below(path.parent)}
    spec = importlib.util.spec_from_file_location(key, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's code raises
        del sys.modules[key]
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}, line {lines[-1]}," if lines else f"{path}"
        raise UserError(f"{field}: {where} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent))
        imported = {file for name, file in _imported_below(path.parent) if name not in before}
        sys.modules.update(hidden)
    vars(module)[_BESIDE] = sorted(imported - {path})
    return module


def _hide_siblings(folder):
    """Takes modules away whose names lie in a folder, so that a file there imports what is beside it; gives them back.

    They may be of the same names from elsewhere, or of the program that is running.
    """
    beside = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()}
    names = [name for name, _ in _imported_below(Path("/")) if name.partition(".")[0] in beside]
    return {name: sys.modules.pop(name) for name in names}


def _imported_below(folder):
    """(name, file) of the modules that are imported now from a folder and those below it, but for installed ones."""
    found = [(name, getattr(module, "__file__", None)) for name, module in sys.modules.items() if name != "__main__"]
    found = [(name, Path(file).resolve()) for name, file in found if file and not _installed(file)]
    return [(name, file) for name, file in found if file.is_relative_to(folder)]


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
        for source in (path, *vars(_module(field, path))[_BESIDE]):
            copy = folder / source.relative_to(path.parent)
            if begun(workdir) and copy.exists() and copy.read_bytes() != source.read_bytes():
                raise UserError(
                    f"{field}: {source} was changed since the run in {workdir} began: put it back (its copy is "
                    f"{copy}), or choose another --workdir"
                )
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_whole(copy, source.read_bytes())


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


def _installed(file):
    return file.startswith(_LIBRARIES) or any(name in file for name in ("/site-packages/", "/dist-packages/"))


def pickled(field: str, part: Any, workdir: Path) -> str:
    """Pickles an object by value into a run folder and gives the name by which a config has it.

    Its source is written beside the pickle where Python knows it. An object that is there already is kept.

    Raises:
      UserError: it is no class or function, it cannot be pickled, or the run was begun with another one.
    """
    folder = folder_of(workdir, field)
    if not callable(part):
        raise UserError(f"{field}: a name, a class or a function is needed, not {type(part).__name__}")
    name = getattr(_definition(part), "__name__", "")
    path = folder / f"{name if name.isidentifier() else field.partition('.')[0]}{PICKLE}"
    text = folder / "source.py"
    source = _source(part)
    if begun(workdir):
        known = text.read_text() if text.is_file() else ""
        if not path.is_file() or (source and known and source != known):
            at = f" ({text})" if known else ""
            raise UserError(f"{field}: the run in {workdir} was begun with another one{at}: choose another workdir")
        return str(path)
    try:
        content = _dumps(part)
    except Exception as error:  # nearly anything, by what the object holds
        raise UserError(f"{field}: it cannot be kept in the run folder ({error}): define it in a file") from error
    folder.mkdir(parents=True, exist_ok=True)
    text.unlink(missing_ok=True)
    if source:
        write_whole(text, source)
    write_whole(path, content)
    return str(path)


def _dumps(part):
    """Pickles an object with the user's code that it needs: that of its file, and of files below that one's folder."""
    import cloudpickle

    # A notebook has no file: its modules lie where it was started.
    main = Path(getattr(inspect.getmodule(_definition(part)), "__file__", None) or "notebook").resolve()
    modules = [sys.modules[name] for name, _ in _imported_below(main.parent)]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps(part)
    finally:
        for module in modules:
            cloudpickle.unregister_pickle_by_value(module)


def _definition(part):
    """The class or function of which functools.partial made something."""
    return _definition(part.func) if isinstance(part, partial) else part


def _source(part):
    """The source of a class or function, "" where Python has none; of a notebook's class that of its methods."""
    if isinstance(part, partial):
        return f"{_source(part.func)}\n# with {part.args} {part.keywords}\n"
    try:
        return inspect.getsource(part)
    except (OSError, TypeError):
        methods = [value for value in vars(part).values() if inspect.isfunction(value)] if inspect.isclass(part) else []
        return "\n".join(filter(None, map(_source, methods)))

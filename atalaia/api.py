"""AtalaIA from a script or a notebook: train, export, evaluate, report, compile_c.

    import atalaia

    run = atalaia.train(Net, (images, labels), "runs/mine", stages=("dense", "prune"), dense=dict(epochs=20.0))
    model = atalaia.export(run)
    print(atalaia.evaluate(run))
    page = atalaia.report(run)
    code = atalaia.compile_c(run)

Each gives back what a person wants to know: figures and the paths of what was written. Everything lies in the run
folder, so the commands (`atalaia report --workdir=runs/mine`) go on from there, and a run that was stopped goes on when
the same call is made again.
"""

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from atalaia import own
from atalaia.errors import UserError
from atalaia.files import write_arrays, write_whole


class Run(NamedTuple):
    """A finished run: its folder, its config, and what train.json says (val_score, seconds, ...)."""

    workdir: Path
    config: ConfigDict
    figures: dict


class Exported(NamedTuple):
    """An int8 file: model.tflite, model.atl (the smallest download), and the ledger's row of its sizes in bytes."""

    path: Path
    packed: Path
    sizes: dict


class Evaluated(NamedTuple):
    """scores: engine to figures; table: all of it in Markdown; pictures: the files that were drawn."""

    scores: dict[str, dict]
    table: str
    pictures: list[Path]

    def __str__(self) -> str:
        return self.table

    def _repr_markdown_(self):  # what a notebook shows
        return self.table


class Compiled(NamedTuple):
    """Generated C: the folder of model.c, model.h and golden.h, and what report.json says (bytes, estimated times)."""

    folder: Path
    figures: dict


def train(
    model: str | Callable[..., Any],
    data: str | tuple | Mapping[str, Any],
    workdir: str | Path,
    *,
    task: str = "classify",
    loss: str | Callable | Mapping[str, Any] | None = None,
    augment: str | Callable | Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    **fields: Any,
) -> Run:
    """Trains a network through its stages, or goes on where a stopped call of the same was.

    Args:
      model: a network's name, "path/to/net.py:Net", or a Flax Linen class made of atalaia.layers, whose first field is
        the number of outputs.
      data: a data set's name, "path/to/data.py:load", or arrays: (images, targets) or ((images, targets),
        (test_images, test_targets)), and names as a last element if you like. Images are uint8 [n, height, width] or
        [n, height, width, channels]; targets int [n] (classes) or float [n, k] (task "regress").
        Or a dict of fields of config.data, whose name is one of these: dict(name="digits", validation=0.2).
      workdir: the run folder.
      task: of atalaia.tasks.
      loss: a loss's name, "path/to/loss.py:loss", or your function of (outputs, targets) to a number; by default the
        task's first. Or a dict of fields of config.loss: dict(name="cross_entropy", label_smoothing=0.1).
      augment: your function of (key, images, targets) to (images, targets), float32 in [0, 1], or
        "path/to/augment.py:augment". Or a dict of fields of config.augment, after which yours runs:
        dict(flip=True, own=function).
      data_dir: where downloads are kept (else $ATALAIA_DATA, else ~/.cache/atalaia).
      fields: any field of atalaia.config.base(); those of a part as a dict: batch_size=64, dense=dict(epochs=20.0).

    Raises:
      UserError: a field, the network or the data are wrong, the folder is another run's, or training became NaN.
    """
    from atalaia import config as configs
    from atalaia import tasks
    from atalaia import train as training

    workdir, config = Path(workdir), configs.base()
    (data, data_fields), (loss, loss_fields) = _part(data, "name"), _part(loss, "name")
    augment, augment_fields = _part(augment, "own")
    _update(config, fields | dict(task=task, data=data_fields, loss=loss_fields, augment=augment_fields))
    _refuse_instance(model)
    config.loss.name = _named("loss.name", loss or next(iter(tasks.of(config).LOSSES)), workdir)
    config.model = _named("model", model, workdir)
    config.augment.own = _named("augment.own", augment or "", workdir)
    config.data.update(_data(data, workdir))
    figures = training.train_and_evaluate(config, workdir, _cache(data_dir))
    return Run(workdir, configs.load(workdir), figures)


def export(run: Run | str | Path, data_dir: str | Path | None = None) -> Exported:
    """Writes the int8 network of a finished run, compared with JAX value by value; needs TensorFlow.

    Raises:
      UserError: the run is not finished, or the file would not equal the network.
    """
    from atalaia import export as exporting
    from atalaia import ledger

    workdir = _workdir(run)
    path = exporting.export(workdir, _cache(data_dir))
    return Exported(path, path.with_suffix(".atl"), ledger.read(workdir)[-1])


def evaluate(
    run: Run | str | Path, split: str = "test", engines: Sequence[str] = (), data_dir: str | Path | None = None
) -> Evaluated:
    """Runs the images of a split through the engines; look at "test" once, for the model that you report.

    Args:
      run: a run, or its folder.
      split: "test" or "validation".
      engines: of jax, jax_int, tflite, xnnpack, tflm; by default jax, and jax_int and tflm of a run that was exported.
      data_dir: as `train` takes it.

    Raises:
      UserError: the run is not finished, or an engine cannot run the file.
    """
    from atalaia import config as configs
    from atalaia import data, tflite
    from atalaia import evaluate as evaluating

    workdir = _workdir(run)
    config, file = configs.load(workdir), workdir / "model.tflite"
    names = list(engines) or (["jax", "jax_int", "tflm"] if file.is_file() else ["jax"])
    evaluating.refuse_unknown(names)
    content = tflite.load(file) if any(name not in evaluating.JAX for name in names) else None
    scores = evaluating.evaluate(config, data.load(config.data, _cache(data_dir)), names, workdir, content, split)
    suffix = "" if split == "test" else f"_{split}"
    details = json.loads((workdir / f"evaluation{suffix}_details.json").read_text())
    return Evaluated(scores, evaluating.table(workdir, split), [workdir / row["file"] for row in details["pictures"]])


def report(run: Run | str | Path) -> Path:
    """Writes summary.md and report.html, one page of all that there is of a run, and gives the page's path.

    Raises:
      UserError: the run is not finished.
    """
    from atalaia import page
    from atalaia import report as reporting

    workdir = _workdir(run)
    write_whole(workdir / "summary.md", reporting.run_summary(workdir))
    return page.write(workdir)


def compile_c(run: Run | Exported | str | Path, out: str | Path | None = None, **options: Any) -> Compiled:
    """Writes a model as C99 without heap or floating point, with golden vectors by TFLite Micro.

    Args:
      run: a run that was exported or its folder, or any int8 .tflite file.
      out: the folder to write, whose name is the model's; by default c/NAME in the run folder.
      options: as codegen.generate takes them: samples, sparse, prefer, flash, ram, task, borders,
        target, cores.

    Raises:
      UserError: the file is damaged or not supported, or does not fit.
    """
    from atalaia import config as configs
    from atalaia import tflite
    from atalaia.codegen import __main__ as codegen
    from atalaia.codegen import answers

    path = run.path.parent if isinstance(run, Exported) else _workdir(run)
    if path.is_dir():
        config = configs.load(path)
        options.setdefault("task", config.task if config.task in answers.TASKS else None)
        options.setdefault("fields", config.get(config.task))
        out, path = out or path / "c" / path.name, path / "model.tflite"
    elif not path.exists():
        raise UserError(f"compile_c: there is no {path}: give a run that was exported, or a .tflite file")
    elif out is None:
        raise UserError("compile_c of a .tflite file needs out, the folder to write")
    return Compiled(Path(out), codegen.generate(tflite.load(path), Path(out), **options))


def _workdir(run):
    return run.workdir if isinstance(run, Run) else Path(run)


def _cache(data_dir):
    from atalaia import data

    return data.cache_dir(None if data_dir is None else str(data_dir))


def _update(config, fields):
    """Sets fields that a caller gives by name, those of a part as a dict."""
    from atalaia import cli

    with cli.flag_errors():
        for name, value in fields.items():
            if isinstance(config[name], ConfigDict):
                config[name].update(value)
            else:
                config[name] = value


def _part(given, name):
    """What is named, and the other fields, of a part that is given by itself or as a dict of its fields."""
    if not isinstance(given, Mapping):
        return given, {}
    fields = dict(given)
    return fields.pop(name, None), fields


def _refuse_instance(model):
    import flax.linen as nn

    if isinstance(model, nn.Module):
        name = type(model).__name__
        raise UserError(f"model: give the class, {name}, not {name}(...): training gives it the number of outputs")


def _named(field, part, workdir):
    """A config's name for a part: as it is given, or that of an object that is kept in the run folder."""
    return part if isinstance(part, str) else own.pickled(field, part, workdir)


def _data(data, workdir):
    """The fields of config.data for a data set by name or by arrays, which are kept in the run folder."""
    if isinstance(data, str):
        return dict(name=data)
    from atalaia.datasets import arrays

    source = arrays.checked("data", arrays.as_source("data", data))
    kept = dict(train_images=source.train.images, train_targets=source.train.targets, names=np.array(source.names))
    if source.test is not None:
        kept |= dict(test_images=source.test.images, test_targets=source.test.targets)
    path = own.folder_of(workdir, "data") / "arrays.npz"
    if own.begun(workdir) and path.is_file():
        with np.load(path) as old:
            if set(old.files) != set(kept) or not all(np.array_equal(old[name], kept[name]) for name in kept):
                raise UserError(f"data: the run in {workdir} was begun with other arrays: choose another workdir")
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_arrays(path, kept)
    return dict(name="arrays", path=str(path))


class _Callable(ModuleType):
    """A module that can be called as the function of this file that has its name."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return globals()[self.__name__.rpartition(".")[2]](*args, **kwargs)


def make_callable(name: str) -> None:
    """Lets `atalaia.train(...)` be called, though atalaia.train is the module of the command.

    A package has one attribute of a name: importing a submodule would replace a function that has its name.
    """
    module = sys.modules[name]
    if name != "__main__":
        module.__class__ = _Callable
        vars(module)["__signature__"] = inspect.signature(globals()[name.rpartition(".")[2]])

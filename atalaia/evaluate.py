"""The same test images through every engine: the task's figures, and how far the engines agree.

python -m atalaia.evaluate --workdir=runs/cifar10 [--engines=jax,jax_int,tflite,tflm] [--layers]
python -m atalaia.evaluate --tflite=FILE --config=configs/cifar10.py [--workdir=where/results/go]

`jax` is the network as it was trained (in fake quantisation after stage `quantize`), `jax_int` the integer network of
simulate.py, computed from the checkpoint without the file; the other engines run the file. With --layers, every layer's
bytes of a hundred images are compared with jax_int's, and the first layer that differs is named (layers.json).

Writes evaluation.json (engine to the task's metrics and images), evaluation.md (those, details, agreement) and the
task's pictures, such as confusion.png. A split is used whole, always. Choose with --split=validation, which writes
evaluation_validation.json and so on; look at the test set once, for the model that is reported. An int8 file from
elsewhere gets pixel / 255 on its input's grid.
Stopped and started again, it does not run again those engines of the file that had run through all images.
"""

import hashlib
import itertools
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from atalaia import api, cli, data, engines, export, finished, metrics, qat, report, simulate, tasks, tflite
from atalaia import config as configs
from atalaia.errors import UserError
from atalaia.files import write_arrays, write_json, write_whole
from atalaia.step import EVAL_BATCH

LAYER_IMAGES = 100  # images of --layers


class Outputs(NamedTuple):
    """What an engine gave, `[n, ...]` by head: its own integers or floats, and the real values that they stand for."""

    raw: Any
    real: Any


def jax_outputs(config: ConfigDict, workdir: Path, dataset: data.Dataset, images: np.ndarray) -> Outputs:
    """float32 outputs `[n, ...]` of a finished run's network on uint8 images."""
    run = finished.load_trained(config, workdir, dataset)
    apply = jax.jit(lambda variables, images: run.forward(variables, data.to_float(images))[0])
    batches = [images[i : i + EVAL_BATCH] for i in range(0, len(images), EVAL_BATCH)]
    found = jax.tree.map(
        lambda *parts: np.concatenate(parts), *(jax.device_get(apply(run.variables, batch)) for batch in batches)
    )
    return Outputs(found, found)


def jax_int_outputs(
    config: ConfigDict, workdir: Path, dataset: data.Dataset, images: np.ndarray, tflite_bytes: bytes | None = None
) -> Outputs:
    """int8 outputs `[n, ...]` of a finished run's integer network on uint8 images.

    Raises:
      UserError: the file, where one is given, is not of this network.
    """
    model = simulate.load(config, workdir, dataset)
    if tflite_bytes is not None:
        try:
            export.check(tflite_bytes, model.code, model.network)
        except UserError as error:
            raise UserError(
                f"the .tflite is of another checkpoint or calibration than {workdir} has here ({error}): export again"
            ) from None
    return _outputs(*simulate.run(model.code, model.network, images))


def _outputs(raw, grids):
    """Outputs of an engine by head, on their grids; those that are real already as they are."""

    def real(head, grid):
        scale, zero_point = grid
        return head if np.issubdtype(head.dtype, np.floating) else (head.astype(np.float32) - zero_point) * scale

    return Outputs(raw, jax.tree.map(real, raw, grids))


# Engines that compute from the checkpoint; those of engines.ENGINES run the .tflite file.
JAX: dict[str, Callable] = {"jax": jax_outputs, "jax_int": jax_int_outputs}


def images_of(dataset: data.Dataset, split: str) -> data.Split:
    """The images of a split, "test" or "validation".

    Raises:
      UserError: it is empty.
    """
    found = getattr(dataset, split)
    if not len(found.images):
        raise UserError("the run has no validation split (data.validation is 0): evaluate on --split=test")
    return found


def evaluate(
    config: ConfigDict,
    dataset: data.Dataset,
    names: list[str],
    workdir: Path,
    tflite_bytes: bytes | None,
    split: str = "test",
) -> dict:
    """Runs the engines and writes their results into `workdir`; returns what evaluation.json holds.

    Args:
      config: the run's config.
      dataset: whose images are used.
      names: of the engines, of JAX or engines.ENGINES.
      workdir: the run folder.
      tflite_bytes: the int8 file; None where only those of JAX are asked for.
      split: "test" or "validation".

    Raises:
      UserError: the model does not fit the data set, an engine cannot run it, or the file is not of this checkpoint.
    """
    task, (images, targets) = tasks.of(config), images_of(dataset, split)
    expected, outputs, seconds, peak, kept = task.outputs(dataset, config), {}, {}, 0, {}
    for name in names:
        begin = time.monotonic()
        if name in JAX:
            file = (tflite_bytes,) if name == "jax_int" else ()
            outputs[name] = JAX[name](config, workdir, dataset, images, *file)
            seconds[name] = time.monotonic() - begin
        else:
            kept[name] = _kept_path(workdir, name, tflite_bytes, images)
            raw, seconds[name], most = _engine_outputs(name, tflite_bytes, images, kept[name])
            grids = engines.output_grids(tflite_bytes)
            outputs[name], peak = _outputs(*(_by_head(task, part) for part in (raw, grids))), max(peak, most)
        found = (outputs[name].raw[task.HEADS[0]] if task.HEADS else outputs[name].raw).shape[-1]
        if found != expected:
            raise UserError(f"the model has {found} outputs, data set {dataset.name} needs {expected}")
    scores = {name: task.metrics(out.real, targets) | dict(images=len(images)) for name, out in outputs.items()}
    suffix, last = "" if split == "test" else f"_{split}", outputs[names[-1]].real
    title = f"{dataset.name}, {split}, {names[-1]}"
    pictures = task.pictures(
        images, last, targets, dataset.names, title, lambda name: _with_suffix(workdir / name, suffix)
    )
    details = dict(
        task=config.task,
        dataset=dataset.name,
        split=split,
        engines=scores,
        seconds={k: round(s, 1) for k, s in (seconds | dict(total=sum(seconds.values()))).items()},
        agreement=agreement(task, outputs),
        details={name: task.details(out.real, targets, dataset.names) for name, out in outputs.items()},
        pictures=pictures,
        peak_memory_bytes=max(peak, _peak_memory(images)),
    )
    write_json(workdir / f"evaluation{suffix}_details.json", details)
    write_whole(workdir / f"evaluation{suffix}.md", report.evaluation_table(details))
    write_json(workdir / f"evaluation{suffix}.json", scores)  # the last one: what there is of it is whole
    for path in kept.values():
        path.unlink(missing_ok=True)
    print(f"written: {workdir}/evaluation{suffix}.json, .md, {', '.join(row['file'] for row in pictures)}")
    return scores


def _by_head(task, parts):
    """What there is of each of a file's outputs, which are in the order of their names, as the task has its heads."""
    if len(parts) != max(1, len(task.HEADS)):
        raise UserError(f"the model has {len(parts)} outputs, this task needs {', '.join(task.HEADS) or 'one'}")
    return dict(zip(sorted(task.HEADS), parts, strict=True)) if task.HEADS else parts[0]


def _with_suffix(path, suffix):
    return path.with_stem(path.stem + suffix)


def _kept_path(workdir, name, tflite_bytes, images):
    """Where the outputs of an engine for these images are kept until all engines have run."""
    sha = hashlib.sha256(f"{name} {images.shape}".encode() + tflite_bytes)
    sha.update(np.ascontiguousarray(images))
    return workdir / f"outputs_{sha.hexdigest()[:32]}.npz"


def _engine_outputs(name, tflite_bytes, images, path):
    """(outputs, seconds, peak bytes) of an engine: of a call that was stopped after it, or of now."""
    try:
        with np.load(path) as kept:
            heads = sorted((name for name in kept.files if name.startswith("output")), key=lambda name: int(name[6:]))
            found = [kept[name] for name in heads], float(kept["seconds"]), int(kept["peak_bytes"])
        print(f"{name}: ran already, before the evaluation was stopped", flush=True)
        return found
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile):
        print(f"{path} is damaged: {name} runs again", flush=True)
    begin = time.monotonic()
    outputs = engines.run(name, tflite_bytes, images)
    seconds, peak = time.monotonic() - begin, _peak_memory(images)
    heads = {f"output{number}": head for number, head in enumerate(outputs)}
    write_arrays(path, heads | dict(seconds=np.asarray(seconds), peak_bytes=np.asarray(peak)))
    return outputs, seconds, peak


def _peak_memory(images):
    return metrics.peak_memory_bytes(children=engines.process_count(len(images)))


def compare_layers(
    config: ConfigDict, dataset: data.Dataset, names: list[str], workdir: Path, tflite_bytes: bytes, images: np.ndarray
) -> list[dict]:
    """Part of each layer's output bytes that equal the integer network's, by engine; written to layers.json.

    In a run with stage `quantize`, "training" is the forward pass of training; `predictions_changed` says in which part
    of the images the integer network's answer is another than that one's.

    Args:
      config, dataset, workdir, tflite_bytes: of the run.
      names: of engines.ENGINES.
      images: uint8 `[n, height, width, channels]`.
    """
    model = simulate.load(config, workdir, dataset)
    places = export.check(tflite_bytes, model.code, model.network)
    exact = simulate.layer_outputs(model.code, model.network, images)
    found = {name: engines.run_tensors(name, tflite_bytes, images, [places[path] for path in exact]) for name in names}
    found = {name: dict(zip(exact, tensors, strict=True)) for name, tensors in found.items()}
    if model.trained:
        training = qat.forward_codes(model.code, model.run.variables, data.to_float(images), config.quantize)
        found = {"training": training} | found
    rows = [
        dict(layer=path) | {name: float(np.mean(codes[path].reshape(q.shape) == q)) for name, codes in found.items()}
        for path, q in exact.items()
    ]
    changed = {name: _changed(tasks.of(config), codes, exact) for name, codes in found.items()}
    first = {name: next((r["layer"] for r in rows if r[name] < 1), None) for name in found}
    write_json(workdir / "layers.json", dict(images=len(images), rows=rows, first=first, predictions_changed=changed))
    print(report.layers_table(rows, first, changed))
    return rows


def _changed(task, codes, exact):
    """Part of the images whose answer differs, by the last layer; None for several heads or where none is a choice."""
    last = list(exact)[-1]
    agree = None if task.HEADS else task.agree(codes[last].reshape(exact[last].shape), exact[last])
    return None if agree is None else 1 - agree


def agreement(task: tasks.Task, outputs: dict[str, Outputs]) -> list[dict]:
    """For each two engines: part of the images with one answer, and of the output bytes that are equal (int8)."""
    rows = []
    for (a, first), (b, second) in itertools.combinations(outputs.items(), 2):
        pairs = list(zip(jax.tree.leaves(first.raw), jax.tree.leaves(second.raw), strict=True))
        integer = all(x.dtype == y.dtype == np.int8 for x, y in pairs)
        equal = sum(int(np.sum(x == y)) for x, y in pairs) / sum(x.size for x, _ in pairs)
        same = equal if integer else None
        rows.append(dict(engines=[a, b], predictions=task.agree(first.real, second.real), bytes=same))
    return rows


def refuse_unknown(names: list[str]) -> None:
    """Does nothing for names of engines.

    Raises:
      UserError: one is none; all are listed.
    """
    allowed = [*JAX, *engines.ENGINES]
    if unknown := [n for n in names if n not in allowed]:
        raise UserError(f"unknown engine {unknown[0]!r}: there are {', '.join(allowed)}")


def main() -> None:
    names = flags.FLAGS.engines
    refuse_unknown(names)
    file = flags.FLAGS.tflite
    if file is None:
        workdir = cli.workdir()
        config = configs.load(workdir)
    else:
        workdir, config = _outside(file)
        names = [n for n in names if n not in JAX]
    if not names:
        raise UserError("no engine left: a .tflite file runs in tflite, xnnpack or tflm, and jax needs a run folder")
    if flags.FLAGS.layers:
        if file:
            raise UserError("--layers compares a run's own file with its integers: give --workdir, not --tflite")
        names = [n for n in names if n in engines.TENSORS]  # the others keep nothing between layers
        if not names:
            raise UserError(
                f"no engine left that keeps each layer's output: --layers takes {', '.join(engines.TENSORS)}"
            )
    needs_file = flags.FLAGS.layers or any(n not in JAX for n in names)
    tflite_bytes = tflite.load(file or workdir / "model.tflite") if needs_file else None
    dataset = data.load(config.data, cli.cache())
    workdir.mkdir(parents=True, exist_ok=True)
    if flags.FLAGS.layers:
        images = images_of(dataset, flags.FLAGS.split).images[:LAYER_IMAGES]
        compare_layers(config, dataset, names, workdir, tflite_bytes, images)
    else:
        evaluate(config, dataset, names, workdir, tflite_bytes, flags.FLAGS.split)
        print("\n" + table(workdir, flags.FLAGS.split))


def table(workdir: Path, split: str = "test") -> str:
    """What `evaluate` wrote for people, in Markdown."""
    return (Path(workdir) / ("evaluation.md" if split == "test" else f"evaluation_{split}.md")).read_text()


def _outside(file):
    """Where the results of a file without a run go, and the config that names its data set."""
    config = flags.FLAGS.config
    if config is None:
        raise UserError("no data set for this file: give --config=configs/NAME.py as well")
    configs.validate(config)
    workdir = Path(flags.FLAGS.workdir or Path(file).with_suffix(".evaluation"))
    if (workdir / "config.json").exists():
        raise UserError(f"{workdir} is a run folder, whose results would be overwritten: give another --workdir")
    return workdir, config


api.make_callable(__name__)

if __name__ == "__main__":
    cli.common_flags()
    flags.DEFINE_list(
        "engines", ["jax", "jax_int", "tflite", "tflm"], "Of jax, jax_int, tflite, xnnpack, tflm; by commas."
    )
    flags.DEFINE_bool("layers", False, "Compare every layer's bytes, and name the first that differs.")
    flags.DEFINE_enum("split", "test", ["test", "validation"], "The images to use.")
    flags.DEFINE_string("tflite", None, "An int8 .tflite file instead of a run's; needs --config for the data set.")
    config_flags.DEFINE_config_file("config", help_string="With --tflite: the experiment that names the data set.")
    cli.run(main, goes_on=True)

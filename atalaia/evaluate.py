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

With --processes=N the images are shared out to N processes of this machine, with --coordinator to those of several
(docs/guide/training.md); the results are those of one.
"""

import hashlib
import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from atalaia import (
    api,
    cli,
    data,
    engines,
    export,
    finished,
    metrics,
    ops,
    processes,
    qat,
    report,
    shares,
    simulate,
    tasks,
    tflite,
)
from atalaia import config as configs
from atalaia.errors import UserError
from atalaia.files import write_json, write_whole
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
    key = _key(images, tflite_bytes)
    processes.refuse_unlike("images or another .tflite file", key)
    if tflite_bytes is not None:
        _refuse_other_outputs(task, dataset, config, tflite_bytes)
    outputs, found, stems = {}, {}, {}
    for name in names:
        stems[name] = workdir / f"outputs_{name}_{key[:32]}"
        compute, unit = _computing(name, config, workdir, dataset, tflite_bytes), EVAL_BATCH if name == "jax" else 1
        found[name] = shares.computed(name, compute, images, stems[name], unit, again=name in JAX)
        outputs[name] = _by_head(task, name, found[name].arrays, tflite_bytes)
    processes.wait_for_all("evaluated")  # the first takes away what all have read
    scores = {name: task.metrics(out.real, targets) | dict(images=len(images)) for name, out in outputs.items()}
    if processes.first():
        _write(config, dataset, split, workdir, outputs, found, scores)
        for stem in stems.values():
            shares.remove(stem)
    processes.wait_for_all("written")
    return scores


def _write(config, dataset, split, workdir, outputs, found, scores):
    task, (images, targets) = tasks.of(config), images_of(dataset, split)
    suffix, last = "" if split == "test" else f"_{split}", list(outputs)[-1]
    pictures = task.pictures(
        images,
        outputs[last].real,
        targets,
        dataset.names,
        f"{dataset.name}, {split}, {last}",
        lambda name: _with_suffix(workdir / name, suffix),
    )
    seconds = {name: part.seconds for name, part in found.items()}
    details = dict(
        task=config.task,
        dataset=dataset.name,
        split=split,
        engines=scores,
        seconds={k: round(s, 1) for k, s in (seconds | dict(total=sum(seconds.values()))).items()},
        agreement=agreement(task, outputs),
        details={name: task.details(out.real, targets, dataset.names) for name, out in outputs.items()},
        pictures=pictures,
        processes=jax.process_count(),
        peak_memory_bytes=max(_peak_memory(images), *(part.peak_bytes for part in found.values())),
    )
    write_json(workdir / f"evaluation{suffix}_details.json", details)
    write_whole(workdir / f"evaluation{suffix}.md", report.evaluation_table(details))
    write_json(workdir / f"evaluation{suffix}.json", scores)  # the last one: what there is of it is whole
    print(f"written: {workdir}/evaluation{suffix}.json, .md, {', '.join(row['file'] for row in pictures)}")


def _computing(name, config, workdir, dataset, tflite_bytes):
    """What gives an engine's outputs: those of a file in the order of their names, those of JAX as Outputs has them."""

    def compute(images):
        begin = time.monotonic()
        if name in JAX:
            file = (tflite_bytes,) if name == "jax_int" else ()
            with ops.local_devices():
                arrays = jax.tree.leaves(JAX[name](config, workdir, dataset, images, *file))
        else:
            arrays = engines.run(name, tflite_bytes, images)
        return shares.Found(arrays, time.monotonic() - begin, _peak_memory(images))

    return compute


def _by_head(task, name, arrays, tflite_bytes):
    """Outputs by the task's heads, from the arrays of `_computing`."""
    if name not in JAX:
        grids = engines.output_grids(tflite_bytes)
        return _outputs(*(_heads(task, part) for part in (arrays, grids)))
    half = len(arrays) // 2
    return Outputs(_heads(task, arrays[:half]), _heads(task, arrays[half:]))


def _heads(task, parts):
    """What there is of each of a file's outputs, which are in the order of their names, as the task has its heads."""
    return dict(zip(sorted(task.HEADS), parts, strict=True)) if task.HEADS else parts[0]


def _refuse_other_outputs(task, dataset, config, tflite_bytes):
    """Does nothing for a file with the heads of the task, and as many values in the first as the data set needs."""
    model, heads, expected = tflite.read(tflite_bytes), sorted(task.HEADS), task.outputs(dataset, config)
    if len(model.outputs) != max(1, len(heads)):
        raise UserError(
            f"the model has {len(model.outputs)} outputs, the config's task needs {', '.join(heads) or 'one'}: "
            "give the config of this model"
        )
    width = model.tensors[model.outputs[heads.index(task.HEADS[0]) if heads else 0]].shape[-1]
    if width != expected:
        raise UserError(
            f"the model has {width} outputs, data set {dataset.name} needs {expected}: give the config of this model"
        )


def _with_suffix(path, suffix):
    return path.with_stem(path.stem + suffix)


def _key(images, tflite_bytes):
    """SHA-256 of the images and of the file."""
    sha = hashlib.sha256(f"{images.shape}".encode() + (tflite_bytes or b""))
    sha.update(np.ascontiguousarray(images))
    return sha.hexdigest()


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
    found: dict[str, dict[str, np.ndarray]] = {}
    if model.trained:
        variables = model.run.variables
        found["training"] = qat.forward_codes(model.code, variables, data.to_float(images), config.quantize)
    for name in names:
        tensors = engines.run_tensors(name, tflite_bytes, images, [places[path] for path in exact])
        found[name] = dict(zip(exact, tensors, strict=True))
    rows: list[dict[str, Any]] = [
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
        if flags.FLAGS.processes != 1 or flags.FLAGS.coordinator:
            raise UserError("--layers looks at a hundred images, by one process: leave out --processes, --coordinator")
    needs_file = flags.FLAGS.layers or any(n not in JAX for n in names)
    tflite_bytes = tflite.load(file or workdir / "model.tflite") if needs_file else None
    processes.join("atalaia.evaluate", threads_of_one=True)
    try:
        _run(config, names, workdir, tflite_bytes)
    except KeyboardInterrupt:
        if jax.process_count() == 1:
            raise
        print("stopped; give the same command again to go on", file=sys.stderr)
        processes.leave(processes.STOPPED)  # nothing is left to save, so no process waits for the others


def _run(config, names, workdir, tflite_bytes):
    dataset = data.load(config.data, cli.cache())
    workdir.mkdir(parents=True, exist_ok=True)
    if flags.FLAGS.layers:
        assert tflite_bytes is not None, "--layers reads the file"
        images = images_of(dataset, flags.FLAGS.split).images[:LAYER_IMAGES]
        compare_layers(config, dataset, names, workdir, tflite_bytes, images)
    else:
        evaluate(config, dataset, names, workdir, tflite_bytes, flags.FLAGS.split)
        if processes.first():
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
    processes.define_flags()
    flags.DEFINE_list(
        "engines", ["jax", "jax_int", "tflite", "tflm"], "Of jax, jax_int, tflite, xnnpack, tflm; by commas."
    )
    flags.DEFINE_bool("layers", False, "Compare every layer's bytes, and name the first that differs.")
    flags.DEFINE_enum("split", "test", ["test", "validation"], "The images to use.")
    flags.DEFINE_string("tflite", None, "An int8 .tflite file instead of a run's; needs --config for the data set.")
    config_flags.DEFINE_config_file("config", help_string="With --tflite: the experiment that names the data set.")
    cli.run(main, goes_on=True)

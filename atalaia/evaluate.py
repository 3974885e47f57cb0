"""The same test images through every engine: accuracy, macro F1, and how far the engines agree.

python -m atalaia.evaluate --workdir=runs/cifar10 [--engines=jax,jax_int,tflite,tflm] [--layers]
python -m atalaia.evaluate --tflite=FILE --config=configs/cifar10.py [--workdir=where/results/go]

`jax` is the network as it was trained (in fake quantisation after stage `quantize`), `jax_int` the integer network of
simulate.py, computed from the checkpoint without the file; the other engines run the file. With --layers, every layer's
bytes of a hundred images are compared with jax_int's, and the first layer that differs is named (layers.json).

Writes evaluation.json (engine to {accuracy, f1_macro, images}), evaluation.md (per class, agreement) and confusion.png.
A split is used whole, always. Choose with --split=validation, which writes evaluation_validation.json and so on; look
at the test set once, for the model that is reported. An int8 file from elsewhere gets pixel / 255 on its input's grid.
Stopped and started again, it does not run again those engines of the file that had run through all images.
"""

import hashlib
import itertools
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from sklearn import metrics as sk

from atalaia import cli, data, engines, export, metrics, pictures, qat, report, simulate, tflite, train
from atalaia import config as configs
from atalaia.errors import UserError
from atalaia.files import write_arrays, write_json, write_whole

LAYER_IMAGES = 100  # images of --layers


def jax_logits(config: ConfigDict, workdir: Path, dataset: data.Dataset, images: np.ndarray) -> np.ndarray:
    """float32 logits `[n, classes]` of a finished run's network on uint8 images."""
    run = train.load_trained(config, workdir, dataset)
    apply = jax.jit(lambda variables, images: run.forward(variables, data.to_float(images))[0])
    batches = [images[i : i + train.EVAL_BATCH] for i in range(0, len(images), train.EVAL_BATCH)]
    return np.concatenate([np.asarray(apply(run.variables, batch)) for batch in batches])


def jax_int_logits(
    config: ConfigDict, workdir: Path, dataset: data.Dataset, images: np.ndarray, tflite_bytes: bytes | None = None
) -> np.ndarray:
    """int8 logits `[n, classes]` of a finished run's integer network on uint8 images.

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
    return simulate.logits(model.code, model.network, images)


# Engines that compute from the checkpoint; those of engines.ENGINES run the .tflite file.
JAX: dict[str, Callable] = {"jax": jax_logits, "jax_int": jax_int_logits}


def images_of(dataset: data.Dataset, split: str) -> data.Split:
    """The images of a split, "test" or "validation".

    Raises:
      UserError: it is empty.
    """
    found = getattr(dataset, split)
    if not len(found.targets):
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
    images, labels = images_of(dataset, split)
    outputs, seconds, peak, kept = {}, {}, 0, {}
    for name in names:
        begin = time.monotonic()
        if name in JAX:
            file = (tflite_bytes,) if name == "jax_int" else ()
            outputs[name] = JAX[name](config, workdir, dataset, images, *file)
            seconds[name] = time.monotonic() - begin
        else:
            kept[name] = _kept_path(workdir, name, tflite_bytes, images)
            outputs[name], seconds[name], most = _engine_outputs(name, tflite_bytes, images, kept[name])
            peak = max(peak, most)
        if outputs[name].shape[1] != len(dataset.names):
            found, expected = outputs[name].shape[1], len(dataset.names)
            raise UserError(f"the model has {found} classes, data set {dataset.name} has {expected}")
    predictions = {name: out.argmax(1) for name, out in outputs.items()}
    scores = {name: score(labels, predicted) for name, predicted in predictions.items()}
    details = dict(
        dataset=dataset.name,
        split=split,
        engines=scores,
        seconds={k: round(s, 1) for k, s in (seconds | dict(total=sum(seconds.values()))).items()},
        agreement=agreement(outputs),
        per_class={name: per_class(labels, p, dataset.names) for name, p in predictions.items()},
        peak_memory_bytes=max(peak, _peak_memory(labels)),
    )
    suffix = "" if split == "test" else f"_{split}"
    write_json(workdir / f"evaluation{suffix}_details.json", details)
    text = report.evaluation_table(details)
    write_whole(workdir / f"evaluation{suffix}.md", text)
    print(text)
    title = f"{dataset.name}, {split}, {names[-1]}"
    pictures.confusion_picture(workdir / f"confusion{suffix}.png", labels, predictions[names[-1]], dataset.names, title)
    write_json(workdir / f"evaluation{suffix}.json", scores)  # the last one: what there is of it is whole
    for path in kept.values():
        path.unlink(missing_ok=True)
    print(f"written: {workdir}/evaluation{suffix}.json, .md and confusion{suffix}.png")
    return scores


def _kept_path(workdir, name, tflite_bytes, images):
    """Where the outputs of an engine for these images are kept until all engines have run."""
    sha = hashlib.sha256(f"{name} {images.shape}".encode() + tflite_bytes)
    sha.update(np.ascontiguousarray(images))
    return workdir / f"outputs_{sha.hexdigest()[:32]}.npz"


def _engine_outputs(name, tflite_bytes, images, path):
    """(outputs, seconds, peak bytes) of an engine: of a call that was stopped after it, or of now."""
    try:
        with np.load(path) as kept:
            found = kept["outputs"], float(kept["seconds"]), int(kept["peak_bytes"])
        print(f"{name}: ran already, before the evaluation was stopped", flush=True)
        return found
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile):
        print(f"{path} is damaged: {name} runs again", flush=True)
    begin = time.monotonic()
    outputs = engines.run(name, tflite_bytes, images)
    found = outputs, time.monotonic() - begin, _peak_memory(images)
    write_arrays(path, {k: np.asarray(v) for k, v in zip(("outputs", "seconds", "peak_bytes"), found, strict=True)})
    return found


def _peak_memory(images):
    return metrics.peak_memory_bytes(children=engines.process_count(len(images)))


def compare_layers(
    config: ConfigDict, dataset: data.Dataset, names: list[str], workdir: Path, tflite_bytes: bytes, images: np.ndarray
) -> list[dict]:
    """Part of each layer's output bytes that equal the integer network's, by engine; written to layers.json.

    In a run with stage `quantize`, "training" is the forward pass of training; `predictions_changed` says in which part
    of the images the integer network's class is another than that one's.

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
    last = list(exact)[-1]
    changed = {
        name: float(np.mean(codes[last].reshape(exact[last].shape).argmax(1) != exact[last].argmax(1)))
        for name, codes in found.items()
    }
    first = {name: next((r["layer"] for r in rows if r[name] < 1), None) for name in found}
    write_json(workdir / "layers.json", dict(images=len(images), rows=rows, first=first, predictions_changed=changed))
    print(report.layers_table(rows, first, changed))
    return rows


def score(labels: np.ndarray, predicted: np.ndarray) -> dict:
    """Accuracy and macro F1 (mean of the classes' F1, scikit-learn) of class indices `[n]`."""
    f1 = sk.f1_score(labels, predicted, average="macro", zero_division=0)
    return dict(accuracy=float(sk.accuracy_score(labels, predicted)), f1_macro=float(f1), images=len(labels))


def per_class(labels: np.ndarray, predicted: np.ndarray, class_names: tuple[str, ...]) -> list[dict]:
    """Precision, recall, F1 and number of images of each class."""
    figures = sk.precision_recall_fscore_support(labels, predicted, labels=range(len(class_names)), zero_division=0)
    names = ("precision", "recall", "f1", "images")
    return [
        {"class": name} | {key: float(value) for key, value in zip(names, row, strict=True)}
        for name, row in zip(class_names, zip(*figures, strict=True), strict=True)
    ]


def agreement(outputs: dict[str, np.ndarray]) -> list[dict]:
    """For each two engines: part of the images with one prediction, and of the output bytes that are equal (int8)."""
    rows = []
    for a, b in itertools.combinations(outputs, 2):
        same = float(np.mean(outputs[a].argmax(1) == outputs[b].argmax(1)))
        integer = outputs[a].dtype == outputs[b].dtype == np.int8
        rows.append(
            dict(engines=[a, b], predictions=same, bytes=float(np.mean(outputs[a] == outputs[b])) if integer else None)
        )
    return rows


def main() -> None:
    names = flags.FLAGS.engines
    allowed = [*JAX, *engines.ENGINES]
    if unknown := [n for n in names if n not in allowed]:
        raise UserError(f"unknown engine {unknown[0]!r}: there are {', '.join(allowed)}")
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

"""Our face detector for experiments/faces.py: a run that is trained and exported, judged in float, int8 and C."""

import ctypes
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import compiled
import faces_test
import numpy as np
import tables
from faces_test import Boxes, Photos
from tables import ROOT

SAMPLES = 8  # golden vectors of the C
SHOWN = 20  # photos of the picture


def measure(workdir: Path, test: Photos, cache: Path, kept: Path, prefer: str = "speed") -> dict:
    """The figures of a run: as float network, in int8 and in C, with the threshold that validation chose.

    Args:
      workdir: the run folder; test: the test photos; cache: of data sets.
      kept: the folder for its model.atl, by the run's name; prefer: of codegen.

    Raises:
      UserError: the run is not finished or not exported, is no detector of such images, or a compiler is missing.
    """
    from atalaia import config as configs
    from atalaia import data, evaluate, finished, tflite
    from atalaia.files import write_whole

    config, _ = configs.load(workdir), finished.finished(workdir)
    content = tflite.load(workdir / "model.tflite")
    channels = _refuse_other(workdir, config, tflite.read(content))
    dataset = data.load(config.data, cache)
    images, validation = test.images(channels), evaluate.images_of(dataset, "validation")
    lines: dict[str, dict] = {}
    if (forward := float_forward(config, workdir, dataset)) is not None:
        chosen = _threshold(config, forward(validation.images), validation.targets)
        lines["float"] = _scored(_found(config, forward(images)), chosen, test)
    exact = evaluate.jax_int_outputs(config, workdir, dataset, validation.images, content)
    scale = tables_of_heads(content)["centre"][0]
    least = _threshold(config, exact.real, validation.targets) - scale / 2  # between two codes: none lies on it
    integer = evaluate.jax_int_outputs(config, workdir, dataset, images, content)
    tflm = run_engine(content, images)
    equal = {head: float(np.mean(tflm.raw[head] == integer.raw[head])) for head in tflm.raw}
    lines["int8"] = _scored(_found(config, tflm.real), least, test)
    made = in_c(workdir / "c", content, config, dataset, images, tflm.raw, _probability(least), prefer)
    boxes = made.pop("found")
    lines["c"] = dict(f1_chosen=faces_test.f1_at(-np.inf, *boxes, test.targets))
    kept.mkdir(parents=True, exist_ok=True)
    write_whole(kept / f"{workdir.name}.atl", (workdir / "model.atl").read_bytes())
    picture(workdir / "faces_test.png", images, boxes, test.targets, f"{workdir.name}, test photos")
    return dict(
        row=workdir.name,
        command=f"python experiments/faces.py --photos=FOLDER --workdir=runs/{workdir.name} --prefer={prefer}",
        prefer=prefer,
        model=str(config.model).rpartition(":")[2],
        stages=list(config.stages),
        seed=config.seed,
        **tables.trained(workdir),
        scores=lines,
        threshold=_probability(least),
        validation_images=len(validation.images),
        heads_equal=equal,
        photos=test.named,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        sees=f"160x120{', grey' * (channels == 1)}",
        **made,
    )


def _refuse_other(workdir, config, graph):
    """The channels of a detector of frames of the test's size."""
    from atalaia.errors import UserError

    if config.task != "detect":
        raise UserError(f"{workdir} is a run of task {config.task}: a detector of faces is needed")
    height, width, channels = graph.tensors[graph.inputs[0]].shape[1:]
    if (height, width) != faces_test.SIZE:
        raise UserError(f"{workdir} sees images of {width}x{height}: this table is of 160x120 (data.size=120,160)")
    return channels


def float_forward(config: Any, workdir: Path, dataset: Any) -> Callable | None:
    """Of uint8 images, the outputs of the network at the end of its last float stage; None where it has none."""
    import jax

    from atalaia import channels, checkpoint, data, finished, plan, step

    stages = [s for s in plan.make_plan(config, *plan.image_counts(dataset)) if s.name != "quantize"]
    if not stages:
        return None
    model, manager = finished.create_model(config, dataset), checkpoint.open_folder(workdir, writing=False)
    shapes = step.state_shapes(config, model, dataset.train.images.shape[1:])
    state, _ = finished.restore(manager, config, model, shapes, stages[-1].end)
    model = channels.fitted(model, shapes.params, state.params)
    variables, forward = step.variables_of(state), step.make_forward(config, model, stages[-1])
    apply = jax.jit(lambda variables, images: forward(variables, data.to_float(images))[0])

    def outputs(images):
        size = step.EVAL_BATCH
        parts = [jax.device_get(apply(variables, images[i : i + size])) for i in range(0, len(images), size)]
        return jax.tree.map(lambda *heads: np.concatenate(heads), *parts)

    return outputs


def tables_of_heads(content: bytes) -> dict[str, tuple[float, int]]:
    """Scale and zero point of each head of a .tflite file, whose outputs are in the order of their names."""
    from atalaia import engines, tasks

    return dict(zip(sorted(tasks.detect.HEADS), engines.output_grids(content), strict=True))


def run_engine(content: bytes, images: np.ndarray) -> Any:
    """What TFLite Micro gives, by head, as evaluate.Outputs."""
    from atalaia import engines, evaluate

    grids = tables_of_heads(content)
    raw = dict(zip(grids, engines.run("tflm", content, images), strict=True))
    return evaluate.Outputs(raw, {n: (raw[n].astype(np.float32) - z) * s for n, (s, z) in grids.items()})


def _found(config, outputs):
    """Boxes of any score, in pixels."""
    from atalaia.tasks import peaks

    found = peaks.find_real(np.asarray(outputs["centre"]), np.asarray(outputs["box"]), -np.inf, config.detect)
    return Boxes(found.classes, found.scores, found.boxes / peaks.FRACTION)


def _threshold(config, outputs, targets):
    """The least score, a logit, of the boxes with the best F1."""
    from atalaia import tasks
    from atalaia.tasks import peaks

    found = tasks.of(config).metrics(outputs, targets)["f1_threshold"]
    return peaks.logit(min(max(found, 1e-6), 1 - 1e-6)) - 1e-6  # rounding loses none


def _probability(score):
    return float(1 / (1 + np.exp(-score)))


def _scored(found, least, test):
    chosen = dict(f1_chosen=faces_test.f1_at(least, *found, test.targets))
    return faces_test.finite(faces_test.figures(*found, test.targets)) | chosen


# ---- C


def in_c(
    out: Path,
    content: bytes,
    config: Any,
    dataset: Any,
    images: np.ndarray,
    raw: Any,
    threshold: float,
    prefer: str = "speed",
) -> dict:
    """Writes the C of a detector, runs it on all images and in the emulators, and says what was found.

    Args:
      out: the folder to write; content: the .tflite file; config, dataset: of the run; images: uint8, of the test.
      raw: TFLite Micro's int8 heads for them; threshold: least probability of a box.
      prefer: speed or bytes of flash, as codegen's flag.

    Returns:
      Sizes, counts and times; `boxes_in_c`, how many boxes it finds; `frames_equal`, in how many images they are
      Python's in every number; `heads_equal_c`, the part of the heads' bytes that are TFLite Micro's; `found`, the
      boxes.
    """
    from atalaia import engines, tasks
    from atalaia.codegen import __main__ as codegen
    from atalaia.codegen import boards, camera
    from atalaia.tasks import peaks

    chosen, grids = config.copy_and_resolve_references(), tables_of_heads(content)
    chosen.detect.threshold = threshold
    view = camera.View(config.data.fit, tuple(dataset.names))
    golden, fields = dataset.validation.images, chosen.detect
    codegen.generate(content, out, golden, SAMPLES, prefer=prefer, task="detect", fields=fields, view=view)
    run, pixels = function(out), engines.quantize_input(content, images)
    heads, answers = (np.stack(part) for part in zip(*map(run, pixels), strict=True))
    scales, zeros = ({n: grid[i] for n, grid in grids.items()} for i in (0, 1))
    expected = tasks.of(chosen).decode(raw, scales, zeros)
    flat = np.concatenate([raw[name].reshape(len(images), -1) for name in sorted(raw)], 1)
    codegen.count(out)
    report = json.loads((out / "report.json").read_text())
    rows = answers.reshape(len(images), -1, peaks.VALUES)
    scores = np.where(rows[..., 0] < 0, -np.inf, rows[..., 1])
    found = Boxes(rows[..., 0], scores, rows[..., 2:] / peaks.FRACTION)
    kept = ("weight_bytes", "arena_bytes", "macs", "counted_instructions", "estimated", "code_bytes")
    return dict(
        **{name: report[name] for name in kept},
        esp32=for_the_esp32(content, out.with_name(f"{out.name}_esp32"), prefer),
        browser_ms=boards.run(out, boards.WASM)["milliseconds"],
        boxes_in_c=int((found.classes >= 0).sum()),
        frames_equal=int((answers == expected).all(1).sum()),
        heads_equal_c=float(np.mean(heads == flat)),
        found=found,
    )


def for_the_esp32(content: bytes, out: Path, prefer: str) -> dict:
    """What the C of a network for the ESP32's own instructions needs.

    Raises:
      UserError: in an emulator some golden vector is not right.
    """
    from atalaia.codegen import __main__ as codegen

    codegen.generate(content, out, samples=SAMPLES, prefer=prefer, target="esp32", borders="int8")
    codegen.count(out)
    report = json.loads((out / "report.json").read_text())
    return {name: report[name] for name in ("weight_bytes", "arena_bytes", "counted_instructions", "estimated")}


def function(folder: Path) -> Callable:
    """A function of int8 pixels to int8 outputs and int32 answers: the C in a folder, compiled for this computer."""
    c = compiled.library(folder, [ROOT / "mcu/boards/wasm/page.c"])
    for name, kind in dict(input=ctypes.c_int8, outputs=ctypes.c_int8, answer=ctypes.c_int32).items():
        getattr(c, f"page_{name}").restype = ctypes.POINTER(kind)
    size = sum(int(n) for n in re.search(r"OUTPUT_BYTES {(.*)}", (folder / "model.h").read_text())[1].split(","))

    def run(pixels):
        np.ctypeslib.as_array(c.page_input(), (pixels.size,))[:] = pixels.ravel()
        c.page_run()
        found = ((c.page_outputs(), size), (c.page_answer(), c.page_answers()))
        return tuple(np.ctypeslib.as_array(pointer, (count,)).copy() for pointer, count in found)

    return run


def picture(path: Path, images: np.ndarray, found: Boxes, targets: dict, title: str) -> None:
    """Draws some images with their right, wrong and missed boxes; spread over the half with most faces."""
    from atalaia import pictures

    right, ignored = (part[0] for part in faces_test.judge(found.classes, found.boxes, targets))
    wrong = (found.classes >= 0) & ~right & ~ignored
    missed = faces_test.missed(found, right, targets)
    some = np.sort(
        np.argsort(-(targets["classes"] >= 0).sum(1), kind="stable")[:: max(1, len(images) // 2 // SHOWN)][:SHOWN]
    )
    judged = dict(
        right=[found.boxes[i][right[i]] for i in some],
        wrong=[found.boxes[i][wrong[i]] for i in some],
        missed=[targets["boxes"][i][missed[i]] for i in some],
    )
    pictures.judged_picture(path, images[some], judged, title)

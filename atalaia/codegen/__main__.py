"""C for a microcontroller from any fully int8 .tflite file.

python -m atalaia.codegen --tflite=FILE --out=mcu/models/NAME [--sparse=auto|always|never]
    [--prefer=balanced|speed|size] [--samples=16 --config=configs/cifar10.py] [--flash=BYTES --ram=BYTES] [--count]
    [--task=classify|regress|detect] [--borders=file|int8] [--target=any|esp32] [--cores=1|2]
python -m atalaia.codegen --tflite=FILE --package=idf|arduino|platformio|plain --out=NAME
    [--arena=static|given|psram] [--labels=FILE] [--package_version=1.0.0]
python -m atalaia.codegen --tflite=FILE --explain

Writes model.c, model.h, golden.h, report.json and the file itself as model.tflite. Golden inputs are images of
the validation split of the config, or random bytes by a fixed seed; golden outputs are TFLite Micro's. --count runs the
C in the emulators and enters the instructions that they count in report.json. --task adds model_answer(), which makes
of the outputs what the task answers, and golden answers, which are Python's. Of a detector it also writes detector.h,
which mcu/apps need. Steps whose maps are large run row by row where that costs nothing; --ram goes further for an arena
that fits. --borders=int8 leaves out what the file converts from and to float32 at its borders.
--target=esp32 may take kernels for the ESP32's own instructions, which run anywhere but are fast there alone.
--cores=2 adds model_invoke_on(), which two cores call at once: each does half of a layer.
--explain writes nothing: it lists a file's operators, what is not supported and why, and size and time of the rest.
--package writes what a project takes in as it is: a component or a library with a C interface, and an example. In place
of --tflite, --workdir=RUN takes the file of a run that was exported, its config, task and labels.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from atalaia import cli, data, tflite
from atalaia import config as configs
from atalaia.codegen import (
    answers,
    boards,
    camera,
    emit,
    estimates,
    explained,
    fitting,
    golden,
    interface,
    kernels,
    lowering,
)
from atalaia.codegen import borders as of_borders
from atalaia.codegen import cores as of_cores
from atalaia.codegen import package as packages
from atalaia.codegen.graph import firsts
from atalaia.errors import UserError
from atalaia.files import write_json, write_whole


def generate(
    tflite_bytes: bytes,
    out: Path,
    images: np.ndarray | None = None,
    samples: int = 16,
    sparse: str = "auto",
    prefer: str = "balanced",
    flash: int | None = None,
    ram: int | None = None,
    task: str | None = None,
    fields: ConfigDict | None = None,
    view: camera.View | None = None,
    borders: str | None = None,
    target: str = "any",
    cores: int = 1,
) -> dict:
    """Writes the C of a model into folder `out` and returns what report.json holds.

    Args:
      tflite_bytes: the file.
      out: the folder, whose name is the model's.
      images: uint8 `[n, height, width, channels]` for the golden inputs; None: random bytes.
      samples: golden vectors.
      sparse, prefer, flash, target: as kernels.choose takes them; the constants must fit `flash`.
      ram: bytes that the arena must fit, by strips that cost instructions if need be.
      task: of answers.TASKS, whose answer model_answer() makes of the outputs; None: there is no such function.
      fields: the task's part of a config, which detect needs.
      view: of task detect, the data's: it writes detector.h, for a camera's app.
      borders: of borders.BORDERS, as lowering.lower takes it; None: "int8" with a task, else "file".
      cores: 1 or 2; of 2 each does half of a step, and model_invoke_on() is theirs.

    Raises:
      UserError: the file is damaged or not supported, the model does not fit, or its outputs have no such answer;
        nothing is written then.
    """
    if cores not in (1, 2):
        raise UserError(f"cores = {cores!r}: C is made for 1 or 2")
    borders = borders or ("int8" if task else "file")
    model, lowered, planned = _compile(tflite_bytes, sparse, prefer, flash, borders, ram, target, cores)
    calls, plan = planned.calls, planned.plan
    if task and any(i in lowered.dtypes for i in lowered.outputs):
        raise UserError(f"--task={task} needs int8 outputs: this file's are {', '.join(lowered.dtypes.values())}")
    heads = [answers.Head(lowered.shapes[i][1:], *_grid(model.tensors[i])) for i in lowered.outputs]
    answer = answers.of(task, heads, fields) if task else None
    found = _report(lowered, planned, target)
    _refuse_too_large(found, flash, ram)
    inputs = golden.golden_inputs(tflite_bytes, model, lowered, images, samples)
    outputs, arena = golden.golden_outputs(tflite_bytes, model, lowered, inputs)
    found = dict(model=Path(out).name, **found, tflm=dict(file_bytes=len(tflite_bytes), arena_bytes=arena))
    name = Path(out).name
    scales = {i: _grid(model.tensors[i]) for i in (*lowered.inputs, *lowered.outputs)}
    decoded = answer.decode(outputs) if answer else None
    found |= interface.described(model, lowered) | dict(task=task, answers=0 if decoded is None else decoded.shape[1])
    files = {
        "model.c": emit.model_c(name, lowered, calls, plan) + (emit.answer_c(answer) if answer else ""),
        "model.h": emit.model_h(name, lowered, plan, scales, 0 if decoded is None else decoded.shape[1]),
        "golden.h": emit.golden_h(inputs, outputs, decoded),
    }
    if view is not None and task == "detect":
        given = lowered.inputs[0]
        files["detector.h"] = camera.detector_h(name, lowered.shapes[given][1:], scales[given], heads, view)
    Path(out).mkdir(parents=True, exist_ok=True)
    for file, text in files.items():
        write_whole(Path(out) / file, text)
    write_whole(Path(out) / "model.tflite", tflite_bytes)
    write_json(Path(out) / "report.json", found)
    return found


def _grid(tensor):
    return (float(tensor.scale[0]), int(tensor.zero_point[0])) if len(tensor.scale) else (1.0, 0)


def report(tflite_bytes: bytes, sparse: str = "auto", prefer: str = "balanced", flash: float | None = None) -> dict:
    """What report.json would hold that needs no engine and no compiler, without writing anything.

    Args:
      tflite_bytes: the file.
      sparse, prefer, flash: as kernels.choose takes them; constants above `flash` are not refused.

    Raises:
      UserError: the file is damaged or not supported.
    """
    _, lowered, planned = _compile(tflite_bytes, sparse, prefer, flash)
    return _report(lowered, planned)


def explain(tflite_bytes: bytes, sparse: str = "auto", prefer: str = "balanced", target: str = "any") -> str:
    """Lines about each operator of a file, and bytes and time of all that are supported.

    Args:
      tflite_bytes: the file.
      sparse, prefer, target: as kernels.choose takes them.

    Raises:
      UserError: the file is damaged.
    """
    model = tflite.read(tflite_bytes)
    rows, lowered = explained.operators(model)
    calls = kernels.choose(lowered, sparse, prefer, target=target)
    graph = lowered._replace(steps=[call.step for call in calls])
    found = fitting.plan(graph, calls, boards=kernels.TARGETS[target])
    return explained.text(model, rows, found.calls, _report(graph, found, target))


def _compile(tflite_bytes, sparse, prefer, flash, borders="file", ram=None, target="any", cores=1):
    """The file's tables, and of its graph the steps, their kernels, and where their maps lie."""
    model = tflite.read(tflite_bytes)
    lowered = lowering.lower(model, borders)
    limit = flash
    for _ in range(3):  # tables of strips and structs of halves, which are known after the kernels, have to fit too
        calls = kernels.choose(lowered, sparse, prefer, limit, target)
        graph = lowered._replace(steps=[call.step for call in calls])
        if cores == 2:
            planned = of_cores.planned(graph, calls, target)
        else:
            planned = fitting.plan(graph, calls, ram, kernels.TARGETS[target])
        if limit is None or planned.weight_bytes <= flash:
            break
        limit = flash - (planned.weight_bytes - sum(calls[at].weight_bytes for at in set(firsts(calls))))
    if cores == 2 and not planned.plan.halves:
        graph = graph._replace(notes=[*graph.notes, "--cores=2: no step can be shared, so this C is for one core"])
    return model, graph, planned


def _report(lowered, planned, target="any"):
    """Sizes and estimates, layer by layer; what a strip adds is part of its layers' instructions."""
    plan, counted, slower = planned.plan, counting(target), None
    if plan.halves:
        found = of_cores.slower_core(planned)
        slower = {board: round(found[board], 4) for board in counted}
    layers = [_layer(i, call, plan, counted) for i, call in enumerate(planned.calls)]
    rows = [
        dict(
            first=strip.first,
            last=strip.last,
            bytes=strip.scratch,
            table_bytes=strip.table_bytes,
            instructions={board: round(strip.added[board]) for board in counted},
        )
        for strip in plan.strips
    ]
    for strip in plan.strips:
        within = layers[strip.first : strip.last + 1]
        for b in counted:
            whole = sum(layer["instructions"][b] for layer in within)
            for layer in within:
                layer["instructions"][b] = round(layer["instructions"][b] * (1 + strip.added[b] / whole))
    instructions = {b: sum(layer["instructions"][b] for layer in layers) for b in counted}
    return dict(
        weight_bytes=planned.weight_bytes,
        arena_bytes=plan.arena,
        arena_bound_bytes=plan.bound,
        target=target,
        macs=sum(layer["macs"] for layer in layers),
        estimated_instructions=instructions,
        counted_instructions=None,
        slower_core=slower,
        estimated=estimates.by_chip(instructions, layers, target, slower),
        published=list(estimates.PUBLISHED),
        notes=lowered.notes,
        strips=rows,
        layers=layers,
    )


def _layer(i, call, plan, counted):
    """A step in the report."""
    v = call.step.values
    calls = [half.call for half in plan.halves.get(i, ())] or [call]
    return dict(
        step=i,
        op=call.step.op,
        kernel=call.kernel,
        macs=call.step.macs,
        zeros=float(np.mean(v["kernel"] == 0)) if "kernel" in v else None,
        weight_bytes=call.weight_bytes,
        sweeps=call.sweeps,
        rows=v.get("out_h", 1),
        strip=next((k for k, strip in enumerate(plan.strips) if strip.first <= i <= strip.last), None),
        live_bytes=plan.layers[i],
        instructions={board: round(sum(c.instructions[board] for c in calls)) for board in counted},
    )


def count(out: Path, samples: int | None = None) -> dict[str, dict]:
    """Runs a generated model in the emulators, enters the instructions in its report.json, and returns what they said.

    Estimated milliseconds are then of the instructions that were counted.

    Raises:
      UserError: as boards.run(), or a board's bytes are not the golden ones.
    """
    report = json.loads((Path(out) / "report.json").read_text())
    found = {board: boards.run(out, board, samples) for board in counting(report.get("target", "any"))}
    for board, row in found.items():
        if row["equal"] < row["samples"]:
            wrong = row["samples"] - row["equal"]
            raise UserError(f"{out} on {board}: {wrong} of {row['samples']} samples differ from TFLite Micro")
        if row["answers_equal"] not in (None, row["samples"]):
            raise UserError(f"{out} on {board}: only {row['answers_equal']} of {row['samples']} answers are Python's")
    counted = {board: row["instructions"] for board, row in found.items()}
    report["counted_instructions"] = counted
    report["code_bytes"] = {board: row["code_bytes"] for board, row in found.items()}
    target, slower = report.get("target", "any"), report.get("slower_core")
    report["estimated"] = estimates.by_chip(counted, report["layers"], target, slower)
    write_json(Path(out) / "report.json", report)
    return found


def counting(target: str) -> tuple[str, ...]:
    """The emulators that count what is estimated."""
    return boards.EMULATORS if target == "any" else (*boards.EMULATORS, *kernels.TARGETS[target])


def flash_bytes(tflite_bytes: bytes) -> int:
    """Code and constants of a model's generated C, compiled for rv32imc with -O2.

    Raises:
      UserError: as generate() and boards.run().
    """
    with tempfile.TemporaryDirectory() as folder:
        generate(tflite_bytes, Path(folder) / "model", samples=1)
        found = boards.run(Path(folder) / "model", "rv32", 1)
    return found["code_bytes"] + found["weight_bytes"]


def _refuse_too_large(report, flash, ram):
    if flash is not None and report["weight_bytes"] > flash:
        worst = max(report["layers"], key=lambda layer: layer["weight_bytes"])
        over = report["weight_bytes"] - flash
        raise UserError(
            f"the constants take {report['weight_bytes']:,} bytes, {over:,} more than --flash={flash}: step "
            f"{worst['step']} ({worst['op']}) alone takes {worst['weight_bytes']:,}; prune further"
        )
    if ram is not None and report["arena_bytes"] > ram:
        worst = max(report["layers"], key=lambda layer: layer["live_bytes"])
        over = report["arena_bytes"] - ram
        raise UserError(
            f"the arena takes {report['arena_bytes']:,} bytes at the least that was found, {over:,} more than "
            f"--ram={ram}: step {worst['step']} "
            f"({worst['op']}) needs {worst['live_bytes']:,}; use smaller images or fewer channels"
        )


def main() -> None:
    values = flags.FLAGS
    packages.take_run(values)
    package = packages.asked(values)
    if not values.tflite or not (values.out or values.explain):
        raise UserError("give --tflite=FILE and --out=mcu/models/NAME")
    tflite_bytes = tflite.load(values.tflite)
    if values.explain:
        print(explain(tflite_bytes, values.sparse, values.prefer, values.target))
        return
    images = view = None
    if values.config is not None:
        configs.validate(values.config)
        dataset = data.load(values.config.data, cli.cache())
        images = dataset.validation.images if len(dataset.validation.images) else dataset.train.images
        view = camera.View(values.config.data.fit, tuple(dataset.names))
    options: dict[str, Any] = {
        name: values[name].value
        for name in ("samples", "sparse", "prefer", "flash", "ram", "task", "borders", "target", "cores")
    }
    fields = values.config.get(values.task or "") if values.config is not None else None
    if package:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / package.name
            generate(tflite_bytes, made, images, fields=fields, **options)
            if values.count:
                count(made)
            files = packages.write(package, made, view.names if view and values.task else ())
        print(f"written: {values.out}/{', '.join(files)}")
        return
    report = generate(tflite_bytes, Path(values.out), images, fields=fields, view=view, **options)
    if values.count:
        count(Path(values.out))
        report = json.loads((Path(values.out) / "report.json").read_text())
    print(json.dumps({k: v for k, v in report.items() if k != "layers"}, indent=2))
    files = ["model.c", "model.h", "golden.h", "report.json", "model.tflite"]
    files += ["detector.h"] if values.task == "detect" else []
    print(f"written: {values.out}/{', '.join(files)}")


if __name__ == "__main__":
    cli.common_flags()
    flags.DEFINE_string("tflite", None, "The int8 .tflite file.")
    flags.DEFINE_string("out", None, "The folder to write, such as mcu/models/NAME.")
    flags.DEFINE_enum("sparse", "auto", ["auto", "always", "never"], "When zeros are left out.")
    flags.DEFINE_enum("target", "any", list(kernels.TARGETS), "What the C is to be fast on.")
    flags.DEFINE_integer("cores", 1, "How many cores of the chip run it at once.", lower_bound=1, upper_bound=2)
    flags.DEFINE_enum("prefer", "balanced", ["balanced", "speed", "size"], "Of instructions and bytes of flash.")
    flags.DEFINE_enum("task", None, list(answers.TASKS), "Whose answer model_answer() makes of the outputs.")
    flags.DEFINE_enum("borders", None, list(of_borders.BORDERS), "Types at the borders: the file's, or int8.")
    packages.define_flags()
    flags.DEFINE_bool("explain", False, "List the file's operators; write nothing.")
    flags.DEFINE_bool("count", False, "Run it in the emulators and enter the instructions in report.json.")
    flags.DEFINE_integer("samples", 16, "Golden vectors.", lower_bound=1)
    flags.DEFINE_integer("flash", None, "Bytes that the constants must fit, by slower kernels if need be.")
    flags.DEFINE_integer("ram", None, "Bytes that the arena must fit, by slower strips if need be.")
    config_flags.DEFINE_config_file("config", help_string="The experiment whose data set gives golden inputs.")
    cli.run(main)

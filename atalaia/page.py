"""report.html: one run to look at, in one file that needs no network and no other file.

The page that runs the network itself is another one: atalaia.browser.

python -m atalaia.report --workdir=runs/digits     # writes it into the run folder; open it in any browser

A run that is not exported or not evaluated yet gets a page too, with a note in the place of what is missing. Every
figure stands in a <data> element, whose `value` is the number itself, in the unit that is shown.
"""

import json
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from atalaia import config as configs
from atalaia import ledger, markup, metrics, own, pictures, report, tflite
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import estimates, lowering, packing
from atalaia.errors import UserError
from atalaia.files import write_whole

STYLE = Path(__file__).with_name("page.css")
KIB, MIB = 2**10, 2**20
CHIP = "esp32"  # of estimates.CHIPS
FLASH_BYTES, RAM_BYTES, DATA_BYTES = 4 * MIB, 520 * KIB, 320 * KIB  # an ESP32's; data: about what programs can use
NO_CURVES = ("step", "stage", "epoch", "images_per_s", "val_score")  # the score is one of the others
FILES = {
    "model.tflite": "the int8 network, for TFLite Micro and other engines",
    "model.atl": "the smallest download, from which model.tflite is restored",
    "config.json": "every field of the experiment",
    "metrics.jsonl": "figures while it trained",
    "ledger.json": "sizes, stage by stage",
    "evaluation.json": "scores of every engine",
    "summary.md": "the tables of this page as text",
}


class Run(NamedTuple):
    """What a run folder says.

    train: train.json; evaluation: evaluation_details.json, or None; sizes: rows of the ledger; curves: metrics.jsonl.
    code: codegen's report of the int8 file, whose layers have `name` and `bits` too; None with the reason in `no_code`.
    """

    workdir: Path
    config: ConfigDict
    train: dict
    evaluation: dict | None
    sizes: list[dict]
    curves: list[dict]
    code: dict | None
    no_code: str = ""

    @property
    def int8(self) -> dict:
        """The ledger's row of the int8 file; empty without one."""
        return next((row for row in self.sizes if row["stage"] == "int8"), {})


def write(workdir: Path) -> Path:
    """Writes report.html into a run folder.

    Raises:
      UserError: the run is not trained.
    """
    path = Path(workdir) / "report.html"
    write_whole(path, html(read(workdir)))
    return path


def read(workdir: Path) -> Run:
    """What there is of a run.

    Raises:
      UserError: it is not trained.
    """
    workdir = Path(workdir)
    report.steps(workdir)  # refuses a run that is not trained
    train, evaluation = (_json(workdir / report.STEPS[name]) for name in ("train", "evaluate"))
    code, reason = None, f"No int8 file yet: run atalaia.export --workdir={workdir}"
    try:
        if (workdir / "model.tflite").is_file():
            code = code_report(tflite.load(workdir / "model.tflite"))
    except UserError as error:
        reason = f"No C for this file: {error}"
    sizes, curves = ledger.read(workdir), metrics.rows(workdir)
    return Run(workdir, configs.load(workdir), train, evaluation, sizes, curves, code, reason)


def code_report(tflite_bytes: bytes) -> dict:
    """codegen's report of a file, with `name` and `bits` of each layer, and its part of the time as `milliseconds`.

    Raises:
      UserError: the file is damaged or not supported.
    """
    found = codegen.report(tflite_bytes)
    model = tflite.read(tflite_bytes)
    board = estimates.CHIPS[CHIP].board
    for layer, step in zip(found["layers"], lowering.lower(model).steps, strict=True):
        part = layer["instructions"][board] / found["estimated_instructions"][board]
        layer |= dict(
            name=layer_name(model.tensors[step.output].name) if step.place >= 0 else "",
            bits=weight_bits(step.values["kernel"]) if "kernel" in step.values else None,
            milliseconds=[part * ms for ms in found["estimated"][CHIP]["milliseconds"]],
        )
    return found


def layer_name(tensor: str) -> str:
    """The layer's path in the network of a tensor that jax2tf named: "max;jit(apply)/ResNet8/conv/add" is of "conv"."""
    paths = (name.split("/")[2:-1] for name in tensor.split(";") if name.startswith("jit("))
    return "/".join(dict.fromkeys(next((path for path in paths if path), [])))


def weight_bits(codes: np.ndarray) -> int:
    """Bits that hold every weight of a layer: the fewest of codegen's packed forms, else 8."""
    return next((bits for bits in packing.BITS if packing.fits(codes, bits)), 8)


def html(run: Run) -> str:
    """The whole page."""
    sections = {
        "Training": curves,
        "Size": sizes,
        "Answers": answers,
        "Layers": layers,
        "On the board": board,
        "Engines": engines,
        "Time and memory": steps,
        "Files": files,
        "Settings": settings,
    }
    body = [heading(run), tiles(run), *(markup.section(title, part(run)) for title, part in sections.items())]
    return markup.document(
        f"{own.title(run.config.model)} on {run.train['dataset']}", STYLE.read_text(), "\n".join(body)
    )


def heading(run: Run) -> str:
    """Network, data set, task, seed, and what was trained."""
    facts = [
        f"task {run.config.get('task', 'classify')}",
        f"images of {' × '.join(map(str, run.train['image_shape']))}",
        f"stages {', '.join(run.config.stages)}",
        f"seed {run.train['seed']}",
        f"trained by jax {run.train['jax']} on {run.train['device']}",
    ]
    items = "".join(f"<li>{escape(fact)}</li>" for fact in facts)
    title = f"{escape(own.title(run.config.model))} <small>on {escape(run.train['dataset'])}</small>"
    return f"<header><h1>{title}</h1><ul class=facts>{items}</ul></header>"


def tiles(run: Run) -> str:
    """The main figures: scores, and what the model takes."""
    found = _score_tiles(run)
    if run.int8.get("download_bytes"):
        found.append(("Download", markup.number(run.int8["download_bytes"]), "bytes, model.atl"))
    if run.code:
        flash, what = _flash(run)
        time = markup.span(run.code["estimated"][CHIP]["milliseconds"])
        found.append(("Flash", markup.number(flash), f"bytes of {what}"))
        found.append(("RAM", markup.number(run.code["arena_bytes"]), "bytes of arena"))
        found.append(("Time", time, "ms on an ESP32, <em>estimated</em>"))
    cells = "".join(f"<div class=tile><h3>{a}</h3><p class=figure>{b}</p><p>{c}</p></div>" for a, b, c in found)
    notes = [] if run.evaluation else [_not_evaluated(run)]
    notes += [] if run.code else [run.no_code]
    return f"<div class=tiles>{cells}</div>" + "".join(map(markup.note, notes))


def _score_tiles(run):
    """The first figure of the network as it was trained, and of the engine that is nearest to the board, the last."""
    if not run.evaluation:
        return []
    engines = run.evaluation["engines"]
    trained = "Trained network" if "quantize" in run.config.stages else "Float network"
    labels = {name: trained if name == "jax" else "int8 network" for name in ("jax", list(engines)[-1])}
    found = []
    for engine, label in labels.items():
        if engine in engines:
            name, value = next(iter(engines[engine].items()))
            where = f"{markup.words(name)}, {run.evaluation['split']} split, {engine}"
            found.append((label, markup.score(name, value), escape(where)))
    return found


def curves(run: Run) -> str:
    """Each figure of metrics.jsonl over the steps, that of training and that of validation in one picture."""
    if not run.curves:
        return markup.note("No metrics.jsonl.")
    starts: dict[str, int] = {}
    last = 0
    for row in run.curves:
        starts.setdefault(row["stage"], last)
        last = row["step"]
    names = dict.fromkeys(key.removeprefix("val_") for row in run.curves for key in row if key not in NO_CURVES)
    drawings = []
    for name in sorted(names, key=lambda n: n == "learning_rate"):
        scale, unit = (100, ", %") if name in markup.FRACTIONS else (1, "")
        lines = {}
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if points := [(row["step"], scale * row[key]) for row in run.curves if row.get(key) is not None]:
                at, values = zip(*points, strict=True)
                lines[label] = at, values
        drawings.append(pictures.curves_picture(lines, starts, markup.words(name) + unit))
    return f"<div class=curves>{''.join(f'<figure>{drawing}</figure>' for drawing in drawings)}</div>"


def sizes(run: Run) -> str:
    """The ledger as bars, and all of it as a table."""
    trained = next(row for row in reversed(run.sizes) if row.get("float32_bytes"))
    bars = [("float32", "four bytes a value", trained["float32_bytes"])]
    if run.int8:
        bars.append(("int8", "model.tflite", run.int8.get("tflite_bytes")))
        bars.append(("packed", "model.atl, the download", run.int8.get("download_bytes")))
    if run.code:
        flash, what = _flash(run)
        bars.append(("on the board", f"flash: {what}", flash))
    whole = trained["float32_bytes"]
    rows = [(label, what, n / whole, n, f"{markup.number(whole / n, 1)}×") for label, what, n in bars if n]
    columns = [c for c in ledger.COLUMNS if any(row.get(c) is not None for row in run.sizes)]
    stages = [
        [escape(row["stage"]), *("–" if row.get(c) is None else markup.number(row[c]) for c in columns)]
        for row in run.sizes
    ]
    table = markup.table(["stage", *map(markup.words, columns)], stages)
    return markup.bars(("bytes", "smaller"), rows) + markup.details("All stages, all sizes", table)


def answers(run: Run) -> str:
    """The task's pictures, those that exist."""
    if not run.evaluation:
        return markup.note(_not_evaluated(run))
    listed = run.evaluation.get("pictures", [dict(file="confusion.png", title="Confusion matrix")])
    there = [(run.workdir / picture["file"], picture["title"]) for picture in listed]
    figures = "".join(markup.png(path.read_bytes(), title) for path, title in there if path.is_file())
    return f"<div class=pictures>{figures}</div>" if figures else markup.note("The evaluation left no pictures.")


def layers(run: Run) -> str:
    """Bars of each layer of the int8 file, in the order in which they run."""
    if not run.code:
        return markup.note(run.no_code)
    rows = [layer for layer in run.code["layers"] if layer["op"] not in ("input", "output")]
    columns = dict(zeros="zeros, %", bits="bits", weight_bytes="bytes", macs="MACs", milliseconds="estimated ms")
    full = {key: max(_size(row[key]) for row in rows) for key in columns} | dict(zeros=1, bits=8)
    texts = dict(zeros=lambda v: markup.number(100 * v, 1), milliseconds=lambda v: markup.span(v, 2))
    lines = ["<tr class=head><th>layer</th>" + "".join(f"<th>{label}</th>" for label in columns.values()) + "</tr>"]
    for row in rows:
        cells = ""
        for key, label in columns.items():
            if row[key] is not None:
                bar, text = markup.bar(_size(row[key]) / (full[key] or 1)), texts.get(key, markup.number)(row[key])
                cells += f'<td class=cell data-label="{label}">{bar}<span>{text}</span></td>'
            else:
                cells += '<td class="cell none"></td>'
        name = escape(row["name"] or row["op"].lower())
        lines.append(f"<tr><th>{name}<small>{escape(row['op'])}</small></th>{cells}</tr>")
    return (
        f"<table class=layers>{''.join(lines)}</table><p class=small>Bytes are the constants that the generated C keeps"
        " in flash, which leaves zeros out where that is shorter. Bits are what the layer's weights need. A layer's "
        "time is its part of the estimated instructions.</p>"
    )


def board(run: Run) -> str:
    """Flash and RAM of an ESP32 with the model on it, and the estimate of the time."""
    if not run.code:
        return markup.note(run.no_code)
    flash, what = _flash(run)
    arena, tflm = run.code["arena_bytes"], run.int8.get("tflm_arena_bytes")
    verdict = "It fits an ESP32." if flash <= FLASH_BYTES and arena <= DATA_BYTES else "It does not fit an ESP32."
    if not run.int8.get("flash_bytes"):
        verdict += " The code of the kernels comes on top: it was not compiled for this run."
    taken = (
        ("Flash", f"{what}, of {FLASH_BYTES // MIB} MB", flash, FLASH_BYTES),
        ("RAM", f"arena, of about {DATA_BYTES // KIB} KB", arena, DATA_BYTES),
    )
    rows = [(label, said, n / of, n, f"{markup.number(100 * n / of, 1)} %") for label, said, n, of in taken]
    times = "".join(
        f"<li>{name.upper().replace('32C', '32-C')}, {chip['hertz'] / 1e6:.0f} MHz: "
        f"<strong>{markup.span(chip['milliseconds'])} ms</strong></li>"
        for name, chip in run.code["estimated"].items()
    )
    formula = f"<p class=small>{escape(run.code['estimated'][CHIP]['formula'])}</p>"
    return (
        f"<p>{verdict}</p>{markup.bars(('bytes', 'taken'), rows)}"
        f"<p class=small>An ESP32 has {RAM_BYTES // KIB} KB of SRAM, of which a program can use about "
        f"{DATA_BYTES // KIB} KB as data. The arena holds all that an inference computes."
        + (f" TFLite Micro would take an arena of {markup.number(tflm)} bytes." if tflm else "")
        + f"</p><h3>Time of one inference, <em>estimated</em></h3><ul>{times}</ul><p class=small>No board measured it. "
        "The instructions come from the kernels' costs; the range is that of the cycles an instruction takes.</p>"
        + markup.details("How it is estimated", formula)
    )


def engines(run: Run) -> str:
    """Scores of every engine, and how far they agree."""
    if not run.evaluation:
        return markup.note(_not_evaluated(run))
    found, seconds = run.evaluation["engines"], run.evaluation["seconds"]
    names = list(next(iter(found.values())))
    rows = [
        [escape(engine), *(markup.score(n, row[n]) for n in names), f"{markup.number(seconds[engine], 1)} s"]
        for engine, row in found.items()
    ]
    tables = markup.table(["engine", *map(markup.words, names), "time"], rows)
    if run.evaluation["agreement"]:
        rows = [
            [escape(" and ".join(row["engines"])), *(markup.agreement(row[k]) for k in ("predictions", "bytes"))]
            for row in run.evaluation["agreement"]
        ]
        tables += markup.table(["engines", "same answer", "same output bytes"], rows)
    return (
        f"<div class=columns>{tables}</div><p class=small>jax is the network as it was trained, jax_int the integer "
        "network computed from the checkpoint; the others run the .tflite file, tflm by the engine of the boards.</p>"
    )


def steps(run: Run) -> str:
    """Time and memory of what was done."""
    done = report.steps(run.workdir)
    done["whole"] = sum(seconds for seconds, _ in done.values()), max(peak for _, peak in done.values())
    rows = [[name, markup.number(seconds, 1), markup.number(peak / MIB)] for name, (seconds, peak) in done.items()]
    return markup.table(["step", "seconds", "peak memory, MiB"], rows)


def files(run: Run) -> str:
    """What lies in the run folder."""
    rows = [[f"<code>{name}</code>", what] for name, what in FILES.items() if (run.workdir / name).is_file()]
    return f"<p>In <code>{escape(str(run.workdir))}</code>:</p>{markup.table(['file', 'what'], rows)}"


def settings(run: Run) -> str:
    """The experiment as flags of atalaia.train: what differs from the defaults."""
    usual = configs.flat(configs.base())
    changed = {k: v for k, v in configs.flat(run.config).items() if usual.get(k) != v}
    flags = "\n".join(f"--config.{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in changed.items())
    return f"<p>What differs from the defaults:</p><pre>{escape(flags)}</pre>"


def _not_evaluated(run):
    return f"Not evaluated yet: run atalaia.evaluate --workdir={run.workdir}"


def _flash(run):
    """(bytes, what they are): with the code where the ledger has it, else constants only."""
    measured = run.int8.get("flash_bytes")
    return (measured, "code and constants") if measured else (run.code["weight_bytes"], "constants")


def _json(path):
    return json.loads(path.read_text()) if path.is_file() else None


def _size(value):
    """What a bar shows of a layer's figure: of a range its largest."""
    return (value[-1] if isinstance(value, list) else value) or 0

"""Tries a run's network without a board: one page that runs its C in a browser, on the camera and on photos.

python -m atalaia.browser --workdir=runs/digits [--out=FOLDER] [--samples=8]     # or ./run.sh page, the same flags

Takes a run that was exported. Its C is that of atalaia.codegen, compiled to WebAssembly (mcu/boards/wasm); boxes,
classes and numbers are those of model_answer(). Writes index.html into FOLDER, by default page/ in the run folder: it
needs no other file and no connection, and opens from the disk. --samples pictures of the test set are in it; with 0 the
data are not needed.
"""

import base64
import io
import json
import tempfile
from html import escape
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

from atalaia import cli, data, engines, markup, own, page, tflite
from atalaia import config as configs
from atalaia.codegen import __main__ as codegen
from atalaia.codegen import boards
from atalaia.datasets.source import Split, has_classes
from atalaia.errors import UserError
from atalaia.files import write_whole
from atalaia.finished import finished

FOLDER = Path(__file__).parent
SAMPLES = 8


def write(workdir: Path, cache: Path, out: Path | None = None, samples: int = SAMPLES) -> Path:
    """Writes index.html of a run that was exported, and gives its path.

    Args:
      workdir: the run folder.
      cache: of data sets.
      out: the folder to write; by default page/ in the run folder.
      samples: pictures of the test set that are in the page.

    Raises:
      UserError: the run is not exported, a compiler is missing, or the data cannot be had.
    """
    config, train = configs.load(workdir), finished(workdir)
    content = tflite.load(Path(workdir) / "model.tflite")
    boards.require_webassembly()
    chosen = _chosen(config, cache, samples)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        report = codegen.generate(content, model, samples=1, task=config.task, fields=config.get(config.task))
        program = boards.webassembly(model)
    path = Path(out or Path(workdir) / "page") / "index.html"
    text = html(config, train, report, facts(config, train, content, program), chosen)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return path


def _chosen(config, cache, samples):
    """So many of the test set, from all of it: it may lie in the order of its classes."""
    if not samples:
        return None
    try:
        test = data.load(config.data, cache).test
    except UserError as error:
        raise UserError(f"{error}; or leave the pictures out: --samples=0") from None
    places = np.unique(np.linspace(0, len(test.images) - 1, samples).round().astype(int))
    return Split(test.images[places], test.targets[places] if has_classes(test.targets) else None)


def facts(config: ConfigDict, train: dict, content: bytes, program: bytes) -> dict:
    """What page.js knows of a model.

    Args:
      config: the run's; train: its train.json; content: the .tflite file; program: WebAssembly of boards.webassembly.

    Returns:
      `levels`: the int8 value of each of the 256 of a pixel; `outputs`: bytes, scale and zero point of each, in the
      order of the file; `wasm`: the program in base64; the rest is the config's.
    """
    graph = tflite.read(content)
    shape = graph.tensors[graph.inputs[0]].shape[1:]
    sizes = [int(np.prod(graph.tensors[i].shape)) for i in graph.outputs]
    grids = engines.output_grids(content)
    return dict(
        task=config.task,
        names=list(train["names"]),
        shape=[int(side) for side in shape],
        fit=config.data.fit,
        levels=_levels(content, shape),
        outputs=[dict(bytes=n, scale=float(s), zero_point=int(z)) for n, (s, z) in zip(sizes, grids, strict=True)],
        wasm=base64.b64encode(program).decode(),
    )


def _levels(content, shape):
    """The network's input for each value of a pixel, by what quantises all images."""
    count = -(-256 // int(np.prod(shape)))
    values = (np.arange(count * np.prod(shape)) % 256).astype(np.uint8)
    return engines.quantize_input(content, values.reshape(count, *shape)).ravel()[:256].astype(int).tolist()


def html(config: ConfigDict, train: dict, report: dict, facts: dict, chosen: Split | None) -> str:
    """The whole page.

    Args:
      config: the run's; train: its train.json; report: codegen's; facts: of `facts`.
      chosen: pictures to begin with, uint8 `[n, height, width, channels]`, and their classes; or None.
    """
    title = f"{own.title(config.model)} on {train['dataset']}"
    held = json.dumps(facts).replace("<", "\\u003c")  # no </script> within
    scripts = "".join(f"<script>\n{(FOLDER / name).read_text()}</script>\n" for name in ("fit.js", "page.js"))
    body = (
        f"<header><h1>{escape(own.title(config.model))} <small>on {escape(train['dataset'])}</small></h1></header>"
        f"{_tiles(report, facts)}{_stage(facts, chosen)}"
        "<p class=small>The C code of the board runs here, compiled to WebAssembly. Nothing leaves this computer.</p>"
        f'<script type="application/json" id="facts">{held}</script>\n{scripts}'
    )
    style = page.STYLE.read_text() + (FOLDER / "page.css").read_text()
    return markup.document(title, style, body)


def _tiles(report, facts):
    height, width, channels = facts["shape"]
    found = (
        ("Time", "<span id=time>–</span>", "ms, the median of the last runs in this browser"),
        ("Flash", markup.number(report["weight_bytes"]), "bytes of constants, on a board"),
        ("RAM", markup.number(report["arena_bytes"]), "bytes of arena, on a board"),
        ("Input", f"{width} × {height}", f"pixels, {'grey' if channels == 1 else 'in colour'}"),
    )
    cells = "".join(f"<div class=tile><h3>{a}</h3><p class=figure>{b}</p><p>{c}</p></div>" for a, b, c in found)
    return f"<div class=tiles>{cells}</div>"


def _stage(facts, chosen):
    """Buttons, the picture, the answer and the samples."""
    height, width, _ = facts["shape"]
    return (
        "<section class=try><div class=controls>"
        "<button id=camera>Start the camera</button><button id=turn hidden>Other camera</button>"
        '<label class=button>Choose a photo<input id=photo type=file accept="image/*"></label>'
        "<p>or drop one anywhere.</p></div>"
        "<p id=message class=note hidden></p><canvas id=view width=960 height=540></canvas>"
        "<div><h3>Answer</h3><ul id=answer><li>–</li></ul>"
        f"<h3>What the network sees</h3><canvas id=seen width={width} height={height}></canvas></div>"
        f"{_samples(facts['names'], chosen)}</section>"
    )


def _samples(names, chosen):
    """Buttons with pictures of the test set, and their classes."""
    if chosen is None:
        return ""
    buttons = ""
    for i, pixels in enumerate(chosen.images):
        kept = io.BytesIO()
        Image.fromarray(np.squeeze(pixels, -1) if pixels.shape[-1] == 1 else pixels).save(kept, "PNG")
        source = f"data:image/png;base64,{base64.b64encode(kept.getvalue()).decode()}"
        label = "" if chosen.targets is None else escape(names[chosen.targets[i]])
        buttons += f'<button><img alt="picture {i + 1} of the test set" src="{source}">{label}</button>'
    return f"<h3 class=all>From the test set</h3><div class=samples>{buttons}</div>"


def main() -> None:
    values = flags.FLAGS
    written = write(cli.workdir(), cli.cache(), values.out, values.samples)
    print(f"written: {written}, to be opened in any browser")


if __name__ == "__main__":
    cli.common_flags()
    flags.DEFINE_string("out", None, "The folder to write; by default page/ in the run folder.")
    flags.DEFINE_integer("samples", SAMPLES, "Pictures of the test set in the page.", lower_bound=0)
    cli.run(main)

"""Which size is meant: one table, ledger.json, for all stages of a run. Sizes come from here only."""

import gzip
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from atalaia import tflite
from atalaia.errors import UserError
from atalaia.files import write_json

COLUMNS = {
    "parameters": "values of the network, BatchNorm's moving statistics and stage quantize's ranges counted; in int8, "
    "weights, biases and bounds",
    "nonzeros": "how many of them are not zero",
    "float32_bytes": "four bytes for each value, zeros too",
    "checkpoint_bytes": "files of the checkpoint: weights, optimiser's state and masks, as orbax compresses them",
    "tflite_bytes": "the .tflite file",
    "gzip_bytes": "gzip -9 of the .tflite file; of the float32 values where there is no such file",
    "download_bytes": "model.atl, from which alone the .tflite file is restored; its checksum and all else counted",
    "flash_bytes": "code and constants of the generated C, compiled for rv32imc with -O2",
    "tflm_arena_bytes": "working memory that TFLite Micro takes for it (recorded by its interpreter on this machine)",
}


def add_stage(workdir: Path, stage: str, variables: dict, checkpoint_bytes: int) -> None:
    """Enters a training stage; `variables` are its params and batch_stats."""
    leaves = [np.asarray(x, np.float32) for x in jax.tree.leaves(variables)]
    values = np.concatenate([x.ravel() for x in leaves])
    _add(
        workdir,
        stage,
        parameters=values.size,
        nonzeros=int(np.count_nonzero(values)),
        float32_bytes=values.nbytes,
        checkpoint_bytes=checkpoint_bytes,
        gzip_bytes=gzip_bytes(values.tobytes()),
    )


def add_tflite(workdir: Path, data: bytes, download_bytes: int) -> None:
    """Enters the int8 file under the stage "int8"; download_bytes is the size of its model.atl."""
    graph = tflite.read(data)
    shapes = {i for op in graph.operators if op.kind == "RESHAPE" for i in op.inputs[1:]}  # no values of the network
    constants = [t.data for i, t in enumerate(graph.tensors) if t.data is not None and i not in shapes]
    _add(
        workdir,
        "int8",
        parameters=sum(c.size for c in constants),
        nonzeros=sum(int(np.count_nonzero(c)) for c in constants),
        tflite_bytes=len(data),
        gzip_bytes=gzip_bytes(data),
        download_bytes=download_bytes,
        tflm_arena_bytes=tflm_arena_bytes(data),
    )


def add_flash(workdir: Path, flash_bytes: int) -> None:
    """Enters the flash of the generated C in the row "int8"; codegen.boards measures it, which needs a compiler."""
    (row,) = [row for row in read(workdir) if row["stage"] == "int8"]
    _add(workdir, **row | dict(flash_bytes=flash_bytes))


def gzip_bytes(data: bytes) -> int:
    """Size of `gzip -9`."""
    return len(gzip.compress(data, 9, mtime=0))


def tflm_arena_bytes(data: bytes) -> int | None:
    """Bytes of the arena that TFLite Micro's interpreter records for a model, None where it cannot run it."""
    code = (
        "import sys; from tflite_micro.python.tflite_micro import runtime; "
        "runtime.Interpreter.from_file(sys.argv[1]).print_allocations()"
    )
    with tempfile.NamedTemporaryFile(suffix=".tflite") as file:
        file.write(data)
        file.flush()
        # It prints from C++, so it gets a process whose output can be read.
        done = subprocess.run([sys.executable, "-c", code, file.name], capture_output=True, text=True, check=False)
    return recorded_arena_bytes(done.stdout + done.stderr)


def recorded_arena_bytes(text: str) -> int | None:
    """The arena in what TFLite Micro's print_allocations() printed; None where it did not."""
    found = re.search(r"Arena allocation total (\d+)", text)
    return int(found[1]) if found else None


def read(workdir: Path) -> list[dict]:
    """The rows of a run's ledger, in the order of the stages.

    Raises:
      UserError: the run has no ledger yet.
    """
    path = Path(workdir) / "ledger.json"
    if not path.is_file():
        raise UserError(f"{workdir} has no ledger.json: train it first with atalaia.train --workdir={workdir}")
    return json.loads(path.read_text())["rows"]


def stages(workdir: Path) -> list[str]:
    """Names of the stages entered so far."""
    return [row["stage"] for row in read(workdir)] if (Path(workdir) / "ledger.json").is_file() else []


def table(rows: list[dict]) -> str:
    """The ledger as a Markdown table; "-" where a size does not exist."""
    names = ["stage", *COLUMNS]
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---:|" * len(COLUMNS)]
    for row in rows:
        cells = ["-" if row.get(c) is None else f"{row[c]:,}" for c in COLUMNS]  # older ledgers have fewer columns
        lines.append("| " + " | ".join([row["stage"], *cells]) + " |")
    return "\n".join(lines)


def _add(workdir, stage, **sizes):
    path = Path(workdir) / "ledger.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    row = {"stage": stage} | {name: sizes.get(name) for name in COLUMNS}
    rows = {old["stage"]: old for old in rows} | {stage: row}  # a stage that is run again keeps its place
    write_json(path, dict(columns=COLUMNS, rows=list(rows.values())))

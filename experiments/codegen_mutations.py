"""Damaged .tflite files through code generation: each gives an error of one line or a right result, and never hangs.

python experiments/codegen_mutations.py [--files=10000] [--compile_every=20]
python experiments/codegen_mutations.py --pages        # only writes the page, from the figures

Bytes of small int8 files are changed at random (file n with seed n). A file that is not refused is planned and given
kernels; of those, every so many are generated whole, compiled with sanitizers and compared with TFLite Micro's
answers for the same damaged file. The figures are written after every 500 files; a run that was stopped goes on. Needs
requirements-dev.txt and gcc.
"""

import collections
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tables
from absl import flags
from tables import ROOT, Table, grid

MODELS = ("convolutions", "depthwise", "pools", "pairs", "moves", "softmax", "mean")
SAVE_EVERY = 500
OUTCOMES = {
    "refused": "refused with one line",
    "passed": "passed: planned and given kernels",
    "run, equal to TFLM": "of those, compiled and run, equal to TFLM in every byte",
    "run, refused": "of those, refused when TFLM could not run them",
    "run, wrong": "of those, wrong",
    "crashed": "ended in another exception",
}

_FILES = flags.DEFINE_integer("files", 10_000, "Damaged files.")
_EVERY = flags.DEFINE_integer("compile_every", 20, "Files that pass, for each one that is compiled and run.")


def main():
    sys.path.insert(0, str(ROOT / "tests"))
    from int8_models import build

    from atalaia.progress import Progress

    begun = TABLE.figures() if TABLE.there() else {}
    if begun.get("compile_every") != _EVERY.value or begun.get("files", 0) >= _FILES.value:
        begun = {}
    counts, slowest = collections.Counter(begun.get("outcomes", {})), begun.get("slowest_seconds", 0.0)
    originals = [build(name) for name in MODELS]
    with Progress("damaged files", _FILES.value, "files", initial=begun.get("files", 0)) as progress:
        for number in range(begun.get("files", 0), _FILES.value):
            start = time.monotonic()
            try_file(damaged(originals, number), counts)
            slowest = max(slowest, time.monotonic() - start)
            progress.update()
            if (number + 1) % SAVE_EVERY == 0 or number + 1 == _FILES.value:
                result = dict(files=number + 1, compile_every=_EVERY.value, models=MODELS, outcomes=dict(counts))
                TABLE.save(result | dict(slowest_seconds=round(slowest, 2)))
    sys.exit(1 if counts["run, wrong"] or counts["crashed"] else 0)


def damaged(originals: list[bytes], number: int) -> bytes:
    """File `number`, the same in each run: one to four bytes of an original are others."""
    random, data = np.random.default_rng(number), bytearray(originals[number % len(originals)])
    for at in random.integers(0, len(data), random.integers(1, 5)):
        data[at] = random.integers(256)
    return bytes(data)


def try_file(data: bytes, counts: collections.Counter) -> None:
    """Counts what becomes of a file."""
    from test_codegen import run

    from atalaia import tflite
    from atalaia.codegen import __main__ as codegen
    from atalaia.codegen import fitting, kernels, lowering
    from atalaia.errors import UserError

    stage = "refused"
    try:
        lowered = lowering.lower(tflite.read(data))
        fitting.plan(lowered, kernels.choose(lowered))
        counts["passed"] += 1
        if counts["passed"] % _EVERY.value == 0:
            stage = "run, refused"
            with tempfile.TemporaryDirectory() as folder:
                codegen.generate(data, Path(folder), samples=3)
                found = run(Path(folder))
            counts["run, wrong" if found else "run, equal to TFLM"] += 1
    except UserError:
        counts[stage] += 1
    except Exception as error:  # what this script looks for
        counts["crashed"] += 1
        print(f"{type(error).__name__}: {error}", file=sys.stderr)


def table(result: dict) -> str:
    """The outcomes in Markdown."""
    counts = {"all": result["files"]} | {text: result["outcomes"].get(name, 0) for name, text in OUTCOMES.items()}
    columns = {"damaged .tflite files": lambda item: item[0], "number": lambda item: f"{item[1]:,}"}
    slowest = f"The slowest took {result['slowest_seconds']:.1f} s, compiling and running counted.\n"
    return f"{grid(columns, counts.items())}\n{slowest}"


def _headline(result):
    wrong = sum(result["outcomes"].get(name, 0) for name in ("run, wrong", "crashed"))
    return f"{result['files']:,} damaged files: {wrong} wrong answers or crashes"


TABLE = Table(
    name="codegen_mutations",
    title="Damaged files through code generation",
    shows="Bytes of small int8 `.tflite` files are changed at random. Each file must give an error of one line or a "
    "right result: C that answers as TFLite Micro (TFLM) does.",
    command="python experiments/codegen_mutations.py    # needs requirements-dev.txt and gcc; a stopped run goes on",
    body=table,
    headline=_headline,
    notes=("File n is made with seed n.",),
    files=("outcomes.json",),
)


if __name__ == "__main__":
    tables.start(main, TABLE)

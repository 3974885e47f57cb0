"""Damaged .tflite files through code generation: each gives an error of one line or a right result, and never hangs.

python experiments/codegen_mutations.py [--files=10000] [--compile_every=200]

Bytes of small int8 files are changed at random (seed 0). A file that is not refused is planned and given kernels; of
those, every so many are generated whole, compiled with sanitizers and compared with TFLite Micro's answers for the same
damaged file. Writes experiments/results/codegen_mutations.json. Needs requirements-dev.txt and gcc.
"""

import collections
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
RESULT = ROOT / "experiments/results/codegen_mutations.json"
MODELS = ("convolutions", "depthwise", "pools", "pairs", "moves", "softmax", "mean")

_FILES = flags.DEFINE_integer("files", 10_000, "Damaged files.")
_EVERY = flags.DEFINE_integer("compile_every", 200, "Files that pass, for each one that is compiled and run.")


def main(argv):
    del argv
    from int8_models import build
    from test_codegen import run

    from atalaia import tflite
    from atalaia.codegen import __main__ as codegen
    from atalaia.codegen import graph, kernels, memory
    from atalaia.errors import UserError
    from atalaia.files import write_json

    random, counts, slowest = np.random.default_rng(0), collections.Counter(), 0.0
    originals = [build(name) for name in MODELS]
    for number in range(_FILES.value):
        data = bytearray(originals[number % len(originals)])
        for at in random.integers(0, len(data), random.integers(1, 5)):
            data[at] = random.integers(256)
        begin = time.monotonic()
        try:
            lowered = graph.lower(tflite.read(bytes(data)))
            kernels.choose(lowered)
            memory.plan(lowered)
            counts["passed"] += 1
            if counts["passed"] % _EVERY.value == 0:
                with tempfile.TemporaryDirectory() as folder:
                    codegen.generate(bytes(data), Path(folder), samples=3)
                    found = run(Path(folder))
                counts["run, equal to TFLM" if not found else "run, wrong"] += 1
        except UserError:
            counts["refused"] += 1
        slowest = max(slowest, time.monotonic() - begin)
    result = dict(files=_FILES.value, models=MODELS, slowest_seconds=round(slowest, 2), **counts)
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    app.run(main)

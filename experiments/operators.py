"""docs/guide/ops.md: the operators of a .tflite file of which code generation makes C, from its own table.

python experiments/operators.py
"""

import tables
from tables import ROOT, grid

PAGE = ROOT / "docs/guide/ops.md"
HEAD = """# Operators in C

`atalaia.codegen` makes C of any int8 `.tflite` file whose operators stand below. Each is held to TensorFlow Lite
Micro (TFLM) byte by byte: on files of one operator, in every kind of operand and option, and on random networks of
them all (`tests/test_operators.py`). Ask about a file, also one that is refused:

```
python -m atalaia.codegen --tflite=FILE --explain
```

It lists every operator, what is not supported and why, and bytes and estimated time of the rest.

## Supported

"""
BORDERS = """
## Inputs and outputs

They may be int8, uint8, int16, int32 or float32. `model_invoke` takes pointers to bytes of the file's own types, at any
address, least significant byte first; where they are not all int8, `MODEL_INPUT_TYPES` and `MODEL_OUTPUT_TYPES` of
`model.h` name them. float32 is converted as TFLM rounds it, by tables: the C has no floating point here
either. `--borders=int8` leaves these conversions to the caller, who then gives and gets int8 values by the scales of
`model.h`; `--task` does so by itself.

For NaN, or a float32 that is 2^31 steps of the grid away, TFLM defines no result. Here it is the smallest or largest
value of the grid. For SOFTMAX of 512 or more nearly equal values TFLM defines none either; here each is 0.
"""
REFUSED = """
## Refused

A file with one of these ends in one line that names the operator, its layer and what to do.

"""
ELSE = """
Also refused: activations of int16 in operators that do not give it above, int4 weights, graphs that are float32
inside, dynamic shapes, weights that are computed (but in BATCH_MATMUL), files of several graphs.

*Written by `python experiments/operators.py`.*
"""


def main():
    from atalaia.files import write_whole

    write_whole(PAGE, page())


def page() -> str:
    """The page in Markdown."""
    from atalaia.codegen import lowering

    columns = {
        "operator": lambda item: item[0],
        "what is supported": lambda item: item[1].about,
        "gives": lambda item: ", ".join((*item[1].outputs, *(["INT16"] if item[1].wide else []))).lower(),
    }
    supported = grid(columns, lowering.OPERATORS.items(), left=3)
    reasons: dict[str, list[str]] = {}
    for kind, reason in lowering.STATEFUL.items():
        reasons.setdefault(reason, []).append(kind)
    lines = [f"* {', '.join(kinds)}: {reason}\n" for reason, kinds in reasons.items()]
    return "".join([HEAD, supported, BORDERS, REFUSED, *lines, ELSE])


if __name__ == "__main__":
    tables.start(main)

"""The ESP32's own instructions: C for any board, and C with kernels for MAC16, in the emulator of the board esp32isa.

python experiments/mcu_esp32.py [--rows=NAME,...]
python experiments/mcu_esp32.py --pages        # only writes the page, from the figures

Layers have random weights; of networks there are `cifar10`, the committed model of experiments/results/cifar10, whose
weights are half zeros, and the same with random weights in place of these zeros. Needs requirements-dev.txt, and the
Debian packages that `make -C mcu run` names.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import tables
from tables import RESULTS, ROOT, Table, grid

COMMITTED = RESULTS / "cifar10/model.tflite"
# Height and width, channels, outputs, kernel and stride.
LAYERS = {
    "3x3, 32x32x16 to 16": (32, 16, 16, 3, 1),
    "3x3, 16x16x32 to 32": (16, 32, 32, 3, 1),
    "3x3, 8x8x64 to 64": (8, 64, 64, 3, 1),
    "3x3 by 2, 32x32x16 to 32": (32, 16, 32, 3, 2),
    "3x3, 32x32x3 to 16": (32, 3, 16, 3, 1),
    "1x1, 16x16x16 to 32": (16, 16, 32, 1, 1),
    "1x1, 16x16x64 to 64": (16, 64, 64, 1, 1),
}
NETWORKS = ("ResNet-8, 50 % zeros", "ResNet-8, zeros filled")
ROWS = (*LAYERS, *NETWORKS)
GOLDEN = 4


def main():
    sys.path.insert(0, str(ROOT / "tests"))
    for name in tables.chosen(ROWS):
        TABLE.add(measure(name))


def measure(name: str) -> dict:
    """What `make -C mcu run` finds of both kinds of C; layers take the kernels of fewest instructions."""
    from atalaia.codegen import __main__ as codegen
    from atalaia.codegen import boards
    from atalaia.codegen.call import TARGETS

    content, prefer = file(name), "speed" if name in LAYERS else "balanced"
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for target in TARGETS:
            model = Path(folder) / target
            report = codegen.generate(content, model, samples=GOLDEN, prefer=prefer, target=target)
            used = boards.EMULATORS if target == "any" else ()
            runs = {board: boards.run(model, board) for board in (*used, boards.ESP32ISA)}
            chosen = [row["kernel"] for row in report["layers"] if row["macs"]]
            figures = {k: report[k] for k in ("macs", "weight_bytes", "arena_bytes", "estimated_instructions")}
            found[target] = dict(boards=runs, kernels=chosen, **figures)
    return dict(row=name, targets=found)


def file(name: str) -> bytes:
    """The int8 .tflite file of a row."""
    from int8_models import convolution

    if name not in LAYERS:
        return COMMITTED.read_bytes() if name == NETWORKS[0] else filled(COMMITTED.read_bytes())
    side, channels, outputs, size, stride = LAYERS[name]
    weights = np.random.default_rng(0).integers(-127, 128, (outputs, size, size, channels)).astype(np.int8)
    return convolution(weights, (side, side), stride, True)


def filled(content: bytes) -> bytes:
    """A .tflite file with random weights in place of those that are zero."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, random = schema.ModelT.InitFromPackedBuf(content), np.random.default_rng(0)
    graph = model.subgraphs[0]
    for op in graph.operators:
        tensors = [graph.tensors[i] for i in op.inputs if i >= 0]
        for tensor in tensors[1:2]:
            data = model.buffers[tensor.buffer].data
            if tensor.type == schema.TensorType.INT8 and data is not None:
                weights = np.asarray(data).astype(np.uint8).view(np.int8)
                values = random.integers(1, 30, weights.size) * random.choice((-1, 1), weights.size)
                model.buffers[tensor.buffer].data = np.where(weights, weights, values).astype(np.int8).view(np.uint8)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def table(rows: list[dict]) -> str:
    """Layers and networks, in Markdown."""

    def per_mac(target, board):
        return lambda row: f"{row['targets'][target]['boards'][board]['instructions_per_mac']:.2f}"

    def bytes_of(figure):
        return lambda row: " / ".join(f"{row['targets'][target][figure]:,}" for target in ("any", "esp32"))

    def predicted(row):
        found = row["targets"]["esp32"]
        return f"{found['estimated_instructions']['esp32isa'] / found['boards']['esp32isa']['instructions']:.2f}"

    def equal(row):
        runs = [run for found in row["targets"].values() for run in found["boards"].values()]
        return f"{sum(run['equal'] for run in runs)} of {sum(run['samples'] for run in runs)}"

    def share(row):
        names = row["targets"]["esp32"]["kernels"]
        return f"{sum(name.startswith('conv_mac16') for name in names)} of {len(names)}"

    columns = {
        "layer or network": lambda row: row["row"],
        "rv32": per_mac("any", "rv32"),
        "lx106": per_mac("any", "lx106"),
        "esp32isa, without MULSH's emulation": per_mac("any", "esp32isa"),
        "the same, `--target=esp32`": per_mac("esp32", "esp32isa"),
        "layers by MAC16": share,
        "predicted / counted": predicted,
        "constants, bytes, any / esp32": bytes_of("weight_bytes"),
        "arena, bytes, any / esp32": bytes_of("arena_bytes"),
        "equal to TFLM": equal,
    }
    return f"Instructions a multiply-accumulate:\n\n{grid(columns, rows)}"


def _headline(rows):
    row = next(row for row in rows if row["row"] == NETWORKS[1])
    any_, mac16 = (row["targets"][t]["boards"]["esp32isa"]["instructions_per_mac"] for t in ("any", "esp32"))
    return f"ResNet-8 without zeros: {mac16:.2f} instructions a multiply-accumulate by MAC16, {any_:.2f} by C"


TABLE = Table(
    name="mcu_esp32",
    title="The ESP32's own instructions",
    shows="MAC16 multiplies, adds and loads in one instruction, and the ESP32 has it. C made with `--target=esp32` "
    "uses it where that pays; elsewhere the same C runs without it, slowly.",
    command="python experiments/mcu_esp32.py    # needs the packages of make -C mcu run",
    body=table,
    headline=_headline,
    notes=(
        "`esp32isa` is Clang's code for the ESP32, in QEMU's core `de233_fpu`, which counts the instructions. It lacks "
        "MULSH and MULUH, which the ESP32 has: they are emulated, and what the emulation takes is taken off. Its 32 "
        "registers, of 64 on an ESP32, cost a few instructions more. **No ESP32 was run**: how many cycles an "
        "instruction of MAC16 takes there was not measured.",
        "A layer's figure holds what brings its input in and its output out: 7 instructions a byte.",
        "The second ResNet-8 is the first with random weights in place of its zeros: it answers nonsense, as fast as "
        "one that was never pruned.",
    ),
    key=("row",),
    order=lambda row: ROWS.index(row["row"]),
)


if __name__ == "__main__":
    tables.define_rows()
    tables.start(main, TABLE)

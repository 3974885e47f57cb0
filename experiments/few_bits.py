"""Weights of few bits in C: bytes of constants and instructions, by bits and zeros, for any board and for the ESP32.

python experiments/few_bits.py [--rows=NAME,...]
python experiments/few_bits.py --pages        # only writes the page, from the figures

ResNet-20 for images of 32x32 with random weights, of which the smallest are zeros, and those left are rounded to the
grid of least squared error. Needs requirements-dev.txt, and the Debian packages that `make -C mcu run` names.
"""

import tempfile
from pathlib import Path

import numpy as np
import tables
from tables import Table, grid

SHAPE, CLASSES, GOLDEN = (32, 32, 3), 10, 2
ROWS = {
    f"{bits} bits" + f" and {zeros} % zeros" * bool(zeros): (bits, zeros)
    for zeros in (0, 50, 80)
    for bits in (8, 4, 3, 2)
}
BOARDS = dict(any="lx106", esp32="esp32isa")  # by target, the board whose instructions are shown


def main():
    for name in tables.chosen(ROWS):
        TABLE.add(measure(name))


def measure(name: str) -> dict:
    """What codegen and the emulators find of a row's C, by target; the kernels are those of fewest bytes."""
    from atalaia.codegen import __main__ as codegen
    from atalaia.codegen import boards

    content, share = file(*ROWS[name])
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for target, board in BOARDS.items():
            report = codegen.generate(content, Path(folder) / target, samples=GOLDEN, prefer="size", target=target)
            kernels = [row["kernel"] for row in report["layers"] if row["macs"]]
            figures = {k: report[k] for k in ("macs", "weight_bytes", "arena_bytes", "estimated_instructions")}
            found[target] = dict(run=boards.run(Path(folder) / target, board), kernels=kernels, **figures)
    return dict(row=name, zeros=share, targets=found)


def file(bits: int, zeros: int) -> tuple[bytes, float]:
    """The int8 .tflite file of a row, and the share of its weights that is zero."""
    import jax

    from atalaia import bits as widths
    from atalaia import export, folding, models, quantize

    model, random = models.create("resnet20", CLASSES), np.random.default_rng(0)
    images = random.random((16, *SHAPE), np.float32)
    folded = folding.fold(model, jax.device_get(model.init(jax.random.key(0), images)))
    grids = quantize.output_grids(quantize.calibrate(model, folded, [images]))
    for path, layer in folded.items():
        kernel = np.where(np.abs(layer.kernel) < np.quantile(np.abs(layer.kernel), zeros / 100), 0, layer.kernel)
        folded[path] = layer._replace(kernel=kernel)
    qmax = quantize.BITS[bits]
    scales = {path: widths.fitted_scale(layer.kernel, qmax) for path, layer in folded.items()} if bits < 8 else {}
    network = quantize.quantize_network(model, folded, grids, dict.fromkeys(folded, bits), scales)
    codes = np.concatenate([layer.kernel.ravel() for layer in network.values() if hasattr(layer, "kernel")])
    return export.convert(model, network, SHAPE), float(np.mean(codes == 0))


def table(rows: list[dict]) -> str:
    """In Markdown."""

    def per_mac(target):
        return lambda row: f"{row['targets'][target]['run']['instructions_per_mac']:.2f}"

    def bytes_of(target):
        return lambda row: f"{row['targets'][target]['weight_bytes']:,}"

    def kernels(target):
        def shown(row):
            names = [
                "_".join(part for part in k.split("_") if not part.isdigit()) for k in row["targets"][target]["kernels"]
            ]
            return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))

        return shown

    def equal(row):
        runs = [found["run"] for found in row["targets"].values()]
        return f"{sum(run['equal'] for run in runs)} of {sum(run['samples'] for run in runs)}"

    columns = {
        "weights": lambda row: row["row"],
        "zeros as rounded": lambda row: f"{100 * row['zeros']:.0f} %",
        "constants, bytes": bytes_of("any"),
        "instructions a MAC, lx106": per_mac("any"),
        "kernels": kernels("any"),
        "`--target=esp32`: constants, bytes": bytes_of("esp32"),
        "instructions a MAC, esp32isa": per_mac("esp32"),
        "kernels by MAC16": kernels("esp32"),
        "equal to TFLM": equal,
    }
    return grid(columns, rows)


def _headline(rows):
    found = next(row for row in rows if row["row"] == "3 bits")["targets"]["esp32"]
    return (
        f"ResNet-20 of 3 bits: {found['weight_bytes']:,} bytes of constants, "
        f"{found['run']['instructions_per_mac']:.2f} instructions a multiply-accumulate by MAC16"
    )


TABLE = Table(
    name="few_bits",
    title="Weights of few bits in C",
    shows="Fewer bits and zeros make constants smaller. What that costs in time depends on how often a weight is "
    "unpacked: the kernels for any board do it for every few pixels, those for the ESP32 (`--target=esp32`) once for "
    "about 64, into 16 bits, so that there it costs next to nothing.",
    command="python experiments/few_bits.py    # needs the packages of make -C mcu run",
    body=table,
    headline=_headline,
    notes=(
        "All by `--prefer=size`: of the kernels that can hold a layer's weights, that of fewest bytes.",
        "ResNet-20 with random weights: bytes and instructions are those of a trained network with as many zeros, the "
        "answers are nonsense. Constants are all of them: weights, biases, multipliers, tables, structs.",
        "Zeros that were asked for are the smallest weights; rounding to few bits makes more.",
        "A multiply-accumulate with a zero counts as one.",
    ),
    key=("row",),
    order=lambda row: list(ROWS).index(row["row"]),
)


if __name__ == "__main__":
    tables.define_rows()
    tables.start(main, TABLE)

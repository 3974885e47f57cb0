"""Milliseconds on a chip, estimated from instructions that an emulator counted, or that costs.json forecasts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Chip(NamedTuple):
    """A chip whose times are estimated from the instructions of a board; clock and cache are those of its data sheet.

    cpi: cycles an instruction, smallest and largest, read off Espressif's published times; cache_bytes: of flash, each
    core's own.
    """

    board: str
    hertz: float
    cpi: tuple[float, float]
    cache_bytes: int
    cores: int


CHIPS = {
    "esp32": Chip(board="lx106", hertz=240e6, cpi=(1.06, 1.96), cache_bytes=32 << 10, cores=2),
    "esp32c3": Chip(board="rv32", hertz=160e6, cpi=(1.16, 1.41), cache_bytes=16 << 10, cores=1),
}
# Assumed of flash by four lines at 80 MHz: a line of 32 bytes takes 64 clocks, and about 20 of command and address.
FLASH_HERTZ, FLASH_CLOCKS_PER_BYTE = 80e6, (64 + 20) / 32
# What others report for TFLite Micro on a classic ESP32 at 240 MHz, milliseconds an inference.
PUBLISHED = (
    dict(model="MLPerf Tiny ResNet-8", engine="TFLM with ESP-NN", milliseconds=724, source="mcufit-bench"),
    dict(model="person detection", engine="TFLM with ESP-NN", milliseconds=474, source="mcufit-bench"),
    dict(model="person detection", engine="TFLM with ESP-NN", milliseconds=380, source="Espressif"),
    dict(model="person detection", engine="TFLM, reference kernels", milliseconds=4084, source="Espressif"),
)


def by_chip(
    instructions: Mapping[str, float],
    layers: Sequence[Mapping[str, Any]],
    target: str = "any",
    slower_core: Mapping[str, float] | None = None,
) -> dict[str, dict]:
    """By chip what `estimate` gives; C made for the ESP32 alone is not estimated by what another Xtensa needs for it.

    Args:
      instructions: an inference's, by board; layers: as `estimate` takes them; target: of kernels.TARGETS.
      slower_core: of C for two cores, the part of the instructions of the one that the other waits for, by board.
    """
    boards = {chip: "esp32isa" if chip == target else found.board for chip, found in CHIPS.items()}
    found = {}
    for chip, board in boards.items():
        two = slower_core is not None and CHIPS[chip].cores == 2
        part = slower_core[board] if slower_core is not None and two else 1.0
        found[chip] = estimate(chip, board, instructions[board], layers, 2 if two else 1, part)
    return found


def estimate(
    chip: str,
    board: str,
    instructions: float,
    layers: Sequence[Mapping[str, Any]],
    cores: int = 1,
    part: float = 1.0,
) -> dict:
    """Milliseconds on a chip, smallest and largest, and how they come about.

    Args:
      chip: of `CHIPS`; board: whose instructions are given; instructions: an inference's.
      layers: of report.json, with weight_bytes, sweeps, rows and strip.
      cores: that run it at once; each reads all constants, through one bus.
      part: of the instructions, on the core that the other waits for.
    """
    _, hertz, cpi, cache, _ = CHIPS[chip]
    per_byte = FLASH_CLOCKS_PER_BYTE * hertz / FLASH_HERTZ
    once = cores * sum(layer["weight_bytes"] for layer in layers)
    again = cores * sum(layer["weight_bytes"] * _passes(layer, layers, cache) for layer in layers)
    cycles = [instructions * part * c + b * per_byte for c, b in zip(cpi, (once, again), strict=True)]
    return dict(
        milliseconds=[round(1e3 * c / hertz, 1) for c in cycles],
        cpi=list(cpi),
        hertz=hertz,
        flash_bytes_read=[once, again],
        flash_milliseconds=[round(1e3 * b * per_byte / hertz, 1) for b in (once, again)],
        formula=(
            f"(instructions on {board} * CPI {cpi[0]} to {cpi[1]} + bytes read from flash * {per_byte:.3g} cycles) / "
            f"{hertz / 1e6:.0f} MHz; assumed: flash by four lines at {FLASH_HERTZ / 1e6:.0f} MHz, constants read once "
            f"(smallest) or, in layers that exceed the cache of {cache >> 10} KiB, at every pass over them, and in "
            "strips that exceed it, at every row (largest); "
            "CPI holds some reads already, so that this is rather too much"
            + f"; of the instructions {100 * part:.1f} %, those of the slower of {cores} cores"
            * (cores > 1)
        ),
    )


def _passes(layer, layers, cache):
    """How often a layer's constants are read from flash."""
    if layer["weight_bytes"] > cache:
        return layer["sweeps"]
    strip = [x["weight_bytes"] for x in layers if x["strip"] is not None and x["strip"] == layer["strip"]]
    return layer["rows"] if sum(strip) > cache else 1

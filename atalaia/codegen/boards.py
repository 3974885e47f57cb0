"""Generated C on the boards of mcu/ that this computer can compile for and run: the host and the emulators."""

import json
import subprocess
import tempfile
from pathlib import Path

from atalaia.errors import UserError
from atalaia.files import shipped

MCU = shipped("mcu")
HOST, EMULATORS, ESP32ISA, WASM = "host", ("rv32", "lx106"), "esp32isa", "wasm"


def run(model: Path, board: str, samples: int | None = None) -> dict:
    """What `make -C mcu run` finds for the model in a folder: its last line (mcu/run.py), even where bytes differ.

    Args:
      model: a folder that codegen wrote; board: "host", "rv32", "lx106", "esp32isa" or "wasm".
      samples: golden vectors, None for all.

    Raises:
      UserError: a compiler, an emulator or node is missing, or the program failed; its last line says why.
    """
    with tempfile.TemporaryDirectory() as build:
        done = _make(model, Path(build), "run", BOARD=board, SAMPLES=samples or "")
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not found:
        raise UserError(f"{Path(model).name} on {board}: {_reason(done)}")
    return json.loads(found[-1])


def webassembly(model: Path) -> bytes:
    """The program of mcu/boards/wasm/page.c, for a page in a browser, with the model in a folder that codegen wrote.

    Raises:
      UserError: the compiler is missing, or failed.
    """
    with tempfile.TemporaryDirectory() as build:
        done = _make(model, Path(build), "page", BOARD=WASM)
        if done.returncode:
            raise UserError(f"{Path(model).name} on {WASM}: {_reason(done)}")
        return next(Path(build).rglob("page.wasm")).read_bytes()


def require_webassembly() -> None:
    """Does nothing where `webassembly` finds what it needs.

    Raises:
      UserError: make, clang or wasm-ld is missing; names the Debian packages that bring it.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "model.c").touch()
        done = _make(Path(folder), Path(folder), "page", "-n", BOARD=WASM)
    if done.returncode:
        raise UserError(f"a page needs WebAssembly: {_reason(done)}")


def _make(model, build, goal, *options, **variables):
    """The finished process of `make`, with the C of a model, in folder `build`."""
    model = Path(model).resolve()
    link = build / "models" / model.name.replace(" ", "_")  # make takes no spaces in a path
    link.parent.mkdir()
    link.symlink_to(model)
    given = dict(MODEL=link.name, MODELS_DIR=link.parent, BUILD_DIR=build) | variables
    command = ["make", "-s", *options, "-C", str(MCU), goal, *(f"{k}={v}" for k, v in given.items())]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("make is missing: apt install make") from None


def _reason(done):
    """The line of make's that says what is wrong, without where in the Makefile."""
    lines = [line for line in done.stderr.splitlines() if "***" in line or "error" in line]
    line = (lines or done.stderr.splitlines() or ["make failed"])[0]
    return line.partition("*** ")[2].removesuffix(".  Stop.") or line

"""Generated C on the boards of mcu/ that this computer can compile for and run: the host and the emulators."""

import json
import subprocess
import tempfile
from pathlib import Path

from atalaia.errors import UserError
from atalaia.files import shipped

MCU = shipped("mcu")
HOST, EMULATORS = "host", ("rv32", "lx106")


def run(model: Path, board: str, samples: int | None = None) -> dict:
    """What `make -C mcu run` finds for the model in a folder: its last line (mcu/run.py), even where bytes differ.

    Args:
      model: a folder that codegen wrote; board: "host", "rv32" or "lx106"; samples: golden vectors, None for all.

    Raises:
      UserError: a compiler or an emulator is missing, or the program failed; its last line says why.
    """
    model = Path(model).resolve()
    with tempfile.TemporaryDirectory() as build:
        link = Path(build) / "models" / model.name.replace(" ", "_")  # make takes no spaces in a path
        link.parent.mkdir()
        link.symlink_to(model)
        given = dict(MODEL=link.name, MODELS_DIR=link.parent, BOARD=board, BUILD_DIR=build, SAMPLES=samples or "")
        command = ["make", "-s", "-C", str(MCU), "run", *(f"{k}={v}" for k, v in given.items())]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise UserError("make is missing: apt install make") from None
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not found:
        reason = [line for line in done.stderr.splitlines() if "***" in line or "error" in line]
        raise UserError(f"{model.name} on {board}: {(reason or done.stderr.splitlines() or ['make failed'])[0]}")
    return json.loads(found[-1])

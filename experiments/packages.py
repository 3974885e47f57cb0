"""Packages of all kinds through the tools of those who take them in: manifests, archives, compilers, emulators.

python -m venv TOOLS && TOOLS/bin/pip install -r experiments/requirements-packages.txt
python experiments/packages.py --tools=TOOLS
python experiments/packages.py --pages        # only writes the page, from the figures

The network is mcu/models/cifar10. A minute. PlatformIO looks a licence up in a list on the network. In place of it,
it is given the one name that packages have, so that the network is not asked.
"""

import subprocess
import tempfile
from pathlib import Path

import tables
from absl import flags
from tables import ROOT, Table, grid

MODEL = ROOT / "mcu/models/cifar10/model.tflite"
NAME, LABELS = "pictures", ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WARNINGS = ("-O1", "-Wall", "-Wextra", "-Werror")
# Compilers of the source alone: of this computer, of the ESP32-C3's instruction set, and of Xtensa.
COMPILERS = {
    "gcc, C99": ("gcc", "-std=c99"),
    "g++, C++17": ("g++", "-x", "c++", "-std=c++17"),
    "gcc for rv32, C99": ("riscv64-unknown-elf-gcc", "-march=rv32imc", "-mabi=ilp32", "-std=c99"),
    "g++ for rv32, C++17": ("riscv64-unknown-elf-g++", "-march=rv32imc", "-mabi=ilp32", "-x", "c++", "-std=c++17"),
    "gcc for lx106, C99": ("xtensa-lx106-elf-gcc", "-mlongcalls", "-std=c99"),
    "g++ for lx106, C++17": ("xtensa-lx106-elf-g++", "-mlongcalls", "-x", "c++", "-std=c++17"),
}
SPECS = {"rv32": "--specs=picolibc.specs", "lx106": "--specs=/usr/lib/xtensa-lx106-elf/picolibc.specs"}
# PlatformIO with a list of licences that has the packages' own alone.
OFFLINE = (
    "import sys; from platformio.package.manifest import schema; "
    "schema.ManifestSchema.load_spdx_licenses = staticmethod(lambda: {'licenses': [{'licenseId': 'Apache-2.0'}]}); "
    "from platformio.__main__ import main; sys.exit(main())"
)

_TOOLS = flags.DEFINE_string("tools", None, "The environment with requirements-packages.txt.")


def main():
    from atalaia.codegen import __main__ as codegen
    from atalaia.codegen import package as packages
    from atalaia.errors import UserError

    if not _TOOLS.value or not (Path(_TOOLS.value) / "bin/compote").is_file():
        raise UserError("give --tools=ENVIRONMENT, one with experiments/requirements-packages.txt")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / NAME
        codegen.generate(MODEL.read_bytes(), model, samples=2, task="classify")
        for kind in packages.FOLDERS:
            for arena in packages.ARENAS:
                if (kind, arena) == ("plain", "psram"):
                    continue
                out = Path(folder) / f"{kind}_{arena}" / NAME
                packages.write(packages.Package(kind, out, arena, labels=LABELS), model)
                for check, command in commands(kind, arena, out, Path(folder)).items():
                    rows.append(dict(package=kind, arena=arena, check=check, **outcome(command, out)))
    TABLE.save(rows)


def commands(kind: str, arena: str, out: Path, folder: Path) -> dict[str, list]:
    """The checks of a package by their names, and what runs each, in the package's folder."""
    tools = Path(_TOOLS.value).absolute() / "bin"
    found = {}
    if kind == "idf":
        found["compote manifest lint"] = [tools / "compote", "manifest", "lint"]
        archive = ["component", "pack", "--name", NAME, "--dest-dir", folder / f"{arena}_archive"]
        found["compote component pack"] = [tools / "compote", *archive]
        found["kconfcheck"] = [tools / "python", "-m", "kconfcheck", "Kconfig"]
    if kind in ("platformio", "arduino"):
        pack = ["pkg", "pack", "-o", f"{folder}/{kind}_{arena}.tar.gz"]
        found["pio pkg pack"] = [tools / "python", "-c", OFFLINE, *pack]
    if kind == "platformio":
        found["pio project config --lint"] = [tools / "pio", "project", "config", "--lint", "-d", "examples/check"]
    header, source, _ = _folders(kind)
    stub = ROOT / "tests/data/esp_idf"
    for name, compiler in COMPILERS.items() if kind in ("plain", "idf") else ():  # the other kinds' C is the same
        specs = [SPECS[board] for board in SPECS if board in name]
        more = [f"-I{header}", f"-I{stub}", f"-DCONFIG_{NAME.upper()}_ARENA_{arena.upper()}=1"]
        found[name] = [*compiler, *specs, *WARNINGS, *more, "-c", f"{source}/{NAME}.c", "-o", folder / "one.o"]
    if kind == "plain":
        for board in ("host", "rv32", "lx106"):
            given = [f"FILES={out}/example.c {out}/{NAME}.c", f"DEFINES=-I{out}", f"BUILD_DIR={folder}/build"]
            found[f"the example on {board}"] = ["make", "-s", "-C", ROOT / "mcu", "program", f"BOARD={board}", *given]
    return found


def _folders(kind):
    from atalaia.codegen import package as packages

    return [folder or "." for folder in packages.FOLDERS[kind]]


def outcome(command: list, folder: Path) -> dict:
    """Whether a command ends well, and the last line that it prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    said = lines[-1] if lines and done.returncode else ""
    print(f"{folder.parent.name}: {' '.join(map(str, command))[:150]}: {done.returncode} {said}", flush=True)
    return dict(passed=done.returncode == 0, said=said.replace(str(folder), folder.name)[:200])


def table(rows: list[dict]) -> str:
    """A line a check in Markdown, a column a package; the figures are those of all arenas."""
    checks = list(dict.fromkeys(row["check"] for row in rows))
    kinds = list(dict.fromkeys(row["package"] for row in rows))

    def cell(kind):
        def passed(check):
            found = [row["passed"] for row in rows if (row["package"], row["check"]) == (kind, check)]
            return f"{sum(found)} of {len(found)}" if found else ""

        return passed

    columns = {"check": lambda check: check} | {kind: cell(kind) for kind in kinds}
    failed = [f"- {r['package']}, {r['arena']}, {r['check']}: {r['said']}" for r in rows if not r["passed"]]
    return "\n".join([grid(columns, checks), *(["What failed:\n", *failed] if failed else [])])


def _headline(rows):
    return f"{sum(row['passed'] for row in rows)} of {len(rows)} checks passed"


TABLE = Table(
    name="packages",
    title="Packages for other projects",
    shows="A package of each kind, with its memory as a static array, given or in PSRAM, through the tools of those "
    "who take it in: how many passed.",
    command="python -m venv TOOLS && TOOLS/bin/pip install -r experiments/requirements-packages.txt\n"
    "python experiments/packages.py --tools=TOOLS",
    body=table,
    headline=_headline,
    notes=(
        "The network is `mcu/models/cifar10`. All compilers warn as `-Wall -Wextra -Werror` says.",
        "`rv32` is the instruction set of the ESP32-C3, `lx106` the nearest Xtensa to the ESP32 that Debian compiles "
        "for. PSRAM and menuconfig's choices are those of a small stub of ESP-IDF.",
        "The examples compare every output byte with TFLite Micro's, on the host and in QEMU. Those of ESP-IDF and "
        "Arduino run in the test suite, against stubs. **Neither ESP-IDF nor Arduino nor a board was at hand.**",
        "PlatformIO's list of licences on the network was not asked: it was given the one name that packages have.",
    ),
)


if __name__ == "__main__":
    tables.start(main, TABLE)

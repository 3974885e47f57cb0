"""A network's C as a package that a project takes in: an ESP-IDF component, an Arduino or PlatformIO library, or files.

Templates are in mcu/packages, a folder a kind of package; `@word@` in them is replaced by a word of `_words`. All names
of C that others see begin with the package's name, which is that of its folder, so that a project may have several.
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from atalaia import config as configs
from atalaia.codegen import interface
from atalaia.errors import UserError, choice
from atalaia.files import shipped, write_whole

TEMPLATES = shipped("mcu") / "packages"
ARENAS = ("static", "given", "psram")
# Of a kind of package, the folders of its header, its source and golden.h.
FOLDERS = {
    "idf": ("include", "src", "examples/check/main"),
    "arduino": ("src", "src", "examples/check"),
    "platformio": ("include", "src", "examples/check/src"),
    "plain": ("", "", ""),
}
SAMPLES = 2  # golden vectors: they take flash in the example
LONGEST_NAME = 32  # so that names of Kconfig have 50 letters at most, which kconfcheck wants
# Headers that NAME.h would hide, and a component that each project has.
_TAKEN = (
    *("assert", "complex", "ctype", "errno", "fenv", "float", "inttypes", "iso646", "limits", "locale", "math"),
    *("setjmp", "signal", "stdarg", "stdbool", "stddef", "stdint", "stdio", "stdlib", "string", "tgmath", "time"),
    *("wchar", "wctype", "arduino", "golden", "main", "sdkconfig"),
)


class Package(NamedTuple):
    """What is asked for.

    kind: of FOLDERS; out: the folder, whose name is the package's; arena: of ARENAS, where its memory lies; version:
    MAJOR.MINOR.PATCH; labels: names of what the last output's values stand for.
    """

    kind: str
    out: Path
    arena: str = "static"
    version: str = "1.0.0"
    labels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The package's."""
        return Path(os.path.abspath(self.out)).name


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """The flags of a package."""
    for name, default, said in (
        ("package", None, f"Write a package that a project takes in: {', '.join(FOLDERS)}."),
        ("arena", "static", f"Of a package, where its memory lies: {', '.join(ARENAS)}."),
        ("labels", None, "Of a package, a file with the classes' names, one a line."),
        ("package_version", "1.0.0", "Of a package."),
    ):
        flags.DEFINE_string(name, default, said, flag_values=values)


def asked(values: Any) -> Package | None:
    """What the flags ask for, once it may be written; None where they ask for no package.

    Raises:
      UserError: as `check`; labels cannot be read; or flags do not fit each other.
    """
    if not values.package:
        for name in ("arena", "labels", "package_version"):
            if values[name].present:
                raise UserError(f"--{name} is for a package: give --package={'|'.join(FOLDERS)} too")
        return None
    if values.cores == 2:
        raise UserError("--cores=2 is not for a package, whose invoke() runs on one core: leave it out")
    if not values.out:
        raise UserError("--package needs --out=NAME, the folder to write, whose name becomes the package's")
    labels = read_labels(values.labels) if values.labels else ()
    found = Package(values.package, Path(values.out), values.arena, values.package_version, labels)
    check(found)
    if not values["samples"].present:
        values.samples = SAMPLES
    return found


def take_run(values: Any) -> None:
    """Where a run folder is given: its file, config and task as if they were.

    Raises:
      UserError: the folder holds no run, or a file or config is given beside it.
    """
    if not values.workdir:
        return
    if values.tflite or values.config is not None:
        raise UserError("--workdir takes the run's file and config: leave --tflite and --config out, or --workdir")
    values.tflite, values.config = str(Path(values.workdir) / "model.tflite"), configs.load(values.workdir)
    values.task = values.task or values.config.task


def check(package: Package) -> None:
    """Does nothing for what can be written.

    Raises:
      UserError: name, kind, arena or version are not allowed, or the folder holds something else.
    """
    choice("--package", package.kind, FOLDERS)
    choice("--arena", package.arena, ARENAS)
    name, most = package.name, f"letters, digits and _, {LONGEST_NAME} at most, the first a letter"
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name, re.ASCII) or "__" in name or len(name) > LONGEST_NAME:
        raise UserError(f"--out={package.out}: {name!r} is the package's name, and must be one of C: {most}, no __")
    if name.lower() in _TAKEN:
        raise UserError(f"--out={package.out}: a package {name!r} would hide others' {name}.h: choose another name")
    if not re.fullmatch(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)", package.version, re.ASCII):
        raise UserError(f"--package_version={package.version}: give three numbers, such as 1.0.0")
    if package.kind == "plain" and package.arena == "psram":
        raise UserError("--arena=psram is allocated by ESP-IDF: with --package=plain choose --arena=given")
    _refuse_others(package)


def _refuse_others(package):
    """Whatever a person has put into the folder stays there."""
    if package.out.exists() and not package.out.is_dir():
        raise UserError(f"--out={package.out} is a file, where a folder is needed: choose another")
    own = _files(package)
    for path in package.out.rglob("*"):
        name = path.relative_to(package.out).as_posix()
        if name not in own and not path.is_dir():
            raise UserError(f"{package.out} holds {name}, which is no file of this package: give an empty folder")


def read_labels(path: Path) -> tuple[str, ...]:
    """The lines of a file.

    Raises:
      UserError: it cannot be read, or a line is empty.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--labels={path} cannot be read ({error}): give a text file with a label a line") from None
    if not lines or not all(line.strip() for line in lines):
        raise UserError(f"--labels={path}: a line is empty, or there is none: give a label a line")
    return tuple(line.strip() for line in lines)


def write(package: Package, generated: Path, names: Sequence[str] = ()) -> list[str]:
    """Writes a package, whole or not at all, and returns its files' names.

    Args:
      package: what is asked for.
      generated: a folder that codegen.generate() wrote under the package's name.
      names: of what the last output's values stand for, where the package brings no labels.

    Raises:
      UserError: as `check`, or there are not as many labels as the last output has values in a row.
    """
    check(package)
    package = package._replace(labels=package.labels or tuple(names))
    report = json.loads((generated / "report.json").read_text())
    columns = report["outputs"][-1]["shape"][-1] if report["outputs"][-1]["shape"] else 1
    if package.labels and len(package.labels) != columns:
        raise UserError(
            f"there are {len(package.labels)} labels, of --labels or the config's data, and {columns} values in a row "
            "of the model's last output: give --labels=FILE with one for each"
        )
    files, words = _files(package), _words(package, generated, report)
    place = Path(os.path.realpath(package.out))
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}.", dir=place.parent) as folder:
        made, before = Path(folder) / "new", Path(folder) / "old"
        for name, template in files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            if template is None:
                shutil.copyfile(generated / "golden.h", made / name)
            elif template.name == "LICENSE":
                shutil.copyfile(template, made / name)
            else:
                write_whole(made / name, _filled(template, words))
        if place.exists():
            place.rename(before)
        try:
            made.rename(place)
        except BaseException:
            if before.exists():
                before.rename(place)
            raise
    return sorted(files)


def _files(package):
    """Path in the package to its template; None for golden.h."""
    own, common = TEMPLATES / package.kind, TEMPLATES / "common"
    header, source, golden = FOLDERS[package.kind]
    found = {path.relative_to(own).as_posix(): path for path in own.rglob("*") if path.is_file()}
    found[(Path(header) / f"{package.name}.h").as_posix()] = common / "network.h"
    found[(Path(source) / f"{package.name}.c").as_posix()] = common / "network.c"
    return found | {"LICENSE": common / "LICENSE", (Path(golden) / "golden.h").as_posix(): None}


def _filled(template, words):
    """A template with its words; those on a line of their own are indented as it is, and none is no line."""

    def word(match):
        if match[2] is None:
            return words[match[3]]
        lines = words[match[2]].split("\n") if words[match[2]] else []
        return "".join(f"{match[1]}{line}\n" if line else "\n" for line in lines)

    text = re.sub(r"(?m)^( *)@(\w+)@\n|@(\w+)@", word, template.read_text(encoding="utf-8"))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"


def _words(package, generated, report):
    """What stands for each @word@ of the templates."""
    name, task, labels = package.name, report["task"], package.labels
    found = interface.layout(report)
    model = (generated / "model.c").read_text().replace('#include "model.h"\n', "", 1)
    words = dict(
        name=name,
        NAME=name.upper(),
        version=package.version,
        constant_bytes=str(report["weight_bytes"]),
        code_bytes=_code(report),
        arena_bytes=str(found.arena_bytes),
        network_bytes=str(report["arena_bytes"]),
        macs=str(report["macs"]),
        file_bytes=f"{report['tflm']['file_bytes']:,}",
        sentence=f"A neural network of {report['macs'] / 1e6:.3g} million multiply-accumulates as C code.",
        model=model.strip("\n"),
        **interface.declarations(name, found, task, report["answers"], labels),
        **interface.definitions(name, found, task, labels),
        **interface.example(name, found, task, labels),
        **_arena(package),
        table=_table(package, found, report),
        usage=interface.usage(name, found, task, labels),
        pixels=interface.pixels(found),
    )
    for partial in ("usage.md", "licence.md", "sketch.ino"):
        words[partial.replace(".", "_")] = _filled(TEMPLATES / "common" / partial, words)
    return words


def _arena(package):
    """Where the arena lies: in C, in menuconfig, and what is said of it."""
    upper, given, psram = package.name.upper(), package.arena == "given", package.arena == "psram"
    array = f"static uint32_t arena[{upper}_ARENA_BYTES / 4];"
    includes = '#if ARENA_PSRAM\n#include "esp_heap_caps.h"\n#endif'
    own = dict(
        static="NULL and 0 take the package's own, a static array",
        given="NULL is refused",
        psram="NULL and 0 allocate it in PSRAM",
    )
    where = "\n".join(f"#define ARENA_{word.upper()} {int(package.arena == word)}" for word in ("static", "psram"))
    if package.kind == "idf":
        own = dict.fromkeys(ARENAS, "NULL and 0 take what menuconfig says, a static array or PSRAM")
        chosen = "\n".join(f"#define ARENA_{w} CONFIG_{upper}_ARENA_{w}" for w in ("STATIC", "PSRAM"))
        where = '#include "sdkconfig.h"\n\n/* What menuconfig did not choose is no word of C, which #if takes as 0. */'
        where += f"\n{chosen}"
    default = f"default {upper}_ARENA_{package.arena.upper()}" + (" if SPIRAM" if psram else "")
    return dict(
        arena=f"{where}\n{includes}" if package.kind == "idf" or psram else where,
        own=own[package.arena],
        arena_array=f"\n{array}\n" if given else "\n",
        usage_arena=array if given else "",
        init="arena, sizeof arena" if given else "NULL, 0",
        kconfig_default=default + (f"\ndefault {upper}_ARENA_STATIC" if psram else ""),
        sdkconfig="CONFIG_SPIRAM=y" if psram else "",
        architectures="esp32" if psram else "*",
        platforms="espressif32" if psram else "*",
        platformio_flags="build_flags = -DBOARD_HAS_PSRAM" if psram else "",
        psram_note=" Switch *Tools, PSRAM* on." if psram else "",
    )


def _code(report):
    counted = report.get("code_bytes") or {}
    return (
        "".join(f", and {bytes_} of code on {board}" for board, bytes_ in counted.items())
        or ", beside those of the code"
    )


def _table(package, found, report):
    """Rows of the README."""
    times = report["estimated"].items()
    rows = {
        "flash": f"{report['weight_bytes']:,} bytes of constants{_code(report)}",
        "RAM": f"{found.arena_bytes:,} bytes: the network's {report['arena_bytes']:,}, and inputs and outputs",
        "multiply-accumulates": f"{report['macs']:,}",
        "time, estimated without a board": "; ".join(
            f"{chip}: {low:.3g} to {high:.3g} ms" for chip, (low, high) in ((c, t["milliseconds"]) for c, t in times)
        ),
    }
    for border in (*found.inputs, *found.outputs):
        rows[border.word] = f"{border.type} [{', '.join(map(str, border.shape))}]"
    if package.labels:
        rows["labels"] = ", ".join(label.replace("|", "\\|") for label in package.labels)
    return "\n".join(f"| {word} | {said} |" for word, said in rows.items())

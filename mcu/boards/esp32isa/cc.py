#!/usr/bin/env python3
"""A C compiler for the ESP32's instruction set, of Debian's packages: called as gcc is, with -c or to link.

clang makes LLVM's intermediate code, llc the ESP32's assembly (clang's driver knows no Xtensa processor), llvm-mc
object files, and the linker of another Xtensa, whose object files are of the same form, a program.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

LLVM = os.environ.get("LLVM", "22")
CLANG, LLC, ASSEMBLER = (f"{name}-{LLVM}" for name in ("clang", "llc", "llvm-mc"))
LINKER = "xtensa-lx106-elf-ld"
CPU = ("-triple=xtensa", "-mcpu=esp32")
# What GCC built for the ESP32 defines.
MACROS = ("__XTENSA_EL__", "__XTENSA_WINDOWED_ABI__", "__XCHAL_HAVE_MUL32_HIGH=1", "__XCHAL_HAVE_MAC16=1")
# A table of jumps ends in a section of data, in which LLVM 22 would put the next function's literals.
TARGET = ("--target=xtensa", "-ffreestanding", "-fno-jump-tables", *(f"-D{macro}" for macro in MACROS))


def main(arguments: list[str]) -> int:
    if "-E" in arguments:
        return subprocess.run([CLANG, *TARGET, *arguments], check=False).returncode
    flags, link, sources, out, names = [], [], [], "a.out", iter(arguments)
    for name in names:
        if name == "-o":
            out = next(names)
        elif name == "-T":
            link += [name, next(names)]
        elif name.startswith("-Wl,"):
            link += name.split(",")[1:]
        elif name.endswith((".c", ".s", ".o")):
            sources.append(name)
        else:
            flags.append(name)
    if "-c" in flags:
        compile_one(sources[0], out, [flag for flag in flags if flag != "-c"])
        return 0
    with tempfile.TemporaryDirectory() as folder:
        objects = [s if s.endswith(".o") else f"{folder}/{i}.o" for i, s in enumerate(sources)]
        for source, made in zip(sources, objects, strict=True):
            if made != source:
                compile_one(source, made, flags)
        run(LINKER, "--no-warn-rwx-segments", *link, *objects, "-o", out)
    return 0


def compile_one(source: str, out: str, flags: list[str]) -> None:
    """An object file of a C file or of one in assembly."""
    with tempfile.TemporaryDirectory() as folder:
        assembly = source
        if source.endswith(".c"):
            code, assembly = Path(folder) / "code.ll", Path(folder) / "code.s"
            run(CLANG, *TARGET, *flags, "-emit-llvm", "-S", source, "-o", code)
            # Clang keeps a frame pointer for processors that it does not know.
            code.write_text(code.read_text().replace('"frame-pointer"="all"', '"frame-pointer"="none"'))
            sections = ("-function-sections", "-data-sections")
            level = next((flag for flag in reversed(flags) if re.fullmatch(r"-O[0-3]", flag)), "-O2")
            run(LLC, *sections, CPU[0].replace("-triple", "-mtriple"), CPU[1], level, code, "-o", assembly)
            # LLVM 22 does not align the pools of literals, which l32r needs.
            text = assembly.read_text()
            assembly.write_text(re.sub(r"^(\s*)(\.literal_position)", r"\1.p2align 2\n\1\2", text, flags=re.MULTILINE))
        run(ASSEMBLER, *CPU, "-filetype=obj", assembly, "-o", out)


def run(*command: object) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    print(done.stderr, end="", file=sys.stderr)
    if done.returncode:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Runs a built check program, on this computer or in an emulator, and says what was found; the last line is JSON.

Called by the Makefile; needs Python's standard library alone. Exit status 0: every byte equals TFLite Micro's, and
every answer Python's where the model makes one.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys

SECONDS = 600


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("model", "board", "size", "object", "program"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--emulator", default="", help="counts instructions")
    parser.add_argument("--runner", default="", help="counts nanoseconds")
    given = parser.parse_args()
    command = [*shlex.split(given.runner), given.program]
    if given.emulator:
        counting = ["-nographic", "-monitor", "none", "-icount", "shift=0"]
        command = [*shlex.split(given.emulator), *counting, "-kernel", given.program]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return fail(f"{given.board}: {given.program} did not end within {SECONDS} s")
    text = done.stdout + done.stderr  # an emulator's semihosting prints on either
    pattern = r"result samples=(\d+) equal=(\d+) count=(0x\w+) stack=(\d+) arena=(\d+) macs=(\d+) answers=(-?\d+)"
    found = re.search(pattern, text)
    if not found:
        return fail(f"{given.board}: {given.program} ended with {done.returncode} and no result\n{text[-2000:]}")
    print("\n".join(line for line in text.splitlines() if line.startswith("sample ")), end="")
    samples, equal, count, stack, arena, macs, answers = (int(value, 0) for value in found.groups())
    counted = count if given.emulator else None
    milliseconds = round(count / 1e6, 3) if given.runner else None
    code, weights = sizes(given.size, given.object) if given.size else wasm_sizes(given.object)
    result = dict(
        model=given.model,
        board=given.board,
        samples=samples,
        equal=equal,
        answers_equal=answers if answers >= 0 else None,  # None: the model makes none
        instructions=counted,
        instructions_per_mac=round(count / macs, 3) if counted and macs else None,
        milliseconds=milliseconds,  # the median
        code_bytes=code,
        weight_bytes=weights,
        arena_bytes=arena,
        stack_bytes=stack if given.emulator else None,
    )
    print(f"{given.model} on {given.board}: {equal} of {samples} samples equal TFLite Micro in every byte")
    if answers >= 0:
        print(f"{answers} of {samples} answers equal Python's")
    if counted:
        print(f"{count:,} instructions an inference, {result['instructions_per_mac']} a multiply-accumulate")
    if milliseconds is not None:
        print(f"{milliseconds} ms an inference on this computer, the median of several runs")
    print(f"code {code:,} bytes, constants {weights:,}, arena {arena:,}" + (f", stack {stack:,}" if counted else ""))
    print(json.dumps(result))
    return 0 if equal == samples and answers in (-1, samples) and done.returncode == 0 else 1


def sizes(program: str, file: str) -> tuple[int, int]:
    """Bytes of code, with the literals between functions, and of constants in an object file."""
    listing = subprocess.run([program, "-A", file], capture_output=True, text=True, check=True).stdout
    rows = [(name, int(size)) for name, size in re.findall(r"^(\.\S+)\s+(\d+)", listing, re.MULTILINE)]
    code = sum(size for name, size in rows if name.startswith((".text", ".literal")))
    return code, sum(size for name, size in rows if name.startswith((".rodata", ".srodata", ".data", ".sdata")))


def wasm_sizes(file: str) -> tuple[int, int]:
    """Bytes of code and of constants in an object file of WebAssembly, by its sections 10 and 11."""
    with open(file, "rb") as opened:
        content = opened.read()
    found, place = {}, 8
    while place < len(content):
        size, start = leb128(content, place + 1)
        found[content[place]] = content[start : start + size]
        place = start + size
    data, constants = found.get(11, b"\0"), 0
    count, place = leb128(data, 0)
    for _ in range(count):  # flags 0, i32.const, where, end, size, bytes
        _, place = leb128(data, place + 2)
        size, place = leb128(data, place + 1)
        constants, place = constants + size, place + size
    return len(found.get(10, b"")), constants


def leb128(content: bytes, place: int) -> tuple[int, int]:
    """A number of WebAssembly, and the place behind it."""
    value = shift = 0
    while True:
        value |= (content[place] & 127) << shift
        shift, place = shift + 7, place + 1
        if content[place - 1] < 128:
            return value, place


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

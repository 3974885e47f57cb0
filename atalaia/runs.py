"""Runs as other programs: what atalaia.sweep and atalaia.search share."""

import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from atalaia import cli, executors
from atalaia import config as configs


def override_flags(overrides: Mapping[str, Any]) -> list[str]:
    """Fields and values as flags of atalaia.train: `--config.FIELD=VALUE`."""
    return [f"--config.{field}={value}" for field, value in overrides.items()]


def check(file: str, overrides: Mapping[str, Any]) -> ConfigDict:
    """The config that atalaia.train would run with, parsed and validated.

    Raises:
      UserError: there is no such file or field, or a value is of a wrong type or has no meaning.
    """
    values, arguments = flags.FlagValues(), ["check", f"--config={file}", *override_flags(overrides)]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    with cli.flag_errors():
        values(arguments)
        config = values.config
        _ = config.is_locked  # a file that could not be read shows here first
    configs.validate(config)
    return config


def command(step: str, workdir: Path, arguments: Sequence[str] = ()) -> list[str]:
    """What starts one step of a run, such as "train", as a user would."""
    return [sys.executable, "-m", f"atalaia.{step}", f"--workdir={workdir}", *arguments]


def call(words: Sequence[str], cwd: Path | None = None) -> int:
    """Runs a program and gives its exit code; one that a signal ended is named on stderr.

    Ctrl-C reaches the program too, and it gets the time to save what it has.

    Raises:
      KeyboardInterrupt: Ctrl-C, once the program has ended.
    """
    process, interrupted = subprocess.Popen(words, cwd=cwd), False
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted or code == 130:
        raise KeyboardInterrupt
    if code < 0:
        print(f"error: {' '.join(words[1:])} was {signal_words(code)}", file=sys.stderr)
    return code


def signal_words(code: int) -> str:
    """What a negative exit code says."""
    return f"ended by signal {-code}" + (" (often: too little memory)" if code == -signal.SIGKILL else "")


def submitted(
    executor: executors.Executor, stop: threading.Event, step: str, workdir: Path, arguments: Sequence[str] = ()
) -> bool:
    """As `run`, by an executor, its words in the log beside the run's folder; why it failed is said on stderr."""
    code = executors.finish(executor.submit(command(step, workdir, arguments), workdir), stop)
    if code:
        print(f"error: {failure(step, workdir, code)}", file=sys.stderr)
    return code == 0


def failure(step: str, workdir: Path, code: int) -> str:
    """Why a step of a run failed, by its exit code and the last line of the log beside its folder."""
    log = executors.beside(workdir, ".log")
    said = log.read_text(errors="replace").strip().splitlines() or [f"exit code {code}"]
    why = signal_words(code) if code < 0 else said[-1].removeprefix("error: ")
    return f"{step} of {workdir} failed: {why} (log: {log})"


def run(step: str, workdir: Path, arguments: Sequence[str] = ()) -> bool:
    """One step of a run, waited for; True where it went well; raises as `call`."""
    return call(command(step, workdir, arguments)) == 0


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in Markdown, "-" where one lacks a column."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name, "-")) for name in names] for row in rows]
    lines = ["| " + " | ".join(line) + " |" for line in [names, ["---"] * len(names), *cells]]
    return "\n".join(lines) + "\n"


def _cell(value):
    return f"{value:.4f}" if isinstance(value, float) else str(value).replace("|", "\\|")

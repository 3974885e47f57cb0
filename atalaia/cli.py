"""What every command shares: flags, one clear line for a user's mistake, a quiet Ctrl-C."""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import jax
from absl import app, flags, logging

from atalaia import data, processes
from atalaia.errors import UserError, message
from atalaia.files import shipped


def common_flags() -> None:
    """Defines --workdir and --data_dir."""
    flags.DEFINE_string("workdir", None, "The run folder, such as runs/cifar10.")
    flags.DEFINE_string("data_dir", None, "Where data sets are kept (else $ATALAIA_DATA, else ~/.cache/atalaia).")


def workdir() -> Path:
    """The run folder that was given.

    Raises:
      UserError: none was.
    """
    if not flags.FLAGS.workdir:
        raise UserError("no run folder: give --workdir=runs/NAME")
    return Path(flags.FLAGS.workdir)


def out_file(out: str | Path) -> Path:
    """Where a file goes that --out names, its folder made.

    Raises:
      UserError: it is a folder.
    """
    out = Path(out)
    if out.is_dir():
        raise UserError(f"--out={out} is a folder: name a file")
    out.parent.mkdir(parents=True, exist_ok=True)
    return out


def cache() -> Path:
    """The folder of data sets. What XLA compiles is kept there too, so that a second start is fast."""
    folder = data.cache_dir(flags.FLAGS.data_dir)
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    return folder


def run(main: Callable[..., None], known_only: bool = False, goes_on: bool = False) -> None:
    """Parses the flags and runs `main()`; a user's mistake becomes one line and its exit code, Ctrl-C exit code 130.

    Args:
      main: the command.
      known_only: call main with the list of the arguments that are no flags of ours, instead of refusing them.
      goes_on: whether the same command, given again after Ctrl-C, goes on where it was, which is then said.
    """
    logging.set_verbosity(logging.ERROR)  # jax and orbax tell what they look for and write
    app.run(
        lambda argv: _guarded(partial(main, argv[1:]) if known_only else main, goes_on),
        flags_parser=lambda argv: _guarded(partial(_parse, argv, known_only)),
    )


@contextlib.contextmanager
def flag_errors() -> Iterator[None]:
    """Turns what absl and ml_collections raise for wrong flags and configs into a UserError."""
    try:
        yield
    # ml_collections raises these plain types for unknown fields, wrong types and missing files.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(_flag_message(error)) from None


def _guarded(function, goes_on=False):
    try:
        return function()
    except KeyboardInterrupt:
        print("stopped" + "; give the same command again to go on" * goes_on, file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line, code = message(error) or processes.lost(error), UserError.code
        if isinstance(error, UserError):
            code = error.code
        processes.speak()
        if line is None:
            if not jax.distributed.is_initialized():
                raise
            line, code = traceback.format_exc(), 1
        print(f"error: {line}", file=sys.stderr)
        processes.leave(code)
        sys.exit(code)


def _parse(argv: Sequence[str], known_only: bool) -> list[str]:
    with flag_errors():
        rest = flags.FLAGS([_recipe(word) for word in argv], known_only)
        if "config" in flags.FLAGS and flags.FLAGS["config"].present:
            _ = flags.FLAGS.config.is_locked  # a file that could not be read shows here first
    if len(rest) > 1 and not known_only:
        raise UserError(f"unexpected argument {rest[1]!r}: fields of the config are set as --config.field=value")
    return rest


def _recipe(word):
    """A flag --config=NAME of one of our recipes, wherever they are installed, as the flag with its file."""
    name, colon, rest = word.removeprefix("--config=").partition(":")
    if not word.startswith("--config=") or name.endswith(".py"):
        return word
    file = shipped("configs") / f"{name}.py"
    return f"--config={file}{colon}{rest}" if file.is_file() else word


def _flag_message(error):
    text = " ".join(str(error).split())
    near = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
    if near:
        return f"the config has no field {near[2]!r}; did you mean {near[1]!r}?"
    if isinstance(error, KeyError | AttributeError):
        return "the config has no such field: " + text.strip("\"'")
    word = re.search(r"flag --config=(\S+?):(\S*): .*get_config\(\) takes 0 positional arguments", text)
    if word:
        return f"{word[1]} holds one recipe: leave out ':{word[2]}'"
    missing = re.search(r"No such file or directory: '([^']+)'", text)
    return f"no config file {missing[1]}: the recipes are in configs/" if missing else text

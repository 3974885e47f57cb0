"""What every command shares: flags, one clear line for a user's mistake, a quiet Ctrl-C."""

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging

from atalaia import data
from atalaia.errors import UserError, message


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


def cache() -> Path:
    """The folder of data sets."""
    return data.cache_dir(flags.FLAGS.data_dir)


def run(main: Callable[[], None]) -> None:
    """Parses the flags and runs `main()`; a user's mistake becomes one line and exit code 2, Ctrl-C exit code 130."""
    logging.set_verbosity(logging.ERROR)  # jax and orbax tell what they look for and write
    app.run(lambda argv: _guarded(main), flags_parser=_parse)


def _guarded(main):
    try:
        main()
    except KeyboardInterrupt:
        print("stopped; give the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = message(error)
        if line is None:
            raise
        _fail(line)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS["config"].present:
            bool(flags.FLAGS.config)  # a file that could not be read shows here first
    # ml_collections raises these plain types for unknown fields, wrong types and missing files.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, UserError) as error:
        _fail(_flag_message(error))
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}: fields of the config are set as --config.field=value")
    return rest


def _flag_message(error):
    text = " ".join(str(error).split())
    near = re.search(r'Did you mean "(\w+)" instead of "(\w+)"', text)
    if near:
        return f"the config has no field {near[2]!r}; did you mean {near[1]!r}?"
    if isinstance(error, KeyError | AttributeError):
        return f"the config has no such field: {text}"
    missing = re.search(r"No such file or directory: '([^']+)'", text)
    return f"no config file {missing[1]}: the recipes are in configs/" if missing else text


def _fail(line: str):
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)

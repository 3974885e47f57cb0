"""What a user did wrong, in one line, and the entry point of every command.

Library code raises `UserError` with a sentence that names the cause and the fix. Commands start with `run(main)`,
which turns it into that line on stderr and exit code 2; a defect of ours still shows its stack trace.
"""

import errno
import sys
from collections.abc import Callable, Sequence

from absl import app, flags

NO_SPACE = "no space left on the disk: free some and run the same command again, it goes on where it was"


class UserError(Exception):
    """A mistake that the user can mend; its text names the cause and the fix in one line."""


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Parses the flags and runs `main(argv)`; user errors become one line and exit code 2, Ctrl-C exit code 130."""
    app.run(lambda argv: _guarded(main, argv), flags_parser=_parse)


def message(error: BaseException) -> str | None:
    """The line for an error that a user can mend, or None for a defect of ours."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    no_space = isinstance(error, OSError) and error.errno == errno.ENOSPC
    if no_space or "No space left on device" in str(error):  # tensorstore wraps the errno in its own exception
        return NO_SPACE
    if isinstance(error, PermissionError):
        return f"no permission for {error.filename}: choose a folder that you can write to"
    return None


def _guarded(main, argv):
    try:
        main(argv)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = message(error)
        if line is None:
            raise
        _fail(line)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    # ml_collections raises these plain types for unknown fields, wrong types and missing files.
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, UserError) as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        _fail(" ".join(str(text).split()))
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}: fields of the config are set as --config.field=value")
    return rest


def _fail(line: str):
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)

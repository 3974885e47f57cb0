"""What a user did wrong, in one line that names the cause and the fix."""

import contextlib
import errno
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Collection, Iterator

NO_SPACE = "no space left on the disk: free some and give the same command again, it goes on where it was"


class UserError(Exception):
    """A mistake that the user can mend; its text names the cause and the fix in one line."""

    code = 2  # exit code of the command


class Diverged(UserError):
    """Training became NaN or infinite, which a search takes as a result."""

    code = 3


def require(package: str, extra: str) -> None:
    """Does nothing where a package is installed.

    Raises:
      UserError: it is not; names the extra of ours that brings it.
    """
    if importlib.util.find_spec(package) is None:
        how = f"pip install '.[{extra}]' in the folder of AtalaIA's repository"
        raise UserError(f"this needs the package {package}: {how}")


def choice(field: str, value: str, allowed: Collection[str], of: str = "") -> None:
    """Does nothing for a value that is allowed.

    Raises:
      UserError: it is not; names the field, what is allowed, and `of` what.
    """
    if value not in allowed:
        raise UserError(f"{field}: {of}there is no {value!r}, only {', '.join(sorted(allowed))}")


def message(error: BaseException) -> str | None:
    """The line for an error that a user can mend, or None for a defect of ours."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    no_space = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if no_space or "No space left on device" in str(error):  # tensorstore wraps the errno in its own exception
        return NO_SPACE
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):  # of NumPy, of XLA
        said = " ".join(str(error).split())[:120]
        return f"not enough memory ({said}): give data.in_memory=False, or a smaller data.size or batch_size"
    if isinstance(error, PermissionError):
        return f"no permission for {error.filename}: choose a folder that you can write to"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{error.filename} is a file, where a folder is needed: choose another --workdir or --data_dir"
    return None


_STDERR = threading.RLock()  # it is the whole process's: of two threads inside, one would restore the other's file


@contextlib.contextmanager
def quiet_stderr(show_on_error: bool = True) -> Iterator[None]:
    """Keeps off stderr what libraries write there from C++ and threads; shown after all where something fails."""
    with _STDERR, tempfile.TemporaryFile() as chatter:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(chatter.fileno(), 2)
        try:
            yield
        except BaseException:
            if show_on_error:
                chatter.seek(0)
                os.write(kept, chatter.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)

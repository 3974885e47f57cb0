"""Files that appear whole or not at all: written beside their place, then renamed."""

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, contents: str | bytes) -> None:
    """Writes a file, or leaves the one that is there as it was."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON."""
    write_whole(path, json.dumps(value, indent=2) + "\n")

"""Writing files so that a kill at any instant leaves the old content or the new, never a mixture."""

import json
import os
import secrets
from pathlib import Path
from typing import Any


def sync(path: Path, below: bool = True) -> None:
    """Flush a file or a folder to disk; a folder's entries, so that a rename in it survives a power cut.

    Args:
        path: the file or folder.
        below: flush everything below a folder too.
    """
    if below and path.is_dir():
        for inside in path.iterdir():
            sync(inside)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes, aside: Path | None = None) -> None:
    """Write a file under a temporary name, flush it, and rename it into place.

    Args:
        path: the file.
        content: what it will hold.
        aside: folder of the temporary file, on the same file system; None is the file's own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = (aside or path.parent) / f".tmp-{secrets.token_hex(8)}"
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent, below=False)


def canonical_json(value: Any) -> bytes:
    """Return JSON that is the same bytes for the same value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def readable_json(value: Any) -> bytes:
    """Return JSON for people; the same value gives the same bytes."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False)
    return (text + "\n").encode()


def write_json(path: Path, value: Any, aside: Path | None = None) -> None:
    """Write readable JSON, atomically."""
    write_atomically(path, readable_json(value), aside)

"""Files: read whoever made them, and written so that a kill at any instant leaves the old content or the new.

What is read may have been made by anybody: a pipe would block and a device never end, so neither is opened as a file;
JSON may be nested deeper than Python goes; and what a message quotes may be megabytes long.
"""

import errno
import json
import os
import reprlib
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_QUOTED = reprlib.Repr()
_QUOTED.maxstring = _QUOTED.maxother = _QUOTED.maxlong = 120
_QUOTED.maxlist = _QUOTED.maxtuple = _QUOTED.maxdict = 10


def read_plain(path: str | Path) -> bytes:
    """Return the content of a file that is one.

    Raises:
        OSError: it is missing, cannot be read, or is a folder, a pipe or a device.
    """
    try:
        # Without O_NONBLOCK, a pipe that nobody writes into would block here.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except ValueError as error:  # a NUL in the path
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "It is a pipe or a device, not a file", str(path))
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def parse_json(text: str) -> Any:
    """Return what JSON text says.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def is_text(text: str) -> bool:
    r"""Return whether a text can be written: JSON may spell half a character, as ``"\ud800"``."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def quoted(value: Any) -> str:
    """Return a value as a message shows it: as Python writes it, and cut in its middle where it is long."""
    return _QUOTED.repr(value)


def listed(names: Iterable[object], most: int = 20) -> str:
    """Return names as a message shows them: with commas, long ones cut, the first `most` of them; or ``none``."""
    every = [text if text.isprintable() and len(text) <= 80 else quoted(text) for text in map(str, names)]
    return ", ".join(every[:most]) + (f" and {len(every) - most} more" if len(every) > most else "") or "none"


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

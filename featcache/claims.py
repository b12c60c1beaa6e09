"""What live processes have in a cache's ``.tmp``: what they claimed, and folders for temporary files.

Both are locks on files. The system drops them when their process ends, however that ends, so the next one can tell what
was left by one that was killed, and remove it.

**Claims** are pieces of work that one process does, so that others do something else meanwhile. Nothing depends on them
but that work is not done twice: where files cannot be locked, everybody gets every claim. What was tried in vain leaves
nothing that the others could see; a note beside the claims tells them, for as long as any of them is at work.

**Workplaces** are named after their host, since some file systems that hosts share keep locks to one of them: what
another host left is removed when nothing was written there for a week.
"""

import fcntl
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ASIDE = ".tmp"
"""The cache's folder for files of live processes."""

_CLAIM = ".claim"
_TRIED = ".tried"
_ABANDONED_S = 7 * 24 * 3600.0  # by another host


class Claim:
    """A claim that this process has; see :func:`take`."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self._path = path
        self._lock = lock

    def release(self, tried: bool = False) -> None:
        """Give it up; what was claimed is done, or somebody else's from now on.

        Args:
            tried: leave a note that it was tried, see :func:`tried`.
        """
        if tried:
            with suppress(OSError):  # it is tried once more
                self._path.with_suffix(_TRIED).touch()
        if self._lock is not None:
            lock, self._lock = self._lock, None
            with suppress(OSError):  # another process removed it, where files cannot be locked
                self._path.unlink()
            os.close(lock)


def take(aside: Path, name: str) -> Claim | None:
    """Claim something by a name; None where another live process has claimed it.

    Args:
        aside: folder of the files that are locked; made when missing.
        name: what is claimed.
    """
    path = aside / f"{name}{_CLAIM}"
    while True:
        try:
            aside.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        except FileNotFoundError:  # another process removed the empty folder
            continue
        except OSError:  # a full disk, say, which whoever writes what was claimed will name
            return Claim(path, None)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        except OSError:  # no locks here
            return Claim(path, lock)
        if os.fstat(lock).st_nlink:
            return Claim(path, lock)
        os.close(lock)  # who had it removed the file between our opening and our locking


def tried(aside: Path) -> frozenset[str]:
    """Return the names of claims of which a process that had them left a note that it tried."""
    return frozenset(path.stem for path in aside.glob(f"*{_TRIED}"))


def remove(path: Path) -> None:
    """Remove a file or a folder, where it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def workplace(cache: Path) -> Iterator[Path]:
    """Open a folder for temporary files of a cache, or of copies of audio, locked against clean-up while it is open."""
    folder, lock = _make_workplace(cache / ASIDE)
    try:
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another writer still works there
            folder.parent.rmdir()


def _make_workplace(aside: Path) -> tuple[Path, int]:
    """Make a folder to write in, and lock it; where the file system has no locks, nobody cleans up either."""
    while True:
        workplace = aside / f"{secrets.token_hex(8)}@{socket.gethostname()}"
        try:
            workplace.mkdir(parents=True)
            lock = os.open(workplace / "lock", os.O_CREAT | os.O_RDWR)
        except FileNotFoundError:  # another writer took it for abandoned, or removed the empty `.tmp`
            continue
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        if os.fstat(lock).st_nlink:
            return workplace, lock
        os.close(lock)


def remove_abandoned(cache: Path) -> None:
    """Remove what killed writers left: a live one holds a lock on its workplace, and on each part that it claimed."""
    aside = cache / ASIDE
    try:
        names = os.listdir(aside)
    except OSError:  # there is none
        return
    for left in (aside / name for name in names):
        try:
            lock = os.open(left if left.suffix == _CLAIM else left / "lock", os.O_RDWR)
        except OSError:
            with suppress(OSError):  # killed before it locked, hence empty
                left.rmdir()
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        else:
            # Without a link its owner took it away before it was locked here, and another's may be in its place.
            with suppress(FileNotFoundError):  # its owner takes it away just now
                if os.fstat(lock).st_nlink and not _may_be_locked_elsewhere(left):
                    remove(left)
        finally:
            os.close(lock)
    with suppress(OSError):  # a live writer works there
        _forget(aside)
        aside.rmdir()


def _may_be_locked_elsewhere(workplace: Path) -> bool:
    """Say whether a workplace is of another host, and was written in lately."""
    host = workplace.name.partition("@")[2]
    return host not in ("", socket.gethostname()) and time.time() - workplace.stat().st_mtime < _ABANDONED_S


def _forget(aside: Path) -> None:
    """Remove the notes when there is nothing else in the folder: nobody is left who could read them."""
    left = list(aside.iterdir())
    if all(path.suffix == _TRIED for path in left):
        for path in left:
            path.unlink(missing_ok=True)

"""A piece of work that one process has claimed, so that others do something else meanwhile.

A claim is a lock on a file. The system drops it when its process ends, however that ends, and the next one takes it.
Nothing depends on a claim but that work is not done twice: where files cannot be locked, everybody gets every claim.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path

SUFFIX = ".claim"


class Claim:
    """A claim that this process has; see :func:`take`."""

    def __init__(self, path: Path, lock: int | None) -> None:
        self._path = path
        self._lock = lock

    def release(self) -> None:
        """Give it up; what was claimed is done, or somebody else's from now on."""
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
    path = aside / f"{name}{SUFFIX}"
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

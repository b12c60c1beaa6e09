"""A temporary folder of one run of MFA that goes with the run, even where featcache is killed.

A whole corpus lies in it as WAV, so that one left behind matters, and so does a program that goes on working there.
Neither a handler nor ``atexit`` outlives ``kill -9``; two other things do:

- a **watcher**: this file run as a program of its own, that waits until featcache is gone, then kills what it was told
  to and removes the folder. It sees the end of featcache by the end of its input, which the system closes, and by
  having another parent, should a forked process still hold that input open.
- a **lock** on the folder, which ends with featcache: the next run removes folders that nobody locks, as
  :mod:`featcache.commit` does in a cache. It is there for machines that stop, and for a watcher that is killed too.

The watcher is started without site packages, so nothing but the standard library may be imported here.
"""

import fcntl
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "featcache-mfa-"
_LOCK = "lock"
_TICK_S, _PATIENCE_S = 1.0, 10.0


class RunFolder:
    """A folder and its watcher; removed by :meth:`close`, or by whoever notices that this process has ended.

    Attributes:
        path: the folder; absolute, without links.

    Raises:
        OSError: there is no room, or no right, to make a folder.
    """

    def __init__(self) -> None:
        remove_abandoned()
        self.path, self._lock = _make()
        self._watcher = _start_watcher(self.path)

    def follow(self, group: int) -> None:
        """Have a process group killed, should this process end unexpectedly; 0 is none."""
        if self._watcher is not None and self._watcher.stdin is not None:
            with suppress(OSError):  # the watcher was killed: the next run removes the folder
                self._watcher.stdin.write(f"{group}\n".encode())
                self._watcher.stdin.flush()

    def close(self) -> None:
        """Remove the folder, and stop watching it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        if self._watcher is not None:
            self.follow(0)
            # At the end of its input it removes what could not be removed here.
            with suppress(OSError, subprocess.TimeoutExpired):
                self._watcher.communicate(timeout=_PATIENCE_S)


@contextmanager
def run_folder() -> Iterator[Path]:
    """Open a folder for a moment."""
    folder = RunFolder()
    try:
        yield folder.path
    finally:
        folder.close()


def remove_abandoned() -> None:
    """Remove the folders of this user that no living process has locked."""
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            with suppress(OSError):
                _remove_unless_locked(folder)


def _remove_unless_locked(folder: Path) -> None:
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        return
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        folder.rmdir()  # killed before it locked, hence empty
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where it is locked, or where there are no locks
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _make() -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        try:
            lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        except FileNotFoundError:  # another run took it for abandoned
            continue
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        if os.fstat(lock).st_nlink:
            return folder, lock
        os.close(lock)


def _start_watcher(folder: Path) -> "subprocess.Popen[bytes] | None":
    command = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(folder), str(os.getpid())]
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
            start_new_session=True,
        )  # fmt: skip
    except OSError:  # the lock alone has to do
        return None


def _watch(folder: Path, parent: int) -> None:
    """Wait until the parent is gone, then kill the group that it named last, and remove the folder."""
    told = b""
    while os.getppid() == parent:
        if not select.select([0], [], [], _TICK_S)[0]:
            continue
        more = os.read(0, 4096)
        if not more:
            break
        told = (told + more)[-64:]
    group = next((int(line) for line in reversed(told.split(b"\n")) if line.isdigit()), 0)
    if group > 1:
        _kill(group)
    until = time.monotonic() + _PATIENCE_S
    while folder.exists() and time.monotonic() < until:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)


def _kill(group: int) -> None:
    """Kill a process group and wait until it is gone, or until only what nobody collects is left of it."""
    until = time.monotonic() + _PATIENCE_S / 5
    with suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < until:
            os.killpg(group, signal.SIGKILL)
            time.sleep(0.05)


if __name__ == "__main__":
    _watch(Path(sys.argv[1]), int(sys.argv[2]))

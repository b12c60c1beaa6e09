"""Writing HDF5 files so that a full disk is an error, and not the end of the process.

Where a write fails, the HDF5 library fails again as it closes the file, and then crashes (seen with 2.0). So it never
learns of it: it writes through a file of ours, which remembers the first failure and takes no more.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py


@contextmanager
def create(path: Path) -> Iterator[h5py.File]:
    """Open a new HDF5 file for writing.

    Raises:
        OSError: on leaving, where anything could not be written.
    """
    with path.open("w+b", buffering=0) as inner:
        output = _Output(inner)
        with h5py.File(output, "w") as file:
            yield file
        if output.failure is not None:
            raise output.failure


class _Output(io.RawIOBase):
    """A file that passes on what it is told, until the first failure."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes; all of them, as the library asks only once."""
        left = memoryview(data).cast("B")
        while len(left) and self.failure is None:
            left = left[self._try(self._file.write, left) or len(left) :]
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        """Set the file's length."""
        self._try(self._file.truncate, size)
        return size or 0

    def readinto(self, buffer: Any) -> int:
        """Read bytes that were written before."""
        return self._file.readinto(buffer) or 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place."""
        return self._file.tell()

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def writable(self) -> bool:
        """Say that it can be written."""
        return True

    def seekable(self) -> bool:
        """Say that places can be gone to."""
        return True

    def _try(self, work: Callable[[Any], int | None], argument: Any) -> int | None:
        try:
            return work(argument)
        except OSError as error:
            self.failure = self.failure or error
            return None

"""Files mapped into memory without keeping them open.

``mmap.mmap`` and ``numpy.memmap`` keep a file descriptor for as long as the map lives (before Python 3.13), and a cache
of 25 layers and some hundred parts has more files than a process may open. The system itself needs none once a file is
mapped.
"""

import ctypes
import mmap
import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value


def map_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...], offset: int = 0) -> np.ndarray:
    """Return an array that lies in a file, read-only; its pages are read when they are touched.

    Args:
        path: the file.
        dtype: type of the array.
        shape: its shape, in C order.
        offset: its first byte in the file.

    Raises:
        OSError: the file cannot be opened or mapped.
        ValueError: it is too short.
    """
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    end = offset + count * dtype.itemsize
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size < end:
            raise ValueError(f"{str(path)!r} has {size} bytes, and {end} are needed")
        if not count:
            return np.empty(shape, dtype)
        address = _libc.mmap(None, end, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    memory = (ctypes.c_ubyte * end).from_address(address)
    weakref.finalize(memory, _libc.munmap, address, end).atexit = False
    array = np.frombuffer(memoryview(memory), dtype, count, offset).reshape(shape)
    array.flags.writeable = False
    return array

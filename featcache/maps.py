"""Files mapped into memory without keeping them open.

``mmap.mmap`` and ``numpy.memmap`` keep a file descriptor for as long as the map lives (before Python 3.13), and a cache
of 25 layers and some hundred parts has more files than a process may open. The system itself needs none once a file is
mapped. Files of one form can be mapped one behind the other, so that they are one array.

Left to itself, the system reads around a page that is missing, as far as the disk's read-ahead goes: several times what
a window of frames needs. :func:`fetch` asks for the bytes that are wanted and no others, for all layers at once.
"""

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value
_MAP_FIXED = 0x10  # on every system that featcache runs on; Python's module does not name it
_READ_AT_ONCE = 128 * 2**10  # Linux cuts what is asked for at once to the disk's read-ahead, which is seldom less


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
    return map_stack([path], dtype, shape, offset)[0]


def map_stack(paths: Sequence[Path], dtype: DTypeLike, shape: tuple[int, ...], offset: int = 0) -> np.ndarray:
    """Return arrays of one form, each in a file of its own, as one array ``(files, *shape)``; see :func:`map_array`.

    Args:
        paths: the files, in order.
        dtype: type of the arrays.
        shape: shape of each.
        offset: its first byte in each file.

    Raises:
        OSError: a file cannot be opened or mapped.
        ValueError: one is too short.
    """
    dtype = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64))
    end = offset + count * dtype.itemsize
    apart = -(-end // mmap.PAGESIZE) * mmap.PAGESIZE if count else 0
    memory = _reserve(apart * len(paths))
    for number, path in enumerate(paths):
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < end:
                raise ValueError(f"{str(path)!r} has {size} bytes, and {end} are needed")
            if count:
                at = ctypes.addressof(memory) + number * apart
                _mmap(at, end, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, file.fileno(), path)
    if not (count and paths):
        return np.empty((len(paths), *shape), dtype)
    first = np.frombuffer(memoryview(memory), dtype, count, offset).reshape(shape)
    return np.lib.stride_tricks.as_strided(first, (len(paths), *shape), (apart, *first.strides), writeable=False)


def fetch(stack: np.ndarray) -> np.ndarray:
    """Have the system read what of a mapped array is not in memory, and nothing else; do not wait for it.

    Layers of the same frames are mostly read together, so whether the first, the middle and the last are there tells
    for all. To a process that may not write the file Linux says that all is in memory (mincore(2)); then its usual
    read-ahead is what is left, as it is for layers that were missed.

    Args:
        stack: ``(layers, ...)``, each layer without gaps; part of what :func:`map_stack` gave.

    Returns:
        The same array.
    """
    if not stack.size:
        return stack
    address, apart, size = stack.__array_interface__["data"][0], stack.strides[0], stack[0].nbytes
    if all(_in_memory(address + layer * apart, size) for layer in {0, len(stack) // 2, len(stack) - 1}):
        return stack
    for begin in range(address, address + len(stack) * apart, apart):
        for at in range(begin - begin % mmap.PAGESIZE, begin + size, _READ_AT_ONCE):
            _libc.madvise(at, min(_READ_AT_ONCE, begin + size - at), mmap.MADV_WILLNEED)
    return stack


def _in_memory(begin: int, size: int) -> bool:
    """Say whether all pages of mapped memory are there; also where the system does not tell."""
    first = begin - begin % mmap.PAGESIZE
    pages = ctypes.create_string_buffer(-(-(begin + size - first) // mmap.PAGESIZE))
    return _libc.mincore(first, begin + size - first, pages) != 0 or b"\0" not in pages.raw


def _reserve(size: int) -> ctypes.Array:
    """Return addresses for maps, which are given back when nothing refers to them any more."""
    if not size:
        return (ctypes.c_ubyte * 0)()
    address = _mmap(None, size, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, Path("memory"))
    memory = (ctypes.c_ubyte * size).from_address(address)
    weakref.finalize(memory, _libc.munmap, address, size).atexit = False
    return memory


def _mmap(address: int | None, size: int, protection: int, flags: int, descriptor: int, path: Path) -> int:
    found = _libc.mmap(address, size, protection, flags, descriptor, 0)
    if found == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return int(found)

"""How much a stream of a cache takes on disk."""

import os
from collections.abc import Iterator

from featcache.cache import CachedStream
from featcache.index import Index


def stream_bytes(stream: CachedStream) -> int:
    """Return the size of a stream's committed parts, their indices and the views of them, in bytes.

    A Zarr part's files are asked for by name: listing its folders, three for each layer, takes four times as long.
    What is missing counts nothing here; `featcache verify` names it.
    """
    with os.scandir(stream.path) as found:
        total = sum(entry.stat().st_size for entry in found if entry.is_file())  # HDF5's parts are among them
    for index in stream.indices.values():
        if index.backend == "zarr" and index.arrays:
            total += sum(_size(f"{stream.path}/{index.name}/{name}") for name in _zarr_files(index))
    return total


def _zarr_files(index: Index) -> Iterator[str]:
    """Yield the files of a part as this project writes it: a shard a layer of frames, one chunk an array else."""
    yield "zarr.json"
    for name, form in index.arrays.items():
        yield f"{name}/zarr.json"
        first, *further = form["shape"]
        for chunk in range(first if name == "frames" else 1):
            yield f"{name}/c/{chunk}{'/0' * len(further)}"


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0

"""Views of a whole stream for readers without this project: one Zarr hierarchy, one HDF5 file.

Both are derived from the indices and written anew after each extraction; nothing here is needed to read a cache
with this project.

* ``CACHE/<stream>/zarr.json`` makes the folder a Zarr group whose members are the parts.
* ``CACHE/<stream>/all.h5`` shows all HDF5 parts as one: ``frames`` ``(layers, frames, dim)``, and for
  each utterance held at present its ``ids``, ``start`` and ``num_frames`` along the frame axis, and its
  ``row`` in ``mean`` and ``std`` ``(rows, layers, dim)``.
"""

import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from featcache.cache import CachedStream
from featcache.files import write_json
from featcache.index import STATS, Index

ZARR_NAME = "zarr.json"
HDF5_NAME = "all.h5"


def write_catalogue(stream: CachedStream) -> None:
    """Write, replace or remove the views of a stream, so that they show its committed parts and no others."""
    for backend, name, write in (("zarr", ZARR_NAME, _write_zarr), ("hdf5", HDF5_NAME, _write_hdf5)):
        parts = [index for index in stream.indices.values() if index.backend == backend and index.entries]
        if parts:
            write(stream, parts)
        else:
            (stream.path / name).unlink(missing_ok=True)


def _write_zarr(stream: CachedStream, parts: Sequence[Index]) -> None:
    members: dict[str, Any] = {}
    for index in parts:
        folder = stream.path / index.name
        for path in (folder, *(folder / name for name in sorted(index.arrays))):
            members[path.relative_to(stream.path).as_posix()] = json.loads((path / ZARR_NAME).read_bytes())
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"stream": stream.name},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": members},
    }
    write_json(stream.path / ZARR_NAME, group)


def _write_hdf5(stream: CachedStream, parts: Sequence[Index]) -> None:
    temporary = stream.path / f".tmp-{secrets.token_hex(8)}"
    try:
        with h5py.File(temporary, "w") as file:
            _fill_hdf5(file, stream, parts)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(stream.path / HDF5_NAME)
    finally:
        temporary.unlink(missing_ok=True)


def _fill_hdf5(file: h5py.File, stream: CachedStream, parts: Sequence[Index]) -> None:
    shown = [index for index in parts if "frames" in index.arrays] or parts
    names = ("frames", *STATS) if "frames" in shown[0].arrays else STATS
    frames = _offsets([sum(entry.num_frames for entry in index.entries) for index in shown])
    rows = _offsets([len(index.entries) for index in shown])
    current = [
        (entry.id, first + entry.start, entry.num_frames, row + position)
        for index, first, row in zip(shown, frames, rows, strict=False)
        for position, entry in enumerate(index.entries)
        if stream.locate(entry.id).entry == entry
    ]
    file.attrs["stream"] = stream.name
    file.create_dataset("ids", data=[item[0] for item in current], dtype=h5py.string_dtype())
    for column, name in enumerate(("start", "num_frames", "row"), start=1):
        file.create_dataset(name, data=np.array([item[column] for item in current], np.int64))
    for name in names:
        _virtual(file, name, shown, axis=1 if name == "frames" else 0)


def _virtual(file: h5py.File, name: str, parts: Sequence[Index], axis: int) -> None:
    """Show the parts' arrays of one name as one, joined along an axis. Paths are relative, so a cache can move."""
    shapes = [tuple(index.arrays[name]["shape"]) for index in parts]
    sizes = [shape[axis] for shape in shapes]
    whole = tuple(sum(sizes) if at == axis else size for at, size in enumerate(shapes[0]))
    target = h5py.h5s.create_simple(whole)
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_obj_track_times(False)  # which h5py's own virtual datasets leave on: the same parts, other bytes
    for index, shape, first in zip(parts, shapes, _offsets(sizes), strict=False):
        target.select_hyperslab(tuple(first if at == axis else 0 for at in range(len(shape))), shape)
        options.set_virtual(target, f"{index.name}.h5".encode(), name.encode(), h5py.h5s.create_simple(shape))
    kind = h5py.h5t.py_create(np.dtype(parts[0].arrays[name]["dtype"]), logical=True)
    h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(whole), dcpl=options)


def _offsets(sizes: Sequence[int]) -> list[int]:
    return [0, *np.cumsum(sizes).tolist()]


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder, in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

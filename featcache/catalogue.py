"""Views of a whole stream for readers without this project: one Zarr hierarchy, one HDF5 file.

Both are derived from the indices and renewed after each extraction; nothing here is needed to read a cache with this
project. Each shows the parts of its own backend.

* ``CACHE/<stream>/zarr.json`` makes the folder a Zarr group whose members are the parts; its attribute ``utterances``
  says for each id held at present its ``part``, ``row``, ``start``, ``num_frames`` and ``tier``.
* ``CACHE/<stream>/all.h5`` shows all HDF5 parts as one: ``frames`` ``(layers, frames, dim)`` and every other array,
  and for each utterance held at present its ``ids``, ``start`` (-1 where only stats were kept) and ``num_frames``
  along the frame axis, and its ``row`` in the arrays of one value an utterance.

Superseded features of utterances whose input changed stay in their parts, and are in neither list.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np

from featcache.cache import Cache, CachedStream
from featcache.files import canonical_json, sync, write_atomically
from featcache.hdf5_file import create
from featcache.index import Entry, Index

ZARR_NAME = "zarr.json"
HDF5_NAME = "all.h5"


def renew_catalogue(cache: Path, name: str, aside: Callable[[], AbstractContextManager[Path]]) -> None:
    """Bring the views of a stream up to date with its committed parts; untouched where they are.

    Args:
        cache: the cache's folder.
        name: full name of the stream.
        aside: opens a folder to write temporary files in; asked for only when something must be written.
    """
    shown = None
    while (parts := sorted(path.name for path in (cache / name).glob("part-*.json"))) != shown:
        # Once more until nothing was committed meanwhile: of two writers, the one that ends last sees all parts.
        shown = parts
        stream = Cache(cache)[name]
        for backend, file, is_current, write in (
            ("zarr", ZARR_NAME, _zarr_is_current, _write_zarr),
            ("hdf5", HDF5_NAME, _hdf5_is_current, _write_hdf5),
        ):
            chosen = [index for index in stream.indices.values() if index.backend == backend and index.entries]
            if not chosen:
                (stream.path / file).unlink(missing_ok=True)
            elif not is_current(stream, chosen):
                with aside() as folder:
                    write(stream, chosen, folder)


def damaged_view(stream: CachedStream) -> Path | None:
    """Return the HDF5 view where it says that it shows the parts that are there, and does not.

    One that shows fewer parts, as after a kill, is renewed by the next extraction; so is any damage to the Zarr view.
    """
    chosen = [index for index in stream.indices.values() if index.backend == "hdf5" and index.entries]
    if not chosen or not _hdf5_is_current(stream, chosen):
        return None
    with TemporaryDirectory() as folder:
        expected = Path(folder) / HDF5_NAME
        with create(expected) as file:
            _fill_hdf5(file, stream, chosen)
        same = expected.read_bytes() == (stream.path / HDF5_NAME).read_bytes()
    return None if same else stream.path / HDF5_NAME


def _current(stream: CachedStream, parts: Sequence[Index]) -> list[tuple[Index, int, Entry]]:
    """Return the entries that the cache serves at present, with their part and row; superseded ones are left out."""
    return [
        (index, row, entry)
        for index in parts
        for row, entry in enumerate(index.entries)
        if stream.locate(entry.id).index is index
    ]


def _zarr_group(stream: CachedStream, parts: Sequence[Index]) -> bytes:
    """Return the group's metadata; not indented, which Python's JSON writes at a tenth of the speed."""
    members: dict[str, Any] = {}
    for index in parts:
        for path in (index.name, *(f"{index.name}/{name}" for name in sorted(index.arrays))):
            members[path] = json.loads((stream.path / path / ZARR_NAME).read_bytes())
    utterances = {
        entry.id: {
            "part": index.name, "row": row, "start": entry.start, "num_frames": entry.num_frames, "tier": index.tier
        }
        for index, row, entry in _current(stream, parts)
    }  # fmt: skip
    group = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"stream": stream.name, "utterances": utterances},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": members},
    }
    return canonical_json(group)


def _zarr_is_current(stream: CachedStream, parts: Sequence[Index]) -> bool:
    path = stream.path / ZARR_NAME
    return path.is_file() and path.read_bytes() == _zarr_group(stream, parts)


def _write_zarr(stream: CachedStream, parts: Sequence[Index], aside: Path) -> None:
    write_atomically(stream.path / ZARR_NAME, _zarr_group(stream, parts), aside)


def _hdf5_is_current(stream: CachedStream, parts: Sequence[Index]) -> bool:
    try:
        with h5py.File(stream.path / HDF5_NAME, "r") as file:
            return bool(file.attrs["parts"] == _parts_digest(stream, parts))
    except (OSError, KeyError):
        return False


def _parts_digest(stream: CachedStream, parts: Sequence[Index]) -> str:
    current = [[index.name, row] for index, row, _ in _current(stream, parts)]
    return hashlib.sha256(canonical_json([[index.name for index in parts], current])).hexdigest()


def _write_hdf5(stream: CachedStream, parts: Sequence[Index], aside: Path) -> None:
    temporary = aside / HDF5_NAME
    try:
        with create(temporary) as file:
            _fill_hdf5(file, stream, parts)
        sync(temporary)
        temporary.replace(stream.path / HDF5_NAME)
    finally:
        temporary.unlink(missing_ok=True)


def _fill_hdf5(file: h5py.File, stream: CachedStream, parts: Sequence[Index]) -> None:
    with_frames = [index for index in parts if "frames" in index.arrays]
    frames = _offsets([sum(entry.num_frames for entry in index.entries) for index in with_frames])
    starts = {index.name: start for index, start in zip(with_frames, frames, strict=False)}
    rows = dict(zip((index.name for index in parts), _offsets([len(index.entries) for index in parts]), strict=False))
    current = _current(stream, parts)
    columns = {
        "start": [starts[index.name] + entry.start if index.name in starts else -1 for index, _, entry in current],
        "num_frames": [entry.num_frames for _, _, entry in current],
        "row": [rows[index.name] + row for index, row, _ in current],
    }
    file.attrs["stream"] = stream.name
    file.attrs["parts"] = _parts_digest(stream, parts)
    file.create_dataset("ids", data=[entry.id for _, _, entry in current], dtype=h5py.string_dtype())
    for name, values in columns.items():
        file.create_dataset(name, data=np.array(values, np.int64))
    for name in sorted(set().union(*(index.arrays for index in parts)) - {"offsets"}):
        along_frames = name == "frames" or name in stream.spec.frame_arrays
        chosen = with_frames if along_frames else parts
        if all(name in index.arrays for index in chosen):  # int8's scale is not in parts of stats alone
            _virtual(file, name, chosen, axis=1 if name == "frames" else 0)


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

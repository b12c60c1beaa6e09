"""Parts as HDF5 files.

Uncompressed, every array is one contiguous block, so reading a window costs exactly its bytes, and this
project maps the block into memory. The default library version is kept: files written with ``libver="latest"``
do not open again after a kill.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np

from featcache.backend import CHUNK_FRAMES, Backend, PartFile, as_slice, mapped_window
from featcache.hdf5_file import create
from featcache.maps import map_array


class Hdf5Backend(Backend):
    """HDF5 files."""

    suffix: ClassVar[str] = ".h5"

    def write(
        self, path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any], compress: bool
    ) -> None:
        """Write an HDF5 file. Attributes that are lists become datasets, since HDF5 bounds an attribute's size."""
        with create(path) as file:
            for name, value in attributes.items():
                if isinstance(value, list):
                    file.create_dataset(name, data=value, dtype=h5py.string_dtype())
                else:
                    file.attrs[name] = value
            for name, values in arrays.items():
                layout: dict[str, Any] = {}
                if compress and values.size:
                    chunks = (1, min(CHUNK_FRAMES, values.shape[1]), values.shape[2]) if name == "frames" else True
                    layout = {"chunks": chunks, "compression": "gzip", "compression_opts": 4, "shuffle": True}
                file.create_dataset(name, data=values, **layout)
            if "frames" in arrays:
                for axis, label in zip(file["frames"].dims, ("layers", "frames", "dim"), strict=True):
                    axis.label = label

    def open(self, path: Path) -> "Hdf5Part":
        """Open an HDF5 file."""
        return Hdf5Part(path)


class Hdf5Part(PartFile):
    """One HDF5 file; ``frames`` is mapped where it is contiguous, and the file closed again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._frames: np.ndarray | h5py.Dataset | None = None
        self._file: h5py.File | None = None

    def frames(self, start: int, stop: int, layers: Sequence[int] | None = None) -> np.ndarray:
        """Return ``(layers, frames, dim)``: a view where layers are consecutive, unless they are compressed."""
        if self._frames is None:
            self._frames = self._open_frames()
        frames = self._frames
        if not isinstance(frames, h5py.Dataset):
            return mapped_window(frames, start, stop, layers)
        consecutive = as_slice(layers)
        if consecutive is not None:
            return np.asarray(frames[consecutive, start:stop])
        # h5py selects increasing indices only, so other orders are read one layer at a time.
        return np.stack([frames[layer, start:stop] for layer in layers or ()])

    def array(self, name: str) -> np.ndarray:
        """Return an array whole."""
        if self._file is not None:
            return np.asarray(self._file[name][...])
        with h5py.File(self._path, "r") as file:
            return np.asarray(file[name][...])

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return dtype and shape of a dataset."""
        with h5py.File(self._path, "r") as file:
            return str(file[name].dtype), tuple(file[name].shape)

    def ids(self) -> list[str]:
        """Return the dataset of ids."""
        with h5py.File(self._path, "r") as file:
            return list(file["ids"].asstr()[...])

    def metadata_changed(self, attributes: Mapping[str, Any]) -> bool:
        """Compare attributes and lists of names with what was written."""
        with h5py.File(self._path, "r") as file:
            return any(
                list(file[name].asstr()[...]) != value if isinstance(value, list) else file.attrs[name] != value
                for name, value in attributes.items()
            )

    def close(self) -> None:
        """Close the file and drop the map."""
        self._frames = None
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open_frames(self) -> "np.ndarray | h5py.Dataset":
        with self._path.open("rb", buffering=0) as raw:
            _read_nothing_ahead(raw.fileno())  # nor, what Linux would go on with, in the map
            with h5py.File(raw, "r") as file:
                dataset = file["frames"]
                offset, shape, dtype = dataset.id.get_offset(), dataset.shape, dataset.dtype
        if offset is None:
            self._file = h5py.File(self._path, "r")
            _read_nothing_ahead(self._file.id.get_vfd_handle())
            return self._file["frames"]
        return map_array(self._path, dtype, shape, offset)


def _read_nothing_ahead(descriptor: int) -> None:
    """Have the system read from an open file what is asked for and no more: chunks lie apart."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

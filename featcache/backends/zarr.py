"""Parts as Zarr groups (format 3).

``frames`` is sharded: one shard file a layer, inner chunks of 32 frames. Uncompressed, the chunks of a shard
follow each other without gaps, so a layer's file begins with its frames as raw bytes in C order: plain Zarr
reads one chunk at a time, and this project maps the file into memory.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from featcache.backend import CHUNK_FRAMES, Backend, PartFile
from featcache.maps import map_array


class ZarrBackend(Backend):
    """Zarr groups on a file system."""

    suffix: ClassVar[str] = ""

    def write(
        self, path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any], compress: bool
    ) -> None:
        """Write a Zarr group."""
        forms = {name: (values.dtype, values.shape) for name, values in arrays.items()}
        _, made = _create(str(path), attributes, forms, compress)
        for name, values in arrays.items():
            made[name][...] = values

    def open(self, path: Path) -> "ZarrPart":
        """Open a Zarr group."""
        return ZarrPart(path)


def _create(
    store: str | MemoryStore,
    attributes: Mapping[str, Any],
    forms: Mapping[str, tuple[Any, tuple[int, ...]]],
    compress: bool,
) -> tuple[zarr.Group, dict[str, zarr.Array]]:
    """Create a group and its arrays, still empty, from their types and shapes."""
    group = zarr.create_group(store=store, zarr_format=3, attributes=dict(attributes))
    compressors = BloscCodec(cname="zstd", clevel=3, shuffle="shuffle") if compress else None
    arrays = {}
    for name, (dtype, shape) in forms.items():
        if name == "frames":
            _, frames, dim = shape
            chunks: tuple[int, ...] = (1, CHUNK_FRAMES, dim)
            shards: tuple[int, ...] | None = (1, CHUNK_FRAMES * max(1, math.ceil(frames / CHUNK_FRAMES)), dim)
            names: tuple[str, ...] | None = ("layers", "frames", "dim")
        else:
            chunks, shards, names = tuple(max(1, size) for size in shape), None, None
        arrays[name] = group.create_array(
            name,
            shape=shape,
            dtype=dtype,
            chunks=chunks,
            shards=shards,
            compressors=compressors,
            filters=None,
            fill_value=0,
            dimension_names=names,
            # A chunk of zeros that is left out would break the raw layout; an array opened again forgets this.
            config={"write_empty_chunks": True},
        )
    return group, arrays


def _member(group: zarr.Group, name: str) -> zarr.Array:
    member = group[name]
    if not isinstance(member, zarr.Array):
        raise KeyError(name)
    return member


class ZarrPart(PartFile):
    """One Zarr group, mapped where its chunks are raw bytes.

    Zarr's own objects, which take some hundred kilobytes, are not kept once the layout of the frames is known.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._maps: dict[int, np.ndarray] = {}
        self._layout: tuple[Any, tuple[int, ...]] | None = None
        self._compressed: zarr.Array | None = None
        zarr.open_group(str(path), mode="r")  # so that one that cannot be read is known at once

    def frames(self, start: int, stop: int, layers: Sequence[int] | None = None) -> np.ndarray:
        """Return ``(layers, frames, dim)``: a view for one layer, a copy for several."""
        if self._layout is None:
            array = _member(self._group(), "frames")
            self._layout = array.dtype, tuple(array.shape)
            self._compressed = array if array.compressors else None
        dtype, shape = self._layout
        chosen = range(shape[0]) if layers is None else layers
        if self._compressed is not None:
            compressed = self._compressed
            return np.stack([np.asarray(compressed[layer, start:stop]) for layer in chosen])
        if len(chosen) == 1:
            return self._map(chosen[0])[None, start:stop]
        window = np.empty((len(chosen), stop - start, shape[2]), dtype)
        for row, layer in enumerate(chosen):
            window[row] = self._map(layer)[start:stop]
        return window

    def array(self, name: str) -> np.ndarray:
        """Return an array whole."""
        return np.asarray(_member(self._group(), name)[...])

    def describe(self, name: str) -> tuple[str, tuple[int, ...]]:
        """Return dtype and shape from the array's metadata."""
        member = _member(self._group(), name)
        return str(member.dtype), tuple(member.shape)

    def ids(self) -> list[str]:
        """Return the ids among the group's attributes."""
        return list(self._group().attrs["ids"])  # type: ignore[arg-type]

    def metadata_changed(self, attributes: Mapping[str, Any]) -> bool:
        """Compare the group's metadata, and every array's, with those of the same arrays made anew."""
        group = self._group()
        arrays = dict(group.arrays())
        forms = {name: (array.dtype, array.shape) for name, array in arrays.items()}
        compressed = any(array.compressors for array in arrays.values())
        made, expected = _create(MemoryStore(), attributes, forms, compressed)
        return dict(group.attrs) != dict(made.attrs) or any(
            array.metadata != expected[name].metadata for name, array in arrays.items()
        )

    def close(self) -> None:
        """Drop the maps; the operating system unmaps them with their last view."""
        self._maps.clear()

    def _group(self) -> zarr.Group:
        return zarr.open_group(str(self._path), mode="r")

    def _map(self, layer: int) -> np.ndarray:
        if layer not in self._maps and self._layout is not None:
            dtype, (_, frames, dim) = self._layout
            self._maps[layer] = map_array(self._path / "frames" / "c" / str(layer) / "0" / "0", dtype, (frames, dim))
        return self._maps[layer]

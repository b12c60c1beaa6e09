"""Parts as Zarr groups (format 3).

``frames`` is sharded: one shard file a layer, inner chunks of 32 frames. Uncompressed, the chunks of a shard
follow each other without gaps, so a layer's file begins with its frames as raw bytes in C order: plain Zarr
reads one chunk at a time, and this project maps the files into memory, one layer behind the other.

Compressed frames are decoded by the codec pipeline that zarr is configured to use: ``zarrs``, if the user says so
(``ZARR_CODEC_PIPELINE__PATH=zarrs.ZarrsCodecPipeline``), is seven times as fast as zarr's own. Parts are always written
by zarr's own: zarrs leaves chunks of zeros out and lays the others in any order, so its shards could not be mapped.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import BloscCodec
from zarr.storage import MemoryStore

from featcache.backend import CHUNK_FRAMES, Backend, PartFile, as_slice, mapped_window
from featcache.maps import map_stack

_WRITES = "zarr.core.codec_pipeline.BatchedCodecPipeline"


class ZarrBackend(Backend):
    """Zarr groups on a file system."""

    suffix: ClassVar[str] = ""

    def write(
        self, path: Path, arrays: Mapping[str, np.ndarray], attributes: Mapping[str, Any], compress: bool
    ) -> None:
        """Write a Zarr group."""
        forms = {name: (values.dtype, values.shape) for name, values in arrays.items()}
        with zarr.config.set({"codec_pipeline.path": _WRITES}):  # an array keeps the one that it was made with
            _, made = _create(str(path), attributes, forms, compress)
        for name, values in arrays.items():
            if name == "frames" and not compress:
                _write_shards(path / name, values)
            else:
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


def _write_shards(path: Path, frames: np.ndarray) -> None:
    """Write the shards of uncompressed frames, byte for byte as zarr would, at the speed of the disk.

    A shard is its chunks, the last one filled up with zeros; then for each its offset and size, as little-endian 64-bit
    integers; then the CRC-32C of those. See "sharding-indexed" in the Zarr specification, version 3.
    """
    layers, num_frames, dim = frames.shape
    num_chunks = math.ceil(num_frames / CHUNK_FRAMES)
    chunk_bytes = CHUNK_FRAMES * dim * frames.itemsize
    index = np.array([(chunk * chunk_bytes, chunk_bytes) for chunk in range(num_chunks)], "<u8").tobytes()
    filling = bytes(num_chunks * chunk_bytes - num_frames * dim * frames.itemsize)
    end = filling + index + google_crc32c.value(index).to_bytes(4, "little")
    for layer in range(layers if num_frames else 0):
        shard = path / "c" / str(layer) / "0" / "0"
        shard.parent.mkdir(parents=True)
        with shard.open("wb") as file:
            file.write(np.ascontiguousarray(frames[layer]).data)
            file.write(end)


def _member(group: zarr.Group, name: str) -> zarr.Array:
    member = group[name]
    if not isinstance(member, zarr.Array):
        raise KeyError(name)
    return member


class ZarrPart(PartFile):
    """One Zarr group, mapped where its chunks are raw bytes.

    Zarr's own objects, which take some hundred kilobytes, are then not kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._frames: np.ndarray | zarr.Array | None = None
        zarr.open_group(str(path), mode="r")  # so that one that cannot be read is known at once

    def frames(self, start: int, stop: int, layers: Sequence[int] | None = None) -> np.ndarray:
        """Return ``(layers, frames, dim)``: a view where layers are consecutive, unless they are compressed."""
        if self._frames is None:
            self._frames = self._open_frames()
        frames = self._frames
        if isinstance(frames, np.ndarray):
            return mapped_window(frames, start, stop, layers)
        consecutive = as_slice(layers)
        if consecutive is not None:
            return np.asarray(frames[consecutive, start:stop])
        return np.stack([np.asarray(frames[layer, start:stop]) for layer in layers or ()])

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
        self._frames = None

    def _group(self) -> zarr.Group:
        return zarr.open_group(str(self._path), mode="r")

    def _open_frames(self) -> "np.ndarray | zarr.Array":
        array = _member(self._group(), "frames")
        if array.compressors:
            return array
        paths = [self._path / "frames" / "c" / str(layer) / "0" / "0" for layer in range(array.shape[0])]
        return map_stack(paths, array.dtype, array.shape[1:])

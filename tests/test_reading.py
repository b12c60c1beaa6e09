"""The fast ways of reading give what the slow one gives, whatever is asked, and read no more than that."""

import gc
import mmap
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from faults import tree
from test_cache import BACKENDS

import featcache
from featcache.backend import load_backend
from featcache.backends.zarr import _create
from featcache.cache import CachedStream
from featcache.commit import StreamWriter, store
from featcache.maps import _libc
from featcache.stream import Features, StreamSpec
from featcache.view import Buffer, Place, View

PARTS, EACH = 3, 4
ZARRS = "zarrs.ZarrsCodecPipeline"


def write(
    cache: Path, backend: str, dtype: str = "float16", compress: bool = False, layers: int = 4, dim: int = 40,
    frames: tuple[int, int] = (1, 90),
) -> CachedStream:  # fmt: skip
    """Write a stream of random numbers, utterances `u00` and so on in a few parts."""
    generator = np.random.default_rng(0)
    spec = StreamSpec("noise", 1, "audio", {}, tuple(f"layer_{n}" for n in range(layers)), dim, dtype=dtype)
    with StreamWriter(cache, spec, backend, "frames", compress) as writer:
        for part in range(PARTS):
            names = [f"u{EACH * part + number:02d}" for number in range(EACH)]
            found = [
                Features(generator.standard_normal((layers, int(generator.integers(*frames)), dim), np.float32))
                for _ in names
            ]
            pairs = zip(names, found, strict=True)
            writer.commit([store(name, "0", 0, one, spec, "frames") for name, one in pairs], {})
    return featcache.open(cache)["noise"]


def plain(view: View, indices: torch.Tensor, starts: torch.Tensor, length: int) -> torch.Tensor:
    """Return windows one value type at a time: read, convert, put in place."""
    batch = np.zeros((len(indices), len(view.layers), length, view.stream.spec.dim), np.float32)
    for row, (index, start) in enumerate(zip(indices.tolist(), starts.tolist(), strict=True)):
        frames = view.stream[view.ids[index]].astype(np.float32)[view.layers, start : start + length]
        batch[row, :, : frames.shape[1]] = frames
    return torch.from_numpy(batch)


@pytest.mark.parametrize("compress", [False, True], ids=["mapped", "compressed"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layers", [None, [2], [1, 2], [3, 0, 0], []], ids=["all", "one", "run", "any", "none"])
def test_every_way_of_reading_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, dtype: str, compress: bool, layers: list[int] | None
) -> None:
    stream = write(tmp_path, backend, dtype, compress)
    generator = np.random.default_rng(1)
    ids = generator.permutation(stream.ids).tolist()
    ways: list[tuple[Place, int]] = [("disk", 0), ("memory", 0), ("memory", 2**30)]  # by rows, and by one indexing
    for place, small in ways:
        monkeypatch.setattr("featcache.view._SMALL_WINDOW", small)
        view, buffer = View(stream, ids, layers, place=place), Buffer()
        for _ in range(4):
            size = int(generator.integers(0, 20))
            indices = torch.from_numpy(generator.integers(len(ids), size=size))
            starts = (torch.rand(size) * view.lengths[indices]).long()
            length = int(generator.integers(1, 100))
            wanted = plain(view, indices, starts, length)
            given, counts = view.windows(indices, starts, length)
            again, _ = view.windows(indices, starts, length, buffer)
            assert given.dtype == torch.float32
            assert torch.equal(given, wanted)
            assert torch.equal(again, wanted)
            assert torch.equal(counts, (view.lengths[indices] - starts).clamp(max=length))


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_batch_in_a_buffer_is_overwritten_by_the_next_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    monkeypatch.setattr("featcache.view._SMALL_WINDOW", 0)
    view, buffer = View(write(tmp_path, "zarr"), ["u00", "u01"], place=place), Buffer()
    first, _ = view.padded(torch.tensor([0]), buffer)
    kept, apart = first.clone(), view.padded(torch.tensor([0]))[0]
    second, _ = view.padded(torch.tensor([1]), Buffer())
    assert torch.equal(first, kept)
    at = first.data_ptr()
    third, _ = view.windows(torch.tensor([1]), torch.tensor([0]), 1, buffer)
    assert third.data_ptr() == at
    assert torch.equal(third, second[:, :, :1])
    assert not torch.equal(first, kept)
    assert torch.equal(apart, kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_consecutive_layers_are_not_copied(tmp_path: Path, backend: str) -> None:
    stream = write(tmp_path, backend)
    whole = stream["u05"]
    assert not whole.flags.writeable
    for layers in (None, [1], [1, 2, 3]):
        assert np.shares_memory(stream.window("u05", 0, 1, layers), whole)


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_a_view_reads_parts_that_were_closed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Place
) -> None:
    monkeypatch.setattr("featcache.cache._MOST_OPEN_PARTS", 1)
    view = View(stream := write(tmp_path, "zarr"), stream.ids, place=place)
    everything = torch.arange(len(stream.ids)).flip(0)
    frames, _ = view.padded(everything)
    assert torch.equal(frames, plain(view, everything, torch.zeros_like(everything), frames.shape[2]))


@pytest.mark.parametrize(("free", "place"), [(2.4, "disk"), (2.6, "memory")])
def test_frames_are_held_where_they_take_at_most_two_fifths_of_what_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, place: str
) -> None:
    stream = write(tmp_path, "hdf5")
    num_bytes = 2 * len(stream.spec.layers) * stream.spec.dim * (1 + sum(map(stream.num_frames, stream.ids)))
    monkeypatch.setattr("featcache.view.available_bytes", lambda: free * num_bytes)
    view = View(stream, stream.ids)
    view.padded(torch.tensor([0]))
    assert (view._held() is None) == (place == "disk")


def resident(paths: list[Path]) -> int:
    """Return how many bytes of files lie in memory."""
    total = 0
    for path in paths:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE) as mapped:
            pages = bytearray(-(-len(mapped) // mmap.PAGESIZE))
            at = np.frombuffer(mapped, np.uint8)
            result = np.frombuffer(pages, np.uint8)
            assert _libc.mincore(at.ctypes.data, len(mapped), result.ctypes.data) == 0
            total += mmap.PAGESIZE * sum(page & 1 for page in pages)
            del at
    return total


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "what", ["whole utterances", "one layer", "one layer in a view", "windows", "windows, one layer read"]
)
def test_what_is_read_from_the_disk_is_what_was_asked_for(tmp_path: Path, backend: str, what: str) -> None:
    """At most 1.1 times, with nothing in memory before; a third of the utterances, but all of them of one layer."""
    stream = write(tmp_path, backend, dim=1024, frames=(100, 200))
    files = [path for path in stream.path.rglob("*") if path.is_file() and (path.suffix == ".h5" or "c" in path.parts)]
    frames = [path for path in files if path.stat().st_size > 2**18 and path.name != "all.h5"]
    gc.collect()
    for path in frames:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(frames):
        pytest.skip("this file system keeps its pages in memory")
    some = stream.ids[::3]
    if what == "whole utterances":
        asked = sum(stream[name].copy().nbytes for name in some)
    elif what == "one layer":
        asked = sum(stream.window(name, 0, stream.num_frames(name), [2]).copy().nbytes for name in stream.ids)
    elif what == "one layer in a view":
        view = View(stream, stream.ids, [2], place="disk")
        view.padded(torch.arange(len(stream.ids)))
        asked = int(view.lengths.sum()) * 2 * 1024
    else:
        already = [0] if "one" in what else []
        asked = sum(stream.window(name, 0, stream.num_frames(name), already).copy().nbytes for name in some)
        view = View(stream, some, place="disk")
        view.windows(torch.arange(len(some)), torch.full((len(some),), 2), 96)
        asked += len(some) * (4 - len(already)) * 96 * 2 * 1024
    assert asked <= resident(frames) <= 1.1 * asked


def test_parts_are_written_the_same_whatever_pipeline_zarr_is_told_to_use(tmp_path: Path) -> None:
    frames = np.zeros((2, 51, 1), np.int16)
    frames[:, :32] = np.arange(1, 33)[:, None]  # a chunk of zeros behind it, which zarrs would leave out
    for name, pipeline in (("own", "zarr.core.codec_pipeline.BatchedCodecPipeline"), ("zarrs", ZARRS)):
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            load_backend("zarr").write(tmp_path / name, {"frames": frames}, {}, False)
            part = load_backend("zarr").open(tmp_path / name)
            assert np.array_equal(part.frames(0, 51), frames)
    assert tree(tmp_path / "own") == tree(tmp_path / "zarrs")


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8", "int16"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 31, 5), (2, 32, 1), (2, 33, 7), (4, 100, 2), (2, 0, 3)])
def test_shards_are_byte_for_byte_what_zarr_writes(tmp_path: Path, dtype: str, shape: tuple[int, int, int]) -> None:
    frames = (100 * np.random.default_rng(0).standard_normal((shape[1], *shape[::2]))).astype(dtype).swapaxes(0, 1)
    frames[0] = 0  # chunks of zeros, which zarr may leave out
    load_backend("zarr").write(tmp_path / "ours", {"frames": frames}, {"ids": ["a"]}, False)
    _, arrays = _create(str(tmp_path / "zarr"), {"ids": ["a"]}, {"frames": (frames.dtype, shape)}, False)
    arrays["frames"][...] = frames
    assert tree(tmp_path / "ours") == tree(tmp_path / "zarr")
    assert np.array_equal(zarr.open_array(tmp_path / "ours" / "frames"), frames)


def test_compressed_parts_are_read_through_zarrs_where_the_user_asks_for_it(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).standard_normal((3, 70, 4)).astype(np.float16)
    load_backend("zarr").write(tmp_path / "part", {"frames": frames}, {}, True)
    with zarr.config.set({"codec_pipeline.path": ZARRS}):
        part = load_backend("zarr").open(tmp_path / "part")
        assert np.array_equal(part.frames(5, 66, [2, 0]), frames[[2, 0], 5:66])
        assert np.array_equal(part.frames(0, 70), frames)

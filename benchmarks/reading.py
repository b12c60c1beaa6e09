"""Random windows of 25 x 96 x 1024 float16 from a cache, beside plain readers of the same bytes.

One corpus of random numbers in the shape of wav2vec2-large, 1024 utterances of 30 to 250 frames, in both backends.
The reference is a copy from one NumPy memory map of the same shape. Files are in the page cache.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
import zarr

import featcache
from benchmarks.timing import compare
from featcache.cache import CachedStream
from featcache.commit import Stored, StreamWriter
from featcache.stream import StreamSpec
from featcache.view import View

LAYERS, DIM, FRAMES, WINDOWS, UTTERANCES = 25, 1024, 96, 64, 160


def run(quick: bool = False) -> list[dict[str, object]]:
    folder = Path(tempfile.mkdtemp())
    try:
        streams = {name: _write(folder / name, name) for name in ("zarr", "hdf5")}
        return _measure(folder, streams)
    finally:
        shutil.rmtree(folder)


def _write(cache: Path, backend: str) -> CachedStream:
    generator = np.random.default_rng(0)
    spec = StreamSpec("bench", 1, "audio", {}, tuple(f"layer_{n}" for n in range(LAYERS)), DIM)
    with StreamWriter(cache, spec, backend, "frames") as writer:
        for start in range(0, UTTERANCES, 20):
            stored = []
            for number in range(start, start + 20):
                count = int(generator.integers(FRAMES, 250))
                frames = generator.standard_normal((LAYERS, count, DIM), np.float32).astype(np.float16)
                stats = np.zeros((LAYERS, DIM), np.float32)
                stored.append(Stored(f"u{number}", "0", 0, count, frames, {}, {"mean": stats, "std": stats}))
            writer.commit(stored, {})
    return featcache.open(cache)["bench"]


def _measure(folder: Path, streams: dict[str, CachedStream]) -> list[dict[str, object]]:
    generator = np.random.default_rng(1)
    stream = streams["zarr"]
    ids = stream.ids
    chosen = generator.integers(len(ids), size=WINDOWS)
    starts = np.array([generator.integers(stream.num_frames(ids[index]) - FRAMES + 1) for index in chosen])
    total = sum(stream.num_frames(name) for name in ids)
    reference = np.lib.format.open_memmap(folder / "plain.npy", "w+", np.float16, (LAYERS, total, DIM))
    reference[:] = 1
    places = generator.integers(total - FRAMES, size=WINDOWS)
    buffer = np.empty((WINDOWS, LAYERS, FRAMES, DIM), np.float16)

    def memmap() -> None:
        for row, place in enumerate(places):
            buffer[row] = reference[:, place : place + FRAMES]

    def windows(one: CachedStream) -> Callable[[], None]:
        def read() -> None:
            for row, (index, start) in enumerate(zip(chosen, starts, strict=True)):
                buffer[row] = one.window(ids[index], int(start), FRAMES)

        return read

    def plain(one: CachedStream, frames: Callable[[str], object]) -> Callable[[], None]:
        arrays = {name: frames(name) for name in one.indices}

        def read() -> None:
            for row, (index, start) in enumerate(zip(chosen, starts, strict=True)):
                at = one.locate(ids[index])
                first = at.entry.start + int(start)
                buffer[row] = arrays[at.index.name][:, first : first + FRAMES]  # type: ignore[index]

        return read

    view = View(streams["hdf5"], ids, place="memory")
    indices, first = torch.from_numpy(chosen), torch.from_numpy(starts)
    contestants = {
        "NumPy memory map (reference)": memmap,
        "featcache, zarr": windows(streams["zarr"]),
        "featcache, hdf5": windows(streams["hdf5"]),
        "View in memory, as float32": lambda: view.windows(indices, first, FRAMES),
        "plain zarr": plain(streams["zarr"], lambda name: zarr.open_array(str(streams["zarr"].path / name / "frames"))),
        "plain h5py": plain(streams["hdf5"], lambda name: h5py.File(streams["hdf5"].path / f"{name}.h5")["frames"]),
    }
    times = compare(contestants, rounds=5)
    base = times["NumPy memory map (reference)"][0]
    return [
        {
            "reader": name,
            "windows per second": round(WINDOWS / seconds, 1),
            "spread": f"± {100 * spread / seconds / 2:.0f} %",
            "of the reference": round(base / seconds, 2),
        }
        for name, (seconds, spread) in times.items()
    ]

"""Frames read from a cache, beside NumPy's memory map, zarr-python and h5py copying the same bytes to the same place.

One corpus of random numbers in the shape of wav2vec2-large, 25 x 1024 float16, utterances of 96 to 250 frames, is
written plainly and compressed, in both backends, and as one ``.npy``. What is asked of each reader:

- windows: 96 frames of all layers, at a random place of utterances in random order, copied as stored;
- batch: the same windows as one float32 batch, which is what a head is given;
- utterances: some whole ones, in random order;
- one layer: that of every utterance.

``MB/s`` is of bytes as stored, from the page cache, a median; ``of the reference`` compares with the memory map of the
same pattern. ``cold MB/s`` and ``amplification`` (bytes from the disk over bytes asked for) are of files that were
dropped from the page cache, opening included; they are empty where the file system keeps them there. The view that
holds all frames in memory has to read all of them then. torch copies on one thread, as NumPy and h5py do; zarr-python
and zarrs use all cores. One layer of gzip is read again from h5py's own cache of chunks.
"""

import gc
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
import zarr

import featcache
from benchmarks.timing import compare
from featcache.cache import CachedStream
from featcache.commit import Stored, StreamWriter
from featcache.stream import StreamSpec
from featcache.view import Buffer, Place, View

LAYERS, DIM, FRAMES, ONE_LAYER = 25, 1024, 96, 12
FORMS = {"zarr": ("zarr", False), "zarr zstd": ("zarr", True), "hdf5": ("hdf5", False), "hdf5 gzip": ("hdf5", True)}
OWN, ZARRS = "zarr.core.codec_pipeline.BatchedCodecPipeline", "zarrs.ZarrsCodecPipeline"
MEMORY_MAP = "NumPy memory map (reference)"


class Ask(NamedTuple):
    """Frames `start` to `start + count` of utterance `number`, of the layers from the first to before the second."""

    number: int
    start: int
    count: int
    layers: tuple[int, int] = (0, LAYERS)


Read = Callable[[Ask], Any]
Job = Callable[[], object]


@dataclass(frozen=True)
class Corpus:
    """Where the files are, and how many frames each utterance has."""

    folder: Path
    lengths: list[int]

    def stream(self, form: str, pipeline: str = OWN) -> CachedStream:
        """Open one of the caches and its parts: these keep the pipeline of codecs that they were opened with."""
        stream = featcache.open(self.folder / form)["bench"]
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            for index in stream.indices.values():
                stream.window(index.entries[0].id, 0, 1, [0])
        return stream


def run(quick: bool = False) -> list[dict[str, object]]:
    """Measure every reader on every pattern."""
    folder = Path(tempfile.mkdtemp(prefix="featcache-reading-"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        corpus = _write(folder, num_utterances=8 if quick else 100)
        asked = _asked(corpus.lengths, num_windows=3 if quick else 32)
        rows = []
        for pattern, asks in asked.items():
            num_bytes = sum(_size(ask) for ask in asks)
            if pattern == "batch":
                contestants = _batches(corpus, asks)
            else:
                # Written once: a fresh page costs more than what is copied to it.
                to = np.ones(num_bytes // 2, np.float16)
                contestants = {name: partial(_copy, read, asks, to) for name, read in _readers(corpus).items()}
            rows += _rows(pattern, contestants, num_bytes, folder, rounds=2 if quick else 7)
        return rows
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(folder)


def _asked(lengths: list[int], num_windows: int) -> dict[str, list[Ask]]:
    generator = np.random.default_rng(1)
    order = generator.permutation(len(lengths)).tolist()
    windows = [Ask(one, int(generator.integers(lengths[one] - FRAMES + 1)), FRAMES) for one in order[:num_windows]]
    return {
        "windows": windows,
        "batch": windows,
        "utterances": [Ask(one, 0, lengths[one]) for one in order[-(num_windows // 2 + 1) :]],
        "one layer": [Ask(one, 0, count, (ONE_LAYER, ONE_LAYER + 1)) for one, count in enumerate(lengths)],
    }


def _size(ask: Ask) -> int:
    """Return how many bytes are asked for, as stored."""
    return 2 * DIM * ask.count * (ask.layers[1] - ask.layers[0])


def _write(folder: Path, num_utterances: int) -> Corpus:
    generator = np.random.default_rng(0)
    lengths = generator.integers(FRAMES, 250, size=num_utterances).tolist()
    plain = np.lib.format.open_memmap(folder / "plain.npy", "w+", np.float16, (LAYERS, sum(lengths), DIM))
    for layer in plain:
        layer[:] = generator.standard_normal(layer.shape, np.float32)
    spec = StreamSpec("bench", 1, "audio", {}, tuple(f"layer_{n}" for n in range(LAYERS)), DIM)
    stats = np.zeros((LAYERS, DIM), np.float32)
    starts = np.cumsum([0, *lengths])
    for form, (backend, compress) in FORMS.items():
        with StreamWriter(folder / form, spec, backend, "frames", compress) as writer:
            for first in range(0, num_utterances, 20):
                stored = [
                    Stored(
                        f"u{number:03d}", "0", 0, lengths[number],
                        plain[:, starts[number] : starts[number + 1]], {}, {"mean": stats, "std": stats},
                    )
                    for number in range(first, min(first + 20, num_utterances))
                ]  # fmt: skip
                writer.commit(stored, {})
    plain.flush()
    return Corpus(folder, lengths)


def _readers(corpus: Corpus) -> dict[str, Callable[[], Read]]:
    """Return what opens each reader of single asks; opened anew for each measurement from the disk."""
    readers: dict[str, Callable[[], Read]] = {MEMORY_MAP: partial(_memory_map, corpus)}
    for form, (backend, compress) in FORMS.items():
        readers[f"featcache, {form}"] = partial(_featcache, corpus, form)
        if backend == "hdf5":
            readers[f"h5py, {form}"] = partial(_plain, corpus, form, _h5py)
            continue
        readers[f"zarr-python, {form}"] = partial(_plain, corpus, form, _zarr)
        if _zarrs_is_there() and compress:
            readers[f"featcache with zarrs, {form}"] = partial(_featcache, corpus, form, ZARRS)
        if _zarrs_is_there():
            readers[f"zarr-python with zarrs, {form}"] = partial(_plain, corpus, form, partial(_zarr, pipeline=ZARRS))
    return readers


def _zarrs_is_there() -> bool:
    return importlib.util.find_spec("zarrs") is not None


def _memory_map(corpus: Corpus) -> Read:
    # Writable without reaching the file: torch warns of what is not.
    frames = np.load(corpus.folder / "plain.npy", mmap_mode="c")
    starts = np.cumsum([0, *corpus.lengths]).tolist()

    def read(ask: Ask) -> np.ndarray:
        first = starts[ask.number] + ask.start
        return np.asarray(frames[slice(*ask.layers), first : first + ask.count])

    return read


def _featcache(corpus: Corpus, form: str, pipeline: str = OWN) -> Read:
    stream = corpus.stream(form, pipeline)
    return lambda ask: stream.window(f"u{ask.number:03d}", ask.start, ask.count, range(*ask.layers))


def _plain(corpus: Corpus, form: str, open_part: Callable[[Path], Any]) -> Read:
    """Return what reads the arrays of parts with another program's objects, opened once."""
    stream = corpus.stream(form)
    parts = {name: open_part(stream.path / name) for name in stream.indices}

    def read(ask: Ask) -> Any:
        at = stream.locate(f"u{ask.number:03d}")
        first = at.entry.start + ask.start
        return parts[at.index.name][slice(*ask.layers), first : first + ask.count]

    return read


def _zarr(path: Path, pipeline: str = OWN) -> Any:
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        return zarr.open_array(str(path / "frames"), mode="r")


def _h5py(path: Path) -> Any:
    return h5py.File(f"{path}.h5", "r")["frames"]


def _copy(open_reader: Callable[[], Read], asks: Sequence[Ask], to: np.ndarray) -> Job:
    """Open a reader, and return what copies all that is asked, one after the other."""
    read = open_reader()

    def job() -> None:
        end = 0
        for ask in asks:
            begin, end = end, end + _size(ask) // 2
            to[begin:end].reshape(-1, ask.count, DIM)[:] = read(ask)

    return job


def _batches(corpus: Corpus, windows: Sequence[Ask]) -> dict[str, Callable[[], Job]]:
    """Return what opens each reader of whole float32 batches."""
    to = np.ones((len(windows), LAYERS, FRAMES, DIM), np.float32)
    indices = torch.tensor([ask.number for ask in windows])
    starts = torch.tensor([ask.start for ask in windows])

    def by_numpy() -> Job:
        read = _memory_map(corpus)

        def job() -> None:
            for row, ask in zip(to, windows, strict=True):
                row[:] = read(ask)

        return job

    def by_torch() -> Job:
        read = _memory_map(corpus)

        def job() -> None:
            for row, ask in zip(torch.from_numpy(to), windows, strict=True):
                row.copy_(torch.from_numpy(read(ask)))

        return job

    def by_view(form: str, place: Place, buffer: Buffer | None, pipeline: str = OWN) -> Job:
        view = View(
            corpus.stream(form, pipeline), [f"u{number:03d}" for number in range(len(corpus.lengths))], place=place
        )
        return lambda: view.windows(indices, starts, FRAMES, buffer)

    zarrs = {"View with zarrs, zarr zstd": partial(by_view, "zarr zstd", "disk", Buffer(), ZARRS)}
    return {
        MEMORY_MAP: by_numpy,
        "NumPy memory map, converted by torch": by_torch,
        **{f"View, {form}": partial(by_view, form, "disk", Buffer()) for form in FORMS},
        **(zarrs if _zarrs_is_there() else {}),
        "View, zarr, a fresh batch each time": partial(by_view, "zarr", "disk", None),
        "View, held in memory": partial(by_view, "zarr", "memory", Buffer()),
    }


def _rows(
    pattern: str, contestants: dict[str, Callable[[], Job]], num_bytes: int, folder: Path, rounds: int
) -> list[dict[str, object]]:
    # From the disk first: what another one has mapped cannot be dropped.
    cold = {name: _from_disk(start, num_bytes, folder) for name, start in contestants.items()}
    times = compare({name: start() for name, start in contestants.items()}, rounds)
    reference = times[MEMORY_MAP][0]
    return [
        {
            "pattern": pattern,
            "reader": name,
            "MB/s": round(num_bytes / seconds / 1e6),
            "spread": f"± {100 * spread / seconds / 2:.0f} %",
            "of the reference": float(f"{reference / seconds:.3g}"),
            "cold MB/s": cold[name][0],
            "amplification": cold[name][1],
        }
        for name, (seconds, spread) in times.items()
    ]


def _from_disk(start: Callable[[], Job], num_bytes: int, folder: Path) -> tuple[int | None, float | None]:
    """Return MB/s and amplification with nothing in the page cache, opening included; None where that is not known."""
    speeds, amplifications = [], []
    for _ in range(3):
        _drop(folder)
        before, begin = _bytes_read(), time.perf_counter()
        start()()
        speeds.append(num_bytes / (time.perf_counter() - begin) / 1e6)
        amplifications.append((_bytes_read() - before) / num_bytes)
    if not any(amplifications):
        return None, None
    return round(median(speeds)), round(median(amplifications), 2)


def _drop(folder: Path) -> None:
    gc.collect()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bytes_read() -> int:
    """Return how many bytes this process has had read from disks; 0 where the system does not tell."""
    path = Path("/proc/self/io")
    lines = path.read_text().splitlines() if path.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))

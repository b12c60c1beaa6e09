"""Cost of one unit of work as the corpus grows 1, 10 and 100 times: flat is linear, rising is worse.

Three corpora, all synthetic: recordings of 3 s, run through `log_mel`; frames of 25 x 64 float16, 2 s on average, read
and trained on; and caches of 60 utterances a part with next to nothing in them, opened. Training takes a fixed number
of steps (1000; mean_pool 100) and scores eight utterances; its cost a step includes that what is held in memory is
loaded. Files are in the page cache.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import soundfile
import torch

from benchmarks.caches import SPEC, UTTERANCES, many_parts
from benchmarks.timing import compare
from featcache import Manifest, Utterance
from featcache.cache import CachedStream
from featcache.cache import open as open_cache
from featcache.catalogue import renew_catalogue
from featcache.claims import workplace
from featcache.commit import StreamWriter, store
from featcache.extract import Options, extract
from featcache.stream import Features, StreamSpec
from featcache.streams.log_mel import LogMel
from featcache.verify import verify
from featcache.view import View
from heads.fit_settings import FitSettings
from heads.folds import Fold
from heads.head import Head
from heads.models.layer_mix import LayerMix
from heads.models.linear_probe import LinearProbe
from heads.models.mean_pool import MeanPool
from heads.task import Task
from pipelines.show import info

FACTORS = (1, 10, 100)
RECORDINGS, FRAMED, PARTS = 20, 20, 10
"""Of the smallest corpus: recordings of 3 s, utterances of frames, and parts of the caches that are opened."""

LAYERS, DIM, WINDOWS, FRAMES = 25, 64, 64, 96

Work = tuple[str, str, int, Callable[[], object]]
"""What is measured, its unit, how many units, and the work."""


def run(quick: bool = False) -> list[dict[str, object]]:
    factors = (1, 2) if quick else FACTORS
    rows: list[dict[str, object]] = []
    for part, works in (("extracting", _extracting), ("reading", _reading), ("opening", _opening)):
        with tempfile.TemporaryDirectory() as folder:
            sizes = {factor: list(works(Path(folder) / str(factor), factor)) for factor in factors}
            for same in zip(*sizes.values(), strict=True):
                times = compare(
                    {str(size): work[3] for size, work in zip(factors, same, strict=True)}, 2 if quick else 3
                )
                for size, (what, unit, units, _) in zip(factors, same, strict=True):
                    seconds, spread = times[str(size)]
                    rows.append(
                        {
                            "part": part,
                            "what": what,
                            "corpus": f"{size}x",
                            "units": units,
                            "unit": unit,
                            "seconds": round(seconds, 4),
                            "spread s": round(spread, 4),
                            "ms a unit": float(f"{1000 * seconds / units:.3g}"),
                        }
                    )
    return rows


def _extracting(folder: Path, factor: int) -> Iterator[Work]:
    number = RECORDINGS * factor
    manifest = _recordings(folder / "audio", number)
    fresh = (folder / f"cache-{n}" for n in count())

    def extracted() -> Path:
        cache = next(fresh)
        extract(manifest, cache, LogMel(), Options(device="cpu"))
        return cache

    kept = extracted()
    yield "log_mel", "utterance", number, lambda: shutil.rmtree(extracted())
    again = partial(extract, manifest, kept, LogMel(), Options(device="cpu"))
    yield "again: nothing to do", "utterance", number, again
    yield "verify", "utterance", number, partial(verify, kept)


def _recordings(folder: Path, number: int) -> Manifest:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    utterances = []
    for name in (f"u{n:05d}" for n in range(number)):
        samples = generator.integers(-3000, 3000, 48000).astype(np.int16)
        soundfile.write(folder / f"{name}.wav", samples, 16000, subtype="PCM_16")
        utterances.append(Utterance(name, f"{name}.wav"))
    return Manifest(utterances, folder=folder)


def _reading(folder: Path, factor: int) -> Iterator[Work]:
    stream = _frames(folder, FRAMED * factor)
    ids, number = stream.ids, len(stream)
    generator = torch.Generator().manual_seed(0)
    view = View(stream, ids, place="disk")
    indices = torch.randint(0, number, (WINDOWS,), generator=generator)
    starts = (torch.rand(WINDOWS, generator=generator) * (view.lengths[indices] - FRAMES + 1)).to(torch.int64)
    buffer = np.empty((1, int(view.lengths.max()), DIM), np.float16)

    def scan() -> None:
        for name, length in zip(ids, view.lengths.tolist(), strict=True):
            buffer[:, :length] = stream.window(name, 0, length, [12])

    yield "a random window", "window", WINDOWS, lambda: view.windows(indices, starts, FRAMES)
    yield "one layer of an utterance", "utterance", number, scan
    yield "stats of an utterance", "utterance", number, stream.stats
    for head, steps in ((LinearProbe(), 1000), (LayerMix(), 1000), (MeanPool(), 100)):
        settings = FitSettings(steps=steps, eval_every=steps)
        yield f"a step of {head.kind()}, with loading", "step", steps, partial(_train, head, stream, settings)


def _frames(cache: Path, number: int) -> CachedStream:
    """Write utterances of the same twenty arrays, 100 in a part."""
    generator = np.random.default_rng(0)
    spec = StreamSpec("framed", 1, "audio", {}, tuple(f"layer_{n}" for n in range(LAYERS)), DIM, frame_shift_s=0.02)
    lengths = np.linspace(FRAMES, 104, FRAMED).astype(int)
    drawn = [
        store("", "0", 0, Features(generator.standard_normal((LAYERS, length, DIM), np.float32)), spec, "frames")
        for length in lengths
    ]
    with StreamWriter(cache, spec, "zarr", "frames") as writer:
        for start in range(0, number, 100):
            chosen = range(start, min(start + 100, number))
            writer.commit([replace(drawn[n % FRAMED], id=f"u{n:05d}") for n in chosen], {})
    return open_cache(cache)["framed"]


def _train(head: Head, stream: CachedStream, settings: FitSettings) -> None:
    ids = stream.ids
    parts: Mapping[str, tuple[str, ...]] = {
        "train": tuple(ids[:-8]),
        "validation": tuple(ids[-8:-4]),
        "test": tuple(ids[-4:]),
    }
    task = Task({"framed": stream}, ids, np.arange(len(ids)) % 4, tuple("abcd"), (Fold("one", **parts),))
    head.train(task, settings, lambda *_: None)


def _opening(folder: Path, factor: int) -> Iterator[Work]:
    parts = PARTS * factor
    number = parts * UTTERANCES
    many_parts(folder, "zarr", parts)
    renew = partial(renew_catalogue, folder, SPEC.name, partial(workplace, folder))
    renew()

    def first_window() -> None:
        stream = open_cache(folder)[SPEC.name]
        stream.window(stream.ids[-1], 0, FRAMES)

    yield "open, first window", "utterance", number, first_window
    yield "info", "utterance", number, partial(info, folder)
    yield "zarr.json: nothing to do", "utterance", number, renew

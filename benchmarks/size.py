"""Bytes an hour of audio, by stored type and compression, and what they do to scores; beside float32 .npy files.

Real states of Resemblyzer's encoder (3 x 256 at 100 frames/s) of EMO-DB where it lies beside the checkout, of the demo
corpus elsewhere; each head leaves one speaker out, and its class probabilities on test are compared with those from
float32. `layer_mix` and `svm` read stats, which are taken before frames are rounded. `mean_pool` reads the frames; what
another seed does to it is the yardstick. Compression loses nothing, which is checked bit by bit.

Then the full shape, 25 x 1024 at 50 frames/s in utterances of 4.5 s (IEMOCAP's mean): what the arrays take by
arithmetic, and one part of 12 utterances on disk, with random numbers, which do not compress as features do.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.alignment import DATA
from featcache import Manifest, audio
from featcache.cache import CachedStream
from featcache.cache import open as open_cache
from featcache.commit import StreamWriter, store
from featcache.corpora.demo import Demo
from featcache.corpora.emodb import EmoDb
from featcache.dtypes import SCALE
from featcache.extract import Options, extract
from featcache.sizes import stream_bytes
from featcache.stream import Features, StreamSpec
from featcache.streams.ge2e_states import Ge2eStates
from heads.fit_settings import FitSettings
from heads.folds import make_folds
from heads.head import Head
from heads.metrics import ua
from heads.models.layer_mix import LayerMix
from heads.models.mean_pool import MeanPool
from heads.models.svm import Svm
from heads.task import Outcome
from pipelines.train_heads import make_task

LAYERS, DIM, RATE_HZ, DURATION_S = 25, 1024, 50, 4.5
HEADS: Mapping[str, Head] = {
    "layer_mix": LayerMix(standardise=True),
    "svm": Svm(),
    "mean_pool": MeanPool(projector_dim=64),
}
_DTYPES = ("float32", "float16", "int8")

Row = dict[str, object]
Scores = list[tuple[np.ndarray, np.ndarray]]
"""Labels and class probabilities of each fold's test part."""


def run(quick: bool = False) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        return [*_real(Path(folder), quick), *_full_shape(Path(folder), 1 if quick else 12)]


def _real(folder: Path, quick: bool) -> Iterator[Row]:
    real = (DATA / "emodb").is_dir() and not quick
    corpus = EmoDb().manifest(DATA / "emodb") if real else (Demo(1) if quick else Demo()).manifest(folder / "demo")
    what = "ge2e_states, EMO-DB" if real else "ge2e_states, demo corpus"
    samples = sum(audio.num_samples(corpus.audio_path(one), 16000, one.start_s, one.end_s) for one in corpus)
    hours = samples / 16000 / 3600
    settings = FitSettings(steps=4 if quick else 200, batch_size=16, eval_every=2 if quick else 50)

    def scored(stream: CachedStream, seed: int = 0) -> dict[str, Scores]:
        return {name: _scores(head, corpus, stream, settings, seed) for name, head in HEADS.items()}

    exact = _extracted(corpus, folder, Options(dtype="float32", device="cpu"))
    reference = scored(exact)
    plain = folder / "plain"
    plain.mkdir()
    for number, name in enumerate(exact.ids):
        np.save(plain / f"{number}.npy", exact[name])
    plain_bytes = sum(path.stat().st_size for path in plain.iterdir())
    yield _row(what, "float32 .npy, one an utterance", plain_bytes, plain_bytes, hours, _effect(reference, reference))
    yield _row(what, "(float32, another seed)", None, plain_bytes, hours, _effect(scored(exact, seed=1), reference))
    for dtype in _DTYPES:
        first = _extracted(corpus, folder, Options(dtype=dtype, device="cpu"))
        effect = _effect(reference if dtype == "float32" else scored(first), reference)
        for backend, compress in product(("zarr", "hdf5"), (False, True)):
            stream = _extracted(corpus, folder, Options(backend, dtype, device="cpu", compress=compress))
            assert all(np.array_equal(stream[name], first[name]) for name in first.ids)
            stored = f"{dtype}, {backend}{', compressed' if compress else ''}"
            yield _row(what, stored, stream_bytes(stream), plain_bytes, hours, effect)
    stats = _extracted(corpus, folder, Options(tier="stats", device="cpu"))
    only = {name: _scores(head, corpus, stats, settings) for name, head in HEADS.items() if head.tier == "stats"}
    yield _row(what, "stats alone, zarr", stream_bytes(stats), plain_bytes, hours, _effect(only, reference))


def _extracted(corpus: Manifest, folder: Path, options: Options) -> CachedStream:
    """Return the stream of a cache of its own, computed on first use."""
    cache = folder / f"{options.backend}-{options.dtype}-{options.tier}-{options.compress}"
    name = extract(corpus, cache, Ge2eStates(), options).stream
    return open_cache(cache)[name]


def _scores(head: Head, corpus: Manifest, stream: CachedStream, settings: FitSettings, seed: int = 0) -> Scores:
    folds = make_folds(corpus, "speaker")
    task = make_task(list(corpus), folds, {"ge2e_states": stream}, "cpu")
    outcomes: list[Outcome] = head.train(task, FitSettings(**{**vars(settings), "seed": seed}), lambda *_: None)
    return [
        (task.labels[task.positions(fold.test)], outcome.test) for fold, outcome in zip(folds, outcomes, strict=True)
    ]


def _effect(scores: Mapping[str, Scores], reference: Mapping[str, Scores]) -> Row:
    """Return each head's UA, the mean over folds, and how far a class probability moved at most."""
    effect: Row = {}
    for name in HEADS:
        folds = scores.get(name, [])
        moved = [np.abs(now - before).max() for (_, now), (_, before) in zip(folds, reference[name], strict=False)]
        effect[f"{name} UA %"] = (
            f"{100 * np.mean([ua(labels, p.argmax(1)) for labels, p in folds]):.2f}" if folds else ""
        )
        effect[f"{name} moved"] = f"{max(moved):.2g}" if folds else ""
    return effect


def _full_shape(folder: Path, utterances: int) -> Iterator[Row]:
    frames = round(DURATION_S * RATE_HZ)
    hours = utterances * DURATION_S / 3600
    an_hour = 3600 / DURATION_S
    what = f"{LAYERS} x {DIM} at {RATE_HZ}/s"
    blank: Row = {f"{name} {column}": "" for name in HEADS for column in ("UA %", "moved")}
    plain = LAYERS * frames * DIM * 4
    stats = 2 * LAYERS * DIM * 4
    arithmetic = {
        "float32 .npy": plain,
        "float32": plain + stats,
        "float16": plain // 2 + stats,
        "int8": plain // 4 + stats + stats // 2,
        "stats alone": stats,
    }
    for stored, size in arithmetic.items():
        yield _row(what, f"{stored}, by arithmetic", size * an_hour, plain * an_hour, 1.0, blank)
    generator = np.random.default_rng(0)
    drawn = [Features(generator.standard_normal((LAYERS, frames, DIM), np.float32)) for _ in range(utterances)]
    for dtype, backend, compress in product(_DTYPES, ("zarr", "hdf5"), (False, True)):
        spec = StreamSpec("random", 1, "audio", {}, tuple(f"layer_{n}" for n in range(LAYERS)), DIM, dtype=dtype)
        cache = folder / f"full-{dtype}-{backend}-{compress}"
        stored_forms = [store(f"u{number}", "0", 0, each, spec, "frames") for number, each in enumerate(drawn)]
        assert (SCALE in stored_forms[0].utterance_arrays) == (dtype == "int8")
        with StreamWriter(cache, spec, backend, "frames", compress) as writer:
            writer.commit(stored_forms, {})
        size = stream_bytes(open_cache(cache)["random"])
        shutil.rmtree(cache)
        stored = f"{dtype}, {backend}{', compressed' if compress else ''}, random"
        yield _row(what, stored, size, plain * utterances, hours, blank)


def _row(what: str, stored: str, size: float | None, plain_bytes: float, hours: float, effect: Row) -> Row:
    return {
        "features": what,
        "stored as": stored,
        "MB an hour": "" if size is None else round(size / hours / 1e6, 1),
        "of .npy": "" if size is None else f"{size / plain_bytes:.3f}",
        **effect,
    }

"""Train one head on every fold, and write a run folder.

The folder holds, beside ``scores.csv``, ``validation_scores.csv``, ``metrics.json`` and ``config.yaml``:

* ``folds.json``: the ids of each part of each fold;
* ``manifest.jsonl``: the utterances, as they were learnt: the column ``label`` is what was to be told apart;
* ``candidates.csv``: every setting tried in every fold, with its metric on validation and, for readers, on test;
* ``curves.csv``: loss and metric on validation, for each evaluation of the chosen candidate;
* ``layer_weights.csv``: what each layer contributes, where the head mixes layers;
* ``weights.safetensors``: the learned arrays, named ``FOLD/NAME``;
* ``log.txt``: what was run on, and what the protocol checks found.

While it trains, ``.unfinished`` keeps what a run that was killed goes on from; the same command takes it up.
"""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from featcache import registry
from featcache.cache import Cache, CachedStream
from featcache.cache import open as open_cache
from featcache.errors import CacheError, ConfigError, ProtocolError
from featcache.extract import resolve_device
from featcache.manifest import Manifest, Utterance
from featcache.settings import build
from heads.folds import FoldSet, make_folds
from heads.head import Head, OnProgress, Task
from heads.runs import Run
from heads.unfinished import Unfinished
from pipelines.config import TrainConfig
from pipelines.run_folders import UNFINISHED, existing_run, facts, membership, plain, versions, write_training


@dataclass(frozen=True)
class Trained:
    """What a training left.

    Attributes:
        run: the run folder's contents.
        folds: the folds, with what the protocol checks found.
        dropped: ids left out because a stream lacks them.
        skipped: the folder held the very same run already, so nothing was trained.
    """

    run: Run
    folds: FoldSet
    dropped: Sequence[str]
    skipped: bool = False


def run(
    config: TrainConfig,
    manifest: Manifest,
    cache: str | Path,
    out: str | Path,
    overwrite: bool = False,
    on_progress: OnProgress = lambda *_: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> Trained:
    """Train as configured.

    Args:
        config: what to train.
        manifest: labelled utterances.
        cache: the cache's folder.
        out: the run folder.
        overwrite: replace another run that lies there.
        on_progress: called with what is done and what there is to do.
        on_message: called with a sentence for each thing worth knowing.

    Raises:
        ConfigError: settings that do not fit, or `out` holds another run.
        CacheError: the cache lacks utterances and `config.missing` is ``"error"``.
        ProtocolError: folds that would leak, or labels that are missing.
    """
    out = Path(out)
    head = load_head(config)
    if not config.streams:
        raise ConfigError("Say which stream to train on, with --stream NAME.")
    opened = open_cache(cache)
    streams = {name: opened[name] for name in config.streams}
    asked = [relabelled(utterance, config.label) for utterance in manifest]
    unlabelled = [utterance for utterance in asked if config.drop_unlabelled and not utterance.label]
    wanted = [utterance for utterance in asked if utterance.label or not config.drop_unlabelled]
    kept, dropped = covered(wanted, streams, config, opened)
    if dropped:
        on_message(f"{len(dropped)} utterances are left out: a stream lacks them ({dropped[0]!r} and so on).")
    folds = make_folds(
        [*kept, *unlabelled], config.folds, validation=config.validation, validation_by=config.validation_by,
        seed=config.fit.seed, allow=config.allow, drop_unlabelled=config.drop_unlabelled,
    )  # fmt: skip
    if folds.num_unlabelled:
        on_message(f"{folds.num_unlabelled} utterances are left out: they have no {config.label}.")
    for problem in folds.problems:
        on_message(str(problem))
    used = {name for fold in folds for ids in fold.parts.values() for name in ids}
    kept = [utterance for utterance in kept if utterance.id in used]
    digest = config.digest(
        [stream.name for stream in streams.values()],
        [facts(utterance, streams.values()) for utterance in kept],
        [membership(fold) for fold in folds],
    )
    existing = existing_run(out, digest, overwrite)
    if existing is not None:
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # of a kill after the last file was written
        return Trained(existing, folds, dropped, skipped=True)
    unfinished = Unfinished(out / UNFINISHED / digest)
    if unfinished.folder.exists():
        on_message("An earlier run of the same was not finished: going on where it stopped.")
    task = make_task(kept, folds, streams, resolve_device(config.device))
    task = replace(task, unfinished=unfinished, place=config.place)
    started = time.perf_counter()
    outcomes = head.train(task, config.fit, on_progress)
    seconds = time.perf_counter() - started
    record = {
        **plain(asdict(config)),
        "digest": digest,
        "streams": {name: stream.name for name, stream in streams.items()},
        "classes": list(task.classes),
        "num_utterances": len(task.ids),
        "dropped": len(dropped),
        "speaker_independent": folds.speaker_independent,
        "synthetic": any(utterance.extra.get("synthetic") for utterance in kept),
        "problems": [str(problem) for problem in folds.problems],
        "allowed_leaks": [str(problem) for problem in folds.leaks],
        "seconds": round(seconds, 3),
        "versions": versions(),
    }
    written = write_training(out, task, outcomes, record, Manifest(kept, manifest.folder))
    trained = Trained(written, folds, dropped)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    return trained


def load_head(config: TrainConfig) -> Head:
    """Return the head of a configuration.

    Raises:
        UnknownNameError: no such head.
        ConfigError: settings that it does not have.
    """
    cls = registry.load("heads.models", config.head, Head)
    return build(cls, config.settings, f"head {config.head}")


def make_task(utterances: Sequence[Utterance], folds: FoldSet, streams: dict[str, CachedStream], device: str) -> Task:
    """Return the task of learning the utterances' labels; classes are in alphabetical order."""
    ordered = sorted(utterances, key=lambda utterance: utterance.id)
    classes = tuple(sorted({str(utterance.label) for utterance in ordered}))
    if len(classes) < 2:
        raise ProtocolError(f"All utterances are labelled {classes[0]!r}: there is nothing to tell apart.")
    labels = np.array([classes.index(str(utterance.label)) for utterance in ordered], np.int64)
    ids, speakers = [utterance.id for utterance in ordered], [utterance.speaker for utterance in ordered]
    return Task(streams, ids, labels, classes, tuple(folds), device, speakers)


def relabelled(utterance: Utterance, column: str) -> Utterance:
    """Return an utterance whose label is what a column of the manifest says; None where that says nothing.

    Raises:
        ConfigError: the column holds no plain value.
    """
    if column == "label":
        return utterance
    value = utterance.column(column)
    if isinstance(value, Mapping | list):
        raise ConfigError(
            f"The column {column!r} cannot be learnt: {utterance.id!r} has {value!r} there. Name a column of texts, "
            "numbers or flags."
        )
    missing = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    return replace(utterance, label=None if missing else str(value))


def covered(
    utterances: Sequence[Utterance], streams: dict[str, CachedStream], config: TrainConfig, cache: Cache
) -> tuple[list[Utterance], list[str]]:
    """Return the utterances that every stream holds, and the ids of the others."""
    failures = {name: stream.failures for name, stream in streams.items()}  # of inputs as they are now
    lacking = {
        utterance.id: name
        for utterance in utterances
        for name, stream in streams.items()
        if utterance.id not in stream or utterance.id in failures[name]
    }
    if lacking and config.missing == "error":
        first, name = next(iter(lacking.items()))
        reason = failures[name].get(first, "never extracted")
        raise CacheError(
            f"{streams[name].name} lacks {len(lacking)} of {len(utterances)} utterances, such as {first!r} ({reason}). "
            f"See 'featcache coverage {cache.path} MANIFEST'; extract them, or leave them out with --missing drop."
        )
    kept = [utterance for utterance in utterances if utterance.id not in lacking]
    if utterances and not kept:
        raise CacheError(f"{', '.join(stream.name for stream in streams.values())} holds none of the utterances.")
    return kept, list(lacking)

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
import resource
import shutil
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache import Cache, CachedStream
from featcache.cache import open as open_cache
from featcache.errors import CacheError, ConfigError, ProtocolError, ScoresError
from featcache.extract import resolve_device
from featcache.manifest import Manifest, Utterance
from heads.duplicates import audio_digests
from heads.fit import fit_each, side_by_side
from heads.folds import FoldSet, make_folds
from heads.head import FitSettings, GradientHead, Head, OnProgress, Task
from heads.runs import Run
from heads.unfinished import Unfinished
from pipelines import run_folders
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


@dataclass(frozen=True)
class Prepared:
    """A training that could begin: all is read but the features, and every check is passed.

    Attributes:
        config: what is trained.
        head: the head.
        streams: cached streams, by the names that the configuration has.
        manifest: the utterances of all folds, as they are learnt.
        folds: the folds, with what the protocol checks found.
        dropped: ids left out because a stream lacks them.
        messages: sentences worth knowing.
        digest: names the configuration together with what it runs on; the identity of its run.
        together: the same for trainings that can train as one job; see :func:`heads.fit.side_by_side`.
    """

    config: TrainConfig
    head: Head
    streams: Mapping[str, CachedStream]
    manifest: Manifest
    folds: FoldSet
    dropped: Sequence[str]
    messages: Sequence[str]
    digest: str
    together: Hashable

    def task(self) -> Task:
        """Return what is to be learnt."""
        task = make_task(list(self.manifest), self.folds, dict(self.streams), resolve_device(self.config.device))
        return replace(task, place=self.config.place)


class Preparer:
    """Prepares trainings over one manifest and one cache; what several of them share is made once.

    Args:
        manifest: labelled utterances.
        cache: the cache's folder.
    """

    def __init__(self, manifest: Manifest, cache: str | Path) -> None:
        self._manifest = manifest
        self._path = cache
        self._streams: dict[str, CachedStream] = {}
        self._covered: dict[Hashable, tuple[list[Utterance], list[Utterance], list[str]]] = {}
        self._folds: dict[Hashable, tuple[FoldSet, Manifest, list[Any]]] = {}

    @cached_property
    def _cache(self) -> Cache:
        """The cache: looked for after the head and its settings were looked at."""
        return open_cache(self._path)

    def prepare(self, config: TrainConfig) -> Prepared:
        """Return a training that could begin; nothing is written.

        Raises:
            ConfigError: settings that do not fit.
            CacheError: the cache lacks utterances and `config.missing` is ``"error"``.
            ProtocolError: folds that would leak, or labels that are missing.
        """
        head = load_head(config)
        if not config.streams:
            raise ConfigError("Say which stream to train on, with --stream NAME.")
        for name in config.streams:
            if name not in self._streams:
                self._streams[name] = self._cache[name]
        streams = {name: self._streams[name] for name in config.streams}
        dropped, folds, learnt, context = self._divide(config, streams)
        messages = [str(problem) for problem in folds.problems]
        if folds.num_unlabelled:
            messages.insert(0, f"{folds.num_unlabelled} utterances are left out: they have no {config.label}.")
        if dropped:
            messages.insert(
                0, f"{len(dropped)} utterances are left out: a stream lacks them ({dropped[0]!r} and so on)."
            )
        shared = replace(config, settings={}, fit=FitSettings()).digest(*context)
        return Prepared(
            config, head, streams, learnt, folds, dropped, messages, config.digest(*context),
            (shared, side_by_side(head, config.fit)),
        )  # fmt: skip

    def _divide(
        self, config: TrainConfig, streams: Mapping[str, CachedStream]
    ) -> tuple[list[str], FoldSet, Manifest, list[Any]]:
        """Return ids left out, the folds, their utterances, and what names all that is read."""
        what = (config.streams, config.label, config.drop_unlabelled, config.missing)
        if what not in self._covered:
            asked = [relabelled(utterance, config.label) for utterance in self._manifest]
            unlabelled = [utterance for utterance in asked if config.drop_unlabelled and not utterance.label]
            wanted = [utterance for utterance in asked if utterance.label or not config.drop_unlabelled]
            kept, dropped = covered(wanted, dict(streams), config, self._cache)
            self._covered[what] = (kept, unlabelled, dropped)
        kept, unlabelled, dropped = self._covered[what]
        how = (*what, config.folds, config.validation, config.validation_by, config.fit.seed, config.allow)
        if how not in self._folds:
            folds = make_folds(
                [*kept, *unlabelled], config.folds, validation=config.validation, validation_by=config.validation_by,
                seed=config.fit.seed, allow=config.allow, drop_unlabelled=config.drop_unlabelled,
                audio=audio_digests(streams.values(), [utterance.id for utterance in kept]),
            )  # fmt: skip
            used = {name for fold in folds for ids in fold.parts.values() for name in ids}
            learnt = Manifest([utterance for utterance in kept if utterance.id in used], self._manifest.folder)
            context = [
                [stream.name for stream in streams.values()],
                [facts(utterance, streams.values()) for utterance in learnt],
                [membership(fold) for fold in folds],
            ]
            self._folds[how] = (folds, learnt, context)
        return (dropped, *self._folds[how])


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
    prepared = Preparer(manifest, cache).prepare(config)
    for message in prepared.messages:
        on_message(message)
    existing = existing_run(out, prepared.digest, overwrite)
    if existing is not None:
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # of a kill after the last file was written
        return Trained(existing, prepared.folds, prepared.dropped, skipped=True)
    unfinished = out / UNFINISHED / prepared.digest
    if unfinished.exists():
        on_message("An earlier run of the same was not finished: going on where it stopped.")
    [written] = train({out: prepared}, unfinished, on_progress)
    return Trained(written, prepared.folds, prepared.dropped)


def train(several: Mapping[Path, Prepared], unfinished: Path, on_progress: OnProgress = lambda *_: None) -> list[Run]:
    """Train one training, or several that can train as one job, and write a run folder for each.

    Args:
        several: run folder to training; what another run left there is replaced.
        unfinished: the folder that keeps what is not finished; its name must follow from all that is trained. It is
            removed at the end, and what each run folder kept of its own.
        on_progress: called with what is done and what there is to do.

    Returns:
        The runs, in order. The seconds that each is recorded to have taken are its share of those of all.

    Raises:
        ScoresError: a training diverged; the others are written all the same.
    """
    trainings = list(several.values())
    _forget_peak()
    task = replace(trainings[0].task(), unfinished=Unfinished(unfinished))
    started = time.perf_counter()
    if len(trainings) == 1:
        outcomes = [trainings[0].head.train(task, trainings[0].config.fit, on_progress)]
    else:
        pairs = [(one.head, one.config.fit) for one in trainings if isinstance(one.head, GradientHead)]
        outcomes = fit_each(pairs, task, on_progress)
    seconds = (time.perf_counter() - started) / len(trainings)
    written, failed = [], {}
    peak_mib = _peak_mib()
    for (out, one), of_one in zip(several.items(), outcomes, strict=True):
        try:
            written.append(write_training(out, task, of_one, _record(one, task, seconds, peak_mib), one.manifest))
        except ScoresError as error:  # it diverged: the others did not
            failed[out.name] = error
    for folder in (unfinished, *(out / UNFINISHED for out in several)):
        shutil.rmtree(folder, ignore_errors=True)
    if failed:
        reasons = "; ".join(f"{name}: {error}" if len(several) > 1 else str(error) for name, error in failed.items())
        raise ScoresError(reasons)
    return written


def _forget_peak() -> None:
    """Let the system count this process's most memory anew; where it cannot, earlier trainings count too."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> int:
    """Return the most memory that this process took, in MiB, pages of mapped files included."""
    with suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _record(prepared: Prepared, task: Task, seconds: float, peak_mib: int) -> dict[str, Any]:
    """Return how a run was made, in plain values."""
    folds = prepared.folds
    return {
        **plain(asdict(prepared.config)),
        "digest": prepared.digest,
        "streams": {name: stream.name for name, stream in prepared.streams.items()},
        "classes": list(task.classes),
        "num_utterances": len(task.ids),
        "dropped": len(prepared.dropped),
        "speaker_independent": folds.speaker_independent,
        "synthetic": any(utterance.extra.get("synthetic") for utterance in prepared.manifest),
        "problems": [str(problem) for problem in folds.problems],
        "allowed_leaks": [str(problem) for problem in folds.leaks],
        "seconds": round(seconds, 3),
        "peak_mib": peak_mib,
        "versions": versions(),
    }


def load_head(config: TrainConfig) -> Head:
    """Return the head of a configuration.

    Raises:
        UnknownNameError: no such head.
        ConfigError: settings that it does not have.
    """
    return run_folders.load_head(config.head, config.settings)


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

"""From recordings and texts to class probabilities, by trained runs: extract what they read, score, average, fuse.

Features come from the same code as in training (:func:`featcache.extract.extract`), into a cache that is thrown away or
one that is kept; what this installation would compute is compared with what each run was trained on before anything is
computed. A run has a model for each fold; by default their probabilities are averaged. Where each fold read the
features of an encoder of its own, its model is fed those.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from featcache.cache import CachedStream
from featcache.cache import open as open_cache
from featcache.errors import ConfigError, StreamError, UnknownNameError
from featcache.extract import Options, extract, resolve_device
from featcache.files import listed
from featcache.manifest import Manifest
from featcache.plan import Plan
from featcache.stream import EXACT_DTYPES, Stream, StreamSpec
from heads.fold_copies import originals
from heads.head import OnProgress
from heads.learnt import Audio, audio_of, learnt_among
from pipelines.ensemble import Rows, fused, gather
from pipelines.restore import Restored, check_stream, compute_dtype, make_stream, of_fold

ALL, OWN = "all", "own"
"""Instead of a fold's name: the mean of all folds' models; the models that tested the utterance in training."""

OnMessage = Callable[[str], None]


@dataclass(frozen=True)
class Predicted:
    """What was predicted.

    Attributes:
        ids: utterances, in the order asked for, without those that failed.
        classes: class names, in order.
        probabilities: ``(utterances, classes)``.
        failures: id to reason.
    """

    ids: list[str]
    classes: tuple[str, ...]
    probabilities: np.ndarray
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def labels(self) -> list[str]:
        """The class with the highest probability of each utterance; the first at a tie."""
        return [self.classes[at] for at in self.probabilities.argmax(axis=1)]


@dataclass(frozen=True)
class _Wanted:
    """A stream to extract, the spec that a run was trained on, and what is to be kept of it: frames or stats."""

    stream: Stream
    spec: StreamSpec
    tier: str


def run(
    folders: Sequence[Path],
    manifest: Manifest,
    weights: str | None = None,
    fold: str = ALL,
    cache: Path | None = None,
    device: str = "auto",
    settings: Mapping[str, Any] = {},
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
) -> Predicted:
    """Predict the classes of utterances.

    Args:
        folders: run folders; one may be a fusion.
        manifest: the utterances: recordings, texts, speakers. Labels have no part.
        weights: of several runs, separated by commas; None weighs them equally.
        fold: whose model: a fold's name, ``"all"`` or ``"own"``.
        cache: where features are looked for and kept; None throws them away.
        device: where models run.
        settings: stream to settings that win over the run's, such as where a checkpoint lies on this machine.
        on_progress: called with utterances extracted and to be extracted, each stream counted.
        on_message: called with a sentence for each thing worth knowing.

    Raises:
        ScoresError: a folder is not a trained run, or was made by an earlier version.
        ConfigError: runs that do not fit together or cannot be computed here, or options that do not fit.
        UnknownNameError: no such fold.
        ProtocolError: the manifest's augmented copies do not say of what; see :func:`heads.protocol.lineages`.
    """
    ensemble, originals_of = gather(folders, weights), originals(manifest)
    for one in ensemble.runs:
        _check_fold(one, fold)
    device = resolve_device(device)
    wanted = _streams(ensemble.runs, manifest, settings, on_message, fold)
    with _workplace(cache) as place:
        features, failures = _extract(wanted, manifest, place, device, on_progress)
        ids = [name for name in manifest.ids if name not in failures]
        tables: list[Rows] = []
        for one in ensemble.runs if ids else ():
            streams = {
                name: {kind: features[spec.digest] for kind, spec in one.specs_of(name).items()}
                for name in _folds(one, fold)
            }
            rows, failed = _score(one, streams, manifest, ids, originals_of, fold, device, on_message)
            tables.append(rows)
            failures |= failed
    done = [name for name in ids if name not in failures]
    classes = ensemble.runs[0].classes
    if not done:
        return Predicted([], classes, np.empty((0, len(classes))), failures)
    return Predicted(done, classes, fused(ensemble, tables, ids, done), failures)


def _folds(one: Restored, fold: str) -> list[str]:
    """Return the folds whose models are asked."""
    return list(one.models) if fold in (ALL, OWN) else [fold]


def _specs(one: Restored, fold: str) -> list[StreamSpec]:
    """Return the streams that the models asked read, each once."""
    found = {spec.digest: spec for name in _folds(one, fold) for spec in one.specs_of(name).values()}
    return list(found.values())


def _streams(
    runs: Sequence[Restored], manifest: Manifest, settings: Mapping[str, Any], on_message: OnMessage, fold: str = ALL
) -> dict[str, _Wanted]:
    """Return what to extract, by the digest of the spec that a run was trained on."""
    names = {name for one in runs for spec in _specs(one, fold) for name in (spec.kind, spec.name)}
    stray = sorted(set(settings) - names)
    if stray:
        raise ConfigError(f"--set names {', '.join(stray)}; the streams read are {', '.join(sorted(names))}.")
    plain = [kind for kind, values in settings.items() if not isinstance(values, Mapping)]
    if plain:
        raise ConfigError(f"--set {plain[0]}: give a setting of the stream, such as {plain[0]}.checkpoint=FOLDER.")
    wanted: dict[str, _Wanted] = {}
    for one in runs:
        for spec in _specs(one, fold):
            given = {**(settings.get(spec.kind) or {}), **(settings.get(spec.name) or {})}
            stream = make_stream(spec, of_fold(given, spec, one.folder))
            _, differing = check_stream(stream, spec, one.name)
            if differing and spec.digest not in wanted:
                on_message(
                    f"{spec.kind} was computed by other releases when {one.name!r} was trained (trained -> here): "
                    f"{'; '.join(differing)}. Probabilities may differ a little."
                )
            frames = one.head.tier == "frames" or (spec.digest in wanted and wanted[spec.digest].tier == "frames")
            wanted[spec.digest] = _Wanted(stream, spec, "frames" if frames else "stats")
            _check_given(spec, manifest, one.name)
    return wanted


def _check_given(spec: StreamSpec, manifest: Manifest, run: str) -> None:
    if spec.input == "text" and not any(utterance.text for utterance in manifest):
        raise ConfigError(f"The run {run!r} reads what is said ({spec.name}). Give --text, --text-file or --manifest.")
    if spec.input == "audio" and not any(utterance.audio for utterance in manifest):
        raise ConfigError(f"The run {run!r} reads audio ({spec.name}). Give recordings, or --manifest.")


@contextmanager
def _workplace(cache: Path | None) -> Iterator[Path]:
    if cache is not None:
        yield cache
        return
    with TemporaryDirectory(prefix="featcache-predict-") as folder:
        yield Path(folder)


def _extract(
    wanted: Mapping[str, _Wanted],
    manifest: Manifest,
    cache: Path,
    device: str,
    on_progress: OnProgress,
) -> tuple[dict[str, CachedStream], dict[str, str]]:
    """Return each stream by the digest of the spec wanted, and the utterances that one of them lacks."""
    features: dict[str, CachedStream] = {}
    failures: dict[str, str] = {}
    before = total = 0

    def planned(plan: Plan) -> None:
        nonlocal total
        if plan.changed:
            first, why = next(iter(plan.changed.items()))
            raise ConfigError(
                f"{str(cache)!r} holds {len(plan.changed)} of these utterances with another input, such as {first!r} "
                f"({why}), and would serve the new ones from now on, to trainings too. Give another --cache, or none."
            )
        total = before + len(plan.items)

    def done(count: int, _: float) -> None:
        nonlocal before
        before += count
        on_progress(before, total)

    for digest, one in wanted.items():
        compute = compute_dtype(one.spec)
        stored = Options.dtype if one.spec.dtype in EXACT_DTYPES else one.spec.dtype  # ids have a type of their own
        options = Options(dtype=stored, compute_dtype=compute, device=device, tier=one.tier)
        with _told_later():
            summary = extract(manifest, cache, one.stream, options, on_planned=planned, on_done=done, on_elsewhere=done)
        failures |= {name: reason for name, reason in summary.failures.items() if name not in failures}
        if len(summary.failures) < len(manifest):
            features[digest] = open_cache(cache)[summary.stream]
        else:  # none is left to be scored
            break
    return features, failures


@contextmanager
def _told_later() -> Iterator[None]:
    """Keep the extraction from logging failures, which are told at the end."""
    logger = logging.getLogger("featcache.stages")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_fold(one: Restored, fold: str) -> None:
    if fold == OWN and not (one.inputs and one.folds):
        raise ConfigError(f"The run {one.name!r} came without its utterances, so --fold own finds none of them.")
    if fold not in (ALL, OWN, *one.models):
        raise UnknownNameError(f"fold in the run {one.name!r}", fold, [ALL, OWN, *one.models])


def _score(
    one: Restored,
    streams: Mapping[str, Mapping[str, CachedStream]],
    manifest: Manifest,
    ids: Sequence[str],
    originals_of: Mapping[str, str],
    fold: str,
    device: str,
    on_message: OnMessage,
) -> tuple[Rows, dict[str, str]]:
    """Return what a run's models give for utterances, and those that they cannot score.

    `streams` are those of each fold; what they were computed from is the same in all.
    """
    known = _known(one, next(iter(streams.values())), ids, originals_of)
    failures: dict[str, str] = {}
    if fold == OWN:
        tested = {part.name: frozenset(part.test) for part in one.folds}
        folds = {name: [at for at, own in enumerate(known) if own in tested[name]] for name in one.models}
        found = {at for positions in folds.values() for at in positions}
        reason = f"it is no utterance that {one.name!r} was tested on (its audio or text, compared with the run's)"
        failures = {name: reason for at, name in enumerate(ids) if at not in found}
    else:
        folds = {name: list(range(len(ids))) for name in (one.models if fold == ALL else [fold])}
        learnt = {own for part in one.folds if part.name in folds for own in (*part.train, *part.validation)}
        count = sum(own in learnt for own in known)
        if count:
            on_message(
                f"{count} of {len(ids)} are of the data that {one.name!r} was trained on, or copies of it, so their "
                "probabilities are optimistic. --fold own uses the models that had not heard them."
            )
        heard = {at for at in _heard(one, streams, ids, known) if known[at] not in learnt}
        if heard:
            on_message(
                f"What {one.name!r} began with (its encoders, or another run's weights) has learnt from {len(heard)} "
                f"{'more ' if count else ''}of {len(ids)}, so their probabilities are optimistic."
            )
    speakers = _speakers(one, manifest, ids, known)
    namesakes = sorted({str(who) for who, own in zip(speakers, known, strict=True) if own is None and one.knows(who)})
    if namesakes:
        on_message(
            f"The speakers {listed(namesakes)} are called like speakers that {one.name!r} was trained on, and get the "
            "embeddings it has of those. Give other people other names."
        )
    rows: Rows = {}
    for name, positions in folds.items():
        left, values = _scored(one, streams[name], ids, speakers, positions, name, device, failures)
        if left:
            rows[name] = left, values
    return rows, failures


def _heard(
    one: Restored, streams: Mapping[str, Mapping[str, CachedStream]], ids: Sequence[str], known: Sequence[str | None]
) -> set[int]:
    """Return the positions of utterances that the models asked had learnt from before they were trained."""
    found: set[int] = set()
    for fold, own in streams.items():
        records = [record for source in one.learnt.get(fold, ()) for record in source.tuned.everything()]
        audio = audio_of(own.values(), ids) if records else Audio()
        told = [(name, audio.digests.get(utterance)) for name, utterance in zip(known, ids, strict=True)]
        found |= {at for record in records for at in learnt_among(record, told)}
    return found


def _scored(
    one: Restored,
    streams: Mapping[str, CachedStream],
    ids: Sequence[str],
    speakers: Sequence[str | None],
    positions: list[int],
    fold: str,
    device: str,
    failures: dict[str, str],
) -> tuple[list[int], np.ndarray]:
    """Return positions that one fold's model could score, and their probabilities; add the others to the failures."""

    def score(chosen: Sequence[int]) -> np.ndarray:
        names = [ids[at] for at in chosen]
        return one.score(streams, names, [speakers[at] for at in chosen], [fold], device)[fold]

    positions = [at for at in positions if ids[at] not in failures]
    if not positions:
        return [], np.empty((0, len(one.classes)))
    try:
        return positions, score(positions)
    except (ConfigError, StreamError):
        left = []
        for at in positions:  # which one is it?
            try:
                score([at])
                left.append(at)
            except (ConfigError, StreamError) as error:
                failures[ids[at]] = str(error)
        if len(left) == len(positions):
            raise
    return _scored(one, streams, ids, speakers, left, fold, device, failures)


def _known(
    one: Restored, streams: Mapping[str, CachedStream], ids: Sequence[str], originals_of: Mapping[str, str]
) -> list[str | None]:
    """Return for each utterance the one of the run whose input was the same; that of the same id where several were.

    For an augmented copy it is its original's, whose fold is the copy's too: as its input tells, or its id where the
    original is not among the utterances.
    """
    by_digest: dict[tuple[str | None, ...], list[str]] = {}
    for name in sorted(one.inputs):
        by_digest.setdefault(tuple(one.inputs[name].get(kind) for kind in one.specs), []).append(name)
    found: dict[str, str | None] = {}
    for name in ids:
        key = tuple(streams[kind].locate(name).entry.input for kind in one.specs)
        same = by_digest.get(key, [])
        found[name] = name if name in same else same[0] if same else None
    by_id = {original: original for original in originals_of.values() if original in one.inputs}
    of_originals = {**by_id, **found}
    return [of_originals.get(originals_of.get(name, name)) or found[name] for name in ids]


def _speakers(one: Restored, manifest: Manifest, ids: Sequence[str], known: Sequence[str | None]) -> list[str | None]:
    """Return who speaks: as told, as the run has it, or somebody who speaks in no other utterance."""
    own = [None if name is None else one.speakers.get(name) for name in known]
    return [
        manifest.utterance(name).speaker or of_run or f"(speaker of {name})"
        for name, of_run in zip(ids, own, strict=True)
    ]

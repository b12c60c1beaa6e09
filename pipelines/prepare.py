"""Trainings that could begin: streams opened, folds made, and every check passed; nothing is written.

What a training has learnt from before it begins (fine-tuned encoders, another run's weights) is held against its folds
here, and each fold gets the streams of its own encoder.
"""

import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache import Cache, CachedStream
from featcache.cache import open as open_cache
from featcache.errors import CacheError, ConfigError, ProtocolError
from featcache.extract import resolve_device
from featcache.families import Family, is_family, open_family
from featcache.files import canonical_json
from featcache.manifest import Manifest, Utterance
from heads.codes import KIND as CODES
from heads.duplicates import audio_digests
from heads.fit import side_by_side
from heads.fit_settings import FitSettings
from heads.fold_copies import completed, originals, with_their_copies
from heads.fold_kinds import speaker_dependent
from heads.folds import FoldSet, fold_names, make_folds
from heads.head import GradientHead, Head
from heads.learnt import Source, audio_of, check_learnt
from heads.protocol import Problem, refusal
from heads.task import Task
from pipelines import run_folders
from pipelines.beginning import Start, open_start, shares_of_votes
from pipelines.config import TrainConfig
from pipelines.provenance import all_streams, digests_of_head, sources_of, sources_of_head
from pipelines.run_folders import facts, membership

_MOST_TOLD = 3
"""Problems of one kind that are told one by one."""


@dataclass(frozen=True)
class Prepared:
    """A training that could begin: all is read but the features, and every check is passed.

    Attributes:
        config: what is trained.
        head: the head.
        streams: cached streams, by the names that the configuration has; of a family the first fold's.
        manifest: the utterances of all folds, as they are learnt.
        folds: the folds, with what the protocol checks found.
        dropped: ids left out because a stream lacks them.
        messages: sentences worth knowing.
        digest: names the configuration together with what it runs on; the identity of its run.
        together: the same for trainings that can train as one job; see :func:`heads.fit.side_by_side`.
        families: of the streams, those of which each fold reads its own.
        learnt: fold to what has learnt before it is trained.
        start: what training begins with; None begins at random.
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
    families: Mapping[str, Family] = field(default_factory=dict)
    learnt: Mapping[str, Sequence[Source]] = field(default_factory=dict)
    start: Start | None = None

    def task(self) -> Task:
        """Return what is to be learnt; where folds read streams of their own, with those of the first."""
        task = make_task(list(self.manifest), self.folds, dict(self.streams), resolve_device(self.config.device))
        start = {} if self.start is None else {fold.name: self.start.weights(fold.name) for fold in self.folds}
        return replace(task, place=self.config.place, targets=self.targets(task)[0], start=start)

    def tasks(self) -> list[Task]:
        """Return what is to be learnt, in as many tasks as it takes for each fold to read its own streams."""
        task = self.task()
        if not self.families:
            return [task]
        return [replace(task, folds=(fold,), streams=self.streams_of(fold.name)) for fold in task.folds]

    def streams_of(self, fold: str) -> dict[str, CachedStream]:
        """Return the streams that a fold reads, by the names that the configuration has."""
        return {
            name: self.families[name].member(fold) if name in self.families else stream
            for name, stream in self.streams.items()
        }

    def targets(self, task: Task) -> tuple[np.ndarray | None, int]:
        """Return what the loss aims at in place of labels, None for labels alone, and how many of them are votes."""
        if not self.config.votes:
            return None, 0
        utterances = [self.manifest.utterance(name) for name in task.ids]
        return shares_of_votes(utterances, self.config.votes, task.classes, task.labels)


class Preparer:
    """Prepares trainings over one manifest and one cache; what several of them share is made once.

    Args:
        manifest: labelled utterances.
        cache: the cache's folder.
        meant: name of a stream in a configuration to its full name, or of a family to its run's digest, where it is
            known which of several is meant.
    """

    def __init__(self, manifest: Manifest, cache: str | Path, meant: Mapping[str, str] = {}) -> None:
        self._manifest = manifest
        self._path = cache
        self._meant = meant
        self._streams: dict[str, CachedStream] = {}
        self._families: dict[str, Family] = {}
        self._covered: dict[Hashable, tuple[list[Utterance], list[Utterance], list[str]]] = {}
        self._folds: dict[Hashable, _Divided] = {}

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
        if config.votes and not isinstance(head, GradientHead):
            raise ConfigError(f"The head {head.kind()!r} does not learn from votes. Leave votes out.")
        for name in config.streams:
            self._open(name)
        families = self._families_of(config)
        own = {name: next(iter(family.members.values())) for name, family in families.items()}
        streams = {name: own[name] if name in own else self._streams[name] for name in config.streams}
        trained_further = digests_of_head(head)
        dropped, divided = self._divide(config, head, streams, families, str(trained_further))
        messages = told(divided.folds.problems)
        if divided.folds.num_unlabelled:
            messages.insert(0, f"{divided.folds.num_unlabelled} utterances are left out: they have no {config.label}.")
        if dropped:
            messages.insert(
                0, f"{len(dropped)} utterances are left out: a stream lacks them ({dropped[0]!r} and so on)."
            )
        # Where the run to begin with lies is no matter, its weights are.
        known = replace(config, start="")
        context = [
            *divided.context,
            *([["start", divided.start.sha256]] if divided.start else []),
            *([["checkpoints", trained_further]] if trained_further else []),
        ]
        digest = known.digest(*context)
        shared = replace(known, settings={}, fit=FitSettings()).digest(*context)
        together = digest if families else (shared, side_by_side(head, config.fit))
        prepared = Prepared(
            config, head, streams, divided.learnt, divided.folds, dropped, messages, digest, together, families,
            divided.sources, divided.start,
        )  # fmt: skip
        return self._voted(prepared) if config.votes else prepared

    def _voted(self, prepared: Prepared) -> Prepared:
        """Return a training on votes, which are a part of what it is."""
        task = make_task(list(prepared.manifest), prepared.folds, dict(prepared.streams), "cpu")
        shares, voted = prepared.targets(task)
        told = [] if shares is None else shares.tolist()
        digest = hashlib.sha256(canonical_json([prepared.digest, told])).hexdigest()[:16]
        text = f"{voted} of {len(task.ids)} utterances aim at votes ({prepared.config.votes!r}), the others at labels."
        return replace(
            prepared, digest=digest, together=(prepared.together, digest), messages=[text, *prepared.messages]
        )

    def _open(self, name: str) -> None:
        """Open a stream or a family.

        Raises:
            ConfigError: they are codes of a trained head.
        """
        if name in self._streams or name in self._families:
            return
        if is_family(name):
            self._families[name] = open_family(self._cache, name, self._meant.get(name, ""))
            return
        stream = self._cache[self._meant.get(name, name)]
        if stream.spec.kind == CODES:
            fold = stream.spec.settings.get("fold")
            raise ConfigError(
                f"{stream.name} holds codes of a trained head, of its model for the fold {str(fold)!r}, which has "
                "learnt from what other folds test. 'featcache probe' trains on codes, each fold on those of its own "
                "model; name another stream here."
            )
        self._streams[name] = stream

    def _families_of(self, config: TrainConfig) -> dict[str, Family]:
        """Return the families that a configuration names, without streams of folds that are not made."""
        found = {name: self._families[name] for name in config.streams if name in self._families}
        if not found:
            return {}
        made = fold_names(
            learnable(self._manifest, config), config.folds, seed=config.fit.seed,
            drop_unlabelled=config.drop_unlabelled,
        )  # fmt: skip
        return {name: family.only(made) for name, family in found.items()}

    def _divide(
        self,
        config: TrainConfig,
        head: Head,
        streams: Mapping[str, CachedStream],
        families: Mapping[str, Family],
        trained_further: str,
    ) -> tuple[list[str], "_Divided"]:
        """Return ids left out, and the folds with all that is read for them; the last argument names checkpoints."""
        members = {one.name: one for family in families.values() for one in family.members.values()}
        read = {**{name: one for name, one in streams.items() if name not in families}, **members}
        what = (
            config.streams, config.label, config.votes, config.copies, config.drop_unlabelled, config.missing,
            tuple(read),
        )  # fmt: skip
        if what not in self._covered:
            asked = learnable(self._manifest, config)
            unlabelled = [utterance for utterance in asked if config.drop_unlabelled and not utterance.label]
            wanted = [utterance for utterance in asked if utterance.label or not config.drop_unlabelled]
            kept, dropped = covered(wanted, read, config, self._cache)
            _check_inputs(families, kept)
            self._covered[what] = (kept, unlabelled, dropped)
        kept, unlabelled, dropped = self._covered[what]
        tuned = sources_of_head(head)
        how = (
            *what, config.folds, config.validation, config.validation_by, config.fit.seed, config.allow, config.start,
            trained_further, isinstance(head, GradientHead),
        )  # fmt: skip
        if how not in self._folds:
            folds = make_folds(
                [*kept, *unlabelled], config.folds, validation=config.validation, validation_by=config.validation_by,
                seed=config.fit.seed, allow=config.allow, drop_unlabelled=config.drop_unlabelled,
                audio=audio_digests(read.values(), [utterance.id for utterance in kept]),
            )  # fmt: skip
            start = open_start(config.start, head, folds) if config.start else None
            sources = {fold.name: [*tuned, *_sources(fold.name, streams, families, start)] for fold in folds}
            folds = self._checked(folds, sources, kept, read, config)
            used = {name for fold in folds for ids in fold.parts.values() for name in ids}
            learnt = Manifest([utterance for utterance in kept if utterance.id in used], self._manifest.folder)
            context = [
                [stream.name for stream in read.values()],
                [facts(utterance, read.values()) for utterance in learnt],
                [membership(fold) for fold in folds],
            ]
            self._folds[how] = _Divided(folds, learnt, context, sources, start)
        return dropped, self._folds[how]

    def _checked(
        self,
        folds: FoldSet,
        sources: Mapping[str, Sequence[Source]],
        kept: Sequence[Utterance],
        read: Mapping[str, CachedStream],
        config: TrainConfig,
    ) -> FoldSet:
        """Return folds with what is found where something has learnt before.

        Raises:
            ProtocolError: it has learnt from what is tested, and that is not allowed.
        """
        if not any(sources.values()):
            return folds
        audio = audio_of(all_streams(list(read.values()), self._cache), [utterance.id for utterance in kept])
        found = check_learnt(folds, sources, kept, audio)
        allowed = {*config.allow, *(["speaker"] if speaker_dependent(config.folds) else [])}
        errors = [problem for problem in found if problem.severity == "error" and problem.name not in allowed]
        if errors:
            hints = dict.fromkeys(f"  {one.hint}." for several in sources.values() for one in several if one.hint)
            raise ProtocolError("\n".join([refusal("What is trained on these folds", errors), *hints]))
        return replace(folds, problems=(*folds.problems, *found))


@dataclass(frozen=True)
class _Divided:
    """Folds, and what is read for them.

    Attributes:
        folds: the folds.
        learnt: their utterances.
        context: plain values that name all that is read.
        sources: fold to what has learnt before it is trained.
        start: what training begins with.
    """

    folds: FoldSet
    learnt: Manifest
    context: list[Any]
    sources: Mapping[str, Sequence[Source]]
    start: Start | None


def _sources(
    fold: str, streams: Mapping[str, CachedStream], families: Mapping[str, Family], start: Start | None
) -> list[Source]:
    """Return what has learnt before a fold is trained.

    Raises:
        CacheError: a family lacks the fold, or a record is missing or damaged.
    """
    own = {name: families[name].member(fold) if name in families else one for name, one in streams.items()}
    return [*sources_of(own, list(families)), *([] if start is None else [start.sources[fold]])]


def _check_inputs(families: Mapping[str, Family], utterances: Sequence[Utterance]) -> None:
    """Refuse families whose folds were computed from different audio or texts.

    Raises:
        CacheError: they were.
    """
    for family in families.values():
        first, *others = family.members.values()
        for other in others:
            for utterance in utterances:
                if first.locate(utterance.id).entry.input != other.locate(utterance.id).entry.input:
                    raise CacheError(
                        f"{family.name}: {utterance.id!r} had another input when {other.name} was computed than for "
                        f"{first.name}. Run the extract of all folds again: it computes what has changed."
                    )


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
    return Task(streams, ids, labels, classes, tuple(folds), device, speakers, frozenset(originals(ordered)))


def told(problems: Sequence[Problem]) -> list[str]:
    """Return sentences on problems: of many of one kind the first, and how many there are."""
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((problem.name, problem.severity), []).append(problem)
    return [
        f"{several[0]} (the first of {len(several)} of this kind; 'featcache check' lists all)"
        if len(several) > _MOST_TOLD
        else str(problem)
        for several in kinds.values()
        for problem in several[: 1 if len(several) > _MOST_TOLD else None]
    ]


def learnable(manifest: Manifest, config: TrainConfig) -> list[Utterance]:
    """Return the utterances that a training is about, labelled by its column; copies know what their originals do.

    Raises:
        ConfigError: the column holds no plain value.
        ProtocolError: a copy has no original, or says something else than it.
    """
    copies = set() if config.copies else set(originals(manifest))
    kept = [utterance for utterance in manifest if utterance.id not in copies]
    same = [name for name in (config.label, config.votes) if name]
    return [relabelled(utterance, config.label) for utterance in completed(kept, same)]


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
    """Return the utterances that every stream holds, and the ids of the others, among them copies of these."""
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
    left_out = with_their_copies(lacking, utterances)
    kept = [utterance for utterance in utterances if utterance.id not in left_out]
    if utterances and not kept:
        raise CacheError(f"{', '.join(stream.name for stream in streams.values())} holds none of the utterances.")
    return kept, [utterance.id for utterance in utterances if utterance.id in left_out]

"""Streams of one fine-tuning run, a fold's each: ``hidden_states@w2v2-ft`` names them all.

A family is of one kind, with one choice of settings, from the checkpoints of one run. In front of the ``@`` stands the
kind, or the full name of one member where the kind was extracted with several choices of settings; behind it the run's
name, or its digest where two runs have the same name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from featcache import tuned
from featcache.cache import DESCRIPTION, Cache, CachedStream, read_spec
from featcache.errors import CacheError, UnknownNameError
from featcache.files import canonical_json, listed
from featcache.stream import StreamSpec

_FEWEST_DIGITS = 8


@dataclass(frozen=True)
class Family:
    """The streams of one fine-tuning run.

    Attributes:
        name: what it was asked for as.
        members: fold to its stream.
    """

    name: str
    members: Mapping[str, CachedStream]

    def only(self, folds: Sequence[str]) -> "Family":
        """Return the family without the streams of all but some folds; of these it may lack some, but not each.

        Raises:
            CacheError: it has none of them.
        """
        kept = {fold: one for fold, one in self.members.items() if fold in folds}
        return replace(self, members=kept or {fold: self.member(fold) for fold in folds})

    def member(self, fold: str) -> CachedStream:
        """Return the stream of a fold.

        Raises:
            CacheError: it lacks that fold.
        """
        if fold not in self.members:
            raise CacheError(
                f"{self.name} has no stream of the fold {fold!r}; it has {listed(self.members)}. A fold is trained and "
                "scored on the features of its own encoder alone: train on the folds that were fine-tuned, or "
                "fine-tune and extract the others."
            )
        return self.members[fold]


def is_family(name: str) -> bool:
    """Return whether the name of a stream names a family."""
    return "@" in name


def family_name(cache: Cache, kind: str, run: str, digest: str) -> str:
    """Return what names the streams of a run: its name, or its digest where another run's have that name as well.

    Args:
        cache: the cache that has them, or will have them.
        kind: their kind.
        run: the run's name.
        digest: the run's.
    """
    try:
        records = _records(cache, _of_kind(cache, kind)).values()
    except CacheError:  # a damaged one may be of any run
        return f"{kind}@{digest}"
    shared = any(record.run == run and record.digest != digest for record in records)
    return f"{kind}@{digest if shared else run}"


def open_family(cache: Cache, name: str, digest: str = "") -> Family:
    """Return the family of a name.

    Args:
        cache: the cache.
        name: ``KIND@RUN``; see the module for its other forms.
        digest: the run's, where it is known, so that another run of that name is no matter.

    Raises:
        UnknownNameError: the cache has no such streams.
        CacheError: two runs of that name, several choices of settings, or a record that is damaged.
    """
    what, _, run = name.partition("@")
    of_kind = _of_kind(cache, _kind(cache, what))
    records = _records(cache, of_kind)
    found = [full for full, record in records.items() if _is_of(record, digest or run)]
    if not found:
        runs = sorted({f"{_kind(cache, what)}@{record.run}" for record in records.values()})
        raise UnknownNameError(f"family of streams in the cache {str(cache.path)!r}", name, runs)
    if len({records[full].digest for full in found}) > 1:
        raise CacheError(_of_several(cache, name, {full: records[full] for full in found}))
    members: dict[str, CachedStream] = {}
    for spec in _variant(name, what, [of_kind[full] for full in found]):
        fold = records[spec.name].fold
        if fold in members:
            raise CacheError(
                f"{name!r} has two streams of the fold {fold!r}, {members[fold].name} and {spec.name}, of one run that "
                "was fine-tuned twice. Delete the folder of the one that is not wanted from the cache."
            )
        members[fold] = CachedStream(cache.path / spec.name, spec)
    return Family(name, dict(sorted(members.items())))


def _kind(cache: Cache, what: str) -> str:
    """Return the kind that a kind or a full name means."""
    return what.rpartition("-")[0] if what in list(cache) else what


def _of_kind(cache: Cache, kind: str) -> dict[str, StreamSpec]:
    """Return the streams of a kind by their full names."""
    return {full: read_spec(cache.path / full) for full in cache if full.rpartition("-")[0] == kind}


def _records(cache: Cache, specs: Mapping[str, StreamSpec]) -> dict[str, tuned.Tuned]:
    """Return what the fine-tuned encoders of streams have learnt from, by the streams' full names."""
    found = {full: tuned.of_stream(cache.path / full, spec.checkpoint) for full, spec in specs.items()}
    return {full: record for full, record in found.items() if record is not None}


def _of_several(cache: Cache, name: str, records: Mapping[str, tuned.Tuned]) -> str:
    """Return that a name could be of several runs, with what tells these apart, the one extracted last in front."""
    runs: dict[str, list[str]] = {}
    for full, record in records.items():
        runs.setdefault(record.digest, []).append(full)
    dates = {
        digest: max((cache.path / full / DESCRIPTION).stat().st_mtime for full in names)
        for digest, names in runs.items()
    }
    lines = []
    for digest in sorted(runs, key=lambda digest: (-dates[digest], digest)):
        own = [records[full] for full in runs[digest]]
        learnt = {one for record in own for one in (*record.train, *record.validation)}
        date = datetime.fromtimestamp(dates[digest]).astimezone()
        lines.append(
            f"  {name.partition('@')[0]}@{digest}: extracted {date:%Y-%m-%d %H:%M:%S}, folds "
            f"{listed(sorted({record.fold for record in own}))}, learnt from {len(learnt)} utterances "
            f"({listed(runs[digest])})"
        )
    return (
        f"{name!r} could be of any of {len(runs)} runs of that name, whose folds may differ. Name one by its digest, "
        "which is in the run's config.yaml:\n" + "\n".join(lines)
    )


def _is_of(record: tuned.Tuned, run: str) -> bool:
    return record.run == run or (len(run) >= _FEWEST_DIGITS and record.digest.startswith(run))


def _variant(name: str, what: str, specs: Sequence[StreamSpec]) -> Sequence[StreamSpec]:
    """Return the specs of one choice of settings."""
    variants: dict[bytes, list[StreamSpec]] = {}
    for spec in specs:
        variants.setdefault(canonical_json(_settings(spec)), []).append(spec)
    named = [several for several in variants.values() if any(spec.name == what for spec in several)]
    if len(variants) == 1 or named:
        return named[0] if named else specs
    first, *others = [several[0] for several in variants.values()]
    fold = {spec.name: (spec.checkpoint or {}).get("fold", "") for spec in specs}
    lines = [f"  {first.name} (fold {fold[first.name]})"]
    for spec in others:
        differing = [line for line in spec.differences(first) if not line.startswith("checkpoint.")]
        lines.append(f"  {spec.name} (fold {fold[spec.name]}): {'; '.join(differing) or 'of another checkpoint'}")
    raise CacheError(
        f"{name!r} was extracted with several settings; name one of these in front of the '@', such as "
        f"{first.name}@{name.partition('@')[2]}, and the other folds follow:\n" + "\n".join(lines)
    )


def _settings(spec: StreamSpec) -> dict[str, Any]:
    """Return a spec's identity without what is each fold's own."""
    return {key: value for key, value in spec.identity().items() if key != "checkpoint"}

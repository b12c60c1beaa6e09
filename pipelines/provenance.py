"""What the folds of a run have learnt from, beyond their own training parts, and on which audio.

A run that reads a fine-tuned encoder's features, or begins with another run's weights, keeps their records in
:data:`LEARNT`, fold by fold. So a chain of trainings never forgets: what begins with this run, or is fine-tuned from
its encoder, is held against all that any of them has seen.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from featcache.cache import Cache, CachedStream
from featcache.checkpoints import Checkpoint, resolve
from featcache.errors import CheckpointError, FeatcacheError, MissingExtraError, ScoresError
from featcache.files import canonical_json, parse_json, read_plain, write_json
from featcache.manifest import Manifest
from featcache.tuned import Tuned, tuned_from
from heads.fold_copies import originals
from heads.fold_files import read_folds
from heads.head import Head
from heads.learnt import Audio, Source, audio_form
from heads.runs import read_config

LEARNT = "learnt.json"
"""The file in a run folder."""

LEARNT_SHA256 = "learnt_sha256"
"""Key of ``config.yaml`` that holds that file's digest, so that a lost one is missed."""

_FORMAT = 1
_AGAIN = "Train the run again with --overwrite."


def sources_of(streams: Mapping[str, CachedStream], family_names: Sequence[str] = ()) -> list[Source]:
    """Return what has learnt of the streams that one fold reads.

    Args:
        streams: by the names of the configuration.
        family_names: those of them that name a family.

    Raises:
        CacheError: the record of a fine-tuned encoder is missing or damaged.
    """
    found = []
    for name, stream in streams.items():
        record = stream.tuned
        if record is not None:
            own = f"{stream.spec.kind}@{record.run}"
            hint = "" if name in family_names else f"--stream {own} reads for each fold the encoder of its own"
            found.append(Source(f"the encoder of {stream.name}", record, hint))
    return found


def checkpoints_of(head: Head) -> list[Checkpoint]:
    """Return the checkpoints that a head's settings name, whose models it trains further; none where it names none."""
    found = []
    for name, value in vars(head).items():
        names_one = name in ("checkpoint", "encoder") or name.endswith(("_checkpoint", "_encoder"))
        # A plain name is of weights in a wheel, or of a checkpoint that nobody here has trained.
        if names_one and isinstance(value, str) and ("/" in value or ":" in value or Path(value).is_dir()):
            with suppress(CheckpointError, MissingExtraError):  # the head says so, and what it was to be
                found.append(resolve(value, getattr(head, "revision", None)))
    return found


def sources_of_head(head: Head) -> list[Source]:
    """Return what has learnt of the checkpoints that a head trains further.

    Raises:
        CheckpointError: the record of one is missing or damaged.
    """
    found = [(one.name, one.tuned) for one in checkpoints_of(head)]
    return [Source(f"the checkpoint {name!r} of the head", record) for name, record in found if record is not None]


def digests_of_head(head: Head) -> list[dict[str, str]]:
    """Return the digests of the checkpoints that a head trains further: their paths do not say what lies there."""
    return [
        {key: value for key, value in one.identity().items() if key.endswith("sha256")} for one in checkpoints_of(head)
    ]


def is_random(streams: Iterable[CachedStream], head: Head) -> bool:
    """Return whether something that a head reads or trains further comes from weights that learnt nothing."""
    told = [stream.spec.checkpoint or {} for stream in streams]
    told += [one.identity() for one in checkpoints_of(head)]
    return any("random" in one for one in told)


def all_streams(streams: Sequence[CachedStream], cache: Cache) -> Iterator[CachedStream]:
    """Yield some streams, then the others of the cache that can be read."""
    yield from streams
    known = {stream.name for stream in streams}
    for name in cache:
        if name not in known:
            try:
                stream = cache[name]
            except FeatcacheError:  # a damaged one that nobody asked for
                continue
            yield stream


def write_learnt(folder: Path, sources: Mapping[str, Sequence[Source]]) -> dict[str, str]:
    """Write what the folds of a run began with; no file where nothing had learnt before.

    Returns:
        What ``config.yaml`` is to say of it.
    """
    told = {fold: several for fold, several in sources.items() if several}
    if not told:
        (folder / LEARNT).unlink(missing_ok=True)
        return {}
    rows = {
        fold: [{"name": one.name, "record": one.tuned.as_json()} for one in several] for fold, several in told.items()
    }
    values = {"format": _FORMAT, "folds": rows}
    write_json(folder / LEARNT, values)
    return {LEARNT_SHA256: _sha256(values)}


def read_learnt(folder: Path) -> dict[str, list[Source]]:
    """Return by fold what a run began with; nothing where it began with nothing.

    Raises:
        ScoresError: the file is damaged, or is missing or another than ``config.yaml`` says.
    """
    path = folder / LEARNT
    found = read_object(path)
    told = (read_config(folder / "config.yaml") or {}).get(LEARNT_SHA256)
    if told is not None and (found is None or told != _sha256(found)):
        raise ScoresError(
            f"{str(path)!r}, which says what the run's encoders and first weights have learnt from, "
            f"{'is missing' if found is None else 'was changed'}: nobody could tell on what the run may be tested. "
            "Copy it from where the run came from, or train the run again with --overwrite."
        )
    values = found or {}
    try:
        return {
            fold: [Source(str(row["name"]), tuned_from(row["record"])) for row in rows]
            for fold, rows in values.get("folds", {}).items()
        }
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ScoresError(f"{str(path)!r} is damaged ({error}). {_AGAIN}") from None


def audio_of_run(folder: Path) -> Audio:
    """Return digests of the audio that a run read; none where it read none.

    Raises:
        ScoresError: a file of it is damaged.
    """
    specs = read_object(folder / "streams.json") or {}
    inputs = read_object(folder / "inputs.json") or {}
    try:
        known = {**specs.get("streams", {})}
        for name, by_fold in specs.get("fold_streams", {}).items():
            known[name] = next(iter(by_fold.values()))
        name = next((name for name, spec in known.items() if spec["input"] == "audio"), None)
        if name is None:
            return Audio()
        digests = {str(one): str(of_one[name]) for one, of_one in inputs.items() if name in of_one}
        return Audio(digests, audio_form(known[name]["sample_rate_hz"]))
    except (AttributeError, KeyError, StopIteration, TypeError) as error:
        raise ScoresError(f"The files of the run {str(folder)!r} do not fit together ({error!r}). {_AGAIN}") from None


def records_of_run(folder: Path, audio: Audio | None = None) -> dict[str, Tuned]:
    """Return for each fold of a run what its weights have learnt from, all that they began with included.

    Args:
        folder: the run folder.
        audio: digests of its utterances' audio; None takes those of the streams that it read.

    Raises:
        ScoresError: it is no trained run, or a file of it is damaged.
        ProtocolError: its ``folds.json`` is damaged.
    """
    record = read_config(folder / "config.yaml") if folder.is_dir() else None
    if record is None or not (folder / "folds.json").is_file() or not isinstance(record.get("digest"), str):
        raise ScoresError(
            f"{str(folder)!r} is no trained run: it does not say what it was trained on (config.yaml, folds.json). "
            "Name the folder of a run that train-heads or finetune wrote."
        )
    known = audio_of_run(folder) if audio is None else audio
    manifest = list(Manifest.read(folder / "manifest.jsonl")) if (folder / "manifest.jsonl").is_file() else []
    copies = originals(manifest)
    speakers = {one.id: one.speaker for one in manifest if one.speaker}
    before = read_learnt(folder)
    found: dict[str, Tuned] = {}
    for fold in read_folds(folder / "folds.json"):
        ids = sorted({*fold.train, *fold.validation})
        digests = {name: known.digests[name] for name in ids if name in known.digests}
        found[fold.name] = Tuned(
            run=folder.resolve().name,
            digest=str(record["digest"]),
            fold=fold.name,
            train=fold.train,
            validation=fold.validation,
            audio=digests,
            audio_form=known.form if digests else "",
            copies={name: copies[name] for name in ids if name in copies},
            before=_distinct(source.tuned for source in before.get(fold.name, ())),
            speakers={name: speakers[name] for name in ids if name in speakers},
        )
    return found


def _distinct(records: Iterator[Tuned]) -> tuple[Tuned, ...]:
    """Return records and those before them, flat and each once."""
    found = {one.sha256: one for record in records for one in record.everything()}
    return tuple(
        Tuned(**{**vars(one), "before": ()}) if one.before else one for _, one in sorted(found.items())
    )  # fmt: skip


def _sha256(values: Mapping[str, Any]) -> str:
    """Return the digest of plain values; an empty one of what nobody could have written."""
    with suppress(ValueError, RecursionError):
        return hashlib.sha256(canonical_json(values)).hexdigest()
    return ""


def read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file of a run; None where there is no such file.

    Raises:
        ScoresError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        values = parse_json(read_plain(path).decode())
        if not isinstance(values, dict):
            raise ValueError(f"an object was expected, got {type(values).__name__}")
    except (OSError, ValueError) as error:
        raise ScoresError(f"{str(path)!r} is damaged ({error}). {_AGAIN}") from None
    return values

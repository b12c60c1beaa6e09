"""What a fine-tuned checkpoint has learnt from, so that nothing is tested on what its own features have seen.

``featcache finetune`` leaves a checkpoint for each fold, ``RUN/encoders/FOLD/``, with its provenance beside the
weights in :data:`PROVENANCE`: run, fold, and the ids of all utterances that weights were fitted or chosen on. It
becomes part of the checkpoint's identity, extraction copies it into the stream's folder as :data:`RECORD`, and every
training that reads the stream holds it against its folds. A file that is missing or was changed is an error, never an
encoder that has learnt nothing: ``config.json`` and the stream's spec keep its digest.

Ids may be renamed and may coincide, so digests of the audio come along where they are known. That two utterances are
the same is shown by equal digests. That they differ is shown by differing ones only where both were taken in the same
form: a digest covers the resampler where one was needed, so a recording has one for streams that run at its own rate
and another for all others.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from featcache.errors import CacheError, CheckpointError
from featcache.files import canonical_json, is_text, parse_json, quoted, read_plain, write_json

FORMAT = 1

PROVENANCE = "featcache.json"
"""The file in the folder of a fine-tuned checkpoint."""

RECORD = "tuned.json"
"""The file in the folder of a stream that such a checkpoint made."""

FLAG = "featcache_tuned"
"""Key of ``config.json`` that holds the record's digest, so that a lost record is missed."""

SHA256 = "tuned_sha256"
"""Key of a checkpoint's identity that holds the record's digest."""

_LONGEST_NAME = 120


@dataclass(frozen=True)
class Tuned:
    """What one fold of a training has learnt from.

    Attributes:
        run: name of the run's folder when it was made.
        digest: the run's digest; tells two runs of one name apart.
        fold: the fold's name.
        train: ids that weights were fitted on.
        validation: ids that weights or settings were chosen on.
        audio: id to the digest of its audio, for as many as are known.
        audio_form: what these digests cover beside the samples; those of one form can be told apart.
        copies: id of each augmented copy among them to that of its original.
        before: records of what it began with: encoders that were fine-tuned before, runs whose weights it took.
        speakers: id to speaker, for as many as are known.
    """

    run: str
    digest: str
    fold: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    audio: Mapping[str, str] = field(default_factory=dict)
    audio_form: str = ""
    copies: Mapping[str, str] = field(default_factory=dict)
    before: tuple["Tuned", ...] = ()
    speakers: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return plain values, which :func:`tuned_from` reads."""
        return {
            "format": FORMAT,
            "run": self.run,
            "digest": self.digest,
            "fold": self.fold,
            "train": list(self.train),
            "validation": list(self.validation),
            "audio": dict(self.audio),
            "audio_form": self.audio_form,
            "version_of": dict(self.copies),
            "before": [one.as_json() for one in self.before],
            **({"speakers": dict(self.speakers)} if self.speakers else {}),
        }

    @property
    def sha256(self) -> str:
        """SHA-256 of the record, in hexadecimal."""
        return hashlib.sha256(canonical_json(self.as_json())).hexdigest()

    @property
    def lineage(self) -> str:
        """SHA-256 of what was learnt from, whatever the run is called and as far as its audio is known."""
        parts = [list(self.train), list(self.validation), sorted(one.lineage for one in self.before)]
        return hashlib.sha256(canonical_json([self.digest, self.fold, *parts])).hexdigest()

    def everything(self) -> list["Tuned"]:
        """Return this record and those of all that came before it, each once."""
        found = {self.sha256: self}
        for one in self.before:
            found |= {each.sha256: each for each in one.everything()}
        return list(found.values())

    def identity(self) -> dict[str, str]:
        """Return what the identity of a checkpoint says of it."""
        return {"tuned": self.run, "fold": self.fold, SHA256: self.sha256}


def tuned_from(values: Any) -> Tuned:
    """Return a record from plain values.

    Raises:
        ValueError: they are not those of a record.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"an object was expected, got {type(values).__name__}")
    if not isinstance(values.get("format"), int) or values["format"] > FORMAT:
        raise ValueError(f"it has format {quoted(values.get('format'))}; this featcache reads up to {FORMAT}")
    run, digest, fold, form = (values.get(name, "") for name in ("run", "digest", "fold", "audio_form"))
    train, validation, before = (values.get(name) or [] for name in ("train", "validation", "before"))
    audio, copies, speakers = (values.get(name, {}) for name in ("audio", "version_of", "speakers"))
    fitting = all(map(_is_text, (run, digest, fold, form))) and all(map(_are_texts, (train, validation)))
    if not fitting or not all(map(_is_table, (audio, copies, speakers))) or not isinstance(before, list):
        raise ValueError("it does not say run, digest and fold, and the ids of train and validation")
    earlier = tuple(map(tuned_from, before))
    return Tuned(run, digest, fold, tuple(train), tuple(validation), audio, form, copies, earlier, speakers)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and is_text(value)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_table(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, [*value, *value.values()]))


def read_tuned(path: Path) -> Tuned:
    """Read a record.

    Raises:
        OSError: there is no such file.
        ValueError: it is damaged.
    """
    try:
        return tuned_from(parse_json(read_plain(path).decode()))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_tuned(path: Path, tuned: Tuned, aside: Path | None = None) -> None:
    """Write a record, atomically; `aside` is the folder of the temporary file."""
    write_json(path, tuned.as_json(), aside)


def of_checkpoint(folder: Path, config: Mapping[str, Any]) -> Tuned | None:
    """Return the provenance of a checkpoint; None where it was not fine-tuned by this project.

    Args:
        folder: where its files lie.
        config: what its ``config.json`` says.

    Raises:
        CheckpointError: it was fine-tuned, and its provenance is missing, damaged, or another checkpoint's.
    """
    path, told = folder / PROVENANCE, config.get(FLAG)
    if told is None and not path.exists():
        return None
    try:
        tuned = read_tuned(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"The checkpoint {str(folder)!r} was fine-tuned by featcache, and what it has learnt from is lost: there "
            f"is no {PROVENANCE} in it, so nobody could tell on what it may be tested. Copy the file from where the "
            "checkpoint came from, or fine-tune again."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{str(path)!r} is damaged ({error}), so nobody could tell on what the checkpoint may be tested. Copy the "
            "file from where the checkpoint came from, or fine-tune again."
        ) from None
    if told is not None and told != tuned.sha256:
        raise CheckpointError(
            f"{str(path)!r} is not what 'config.json' beside it was written with: it was changed, or is another "
            "checkpoint's. Copy both from where the checkpoint came from, or fine-tune again."
        )
    return tuned


def of_stream(folder: Path, checkpoint: Mapping[str, str] | None) -> Tuned | None:
    """Return the provenance of a cached stream; None where no fine-tuned checkpoint made it.

    Args:
        folder: the stream's.
        checkpoint: what its spec says of the checkpoint.

    Raises:
        CacheError: one did, and the record is missing, damaged, or another one's.
    """
    wanted = (checkpoint or {}).get(SHA256)
    if wanted is None:
        return None
    path = folder / RECORD
    try:
        tuned = read_tuned(path)
        if tuned.sha256 != wanted:
            raise ValueError("it was changed after it was written")
    except (OSError, ValueError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise CacheError(
            f"{str(path)!r} says what the encoder of {folder.name} has learnt from, and cannot be used ({reason}); "
            "without it nobody could tell on what it may be tested. Delete that file and run the same extract again: "
            "it is written anew and no features are lost."
        ) from None
    return tuned


def fold_checkpoints(folder: Path) -> dict[str, Path]:
    """Return the checkpoints of a folder of them by fold, in the order of their names; none where it is none.

    Args:
        folder: ``RUN/encoders``, or the run folder itself.

    Raises:
        CheckpointError: a record is damaged, or two checkpoints are of one fold.
    """
    if (folder / "config.json").is_file():
        return {}
    found: dict[str, Path] = {}
    for place in (folder, folder / "encoders"):
        for path in sorted(place.glob(f"*/{PROVENANCE}")):
            tuned = None if path.parent.name.startswith(".") else of_checkpoint(path.parent, {})
            if tuned is not None and tuned.fold in found:
                raise CheckpointError(
                    f"{str(found[tuned.fold])!r} and {str(path.parent)!r} are both of the fold {tuned.fold!r}. Move "
                    "the one that is not wanted out of that folder."
                )
            found |= {} if tuned is None else {tuned.fold: path.parent}
        if found:
            break
    return found


def folder_name(fold: str) -> str:
    """Return the name of a fold's folder: the fold's own, with what no file system takes escaped."""
    name = quote(fold, safe="")
    name = f"%2E{name[1:]}" if name.startswith(".") else name
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(fold.encode()).hexdigest()[:8]}"
    return name

"""The manifest: which utterances there are, where their audio lies, and what is known of each.

A manifest is JSON Lines, one utterance a line. ``id`` is unique and plain text, and is never used
as a path. ``audio`` is a path, relative to the manifest's folder or absolute; ``start_s`` and
``end_s`` cut a span out of it. ``text``, ``label``, ``speaker`` and ``session`` are optional
strings. Every other column is kept as it is.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from featcache.errors import ManifestError, UnknownNameError
from featcache.files import write_atomically

_STRINGS = ("audio", "text", "label", "speaker", "session")
_SPAN = ("start_s", "end_s")
COLUMNS = ("id", *_STRINGS, *_SPAN)
"""The columns with a meaning of their own; all others are extra."""


@dataclass(frozen=True)
class Utterance:
    """One utterance.

    Attributes:
        id: unique name in its manifest.
        audio: path of its recording, or None for text alone.
        text: what is said, or None.
        label: emotion class, or None.
        speaker: speaker name, or None.
        session: recording session, or None.
        start_s: where the utterance starts in the recording, in seconds; None is the beginning.
        end_s: where it ends, in seconds; None is the end.
        extra: all other columns.
    """

    id: str
    audio: str | None = None
    text: str | None = None
    label: str | None = None
    speaker: str | None = None
    session: str | None = None
    start_s: float | None = None
    end_s: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def column(self, name: str) -> Any:
        """Return the value of any column; None where this utterance has none."""
        return getattr(self, name) if name in COLUMNS else self.extra.get(name)

    def as_row(self) -> dict[str, Any]:
        """Return the utterance as one JSON object, without the columns that are None."""
        row = {name: getattr(self, name) for name in COLUMNS if getattr(self, name) is not None}
        return {**row, **self.extra}


def utterance_from_row(row: Mapping[str, Any]) -> Utterance:
    """Return an utterance from one JSON object.

    Raises:
        ManifestError: a missing id, a column of the wrong type, or an impossible span.
    """
    name = row.get("id")
    if not isinstance(name, str) or not name.strip():
        raise ManifestError(f"an utterance needs a non-empty text 'id', got {name!r}")
    if "\0" in name:
        raise ManifestError(f"the id {name!r} holds a NUL character, which HDF5 cannot store")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise ManifestError(f"the id {name!r} is not valid text") from None
    values: dict[str, Any] = {"id": name}
    for column in _STRINGS:
        value = row.get(column)
        if value is not None and not isinstance(value, str):
            raise ManifestError(f"{name!r}: column {column!r} must be text, got {value!r}")
        values[column] = value
    for column in _SPAN:
        value = row.get(column)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0
        ):
            raise ManifestError(f"{name!r}: column {column!r} must be seconds, 0 or more, got {value!r}")
        values[column] = None if value is None else float(value)
    if values["end_s"] is not None and values["end_s"] <= (values["start_s"] or 0.0):
        raise ManifestError(f"{name!r}: ends at {values['end_s']} s, not after its start {values['start_s'] or 0.0} s")
    extra = {key: value for key, value in row.items() if key not in COLUMNS}
    return Utterance(**values, extra=extra)


class Manifest(Sequence[Utterance]):
    """An ordered, frozen collection of utterances with unique ids.

    Args:
        utterances: the utterances.
        folder: the folder that relative audio paths start from.
        root: when given, no audio path may lead outside this folder.

    Raises:
        ManifestError: an id occurs twice, or an audio path leaves `root`.
    """

    def __init__(
        self, utterances: Iterable[Utterance], folder: str | Path = ".", root: str | Path | None = None
    ) -> None:
        self._utterances = tuple(utterances)
        self.folder = Path(folder)
        self.root = None if root is None else Path(root)
        self._by_id = {utterance.id: utterance for utterance in self._utterances}
        if len(self._by_id) != len(self._utterances):
            counts = Counter(utterance.id for utterance in self._utterances)
            twice = [name for name, count in counts.items() if count > 1]
            raise ManifestError(
                f"{len(twice)} ids occur more than once, such as {twice[0]!r}. Every utterance needs an id of its own."
            )
        if self.root is not None:
            for utterance in self._utterances:
                if utterance.audio is not None:
                    self._check_inside(utterance, self.root)

    def _check_inside(self, utterance: Utterance, root: Path) -> None:
        resolved = Path(os.path.realpath(self.audio_path(utterance)))
        if not resolved.is_relative_to(Path(os.path.realpath(root))):
            raise ManifestError(
                f"{utterance.id!r}: the audio path {utterance.audio!r} leads outside the root {str(root)!r}. "
                "Correct the path, or leave the root out."
            )

    @classmethod
    def read(cls, path: str | Path, root: str | Path | None = None) -> "Manifest":
        """Read a JSON Lines manifest.

        Args:
            path: the file.
            root: when given, no audio path may lead outside this folder.

        Raises:
            ManifestError: the file is missing or empty, or rows are malformed; up to ten are listed.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise ManifestError(
                f"There is no manifest {str(path)!r}. Make one with: featcache corpus NAME ROOT --out {path}"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(f"The manifest {str(path)!r} cannot be read: {error}.") from None
        utterances: list[Utterance] = []
        problems: list[str] = []
        # Not splitlines(): JSON text may hold U+2028 and other characters that it splits at.
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ManifestError(f"expected a JSON object, got {type(row).__name__}")
                utterances.append(utterance_from_row(row))
            except (ManifestError, ValueError, RecursionError) as error:
                problems.append(f"line {number}: {error}")
        if problems:
            shown = "\n  ".join(problems[:10]) + (f"\n  and {len(problems) - 10} more" if len(problems) > 10 else "")
            raise ManifestError(f"The manifest {str(path)!r} has {len(problems)} bad rows:\n  {shown}")
        if not utterances:
            raise ManifestError(f"The manifest {str(path)!r} lists no utterance.")
        return cls(utterances, folder=path.parent, root=root)

    def write(self, path: str | Path) -> None:
        """Write JSON Lines, atomically; audio paths are kept valid from the new place.

        Audio below the manifest's folder is written relative to it, so that both can move together.
        """
        folder = Path(path).parent
        lines = []
        for utterance in self._utterances:
            row = utterance.as_row()
            if utterance.audio is not None:
                row["audio"] = _portable(self.audio_path(utterance), folder)
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        write_atomically(Path(path), "".join(lines).encode("utf-8"))

    def audio_path(self, utterance: Utterance) -> Path:
        """Return where an utterance's recording lies.

        Raises:
            ManifestError: the utterance has no audio.
        """
        if utterance.audio is None:
            raise ManifestError(f"{utterance.id!r} has no audio. Streams of audio need the column 'audio'.")
        return self.folder / utterance.audio

    def select(self, ids: Iterable[str]) -> "Manifest":
        """Return the manifest of these ids, in the order given.

        Raises:
            UnknownNameError: an id that this manifest does not have.
        """
        return Manifest([self.utterance(name) for name in ids], self.folder, self.root)

    def utterance(self, name: str) -> Utterance:
        """Return one utterance by its id.

        Raises:
            UnknownNameError: an id that this manifest does not have.
        """
        if name not in self._by_id:
            raise UnknownNameError("utterance", name, self._by_id)
        return self._by_id[name]

    @property
    def ids(self) -> list[str]:
        """The ids, in order."""
        return [utterance.id for utterance in self._utterances]

    def __getitem__(self, index: Any) -> Any:
        """Return the utterance at a position, or a tuple of them for a slice."""
        return self._utterances[index]

    def __len__(self) -> int:
        return len(self._utterances)

    def __iter__(self) -> Iterator[Utterance]:
        return iter(self._utterances)

    def __contains__(self, name: object) -> bool:
        return name in self._by_id if isinstance(name, str) else name in self._utterances

    def __repr__(self) -> str:
        return f"Manifest({len(self)} utterances, folder={str(self.folder)!r})"


def _portable(audio: Path, folder: Path) -> str:
    absolute, base = Path(os.path.abspath(audio)), Path(os.path.abspath(folder))
    inside: PurePath = absolute.relative_to(base) if absolute.is_relative_to(base) else absolute
    return inside.as_posix()

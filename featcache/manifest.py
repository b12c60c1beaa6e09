"""The manifest: which utterances there are, where their audio lies, and what is known of each.

A manifest is JSON Lines, one utterance a line. ``id`` is unique and plain text, and is never used
as a path. ``audio`` is a path, relative to the manifest's folder or absolute; ``start_s`` and
``end_s`` cut a span out of it. ``text``, ``label``, ``speaker`` and ``session`` are optional
strings. Every other column is kept as it is.

Whatever is not plain text, numbers and lists of them, nested no deeper than a hand can follow, is refused here, by
line, so that nothing behind the manifest meets it.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from featcache.errors import ManifestError, UnknownNameError
from featcache.files import is_text, parse_json, quoted, read_plain, write_atomically

_STRINGS = ("audio", "text", "label", "speaker", "session")
_SPAN = ("start_s", "end_s")
COLUMNS = ("id", *_STRINGS, *_SPAN)
"""The columns with a meaning of their own; all others are extra."""

_DEEPEST = 32
_LONGEST_S = 1e9  # thirty years


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
        raise ManifestError(f"an utterance needs a non-empty text 'id', got {quoted(name)}")
    shown = quoted(name)
    if "\0" in name:
        raise ManifestError(f"the id {shown} holds a NUL character, which HDF5 cannot store")
    if not is_text(name):
        raise ManifestError(f"the id {shown} is not valid text")
    values: dict[str, Any] = {"id": name}
    for column in _STRINGS:
        value = row.get(column)
        if value is not None and not isinstance(value, str):
            raise ManifestError(f"{shown}: column {column!r} must be text, got {quoted(value)}")
        values[column] = value
    values["audio"] = values["audio"] or None
    for column in _SPAN:
        value = row.get(column)
        # Compared before anything is computed: a whole number may be larger than a float can be.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= _LONGEST_S):
            raise ManifestError(f"{shown}: column {column!r} must be seconds, 0 or more, got {quoted(value)}")
        values[column] = None if value is None else float(value)
    if values["end_s"] is not None and values["end_s"] <= (values["start_s"] or 0.0):
        raise ManifestError(f"{shown}: ends at {values['end_s']} s, not after its start {values['start_s'] or 0.0} s")
    for column, value in row.items():
        fault = _fault(value) if is_text(column) else "has a name that is not valid text"
        if fault:
            raise ManifestError(f"{shown}: column {quoted(column)} {fault}")
    extra = {key: value for key, value in row.items() if key not in COLUMNS}
    return Utterance(**values, extra=extra)


def _fault(value: Any, depth: int = 0) -> str:
    """Return why a JSON value cannot be kept; nothing where it can."""
    if isinstance(value, str):
        return "" if is_text(value) else "holds what is not valid text"
    if not isinstance(value, list | dict):
        return ""
    if depth == _DEEPEST:
        return f"is nested deeper than {_DEEPEST} lists"
    inside = [*value, *value.values()] if isinstance(value, dict) else value
    return next(filter(None, (_fault(item, depth + 1) for item in inside)), "")


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
                f"{len(twice)} ids occur more than once, such as {quoted(twice[0])}. Every utterance needs an id of "
                "its own."
            )
        if self.root is not None:
            for utterance in self._utterances:
                if utterance.audio is not None:
                    self._check_inside(utterance, self.root)

    def _check_inside(self, utterance: Utterance, root: Path) -> None:
        try:
            resolved = Path(os.path.realpath(self.audio_path(utterance)))
        except ValueError as error:  # a NUL
            raise ManifestError(
                f"{quoted(utterance.id)}: the audio path {quoted(utterance.audio)} is none ({error}). Correct it."
            ) from None
        if not resolved.is_relative_to(Path(os.path.realpath(root))):
            raise ManifestError(
                f"{quoted(utterance.id)}: the audio path {quoted(utterance.audio)} leads outside the root "
                f"{str(root)!r}. Correct the path, or leave the root out."
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
            text = read_plain(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
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
                row = parse_json(line)
                if not isinstance(row, dict):
                    raise ManifestError(f"expected a JSON object, got {type(row).__name__}")
                utterances.append(utterance_from_row(row))
            except ValueError as error:  # a ManifestError is one
                problems.append(f"line {number}: {error}.")
        if problems:
            shown = "\n  ".join(problems[:10]) + (f"\n  and {len(problems) - 10} more." if len(problems) > 10 else "")
            raise ManifestError(f"The manifest {str(path)!r} has {len(problems)} bad rows:\n  {shown}")
        if not utterances:
            raise ManifestError(f"The manifest {str(path)!r} lists no utterance. Is it the right file?")
        try:
            return cls(utterances, folder=path.parent, root=root)
        except ManifestError as error:
            raise ManifestError(f"The manifest {str(path)!r} cannot be used. {error}") from None

    def write(self, path: str | Path) -> None:
        """Write JSON Lines, atomically; audio paths are kept valid from the new place.

        Audio below the manifest's folder is written relative to it, so that both can move together.
        """
        folder = Path(path).parent
        lines = []
        for utterance in self._utterances:
            row = utterance.as_row()
            if utterance.audio is not None:
                row["audio"] = portable(self.audio_path(utterance), folder)
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        write_atomically(Path(path), "".join(lines).encode("utf-8"))

    def audio_path(self, utterance: Utterance) -> Path:
        """Return where an utterance's recording lies.

        Raises:
            ManifestError: the utterance has no audio.
        """
        if utterance.audio is None:
            raise ManifestError(f"{quoted(utterance.id)} has no audio. Streams of audio need the column 'audio'.")
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


def portable(audio: Path, folder: Path) -> str:
    """Return the path of a recording as a file in another folder names it: relative where it lies below, else absolute.

    Args:
        audio: the recording.
        folder: the other folder.
    """
    absolute, base = Path(os.path.abspath(audio)), Path(os.path.abspath(folder))
    if ".." in audio.parts and "\0" not in str(audio) and os.path.realpath(absolute) != os.path.realpath(audio):
        # ".." behind a link leads to where the link's target lies, which dropping both would miss.
        absolute = Path(os.path.realpath(audio))
    inside: PurePath = absolute.relative_to(base) if absolute.is_relative_to(base) else absolute
    return inside.as_posix()

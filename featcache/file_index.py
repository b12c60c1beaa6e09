"""A folder of files searched once, and which of them belongs to which utterance; see :mod:`featcache.alignment_files`.

Ids are compared with names of files that were found, and never become paths.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from featcache.errors import ConfigError, StreamError
from featcache.files import is_text
from featcache.manifest import Manifest, Utterance


class Match(NamedTuple):
    """A file that belongs to an utterance.

    Attributes:
        path: the file.
        by_id: whether it is named after the utterance's id.
        by_recording: whether it is named after the utterance's recording.
        closeness: how much speaks for it; the larger the better.
    """

    path: Path
    by_id: bool
    by_recording: bool
    closeness: tuple[int, ...] = ()


class FileIndex:
    """The files of a folder, at any depth, by name.

    Links to folders are followed, each folder once. Hidden files, such as the ``._*`` of macOS, are left out.

    Args:
        folder: the folder.
        endings: how names of wanted files end; what stands before is the file's stem.

    Raises:
        ConfigError: a folder in it cannot be read.
    """

    def __init__(self, folder: Path, endings: Sequence[str]) -> None:
        self.folder = folder
        self.endings = tuple(endings)
        self.paths: list[Path] = []
        self._wanted: set[Path] = set()
        self._by_stem: dict[str, list[tuple[tuple[str, ...], Path]]] = defaultdict(list)
        visited: set[tuple[int, int]] = set()
        for place, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in visited:
                folders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            folders[:] = sorted(name for name in folders if is_text(name))
            for name in sorted(name for name in names if not name.startswith(".") and is_text(name)):
                self._add(Path(place) / name)

    def _add(self, path: Path) -> None:
        self.paths.append(path)
        folders = tuple(_normal(part) for part in path.parent.relative_to(self.folder).parts)
        for stem in _stems(path.name, self.endings):
            self._wanted.add(path)
            self._by_stem[_normal(stem)].append(((*folders, _normal(stem)), path))

    @property
    def num_files(self) -> int:
        """How many files have one of the endings."""
        return len(self._wanted)

    def match(self, utterance: Utterance) -> Match:
        """Return the file of an utterance.

        Raises:
            StreamError: none fits, or several that cannot be told apart.
        """
        named, recorded = _parts(utterance.id), _recording(utterance)
        found = []
        for parts, path in self._by_stem.get(named[-1], []) if named else []:
            shared = _shared(parts, named)
            if shared == min(len(parts), len(named)):
                closeness = (1, shared, self._is_speakers(parts, utterance), _shared(parts, recorded))
                found.append(Match(path, True, parts[-1:] == recorded[-1:], closeness))
        if not found and recorded:
            for parts, path in self._by_stem.get(recorded[-1], []):
                closeness = (0, 0, self._is_speakers(parts, utterance), _shared(parts, recorded))
                found.append(Match(path, False, True, closeness))
        if not found:
            raise StreamError(self._missing(utterance, recorded))
        best = [match for match in found if match.closeness == max(other.closeness for other in found)]
        if len({os.path.realpath(match.path) for match in best}) > 1:
            first, second = sorted(str(match.path) for match in best)[:2]
            raise StreamError(
                f"two files may be its alignment: {first!r} and {second!r}. Keep one, or put them into folders named "
                "after speakers, or use ids with the folder's name."
            )
        return best[0]

    def _is_speakers(self, parts: tuple[str, ...], utterance: Utterance) -> int:
        return int(utterance.speaker is not None and _normal(utterance.speaker) in parts[:-1])

    def _missing(self, utterance: Utterance, recorded: tuple[str, ...]) -> str:
        names = dict.fromkeys([utterance.id, *recorded[-1:]])
        return (
            f"no file {' or '.join(repr(name[:80]) for name in names)} with the ending {' or '.join(self.endings)} is "
            f"below {str(self.folder)!r}, where {self.num_files} such files are."
        )


class Assigned:
    """The file of each utterance of a manifest, from an index; none of them goes to two utterances.

    Where two utterances find the same file (``spk1/01`` has none, so that ``spk2/01.TextGrid`` is the only ``01``), it
    belongs to the one that it fits better. Only the spans of one recording share the recording's file. A file named
    after the recording and after an id as well is the recording's where `times_from` says so, or where that utterance
    is the whole recording.

    Args:
        index: files that were found.
        manifest: the utterances.
        times_from: what the files' times count from, as :class:`featcache.alignment_files.FileAligner` has it.
    """

    def __init__(
        self,
        index: FileIndex,
        manifest: Manifest,
        times_from: Literal["name", "utterance", "recording"] = "name",
    ) -> None:
        self._index = index
        self._times_from = times_from
        self._outcomes: dict[str, Match | StreamError] = {}
        claims: dict[str, list[tuple[Utterance, Match]]] = defaultdict(list)
        for utterance in manifest:
            try:
                match = index.match(utterance)
            except StreamError as error:
                self._outcomes[utterance.id] = error
            else:
                self._outcomes[utterance.id] = match
                claims[os.path.realpath(match.path)].append((utterance, match))
        for rivals in claims.values():
            self._decide(rivals)

    def _decide(self, rivals: list[tuple[Utterance, Match]]) -> None:
        owners = [self._owner(*rival) for rival in rivals]
        best = max(match.closeness for _, match in rivals)
        winners = {owner for owner, (_, match) in zip(owners, rivals, strict=True) if match.closeness == best}
        for owner, (utterance, match) in zip(owners, rivals, strict=True):
            if winners == {owner}:
                continue
            # Of those that it fits as well, one that gets it, if any does.
            others = [rival for rival, its in zip(rivals, owners, strict=True) if its != owner]
            other, its = max(others, key=lambda rival: rival[1].closeness)
            remedy = "Name files after ids, or put them into folders named after speakers."
            if match.by_recording and its.by_id and its.by_recording and other.audio == utterance.audio:
                remedy = "If its times count from the recording's start, set times_from=recording."
            self._outcomes[utterance.id] = StreamError(
                f"the only file that fits, {str(match.path)!r}, fits {other.id[:80]!r} as well"
                f"{'' if owner in winners else ' and better'}. {remedy}"
            )

    def _owner(self, utterance: Utterance, match: Match) -> tuple[str, str | None]:
        """Return whose file it is: a file named after the recording serves all its spans, one named after an id one."""
        is_whole = utterance.start_s is None and utterance.end_s is None
        shared = self._times_from == "recording" or (self._times_from == "name" and is_whole)
        if match.by_recording and (shared or not match.by_id):
            return "recording", utterance.audio
        return "id", utterance.id

    def match(self, utterance: Utterance) -> Match:
        """Return the file of an utterance.

        Raises:
            StreamError: none fits, several that cannot be told apart, or one that belongs to another utterance.
        """
        outcome = self._outcomes.get(utterance.id) or self._index.match(utterance)
        if isinstance(outcome, StreamError):
            raise outcome
        return outcome


class Named:
    """The files that a column of the manifest names.

    Args:
        manifest: the utterances.
        base: folder that the paths start from, and that they must not leave.
        column: the column.
        endings: how names of files end after the id.
    """

    def __init__(self, manifest: Manifest, base: Path, column: str, endings: Sequence[str]) -> None:
        self._base = base
        self._root = manifest.root
        self._column = column
        self._endings = tuple(endings)

    def match(self, utterance: Utterance) -> Match:
        """Return the file of an utterance.

        Raises:
            StreamError: its column is empty, or leads out of the folder.
        """
        value = utterance.column(self._column)
        if not isinstance(value, str) or not value.strip():
            raise StreamError(
                f"its column {self._column!r} holds {str(value)[:80]!r}, where the path of its alignment was expected."
            )
        path = Path(os.path.normpath(self._base / value))
        if "\0" in value or not is_text(value) or not self._is_inside(path):
            raise StreamError(
                f"its column {self._column!r} holds {value[:200]!r}, which leads out of {str(self._base)!r}. Correct "
                "it, or set 'folder' to the folder that the paths start from."
            )
        stems = {_normal(stem) for stem in (path.stem, *_stems(path.name, self._endings))}
        recording = _recording(utterance)
        named = _parts(utterance.id)
        return Match(path, bool(named) and named[-1] in stems, bool(recording) and recording[-1] in stems)

    def _is_inside(self, path: Path) -> bool:
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self._base)):
            return False
        return self._root is None or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._root))


def _recording(utterance: Utterance) -> tuple[str, ...]:
    """Return the components of the audio's path, without its ending; none where there is no audio."""
    parts = _parts(utterance.audio or "")
    return (*parts[:-1], parts[-1].rpartition(".")[0] or parts[-1]) if parts else ()


def _stems(name: str, endings: Sequence[str]) -> list[str]:
    fitting = [ending for ending in endings if name.lower().endswith(ending.lower()) and len(name) > len(ending)]
    return [name[: len(name) - len(ending)] for ending in fitting]


def _parts(name: str) -> tuple[str, ...]:
    return tuple(_normal(part) for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def _normal(name: str) -> str:
    # macOS gives names of files in decomposed form; manifests are written in composed form.
    return unicodedata.normalize("NFC", name)


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for left, right in zip(reversed(one), reversed(other), strict=False):
        if left != right:
            break
        count += 1
    return count


def _unreadable(error: OSError) -> None:
    raise ConfigError(f"The folder {error.filename!r} cannot be searched: {error.strerror}. Check its permissions.")

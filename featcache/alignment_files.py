"""Alignments that were made elsewhere: which file belongs to which utterance, and from where its times count.

What all importers (:mod:`featcache.aligners`) share. A file is found in one of two ways:

- ``folder`` is searched once, at any depth. A file belongs to an utterance whose *id* it is named after. An id with
  slashes, ``spk1/a01``, fits ``spk1/a01.TextGrid`` and not ``spk2/a01.TextGrid``: whole path components are compared,
  from the last one forward. Where nothing is named after the id, the name of the *recording* counts. Of several that
  fit, the one in the speaker's own folder is taken, else the one whose folders agree most with the recording's.
- ``column`` names a column of the manifest that holds the file's path.

Times count from the utterance's start in a file named after the id, and from the recording's start in a file named
after the recording. The difference matters only to an utterance that is a span of a longer recording: intervals of the
recording are cut to the span (what crosses its border is clipped there) and shifted. Where both names are the same, the
setting ``times_from`` has to say it.

What ends past its audio by no more than ``tolerance_s`` is cut to the audio's end. Every error names the file.
"""

import hashlib
import math
import os
import stat
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from featcache.aligner import Aligner, Identity, Session
from featcache.alignment import Alignment, Interval, checked
from featcache.errors import ConfigError, StreamError
from featcache.file_index import Assigned, FileIndex, Match, Named
from featcache.files import canonical_json
from featcache.manifest import Manifest, Utterance
from featcache.stream import Attachment, Speech

MAX_BYTES = 50 * 2**20
"""Largest file of one alignment that is read: an hour of phones is below 1 MiB, so a larger one is something else."""

_UNREADABLE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


@dataclass(frozen=True)
class AlignmentFile:
    """The file of one utterance.

    Attributes:
        path: where it lies.
        content: its bytes.
        offset_s: where the utterance starts in the recording that the file's times count from, in seconds; None where
            they count from the utterance's own start.
        to_the_end: whether the utterance lasts until its recording ends.
        further: what else the importer knows of the utterance; decides numbers.
    """

    path: Path
    content: bytes
    offset_s: float | None = None
    to_the_end: bool = True
    further: Mapping[str, float] = field(default_factory=dict)

    def text(self, fallback: str | None = None) -> str:
        """Return the content as text: UTF-8, with or without its mark.

        Args:
            fallback: an encoding for what is not UTF-8; None is none.

        Raises:
            StreamError: it is not text.
        """
        try:
            return self.content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            if fallback is not None:
                return self.content.decode(fallback, errors="replace")
            raise StreamError(f"{self.path} is not text in UTF-8: {error}. Save it as UTF-8.") from None

    def seconds(self, value: Any, what: str) -> float:
        """Return a time as a finite number.

        Raises:
            StreamError: it is none.
        """
        try:
            time_s = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            time_s = math.nan
        if not math.isfinite(time_s):
            shown = repr(value) if isinstance(value, str | float | bool | None) else type(value).__name__
            raise StreamError(f"{self.path}: {what} is {shown[:40]}, where seconds were expected. Make the file again.")
        return time_s

    @property
    def digest(self) -> str:
        """What identifies the alignment: the bytes, and what else decides its intervals."""
        digest = hashlib.blake2b(self.content, digest_size=16).hexdigest()
        further = {name: repr(value) for name, value in self.further.items()}
        if self.offset_s is None and not further:
            return digest
        more = canonical_json({"content": digest, "offset_s": self.offset_s, "further": further})
        return hashlib.blake2b(more, digest_size=16).hexdigest()


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return a file's content.

    Raises:
        StreamError: it is missing, no plain file, larger than `limit` bytes, or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise StreamError(f"{path} is no plain file. Give the file that holds the alignment.")
        if status.st_size > limit:
            raise StreamError(
                f"{path} has {status.st_size / 2**20:.0f} MiB; an alignment has at most {limit / 2**20:.0f} MiB. Is it "
                "another kind of file?"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, StreamError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise StreamError(f"its alignment {str(path)[:200]!r} cannot be read: {reason}. Check the path.") from None


@dataclass(frozen=True)
class FileAligner(Aligner):
    """An importer: intervals come from files.

    Attributes:
        folder: folder that holds the files, at any depth; relative to the working directory, ``~`` is the user's own.
        column: column of the manifest with the path of each utterance's file, relative to `folder` where that is given,
            else to the manifest's folder; it must not lead out of it. Nothing is searched then.
        times_from: what times count from, where the utterance is a span of a longer recording: ``"utterance"``,
            ``"recording"``, or ``"name"``: the recording where the file is named after it, else the utterance.
        endings: how names of files end after the id; letter case does not matter.
        tolerance_s: how far an interval may end past its audio, in seconds; what does is cut to the audio's end.
    """

    needs_text: ClassVar[bool] = False
    # YAML and --set read a folder called 2024 as a number.
    __pydantic_config__: ClassVar[Mapping[str, Any]] = {"coerce_numbers_to_str": True}

    folder: str | None = None
    column: str | None = None
    times_from: Literal["name", "utterance", "recording"] = "name"
    endings: tuple[str, ...] = ()
    tolerance_s: float = 0.05
    _files: ClassVar[Assigned | Named | None] = None

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance_s < math.inf:
            raise ConfigError(f"tolerance_s must be a number of seconds, 0 or more, got {self.tolerance_s}.")

    def bind(self, manifest: Manifest) -> Self:
        """Return this importer, knowing the file of each utterance.

        Raises:
            ConfigError: neither `folder` nor `column` is given, or the folder is not there or holds no such files.
        """
        folder = None if self.folder is None else Path(os.path.expanduser(self.folder))
        if folder is not None and not os.path.isdir(folder):
            raise ConfigError(
                f"aligner {self.name()}: there is no folder {str(folder)!r}. Correct the setting 'folder'."
            )
        bound = replace(self)
        if self.column is not None:
            base = manifest.folder if folder is None else folder
            object.__setattr__(bound, "_files", Named(manifest, base, self.column, self.endings))
        elif folder is not None:
            index = FileIndex(folder, self.endings)
            if not index.num_files:
                raise ConfigError(
                    f"aligner {self.name()}: {str(folder)!r} holds no file that ends in {' or '.join(self.endings)}. "
                    "Correct the setting 'folder' or 'endings'."
                )
            object.__setattr__(bound, "_files", Assigned(index, manifest, self.times_from))
            bound._searched(index)
        else:
            raise ConfigError(
                f"aligner {self.name()}: say where the files are, by its setting 'folder' or 'column' (a column of the "
                "manifest with their paths)."
            )
        return bound

    def _searched(self, index: FileIndex) -> None:
        """Take what else lies in the folder; the default takes nothing."""

    def identity(self) -> Identity:
        """Return what decides the intervals, which is the files' content; not where they lie."""
        return Identity(left_out=("folder", "column", "endings"))

    def attachment(self, utterance: Utterance) -> Attachment:
        """Return the file of an utterance.

        Raises:
            StreamError: there is none, several fit, or it cannot be read.
        """
        file = self._file(utterance)
        return Attachment(file, file.digest)

    def _file(self, utterance: Utterance) -> AlignmentFile:
        if self._files is None:
            raise ConfigError(f"aligner {self.name()} must be bound to a manifest before it reads files.")
        match = self._files.match(utterance)
        content = read_bytes(match.path)
        offset_s = (utterance.start_s or 0.0) if self._counts_from_recording(utterance, match) else None
        return AlignmentFile(match.path, content, offset_s, utterance.end_s is None)

    def _counts_from_recording(self, utterance: Utterance, match: Match) -> bool:
        if utterance.start_s is None and utterance.end_s is None:
            return False
        if self.times_from != "name":
            return self.times_from == "recording"
        if match.by_id and match.by_recording:
            raise StreamError(
                f"it is a span of its recording, and {match.path} is named after both, so that its times may count "
                "from either. Set times_from=utterance or times_from=recording."
            )
        return match.by_recording

    @abstractmethod
    def parse(self, file: AlignmentFile, speech: Speech) -> Alignment:
        """Return what a file holds, with times as they are in it.

        Raises:
            StreamError: it is not in the format; the message names the file.
        """

    def session(self, workers: int, logs: Path) -> "FileSession":
        """Start reading."""
        return FileSession(self.parse, self.tolerance_s)

    def seconds_per_second(self) -> float | None:
        """Return the cost: as good as none."""
        return 0.001


class FileSession(Session):
    """Files being read.

    Args:
        parse: :meth:`FileAligner.parse`.
        tolerance_s: how far an interval may end past its audio.
    """

    def __init__(self, parse: Callable[[AlignmentFile, Speech], Alignment], tolerance_s: float) -> None:
        self._parse = parse
        self._tolerance_s = tolerance_s

    def align(self, batch: Sequence[Speech]) -> list[Alignment | StreamError]:
        """Read the file of each utterance; whatever is wrong with one is its own error."""
        return [self._one(speech) for speech in batch]

    def _one(self, speech: Speech) -> Alignment | StreamError:
        file: AlignmentFile = speech.attachment
        try:
            alignment = self._parse(file, speech)
            if file.offset_s is not None:
                alignment = cut(alignment, file.offset_s, speech.duration_s)
            return self._fitted(alignment, file, speech.duration_s)
        except StreamError as error:
            return error
        except _UNREADABLE as error:
            return StreamError(
                f"{file.path} is not in the form expected ({type(error).__name__}: {str(error)[:200]}). Make it again."
            )

    def _fitted(self, alignment: Alignment, file: AlignmentFile, duration_s: float) -> Alignment:
        """Return an alignment cut to its audio, so that no further check finds fault with it."""
        remedy = ""
        try:
            checked(alignment, math.inf)  # everything but the end
            remedy = f" If it is of this one, raise tolerance_s, which is {self._tolerance_s:g}."
            fitted = checked(alignment, duration_s, self._tolerance_s)
            remedy = ""
            return checked(fitted, duration_s)  # cutting may have left no phone
        except StreamError as error:
            raise StreamError(f"{file.path}: {error}{remedy}") from None


def cut(alignment: Alignment, start_s: float, duration_s: float) -> Alignment:
    """Return the part of a recording's alignment that lies in a span of it, with times from the span's start.

    An interval that crosses a border of the span is clipped there.

    Args:
        alignment: intervals of the recording.
        start_s: where the span starts in it, in seconds.
        duration_s: how long the span lasts.
    """

    def clipped(intervals: Sequence[Interval]) -> tuple[Interval, ...]:
        shifted = (
            Interval(max(start - start_s, 0.0), min(end - start_s, duration_s), label)
            for start, end, label in intervals
            if start < end  # what runs backwards stays, to be refused
        )
        wrong = tuple(interval for interval in intervals if not interval.start_s < interval.end_s)
        return wrong or tuple(interval for interval in shifted if interval.end_s - interval.start_s > 1e-6)

    words = clipped(alignment.words)
    left = {word.label for word in words}
    unknown = tuple(word for word in alignment.unknown_words if word in left)
    return Alignment(words, clipped(alignment.phones), alignment.quality, unknown)

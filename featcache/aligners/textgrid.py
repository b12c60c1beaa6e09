"""Praat's TextGrids, such as the Montreal Forced Aligner, WebMAUS or people make them.

Where MFA's ``alignment_analysis.csv`` lies in the folder or above a file in it, its numbers are quality, by MFA's names
(``overall_log_likelihood``, ``speech_log_likelihood``, ``phone_duration_deviation``, ``snr`` and so on; which there are
depends on MFA's version). Blank is NaN, and so is everything of an utterance without a row of its own. Columns of other
names than MFA gives its own, words joined by underscores, are left out: a cache's arrays bear these names.

A word with a phone ``spn`` is an unknown word. In brackets, ``[laughter]``, it is a sound that is no word, and so is
its phone; MFA's own ``[bracketed]`` says no more than that something was in brackets, and stays ``spn``.
"""

import csv
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from featcache.aligner import Identity, SymbolSet
from featcache.alignment import DURATION, FRAME_ARRAYS, UNKNOWN, Alignment, word_of_each_phone
from featcache.alignment_files import AlignmentFile, FileAligner, read_bytes
from featcache.errors import ConfigError, StreamError
from featcache.file_index import FileIndex
from featcache.files import listed
from featcache.manifest import Utterance
from featcache.stream import Speech
from featcache.textgrids import SILENCE, parse_textgrid

ANALYSIS = "alignment_analysis.csv"
"""What MFA writes beside its TextGrids: a row of numbers for each utterance."""

_NOT_QUALITY = ("file", "begin", "end", "speaker")
_COLUMN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,59}")
# What a cache calls other arrays of a part.
_TAKEN = frozenset({DURATION, *FRAME_ARRAYS, "frames", "ids", "mean", "offsets", "scale", "std"})
_EVENT = re.compile(r"\[\w+\]")
_Rows = dict[str, list[tuple[str, dict[str, float]]]]


@dataclass(frozen=True)
class Textgrid(FileAligner):
    """Words and phones from TextGrid files, in long or short form.

    Attributes:
        words_tier: name of the tier of words; empty reads no words.
        phones_tier: name of the tier of phones.
        silence: labels that are silence, in any letter case; empty are the usual ones.
        symbols: what the phones are written in.
        tolerance_s: how far the file's own end may be from its audio's, in seconds; what is said past the audio's end
            is cut there.
    """

    title: ClassVar[str] = "TextGrid files, such as MFA and Praat write"

    endings: tuple[str, ...] = (".TextGrid",)
    words_tier: str = "words"
    phones_tier: str = "phones"
    silence: tuple[str, ...] = ()
    symbols: SymbolSet = "english"
    _names: ClassVar[tuple[str, ...]] = ()
    _analyses: ClassVar[dict[Path, _Rows] | None] = None

    @property
    def symbol_set(self) -> SymbolSet:
        """The symbols that phones are written in."""
        return self.symbols

    @property
    def quality_names(self) -> tuple[str, ...]:
        """The numeric columns of MFA's analysis; none where there is no such file."""
        return self._names

    def identity(self) -> Identity:
        """Return what decides the intervals besides the files."""
        further = {"quality": list(self._names), "silent": sorted(self._silence)}
        return Identity(left_out=super().identity().left_out, further=further)

    @property
    def _silence(self) -> frozenset[str]:
        return frozenset(label.casefold() for label in self.silence) or SILENCE

    def _searched(self, index: FileIndex) -> None:
        analyses: dict[Path, _Rows] = {}
        names: dict[str, None] = {}
        for path in index.paths:
            if path.name == ANALYSIS:
                columns, analyses[path.parent] = _analysis(path)
                names.update(dict.fromkeys(columns))
        object.__setattr__(self, "_names", tuple(names))
        object.__setattr__(self, "_analyses", analyses)

    def _file(self, utterance: Utterance) -> AlignmentFile:
        file = super()._file(utterance)
        return replace(file, further=self._quality(file.path, utterance)) if self._names else file

    def _quality(self, path: Path, utterance: Utterance) -> dict[str, float]:
        unknown = dict.fromkeys(self._names, math.nan)
        analyses = self._analyses or {}
        nearest = next((analyses[folder] for folder in path.parents if folder in analyses), {})
        rows = nearest.get(path.name[: -len(".TextGrid")], [])
        own = [row for speaker, row in rows if speaker in (path.parent.name, utterance.speaker)]
        chosen = own or [row for _, row in rows]
        # Several rows are several utterances of one recording: which is this one cannot be told.
        return {**unknown, **chosen[0]} if len(chosen) == 1 else unknown

    def parse(self, file: AlignmentFile, speech: Speech) -> Alignment:
        """Return the words and phones of a TextGrid.

        Raises:
            StreamError: it is no TextGrid, has not these tiers, or is of another length than the audio.
        """
        words, phones, max_time_s = parse_textgrid(
            file.content, file.path, self.words_tier or None, self.phones_tier, self._silence
        )
        self._check_length(file, speech, max_time_s)
        unknown: list[str] = []
        named, renamed = list(words), list(phones)
        for number, owner in enumerate(word_of_each_phone(Alignment(words, phones))):
            if owner < 0 or phones[number].label != UNKNOWN:
                continue
            label = words[owner].label
            if _EVENT.fullmatch(label) and label != "[bracketed]":
                named[owner] = words[owner]._replace(label=label.upper())
                renamed[number] = phones[number]._replace(label=label.upper())
            else:
                unknown.append(label)
        return Alignment(tuple(named), tuple(renamed), file.further, tuple(dict.fromkeys(unknown)))

    def _check_length(self, file: AlignmentFile, speech: Speech, max_time_s: float) -> None:
        expected_s = (file.offset_s or 0.0) + speech.duration_s
        # A span that ends before its recording does says nothing about the recording's length but this.
        late = max_time_s > expected_s + self.tolerance_s and (file.offset_s is None or file.to_the_end)
        if late or max_time_s < expected_s - self.tolerance_s:
            raise StreamError(
                f"{file.path} ends at {max_time_s:.3f} s, its audio at {expected_s:.3f} s. Is it for another "
                "recording? If not, raise tolerance_s."
            )


def _analysis(path: Path) -> tuple[list[str], _Rows]:
    """Return the names of MFA's numbers, and its rows by the file's name: speaker and numbers."""
    try:
        reader = csv.DictReader(read_bytes(path).decode("utf-8-sig").splitlines())
        rows = list(reader)
        header = list(reader.fieldnames or [])
    except (csv.Error, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as MFA's analysis: {error}. Remove it, or make it again.") from None
    if "file" not in header:
        raise ConfigError(f"{path} has no column 'file', but {listed(header)}. Remove it, or write it again with MFA.")
    columns = [name for name in header if _is_quality(name) and all(_is_number(row[name]) for row in rows)]
    found: _Rows = {}
    for row in rows:
        numbers = {name: float(row[name] or "nan") for name in columns}
        found.setdefault(row["file"] or "", []).append((row.get("speaker") or "", numbers))
    return columns, found


def _is_quality(name: str) -> bool:
    return name not in _NOT_QUALITY and name not in _TAKEN and _COLUMN.fullmatch(name) is not None


def _is_number(text: str | None) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return False
    return True

"""Hand-made phone times in the files of ESPS's ``xlabel``, above all those that EMO-DB ships (``lablaut``).

A file is a header up to a line ``#``, then one line a label: time in seconds, colour, text. The format's own
convention, which Praat, Festival and the Buckeye corpus follow, is that a time is where its segment *ends*.

EMO-DB's phone labels depart from it: a time is where its segment *starts*. Measured on the 338 files of 4 emotions
that hold labels (medians): between a label's time and the next one, ``s`` crosses zero 8.5 times a millisecond and
``a`` lies 3 dB above the recording's level, where between the time before and its own it would be 1.5 times and -7 dB;
bursts (``!t``) are 15 dB louder; and the first time is 3 ms from where energy sets in. Every file ends in ``.``, which
starts where speech ends, 96 ms ahead of the end of the audio; what follows lies 34 dB below the recording's level.

EMO-DB's labels are SAMPA with marks:

- ``+lar``, ``-sth``, ``+sil`` and so on, after a tab or spaces or directly: creak, voicing, syllabic and other marks on
  or off; digits 1 to 3: stress. They are left out. A line of marks alone only says that a mark changes within the phone
  (2,900 of 17,300 lines): the phone goes on.
- A stop is written in parts: closure ``t`` (``_t`` where its start cannot be heard), burst ``!t`` (or ``!``),
  aspiration ``tasp``. Parts of one stop that follow each other are one phone, ``t``.
- ``.`` is the end of speech; ``(`` and ``(gef`` are pauses, 24 and 21 dB below the mean.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from featcache.aligner import Identity, SymbolSet
from featcache.alignment import Alignment, Interval
from featcache.alignment_files import AlignmentFile, FileAligner
from featcache.errors import StreamError
from featcache.stream import Speech

SILENCE = {"emodb": (".", "(", "(gef"), "esps": ("", "#", "h#", "pau", "sil", "sp")}
"""Labels that are silence, by style; those of ``esps`` in any letter case."""

_LINE = re.compile(r"\s*(\S+)\s+(\S+)(?:\s(.*))?")
_SYMBOL = re.compile(r"[^\s+\-,;\[\]]*")
_BURST = re.compile(r"!([bdgkpt]?)")
_CLOSURE = re.compile(r"_?([bdgkpt])")
_ASPIRATION = re.compile(r"([bdgkpt])(?:asp|sap)")  # one file has "dsap"


@dataclass(frozen=True)
class Xlabel(FileAligner):
    """Phone times from xlabel files; there are no words in them.

    Attributes:
        style: ``"emodb"``: times are starts, labels carry marks and parts of stops; ``"esps"``: times are ends, as the
            format has it, and labels are taken as they are up to the header's separator.
        silence: labels that are silence; empty are the style's own.
        symbols: what the phones are written in.
    """

    title: ClassVar[str] = "xlabel files of phone times, as EMO-DB ships them"

    endings: tuple[str, ...] = ("xx.lablaut", ".lablaut", ".lab")
    style: Literal["emodb", "esps"] = "emodb"
    silence: tuple[str, ...] = ()
    symbols: SymbolSet = "other"

    @property
    def symbol_set(self) -> SymbolSet:
        """The symbols that phones are written in."""
        return self.symbols

    def identity(self) -> Identity:
        """Return what decides the intervals besides the files."""
        return Identity(left_out=super().identity().left_out, further={"silent": list(self._silence)})

    @property
    def _silence(self) -> tuple[str, ...]:
        return self.silence or SILENCE[self.style]

    def parse(self, file: AlignmentFile, speech: Speech) -> Alignment:
        """Return the phones of a file.

        Raises:
            StreamError: it is no xlabel file, holds no label, or its times run backwards.
        """
        rows = _rows(file)
        if not rows:
            raise StreamError(f"{file.path} holds a header and no label: nobody labelled this recording. Leave it out.")
        if self.style == "esps":
            starts = [0.0, *(time_s for time_s, _ in rows[:-1])]
            intervals = [
                Interval(start_s, end_s, label.strip())
                for start_s, (end_s, label) in zip(starts, rows, strict=True)
                if start_s != end_s
            ]
            silence = {label.casefold() for label in self._silence}
            return Alignment((), tuple(phone for phone in intervals if phone.label.casefold() not in silence))
        phones = _joined(rows)
        if phones and phones[-1].label not in self._silence:
            raise StreamError(
                f"{file.path} ends in {phones[-1].label[:40]!r}, where EMO-DB's files end in {self._silence[0]!r}. If "
                "its times are the ends of phones, as in most xlabel files, set style=esps."
            )
        return Alignment((), tuple(phone for phone in phones if phone.label not in self._silence))


def _rows(file: AlignmentFile) -> list[tuple[float, str]]:
    lines = file.text(fallback="latin-1").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    header = [line.strip() for line in lines]
    if "#" not in header:
        raise StreamError(f"{file.path} is no xlabel file: no line '#' ends its header. Give the folder of such files.")
    first = header.index("#") + 1
    separator = next((line.split()[1] for line in header[:first] if re.fullmatch(r"separator\s+\S", line)), ";")
    rows: list[tuple[float, str]] = []
    for number, line in enumerate(lines[first:], start=first + 1):
        if not line.strip():
            continue
        fields = _LINE.fullmatch(line)
        if fields is None:
            raise StreamError(f"{file.path}, line {number}: expected time, colour and label, got {line[:60]!r}.")
        time_s = file.seconds(fields[1], f"the time in line {number}")
        if time_s < (rows[-1][0] if rows else 0.0):
            raise StreamError(f"{file.path}, line {number}: the time {time_s:g} s runs backwards. Make the file again.")
        rows.append((time_s, (fields[3] or "").split(separator)[0]))
    return rows


def _joined(rows: list[tuple[float, str]]) -> list[Interval]:
    """Return intervals from lines in EMO-DB's style; the last one is marked by its start alone and ends there."""
    phones: list[Interval] = []
    part_before = 0
    for (start_s, label), (end_s, _) in zip(rows, [*rows[1:], rows[-1]], strict=True):
        found = _SYMBOL.match(label.strip())
        symbol = "" if found is None else found[0]
        part, phone = _part(symbol)
        goes_on = bool(phones) and phones[-1].end_s == start_s
        if not symbol:
            if goes_on:  # marks ahead of the first phone belong to nothing
                phones[-1] = phones[-1]._replace(end_s=end_s)
            continue
        if goes_on and part > part_before > 0 and phone in ("", phones[-1].label):
            phones[-1] = phones[-1]._replace(end_s=end_s)
        else:
            phones.append(Interval(start_s, end_s, phone or symbol))
        part_before = part
    return [phone for phone in phones[:-1] if phone.start_s < phone.end_s] + phones[-1:]


def _part(symbol: str) -> tuple[int, str]:
    """Return which part of a stop a symbol is (0 none, 1 closure, 2 burst, 3 aspiration), and the phone."""
    for part, pattern in ((1, _CLOSURE), (2, _BURST), (3, _ASPIRATION)):
        match = pattern.fullmatch(symbol)
        if match is not None:
            return part, match[1]
    return 0, symbol

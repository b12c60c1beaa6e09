"""A corpus folder for the Montreal Forced Aligner, and what it says of it.

Files are numbered (``s0001/u000001.wav`` and ``.lab``), so that ids and speakers may be of any length and letters; a
table in the log folder says which is whose. MFA adapts itself to each folder's speaker. Utterances without a speaker
get a folder each, as Kaldi's guide to data preparation advises where speakers are not known: one folder for all of
them would adapt to a mixture of voices.

English transcripts are read by :mod:`featcache.transcript`, which spells numbers, that MFA has no word for. Others stay
as they are, since MFA takes off case and punctuation itself, except for what stands in brackets: MFA 3.4.3 takes
anything in ``[]``, ``()``, ``{}`` or ``<>`` for a sound that is no word (tokenization/simple.py) and calls it
``[laughter]`` or ``[bracketed]``, with the one phone ``spn``. So events are written ``[name]`` without spaces, which
its sanitising would stumble over, and get their names back from the transcript, in order.

Sources: https://montreal-forced-aligner.readthedocs.io/en/latest/user_guide/corpus_structure.html,
``.../implementations/alignment_analysis.html``, https://kaldi-asr.org/doc/data_prep.html
"""

import csv
import math
import re
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile

from featcache.alignment import UNKNOWN, Alignment, Interval, word_of_each_phone
from featcache.errors import StreamError
from featcache.stream import Speech
from featcache.textgrids import read_textgrid
from featcache.transcript import tokens

QUALITY = (
    "overall_log_likelihood",
    "speech_log_likelihood",
    "phone_duration_deviation",
    "max_running_short_interval",
    "snr",
    "intensity_deviation",
)
"""Columns of MFA's alignment_analysis.csv that judge an utterance."""

ANALYSIS = "alignment_analysis.csv"

_SHORTEST_S = 0.03  # a phone has three states of at least one frame of 10 ms
_EVENT = re.compile(r"\[([^\[\]]*)\]|\(([^()]*)\)|\{([^{}]*)\}|<([^<>]*)>")
_BRACKETS = re.compile(r"[\[\](){}<>]")
_UNKNOWN_WORDS = ("<unk>", "<oov>")


def english(text: str, dictionary: Set[str]) -> tuple[str, tuple[str, ...]]:
    """Return an English transcript as MFA is to read it, and the names of its events, in order and in upper case.

    Args:
        text: it.
        dictionary: words that have a pronunciation, in lower case.

    Raises:
        StreamError: it has neither a word nor an event.
    """
    spoken = tokens(text, dictionary.__contains__)
    events = tuple(token.spelling.strip("[]") for token in spoken if token.kind == "event")
    return " ".join(token.spelling.lower() for token in spoken), events


def transcript(text: str) -> tuple[str, tuple[str, ...]]:
    """Return a transcript of any language as MFA is to read it, and the names of its events, as :func:`english` does.

    Raises:
        StreamError: it has neither a word nor an event.
    """
    events: list[str] = []

    def named(match: re.Match[str]) -> str:
        name = "_".join(re.findall(r"\w+", next(group for group in match.groups() if group is not None)))
        if not name:
            return " "
        events.append(name.upper())
        # A placeholder without brackets: those that belong to no pair are removed next.
        return f" \x00{name.lower()}\x01 "

    marked = _EVENT.sub(named, re.sub(r"[\x00-\x1f\x7f]", " ", text))
    cleaned = _BRACKETS.sub(" ", marked).replace("\x00", "[").replace("\x01", "]")
    if not re.search(r"\w", cleaned):
        raise StreamError(f"its text {text[:40]!r} has no word. Fill the manifest's column 'text', or leave it out.")
    return " ".join(cleaned.split()), tuple(events)


@dataclass
class CorpusFolder:
    """Utterances on their way through MFA.

    Attributes:
        folder: where the corpus is written.
        aligned: where MFA writes its TextGrids.
        reader: what a transcript says: its words as MFA is to read them, and the names of its events.
    """

    folder: Path
    aligned: Path
    reader: Callable[[str], tuple[str, tuple[str, ...]]] = transcript
    _files: dict[str, str] = field(default_factory=dict)
    _events: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _reasons: dict[str, StreamError] = field(default_factory=dict)
    _speakers: dict[tuple[str | None, int], int] = field(default_factory=dict)
    _rows: dict[str, dict[str, float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._files)

    def add(self, speech: Speech) -> None:
        """Write an utterance; one that cannot be aligned is left out, and its reason is kept."""
        if speech.id in self._files:
            return
        try:
            if speech.duration_s < _SHORTEST_S:
                raise StreamError(f"its audio of {speech.duration_s:.3f} s is shorter than one phone. Leave it out.")
            text, self._events[speech.id] = self.reader(speech.text)
        except StreamError as error:
            self._reasons[speech.id] = error
            return
        number = len(self._files) + 1
        key = (speech.speaker, number if speech.speaker is None else 0)
        speaker = self._speakers.setdefault(key, len(self._speakers) + 1)
        name = f"s{speaker:04d}/u{number:06d}"
        place = self.folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        samples = np.clip(np.nan_to_num(speech.samples), -1.0, 1.0)
        soundfile.write(place.with_suffix(".wav"), samples, speech.sample_rate_hz, "PCM_16")
        place.with_suffix(".lab").write_bytes(text.encode("utf-8", "replace") + b"\n")
        self._files[speech.id] = name

    def write_table(self, path: Path) -> None:
        """Write which file is which utterance, for readers of MFA's log."""
        with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["file", "id"])
            writer.writerows((name, ident) for ident, name in self._files.items())

    def read_analysis(self) -> None:
        """Read how MFA judges its alignments; versions before 3.0 write no such file."""
        path = self.aligned / ANALYSIS
        if not path.is_file():
            return
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for row in csv.DictReader(file):
                self._rows[Path(str(row.get("file"))).name] = {name: _number(row.get(name)) for name in QUALITY}

    def missing(self) -> list[str]:
        """Return the ids of utterances that were written and came back without a TextGrid."""
        return [ident for ident, name in self._files.items() if not self._grid(name).is_file()]

    def alignment(self, ident: str, dictionary: Set[str] | None = None) -> Alignment:
        """Return an utterance's alignment.

        Args:
            ident: its id.
            dictionary: the words with a pronunciation that was not guessed, in lower case; None where none is guessed.

        Raises:
            StreamError: there is none; says the likely reason.
        """
        if ident in self._reasons:
            raise self._reasons[ident]
        if ident not in self._files:
            raise StreamError("it was not among the utterances that MFA was given. Run the same command again.")
        name = self._files[ident]
        path = self._grid(name)
        scores = self._rows.get(Path(name).name)
        if not path.is_file():
            raise StreamError(
                f"MFA gave it no alignment. {self._why(scores)} MFA's log is in the cache's folder 'logs'."
            )
        grid = read_textgrid(path)
        quality = scores or dict.fromkeys(QUALITY, math.nan)
        return named(Alignment(grid.words, grid.phones, quality), self._events[ident], dictionary)

    def _grid(self, name: str) -> Path:
        return self.aligned / f"{name}.TextGrid"

    def _why(self, scores: Mapping[str, float] | None) -> str:
        if not self._rows:
            return "Most often the text is not what is spoken, or the audio is too short for it."
        if scores is None:
            return "It dropped it before aligning, most often because the audio is too short."
        if math.isnan(scores["overall_log_likelihood"]):
            return (
                "Its scores are blank: within the beam the text does not fit the audio. Is it what is spoken, and all "
                "of it? A larger beam, such as beam=100 and retry_beam=400, helps where it is."
            )
        return "It aligned it and failed to write it."


def named(alignment: Alignment, events: tuple[str, ...], dictionary: Set[str] | None = None) -> Alignment:
    """Return an alignment with its events by their names, and the unknown words listed.

    Args:
        alignment: words and phones as MFA writes them.
        events: names of the events in the transcript, in order.
        dictionary: words whose pronunciation is not guessed, in lower case; None where none is guessed.
    """
    phones_of: dict[int, list[int]] = {}
    for phone, owner in enumerate(word_of_each_phone(alignment)):
        phones_of.setdefault(owner, []).append(phone)
    words, phones = list(alignment.words), list(alignment.phones)
    sounds, unknown = [], []
    for number, word in enumerate(words):
        noise = [phones[phone].label for phone in phones_of.get(number, ())] == [UNKNOWN]
        if noise and _EVENT.fullmatch(word.label) and word.label not in _UNKNOWN_WORDS:
            sounds.append(number)
        elif noise or (dictionary is not None and not _has(dictionary, word.label)):
            unknown.append(word.label)
    for order, number in enumerate(sounds):
        label = f"[{events[order]}]" if len(events) == len(sounds) else words[number].label.upper()
        phone = phones_of[number][0]
        words[number] = Interval(*words[number][:2], label)
        phones[phone] = Interval(*phones[phone][:2], label)
    return Alignment(tuple(words), tuple(phones), alignment.quality, tuple(dict.fromkeys(unknown)))


def dictionary_words(path: Path) -> frozenset[str]:
    """Return the words of one of MFA's dictionaries, in lower case."""
    with path.open(encoding="utf-8", errors="replace") as file:
        return frozenset(parts[0].lower() for line in file if (parts := line.split(maxsplit=1)))


def _has(dictionary: Set[str], word: str) -> bool:
    # MFA splits "dog's" into "dog" and "'s" where the dictionary has both, and joins them again in its TextGrids.
    word = word.lower()
    cuts = [place for place, letter in enumerate(word) if letter == "'"]
    return word in dictionary or any(
        (word[:cut] in dictionary and word[cut:] in dictionary)
        or (word[: cut + 1] in dictionary and word[cut + 1 :] in dictionary)
        for cut in cuts
    )


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan

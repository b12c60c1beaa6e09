"""The characters of a transcript, one frame each: what a CTC loss aims at.

Source: Ghosh et al. 2023 (MMER), section 3.4: punctuation removed, all in upper case; the ids of the published code are
those of wav2vec 2.0's vocabulary, of letters and the apostrophe. In a text such as ``It's 9 o'clock!``

- letters are those of the text in upper case, composed (Unicode's NFC);
- an apostrophe of any form within a word is one of its characters, ``IT'S``; none is where the vocabulary lacks it, as
  the paper's own words have it: ``ITS``. Those before and behind a word are left out, ``'em`` and ``dogs'`` as well as
  ``'well, I don't'``: they have no sound, and nothing tells them from quotation marks;
- other punctuation and white space end a word: ``that--that's`` is two. One ``|`` stands between words;
- what is in square brackets is a sound and no word, ``[LAUGHTER]``, and has no characters;
- any other character that the vocabulary lacks, here the digit, is refused, or left out (`unknown`).
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from featcache.errors import ConfigError, StreamError
from featcache.stream import Extractor, Features, InputKind, Stream, StreamSpec

BLANK = "<blank>"
"""What stands in the first place of ``settings.symbols``, id 0: CTC's blank, which no transcript has."""
BOUNDARY = "|"
"""What stands between words: id 1."""

_EVENT = re.compile(r"\[[^\[\]]*\]")
_APOSTROPHES = str.maketrans(dict.fromkeys("’‘‛ʼʻ`´′＇", "'"))
_SHOWN = 60


@dataclass(frozen=True)
class Characters(Stream):
    """Ids of a transcript's characters.

    Attributes:
        vocabulary: the characters that have ids, in their order, from 2 on; 0 is CTC's blank, 1 stands between words.
        unknown: what is done with a character that is not in the vocabulary: ``"error"`` refuses the utterance,
            ``"drop"`` leaves the character out.
        empty: what is done with a transcript that has no characters: ``"error"`` refuses the utterance, ``"boundary"``
            gives the one character between words.
    """

    input: ClassVar[InputKind] = "text"
    title: ClassVar[str] = "characters of the transcript, upper-cased, for a CTC loss"

    vocabulary: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
    unknown: Literal["error", "drop"] = "error"
    empty: Literal["error", "boundary"] = "error"

    def __post_init__(self) -> None:
        """Check the vocabulary.

        Raises:
            ConfigError: it is empty, names a character twice, or one that no transcript has after it is cleaned.
        """
        if not self.vocabulary:
            raise ConfigError(
                "The vocabulary of characters is empty. Name each once, such as ABCDEFGHIJKLMNOPQRSTUVWXYZ'."
            )
        twice = [one for one in self.vocabulary if self.vocabulary.count(one) > 1]
        if twice:
            raise ConfigError(f"The vocabulary of characters names {twice[0]!r} twice.")
        lost = [one for one in self.vocabulary if one == BOUNDARY or cleaned(f"A{one}A", one) != f"A{one}A"]
        if lost:
            raise ConfigError(
                f"The vocabulary of characters has {lost[0]!r}, which no cleaned transcript has: name letters "
                f"in upper case, composed, and neither white space nor {BOUNDARY!r}, which stands between words."
            )

    @property
    def symbols(self) -> tuple[str, ...]:
        """The symbol of each id."""
        return (BLANK, BOUNDARY, *self.vocabulary)

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the ids, which are int16, whatever `dtype` asks."""
        return StreamSpec(
            kind=self.kind(),
            version=2,  # 1 kept some apostrophes before and behind words
            input=self.input,
            settings={
                "vocabulary": self.vocabulary,
                "symbols": list(self.symbols),
                "unknown": self.unknown,
                "empty": self.empty,
            },
            layers=("character",),
            dim=1,
            axis="tokens",
            compute_dtype="int16",
            dtype="int16",
            utterance_arrays={"dropped": {"dtype": "int32", "shape": []}},
            notes="a frame is an id: the position of its character in settings.symbols; dropped: how many had none",
        )

    def load(self, device: str, compute_dtype: str) -> "CharactersExtractor":
        """Return what reads transcripts; there is no model."""
        return CharactersExtractor(self)

    def batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Group utterances; they do not touch each other."""
        return [list(range(first, min(first + 256, len(lengths)))) for first in range(0, len(lengths), 256)]

    def seconds_per_second(self, device: str, compute_dtype: str) -> float:
        """Return a rough cost of an utterance of text."""
        return 1e-4


class CharactersExtractor(Extractor):
    """Turns transcripts into ids.

    Args:
        stream: its settings.
    """

    def __init__(self, stream: Characters) -> None:
        self._stream = stream
        self._ids = {symbol: number for number, symbol in enumerate(stream.symbols)}

    def extract(self, inputs: Sequence[str]) -> list[Features | StreamError]:
        """Return ids ``(1, tokens, 1)`` int16 for each transcript."""
        results: list[Features | StreamError] = []
        for text in inputs:
            try:
                results.append(self._features(text))
            except StreamError as error:
                results.append(error)
        return results

    def _features(self, text: str) -> Features:
        whole = cleaned(text, self._stream.vocabulary)
        unknown = sorted({one for one in whole if one not in self._ids})
        if unknown and self._stream.unknown == "error":
            raise StreamError(
                f"its text {_short(text)!r} has {_listed(unknown)}, not in the vocabulary of characters. Write the "
                "text as spoken (numbers in words), add to characters.vocabulary, or set characters.unknown=drop."
            )
        words = ("".join(one for one in word if one in self._ids).strip("'") for word in whole.split(BOUNDARY))
        target = BOUNDARY.join(filter(None, words))
        if not target and self._stream.empty == "error":
            raise StreamError(
                f"its text {_short(text)!r} has no characters in the vocabulary. Fill the manifest's column 'text', "
                "leave the utterance out, or set characters.empty=boundary, which gives it the one between words."
            )
        ids = np.array([self._ids[one] for one in target or BOUNDARY], np.int16)
        dropped = sum(one not in self._ids for one in whole)
        return Features(ids[None, :, None], utterance_arrays={"dropped": np.asarray(dropped, np.int32)})


def cleaned(text: str, vocabulary: str) -> str:
    """Return a transcript in upper case without punctuation, words joined by :data:`BOUNDARY`.

    Args:
        text: any unicode.
        vocabulary: characters that are kept even where they are punctuation.
    """
    plain = unicodedata.normalize("NFC", _EVENT.sub(" ", text).upper()).translate(_APOSTROPHES)
    kept = "".join(one if one in vocabulary else _reading(one) for one in plain.replace("''", " "))
    return BOUNDARY.join(filter(None, (word.strip("'") for word in kept.split())))


def _reading(one: str) -> str:
    """Return what is left of a character that is not in the vocabulary."""
    if one == "'" or unicodedata.category(one) == "Cf":  # Cf has no shape, such as a soft hyphen
        return ""
    return " " if one == BOUNDARY or unicodedata.category(one).startswith(("P", "Z", "C")) else one


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _listed(characters: Sequence[str]) -> str:
    shown = ", ".join(f"{one!r} ({unicodedata.name(one, 'no name')})" for one in characters[:3])
    return shown + (f" and {len(characters) - 3} more" if len(characters) > 3 else "")

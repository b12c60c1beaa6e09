"""Alignments: when each word and phone of an utterance is spoken.

Conventions, whatever program made them: times are seconds from the utterance's start; intervals are in order and
do not overlap; silence is no interval but a gap between them. An unknown word is one phone :data:`UNKNOWN`, as in
the Montreal Forced Aligner's output; a sound that is no word, such as laughter, is a word and a phone in square
brackets, such as ``[LAUGHTER]``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from featcache.errors import StreamError

UNKNOWN = "spn"
"""The phone of a word whose pronunciation is not known: "spoken noise"."""

TOLERANCE_S = 0.025
"""How far an interval may end past its audio: MFA and Gentle round times to a grid of 10 ms."""


class Interval(NamedTuple):
    """A labelled stretch of time.

    Attributes:
        start_s: where it starts, in seconds.
        end_s: where it ends, in seconds.
        label: a word, or a phone in the symbols of the program that found it.
    """

    start_s: float
    end_s: float
    label: str


@dataclass(frozen=True)
class Alignment:
    """What is spoken when, in one utterance.

    Attributes:
        words: intervals of words.
        phones: intervals of phones.
        quality: name to number, where the aligner judges its own work; what a name means is told in its docstring.
        unknown_words: words that had no pronunciation, or a guessed one.
    """

    words: tuple[Interval, ...]
    phones: tuple[Interval, ...]
    quality: Mapping[str, float] = field(default_factory=dict)
    unknown_words: tuple[str, ...] = ()


def checked(alignment: Alignment, duration_s: float, tolerance_s: float = TOLERANCE_S) -> Alignment:
    """Return an alignment that fits its audio: what ends at most `tolerance_s` late is cut to the audio's end.

    Args:
        alignment: intervals of one utterance.
        duration_s: length of its audio, in seconds.
        tolerance_s: how late an interval may end.

    Raises:
        StreamError: no phones; times that are not finite, negative or run backwards; intervals that overlap; an
            interval past the end of the audio.
    """
    if not alignment.phones:
        raise StreamError("its alignment has no phone. Check its text and its audio, or leave it out.")
    return Alignment(
        _fitted("word", alignment.words, duration_s, tolerance_s),
        _fitted("phone", alignment.phones, duration_s, tolerance_s),
        alignment.quality,
        alignment.unknown_words,
    )


def _fitted(what: str, intervals: Sequence[Interval], duration_s: float, tolerance_s: float) -> tuple[Interval, ...]:
    fitted = []
    before = 0.0
    for start_s, end_s, label in intervals:
        told = f"its {what} {label[:40]!r} at {start_s:.3f} to {end_s:.3f} s"
        if not 0 <= start_s < end_s < float("inf"):
            raise StreamError(f"{told} does not run forward in time. Are the times in seconds?")
        if end_s > duration_s + tolerance_s:
            raise StreamError(
                f"{told} ends after its audio, which lasts {duration_s:.3f} s. Is the alignment of another recording, "
                "or in another unit than seconds?"
            )
        if start_s < before - 1e-6:
            raise StreamError(f"{told} starts before the {what} ahead of it has ended, at {before:.3f} s.")
        before = end_s
        start_s, end_s = float(start_s), min(float(end_s), duration_s)
        if start_s < end_s:
            fitted.append(Interval(start_s, end_s, label))
    return tuple(fitted)

"""Alignments: when each word and phone of an utterance is spoken.

Conventions, whatever program made them: times are seconds from the utterance's start; intervals are in order and
do not overlap; silence is no interval but a gap between them. An unknown word is one phone :data:`UNKNOWN`, as in
the Montreal Forced Aligner's output; a sound that is no word, such as laughter, is a word and a phone in square
brackets, such as ``[LAUGHTER]``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from featcache.errors import StreamError

if TYPE_CHECKING:
    from featcache.cache import CachedStream

UNKNOWN = "spn"
"""The phone of a word whose pronunciation is not known: "spoken noise"."""

LABEL_BYTES = 64
"""Longest label that a cache keeps, in UTF-8."""

FRAME_ARRAYS: Mapping[str, Any] = {
    "tier": {"dtype": "uint8", "shape": []},
    "label": {"dtype": "uint8", "shape": [LABEL_BYTES]},
    "word": {"dtype": "int32", "shape": []},
    "unknown": {"dtype": "uint8", "shape": []},
}
"""What a cache keeps beside the times of each interval: 0 for a word and 1 for a phone; the label in UTF-8, ended by
zeros; number of the word that it is or belongs to, -1 for none; 1 for a word without a pronunciation of its own."""

DURATION = "duration_s"
"""Name of the array that keeps the length of each utterance's audio, beside the aligner's own measures."""

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
    words = _fitted("word", alignment.words, duration_s, tolerance_s)
    phones = _fitted("phone", alignment.phones, duration_s, tolerance_s)
    if not phones:
        raise StreamError("its alignment has no phone. Check its text and its audio, or leave it out.")
    return Alignment(words, phones, alignment.quality, alignment.unknown_words)


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


def content_digest(alignment: Alignment) -> str:
    """Return what identifies an alignment's words, phones and times."""
    times, arrays = to_arrays(alignment)
    state = blake2b(times.tobytes(), digest_size=16)
    for name in ("tier", "label"):
        state.update(arrays[name].tobytes())
    return state.hexdigest()


def word_of_each_phone(alignment: Alignment) -> list[int]:
    """Return, for each phone, the number of the word that its middle lies in; -1 where it lies in none."""
    starts = np.array([word.start_s for word in alignment.words])
    owners = []
    for phone in alignment.phones:
        middle_s = (phone.start_s + phone.end_s) / 2
        number = int(np.searchsorted(starts, middle_s, side="right")) - 1
        owners.append(number if number >= 0 and middle_s < alignment.words[number].end_s else -1)
    return owners


def to_arrays(alignment: Alignment) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return times ``(1, intervals, 2)`` float64, words before phones, and the arrays of :data:`FRAME_ARRAYS`.

    Raises:
        StreamError: a label is longer than :data:`LABEL_BYTES`.
    """
    intervals = [*alignment.words, *alignment.phones]
    num_words = len(alignment.words)
    labels = np.zeros((len(intervals), LABEL_BYTES), np.uint8)
    for row, interval in enumerate(intervals):
        encoded = interval.label.encode(errors="replace")
        if len(encoded) > LABEL_BYTES or b"\0" in encoded:
            raise StreamError(
                f"the label {interval.label[:40]!r}... in its alignment takes {len(encoded)} bytes; the most that is "
                f"kept is {LABEL_BYTES}, without NUL. Shorten the word in its text or its file."
            )
        labels[row, : len(encoded)] = np.frombuffer(encoded, np.uint8)
    unknown = set(alignment.unknown_words)
    flags = [word.label in unknown for word in alignment.words]
    return np.array([interval[:2] for interval in intervals], np.float64)[np.newaxis], {
        "tier": np.repeat(np.array([0, 1], np.uint8), [num_words, len(alignment.phones)]),
        "label": labels,
        "word": np.array([*range(num_words), *word_of_each_phone(alignment)], np.int32),
        "unknown": np.array(flags + [False] * len(alignment.phones), np.uint8),
    }


def read(stream: "CachedStream", name: str) -> Alignment:
    """Return an utterance's alignment from a cached stream of kind ``alignment``.

    Raises:
        UnknownNameError: the stream does not hold the utterance.
        StreamError: the stream is of another kind.
    """
    if stream.spec.axis != "intervals":
        raise StreamError(f"{stream.name} holds no intervals; streams of kind 'alignment' do.")
    times = stream[name][0]
    arrays = {key: stream.frame_array(key, name) for key in FRAME_ARRAYS}
    intervals = [
        Interval(float(start_s), float(end_s), bytes(label).rstrip(b"\0").decode())
        for (start_s, end_s), label in zip(times, arrays["label"], strict=True)
    ]
    num_words = int((arrays["tier"] == 0).sum())
    words = tuple(intervals[:num_words])
    unknown = tuple(dict.fromkeys(word.label for word, flag in zip(words, arrays["unknown"], strict=False) if flag))
    quality = {key: float(stream.array(key, [name])[0]) for key in stream.spec.utterance_arrays if key != DURATION}
    return Alignment(words, tuple(intervals[num_words:]), quality, unknown)

"""How well two alignments of the same utterances agree.

Conventions
-----------
- A is the reference where there is one. Errors are B minus A: positive is B late.
- Phones are compared as base phones (:mod:`featcache.symbols`), so that aligners with other symbols can be.
- A boundary error is the difference of the onsets of two phones that :mod:`featcache.matching` pairs and that are
  identical. Pairs of different phones and phones without a partner have none, and `share_matched` says how many of
  A's phones that leaves; a low share makes the errors of the rest look better than the alignment is. Words are
  compared likewise, by their spelling without case and punctuation.
- Of phones in symbols of their own (``other``) no class is known but ``other``; they are identical where they are
  written alike.
- Medians, percentiles and shares are over all boundaries of the corpus: long utterances count more.
- A frame is alike where both have the same base phone, or both are silent, by :mod:`featcache.frames`' rule. Among
  `speech` are the frames in which at least one of the two is not silent. A class has A's frames of that class.
- An alignment does not know how long its audio is: unless told, frames end with the last phone of either side, so
  that silence after it counts for neither.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featcache.aligner import SymbolSet
from featcache.alignment import Alignment, Interval
from featcache.frames import longest_overlap
from featcache.matching import Sound, pairs
from featcache.symbols import SILENCE, base_phone, phone_class

PHONE_REACH_S, WORD_REACH_S = 0.2, 1.0
"""Phones, and words, that start further apart are not the same one."""

_PUNCTUATION = " \t.,;:!?\"'()-"


@dataclass(frozen=True)
class Boundaries:
    """Errors of onsets; None where nothing was matched.

    Attributes:
        num_a: what A has.
        num_b: what B has.
        num_matched: pairs of identical ones.
        share_matched: of A's.
        median_ms: median of the absolute error.
        p90_ms: 90th percentile of the absolute error.
        mean_ms: mean error, B minus A.
        within_20_ms: share of the matched.
        within_50_ms: share of the matched.
    """

    num_a: int
    num_b: int
    num_matched: int
    share_matched: float | None
    median_ms: float | None
    p90_ms: float | None
    mean_ms: float | None
    within_20_ms: float | None
    within_50_ms: float | None


@dataclass(frozen=True)
class Frames:
    """Frames that are alike; the share is None where there are none."""

    num: int
    num_alike: int
    share_alike: float | None


@dataclass(frozen=True)
class Part:
    """Phones of one class: their onsets, and A's frames."""

    phones: Boundaries
    frames: Frames


@dataclass(frozen=True)
class Comparison:
    """Two alignments of one utterance, compared.

    Attributes:
        symbols: what A's and B's phones are written in.
        phones_a: base phones of A.
        phones_b: base phones of B.
        phone_errors_ms: number of the phone in A to its error, for identical pairs.
        num_words_a: words of A.
        num_words_b: words of B.
        word_errors_ms: errors of identical pairs, in order.
        frames_a: ``(frames,)`` labels of A.
        frames_b: ``(frames,)`` labels of B.
    """

    symbols: tuple[SymbolSet, SymbolSet]
    phones_a: tuple[str, ...]
    phones_b: tuple[str, ...]
    phone_errors_ms: Mapping[int, float]
    num_words_a: int
    num_words_b: int
    word_errors_ms: tuple[float, ...]
    frames_a: NDArray[np.object_]
    frames_b: NDArray[np.object_]


@dataclass(frozen=True)
class Agreement:
    """Two alignments of a corpus, compared.

    Attributes:
        num_utterances: utterances that both have.
        only_a: ids that B lacks.
        only_b: ids that A lacks.
        phones: onsets of phones.
        words: onsets of words.
        frames: all frames.
        speech: frames in which at least one of the two is not silent.
        classes: the same for each class of A's phones; silence has frames only.
    """

    num_utterances: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    phones: Boundaries
    words: Boundaries
    frames: Frames
    speech: Frames
    classes: Mapping[str, Part]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def frame_labels(
    alignment: Alignment, num_frames: int, frame_shift_s: float, end_s: float, symbol_set: SymbolSet
) -> NDArray[np.object_]:
    """Return the base phone of each frame, ``(frames,)``; :data:`featcache.symbols.SILENCE` where there is none.

    Raises:
        StreamError: a phone's symbol stands for nothing known.
    """
    # -1, which is silence, points to the last label.
    labels = np.array([*(base_phone(phone.label, symbol_set) for phone in alignment.phones), SILENCE], object)
    times = [(phone.start_s, phone.end_s) for phone in alignment.phones]
    return labels[longest_overlap(times, num_frames, frame_shift_s, end_s)]


def compare(
    a: Alignment,
    b: Alignment,
    symbols: tuple[SymbolSet, SymbolSet] = ("english", "english"),
    frame_shift_s: float = 0.02,
    end_s: float | None = None,
) -> Comparison:
    """Compare two alignments of one utterance.

    Args:
        a: the reference.
        b: the other.
        symbols: what A's and B's phones are written in.
        frame_shift_s: length of a frame, in seconds.
        end_s: end of the audio, in seconds; None is the end of the last phone of either.

    Raises:
        StreamError: a phone's symbol stands for nothing known.
    """
    sounds_a, sounds_b = (
        [(phone.start_s, base_phone(phone.label, symbol_set)) for phone in side.phones]
        for side, symbol_set in zip((a, b), symbols, strict=True)
    )
    if end_s is None:
        end_s = max((phone.end_s for side in (a, b) for phone in side.phones), default=0.0)
    num_frames = int(np.ceil(round(end_s / frame_shift_s, 6)))
    words_a, words_b = _words(a.words), _words(b.words)
    common: SymbolSet = "other" if "other" in symbols else "english"
    return Comparison(
        symbols=symbols,
        phones_a=tuple(label for _, label in sounds_a),
        phones_b=tuple(label for _, label in sounds_b),
        phone_errors_ms=_errors_ms(sounds_a, sounds_b, PHONE_REACH_S, partial(phone_class, symbol_set=common)),
        num_words_a=len(words_a),
        num_words_b=len(words_b),
        word_errors_ms=tuple(_errors_ms(words_a, words_b, WORD_REACH_S, lambda _: "word").values()),
        frames_a=frame_labels(a, num_frames, frame_shift_s, end_s, symbols[0]),
        frames_b=frame_labels(b, num_frames, frame_shift_s, end_s, symbols[1]),
    )


def summarise(comparisons: Iterable[Comparison], only_a: Iterable[str] = (), only_b: Iterable[str] = ()) -> Agreement:
    """Put the comparisons of utterances together; `only_a` and `only_b` are ids that the other side lacks."""
    comparisons = list(comparisons)
    empty = np.empty(0, object)
    labels_a = np.concatenate([empty, *(one.frames_a for one in comparisons)])
    labels_b = np.concatenate([empty, *(one.frames_b for one in comparisons)])
    alike = labels_a == labels_b
    kinds = np.array([phone_class(label, one.symbols[0]) for one in comparisons for label in one.frames_a], object)
    phones_a = [phone_class(phone, one.symbols[0]) for one in comparisons for phone in one.phones_a]
    phones_b = [phone_class(phone, one.symbols[1]) for one in comparisons for phone in one.phones_b]
    errors = [
        (phone_class(one.phones_a[number], one.symbols[0]), error)
        for one in comparisons
        for number, error in one.phone_errors_ms.items()
    ]
    classes = {
        kind: Part(
            _boundaries(phones_a.count(kind), phones_b.count(kind), [error for name, error in errors if name == kind]),
            _frames(alike[kinds == kind]),
        )
        for kind in sorted({*phones_a, *kinds})
    }
    return Agreement(
        num_utterances=len(comparisons),
        only_a=tuple(only_a),
        only_b=tuple(only_b),
        phones=_boundaries(len(phones_a), len(phones_b), [error for _, error in errors]),
        words=_boundaries(
            sum(one.num_words_a for one in comparisons),
            sum(one.num_words_b for one in comparisons),
            [error for one in comparisons for error in one.word_errors_ms],
        ),
        frames=_frames(alike),
        speech=_frames(alike[(labels_a != SILENCE) | (labels_b != SILENCE)]),
        classes=classes,
    )


def _words(words: Sequence[Interval]) -> list[Sound]:
    return [(word.start_s, word.label.casefold().strip(_PUNCTUATION)) for word in words]


def _errors_ms(a: Sequence[Sound], b: Sequence[Sound], reach_s: float, kind: Callable[[str], str]) -> dict[int, float]:
    """Return number in A to error, for pairs of the same label; whole nanoseconds, so that a grid stays a grid."""
    found = pairs(a, b, reach_s, kind)
    return {
        first: (round(b[second][0] * 1e9) - round(a[first][0] * 1e9)) / 1e6
        for first, second in found
        if a[first][1] == b[second][1]
    }


def _boundaries(num_a: int, num_b: int, errors_ms: Sequence[float]) -> Boundaries:
    share = len(errors_ms) / num_a if num_a else None
    if not errors_ms:
        return Boundaries(num_a, num_b, 0, share, None, None, None, None, None)
    errors = np.array(errors_ms)
    sizes = np.abs(errors)
    return Boundaries(
        num_a,
        num_b,
        len(errors),
        share,
        median_ms=float(np.median(sizes)),
        p90_ms=float(np.percentile(sizes, 90)),
        mean_ms=float(errors.mean()),
        within_20_ms=float((sizes <= 20).mean()),
        within_50_ms=float((sizes <= 50).mean()),
    )


def _frames(alike: NDArray[np.bool_]) -> Frames:
    num, num_alike = len(alike), int(np.count_nonzero(alike))
    return Frames(num, num_alike, num_alike / num if num else None)

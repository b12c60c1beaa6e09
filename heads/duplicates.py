"""What may be on both sides of a split under two names: a stretch of audio, a copy of a recording, a text."""

import math
import os
import string
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from featcache.cache import CachedStream
from featcache.manifest import Utterance


class Span(NamedTuple):
    """Where an utterance lies: a file, and a stretch of it in seconds."""

    audio: str
    start_s: float
    end_s: float


def shared_spans(utterances: Sequence[Utterance]) -> dict[str, Span]:
    """Return by id where an utterance lies, for those whose recording holds others as well."""
    spans = {
        utterance.id: Span(
            os.path.normpath(utterance.audio),
            utterance.start_s or 0.0,
            math.inf if utterance.end_s is None else utterance.end_s,
        )
        for utterance in utterances
        if utterance.audio is not None
    }
    counts = Counter(span.audio for span in spans.values())
    return {name: span for name, span in spans.items() if counts[span.audio] > 1}


def overlaps(left: Iterable[str], right: Iterable[str], spans: Mapping[str, Span]) -> list[tuple[str, str]]:
    """Return, for each utterance of `right` that shares audio with one of `left`, the ids of such a pair, left first.

    An utterance of both is left out: it is no pair.
    """
    names = {name for name in left if name in spans}
    recordings: dict[str, list[tuple[float, float, str]]] = {}
    for name in names:
        recordings.setdefault(spans[name].audio, []).append((spans[name].start_s, spans[name].end_s, name))
    starts: dict[str, list[float]] = {}
    furthest: dict[str, list[tuple[float, str]]] = {}
    for audio, pieces in recordings.items():
        pieces.sort()
        starts[audio] = [start for start, _, _ in pieces]
        furthest[audio] = list(accumulate(((end, name) for _, end, name in pieces), max))
    pairs: list[tuple[str, str]] = []
    for name in right:
        place = spans.get(name)
        if place is not None and name not in names and place.audio in starts:
            # Of all pieces that start before this one ends, the one that reaches furthest decides.
            before = bisect_left(starts[place.audio], place.end_s)
            if before and furthest[place.audio][before - 1][0] > place.start_s:
                pairs.append((furthest[place.audio][before - 1][1], name))
    return pairs


class Copy(NamedTuple):
    """A recording that another file holds as well: the digest of its samples, and the file."""

    digest: str
    audio: str


def audio_digests(streams: Iterable[CachedStream], ids: Iterable[str]) -> dict[str, str]:
    """Return by id the digest of an utterance's audio, as a cache knows it without decoding anything.

    Args:
        streams: streams of one cache; the first that reads audio alone is asked.
        ids: utterances; those that the stream lacks are left out.

    Returns:
        The digests; none where no stream reads audio alone.
    """
    stream = next((stream for stream in streams if stream.spec.input == "audio"), None)
    return {} if stream is None else {name: stream.locate(name).entry.input for name in ids if name in stream}


def copied(utterances: Iterable[Utterance], digests: Mapping[str, str]) -> dict[str, Copy]:
    """Return by id the recordings that lie in several files.

    Args:
        utterances: the corpus.
        digests: by id, the digest of the utterance's audio; those without one are taken to be like no other.

    Returns:
        The utterances whose samples another file holds too; two rows of one file are no copies but the same stretch.
    """
    found = {
        utterance.id: Copy(digests[utterance.id], os.path.normpath(utterance.audio))
        for utterance in utterances
        if utterance.audio is not None and utterance.id in digests
    }
    files = Counter(digest for digest, _ in set(found.values()))
    return {name: copy for name, copy in found.items() if files[copy.digest] > 1}


def copies(left: Iterable[str], right: Iterable[str], of: Mapping[str, Copy]) -> list[tuple[str, str]]:
    """Return, for each utterance of `right` of which `left` holds a copy, the ids of such a pair, left first.

    Args:
        left: ids.
        right: ids.
        of: as of `copied`.
    """
    held: dict[str, dict[str, str]] = {}
    for name in left:
        if name in of:
            held.setdefault(of[name].digest, {}).setdefault(of[name].audio, name)
    pairs: list[tuple[str, str]] = []
    for name in right:
        if name in of:
            others = (other for audio, other in held.get(of[name].digest, {}).items() if audio != of[name].audio)
            pairs += [(other, name) for other in list(others)[:1]]
    return pairs


def words(text: str | None) -> str:
    """Return what is said, without regard to case, spaces and punctuation around words."""
    return " ".join(filter(None, (word.strip(string.punctuation) for word in (text or "").casefold().split())))

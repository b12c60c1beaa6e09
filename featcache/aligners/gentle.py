"""The JSON of Gentle (github.com/lowerquality/gentle): words with the durations of their phones.

Phones follow each other from their word's start, and keep their names (``ah_B``, ``oov_S``); ``sil`` is silence. A word
that Gentle heard although it is not in the transcript counts as said. Words that it did not find, and bracketed tokens
of the transcript such as ``[LAUGHTER]``, share the gap where they stand alike: a word as one phone ``spn``, a token as
the word and the phone ``[LAUGHTER]``; where there is no gap they take no time. Other gaps are silence.

Source: the published reader of Makiuchi et al. 2021 (``speech/phone_seq.py`` of
github.com/mmakiuchi/multimodal_emotion_recognition). Departures from it: it gives a gap whole to the word or token
ahead of the next word, finds tokens by the first occurrence of that word's text, and refuses a file with a word that
is not in the transcript. Gentle itself reads the name in brackets as a word: here it is the token, found or not.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from featcache.aligner import SymbolSet
from featcache.alignment import UNKNOWN, Alignment, Interval
from featcache.alignment_files import AlignmentFile, FileAligner
from featcache.errors import StreamError
from featcache.files import parse_json
from featcache.stream import Speech

_SILENCE = "sil"
_FOUND = ("success", "not-found-in-transcript")
_OVERLAP_S = 0.05  # Gentle aligns in passes whose words may meet a few frames too late
_SHORTEST_S = 0.002
_WORD = re.compile(r"(?:\w|[’']\w)+")  # Gentle's own, in metasentence.py
# All counts are bounded, so that a bracket that nothing closes costs little.
_TOKEN = re.compile(r"\[\s{0,30}([^\[\]\s](?:[^\[\]]{0,58}[^\[\]\s])?)\s{0,30}\]")


class _Item(NamedTuple):
    """A word or token in the order of the transcript; without times where it shares a gap."""

    label: str
    is_token: bool
    start_s: float | None = None
    end_s: float | None = None
    phones: tuple[Interval, ...] = ()
    is_oov: bool = False

    @property
    def is_unknown(self) -> bool:
        """Whether it is a word that was not found, or that Gentle's dictionary lacks."""
        return not self.is_token and (self.start_s is None or self.is_oov)


@dataclass(frozen=True)
class Gentle(FileAligner):
    """Words and phones from Gentle's JSON files; the unknown words are those not found or not in its dictionary."""

    title: ClassVar[str] = "JSON files that Gentle writes"

    endings: tuple[str, ...] = (".json",)

    @property
    def symbol_set(self) -> SymbolSet:
        """ARPAbet with position, as Gentle writes it."""
        return "english"

    def parse(self, file: AlignmentFile, speech: Speech) -> Alignment:
        """Return the words and phones of a file.

        Raises:
            StreamError: it is not Gentle's JSON, or no word was found.
        """
        items = _items(file, speech.text)
        if not any(item.start_s is not None or item.is_token for item in items):
            raise StreamError(
                f"{file.path}: Gentle found none of the {len(items)} words of its transcript in the audio. Check the "
                "text, or leave it out."
            )
        placed = _placed(items, (file.offset_s or 0.0) + speech.duration_s)
        unknown = dict.fromkeys(item.label for item in items if item.is_unknown)
        words = tuple(Interval(start_s, end_s, item.label) for item, start_s, end_s in placed)
        phones = (phone for item, start_s, end_s in placed for phone in _phones(item, start_s, end_s))
        return Alignment(words, tuple(phones), unknown_words=tuple(unknown))


def _items(file: AlignmentFile, text: str) -> list[_Item]:
    """Return words and tokens in their order."""
    try:
        content = parse_json(file.text())
    except ValueError as error:
        if isinstance(error, StreamError):
            raise
        raise StreamError(f"{file.path} is not JSON: {str(error)[:200]}. Run Gentle again.") from None
    words = content.get("words") if isinstance(content, dict) else None
    if words is None and isinstance(content, dict) and isinstance(content.get("transcript"), str):
        words = []  # Gentle leaves the list out where it is empty
    if not isinstance(words, list) or not all(isinstance(word, dict) for word in words):
        raise StreamError(f"{file.path} is not Gentle's: it has no list 'words' of objects. Give the files it wrote.")
    transcript = content.get("transcript")
    transcript = transcript if isinstance(transcript, str) else ""
    tokens = [(match.start(), match.end(), f"[{match[1].upper()}]") for match in _TOKEN.finditer(transcript)]
    begins = [begin for begin, _, _ in tokens]
    items: list[_Item] = []
    done = 0
    for word in words:
        first = word.get("startOffset")
        first = first if isinstance(first, int) and not isinstance(first, bool) else None
        inside = None
        if first is not None and bisect_left(begins, first) > 0:  # tokens do not overlap
            _, end, label = tokens[bisect_left(begins, first) - 1]
            inside = label if first < end else None
        while done < len(tokens) and first is not None and tokens[done][0] < first:
            if inside is None or tokens[done][1] <= first:
                items.append(_Item(tokens[done][2], True))
            done += 1
        items.append(_item(file, word, inside))
    items += [_Item(label, True) for _, _, label in tokens[done:]]
    if not tokens:
        items = _with_tokens_of(text, items)
    return [item for number, item in enumerate(items) if not _goes_on(item, items[number - 1] if number else None)]


def _goes_on(item: _Item, before: _Item | None) -> bool:
    """Return whether this is the second word of one token, ``[heavy breathing]``, none of them found."""
    return before is not None and item.is_token and item == before and item.start_s is None and " " in item.label


def _item(file: AlignmentFile, word: dict[str, Any], token: str | None) -> _Item:
    case = word.get("case", "success")
    label = word.get("word") or word.get("alignedWord") or "<unk>"
    if not isinstance(label, str) or not isinstance(case, str):
        raise StreamError(f"{file.path} is not Gentle's: a word's name is {str(label)[:40]!r}. Run Gentle again.")
    if case not in _FOUND or "start" not in word:
        return _Item(token or label, token is not None)
    start_s = file.seconds(word["start"], f"the start of {label[:40]!r}")
    end_s = file.seconds(word.get("end", start_s), f"the end of {label[:40]!r}")
    if not 0 <= start_s <= end_s:
        raise StreamError(f"{file.path}: {label[:40]!r} lasts from {start_s:g} to {end_s:g} s. Run Gentle again.")
    phones = []
    time_s = start_s
    for phone in word.get("phones") or []:
        name, duration_s = phone["phone"], file.seconds(phone["duration"], f"the duration of a phone of {label[:40]!r}")
        if not isinstance(name, str) or duration_s < 0:
            raise StreamError(f"{file.path}: a phone of {label[:40]!r} is {str(phone)[:60]}. Run Gentle again.")
        # Sums of durations carry rounding errors that would look like overlaps.
        after_s = round(time_s + duration_s, 6)
        if name != _SILENCE and after_s > time_s:
            phones.append(Interval(time_s, after_s, name))
        time_s = after_s
    if token is None and not phones:
        phones = [Interval(start_s, end_s, UNKNOWN)]
    if token is not None:
        return _Item(token, True, start_s, max(end_s, time_s), (Interval(start_s, max(end_s, time_s), token),))
    is_oov = word.get("alignedWord") == "<unk>" or any(phone.label.startswith(("oov", UNKNOWN)) for phone in phones)
    return _Item(label, False, start_s, max(end_s, phones[-1].end_s), tuple(phones), is_oov)


def _with_tokens_of(text: str, items: list[_Item]) -> list[_Item]:
    """Return items with the tokens of the manifest's text, for transcripts that were given to Gentle without them.

    Nothing is added where the texts differ in their words.
    """
    tokens = list(_TOKEN.finditer(text))
    plain = _TOKEN.sub(lambda match: " " * len(match[0]), text)
    places = [match.start() for match in _WORD.finditer(plain)]
    said = [match[0].casefold() for match in _WORD.finditer(plain)]
    if not tokens or said != [item.label.casefold() for item in items]:
        return items
    merged: list[tuple[int, _Item]] = list(zip(places, items, strict=True))
    merged += [(match.start(), _Item(f"[{match[1].upper()}]", True)) for match in tokens]
    return [item for _, item in sorted(merged, key=lambda pair: pair[0])]


def _placed(items: list[_Item], end_s: float) -> list[tuple[_Item, float, float]]:
    """Return items with their times; those without share the gaps, those for which there is none are left out."""
    placed: list[tuple[_Item, float, float]] = []
    waiting: list[_Item] = []
    before_s = 0.0
    for item in [*items, None]:
        if item is not None and item.start_s is None:
            waiting.append(item)
            continue
        start_s = end_s if item is None or item.start_s is None else item.start_s
        share_s = (start_s - before_s) / len(waiting) if waiting else 0.0
        if share_s >= _SHORTEST_S:
            bounds = [before_s + share_s * number for number in range(len(waiting))] + [start_s]
            placed += zip(waiting, bounds[:-1], bounds[1:], strict=True)
        waiting = []
        if item is not None and item.end_s is not None:
            if start_s < before_s <= start_s + _OVERLAP_S:
                start_s = before_s
            if start_s < item.end_s:
                placed.append((item, start_s, item.end_s))
            before_s = max(before_s, item.end_s)
    return placed


def _phones(item: _Item, start_s: float, end_s: float) -> list[Interval]:
    if item.start_s is None:
        return [Interval(start_s, end_s, item.label if item.is_token else UNKNOWN)]
    clipped = [phone._replace(start_s=max(phone.start_s, start_s)) for phone in item.phones]
    return [phone for phone in clipped if phone.start_s < phone.end_s]

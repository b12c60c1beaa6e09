"""Praat's TextGrid files, in long and short form, with intervals of words and phones.

The parser is praatio's. What is added: encodings as Praat itself tries them (UTF-16 by its mark, UTF-8, else Latin-1),
tiers found by name although a speaker's name stands before it, a count of intervals that must be as declared (praatio
takes a file that was cut off for a shorter one), and one kind of error.

Source: https://www.fon.hum.uva.nl/praat/manual/TextGrid_file_formats.html
"""

import codecs
import math
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from praatio.utilities import textgrid_io
from praatio.utilities.constants import INTERVAL_TIER

from featcache.alignment import Interval
from featcache.errors import StreamError
from featcache.files import listed, quoted, read_plain

SILENCE = frozenset({"", "sil", "sil_s", "sp", "silence", "pau", "<eps>", "<sil>", "<silence>", "<p:>"})
"""Labels that mean silence, in lower case, as MFA, Kaldi, P2FA, Festival and WebMAUS write it."""

# Space is matched line by line: patterns that cross lines try every line of a file of empty ones from every other line.
_LONG_COUNT = re.compile(r"^[ \t]*intervals ?: ?size ?= ?(\d{1,18})[ \t]*$", re.MULTILINE)
_SHORT_COUNT = re.compile(
    r'"IntervalTier"[ \t]*\n[ \t]*"(?:[^"]|"")*"[ \t]*\n[ \t]*\S+[ \t]*\n[ \t]*\S+[ \t]*\n[ \t]*(\d{1,18})'
)
_LONG_NEGATIVE = re.compile(r"^[ \t]*x(?:min|max) ?= ?(-[\d.]{1,40})[ \t]*$", re.MULTILINE)


class TextGrid(NamedTuple):
    """Two tiers of a TextGrid.

    Attributes:
        words: intervals of words, silence left out; times in seconds, in the file's order.
        phones: intervals of phones, silence left out.
        max_time_s: where the file says that the recording ends, in seconds.
    """

    words: tuple[Interval, ...]
    phones: tuple[Interval, ...]
    max_time_s: float


def read_textgrid(
    path: Path, words_tier: str | None = "words", phones_tier: str = "phones", silence: Set[str] = SILENCE
) -> TextGrid:
    """Read the words and phones of a TextGrid from its file; see :func:`parse_textgrid`.

    Raises:
        StreamError: the file cannot be read, or is not as :func:`parse_textgrid` wants it.
    """
    path = Path(path)
    try:
        content = read_plain(path)
    except OSError as error:
        raise StreamError(f"{path} cannot be read: {error.strerror or error}.") from error
    return parse_textgrid(content, path, words_tier, phones_tier, silence)


def parse_textgrid(
    content: bytes,
    path: Path,
    words_tier: str | None = "words",
    phones_tier: str = "phones",
    silence: Set[str] = SILENCE,
) -> TextGrid:
    """Return the words and phones of a TextGrid.

    Labels lose the space around them. Times are taken as they are: whether they run forward and fit the audio is
    checked by :func:`featcache.alignment.checked`.

    Args:
        content: text in Praat's long or short form, in any of its encodings.
        path: where it was read, for messages.
        words_tier: name of the tier of words; None reads no words. A tier of this name wins; otherwise letter case does
            not matter, and ``Ses01_F - words``, as MFA writes where it knows the speaker, is found too.
        phones_tier: name of the tier of phones, found likewise.
        silence: labels that are silence, in lower case; they become gaps.

    Raises:
        StreamError: it is no TextGrid or was cut off, lacks a tier (the message lists those that
            it has), has several that fit, or one of points instead of intervals.
    """
    grid = _parsed(path, _decoded(content))
    max_time_s = _seconds(path, grid["xmax"])
    tiers = grid["tiers"]
    words = () if words_tier is None else tuple(_intervals(path, _tier(path, tiers, words_tier), silence))
    return TextGrid(words, tuple(_intervals(path, _tier(path, tiers, phones_tier), silence)), max_time_s)


def _parsed(path: Path, text: str) -> Mapping[str, Any]:
    if "ooTextFile" not in text[:200] or "TextGrid" not in text[:200]:
        raise StreamError(
            f"{path} is not a TextGrid in text form: 'ooTextFile' and 'TextGrid' are missing in its first lines. If "
            "Praat can open it, save it there again with 'Save as text file...'."
        )
    if text.lstrip().startswith(("{", "[")):  # which praatio takes as it comes
        raise StreamError(f"{path} is JSON, not a TextGrid in text form. Save it with Praat's 'Save as text file...'.")
    try:
        grid: Mapping[str, Any] = textgrid_io.parseTextgridStr(text, includeEmptyIntervals=True)
    except Exception as error:  # praatio lets through what its parsing runs into: IndexError, ValueError and others
        raise StreamError(
            f"{path} cannot be read as a TextGrid; it may be damaged or cut off ({type(error).__name__}: "
            f"{str(error)[:200]}). "
            "Make it again, or open it in Praat and save it with 'Save as text file...'."
        ) from error
    _check_whole(path, text, grid["tiers"])
    return grid


def _decoded(content: bytes) -> str:
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _check_whole(path: Path, text: str, tiers: list[Mapping[str, Any]]) -> None:
    # praatio chooses between the forms by the same test.
    short = "ooTextFile short" in text or "item [" not in text
    declared = [int(count) for count in (_SHORT_COUNT if short else _LONG_COUNT).findall(text)]
    found = [len(tier["entries"]) for tier in tiers if tier["class"] == INTERVAL_TIER]
    if declared != found:
        raise StreamError(
            f"{path} declares tiers of {quoted(declared)} intervals, but {quoted(found)} could be read: it is "
            "damaged or was cut off. Make it again."
        )
    # praatio drops the sign.
    negative = [] if short else [time for time in _LONG_NEGATIVE.findall(text) if time.strip("-0.")]
    if negative:
        raise StreamError(f"{path} holds the negative time {negative[0]}. Times count from 0: make it again.")


def _tier(path: Path, tiers: list[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    wanted = name.casefold()
    for fits in (
        lambda tier: tier["name"] == name,
        lambda tier: tier["name"].strip().casefold() == wanted,
        lambda tier: tier["name"].strip().casefold().endswith(f" - {wanted}"),
    ):
        fitting = [tier for tier in tiers if fits(tier)]
        if fitting:
            break
    existing = listed(repr(tier["name"][:60]) for tier in tiers)
    if not fitting:
        raise StreamError(f"{path} has no tier {name!r}. Its tiers are: {existing}. Name the tier to read.")
    if len(fitting) > 1:
        raise StreamError(
            f"{path} has {len(fitting)} tiers that {name!r} may mean. Its tiers are: {existing}. Give the full name of "
            "one; a file of several speakers needs to be cut into utterances first."
        )
    if fitting[0]["class"] != INTERVAL_TIER:
        raise StreamError(f"{path}: tier {name!r} holds points, where intervals are needed. Its tiers are: {existing}.")
    return fitting[0]


def _intervals(path: Path, tier: Mapping[str, Any], silence: Set[str]) -> Iterator[Interval]:
    for start, end, label in tier["entries"]:
        label = label.strip()
        if label.casefold() not in silence:
            yield Interval(_seconds(path, start), _seconds(path, end), label)


def _seconds(path: Path, value: Any) -> float:
    try:
        time_s = float(value)
    except ValueError:
        time_s = math.nan
    if not math.isfinite(time_s):
        raise StreamError(f"{path} is damaged: {str(value)[:40]!r} stands where a time in seconds was expected.")
    return time_s

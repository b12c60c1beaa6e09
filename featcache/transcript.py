"""English transcripts, as the words that are spoken, for forced alignment.

Conventions
-----------
- Words are in lower case, of the letters a to z, with apostrophes where they are part of the word (``don't``,
  ``'cause``, ``dogs'``). Accents are taken off (``café``). A hyphenated word stays whole only where the dictionary has
  it; other punctuation goes.
- Numbers are spelt by num2words: cardinals, decimals, ordinals, money, percentages, times, ranges; four digits from
  1100 to 2099 without a comma are a year. Telephone numbers, a leading zero and more than 15 digits are read digit by
  digit.
- Upper-case letters between dots (``U.S.A.``) are letters; so are two to five upper-case letters that the
  dictionary does not know, where the rest of the text is not in upper case too.
- ``[...]`` is an event, whatever it says: ``[LAUGHTER]``, or ``[heavy breathing]``, which is ``[BREATHING]`` as any
  with a word of laughing, breathing or smacking in it; else four words or more describe a scene and are dropped. Stage
  directions in ``(...)``, ``*...*`` or ``<...>`` are events where they begin with such a word (``(laughs softly)``);
  otherwise what is in parentheses or asterisks is spoken, and what is in angle brackets is markup and dropped.
- Letters of other scripts are dropped: there is no English reading of them. So are marks without a shape, such as a
  zero-width space or a soft hyphen: what stands around them is one word.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from featcache.errors import StreamError

EVENTS = {
    "LAUGHTER": "laugh laughs laughing laughed laughter chuckle chuckles chuckling giggle giggles giggling",
    "BREATHING": "breath breaths breathe breathes breathing inhale inhales exhale exhales sigh sighs "
    "sighing gasp gasps",
    "LIPSMACK": "lipsmack lipsmacks smack smacks",
}
"""Names of events, and the words that stand for them."""

_EVENT_OF = {word: f"[{name}]" for name, words in EVENTS.items() for word in words.split()}
_PUNCTUATION = str.maketrans(
    {
        **dict.fromkeys("’‘‛ʼʻ`´′＇\x91\x92", "'"),
        **dict.fromkeys("–—―−‒‐‑\x96\x97", "-"),
        **dict.fromkeys("…\x85\xa0", " "),
        **{"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d"},
        **{"Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i", "½": " one half ", "¼": " one quarter "},
        **{"¾": " three quarters ", "⁄": "/"},
    }
)
_SIGNS = {"%": "percent", "&": "and", "@": "at", "+": "plus", "=": "equals", "°": "degrees"}
_CURRENCIES = {"$": ("dollar", "cent"), "£": ("pound", "penny"), "€": ("euro", "cent")}
_PLURALS = {"penny": "pence"}
_SCALE = r"(?:\s?(hundred|thousand|million|billion|trillion)\b)?"
_NUMBER = r"\d{1,3}(?:,\d{3})+|\d+"

_DIRECTION = re.compile(r"\[([^\[\]]*)\]|\(([^()]*)\)|\*([^*]*)\*|<([^<>]*)>|\{([^{}]*)\}")
_PIECE = re.compile(
    rf"""
    (?P<event>\x00[^\x00]*\x00)
    |(?P<money>[$£€]\s?(?:{_NUMBER})(?:\.\d+)?{_SCALE})
    |(?P<time>(?<![\d:])\d{{1,2}}:[0-5]\d(?![\d:]))
    |(?P<telephone>\b(?:\d{{3}}-)?\d{{3}}-\d{{4}}\b)
    |(?P<ordinal>(?:{_NUMBER})(?:st|nd|rd|th)\b)
    |(?P<decade>'?\d{{2,4}}'?s\b)
    |(?P<decimal>(?:{_NUMBER})?\.\d+)
    |(?P<number>{_NUMBER})
    |(?P<dotted>\b[a-z](?:\.[a-z])+\b\.?)
    |(?P<word>[a-z'][a-z']*(?:-+[a-z']+)*)
    |(?P<sign>[%&@+=°])
    |(?P<minus>(?<![\w'-])-(?=\.?\d))
    |(?P<range>(?<=\d)\s?-\s?(?=\d))
    """,
    re.VERBOSE | re.IGNORECASE,
)


@dataclass(frozen=True)
class Token:
    """A word, or a sound that is no word.

    Attributes:
        spelling: the word in lower case, or the event in upper case and square brackets.
        kind: which of the two.
    """

    spelling: str
    kind: Literal["word", "event"] = "word"


def tokens(text: str, known: Callable[[str], bool] = lambda word: False) -> tuple[Token, ...]:
    """Return what is spoken, in order.

    Args:
        text: an English transcript, any unicode.
        known: whether a word, in lower case, is in the dictionary; it decides about hyphens, quotes and initialisms.

    Raises:
        StreamError: there is nothing to speak in it.
    """
    plain = _DIRECTION.sub(_direction, _folded(text.replace("\x00", " ")))
    shouted = plain.upper() == plain
    found = [token for match in _PIECE.finditer(plain) for token in _spoken(match, known, shouted)]
    if not found:
        shown = text if len(text) <= 60 else text[:60] + "..."
        raise StreamError(f"its text {shown!r} has no word. Give it an English transcript, or leave it out.")
    return tuple(found)


def _folded(text: str) -> str:
    """Return the text with plain letters, digits, quotes and dashes."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_PUNCTUATION)).translate(_PUNCTUATION)
    kept = (mark for mark in decomposed if not (unicodedata.combining(mark) or unicodedata.category(mark) == "Cf"))
    return "".join(str(unicodedata.decimal(mark)) if mark.isdecimal() else mark for mark in kept)


def _direction(match: re.Match[str]) -> str:
    square, angle = match[1], match[4]
    inside = match[0][1:-1]
    words = re.findall(r"[A-Za-z0-9]+", inside)
    telling = words[:1] if square is None else words
    event = next((_EVENT_OF[word.lower()] for word in telling if word.lower() in _EVENT_OF), None)
    if square is not None and 1 <= len(words) <= 3 and event is None:
        event = f"[{'_'.join(words).upper()}]"
    if event:
        return f" \x00{event}\x00 "
    return " " if angle is not None or square is not None else f" {inside} "


def _spoken(match: re.Match[str], known: Callable[[str], bool], shouted: bool) -> Iterator[Token]:
    piece, kind = match[0], match.lastgroup
    if kind == "event":
        yield Token(piece.strip("\x00"), "event")
        return
    if kind == "word":
        words = _words(piece, known, shouted)
    elif kind == "dotted":
        words = [letter for letter in piece.lower() if letter != "."]
    elif kind == "sign":
        words = [_SIGNS[piece]]
    elif kind in ("minus", "range"):
        words = ["minus" if kind == "minus" else "to"]
    else:
        words = _READERS[str(kind)](piece.lower())
    yield from (Token(word) for word in words)


def _words(piece: str, known: Callable[[str], bool], shouted: bool) -> list[str]:
    whole = piece.strip("-").lower()
    if "-" in whole and known(whole):
        return [whole]
    words: list[str] = []
    for part in piece.split("-"):
        word = _unquoted(part.lower(), known)
        initials = part.isalpha() and part.isupper() and 2 <= len(part) <= 5 and not shouted and not known(word)
        words.extend(word if initials else [word])
    return [word for word in words if word.strip("'")]


def _unquoted(word: str, known: Callable[[str], bool]) -> str:
    """Return the word without the apostrophes that are quotation marks."""
    bare = word.strip("'")
    candidates = (bare,) if word[:1] == word[-1:] == "'" else (word, word.rstrip("'"), word.lstrip("'"), bare)
    return next((candidate for candidate in candidates if known(candidate)), bare)


def _spelt(number: str | int, to: str = "cardinal") -> list[str]:
    from num2words import num2words

    return re.findall(r"[a-z]+", num2words(number, to=to))


def _digits(text: str) -> list[str]:
    return [word for digit in text if digit.isdigit() for word in _spelt(int(digit))]


def _cardinal(text: str) -> list[str]:
    plain = text.replace(",", "")
    if len(plain) > 15 or (len(plain) > 1 and plain[0] == "0"):
        return _digits(plain)
    return _spelt(int(plain))


def _number(text: str) -> list[str]:
    if len(text) == 4 and (1100 <= int(text) <= 2099):
        return _spelt(int(text), to="year")
    return _cardinal(text)


def _decimal(text: str) -> list[str]:
    whole, _, fraction = text.partition(".")
    return [*(_cardinal(whole) if whole else []), "point", *_digits(fraction)]


def _ordinal(text: str) -> list[str]:
    plain = text[:-2].replace(",", "")
    return _spelt(int(plain), to="ordinal") if len(plain) <= 15 else _digits(plain)


def _decade(text: str) -> list[str]:
    *before, last = _number(text.strip("'s"))
    return [*before, last[:-1] + "ies" if last.endswith("y") else last + ("es" if last.endswith("x") else "s")]


def _time(text: str) -> list[str]:
    hour, minute = (int(part) for part in text.split(":"))
    if minute == 0:
        return [*_spelt(hour), "o'clock"] if 1 <= hour <= 12 else [*_spelt(hour), "hundred"]
    return [*_spelt(hour), *(["oh"] if minute < 10 else []), *_spelt(minute)]


def _money(text: str) -> list[str]:
    major, minor = _CURRENCIES[text[0]]
    amount, *scale = re.split(r"(?<=\d)\s*(?=[a-z])", text[1:].strip())
    whole, _, fraction = amount.partition(".")
    if scale:
        return [*(_decimal(amount) if fraction else _cardinal(whole)), *scale, f"{major}s"]
    words = [*_cardinal(whole), major if whole == "1" else f"{major}s"]
    if fraction.strip("0"):
        cents = int(fraction[:2].ljust(2, "0"))
        words += ["and", *_spelt(cents), minor if cents == 1 else _PLURALS.get(minor, f"{minor}s")]
    return words


_READERS: dict[str, Callable[[str], list[str]]] = {
    "money": _money,
    "time": _time,
    "telephone": _digits,
    "ordinal": _ordinal,
    "decade": _decade,
    "decimal": _decimal,
    "number": _number,
}

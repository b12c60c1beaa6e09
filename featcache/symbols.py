"""Phone symbols: what every aligner writes, mapped to the 39 phones of the CMU dictionary.

Conventions
-----------
- A base phone is ARPAbet in lower case without stress: the 39 of :data:`PHONES`. Beside them stand
  :data:`featcache.alignment.UNKNOWN` and events, ``[NAME]`` in upper case.
- The mapping looks at one symbol at a time, never at its neighbours. So a flap is ``t`` (it may have been spelt d), a
  closure is the stop it begins (TIMIT has ``tcl`` before ``ch`` too), and a vowel that swallowed an r or l (espeak's
  ``A@``, ``@L``) is one phone: the vowel, or the l where it is syllabic.
- Where phonetics and phonology part, the dictionary decides, because aligners follow dictionaries: the stopped
  ``d̪`` of "the" is ``dh``, the ``3`` of British "letter" is ``er``.

Sources: the CMU dictionary; TIMIT's phoncode.doc and the Buckeye corpus manual (variants); the lists of phones in the
READMEs of MFA's English dictionaries 2.0.0a to 3.1.0 (github.com/MontrealCorpusTools/mfa-models); phsource/ph_english
and ph_english_us of espeak-ng, and what its nine English voices say of 126,000 words.
"""

import re
import unicodedata
from collections.abc import Mapping
from types import MappingProxyType

from featcache.aligner import SymbolSet
from featcache.alignment import UNKNOWN
from featcache.errors import StreamError

SILENCE = "sil"
"""Stands for the gaps between phones wherever a label is needed. No symbol maps to it: silence is no interval."""

_MEMBERS = {
    "vowel": "aa ae ah ao aw ay eh er ey ih iy ow oy uh uw",
    "stop": "b d g k p t",
    "fricative": "dh f hh s sh th v z zh",
    "affricate": "ch jh",
    "nasal": "m n ng",
    "approximant": "l r w y",
}

CLASSES: Mapping[str, str] = MappingProxyType(
    dict(sorted((phone, name) for name, phones in _MEMBERS.items() for phone in phones.split()))
)
"""Base phone to manner: vowel, stop, fricative, affricate, nasal or approximant."""

PHONES: tuple[str, ...] = tuple(CLASSES)
"""The 39 base phones, in alphabetical order."""

VARIANTS: Mapping[str, str] = MappingProxyType(
    {
        # TIMIT and Buckeye
        "ax": "ah", "ax-h": "ah", "ix": "ih", "axr": "er", "ux": "uw", "hv": "hh", "q": "t", "tq": "t", "dx": "t",
        "nx": "n", "el": "l", "em": "m", "en": "n", "eng": "ng", "bcl": "b", "dcl": "d", "gcl": "g", "kcl": "k",
        "pcl": "p", "tcl": "t",
        # Buckeye's nasal vowels
        **{f"{vowel}n": vowel for vowel in _MEMBERS["vowel"].split()},
    }
)  # fmt: skip
"""ARPAbet beyond the 39."""

IPA: Mapping[str, str] = MappingProxyType(
    {
        # vowels, as MFA's English models and as most dictionaries write them
        "i": "iy", "ɪ": "ih", "ᵻ": "ih", "ɨ": "ih", "e": "ey", "ɛ": "eh", "æ": "ae", "a": "ae", "aː": "aa", "ɑ": "aa",
        "ɒ": "ao", "ɔ": "ao", "o": "ow", "ʊ": "uh", "u": "uw", "ʉ": "uw", "ʌ": "ah", "ɐ": "ah", "ə": "ah", "ɘ": "ah",
        "ɜ": "er", "ɝ": "er", "ɚ": "er", "ə˞": "er", "ɜ˞": "er",
        "aj": "ay", "aɪ": "ay", "aw": "aw", "aʊ": "aw", "ej": "ey", "eɪ": "ey", "ow": "ow", "oʊ": "ow", "əw": "ow",
        "əʊ": "ow", "ɔj": "oy", "ɔɪ": "oy",
        # stops; palatal ones are k and g before front vowels, doubly articulated ones occur in Nigerian names
        "b": "b", "d": "d", "ɡ": "g", "g": "g", "k": "k", "p": "p", "t": "t", "c": "k", "ɟ": "g", "ʈ": "t", "ɖ": "d",
        "kp": "k", "ɡb": "g", "gb": "g", "ʔ": "t", "ɾ": "t", "ɾ\u0303": "n", "t̪": "th", "d̪": "dh",
        # fricatives and affricates
        "f": "f", "v": "v", "θ": "th", "ð": "dh", "s": "s", "z": "z", "ʃ": "sh", "ʒ": "zh", "h": "hh", "ɦ": "hh",
        "ç": "hh", "x": "k", "tʃ": "ch", "dʒ": "jh", "ʧ": "ch", "ʤ": "jh",
        # nasals and approximants
        "m": "m", "ɱ": "m", "n": "n", "ɲ": "n", "ŋ": "ng", "l": "l", "ɫ": "l", "ʎ": "l", "ɭ": "l", "ɹ": "r", "r": "r",
        "ɻ": "r", "w": "w", "ʍ": "w", "ʋ": "v", "j": "y",
    }
)  # fmt: skip
"""IPA to base phone. A mark that a symbol here does not carry, of length, aspiration or place, is taken off first."""

ESPEAK: Mapping[str, str] = MappingProxyType(
    {
        "@": "ah", "@2": "ah", "@5": "ah", "@-": "ah", "@#": "ah", "@L": "l", "3": "er", "3:": "er", "IR": "er",
        "VR": "er", "a": "ae", "a2": "ae", "aa": "ae", "a#": "ah", "a#2": "ae", "A:": "aa", "A@": "aa", "A#": "aa",
        "A~": "aa", "0": "aa", "0#": "aa", "02": "ah", "O": "ao", "O2": "ao", "O:": "ao", "O@": "ao", "O~": "ao",
        "o@": "ao", "o": "ow", "o:": "ow", "oU": "ow", "oU#": "ow", "OI": "oy", "aI": "ay", "aI2": "ay", "aI3": "ay",
        "aI@": "ay", "aU": "aw", "aU@": "aw", "E": "eh", "E2": "eh", "E#": "eh", "e#": "eh", "e@": "eh", "e:": "ey",
        "eI": "ey", "I": "ih", "I2": "ih", "I#": "ih", "I2#": "ih", "i@3": "ih", "i": "iy", "i:": "iy", "i::": "iy",
        "i@": "iy", "u": "uw", "u:": "uw", "U": "uh", "U@": "uh", "V": "ah",
        "b": "b", "d": "d", "d#": "d", "d[": "dh", "D": "dh", "dZ": "jh", "f": "f", "g": "g", "h": "hh", "j": "y",
        ";": "y", "k": "k", "x": "k", "l": "l", "l#": "l", "l^": "l", "l-": "l", "m": "m", "m-": "m", "n": "n",
        "n-": "n", "n^": "n", "N": "ng", "p": "p", "r": "r", "r-": "r", "s": "s", "S": "sh", "t": "t", "t2": "t",
        "t#": "t", "?": "t", "t[": "th", "T": "th", "tS": "ch", "v": "v", "w": "w", "w#": "w", "z": "z", "z#": "z",
        "Z": "zh",
    }
)  # fmt: skip
"""Mnemonics of espeak-ng's English voices, without stress marks, to base phones."""

ENGLISH: Mapping[str, str] = MappingProxyType({**{phone: phone for phone in PHONES}, **VARIANTS, **IPA})
"""All that ``english`` knows, in lower case and without stress: ARPAbet and IPA share spellings, never meanings.
SAMPA does not fit in beside them (its ``S`` is not ARPAbet's)."""

_UNKNOWN = {"spn", "oov", "unk", "<unk>", "<oov>", "+spn+", "++spn++"}
_EVENTS = {"+nsn+": "[NOISE]", "nsn": "[NOISE]", "noise": "[NOISE]", "laughter": "[LAUGHTER]"}
_BRACKETED = re.compile(r"\[\s*([^\[\]]+?)\s*\]|\+{1,2}([^+]+)\+{1,2}")
_POSITION = re.compile(r"_[bies]$")
_STRESSED = re.compile(r"([a-z]+)[0-9]")
_ESPEAK_STRESS = "',%=|"


def base_phone(symbol: str, symbol_set: SymbolSet) -> str:
    """Return the base phone, :data:`UNKNOWN` or event that a symbol stands for.

    Args:
        symbol: a phone's label, as its aligner wrote it; silence has none.
        symbol_set: the symbols it is written in; ``other`` is returned as it is.

    Raises:
        StreamError: it stands for nothing known.
    """
    if symbol_set == "other":
        return symbol
    text = unicodedata.normalize("NFC", symbol.strip())
    plain = _POSITION.sub("", text.lower())
    if plain in _UNKNOWN:
        return UNKNOWN
    if plain in _EVENTS:
        return _EVENTS[plain]
    if event := _BRACKETED.fullmatch(plain):
        return f"[{(event[1] or event[2]).upper()}]"
    phone = ESPEAK.get(text.lstrip(_ESPEAK_STRESS)) if symbol_set == "espeak" else _english(plain)
    if phone is None:
        raise StreamError(
            f"its phone {symbol!r} stands for none of the inventory: {' '.join(PHONES)}, {UNKNOWN} or an event such "
            "as [LAUGHTER]. If it is silence, leave it out; for another language than English, set symbols=other with "
            "inventory=occurring."
        )
    return phone


def _english(plain: str) -> str | None:
    if stressed := _STRESSED.fullmatch(plain):
        plain = stressed[1]
    if plain in ENGLISH:
        return ENGLISH[plain]
    # A length mark may decide ("aː"), others only describe: take them off in two steps.
    marks = unicodedata.normalize("NFD", plain)
    bare = "".join(mark for mark in marks if mark in "ː˞" or not _describes(mark))
    for candidate in (bare, bare.replace("ː", "")):
        if candidate in ENGLISH:
            return ENGLISH[candidate]
    return None


def _describes(mark: str) -> bool:
    return unicodedata.category(mark) in ("Mn", "Lm", "Sk")


def phone_class(phone: str, symbol_set: SymbolSet = "english") -> str:
    """Return what kind of sound a base phone is.

    Args:
        phone: as :func:`base_phone` gives it.
        symbol_set: what it was written in; of ``other`` symbols nothing is known, however much one looks like ARPAbet.

    Returns:
        A class of :data:`CLASSES`, or ``silence``, ``unknown``, ``event``, or ``other`` for other languages' phones.
    """
    if symbol_set != "other" and phone in CLASSES:
        return CLASSES[phone]
    if phone == SILENCE:
        return "silence"
    if phone == UNKNOWN:
        return "unknown"
    return "event" if phone.startswith("[") else "other"

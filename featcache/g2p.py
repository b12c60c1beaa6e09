"""How an English word is said that no dictionary has: espeak-ng's reading, in the CMU dictionary's phones.

The American voice's own rules for spelling are used (``espeak_TextToPhonemes``, in IPA), not its sound. Each symbol is
mapped by :mod:`featcache.symbols`; syllabic consonants get the vowel that the CMU dictionary writes (``AH N``), nasal
vowels an N, and the r of espeak's r-coloured vowels is a phone of its own but after ER.
"""

import ctypes
import re
from collections.abc import Iterable

from featcache import espeak
from featcache.symbols import IPA, base_phone

VOICE = "gmw/en-US"

_IPA_NAMES, _UTF8 = 0x02, 1
_SYMBOL = re.compile("|".join(sorted(map(re.escape, IPA), key=len, reverse=True)))
_MARKS = str.maketrans(dict.fromkeys("ˈˌːʲ_‿ \u0361\u200d"))
_LANGUAGE = re.compile(r"\([a-z-]+\)")  # espeak marks a word that it reads as another language's


def pronunciations(words: Iterable[str]) -> dict[str, tuple[str, ...] | None]:
    """Return, for each word, its phones as the CMU dictionary writes them, without stress; None where there are none.

    Raises:
        MissingExtraError: the package espeakng-loader is not installed.
        FeatcacheError: espeak-ng failed, or is in use by another part of this program.
    """
    with espeak.opened(VOICE) as library:
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p
        return {word: from_ipa(_ipa(library, word)) for word in words}


def _ipa(library: ctypes.CDLL, word: str) -> str:
    text = ctypes.create_string_buffer(word.encode(errors="replace"))
    rest = ctypes.c_void_p(ctypes.addressof(text))
    said = b""
    while rest.value:  # one clause a call; the engine sets the pointer to NULL at the end
        said += library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA_NAMES) or b""
    return said.decode(errors="replace")


def from_ipa(ipa: str) -> tuple[str, ...] | None:
    """Return the CMU dictionary's phones for espeak-ng's IPA; None where a symbol is not known or there is none."""
    plain = _LANGUAGE.sub("", ipa).translate(_MARKS)
    plain = re.sub("(?<=[aɑɔɛæ])\u0303", "n", plain)
    plain = re.sub("([nmlɹ])\u0329", r"ə\1", plain)
    plain = re.sub("([ɜɚ])ɹ", r"\1", plain)
    phones = []
    position = 0
    while position < len(plain):
        match = _SYMBOL.match(plain, position)
        if match is None:
            return None
        phones.append(base_phone(match[0], "english").upper())
        position = match.end()
    return tuple(phones) or None

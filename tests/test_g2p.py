"""Pronunciations guessed by espeak-ng."""

import sys

import pytest

from featcache.errors import FeatcacheError, MissingExtraError
from featcache.g2p import from_ipa, pronunciations
from featcache.symbols import PHONES


@pytest.mark.parametrize(
    ("ipa", "phones"),
    [
        ("dˈæʃwʊd", "D AE SH W UH D"),
        ("tʃˈɛɹ", "CH EH R"),
        ("fˈaɪɚ", "F AY ER"),
        ("wˈɜːɹi", "W ER IY"),
        ("bˈʌʔn̩", "B AH T AH N"),
        ("kwˈɑːsɑ̃", "K W AA S AA N"),
        ("(fr)bˈɔ̃(en-us)", "B AO N"),
        ("dʒˈʌdʒ", "JH AH JH"),
    ],
)
def test_ipa_becomes_the_dictionarys_phones(ipa: str, phones: str):
    assert from_ipa(ipa) == tuple(phones.split())


@pytest.mark.parametrize("ipa", ["", "ˈ_", "kǃa"])
def test_what_has_no_reading_gives_none(ipa: str):
    assert from_ipa(ipa) is None


def test_words_are_guessed_alike_whatever_was_guessed_before():
    pytest.importorskip("espeakng_loader")
    alone = pronunciations(["dashwood"])
    among = pronunciations(["zzzz", "hermione", "dashwood", "x'y'z", "a" * 300])
    assert alone["dashwood"] == among["dashwood"] == ("D", "AE", "SH", "W", "UH", "D")
    assert among["hermione"] == ("HH", "ER", "M", "AY", "AH", "N", "IY")
    assert {phone for said in among.values() for phone in said or ()} <= {phone.upper() for phone in PHONES}


def test_without_espeak_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(MissingExtraError, match=r"featcache\[demo\]") as caught:
        pronunciations(["dashwood"])
    assert isinstance(caught.value, FeatcacheError)

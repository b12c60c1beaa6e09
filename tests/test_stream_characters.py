"""A transcript's characters are those that its reader would spell, and none is left out without a word."""

from pathlib import Path

import numpy as np
import pytest

import featcache
from featcache import Manifest, Utterance
from featcache.errors import ConfigError, StreamError
from featcache.extract import extract
from featcache.settings import build
from featcache.streams.characters import BLANK, BOUNDARY, Characters

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def target(text: str, **settings: str) -> str:
    stream = Characters(**settings)  # type: ignore[arg-type]
    [features] = stream.load("cpu", "float32").extract([text])
    if isinstance(features, Exception):
        raise features
    assert features.frames.dtype == np.int16
    assert features.frames.shape[::2] == (1, 1)
    return "".join(stream.symbols[number] for number in features.frames[0, :, 0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's nine o'clock!", "IT'S|NINE|O'CLOCK"),
        ("Yeah.  I know ...", "YEAH|I|KNOW"),
        ("don’t — you're not--you're fine", "DON'T|YOU'RE|NOT|YOU'RE|FINE"),
        ("she said 'well', not ''cause' or dogs'", "SHE|SAID|WELL|NOT|CAUSE|OR|DOGS"),
        ("she said 'well, I don't know' and left", "SHE|SAID|WELL|I|DON'T|KNOW|AND|LEFT"),
        ("‘em goin’ ``rock''n'roll''", "EM|GOIN|ROCK|N'ROLL"),
        ("ŉ man, rockŉroll", "N|MAN|ROCK'NROLL"),
        ("[LAUGHTER] That's [loud noise]great", "THAT'S|GREAT"),
        ("so\u00adft zero\u200bwidth\ttab\n", "SOFT|ZEROWIDTH|TAB"),
        ("' '' lone", "LONE"),
        ("(softly) U.S.A.", "SOFTLY|U|S|A"),
        ("no | pipe", "NO|PIPE"),
    ],
)
def test_the_target_of_a_transcript(text: str, expected: str) -> None:
    assert target(text) == expected


def test_a_vocabulary_without_the_apostrophe_has_the_papers_words() -> None:
    assert target("It's nine o'clock!", vocabulary=LETTERS) == "ITS|NINE|OCLOCK"


def test_a_vocabulary_of_another_language_keeps_its_letters() -> None:
    german = LETTERS + "ÄÖÜ"
    assert target("Das will sie am Mittwoch abgeben, größer!", vocabulary=german).endswith("ABGEBEN|GRÖSSER")
    assert target("u\u0308ber", vocabulary=german) == "ÜBER"  # decomposed in the text
    assert target("well-known", vocabulary=LETTERS + "-") == "WELL-KNOWN"


def test_blank_is_0_and_the_boundary_1() -> None:
    spec = Characters().spec("float32")
    assert spec.settings["symbols"] == [BLANK, BOUNDARY, *LETTERS, "'"]
    assert (spec.dtype, spec.axis, spec.dim, spec.layers) == ("int16", "tokens", 1, ("character",))
    [features] = Characters().load("cpu", "float32").extract(["a b'c"])
    assert features.frames.ravel().tolist() == [2, 1, 3, 28, 4]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 9 o'clock!", r"has '9' \(DIGIT NINE\), not in the vocabulary.*numbers in words.*unknown=drop"),
        ("café", r"'É' \(LATIN CAPITAL LETTER E WITH ACUTE\)"),
        ("7 8 9 10", r"'0' \(.*'1' \(.*'7' \(.* and 2 more"),
        ("今日は", r"\(CJK UNIFIED IDEOGRAPH"),
        ("x" * 99 + "€", r"'x{60}\.\.\.' has '€' \(EURO SIGN\)"),
        ("", r"its text '' has no characters.*empty=boundary"),
        ("[LAUGHTER] ... '", "has no characters"),
    ],
)
def test_what_cannot_be_spelt_is_refused_with_what_to_do(text: str, words: str) -> None:
    with pytest.raises(StreamError, match=words):
        target(text)


def test_unknown_characters_are_left_out_and_counted_on_demand() -> None:
    assert target("It's 9 o'clock, 10 €!", unknown="drop") == "IT'S|O'CLOCK"
    [features] = Characters(unknown="drop").load("cpu", "float32").extract(["It's 9 o'clock, 10 €!"])
    assert int(features.utterance_arrays["dropped"]) == 4  # type: ignore[union-attr]
    with pytest.raises(StreamError, match="has no characters"):
        target("9 '9'", unknown="drop")


def test_a_transcript_without_characters_may_be_a_boundary() -> None:
    assert target("[LAUGHTER]", empty="boundary") == BOUNDARY
    with pytest.raises(StreamError, match="not in the vocabulary"):
        target("9", empty="boundary")
    assert target("9", empty="boundary", unknown="drop") == BOUNDARY


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [
        ("", "is empty"), ("ABA", "names 'A' twice"), ("ABc", "has 'c', which no cleaned transcript has"),
        ("A B", "has ' '"),
        ("A|", r"has '\|'"), ("Aß", "has 'ß'"), ("AU\u0308", "has '\u0308'"),
    ],
)  # fmt: skip
def test_a_vocabulary_that_no_transcript_fits_is_refused(vocabulary: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build(Characters, {"vocabulary": vocabulary}, "stream characters")


def test_a_target_whose_apostrophes_changed_is_of_another_version() -> None:
    """Version 1 gave DOGS' and 'WELL: what is cached of it is not taken for this."""
    assert Characters().spec().version == 2


def test_what_is_left_of_a_word_begins_and_ends_with_a_letter() -> None:
    assert target("in '90's 9's a'9", unknown="drop") == "IN|S|S|A"


def test_every_batch_has_its_characters_and_a_bad_text_fails_alone(tmp_path: Path) -> None:
    texts = {"a": "well", "b": "room 101", "c": "so, well"}
    manifest = Manifest([Utterance(name, text=text) for name, text in texts.items()])
    extract(manifest, tmp_path / "cache", Characters())
    stream = featcache.open(tmp_path / "cache")["characters"]
    assert list(stream.ids) == ["a", "c"]
    assert stream["c"][0, :, 0].tolist() == [20, 16, 1, 24, 6, 13, 13]
    assert stream.array("dropped", ["a", "c"]).tolist() == [0, 0]
    assert "'0' (DIGIT ZERO)" in stream.failures["b"]

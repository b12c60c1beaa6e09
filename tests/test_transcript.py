"""Laws of transcripts: what is written becomes what is spoken, and nothing written crashes."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import StreamError
from featcache.transcript import EVENTS, Token, tokens

KNOWN = {"'cause", "dogs'", "talkin'", "x-ray", "tv", "us", "it", "don't", "hello"}


def spoken(text: str) -> str:
    return " ".join(token.spelling for token in tokens(text, KNOWN.__contains__))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Kids are talking, by the door!", "kids are talking by the door"),
        ("I don’t — well… “maybe”", "i don't well maybe"),
        ("I don\x92t \x93know\x94\x85 \x96 hm", "i don't know hm"),
        ("'Cause the dogs' bowls", "'cause the dogs' bowls"),
        ("he said 'hello' and 'goodbye'", "he said hello and goodbye"),
        ("talkin' walkin'", "talkin' walkin"),
        ("an x-ray, a well-known W-w-what, gon-", "an x-ray a well known w w what gon"),
        ("x\u200by co\u00adoperate \ufeffno", "xy cooperate no"),
        ("café naïve Straße Ærø", "cafe naive strasse aero"),
        ("U.S.A. and FBI, on TV, at 9 a.m.", "u s a and f b i on tv at nine a m"),
        ("THE WALKIN DASH", "the walkin dash"),
        ("and/or this_thing", "and or this thing"),
    ],
)
def test_words_are_as_spoken(text: str, expected: str):
    assert spoken(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234 of 21", "one thousand two hundred and thirty four of twenty one"),
        ("3.14 or .5", "three point one four or point five"),
        ("the 1st, 22nd and 13th", "the first twenty second and thirteenth"),
        ("in 1984 and 2005", "in nineteen eighty four and two thousand and five"),
        ("the 1980s and '60s", "the nineteen eighties and sixties"),
        ("at 10:30, 9:05 and 5:00", "at ten thirty nine oh five and five o'clock"),
        ("$5.50, $1, £3.20, $2.5 million", "five dollars and fifty cents one dollar three pounds and twenty pence "
         "two point five million dollars"),
        ("50% & more", "fifty percent and more"),
        ("3D mp3 B2B", "three d mp three b two b"),
        ("3-4 or 10 – 12", "three to four or ten to twelve"),
        ("call 555-1234", "call five five five one two three four"),
        ("-5 at 007", "minus five at zero zero seven"),
        ("٣ apples, ½", "three apples one half"),
        ("9999999999999999999", " ".join(["nine"] * 19)),
    ],
)  # fmt: skip
def test_numbers_are_spelt(text: str, expected: str):
    assert spoken(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[LAUGHTER] no", "[LAUGHTER] no"),
        ("oh [door slams] no []", "oh [DOOR_SLAMS] no"),
        ("(laughs) *sighs* <breath> [laughs softly]", "[LAUGHTER] [BREATHING] [BREATHING] [LAUGHTER]"),
        ("[heavy breathing] no [she is not laughing at all]", "[BREATHING] no [LAUGHTER]"),
        ("well [he looks at them all] no", "well no"),
        ("well (I think) *really* <i>yes</i>", "well i think really yes"),
        ("a ( b ] c", "a b c"),
    ],
)
def test_stage_directions_become_events_or_speech(text: str, expected: str):
    assert spoken(text) == expected
    assert all((token.kind == "event") == token.spelling.startswith("[") for token in tokens(text))


@pytest.mark.parametrize("text", ["", " ", "...", "— ?!", "日本語", "''' -", "<unk>", "\x00"])
def test_a_text_without_words_is_refused_by_name(text: str):
    with pytest.raises(StreamError, match=r"its text '?\"?.* has no word"):
        tokens(text)


def test_every_known_sound_gives_its_event():
    for name, words in EVENTS.items():
        for word in words.split():
            assert tokens(f"({word.title()})") == (Token(f"[{name}]", "event"),)


@settings(max_examples=400, deadline=None)
@given(st.text() | st.text(alphabet="aB3'-.,:$%()[]*<> 0½éth\x92’"))
def test_no_text_crashes_and_only_words_and_events_come_out(text: str):
    try:
        found = tokens(text, KNOWN.__contains__)
    except StreamError:
        return
    for token in found:
        pattern = r"\[[A-Z0-9_]+\]" if token.kind == "event" else r"[a-z']+(-[a-z']+)*"
        assert re.fullmatch(pattern, token.spelling)
        assert token.spelling.strip("'")


@given(st.lists(st.sampled_from(["it", "don't", "'cause", "[LAUGHTER]", "us"]), min_size=1))
def test_normal_text_stays_as_it_is(words: list[str]):
    assert spoken(" ".join(words)).split() == words

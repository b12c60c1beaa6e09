"""Alignments: what is refused, and that a cache gives back what was put in."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.alignment import Alignment, Interval, checked, to_arrays, word_of_each_phone
from featcache.errors import StreamError

HELLO = Alignment(
    words=(Interval(0.1, 0.5, "hello"), Interval(0.6, 1.0, "wörld")),
    phones=(
        Interval(0.1, 0.2, "HH"),
        Interval(0.2, 0.3, "AH"),
        Interval(0.3, 0.5, "L"),
        Interval(0.6, 0.7, "W"),
        Interval(0.7, 1.0, "ER"),
    ),
)


def test_what_fits_comes_back_as_it_was() -> None:
    assert checked(HELLO, 1.2) == HELLO


def test_what_ends_a_little_late_is_cut_to_the_audio() -> None:
    fitted = checked(HELLO, 0.985)
    assert fitted.words[-1].end_s == fitted.phones[-1].end_s == 0.985


def test_what_lies_wholly_in_the_tolerance_is_left_out() -> None:
    alignment = Alignment((), (Interval(0.0, 1.0, "a"), Interval(1.0, 1.01, "b")))
    assert checked(alignment, 1.0).phones == (Interval(0.0, 1.0, "a"),)


def test_phones_that_all_lie_past_the_end_are_no_alignment() -> None:
    late = Alignment((Interval(0.1, 0.5, "word"),), (Interval(1.0, 1.02, "a"),))
    with pytest.raises(StreamError, match="no phone"):
        checked(late, 1.0)


@pytest.mark.parametrize(
    ("phones", "message"),
    [
        ((), "no phone"),
        ((Interval(0.0, 3.0, "a"),), "ends after its audio, which lasts 2.000 s"),
        ((Interval(0.5, 0.5, "a"),), "does not run forward"),
        ((Interval(-0.1, 0.5, "a"),), "does not run forward"),
        ((Interval(math.nan, 0.5, "a"),), "does not run forward"),
        ((Interval(0.0, math.inf, "a"),), "does not run forward"),
        ((Interval(0.0, 0.5, "a"), Interval(0.4, 0.8, "b")), "'b' .* starts before the phone ahead of it has ended"),
    ],
)
def test_impossible_times_are_refused_by_name(phones: tuple[Interval, ...], message: str) -> None:
    with pytest.raises(StreamError, match=message):
        checked(Alignment((), phones), 2.0)


def test_phones_belong_to_the_word_their_middle_lies_in() -> None:
    assert word_of_each_phone(HELLO) == [0, 0, 0, 1, 1]
    assert word_of_each_phone(Alignment((), HELLO.phones)) == [-1] * 5
    assert word_of_each_phone(Alignment(HELLO.words, (Interval(0.5, 0.6, "x"), Interval(1.0, 1.1, "y")))) == [-1, -1]


def test_arrays_hold_the_times_exactly() -> None:
    times, arrays = to_arrays(HELLO)
    assert times.shape == (1, 7, 2)
    assert times[0, 1].tolist() == [0.6, 1.0]
    assert arrays["tier"].tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert bytes(arrays["label"][1]).rstrip(b"\0").decode() == "wörld"


def test_a_label_that_is_too_long_is_refused() -> None:
    with pytest.raises(StreamError, match="takes 70 bytes; the most that is kept is 64"):
        to_arrays(Alignment((Interval(0, 1, "x" * 70),), (Interval(0, 1, "a"),)))


@given(st.text(max_size=20))
def test_any_label_is_kept_or_refused(label: str) -> None:
    try:
        _, arrays = to_arrays(Alignment((), (Interval(0.0, 1.0, label),)))
    except StreamError:
        return
    kept = bytes(arrays["label"][0]).rstrip(b"\0").decode()
    assert kept == label or max(label) >= "\ud800"


def test_unknown_words_are_marked() -> None:
    _, arrays = to_arrays(Alignment(HELLO.words, HELLO.phones, unknown_words=("wörld",)))
    assert np.flatnonzero(arrays["unknown"]).tolist() == [1]

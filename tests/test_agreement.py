import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.agreement import compare, frame_labels, summarise
from featcache.alignment import UNKNOWN, Alignment, Interval
from featcache.errors import StreamError
from featcache.matching import pairs
from featcache.symbols import SILENCE, phone_class


def alignment(*phones, words=()):
    return Alignment(tuple(Interval(*word) for word in words), tuple(Interval(*phone) for phone in phones))


def moved(original, by_s):
    words, phones = (
        tuple(Interval(start_s + by_s, end_s + by_s, label) for start_s, end_s, label in intervals)
        for intervals in (original.words, original.phones)
    )
    return replace(original, words=words, phones=phones)


# "see him": s iy hh ih m, with a pause of 50 ms between the words.
SEE_HIM = alignment(
    (0.1, 0.22, "S"), (0.22, 0.35, "IY1"), (0.4, 0.46, "HH"), (0.46, 0.53, "IH0"), (0.53, 0.65, "M"),
    words=[(0.1, 0.35, "see"), (0.4, 0.65, "him")],
)  # fmt: skip


@st.composite
def alignments(draw):
    """Phones of a few kinds on a grid of 10 ms, so that ties occur."""
    steps = draw(
        st.lists(
            st.tuples(st.sampled_from([0, 0, 0, 40]), st.integers(1, 12), st.sampled_from("aa iy s t m".split())),  # noqa: SIM905
            min_size=1,
            max_size=10,
        )
    )
    phones, now = [], 0
    for gap, length, label in steps:
        phones.append((round((now + gap) / 100, 2), round((now + gap + length) / 100, 2), label))
        now += gap + length
    return alignment(*phones)


@given(alignments())
@settings(max_examples=60, deadline=None)
def test_an_alignment_agrees_with_itself_wholly(one):
    agreed = summarise([compare(one, one)])
    assert agreed.frames.share_alike == agreed.speech.share_alike == agreed.phones.share_matched == 1
    assert agreed.phones.p90_ms == agreed.phones.mean_ms == 0
    assert agreed.phones.within_20_ms == 1
    for kind, part in agreed.classes.items():
        assert part.frames.num_alike == part.frames.num
        assert kind == "silence" or part.phones.share_matched == 1


@given(alignments(), alignments())
@settings(max_examples=150, deadline=None)
def test_swapping_the_two_flips_the_sign_and_nothing_else(one, other):
    forth, back = compare(one, other), compare(other, one)
    there, here = summarise([forth]), summarise([back])
    assert sorted(forth.phone_errors_ms.values()) == sorted(-error for error in back.phone_errors_ms.values())
    assert there.frames == here.frames
    assert there.speech == here.speech
    assert there.phones.num_matched == here.phones.num_matched
    assert there.phones.median_ms == here.phones.median_ms


@pytest.mark.parametrize("by_s", [0.03, 0.15])
def test_a_shift_of_all_is_the_error_of_all(by_s):
    shifted = summarise([compare(SEE_HIM, moved(SEE_HIM, by_s))])
    for measured in (shifted.phones, shifted.words):
        assert measured.share_matched == 1
        assert measured.median_ms == measured.p90_ms == pytest.approx(1000 * by_s, abs=1e-9)
        assert measured.mean_ms == pytest.approx(1000 * by_s)
        assert measured.within_50_ms == (by_s < 0.05)
    assert summarise([compare(moved(SEE_HIM, by_s), SEE_HIM)]).phones.mean_ms == pytest.approx(-1000 * by_s)


def test_an_error_of_exactly_20_ms_is_within_20_ms():
    starts = np.cumsum(np.full(40, 0.01))
    one = alignment(*((float(start), float(start + 0.01), "s") for start in starts[::4]))
    assert summarise([compare(one, moved(one, 0.02))]).phones.within_20_ms == 1


def test_too_far_apart_is_no_pair():
    far = summarise([compare(SEE_HIM, moved(SEE_HIM, 2.0))])
    assert far.phones.num_matched == far.words.num_matched == 0
    assert far.phones.share_matched == 0
    assert far.phones.median_ms is None
    assert far.speech.num_alike == 0


def test_another_pronunciation_is_paired_but_has_no_error():
    other = alignment((0.1, 0.22, "s"), (0.22, 0.35, "ih"), (0.45, 0.53, "iy"), (0.55, 0.65, "m"))
    compared = compare(SEE_HIM, other)
    # iy is ih in time and hh is left out, although an ih stands on both sides: order and time decide.
    assert compared.phone_errors_ms == {0: 0.0, 4: pytest.approx(20)}


def test_an_unknown_word_leaves_its_phones_without_a_partner():
    unknown = alignment((0.1, 0.35, UNKNOWN), (0.4, 0.46, "hh"), (0.46, 0.53, "ih"), (0.53, 0.65, "m"))
    agreed = summarise([compare(SEE_HIM, unknown)])
    assert (agreed.phones.num_a, agreed.phones.num_b, agreed.phones.num_matched) == (5, 4, 3)
    assert "unknown" not in agreed.classes
    assert summarise([compare(unknown, SEE_HIM)]).classes["unknown"].frames.share_alike == 0


def test_words_are_compared_by_their_spelling():
    other = replace(SEE_HIM, words=(Interval(0.12, 0.35, "See,"), Interval(0.4, 0.65, "them")))
    words = summarise([compare(SEE_HIM, other)]).words
    assert (words.num_a, words.num_matched, words.median_ms) == (2, 1, pytest.approx(20))


def test_other_symbols_are_compared_as_base_phones():
    espeak = alignment((0.1, 0.22, "s"), (0.22, 0.35, "'i:"), (0.4, 0.46, "h"), (0.46, 0.53, "I2"), (0.53, 0.65, "m"))
    assert summarise([compare(SEE_HIM, espeak, ("english", "espeak"))]).speech.share_alike == 1
    with pytest.raises(StreamError, match="'i:"):
        compare(SEE_HIM, espeak)


def test_symbols_of_their_own_have_no_class_however_much_one_looks_like_arpabet():
    german = alignment(
        (0.1, 0.2, "y"), (0.2, 0.3, "s"), (0.3, 0.4, "S"), (0.4, 0.5, UNKNOWN), (0.5, 0.6, "[LAUGHTER]"),
        (0.7, 0.8, "y:"),
    )  # fmt: skip
    raw = summarise([compare(german, german, ("other", "other"))])
    assert {kind: part.phones.num_a for kind, part in raw.classes.items()} == {
        "other": 4, "unknown": 1, "event": 1, "silence": 0
    }  # fmt: skip
    assert {kind: part.frames.num for kind, part in raw.classes.items()} == {
        "other": 20, "unknown": 5, "event": 5, "silence": 10
    }  # fmt: skip
    assert raw.phones.share_matched == 1
    english = alignment((0.1, 0.2, "Y"), (0.2, 0.3, "S"))
    mixed = summarise([compare(english, german, ("english", "other")), compare(german, english, ("other", "english"))])
    assert (mixed.classes["approximant"].phones.num_a, mixed.classes["approximant"].phones.num_b) == (1, 1)
    assert (mixed.classes["other"].phones.num_a, mixed.classes["other"].phones.num_b) == (4, 4)


def test_frames_say_who_sounds_and_classes_are_counted_by_a():
    labels = frame_labels(SEE_HIM, 4, 0.2, 0.65, "english")
    assert labels.tolist() == [SILENCE, "iy", "ih", "m"]
    longer = alignment((0.1, 0.22, "s"), (0.22, 0.4, "iy"), (0.4, 0.46, "hh"), (0.46, 0.53, "ih"), (0.53, 0.65, "m"))
    agreed = summarise([compare(SEE_HIM, longer, frame_shift_s=0.01)])
    assert (agreed.frames.num, agreed.frames.num_alike) == (65, 60)
    assert (agreed.speech.num, agreed.speech.num_alike) == (55, 50)
    assert {kind: part.frames.num for kind, part in agreed.classes.items()} == {
        "silence": 15, "fricative": 18, "vowel": 20, "nasal": 12
    }  # fmt: skip
    assert agreed.classes["silence"].frames.share_alike == pytest.approx(10 / 15)
    assert summarise([compare(SEE_HIM, longer, frame_shift_s=0.01, end_s=1.0)]).frames.num == 100


def test_a_corpus_is_the_sum_of_its_utterances_and_plain_json():
    both = summarise([compare(SEE_HIM, SEE_HIM), compare(SEE_HIM, moved(SEE_HIM, 0.1))], ["x"], ["y", "z"])
    assert (both.num_utterances, both.phones.num_a, both.phones.median_ms) == (2, 10, pytest.approx(50))
    values = json.loads(json.dumps(both.as_json(), allow_nan=False))
    assert values["only_b"] == ["y", "z"]
    assert values["classes"]["silence"]["phones"]["median_ms"] is None
    assert summarise([]).frames.share_alike is None


def least_cost(a, b, reach_s):
    """Try every way to pair: the reference for the dynamic programme."""
    if not a or not b:
        return 1.5 * (len(a) + len(b))
    (start_a, label_a), (start_b, label_b) = a[-1], b[-1]
    ways = [1.5 + least_cost(a[:-1], b, reach_s), 1.5 + least_cost(a, b[:-1], reach_s)]
    if abs(start_a - start_b) <= reach_s:
        apart = 0 if label_a == label_b else 1 if phone_class(label_a) == phone_class(label_b) else 2
        ways.append(apart + abs(start_a - start_b) / reach_s + least_cost(a[:-1], b[:-1], reach_s))
    return min(ways)


sounds = st.lists(st.tuples(st.integers(0, 50), st.sampled_from(["aa", "iy", "s"])), max_size=5).map(
    lambda found: [(start / 100, label) for start, label in sorted(found)]
)


@given(sounds, sounds)
@settings(max_examples=150, deadline=None)
def test_the_pairing_costs_least(a, b):
    found = pairs(a, b, 0.2, phone_class)
    assert all(one[0] < two[0] and one[1] < two[1] for one, two in pairwise(found))
    cost = 1.5 * (len(a) + len(b) - 2 * len(found))
    for first, second in found:
        (start_a, label_a), (start_b, label_b) = a[first], b[second]
        apart = 0 if label_a == label_b else 1 if phone_class(label_a) == phone_class(label_b) else 2
        cost += apart + abs(start_a - start_b) / 0.2
    assert cost == pytest.approx(least_cost(a, b, 0.2))


def test_mfa_agrees_with_the_synthesiser_that_spoke(shared_data):
    textgrid = pytest.importorskip("praatio.textgrid")
    folder = shared_data / "alignment" / "mfa"
    truth = json.loads((folder / "truth.json").read_text())
    compared = []
    for name in sorted(truth)[::20]:
        heard = [(ms / 1000, label) for kind, _, ms, label in truth[name]["ev"] if kind == "ph"]
        spoken = [
            (start_s, end_s, label)
            for (start_s, label), (end_s, _) in pairwise(heard)
            if not label.startswith("_") and end_s > start_s
        ]
        grid = textgrid.openTextgrid(folder / "aligned" / name[:4] / f"{name}.TextGrid", includeEmptyIntervals=False)
        found = grid.getTier("phones").entries
        compared.append(compare(alignment(*spoken), alignment(*found), ("espeak", "english")))
    measured = summarise(compared)
    assert measured.phones.share_matched > 0.8
    assert measured.phones.median_ms < 20
    assert measured.frames.share_alike > 0.7

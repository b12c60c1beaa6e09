"""Inventories: the published ids, and what each phone maps to."""

import pytest

from featcache.alignment import Alignment, Interval
from featcache.errors import StreamError
from featcache.inventory import arpabet128, occurring


def spoken(*words: str) -> Alignment:
    """Return words, each given by its phones, one after the other with a pause between."""
    at, spans, phones = 0.0, [], []
    for word in words:
        first = at
        for phone in word.split():
            phones.append(Interval(at, at + 0.1, phone))
            at += 0.1
        spans.append(Interval(first, at, word))
        at += 0.1
    return Alignment(tuple(spans), tuple(phones))


def symbols(alignment: Alignment) -> list[str]:
    inventory = arpabet128()
    return [inventory.symbols[number] for number in inventory.ids(alignment, "english")]


def test_the_128_ids_are_those_published() -> None:
    inventory = arpabet128()
    assert len(inventory) == len(set(inventory.symbols)) == 128
    # Rows of the published phone_dict.csv, spread over it.
    published = {"LAUGHTER": 2, "LIPSMACK": 5, "k_B": 6, "ah_I": 27, "t_I": 49, "oov_S": 68, "zh_I": 94, "uw_B": 127}
    assert {symbol: inventory.symbols.index(symbol) for symbol in published} == published


def test_positions_follow_from_the_words() -> None:
    assert symbols(spoken("HH AH0 L OW1", "AH0", "T UW1")) == ["hh_B", "ah_I", "l_I", "ow_E", "ah_S", "t_B", "uw_E"]


def test_a_position_that_never_occurred_counts_as_inside() -> None:
    assert "k_S" not in arpabet128().symbols
    assert symbols(spoken("K")) == ["k_I"]


def test_every_phone_has_a_place_inside() -> None:
    inside = {symbol[:-2] for symbol in arpabet128().symbols if symbol.endswith("_I")}
    assert len(inside) == 39


def test_phones_of_no_word_count_as_inside() -> None:
    assert symbols(Alignment((), spoken("HH AH").phones)) == ["hh_I", "ah_I"]


def test_gentles_own_positions_are_kept() -> None:
    assert symbols(spoken("ah_B n_E", "oov_S")) == ["ah_B", "n_E", "oov_S"]


def test_unknown_words_and_events_have_ids_of_their_own() -> None:
    assert symbols(spoken("spn", "[LAUGHTER]", "[DOOR]")) == ["UNK", "LAUGHTER", "GARBAGE"]


def test_a_phone_that_maps_to_nothing_lists_the_inventory() -> None:
    with pytest.raises(StreamError, match=r"(?s)'QQ'.*aa.*zh.*occurring"):
        arpabet128().ids(spoken("HH QQ"), "english")
    with pytest.raises(StreamError, match=r"(?s)'9'.*arpabet128: SIL UNK .*inventory=occurring"):
        arpabet128().ids(spoken("9"), "other")


def test_an_inventory_of_what_occurs_is_sorted_and_complete() -> None:
    german = spoken("Q a: x", "spn"), spoken("9 N", "[LAUGHTER]")
    inventory = occurring((one, "other") for one in german)
    assert inventory.symbols[:2] == ("SIL", "UNK")
    assert list(inventory.symbols[2:]) == sorted({"Q", "a:", "x", "9", "N", "[LAUGHTER]"})
    assert [inventory.symbols[number] for number in inventory.ids(german[1], "other")] == ["9", "N", "[LAUGHTER]"]
    assert inventory.ids(german[0], "other")[-1] == 1


def test_an_inventory_does_not_depend_on_the_order() -> None:
    one, two = spoken("HH AH0"), spoken("AH1 L")
    assert occurring([(one, "english"), (two, "english")]) == occurring([(two, "english"), (one, "english")])
    assert occurring([(one, "english")]).symbols == ("SIL", "UNK", "ah", "hh")

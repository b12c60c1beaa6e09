"""Checks of what the eye does not see: copies of a recording, and texts that give labels away."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_folds import LABELS, corpus, names_of

from featcache.errors import ProtocolError
from featcache.manifest import Utterance
from heads.duplicates import copied, copies, words
from heads.folds import make_folds
from heads.protocol import Fold, Problem, check_folds


def digests(utterances: Sequence[Utterance], alike: Mapping[str, str]) -> dict[str, str]:
    """A digest for each utterance; `alike` are copies of others."""
    return {one.id: f"digest of {alike.get(one.id, one.id)}" for one in utterances}


def named(problems: Sequence[Problem], name: str) -> list[Problem]:
    return [problem for problem in problems if problem.name == name]


def test_a_copy_on_both_sides_is_an_error_until_it_is_allowed() -> None:
    utterances = corpus()
    audio = digests(utterances, {"Ses02F_sad_00": "Ses01F_sad_00"})
    with pytest.raises(
        ProtocolError,
        match=r"fold '1': 1 utterances of test are copies of recordings in train, such as 'Ses01F_sad_00' and "
        r"'Ses02F_sad_00'(.|\n)*allow by name what is meant: 'duplicate' \(copies of one recording",
    ):
        make_folds(utterances, "session", validation=0, audio=audio)
    folds = make_folds(utterances, "session", allow="duplicate", audio=audio)
    assert names_of(folds.leaks) == {"duplicate"}
    assert [problem.fold for problem in folds.leaks] == ["1", "2"]
    assert not make_folds(utterances, "session").problems


def test_a_copy_in_validation_of_what_is_tested_is_an_error_as_well() -> None:
    utterances = corpus()
    parts = [tuple(one.id for one in utterances if one.session == session) for session in "123"]
    audio = digests(utterances, {"Ses03F_sad_00": "Ses02M_sad_04"})
    found = named(check_folds([Fold("1", *parts)], utterances, audio), "duplicate")
    assert [(one.severity, one.fold) for one in found] == [("warning", None), ("error", "1")]
    assert "1 utterances of test are copies of recordings in validation" in found[1].text


def test_copies_on_one_side_are_a_warning_that_says_whether_their_labels_differ() -> None:
    utterances = corpus()
    audio = digests(utterances, {"Ses01M_sad_00": "Ses01F_sad_00"})
    (problem,) = make_folds(utterances, "session", audio=audio).problems
    assert str(problem) == "1 recordings are there under several names, such as 'Ses01F_sad_00', 'Ses01M_sad_00'"
    audio = digests(utterances, {"Ses01M_sad_00": "Ses01F_sad_00", "Ses03F_happy_01": "Ses03F_angry_01"})
    (problem,) = make_folds(utterances, "session", audio=audio).problems
    assert problem.severity == "warning"
    assert problem.text.startswith("2 recordings are there under several names")
    assert problem.text.endswith("; the copies of 1 have different labels")


def test_two_rows_of_one_file_are_a_recording_and_no_copy() -> None:
    utterances = [replace(one, audio="same.wav") if one.id.endswith("F_sad_00") else one for one in corpus()]
    alike = dict.fromkeys(("Ses02F_sad_00", "Ses03F_sad_00"), "Ses01F_sad_00")
    folds = make_folds(utterances, "session", allow="recording", audio=digests(utterances, alike))
    assert names_of(folds.problems) == {"recording"}


def test_digests_that_are_missing_or_of_others_are_no_copies() -> None:
    utterances = corpus()
    assert not make_folds(utterances, "session", audio={}).problems
    assert not make_folds(utterances, "session", audio={"Ses01F_sad_00": "x", "nobody": "x"}).problems


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.booleans()), max_size=8))
def test_copies_are_what_comparing_each_with_each_finds(rows: list[tuple[str, str, bool]]) -> None:
    utterances = [Utterance(f"u{number}", audio=file) for number, (file, _, _) in enumerate(rows)]
    audio = {f"u{number}": digest for number, (_, digest, _) in enumerate(rows)}
    left = [f"u{number}" for number, (_, _, inside) in enumerate(rows) if inside]
    right = [f"u{number}" for number, (_, _, inside) in enumerate(rows) if not inside]
    file = {one.id: one.audio for one in utterances}
    expected = {(a, b) for a in left for b in right if audio[a] == audio[b] and file[a] != file[b]}
    found = copies(left, right, copied(utterances, audio))
    assert {b for _, b in found} == {b for _, b in expected}
    assert set(found) <= expected
    assert len(found) == len({b for _, b in found})


def spoken(texts: Mapping[tuple[str, int], str]) -> list[Utterance]:
    """The corpus with a text of its own in each utterance, but for those of a class and number."""
    found = []
    for one in corpus():
        number = int(one.id[-2:])
        found.append(replace(one, text=texts.get((str(one.label), number), f"This is {one.id}.")))
    return found


def test_texts_of_their_own_are_no_matter() -> None:
    assert not make_folds(spoken({}), "session").problems


def test_a_text_that_tells_the_label_is_a_warning() -> None:
    folds = make_folds(spoken({("angry", 0): "Go away!", ("angry", 1): "go  away", ("sad", 2): "Oh no."}), "session")
    (problem,) = folds.problems
    assert (problem.name, problem.severity, problem.fold) == ("text", "warning", None)
    assert problem.text == (
        "18 of 120 tested utterances with a text (15 %) say a text that train says too, and that has one label only, "
        "such as 'go away' (12 times 'angry'): there the words alone give the label away"
    )


def test_a_text_that_has_every_label_tells_none() -> None:
    assert not make_folds(spoken({(label, 0): "Fine." for label in LABELS}), "session").problems


def test_sentences_that_are_the_same_for_every_class_are_no_leak_of_labels() -> None:
    (problem,) = make_folds(spoken({(c, n): f"Sentence {n}." for c in LABELS for n in range(5)}), "speaker").problems
    assert (problem.name, problem.severity) == ("sentences", "warning")
    assert problem.text == (
        "120 of 120 tested utterances with a text (100 %) say a text that train says too: the result is about these "
        "sentences, and not about new ones"
    )


def test_a_script_for_each_class_is_told_as_both() -> None:
    folds = make_folds(spoken({(c, n): f"{c} {n}" for c in LABELS for n in range(5)}), "speaker")
    assert names_of(folds.problems) == {"text", "sentences"}


def test_texts_within_a_part_and_those_of_one_class_or_of_none_are_no_matter() -> None:
    utterances = [replace(one, text="Sess" + str(one.session)) for one in corpus()]
    assert not make_folds(utterances, "session").problems
    same = [replace(one, text="Yes.", label="happy") for one in corpus()]
    assert names_of(check_folds(make_folds(same, "session"), same)) == {"sentences"}
    silent = [replace(one, text=" ... ") for one in corpus()]
    assert not make_folds(silent, "session").problems


def test_a_text_that_tells_the_label_here_and_there_is_passed_over() -> None:
    utterances = spoken({})
    other = next(one for one in utterances if one.id == "Ses02F_sad_00")
    again = [replace(one, text=other.text) if one.id == "Ses01F_sad_00" else one for one in utterances]
    both = make_folds(again, "session")
    assert names_of(both.problems) == {"text"}  # 2 of 120
    many = again + [replace(one, id=f"{one.id} again", audio=None, text=f"{one.text} again") for one in utterances]
    assert not make_folds(many, "session").problems  # 2 of 240


@pytest.mark.parametrize(
    ("one", "other"),
    [("Go away!", "  go AWAY "), ("STRASSE.", "straße"), ("“No,” he said", "“no,” he said."), ("...", "")],
)
def test_case_spaces_and_punctuation_do_not_make_another_text(one: str, other: str) -> None:
    assert words(one) == words(other)


def test_other_words_are_another_text() -> None:
    assert words("I can't") != words("I cant")
    assert words("हिन्दी") != words("हिन्दि")
    assert words(None) == ""

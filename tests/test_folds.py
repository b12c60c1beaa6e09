"""Folds and the protocol checks on them."""

import json
from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import ManifestError, ProtocolError
from featcache.manifest import Utterance
from heads.folds import Fold, check_folds, fold_names, make_folds, natural_key, read_folds, save_folds

LABELS = ("angry", "happy", "neutral", "sad")


def corpus(num_sessions=3, per_class=5):
    """Sessions of two speakers, each with some utterances of every class."""
    return [
        Utterance(
            id=f"Ses{session:02d}{sex}_{label}_{index:02d}",
            audio=f"Ses{session:02d}{sex}_{label}_{index:02d}.wav",
            label=label,
            speaker=f"{session:02d}{sex}",
            session=str(session),
            extra={"sex": sex},
        )
        for session, sex, label, index in product(range(1, num_sessions + 1), "FM", LABELS, range(per_class))
    ]


def names_of(problems, severity=None):
    return {problem.name for problem in problems if severity in (None, problem.severity)}


def speakers_of(ids, utterances):
    by_id = {utterance.id: utterance.speaker for utterance in utterances}
    return {by_id[name] for name in ids}


@pytest.mark.parametrize("kind", ["session", "speaker", "column:sex", "random:4"])
@pytest.mark.parametrize("validation_by", ["utterance", "speaker"])
def test_tests_partition_the_corpus_and_parts_partition_every_fold(kind, validation_by):
    utterances = corpus(num_sessions=4)
    ids = sorted(utterance.id for utterance in utterances)
    folds = make_folds(utterances, kind, validation_by=validation_by)
    assert sorted(name for fold in folds for name in fold.test) == ids
    for fold in folds:
        assert sorted(fold.train + fold.validation + fold.test) == ids


@pytest.mark.parametrize(
    "kind", ["session", "column:sex", "random:11", "stratified:70/20/10", "within:session", "folds.json"]
)
def test_folds_are_named_without_being_made(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    utterances = [*corpus(num_sessions=11), Utterance("unlabelled", session="12", extra={"sex": "D"})]
    copy = Utterance("copy", extra={"version_of": utterances[0].id})
    save_folds(make_folds(utterances, "session", drop_unlabelled=True), tmp_path / "folds.json")
    names = fold_names([*utterances, copy], kind, drop_unlabelled=True)
    assert names == [fold.name for fold in make_folds([*utterances, copy], kind, drop_unlabelled=True)]


@pytest.mark.parametrize("kind", ["session", "speaker", "column:sex"])
def test_no_speaker_is_on_both_sides(kind):
    utterances = corpus()
    folds = make_folds(utterances, kind)
    for fold in folds:
        assert not speakers_of(fold.train + fold.validation, utterances) & speakers_of(fold.test, utterances)
    assert folds.speaker_independent
    assert not folds.leaks
    assert not folds.problems


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(LABELS), st.sampled_from("ABCDE"), st.sampled_from("12")), min_size=4, max_size=60
    ),
    st.sampled_from(["speaker", "random:2"]),
    st.sampled_from(["utterance", "speaker"]),
    st.floats(0.01, 0.9),
)
def test_every_fold_set_is_either_refused_or_sound(rows, kind, validation_by, validation):
    utterances = [
        Utterance(f"u{index}", label=label, speaker=speaker, session=session)
        for index, (label, speaker, session) in enumerate(rows)
    ]
    try:
        folds = make_folds(utterances, kind, validation_by=validation_by, validation=validation)
    except ProtocolError:
        return
    labels = {utterance.id: utterance.label for utterance in utterances}
    for fold in folds:
        train, validated, test = set(fold.train), set(fold.validation), set(fold.test)
        assert train
        assert test
        assert len(train | validated | test) == len(fold.train) + len(fold.validation) + len(fold.test)
        assert {labels[name] for name in test | validated} <= {labels[name] for name in train}
    assert sorted(name for fold in folds for name in fold.test) == sorted(labels)


def test_the_order_of_the_manifest_changes_nothing():
    utterances = corpus()
    for kind, by in product(("session", "speaker", "random:5"), ("utterance", "speaker")):
        assert make_folds(utterances, kind, validation_by=by) == make_folds(utterances[::-1], kind, validation_by=by)


def test_random_choices_are_the_same_on_every_machine():
    fold = make_folds(corpus(num_sessions=2, per_class=2), "session", validation=0.25)[0]
    assert fold.validation == ("Ses02F_happy_01", "Ses02F_neutral_01", "Ses02M_angry_01", "Ses02M_sad_00")


def test_the_seed_changes_validation_and_not_test():
    one, other = make_folds(corpus(), "session", seed=0), make_folds(corpus(), "session", seed=1)
    assert [fold.test for fold in one] == [fold.test for fold in other]
    assert [fold.validation for fold in one] != [fold.validation for fold in other]


def test_validation_by_utterance_is_stratified():
    utterances = corpus(num_sessions=3, per_class=5)
    labels = {utterance.id: utterance.label for utterance in utterances}
    for fold in make_folds(utterances, "session", validation=0.2):
        assert Counter(labels[name] for name in fold.train) == dict.fromkeys(LABELS, 16)
        assert Counter(labels[name] for name in fold.validation) == dict.fromkeys(LABELS, 4)


def test_validation_keeps_one_of_each_class_in_train():
    utterances = [
        Utterance(f"{speaker}{label}{index}", label=label, speaker=speaker)
        for speaker, label, index in product("AB", "xy", range(2))
    ]
    for fold in make_folds(utterances, "speaker", validation=0.99):
        assert {name[1] for name in fold.train} == {"x", "y"}
        assert {name[1] for name in fold.validation} == {"x", "y"}


def test_validation_by_speaker_takes_whole_speakers_and_leaves_every_class():
    utterances = corpus(num_sessions=5)
    for fold in make_folds(utterances, "session", validation_by="speaker", validation=0.25):
        validated = speakers_of(fold.validation, utterances)
        assert len(validated) == 2
        assert not validated & speakers_of(fold.train + fold.test, utterances)


def test_validation_by_speaker_never_takes_the_only_speaker_of_a_class():
    utterances = [utterance for utterance in corpus(num_sessions=2) if utterance.label != "sad"]
    only = [Utterance(f"only{i}", label="sad", speaker="02F", session="2") for i in range(4)]
    other = [Utterance(f"other{i}", label="sad", speaker="01F", session="1") for i in range(4)]
    for seed in range(10):
        folds = make_folds(utterances + only + other, "session", validation_by="speaker", seed=seed)
        assert [speakers_of(fold.validation, utterances) for fold in folds] == [{"02M"}, {"01M"}]


def test_validation_by_speaker_is_refused_where_it_would_take_a_class_away():
    utterances = [Utterance(f"{s}{c}", label=c, speaker=s, session=s[0]) for s, c in (("1a", "x"), ("1b", "y"))]
    utterances += [Utterance(f"{s}{c}", label=c, speaker=s, session=s[0]) for s, c in (("2a", "x"), ("2b", "y"))]
    with pytest.raises(ProtocolError, match="none of the 2 speakers in train can move to validation"):
        make_folds(utterances, "session", validation_by="speaker")


def test_no_validation_is_made_on_request_and_said():
    folds = make_folds(corpus(), "session", validation=0)
    assert all(fold.validation == () for fold in folds)
    assert names_of(folds.problems) == {"empty"}
    assert not folds.leaks


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_validation_share_out_of_range_is_refused(share):
    with pytest.raises(ProtocolError, match="at least 0 and below 1"):
        make_folds(corpus(), "session", validation=share)


def test_a_percentage_for_a_share_is_guessed():
    with pytest.raises(ProtocolError, match=r"For 20 % say 0\.2"):
        make_folds(corpus(), "session", validation=20)


def test_fold_names_sort_as_people_count():
    assert sorted(["10", "9", "03", "08", "3"], key=natural_key) == ["03", "3", "08", "9", "10"]
    assert sorted(["s10b", "s9", "", "t", "s10a", "9", "٣"], key=natural_key) == [
        "",
        "9",
        "s9",
        "s10a",
        "s10b",
        "t",
        "٣",
    ]
    speakers = [f"{number}" for number in range(1, 13)]
    utterances = [Utterance(f"{s}{c}{i}", label=c, speaker=s) for s, c, i in product(speakers, "xy", range(2))]
    assert [fold.name for fold in make_folds(utterances, "speaker")] == speakers


@settings(deadline=None)
@given(st.lists(st.text()))
def test_any_names_can_be_sorted(names):
    assert sorted(sorted(names), key=natural_key) == sorted(sorted(names, reverse=True), key=natural_key)


def test_random_folds_are_spread_evenly_and_marked_speaker_dependent():
    utterances = corpus(num_sessions=3, per_class=5)
    labels = {utterance.id: utterance.label for utterance in utterances}
    folds = make_folds(utterances, "random:7")
    assert [fold.name for fold in folds] == [str(number) for number in range(1, 8)]
    assert {len(fold.test) for fold in folds} == {17, 18}
    for fold in folds:
        assert set(Counter(labels[name] for name in fold.test).values()) <= {4, 5}
    assert not folds.speaker_independent
    assert names_of(folds.leaks) == {"speaker"}


@pytest.mark.parametrize("kind", ["random:1", "random:x", "random:-3", "random:1000"])
def test_an_impossible_number_of_random_folds_is_refused(kind):
    with pytest.raises(ProtocolError, match="whole number K from 2 to"):
        make_folds(corpus(), kind)


def test_the_own_split_of_a_corpus_is_one_fold():
    parts = {"1": "Train", "2": "dev", "3": "test"}
    utterances = [replace(u, extra={"split": parts[u.session or ""]}) for u in corpus()]
    (fold,) = make_folds(utterances, "split")
    sessions = {u.id: u.session for u in utterances}
    assert {part: {sessions[name] for name in ids} for part, ids in fold.parts.items()} == {
        "train": {"1"},
        "validation": {"2"},
        "test": {"3"},
    }
    assert [len(ids) for ids in fold.parts.values()] == [40, 40, 40]


def test_a_split_without_validation_gets_one_cut_from_train():
    utterances = [replace(u, extra={"split": "test" if u.session == "3" else "train"}) for u in corpus()]
    (fold,) = make_folds(utterances, "split")
    assert [len(ids) for ids in fold.parts.values()] == [64, 16, 40]


def test_an_unknown_split_value_is_named():
    utterances = [replace(u, extra={"split": "holdout" if u.session == "3" else "train"}) for u in corpus()]
    with pytest.raises(ProtocolError, match=r"'holdout' \(40 utterances"):
        make_folds(utterances, "split")


def test_a_missing_column_lists_those_that_exist():
    with pytest.raises(ProtocolError, match="'group'. Columns that exist: id, audio, label, speaker, session, sex"):
        make_folds(corpus(), "column:group")


def test_a_gap_in_a_column_names_the_utterances():
    utterances = corpus()
    utterances[3] = replace(utterances[3], session=" ")
    with pytest.raises(ProtocolError, match=rf"1 of 120 utterances have no 'session' \('{utterances[3].id}'\)"):
        make_folds(utterances, "session")


def test_one_group_cannot_be_left_out():
    with pytest.raises(ProtocolError, match="the same 'session', '1'"):
        make_folds(corpus(num_sessions=1), "session")


def test_numbers_in_a_column_are_names():
    utterances = [replace(u, extra={"fold": int(u.session or 0)}) for u in corpus()]
    assert [fold.name for fold in make_folds(utterances, "column:fold")] == ["1", "2", "3"]


def test_an_unknown_kind_lists_the_kinds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ProtocolError, match="kind 'sesion', and no such file. Kinds are: session: leave one session out"
    ):
        make_folds(corpus(), "sesion")


def test_unlabelled_utterances_are_refused_or_counted():
    utterances = [*corpus(), Utterance("loose", speaker="01F", session="1")]
    with pytest.raises(ProtocolError, match=r"1 of 121 utterances have no label \('loose'\)"):
        make_folds(utterances, "session")
    folds = make_folds(utterances, "session", drop_unlabelled=True)
    assert folds.num_unlabelled == 1
    assert list(folds) == list(make_folds(corpus(), "session"))
    with pytest.raises(ProtocolError, match="no labelled utterance"):
        make_folds(utterances[-1:], "session", drop_unlabelled=True)


def test_a_repeated_id_is_refused():
    with pytest.raises(ManifestError, match="occurs more than once"):
        make_folds(corpus() + corpus()[:1], "session")


def test_a_speaker_on_both_sides_is_an_error_until_it_is_allowed():
    utterances = [replace(u, speaker="same") if u.id.endswith("F_sad_00") else u for u in corpus()]
    with pytest.raises(ProtocolError, match=r"1 speakers are in train and in test, such as 'same'(.|\n)*allow by name"):
        make_folds(utterances, "session", validation=0)
    folds = make_folds(utterances, "session", validation=0, allow={"speaker"})
    assert names_of(folds.leaks) == {"speaker"}
    assert not folds.speaker_independent


def test_only_known_errors_can_be_allowed():
    with pytest.raises(
        ProtocolError,
        match="Nothing called 'speakers' can be allowed. What can: speaker, recording, duplicate, class, unknown",
    ):
        make_folds(corpus(), "session", allow={"speakers"})


def test_without_speakers_independence_is_not_claimed():
    folds = make_folds([replace(utterance, speaker=None) for utterance in corpus()], "session")
    assert names_of(folds.problems) == {"no-speaker"}
    assert not folds.speaker_independent
    with pytest.raises(ProtocolError, match="has no speaker, so validation cannot be cut by speaker"):
        make_folds([replace(u, speaker=None) for u in corpus()], "session", validation_by="speaker")


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ((None, None), (None, None), True),
        ((None, None), (3.0, 4.0), True),
        ((0.0, 2.0), (1.0, 3.0), True),
        ((1.0, 3.0), (0.0, 2.0), True),
        ((0.0, 9.0), (4.0, 5.0), True),
        ((0.0, 2.0), (2.0, 3.0), False),
        ((5.0, None), (0.0, 5.0), False),
    ],
)
def test_a_recording_on_both_sides_is_found_by_its_span(one, other, shared):
    utterances = [
        replace(u, audio="./dialog.wav", start_s=one[0], end_s=one[1]) if u.id == "Ses01F_sad_00" else u
        for u in corpus()
    ]
    utterances = [
        replace(u, audio="dialog.wav", start_s=other[0], end_s=other[1]) if u.id == "Ses02F_sad_00" else u
        for u in utterances
    ]
    if not shared:
        assert not make_folds(utterances, "session").problems
        return
    with pytest.raises(ProtocolError, match="1 utterances of test share audio with"):
        make_folds(utterances, "session")
    assert names_of(make_folds(utterances, "session", allow="recording").leaks) == {"recording"}


def test_the_furthest_reaching_span_is_not_hidden_by_later_ones():
    spans = [("a", 0.0, 9.0), ("b", 1.0, 2.0), ("c", 3.0, 4.0)]
    train = [Utterance(name, audio="x.wav", label="l", start_s=start, end_s=end) for name, start, end in spans]
    test = [Utterance("t", audio="x.wav", label="l", start_s=8.0, end_s=8.5)]
    found = [p for p in check_folds([Fold("1", ("a", "b", "c"), (), ("t",))], train + test) if p.name == "recording"]
    assert [p.text for p in found] == ["1 utterances of test share audio with train, such as 't' and 'a'"]


def test_a_class_that_is_tested_but_never_trained_is_an_error():
    utterances = [utterance for utterance in corpus() if utterance.label != "sad" or utterance.session == "2"]
    with pytest.raises(ProtocolError, match="fold '2': train has no 'sad', which test has"):
        make_folds(utterances, "session")
    folds = make_folds(utterances, "session", allow={"class"})
    assert "fold '1': test has no 'sad'; UA is the mean recall of the classes that are there" in map(
        str, folds.problems
    )


def test_checks_report_broken_folds():
    utterances = corpus()
    ids = [utterance.id for utterance in utterances]
    folds = [
        Fold("1", tuple(ids[:50]), (), tuple(ids[49:60])),
        Fold("1", (), tuple(ids[80:]), ("nobody", *ids[49:60])),
        Fold("2", tuple(ids[:40]), tuple(ids[80:]), ()),
    ]
    found = [str(problem) for problem in check_folds(folds, utterances)]
    assert "several folds are called '1'" in found
    assert f"fold '1': 1 utterances are listed more than once, such as {ids[49]!r} (in train and test)" in found
    assert "fold '1': 1 ids are not in the manifest ('nobody')" in found
    assert "fold '1': train is empty" in found
    assert "fold '2': test is empty" in found
    assert any(text.startswith("11 utterances are tested in more than one fold") for text in found)
    assert any(text.startswith("20 of 120 utterances are in no fold") for text in found)
    assert names_of(check_folds([], utterances), "error") == {"empty"}


def test_validation_that_shares_speakers_with_test_is_an_error():
    utterances = corpus()
    by_session = {s: tuple(u.id for u in utterances if u.session == s) for s in "123"}
    fold = Fold("1", by_session["1"], by_session["3"][:20], by_session["3"][20:] + by_session["2"])
    clean = [problem for problem in check_folds([fold], utterances) if problem.severity == "error"]
    assert not clean
    fold = replace(fold, validation=by_session["3"][::2], test=by_session["3"][1::2])
    (problem,) = [problem for problem in check_folds([fold], utterances) if problem.severity == "error"]
    assert problem.name == "speaker"
    assert problem.text.startswith("2 speakers are in validation and in test, such as '03F'")


def test_saved_folds_are_read_back_and_used_as_they_are(tmp_path):
    made = make_folds(corpus(), "session", seed=3)
    save_folds(made, tmp_path / "folds.json")
    assert read_folds(tmp_path / "folds.json") == list(made)
    again = make_folds(corpus(), tmp_path / "folds.json", seed=99)
    assert list(again) == list(made)
    assert list(make_folds(corpus(), str(tmp_path / "folds.json"))) == list(made)
    with pytest.raises(ProtocolError, match="Folds of the same name"):
        save_folds([made[0], made[0]], tmp_path / "folds.json")


def test_a_folds_file_may_leave_validation_out(tmp_path):
    file = tmp_path / "f.json"
    made = make_folds(corpus(), "session", validation=0)
    file.write_text(json.dumps({"note": "x", "folds": {f.name: {"train": f.train, "test": f.test} for f in made}}))
    assert list(make_folds(corpus(), file)) == list(make_folds(corpus(), "session"))


def test_unlabelled_utterances_are_dropped_from_a_folds_file(tmp_path):
    utterances = [replace(u, label=None) if u.id == "Ses01F_sad_00" else u for u in corpus()]
    save_folds(make_folds(corpus(), "session"), tmp_path / "f.json")
    folds = make_folds(utterances, tmp_path / "f.json", drop_unlabelled=True)
    assert folds.num_unlabelled == 1
    assert len(folds[0].test) == 39


def test_a_folds_file_over_other_utterances_is_refused(tmp_path):
    save_folds(make_folds(corpus(num_sessions=4), "session", validation=0), tmp_path / "f.json")
    for by in ("utterance", "speaker"):
        with pytest.raises(ProtocolError, match="fold '1': 40 ids are not in the manifest"):
            make_folds(corpus(num_sessions=3), tmp_path / "f.json", validation_by=by)


def test_a_folds_file_over_a_larger_corpus_can_be_allowed(tmp_path):
    save_folds(make_folds(corpus(per_class=7), "session", validation=0), tmp_path / "f.json")
    folds = make_folds(corpus(), tmp_path / "f.json", allow={"unknown"})
    assert list(folds) == list(make_folds(corpus(), "session"))
    assert [str(leak) for leak in folds.leaks][:1] == [
        "fold '1': 48 ids are not in the manifest ('Ses01F_angry_05', 'Ses01F_angry_06', 'Ses01F_happy_05' and 45 more)"
    ]
    assert folds.speaker_independent


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "has no table 'folds'"),
        ('{"folds": {}}', "holds no fold"),
        ('{"folds": {"1": []}}', "fold '1' is not a table of parts but list"),
        ('{"folds": {"1": {"train": [], "tset": []}}}', "'tset' is not a part"),
        ('{"folds": {"1": {"train": [], "dev": [], "val": []}}}', "'val' is a second name of 'validation'"),
        ('{"folds": {"1": {"train": [1], "test": []}}}', "'train' must be a list of ids"),
        ('{"folds": {"1": {"train": []}}}', "fold '1' has no test part"),
    ],
)
def test_a_malformed_folds_file_is_named(tmp_path, content, message):
    file = tmp_path / "folds.json"
    file.write_text(content)
    with pytest.raises(ProtocolError, match=message):
        read_folds(file)


def test_a_missing_folds_file_is_named():
    with pytest.raises(ProtocolError, match=r"There is no folds file 'nowhere\.json'"):
        make_folds(corpus(), "nowhere.json")


def write_emobox(folder, fold, name, keys):
    (folder / f"fold_{fold}").mkdir(exist_ok=True)
    lines = [json.dumps({"key": f"toy-{key}", "dataset": "toy"}) + "\n" for key in keys]
    (folder / f"fold_{fold}" / name).write_text("".join(lines))


def test_a_folder_of_emobox_lists_is_read_by_either_name_of_an_utterance(tmp_path):
    made = make_folds(corpus(), "session", validation=0)
    for fold in made:
        write_emobox(tmp_path, fold.name, f"toy_train_fold_{fold.name}.jsonl", fold.train)
        write_emobox(tmp_path, fold.name, f"toy_test_fold_{fold.name}.jsonl", fold.test)
        write_emobox(tmp_path, fold.name, f"toy_test_fold{fold.name}.jsonl", fold.test[::-1])
    assert [set(fold.test) for fold in make_folds(corpus(), tmp_path)] == [set(fold.test) for fold in made]
    assert set(read_folds(tmp_path)[0].test) == {f"toy-{name}" for name in made[0].test}
    write_emobox(tmp_path, "1", "toy_test_fold1.jsonl", made[0].test[1:])
    with pytest.raises(ProtocolError, match="another test list of the same fold name different utterances"):
        make_folds(corpus(), tmp_path)


def test_a_folder_that_is_not_emobox_is_refused(tmp_path):
    with pytest.raises(ProtocolError, match="holds no folds in EmoBox's form"):
        read_folds(tmp_path)
    write_emobox(tmp_path, "1", "toy_all_fold_1.jsonl", ["a"])
    with pytest.raises(ProtocolError, match="is not named as EmoBox does"):
        read_folds(tmp_path)
    (tmp_path / "fold_1" / "toy_all_fold_1.jsonl").rename(tmp_path / "fold_1" / "toy_test_fold_1.jsonl")
    (tmp_path / "fold_1" / "toy_test_fold_1.jsonl").write_text("{}\n")
    with pytest.raises(ProtocolError, match="line 1: expected a JSON object with a text 'key'"):
        read_folds(tmp_path)


def emobox(folder, corpus_name):
    rows = [json.loads(line) for line in (folder / corpus_name / f"{corpus_name}.jsonl").read_text().splitlines()]
    labels = {"exc": "hap"}
    for row in rows:
        name = row["key"].removeprefix(f"{corpus_name}-")
        speaker = name[:2] if corpus_name == "emodb" else name[:5] + name.split("_")[-1][0]
        yield Utterance(
            name, audio=row["wav"], label=labels.get(row["emo"], row["emo"]), speaker=speaker, session=name[3:5]
        )


def test_iemocap_by_session_has_the_published_sizes(shared_data):
    utterances = list(emobox(shared_data / "emobox", "iemocap"))
    folds = make_folds(utterances, "session")
    assert [len(fold.test) for fold in folds] == [1085, 1023, 1151, 1031, 1241]
    assert not folds.problems
    assert len({utterance.speaker for utterance in utterances}) == 10
    published = make_folds(utterances, shared_data / "emobox" / "iemocap")
    assert [set(fold.test) for fold in published] == [set(fold.test) for fold in folds]
    assert [len(fold.train) for fold in published] == [len(fold.train) for fold in folds]


def test_the_speakers_shared_by_emobox_folds_of_emodb_are_caught(shared_data):
    utterances = list(emobox(shared_data / "emobox", "emodb"))
    with pytest.raises(ProtocolError, match="10 speakers are in train and in test"):
        make_folds(utterances, shared_data / "emobox" / "emodb")
    assert not make_folds(utterances, shared_data / "emobox" / "emodb", allow={"speaker"}).speaker_independent


@pytest.mark.parametrize(("argument", "shares"), [("70/20/10", (0.7, 0.2, 0.1)), ("0.8/0.1/0.1", (0.8, 0.1, 0.1))])
def test_stratified_gives_every_class_its_share_of_every_part(argument, shares):
    utterances = corpus(num_sessions=5, per_class=4)  # 40 of each class
    folds = make_folds(utterances, f"stratified:{argument}")
    labels = {one.id: one.label for one in utterances}
    [fold] = folds
    assert fold.name == "speaker-dependent"
    assert sorted(fold.train + fold.validation + fold.test) == sorted(labels)
    for part, share in zip(fold.parts.values(), shares, strict=True):
        assert Counter(labels[name] for name in part) == dict.fromkeys(LABELS, round(40 * share))
    assert not folds.speaker_independent
    assert names_of(folds.leaks) == {"speaker"}
    assert make_folds(reversed(utterances), f"stratified:{argument}").folds == folds.folds
    assert make_folds(utterances, f"stratified:{argument}", seed=1).folds != folds.folds


def test_stratified_has_small_classes_in_every_part_that_they_can_be_in():
    counts = {"one": 1, "two": 2, "three": 3, "many": 30}
    utterances = [
        Utterance(f"{label}{n}", label=label, speaker="s") for label, num in counts.items() for n in range(num)
    ]
    [fold] = make_folds(utterances, "stratified:70/20/10")
    found = {part: {name.rstrip("0123456789") for name in ids} for part, ids in fold.parts.items()}
    assert found == {"train": set(counts), "validation": {"three", "many"}, "test": {"two", "three", "many"}}


@pytest.mark.parametrize("argument", ["70/20", "70/20/20", "70/30/0", "a/b/c", "nan/1/1", "-10/100/10", "inf/1/1"])
def test_stratified_wants_three_shares(argument):
    with pytest.raises(ProtocolError, match="three shares"):
        make_folds(corpus(), f"stratified:{argument}")


@pytest.mark.parametrize("kind", ["session", "speaker", "column:sex", "random:3"])
def test_within_divides_each_training_part_and_never_sees_what_is_tested(kind):
    utterances = corpus(num_sessions=3, per_class=10)
    outer = {fold.name: fold for fold in make_folds(utterances, kind, validation=0)}
    folds = make_folds(utterances, f"within:{kind}")
    assert [fold.name for fold in folds] == list(outer)
    for fold in folds:
        everything = fold.train + fold.validation + fold.test
        assert sorted(everything) == sorted(outer[fold.name].train)
        assert abs(len(fold.test) - 0.1 * len(everything)) <= 2 == len(fold.test) - len(fold.validation) + 2


def test_within_learns_speakers_inside_each_fold():
    rows = [replace(one, label=one.speaker) for one in corpus(num_sessions=3, per_class=5)]
    folds = make_folds(rows, "within:session")
    for fold in folds:
        heard = speakers_of(fold.train, rows)
        assert len(heard) == 4
        assert speakers_of(fold.test, rows) == speakers_of(fold.validation, rows) == heard
        assert not any(name.startswith(f"Ses0{fold.name}") for name in fold.train + fold.validation + fold.test)


def test_within_of_a_file_keeps_out_its_validation_too(tmp_path):
    utterances = corpus(num_sessions=2)
    ids = [one.id for one in utterances]
    save_folds([Fold("f", tuple(ids[:20]), tuple(ids[20:30]), tuple(ids[30:]))], tmp_path / "f.json")
    [fold] = make_folds(utterances, f"within:{tmp_path / 'f.json'}", allow=("class",))
    assert sorted(fold.train + fold.validation + fold.test) == sorted(ids[:20])

"""IEMOCAP: the release's 10,039 utterances become the field's 5,531, and no fault of the tree passes."""

import logging
from collections import Counter
from pathlib import Path

import pytest
import trees

from featcache.corpora.iemocap import Iemocap
from featcache.errors import ConfigError, CorpusError
from featcache.settings import build

SESSIONS = ["Ses01", "Ses02", "Ses03", "Ses04", "Ses05"]
DIALOG = "Ses03M_impro05"
RATINGS = Path("Session3", "dialog", "EmoEvaluation", f"{DIALOG}.txt")
TEXTS = Path("Session3", "dialog", "transcriptions", f"{DIALOG}.txt")


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return trees.iemocap(tmp_path_factory.mktemp("iemocap"))


@pytest.fixture
def small(tmp_path) -> Path:
    return trees.iemocap(tmp_path, per_label=30)


def by_session(manifest) -> list[int]:
    counts = Counter(item.session for item in manifest)
    return [counts[session] for session in SESSIONS]


def test_four_classes_are_the_5531_utterances_of_the_field(release, caplog):
    with caplog.at_level(logging.INFO):
        manifest = Iemocap().manifest(release)
    assert len(manifest) == 5531
    assert Counter(item.label for item in manifest) == {"angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084}
    assert by_session(manifest) == [1085, 1023, 1151, 1031, 1241]
    assert "kept 5531 of 10039 utterances; left out: 2507 xxx, 1849 fru, 107 sur, 40 fea" in caplog.text


@pytest.mark.parametrize("classes", [5, "5"])
def test_five_classes_add_the_1849_frustrated_utterances(release, classes):
    manifest = build(Iemocap, {"classes": classes}, "corpus iemocap").manifest(release)
    assert len(manifest) == 5531 + 1849
    assert Counter(item.label for item in manifest)["frustrated"] == 1849


def test_all_keeps_every_utterance_excited_apart_and_the_disputed_without_label(release):
    manifest = Iemocap(classes="all").manifest(release)
    labels = Counter(item.label for item in manifest)
    assert len(manifest) == 10039
    assert by_session(manifest) == [1819, 1811, 2136, 2103, 2170]
    assert (labels["excited"], labels["happy"], labels[None], labels["surprise"]) == (1041, 595, 2507, 107)
    assert {item.extra["corpus_label"] for item in manifest if item.label is None} == {"xxx"}


def test_whether_excited_is_merged_can_be_chosen(release):
    apart = build(Iemocap, {"classes": "4", "merge_excited": "false"}, "corpus iemocap").manifest(release)
    merged = Iemocap(classes="all", merge_excited=True).manifest(release)
    assert (len(apart), Counter(item.label for item in apart)["happy"]) == (4490, 595)
    assert Counter(item.label for item in merged)["happy"] == 1636


def test_an_utterance_carries_who_speaks_what_in_which_dialog(release):
    item = Iemocap().manifest(release).utterance(f"{DIALOG}_F000")
    assert item.audio == f"Session3/sentences/wav/{DIALOG}/{DIALOG}_F000.wav"
    assert (item.speaker, item.session, item.extra["gender"]) == ("Ses03F", "Ses03", "female")
    assert item.text == f"This is line 0 of {DIALOG}."
    ratings = {name: item.extra[name] for name in ("valence", "activation", "dominance")}
    assert ratings == {"valence": 2.5, "activation": 3.0, "dominance": 3.5}
    assert (item.extra["dialog"], item.extra["style"]) == (DIALOG, "improvised")
    assert (item.extra["dialog_start_s"], item.extra["dialog_end_s"]) == (6.2901, 8.2357)
    assert len({item.speaker for item in Iemocap().manifest(release)}) == 10


def test_votes_count_the_annotators_of_each_class_and_no_self_report(release):
    by_label = {item.extra["corpus_label"]: item for item in Iemocap(classes="all").manifest(release)}
    assert by_label["ang"].extra["votes"] == {"angry": 2, "other": 1}
    assert by_label["neu"].extra["votes"] == {"neutral": 2, "angry": 1, "other": 1}
    assert by_label["exc"].extra["votes"] == {"excited": 2, "angry": 1, "other": 1}
    assert by_label["xxx"].extra["votes"] == {"angry": 2, "neutral": 1, "sad": 1}
    merged = {item.extra["corpus_label"]: item for item in Iemocap().manifest(release)}
    assert merged["exc"].extra["votes"] == {"happy": 2, "angry": 1, "other": 1}


def test_an_annotator_who_names_happy_and_excited_votes_once_for_the_merged_class(small):
    trees.replace_in(small / RATINGS, "Anger;\t()", "Happiness; Excited; Neutral state;\t()")
    item = Iemocap().manifest(small).utterance(f"{DIALOG}_F000")
    assert item.extra["votes"]["happy"] == 1
    assert item.extra["votes"]["neutral"] == 1


def test_the_folder_above_the_full_release_is_accepted(tmp_path):
    trees.iemocap(tmp_path / "IEMOCAP_full_release", per_label=1)
    manifest = Iemocap().manifest(tmp_path)
    assert manifest[0].audio.startswith("IEMOCAP_full_release/Session1/sentences/wav/")
    assert manifest.audio_path(manifest[0]).is_file()


def test_hidden_files_and_transcriptions_of_no_utterance_are_passed_over(small):
    before = Iemocap().manifest(small).ids
    for path in (RATINGS, TEXTS):
        (small / path).with_name(f"._{path.name}").write_bytes(b"\x00\x05\x16\x07Mac OS X")
    (small / f"Session3/sentences/wav/{DIALOG}/._{DIALOG}_F000.wav").write_bytes(b"Mac OS X")
    with (small / TEXTS).open("a") as file:
        file.write(f"{DIALOG}_F099 [900.0000-901.0000]: Without a recording.\nF: [BREATHING]\n")
    assert Iemocap().manifest(small).ids == before


def test_windows_line_ends_and_windows_encoding_are_read(small):
    texts = (small / TEXTS).read_text().replace("This is", "Caf\u00e9 is").replace("\n", "\r\n")
    (small / TEXTS).write_bytes(texts.encode("cp1252"))
    (small / RATINGS).write_bytes((small / RATINGS).read_bytes().replace(b"\n", b"\r\n"))
    assert Iemocap().manifest(small).utterance(f"{DIALOG}_F000").text == f"Caf\u00e9 is line 0 of {DIALOG}."


@pytest.mark.parametrize(
    ("path", "old", "new", "message"),
    [
        (RATINGS, "[2.5000, 3.0000", "[2.5000; 3.0000", rf"{DIALOG}\.txt', line 3: expected '\[start - end\] turn"),
        (RATINGS, "[6.2901 - ", "6.2901 - ", rf"{DIALOG}\.txt', line 3: expected"),
        (RATINGS, f"{DIALOG}_F000\t", "impro05_F000\t", rf"{DIALOG}\.txt', line 3: expected"),
        (RATINGS, f"{DIALOG}_M000\t", f"{DIALOG}_F000\t", r"line 11: .*F000' is rated a second time.*line 3"),
        (RATINGS, "_F000\tang", "_F000\tmad", r"line 3: 'mad' is none of IEMOCAP's labels: ang, .*xxx"),
        (RATINGS, "Other;", "Furious;", r"line 6: the annotator's label 'Furious' is none of"),
        (RATINGS, "C-E2:\tAnger", "C-E2\tAnger", r"line 4: expected an annotator's labels"),
        (RATINGS, "% [START", "C-E2:\tAnger;\t()\n% [START", r"line 1: .* before the first summary line"),
        (
            TEXTS,
            f"{DIALOG}_F000 [",
            f"{DIALOG}_F098 [",
            rf"transcriptions/{DIALOG}\.txt' has no line for '{DIALOG}_F000'",
        ),
    ],
)
def test_a_malformed_line_is_refused_with_its_file_and_place(path, old, new, message, small):
    trees.replace_in(small / path, old, new)
    with pytest.raises(CorpusError, match=message):
        Iemocap().manifest(small)


def test_a_missing_recording_of_a_kept_utterance_is_refused_by_name(small):
    (small / f"Session3/sentences/wav/{DIALOG}/{DIALOG}_F000.wav").unlink()
    with pytest.raises(CorpusError, match=rf"no recording .*{DIALOG}_F000\.wav', which .*{DIALOG}\.txt', line 3 rates"):
        Iemocap().manifest(small)


def test_a_recording_that_nobody_rated_is_refused(small):
    trees.write_wav(small / f"Session3/sentences/wav/{DIALOG}/{DIALOG}_F097.wav")
    with pytest.raises(CorpusError, match=rf"{DIALOG}\.txt' has no summary line for '{DIALOG}_F097'"):
        Iemocap().manifest(small)


@pytest.mark.parametrize("path", [TEXTS, RATINGS.parent, Path("Session3", "sentences", "wav", DIALOG)])
def test_a_missing_file_or_folder_of_the_release_is_refused_by_name(path, small):
    (small / path).rename(small / "elsewhere")
    with pytest.raises(CorpusError, match=path.name):
        Iemocap().manifest(small)


def test_a_missing_session_is_refused_because_the_folds_would_not_be_the_protocol(small):
    (small / "Session4").rename(small / "Session9")
    with pytest.raises(CorpusError, match=r"(?s)has no Session4\. Expected:.*EmoEvaluation"):
        Iemocap().manifest(small)


def test_a_number_of_classes_without_a_protocol_is_refused():
    with pytest.raises(ConfigError, match="classes=6 is not a protocol of IEMOCAP"):
        build(Iemocap, {"classes": "6"}, "corpus iemocap")


def test_the_tree_has_the_counts_of_the_emobox_lists(shared_data):
    lines = (shared_data / "emobox" / "iemocap" / "iemocap.jsonl").read_text().splitlines()
    counts = Counter((line.split("Ses0")[1][0], line.split('"emo": "')[1][:3]) for line in lines)
    assert counts == {
        (str(session), label): count
        for session, labels in trees.IEMOCAP_COUNTS.items()
        for label, count in labels.items()
        if label != "fru"
    }

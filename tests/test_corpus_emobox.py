"""EmoBox's lists: their traps, their folds, and where the recordings lie."""

import json
import logging
from collections import Counter
from pathlib import Path

import pytest
import trees

from featcache.corpora.emobox import EmoBox
from featcache.corpora.emodb import EmoDb
from featcache.errors import CorpusError
from featcache.settings import build


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def edit(path: Path, **changes: object) -> None:
    rows = rows_of(path)
    rows[0] = {**rows[0], **changes}
    trees.write_lines(path, [{column: value for column, value in row.items() if value is not ...} for row in rows])


def test_a_row_becomes_an_utterance_with_the_name_the_corpus_itself_gives_it(tmp_path):
    item = EmoBox().manifest(trees.emobox(tmp_path))[0]
    assert (item.id, item.speaker, item.label) == ("03a01Wa", "03", "angry")
    assert item.audio == "downloads/emodb/wav/03a01Wa.wav"
    assert item.extra == {
        "dataset": "emodb", "sample_rate_hz": 16000, "num_samples": 32706, "duration_s": 2.044125,
        "corpus_label": "anger", "num_channels": 1, "fold": "1",
    }  # fmt: skip


def test_labels_are_mapped_whatever_their_case_and_spelling(tmp_path):
    manifest = EmoBox().manifest(trees.emobox(tmp_path))
    assert [item.label for item in manifest] == ["angry", "boredom", "neutral", "happy", "fear", "sad"]


def test_labels_that_mean_no_agreement_are_no_label_and_strange_ones_are_kept(tmp_path):
    trees.emobox(tmp_path)
    (tmp_path / "label_map.json").write_text(
        '{"anger": "No-agreement", "boredem": "pain, groan", "neutral": "Contempt", "happy": "Happy", '
        '"fear": "Unknown", "sad": "Sad"}'
    )
    labels = [item.label for item in EmoBox().manifest(tmp_path)]
    assert labels == [None, "pain, groan", "contempt", "happy", None, "sad"]


@pytest.mark.parametrize(
    ("dataset", "key", "wav", "speaker", "session", "name"),
    [
        (
            "iemocap",
            "Ses02F_impro07_M001",
            "Session2/x/Ses02F_impro07_M001.wav",
            "Ses02M",
            "Ses02",
            "Ses02F_impro07_M001",
        ),
        ("ravdess", "03-01-05-01-02-01-18", "Actor_18/03-01-05-01-02-01-18.wav", "18", None, "03-01-05-01-02-01-18"),
        ("cremad", "1001-IEO-HAP-HI", "AudioWAV/1001_IEO_HAP_HI.wav", "1001", None, "1001_IEO_HAP_HI"),
        ("own", "u1", "a/b.wav", None, None, "u1"),
    ],
)
def test_speakers_are_those_of_the_corpora_this_project_reads(dataset, key, wav, speaker, session, name, tmp_path):
    trees.emobox(tmp_path, dataset="emodb")
    rows = [{**rows_of(tmp_path / "emodb.jsonl")[0], "dataset": dataset, "key": f"{dataset}-{key}", "wav": wav}]
    trees.write_lines(tmp_path / "alone" / f"{dataset}.jsonl", rows)
    (tmp_path / "label_map.json").rename(tmp_path / "alone" / "label_map.json")
    (item,) = EmoBox().manifest(tmp_path / "alone")
    assert (item.id, item.speaker, item.session) == (name, speaker, session)


def test_speaker_text_and_span_come_from_columns_where_there_are_any(tmp_path):
    trees.emobox(tmp_path, dataset="own")
    edit(tmp_path / "own.jsonl", spk="s7", text="hello", start_time=0.5, end_time=1.25)
    item = EmoBox().manifest(tmp_path)[0]
    assert (item.speaker, item.text, item.start_s, item.end_s) == ("s7", "hello", 0.5, 1.25)


def test_each_utterance_has_the_fold_that_tests_it(tmp_path):
    assert [item.extra["fold"] for item in EmoBox().manifest(trees.emobox(tmp_path))] == ["1", "1", "2", "2", "3", "3"]


def test_lists_under_the_second_name_alone_are_read(tmp_path):
    for path in trees.emobox(tmp_path).glob("fold_*/*_fold_?.jsonl"):
        path.unlink()
    assert [item.extra["fold"] for item in EmoBox().manifest(tmp_path)] == ["1", "1", "2", "2", "3", "3"]


def test_a_single_fold_is_a_fixed_split(tmp_path):
    rows = rows_of(trees.emobox(tmp_path) / "emodb.jsonl")
    for fold in (2, 3):
        (tmp_path / f"fold_{fold}").rename(tmp_path / f"unused_{fold}")
    for path in (tmp_path / "fold_1").iterdir():
        path.unlink()
    for split, members in (("train", rows[:3]), ("valid", rows[3:4]), ("test", rows[4:])):
        trees.write_lines(tmp_path / "fold_1" / f"emodb_{split}_fold_1.jsonl", members)
    splits = [item.extra["split"] for item in EmoBox().manifest(tmp_path)]
    assert splits == ["train", "train", "train", "validation", "test", "test"]


def test_validation_lists_of_several_folds_are_kept(tmp_path):
    rows = rows_of(trees.emobox(tmp_path) / "emodb.jsonl")
    for name in ("emodb_train_fold_1.jsonl", "emodb_train_fold1.jsonl"):
        trees.write_lines(tmp_path / "fold_1" / name, rows[2:5])
    trees.write_lines(tmp_path / "fold_1" / "emodb_valid_fold_1.jsonl", rows[5:])
    manifest = EmoBox().manifest(tmp_path)
    assert manifest[5].extra["validation_folds"] == ["1"]
    assert "validation_folds" not in manifest[0].extra


def test_a_folder_without_folds_gives_no_fold(tmp_path):
    trees.emobox(tmp_path)
    for fold in (1, 2, 3):
        (tmp_path / f"fold_{fold}").rename(tmp_path / f"unused_{fold}")
    assert not any("fold" in item.extra or "split" in item.extra for item in EmoBox().manifest(tmp_path))


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_recordings_are_found_below_the_audio_root_at_any_cut(depth, tmp_path):
    lists = trees.emobox(tmp_path / "lists")
    wavs = [Path(row["wav"]) for row in rows_of(lists / "emodb.jsonl")]
    trees.write_wavs(tmp_path / "audio" / Path(*wav.parts[depth:]) for wav in wavs)
    manifest = build(EmoBox, {"audio_root": str(tmp_path / "audio")}, "corpus emobox").manifest(lists)
    assert all(manifest.audio_path(item).is_file() for item in manifest)
    assert {manifest.audio_path(item).stem for item in manifest} == set(manifest.ids)


def test_missing_recordings_are_an_error_unless_they_are_to_be_left_out(tmp_path, caplog):
    lists = trees.emobox(tmp_path / "lists")
    trees.write_wav(tmp_path / "audio" / "wav" / "08a02Na.wav")
    with pytest.raises(CorpusError, match=r"6 of the 6 recordings .*missing=leave_out"):
        EmoBox(audio_root=tmp_path / "audio" / "wav" / "deeper", missing="leave_out").manifest(lists)
    trees.write_wav(tmp_path / "audio" / "wav" / "09a01Aa.wav")
    with pytest.raises(CorpusError, match=r"5 of the 6 recordings of EmoBox's emodb .*audio/wav/03a01Wa\.wav"):
        EmoBox(audio_root=tmp_path / "audio").manifest(lists)
    with caplog.at_level(logging.INFO):
        manifest = EmoBox(audio_root=tmp_path / "audio", missing="leave_out").manifest(lists)
    assert manifest.ids == ["09a01Aa"]
    assert "left out: 5 missing" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": ...}, r"emodb\.jsonl', line 1 has no text 'key'"),
        ({"key": "emodb-03a02La"}, r"line 2: the key 'emodb-03a02La' is there a second time"),
        ({"emo": "rage"}, r"line 1: the label 'rage' is none of label_map.json's: anger, "),
        ({"emo": ...}, r"line 1: the label None is none of"),
        ({"wav": "downloads/../../x.wav"}, r"line 1: 'wav' must be a path without '\.\.'"),
        ({"wav": ...}, r"line 1: 'wav' must be a path"),
        ({"type": "feature"}, r"line 1: 'type' is 'feature'; only 'raw'"),
        ({"task": "valence"}, r"line 1: 'task' is 'valence'; only 'category'"),
        ({"num_frame": "many"}, r"line 1: .*str"),
        ({"start_time": 2.0, "end_time": 1.0}, r"line 1: .*ends at 1.0 s"),
    ],
)
def test_a_malformed_row_is_refused_with_its_file_and_line(change, message, tmp_path):
    edit(trees.emobox(tmp_path) / "emodb.jsonl", **change)
    with pytest.raises(CorpusError, match=message):
        EmoBox().manifest(tmp_path)


def test_a_line_that_is_not_json_is_refused_with_its_place(tmp_path):
    with (trees.emobox(tmp_path) / "emodb.jsonl").open("a") as file:
        file.write("{'key': 1}\n")
    with pytest.raises(CorpusError, match=r"emodb\.jsonl', line 7 is not JSON"):
        EmoBox().manifest(tmp_path)


def test_a_label_map_that_is_none_is_refused(tmp_path):
    (trees.emobox(tmp_path) / "label_map.json").write_text('["Angry"]')
    with pytest.raises(CorpusError, match=r"label_map\.json' is not a JSON object"):
        EmoBox().manifest(tmp_path)
    (tmp_path / "label_map.json").unlink()
    with pytest.raises(CorpusError, match=r"label_map\.json' cannot be read"):
        EmoBox().manifest(tmp_path)


def test_a_folder_of_several_lists_is_refused_with_the_layout(tmp_path):
    (trees.emobox(tmp_path) / "second.jsonl").write_text("")
    with pytest.raises(CorpusError, match=r"(?s)holds 2 lists .*Expected:"):
        EmoBox().manifest(tmp_path)


def test_an_utterance_that_no_fold_tests_is_refused(tmp_path):
    (trees.emobox(tmp_path) / "fold_2").rename(tmp_path / "lost")
    with pytest.raises(
        CorpusError, match=r"2 of 6 utterances are in the test list of no fold, such as 'emodb-08a01Na'"
    ):
        EmoBox().manifest(tmp_path)


def test_an_utterance_that_two_folds_test_is_refused(tmp_path):
    trees.emobox(tmp_path)
    for split in ("train", "test"):
        for style in ("_", ""):
            rows = rows_of(tmp_path / "fold_1" / f"emodb_{split}_fold{style}1.jsonl")
            trees.write_lines(tmp_path / "fold_2" / f"emodb_{split}_fold{style}2.jsonl", rows)
    with pytest.raises(CorpusError, match="'emodb-03a01Wa' is in the test lists of folds 1 and 2"):
        EmoBox().manifest(tmp_path)


@pytest.mark.parametrize(("kept", "extra"), [(3, []), (4, [0]), (4, ["stranger"])])
def test_lists_of_a_fold_that_do_not_partition_the_corpus_are_refused(kept, extra, tmp_path):
    rows = rows_of(trees.emobox(tmp_path) / "emodb.jsonl")
    added = [{**rows[0], "key": "emodb-99a99Za"} if one == "stranger" else rows[one] for one in extra]
    for style in ("_", ""):
        trees.write_lines(tmp_path / "fold_1" / f"emodb_train_fold{style}1.jsonl", rows[2 : 2 + kept] + added)
    with pytest.raises(CorpusError, match=r"fold_1': its lists do not partition the corpus; 1 keys"):
        EmoBox().manifest(tmp_path)


def test_two_names_of_one_list_must_agree(tmp_path):
    rows = rows_of(trees.emobox(tmp_path) / "emodb.jsonl")
    trees.write_lines(tmp_path / "fold_3" / "emodb_test_fold3.jsonl", rows[:2])
    with pytest.raises(CorpusError, match=r"emodb_test_fold_3\.jsonl and emodb_test_fold3\.jsonl should be the same"):
        EmoBox().manifest(tmp_path)


def test_a_fold_without_its_train_list_is_refused(tmp_path):
    for path in (trees.emobox(tmp_path) / "fold_1").glob("*train*"):
        path.unlink()
    with pytest.raises(CorpusError, match=r"fold_1' has no emodb_train_fold_1\.jsonl"):
        EmoBox().manifest(tmp_path)


def test_the_real_iemocap_list_has_the_protocol_and_tests_session_k_in_fold_k(shared_data):
    manifest = EmoBox().manifest(shared_data / "emobox" / "iemocap")
    assert Counter(item.label for item in manifest) == {"angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084}
    assert Counter(item.extra["fold"] for item in manifest) == {"1": 1085, "2": 1023, "3": 1151, "4": 1031, "5": 1241}
    assert all(item.session == f"Ses0{item.extra['fold']}" for item in manifest)
    assert len({item.speaker for item in manifest}) == 10


def test_the_real_emodb_list_joins_the_corpus_and_its_folds_share_speakers(shared_data):
    chosen = EmoBox(audio_root=shared_data, classes="angry,happy,neutral,sad")
    manifest = chosen.manifest(shared_data / "emobox" / "emodb")
    assert {(item.id, item.label, item.speaker) for item in manifest} == {
        (item.id, item.label, item.speaker) for item in EmoDb().manifest(shared_data / "emodb")
    }
    everything = EmoBox().manifest(shared_data / "emobox" / "emodb")
    assert Counter(item.extra["fold"] for item in everything) == dict.fromkeys("12345", 107)
    assert {len({item.speaker for item in everything if item.extra["fold"] == fold}) for fold in "12345"} == {10}


def test_the_real_ravdess_folds_share_no_speaker(shared_data):
    manifest = EmoBox().manifest(shared_data / "emobox" / "ravdess")
    folds = {item.speaker: item.extra["fold"] for item in manifest}
    assert len(manifest) == 1440
    assert all(folds[item.speaker] == item.extra["fold"] for item in manifest)
    assert Counter(folds.values()) == dict.fromkeys("123456", 4)

"""Export: what is written for other programs can be read again, and says the same."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import trees

from featcache.corpora.emobox import EmoBox
from featcache.corpora.table import Table
from featcache.errors import AudioError, ManifestError
from featcache.exchange import write_csv, write_emobox
from featcache.manifest import Manifest, Utterance

AWKWARD = [
    Utterance("=1+1", text="+cmd|' /C calc'!A0", label="angry", speaker="@s", extra={"note": "-2"}),
    Utterance("a,b;c", text='he said "no",\r\nthen\nleft\x00', label="sad"),
    Utterance(" ünïcode\u2028 ", text="\ufeffx", session="s\t1", start_s=0.1, end_s=1 / 3),
    Utterance("plain", extra={"votes": {"sad": 2}, "flag": True, "share": 0.5, "note": ""}),
]


@pytest.fixture
def recorded(tmp_path) -> Manifest:
    """Four recordings in four folds, of two speakers, at 8 kHz in stereo."""
    utterances = []
    for number, label in enumerate(("angry", "sad", "angry", "frustrated")):
        path = trees.write_wav(tmp_path / "audio" / f"r{number}.wav", rate=8000)
        samples, _ = soundfile.read(path)
        soundfile.write(path, np.stack([samples, samples], axis=1), 8000)
        utterances.append(
            Utterance(
                f"r{number}", audio=f"audio/r{number}.wav", label=label, text=f"text {number}",
                speaker=f"s{number % 2}", session="s", extra={"fold": str(number % 2 + 1)},
            )
        )  # fmt: skip
    return Manifest(utterances, folder=tmp_path)


def without_extra(manifest) -> list[Utterance]:
    return [Utterance(**{**vars(item), "extra": {}}) for item in manifest]


def test_csv_comes_back_as_it_was_with_other_columns_as_text(tmp_path):
    write_csv(Manifest(AWKWARD), tmp_path / "m.csv")
    back = Table().manifest(tmp_path / "m.csv")
    assert without_extra(back) == without_extra(AWKWARD)
    assert [dict(item.extra) for item in back] == [
        {"note": "-2"}, {}, {}, {"votes": '{"sad": 2}', "flag": "true", "share": "0.5"},
    ]  # fmt: skip


def test_csv_cells_are_not_altered_for_spreadsheets(tmp_path):
    write_csv(Manifest(AWKWARD), tmp_path / "m.csv")
    with (tmp_path / "m.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == [
        "id",
        "text",
        "label",
        "speaker",
        "session",
        "start_s",
        "end_s",
        "note",
        "votes",
        "flag",
        "share",
    ]
    assert rows[1][:4] == ["=1+1", "+cmd|' /C calc'!A0", "angry", "@s"]


def test_csv_paths_stay_valid_in_another_folder(recorded, tmp_path):
    write_csv(recorded, tmp_path / "inside.csv")
    write_csv(recorded, tmp_path / "elsewhere" / "outside.csv")
    inside, outside = (
        Table().manifest(tmp_path / "inside.csv"),
        Table().manifest(tmp_path / "elsewhere" / "outside.csv"),
    )
    assert inside[0].audio == "audio/r0.wav"
    assert Path(outside[0].audio).is_absolute()
    assert outside.audio_path(outside[0]).read_bytes() == inside.audio_path(inside[0]).read_bytes()


def test_emobox_comes_back_with_labels_folds_and_measured_lengths(recorded, tmp_path):
    write_emobox(recorded, tmp_path / "lists" / "own")
    back = EmoBox().manifest(tmp_path / "lists" / "own")
    assert [(item.id, item.label, item.text, item.speaker, item.session) for item in back] == [
        (item.id, item.label, item.text, item.speaker, item.session) for item in recorded
    ]
    assert [item.extra["fold"] for item in back] == ["1", "2", "1", "2"]
    assert all(back.audio_path(item).is_file() for item in back)
    assert {key: back[0].extra[key] for key in ("sample_rate_hz", "num_samples", "num_channels", "duration_s")} == {
        "sample_rate_hz": 8000, "num_samples": 800, "num_channels": 2, "duration_s": 0.1,
    }  # fmt: skip


def test_emobox_rows_have_the_columns_that_its_reader_uses(recorded, tmp_path):
    write_emobox(recorded, tmp_path / "own.jsonl")
    row = json.loads((tmp_path / "own.jsonl").read_text().splitlines()[0])
    assert {key: row[key] for key in list(row)[:10]} == {
        "key": "own-r0", "dataset": "own", "wav": "audio/r0.wav", "type": "raw", "sample_rate": 8000,
        "num_frame": 800.0, "task": "category", "length": 0.1, "emo": "angry", "channel": 2,
    }  # fmt: skip
    assert json.loads((tmp_path / "label_map.json").read_text()) == {
        "angry": "Angry", "sad": "Sad", "frustrated": "Frustrated",
    }  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "fold_2").iterdir()) == [
        "own_test_fold_2.jsonl", "own_train_fold_2.jsonl",
    ]  # fmt: skip


def test_emobox_keeps_spans(recorded, tmp_path):
    spans = [(None, 0.05), (0.05, None), (0.025, 0.075), (None, None)]
    cut = [
        Utterance(item.id, item.audio, label=item.label, start_s=start_s, end_s=end_s)
        for item, (start_s, end_s) in zip(recorded, spans, strict=True)
    ]
    write_emobox(Manifest(cut, recorded.folder), tmp_path / "own.jsonl")
    back = EmoBox().manifest(tmp_path)
    assert [(item.start_s, item.end_s) for item in back] == [(0.0, 0.05), (0.05, 0.1), (0.025, 0.075), (None, None)]
    assert [item.extra["num_samples"] for item in back] == [400, 400, 400, 800]


def test_emobox_writes_a_fixed_split_as_one_fold(recorded, tmp_path):
    splits = ["train", "train", "validation", "test"]
    split = [
        Utterance(item.id, item.audio, label=item.label, extra={"split": name})
        for item, name in zip(recorded, splits, strict=True)
    ]
    write_emobox(Manifest(split, recorded.folder), tmp_path / "own.jsonl")
    assert (tmp_path / "fold_1" / "own_valid_fold_1.jsonl").is_file()
    assert [item.extra["split"] for item in EmoBox().manifest(tmp_path)] == splits


def test_emobox_keeps_validation_lists(recorded, tmp_path):
    held_out = [
        Utterance(
            item.id,
            item.audio,
            label=item.label,
            extra={**item.extra, "validation_folds": ["1"]} if item.id == "r1" else item.extra,
        )
        for item in recorded
    ]
    write_emobox(Manifest(held_out, recorded.folder), tmp_path / "own.jsonl")
    assert [item.extra.get("validation_folds") for item in EmoBox().manifest(tmp_path)] == [None, ["1"], None, None]


def test_emobox_writes_the_class_where_the_corpus_label_does_not_decide_it(recorded, tmp_path):
    same = [Utterance(item.id, item.audio, label=item.label, extra={"corpus_label": "x"}) for item in recorded]
    write_emobox(Manifest(same, recorded.folder), tmp_path / "own.jsonl")
    assert [item.label for item in EmoBox().manifest(tmp_path)] == ["angry", "sad", "angry", "frustrated"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "1 utterances have no label, such as 'r0'"),
        ({"audio": None}, "'r0' has no audio"),
        ({"audio": "audio/absent.wav"}, r"'r0': there is no recording .*absent\.wav'.*sample_rate_hz, num_samples"),
        ({"extra": {}}, "1 utterances have no usable 'fold', such as 'r0' with ''.*letters and digits"),
        ({"extra": {"fold": "../x"}}, "no usable 'fold', such as 'r0' with '../x'"),
    ],
)
def test_emobox_refuses_what_its_lists_cannot_say(change, message, recorded, tmp_path):
    changed = [Utterance(**{**vars(recorded[0]), **change}), *recorded[1:]]
    with pytest.raises(ManifestError, match=message):
        write_emobox(Manifest(changed, recorded.folder), tmp_path / "own.jsonl")
    assert not (tmp_path / "own.jsonl").exists()


def test_emobox_refuses_a_single_fold_and_a_split_that_it_does_not_know(recorded, tmp_path):
    with pytest.raises(ManifestError, match="nothing would be left to train on"):
        write_emobox(recorded.select(["r0", "r2"]), tmp_path / "own.jsonl")
    odd = [Utterance(item.id, item.audio, label=item.label, extra={"split": "dev"}) for item in recorded]
    with pytest.raises(ManifestError, match="no usable 'split'.*'dev'.*train, validation, test"):
        write_emobox(Manifest(odd, recorded.folder), tmp_path / "own.jsonl")


def test_emobox_refuses_a_recording_that_is_none(recorded, tmp_path):
    (tmp_path / "audio" / "r0.wav").write_text("not audio")
    with pytest.raises(AudioError, match=r"r0\.wav' cannot be decoded"):
        write_emobox(recorded, tmp_path / "own.jsonl")


@pytest.mark.parametrize("dataset", ["iemocap", "emodb", "ravdess"])
def test_the_real_emobox_lists_come_back_row_by_row(dataset, shared_data, tmp_path):
    source = shared_data / "emobox" / dataset
    write_emobox(EmoBox().manifest(source), tmp_path / f"{dataset}.jsonl")
    lists = [
        path.relative_to(source)
        for path in source.rglob("*.jsonl")
        if not path.stem.endswith(("fold1", "fold2", "fold3", "fold4", "fold5"))
    ]
    assert len(lists) in (11, 13)
    for path in lists:
        original = {row["key"]: {**row, "num_frame": round(row["num_frame"])} for row in _rows(source / path)}
        written = {row["key"]: {key: row[key] for key in original[row["key"]]} for row in _rows(tmp_path / path)}
        for row in written.values():
            row["wav"] = str(Path(row["wav"]).relative_to(source.resolve()))
            row["length"] = pytest.approx(row["length"], rel=1e-6)
        assert written == original


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]

"""Tables: any column names, CSV, TSV and JSON Lines, and faults named with their line."""

import json

import pytest
import trees

from featcache.corpora.table import Table
from featcache.errors import ConfigError, CorpusError
from featcache.settings import build


def test_columns_are_found_by_their_names_and_others_are_kept(tmp_path):
    first, second = Table().manifest(trees.table(tmp_path))
    assert (first.id, first.audio, first.text, first.label) == ("u1", "clips/a.wav", "=SUM(1, 2) “yes”", "angry")
    assert (first.speaker, first.session, first.start_s, first.end_s) == ("s1", "day 1", 0.01, 0.05)
    assert first.extra == {"mood": "calm"}
    assert (second.text, second.session, second.start_s, second.extra) == ("two\r\nlines", None, None, {})


def test_options_name_the_columns_and_a_column_in_the_way_is_kept_under_another_name(tmp_path):
    path = trees.table(tmp_path)
    trees.replace_in(path, "id,audio,text,label,speaker,", "name,file,words,label,actor,")
    options = {"id": "name", "audio": "file", "text": "words", "label": "mood", "speaker": "actor"}
    item = build(Table, options, "corpus table").manifest(path)[0]
    assert (item.id, item.label, item.speaker, item.extra) == ("u1", "calm", "s1", {"table_label": "angry"})


def test_without_ids_the_names_of_the_recordings_are_the_ids(tmp_path):
    path = trees.table(tmp_path)
    trees.replace_in(path, "id,audio,", "number,audio,")
    manifest = Table().manifest(path)
    assert manifest.ids == ["a", "b"]
    assert manifest[0].extra["number"] == "u1"


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("t.tsv", "id\taudio\ttext\nu1\tclips/a.wav\tone, two\n", {}),
        ("t.csv", "id;audio;text\r\nu1;clips/a.wav;one, two\r\n", {"delimiter": ";"}),
        ("t.dat", "id\taudio\ttext\n\nu1\tclips/a.wav\tone, two\n", {"delimiter": "tab"}),
        ("t.csv", '\ufeffid,audio,text\nu1,clips/a.wav,"one, two"\n', {}),
        ("t.jsonl", '{"id": "u1", "audio": "clips/a.wav", "text": "one, two"}\n\n', {}),
    ],
)
def test_the_same_table_is_read_from_every_form(name, content, options, tmp_path):
    trees.table(tmp_path)
    (tmp_path / name).write_bytes(content.encode())
    (item,) = build(Table, options, "corpus table").manifest(tmp_path / name)
    assert (item.id, item.audio, item.text) == ("u1", "clips/a.wav", "one, two")


def test_json_lines_keep_types_and_whole_numbers_become_names(tmp_path):
    rows = [
        {
            "id": 7,
            "label": 3,
            "speaker": 12,
            "votes": {"angry": 2},
            "start_s": 0,
            "end_s": 1.5,
            "text": "a\u2028b",
            "x": None,
        },
        {"id": 8, "label": 0, "flag": True},
    ]
    (tmp_path / "t.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    first, second = Table().manifest(tmp_path / "t.jsonl")
    assert (first.id, first.label, first.speaker, first.text) == ("7", "3", "12", "a\u2028b")
    assert (first.start_s, first.end_s, first.extra) == (0.0, 1.5, {"votes": {"angry": 2}})
    assert (second.label, second.extra) == ("0", {"flag": True})


def test_another_encoding_is_read_and_the_wrong_one_is_named(tmp_path):
    (tmp_path / "t.csv").write_bytes("id,text\nu1,Caf\u00e9\n".encode("cp1252"))
    assert Table(encoding="cp1252").manifest(tmp_path / "t.csv")[0].text == "Caf\u00e9"
    with pytest.raises(CorpusError, match=r"not in the encoding utf-8-sig.*encoding=cp1252"):
        Table().manifest(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("old", "new", "options", "message"),
    [
        (
            "mood",
            "mood",
            {"label": "emotion"},
            r"no column 'emotion', which the option 'label' names\. It has: id, audio",
        ),
        ("id,audio,", "a,b,", {}, r"needs a column of ids or of audio paths\. It has: a, b, text"),
        (",", ";", {"delimiter": "|"}, r"needs a column of ids or of audio paths\. It has: id;audio,text"),
        ("speaker", "text", {}, r"two columns of one name"),
        ("u1,", "u1,x,", {}, r"own\.csv', line 2: 10 cells where the header has 9"),
        ("u2,", "u1,", {}, r"own\.csv', line 4: the id 'u1' is that of .*line 2 already"),
        ("u2,", ",", {}, r"own\.csv', line 4: an utterance needs a non-empty text 'id'"),
        ("0.01", "early", {}, r"own\.csv', line 2: .*'early'"),
        ("0.05", "0.005", {}, r"own\.csv', line 2: .*ends at 0.005 s"),
        ("clips/b.wav", "clips/c.wav", {}, r"own\.csv', line 4: there is no recording .*c\.wav.*check_audio=false"),
        (",calm", ',"calm', {}, r"own\.csv', line \d: .*expected after"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_its_place(old, new, options, message, tmp_path):
    path = trees.table(tmp_path)
    trees.replace_in(path, old, new)
    with pytest.raises(CorpusError, match=message):
        build(Table, options, "corpus table").manifest(path)


def test_recordings_need_not_be_there_when_so_asked(tmp_path):
    path = trees.table(tmp_path)
    trees.replace_in(path, "clips/b.wav", "clips/c.wav")
    assert build(Table, {"check_audio": "false"}, "corpus table").manifest(path)[1].audio == "clips/c.wav"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"id": "u1"}\n["u2"]\n', r"line 2: expected a JSON object, got list"),
        ("t.jsonl", '{"id": "u1"}\n{"id": u2}\n', r"line 2 is not JSON"),
        ("t.jsonl", '{"id": "u1", "text": ["a"]}\n', r"line 1: 'u1': column 'text' must be text"),
        ("t.xlsx", "id\nu1\n", r"ending does not say what it is.*\.csv"),
        ("t.csv", "", r"needs a column of ids.*It has: none"),
        ("t.csv", "id,audio\n", r"(?s)holds no utterance.*header row"),
    ],
)
def test_a_file_that_is_no_table_is_refused(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(CorpusError, match=message):
        Table().manifest(tmp_path / name)


def test_a_folder_is_no_table(tmp_path):
    with pytest.raises(CorpusError, match="is no file"):
        Table().manifest(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"), [({"delimiter": "::"}, "not one character"), ({"encoding": "utf-9"}, "no encoding 'utf-9'")]
)
def test_an_option_that_cannot_work_is_refused_at_once(options, message):
    with pytest.raises(ConfigError, match=message):
        build(Table, options, "corpus table")

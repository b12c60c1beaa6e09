"""Whatever a file holds, its reader gives a result that can be written and read again, or a sentence that names it."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trees
import yaml
from fuzzing import Subject, check_sentence, law, quick, replaced, spoilt, thorough
from hypothesis import given
from hypothesis import strategies as st
from test_aligners_imported import CONTENT, ENDINGS, read, textgrid
from test_textgrids import PHONES, WORDS, text_of

from featcache import Manifest
from featcache.aligners.textgrid import ANALYSIS, Textgrid
from featcache.alignment import Alignment, to_arrays
from featcache.checkpoints import Checkpoint, resolve
from featcache.corpora.crema_d import CremaD
from featcache.corpora.emobox import EmoBox
from featcache.corpora.iemocap import Iemocap
from featcache.corpora.meld import Meld
from featcache.corpora.table import Table
from featcache.corpus import Corpus
from featcache.errors import ConfigError, CorpusError, FeatcacheError, ProtocolError, StreamError
from featcache.textgrids import TextGrid, read_textgrid
from heads.fold_files import read_folds, save_folds
from heads.protocol import Fold
from heads.runs import Run, read_run, write_run
from heads.scores import Scores

ROWS = [
    {
        "id": "u1",
        "audio": "a/u1.wav",
        "text": "one",
        "label": "sad",
        "speaker": "s1",
        "session": "1",
        "start_s": 0.5,
        "end_s": 1.5,
        "fold": 1,
        "votes": {"sad": 2, "happy": [1, None]},
    },
    {"id": "ü 2", "audio": "/x/u2.wav", "text": "two\nlines", "label": "happy", "speaker": "s2"},
]
FOLDS = {
    "folds": {
        "1": {"train": ["a", "b"], "validation": ["c"], "test": ["d"]},
        "2": {"train": ["d"], "dev": [], "test": ["a"]},
    }
}
CONFIG = {
    "head": "svm",
    "fit": {"steps": 20, "rate": 1e-3},
    "problems": ["a: b", "c"],
    "chosen": {"1": {"layer": 1}},
    "when": None,
}
SCORES = b'id,fold,label,p_a,p_b\r\nu1,1,a,0.25,0.75\r\n"u,2",1,b,1.0,0.0\r\nu1,2,a,5e-1,.5\r\n'
TABLE = b'''id,audio,text,label,speaker,start_s,end_s,mood
u1,a.wav,"one, two",sad,s1,0.5,1.5,calm
u2,b.wav,"a ""b""",x,s2,,,
'''
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "architectures": ["BertModel"],
    "layer_norm_eps": 1e-12,
}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def comes_back(manifest: Manifest, folder: Path) -> None:
    out = folder / "written" / "m.jsonl"
    manifest.write(out)
    again = Manifest.read(out)
    for one, other in zip(manifest, again, strict=True):
        ours, theirs = one.as_row(), other.as_row()
        if one.audio is not None:
            ours["audio"], theirs["audio"] = (
                os.path.abspath(where) for where in (manifest.audio_path(one), again.audio_path(other))
            )
        assert json.dumps(ours, sort_keys=True) == json.dumps(theirs, sort_keys=True)  # NaN is not its own equal


def scores_come_back(scores: Scores, folder: Path) -> None:
    scores.write(folder / "again.csv")
    again = Scores.read(folder / "again.csv")
    assert (again.ids, again.folds, again.labels, again.classes) == (
        scores.ids,
        scores.folds,
        scores.labels,
        scores.classes,
    )
    np.testing.assert_array_equal(again.probabilities, scores.probabilities)


def folds_come_back(folds: list[Fold], folder: Path) -> None:
    save_folds(folds, folder / "again.json")
    assert read_folds(folder / "again.json") == folds


def run_comes_back(run: Run, folder: Path) -> None:
    again = write_run(folder / "again", run.scores, None, run.config)
    written = read_run(folder / "again")
    assert yaml.safe_dump(written.config) == yaml.safe_dump(again.config)


def read_config(path: Path) -> Run:
    (path.parent / "scores.csv").write_bytes(SCORES)
    return read_run(path.parent)


def is_identified(checkpoint: Checkpoint, folder: Path) -> None:
    assert all(len(checkpoint.identity()[name]) == 64 for name in ("weights_sha256", "config_sha256"))


def read_checkpoint(path: Path) -> Checkpoint:
    (path.parent / "model.safetensors").write_bytes(b"")
    return resolve(str(path.parent))


def read_index(path: Path) -> Checkpoint:
    (path.parent / "config.json").write_text(json.dumps(BERT))
    (path.parent / "one.safetensors").write_bytes(b"")
    return resolve(str(path.parent))


def fits_in_time(grid: TextGrid, folder: Path) -> None:
    assert math.isfinite(grid.max_time_s)
    for start_s, end_s, label in grid.words + grid.phones:
        assert math.isfinite(start_s + end_s)
        assert isinstance(label, str)
        assert label == label.strip() != ""


def read_analysis(path: Path) -> Textgrid:
    (path.parent / "u1.TextGrid").write_bytes(textgrid())
    one = Manifest([Manifest.read(_put(path.parent / "m.jsonl", b'{"id": "u1", "audio": "u1.wav"}'))[0]])
    return Textgrid(folder=str(path.parent)).bind(one)


def names_arrays(aligner: Textgrid, folder: Path) -> None:
    assert all(name.isidentifier() and name.isascii() for name in aligner.quality_names)


def read_tree(corpus: Corpus, root: Path) -> Manifest:
    return corpus.manifest(root)


def _put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.fixture(autouse=True, scope="module")
def _fast_disk() -> Iterator[None]:
    """Thousands of small files are written here, none of which has to survive a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


JSON_LINES = {
    "manifest": Subject(lines(*ROWS), Manifest.read, comes_back, "m.jsonl"),
    "table.jsonl": Subject(lines(*ROWS), lambda path: Table(check_audio=False).manifest(path), comes_back, "t.jsonl"),
}
PLAIN = {
    **JSON_LINES,
    "table.csv": Subject(TABLE, lambda path: Table(check_audio=False).manifest(path), comes_back, "t.csv"),
    "scores.csv": Subject(SCORES, Scores.read, scores_come_back, "scores.csv"),
    "folds.json": Subject(json.dumps(FOLDS).encode(), read_folds, folds_come_back, "folds.json"),
    "config.yaml": Subject(yaml.safe_dump(CONFIG).encode(), read_config, run_comes_back, "config.yaml"),
    "config.json": Subject(json.dumps(BERT).encode(), read_checkpoint, is_identified, "config.json", "bert/"),
    "index.json": Subject(
        b'{"weight_map": {"a": "one.safetensors"}}',
        read_index,
        is_identified,
        "bert/model.safetensors.index.json",
        "bert",
    ),
    "long.TextGrid": Subject(
        text_of({"words": WORDS, "phones": PHONES}).encode(), read_textgrid, fits_in_time, "x.TextGrid"
    ),
    "short.TextGrid": Subject(
        text_of({"words": WORDS, "phones": PHONES}, True).encode(), read_textgrid, fits_in_time, "x.TextGrid"
    ),
    "analysis.csv": Subject(
        b"file,begin,end,speaker,snr,overall_log_likelihood\nu1,0,1,s1,12.5,-50.1\nu2,0,1,s1,,\n",
        read_analysis,
        names_arrays,
        ANALYSIS,
    ),
}
PLAIN["config.json"] = Subject(json.dumps(BERT).encode(), read_checkpoint, is_identified, "bert/config.json", "bert")


@pytest.mark.parametrize("name", PLAIN)
def test_the_files_that_are_spoilt_here_are_good(tmp_path: Path, name: str) -> None:
    assert law(PLAIN[name], tmp_path, PLAIN[name].valid)


def spoil_plain(folder: Path, name: str, data: st.DataObject) -> None:
    law(PLAIN[name], folder, data.draw(spoilt(PLAIN[name].valid)))


@pytest.mark.parametrize("name", PLAIN)
@quick()
@given(data=st.data())
def test_a_spoilt_file_is_read_or_named(tmp_path: Path, name: str, data: st.DataObject) -> None:
    spoil_plain(tmp_path, name, data)


@pytest.mark.heavy
@pytest.mark.parametrize("name", PLAIN)
@thorough()
@given(data=st.data())
def test_any_spoilt_file_is_read_or_named(tmp_path: Path, name: str, data: st.DataObject) -> None:
    spoil_plain(tmp_path, name, data)


INTERVALS = {"words": [[0.1, 0.4, "go"]], "phones": [[0.1, 0.2, "g"], [0.2, 0.4, "ow"]]}
DOCUMENTS: Mapping[str, Any] = {
    "manifest": ROWS[0],
    "table.jsonl": ROWS[0],
    "folds.json": FOLDS,
    "config.json": {**BERT, "attn_implementation": "eager", "encoder": {"num_layers": 3}},
    "index.json": {"metadata": {"total_size": 1}, "weight_map": {"a": "one.safetensors"}},
    "gentle": json.loads(CONTENT["gentle"]),
    "intervals": INTERVALS,
}


def replace_values(folder: Path, name: str, data: st.DataObject) -> None:
    content = data.draw(replaced(DOCUMENTS[name]))
    if name in PLAIN:
        law(PLAIN[name], folder, content)
    else:
        imported(folder, name, content)


@pytest.mark.parametrize("name", DOCUMENTS)
@quick(60)
@given(data=st.data())
def test_values_of_the_wrong_kind_are_read_or_named(tmp_path: Path, name: str, data: st.DataObject) -> None:
    replace_values(tmp_path, name, data)


@pytest.mark.heavy
@pytest.mark.parametrize("name", DOCUMENTS)
@thorough()
@given(data=st.data())
def test_any_values_of_the_wrong_kind_are_read_or_named(tmp_path: Path, name: str, data: st.DataObject) -> None:
    replace_values(tmp_path, name, data)


def imported(folder: Path, name: str, content: bytes) -> None:
    outcome = read(folder, name, content, text="Go [x] on")
    if isinstance(outcome, StreamError):
        assert f"u1{ENDINGS[name]}" in str(outcome)
        assert str(outcome).endswith((".", "?", "!")), str(outcome)[-200:]
        assert len(str(outcome)) < 2000
        str(outcome).encode()
        return
    assert isinstance(outcome, Alignment)
    try:
        times, arrays = to_arrays(outcome)
    except StreamError:  # a label that is too long for a cache
        return
    assert times.shape == (1, len(outcome.words) + len(outcome.phones), 2)
    assert len(arrays["label"]) == times.shape[1]


@pytest.mark.parametrize("name", CONTENT)
@quick(60)
@given(data=st.data())
def test_a_spoilt_alignment_is_imported_or_named(tmp_path: Path, name: str, data: st.DataObject) -> None:
    imported(tmp_path, name, data.draw(spoilt(CONTENT[name])))


@pytest.mark.heavy
@pytest.mark.parametrize("name", CONTENT)
@thorough()
@given(data=st.data())
def test_any_spoilt_alignment_is_imported_or_named(tmp_path: Path, name: str, data: st.DataObject) -> None:
    imported(tmp_path, name, data.draw(spoilt(CONTENT[name])))


TREES: Mapping[str, tuple[Corpus, tuple[str, ...]]] = {
    "crema_d": (CremaD(), ("VideoDemographics.csv",)),
    "emobox": (EmoBox(), ("emodb.jsonl", "label_map.json", "fold_2/emodb_train_fold_2.jsonl")),
    "iemocap": (
        Iemocap(classes="all"),
        (
            "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt",
            "Session1/dialog/transcriptions/Ses01F_impro01.txt",
        ),
    ),
    "meld": (Meld(), ("train_sent_emo.csv",)),
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: trees.BUILDERS[name](tmp_path_factory.mktemp(name)) for name in TREES}


def spoil_tree(root: Path, name: str, file: str, data: st.DataObject) -> None:
    corpus, _ = TREES[name]
    valid = (root / file).read_bytes()
    # A wrong line may only show where another file does not agree: the message then names that one.
    subject = Subject(valid, lambda _: read_tree(corpus, root), lambda _, __: None, file, str(root))
    if file == "VideoDemographics.csv":
        subject = Subject(valid, subject.read, subject.check, file, "VideoDemographics.csv")
    try:
        law(subject, root, data.draw(spoilt(valid)))
    finally:
        (root / file).write_bytes(valid)


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, (_, files) in TREES.items() for file in files])
@quick(25)
@given(data=st.data())
def test_a_spoilt_file_of_a_release_is_read_or_named(
    corpora: dict[str, Path], name: str, file: str, data: st.DataObject
) -> None:
    spoil_tree(corpora[name], name, file, data)


@pytest.mark.heavy
@pytest.mark.parametrize(("name", "file"), [(name, file) for name, (_, files) in TREES.items() for file in files])
@thorough(300)
@given(data=st.data())
def test_any_spoilt_file_of_a_release_is_read_or_named(
    corpora: dict[str, Path], name: str, file: str, data: st.DataObject
) -> None:
    spoil_tree(corpora[name], name, file, data)


@pytest.mark.parametrize("part", ["train", "test"])
@quick(60)
@given(data=st.data())
def test_spoilt_fold_lists_of_emobox_are_read_or_named(tmp_path: Path, part: str, data: st.DataObject) -> None:
    names = {"train": b'{"key": "x-a"}\n{"key": "x-b", "dataset": "x"}\n', "test": b'{"key": "x-c"}\n'}
    (tmp_path / "fold_1").mkdir(exist_ok=True)
    for other, content in names.items():
        (tmp_path / "fold_1" / f"x_{other}_fold_1.jsonl").write_bytes(content)
    subject = Subject(
        names[part],
        lambda _: read_folds(tmp_path, {"a", "c"}),
        folds_come_back,
        f"fold_1/x_{part}_fold_1.jsonl",
        "fold",
    )
    law(subject, tmp_path, data.draw(spoilt(names[part])))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_end_in_any_way(tmp_path: Path, end: str) -> None:
    (tmp_path / "m.jsonl").write_bytes(lines(*ROWS).replace(b"\n", end.encode()))
    assert Manifest.read(tmp_path / "m.jsonl").ids == ["u1", "ü 2"]
    (tmp_path / "fold_1").mkdir()
    for part in ("train", "test"):
        content = lines({"key": f"{part}1"}, {"key": f"{part}2"}).replace(b"\n", end.encode())
        (tmp_path / "fold_1" / f"x_{part}_fold_1.jsonl").write_bytes(content)
    assert read_folds(tmp_path)[0].test == ("test1", "test2")


def plain_faults(folder: Path) -> dict[str, tuple[bytes, Callable[[Path], Any], str]]:
    """Return what was once an error of another kind: content, reader, and what is said now."""
    fold = {"train": ["a"], "test": ["b"]}
    deep, half, number = b"[" * 100_000, b'"\\ud800"', b"1" + b"0" * 400
    return {
        "a table nested deeply": (
            deep,
            lambda path: Table().manifest(path.rename(folder / "t.jsonl")),
            "nested too deeply",
        ),
        "a table of large numbers": (
            b'{"id": "a", "start_s": ' + number + b"}",
            lambda path: Table().manifest(path.rename(folder / "t.jsonl")),
            "must be seconds",
        ),
        "a table of long paths": (
            json.dumps({"id": "a", "audio": "x" * 5000}).encode(),
            lambda path: Table().manifest(path.rename(folder / "t.jsonl")),
            "no recording",
        ),
        "scores beyond floats": (b"id,fold,label,p_a,p_b\nu,1,a,1e308,1e308\n", Scores.read, "not probabilities"),
        "scores of an open quotation": (
            b'id,fold,label,p_a,p_b\n"u',
            Scores.read,
            "cannot be read: unexpected end of data.",
        ),
        "folds nested deeply": (deep, read_folds, "nested too deeply"),
        "folds of half a character": (
            b'{"folds": {"1": {"train": [' + half + b'], "test": []}}}',
            read_folds,
            r"is not valid text",
        ),
        "a fold of thousands of digits": (json.dumps({"folds": {"1" * 5000: fold}}).encode(), read_folds, ""),
    }


@pytest.mark.parametrize("name", list(plain_faults(Path())))
def test_what_was_once_another_error_is_a_sentence(tmp_path: Path, name: str) -> None:
    content, reader, message = plain_faults(tmp_path)[name]
    (tmp_path / "x").write_bytes(content)
    if not message:
        assert reader(tmp_path / "x")
        return
    with pytest.raises(FeatcacheError, match=message) as caught:
        reader(tmp_path / "x")
    check_sentence(caught.value, str(tmp_path))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b'{"key": 5}', b"[1]"])
def test_a_bad_list_of_emobox_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "fold_1").mkdir()
    (tmp_path / "fold_1" / "x_train_fold_1.jsonl").write_bytes(content)
    with pytest.raises(ProtocolError) as caught:
        read_folds(tmp_path)
    check_sentence(caught.value, "x_train_fold_1.jsonl")


@pytest.mark.parametrize("delimiter", ['"', "\n", "\r", ""])
def test_a_delimiter_that_delimits_nothing_is_refused(delimiter: str) -> None:
    with pytest.raises(ConfigError, match="is not one character"):
        Table(delimiter=delimiter)


@pytest.mark.parametrize("frames", ["1e999", "-1e999", "NaN", "null", '"x"', "[]"])
def test_a_number_of_frames_that_is_none_is_an_error_of_its_line(tmp_path: Path, frames: str) -> None:
    root = trees.emobox(tmp_path)
    trees.replace_in(root / "emodb.jsonl", "32705.999999999996", frames)
    with pytest.raises(CorpusError, match=r"emodb\.jsonl', line 1: ") as caught:
        EmoBox().manifest(root)
    check_sentence(caught.value)


def test_a_broken_link_or_a_pipe_among_recordings_does_not_stop_a_corpus(tmp_path: Path) -> None:
    root = trees.crema_d(tmp_path)
    (root / "AudioWAV" / "1001_TIE_ANG_XX.wav").symlink_to("nothing")
    os.mkfifo(root / "AudioWAV" / "1001_TSI_ANG_XX.wav")
    assert len(CremaD().manifest(root)) == 8

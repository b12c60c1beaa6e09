"""Ids, classes and speakers that look like paths, markup or nothing: refused at the manifest, or exact to the end."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import trees
from fuzzing import check_sentence
from makers import tone
from test_cli import call
from test_report import Page

import featcache
from featcache import Manifest, Utterance
from featcache.corpora.emobox import EmoBox
from featcache.corpora.table import Table
from featcache.errors import ManifestError
from featcache.exchange import write_emobox
from heads.fold_files import read_folds, save_folds
from heads.folds import natural_key
from heads.protocol import Fold
from heads.runs import read_run

IDS = [
    "../../escaped",
    "/srv/escaped",
    "a/b",
    "a\\b",
    "..",
    ".",
    "...",
    "~",
    "~root",
    "-rf",
    "--help",
    "two\nlines",
    "old\rmac",
    "tab\tid",
    " spaces ",
    "CON",
    "nul.txt",
    "a:b*?<>|",
    "\u202egpj.exe",
    "\u200f\u200e\u2066",
    "\ufeffbom",
    "e\u0301",
    "é",
    "💥👩‍👩‍👧",
    "x" * 10_000,
    "</script><script>alert(1)</script>",
    "{{ 7 * 7 }}",
    "$x_{1}^{2",
    "%s%n",
    "'; DROP",
    '"q",;',
    "=cmd|' /C calc'!A0",
    "\x1b[31m",
    "\x7f",
    "zarr.json",
    "frames",
    "__proto__",
    "null",
    "0",
    "1e5",
    "RAW",
    "#",
    "?a=b&c",
]
LABELS = ("<b>angry</b>/../x", "sad\u202e\n'\"")
SPEAKERS = ("../s", "<svg/onload=alert(1)>", "s\n1", "💥" * 300)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with a recording for each id, and a manifest; their labels and speakers are no better."""
    folder = tmp_path / "inside" / "corpus"
    folder.mkdir(parents=True)
    utterances = []
    for number, name in enumerate(IDS):
        soundfile.write(folder / f"{number}.wav", tone(0.2, seed=number) * (1 + number % 2), 16000, subtype="FLOAT")
        utterances.append(
            Utterance(
                name,
                f"{number}.wav",
                f"text of {name}",
                LABELS[number % 2],
                SPEAKERS[number // 2 % 4],
                extra={"fold": str(number // 2 % 2)},
            )
        )
    Manifest(utterances, folder).write(folder / "m.jsonl")
    return folder


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_hostile_ids_work_exactly_from_manifest_to_report(
    corpus: Path, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "inside"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(inside)
    before = listing(tmp_path)
    manifest, cache, out = corpus / "m.jsonl", inside / "cache", inside / "runs" / "one"
    assert Manifest.read(manifest).ids == IDS
    assert "No problems." in call("check", manifest)
    call("extract", manifest, "--cache", cache, "--stream", "log_mel", "--backend", backend)
    call("verify", cache)
    call("coverage", cache, manifest)
    call("info", cache)
    stream = featcache.open(cache)["log_mel"]
    assert sorted(stream.ids) == sorted(IDS)
    mean, _ = stream.stats(IDS)
    for number, name in enumerate(IDS):
        frames = np.asarray(stream[name], np.float32)
        np.testing.assert_allclose(frames.mean(axis=1), mean[number], atol=1e-3)
    call(
        "train-heads",
        manifest,
        "--cache",
        cache,
        "--head",
        "linear_probe",
        "--stream",
        "log_mel",
        "--folds",
        "speaker",
        "--out",
        out,
        "--set",
        "fit.steps=5",
    )
    run = read_run(out)
    assert sorted(set(run.scores.ids)) == sorted(IDS)
    assert set(run.scores.classes) == set(LABELS)
    assert {fold.name for fold in read_folds(out / "folds.json")} == set(SPEAKERS)
    call("report", out, "--out", inside / "report.html")
    page = Page(inside / "report.html")
    assert len(page.tags("script")) == 1
    assert not [name for _, values in page.elements for name in values if name.startswith("on")]
    call("export", manifest, "--out", inside / "m.csv")
    assert _rows(Table().manifest(inside / "m.csv")) == _rows(Manifest.read(manifest))
    assert {path.split("/")[0] for path in listing(tmp_path) - before} == {"inside"}
    assert listing(tmp_path / "elsewhere") == set()
    assert not Path("/srv/escaped").exists()


def _rows(manifest: Manifest) -> list[dict[str, object]]:
    return [{**item.as_row(), "audio": str(manifest.audio_path(item).resolve())} for item in manifest]


def test_pictures_of_hostile_ids_stay_in_their_folder(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "inside" / "pictures"
    inside.mkdir()
    monkeypatch.chdir(inside)
    before = listing(tmp_path)
    plain = [name for name in IDS if not name.startswith("-")]
    shown = [*plain[::4], "../../escaped", "x" * 10_000, "..", "\u202egpj.exe"]
    for name in shown:
        call("show", "--manifest", corpus / "m.jsonl", "--", name)
    new = listing(tmp_path) - before
    assert len(new) == len(set(shown))
    assert all(path.startswith("inside/pictures/") and path.endswith(".png") for path in new)


def test_emobox_keeps_hostile_ids_and_stays_in_its_folder(corpus: Path, tmp_path: Path) -> None:
    plain = [
        Utterance(**{**vars(item), "label": ("angry", "sad")[number % 2]})
        for number, item in enumerate(Manifest.read(corpus / "m.jsonl"))
    ]
    before = listing(tmp_path)
    Manifest(plain, corpus).write(corpus / "plain.jsonl")
    call("export", corpus / "plain.jsonl", "--form", "emobox", "--out", tmp_path / "inside" / "own")
    back = EmoBox().manifest(tmp_path / "inside" / "own")
    assert back.ids == IDS
    assert [(item.label, item.speaker, item.text, item.extra["fold"]) for item in back] == [
        (item.label, item.speaker, item.text, item.extra["fold"]) for item in plain
    ]
    new = listing(tmp_path) - before
    assert all(path.startswith(("inside/own", "inside/corpus/plain.jsonl")) for path in new)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (("Joy", "sad"), "'u0': 'Joy' would be read as 'happy'"),
        (("A", "a"), "would be read as"),
        (("unknown", "sad"), "'u0': 'unknown' would be read as None"),
        ((" sad", "happy"), "'u0': ' sad' would be read as 'sad'"),
    ],
)
def test_labels_that_emobox_would_change_are_refused(corpus: Path, labels: tuple[str, str], told: str) -> None:
    rows = [Utterance(f"u{number}", f"{number}.wav", label=label) for number, label in enumerate(labels)]
    with pytest.raises(ManifestError, match=told) as caught:
        write_emobox(Manifest(rows, corpus), corpus / "own.jsonl")
    check_sentence(caught.value)
    assert not (corpus / "own.jsonl").exists()


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"fold": "1" * 300}, "letters and digits, 60 at most"),
        ({"fold": "1", "validation_folds": 5}, "'validation_folds' must be a list of folds, got 5"),
        ({"fold": "1", "validation_folds": "12"}, "must be a list of folds, got '12'"),
    ],
)
def test_folds_that_emobox_has_no_place_for_are_refused(corpus: Path, extra: dict[str, object], told: str) -> None:
    rows = [
        Utterance("u0", "0.wav", label="sad", extra=extra),
        Utterance("u1", "1.wav", label="sad", extra={"fold": "2"}),
    ]
    with pytest.raises(ManifestError, match=told):
        write_emobox(Manifest(rows, corpus), corpus / "own.jsonl")


@pytest.mark.parametrize("column", ["sample_rate_hz", "num_samples", "num_channels"])
@pytest.mark.parametrize("value", [10**400, -5, "16000", None, 1.5])
def test_measures_that_are_none_are_refused_where_there_is_no_recording(
    tmp_path: Path, column: str, value: object
) -> None:
    extra = {"sample_rate_hz": 16000, "num_samples": 5, "num_channels": 1, column: value}
    with pytest.raises(ManifestError, match="must say what it is like"):
        write_emobox(Manifest([Utterance("u0", "0.wav", label="sad", extra=extra)], tmp_path), tmp_path / "own.jsonl")


def test_an_absolute_path_of_a_list_is_looked_for_below_the_audio_root(tmp_path: Path) -> None:
    root = trees.emobox(tmp_path / "emodb")
    trees.write_wav(tmp_path / "outside" / "03a01Wa.wav")
    text = (root / "emodb.jsonl").read_text().replace("downloads/emodb/wav", str(tmp_path / "outside"))
    (root / "emodb.jsonl").write_text(text)
    (tmp_path / "audio").mkdir()
    with pytest.raises(featcache.FeatcacheError, match="6 of the 6 recordings .* are not below"):
        EmoBox(audio_root=tmp_path / "audio").manifest(root)


BAD_ROWS = {
    "a NUL": ('{"id": "a\\u0000b"}', r"the id 'a\\x00b' holds a NUL character"),
    "half a character": ('{"id": "\\ud800"}', r"the id '\\ud800' is not valid text"),
    "only spaces": ('{"id": " \\u2003 "}', "needs a non-empty text 'id'"),
    "empty": ('{"id": ""}', "needs a non-empty text 'id'"),
    "half a text": ('{"id": "a", "text": "\\udfff"}', "column 'text' holds what is not valid text"),
    "half a label": ('{"id": "a", "label": "\\ud800"}', "column 'label' holds what is not valid text"),
    "half a name": ('{"id": "a", "\\ud800": 1}', r"column '\\ud800' has a name that is not valid text"),
    "half of something inside": ('{"id": "a", "x": [{"y": ["\\ud800"]}]}', "column 'x' holds what is not valid text"),
    "a number beyond floats": (
        '{"id": "a", "start_s": 1' + "0" * 400 + "}",
        "column 'start_s' must be seconds, 0 or more",
    ),
    "a number of 5000 digits": ('{"id": "a", "start_s": ' + "1" * 5000 + "}", "Exceeds the limit"),
    "infinity": ('{"id": "a", "end_s": 1e999}', "column 'end_s' must be seconds, 0 or more, got inf"),
    "ages": ('{"id": "a", "end_s": 1e300}', r"column 'end_s' must be seconds, 0 or more, got 1e\+300"),
    "depth": ('{"id": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "it is nested too deeply"),
    "some depth": ('{"id": "a", "x": ' + "[" * 33 + "]" * 33 + "}", "column 'x' is nested deeper than 32 lists"),
    "much text": (json.dumps({"id": "x" * 10**6, "text": 5}), "column 'text' must be text, got 5"),
}


@pytest.mark.parametrize(("line", "message"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_what_no_cache_could_hold_is_refused_at_the_manifest(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": "fine"}\n' + line + "\n")
    with pytest.raises(ManifestError) as caught:
        Manifest.read(tmp_path / "m.jsonl")
    assert "line 2: " in str(caught.value)
    assert re.search(message, str(caught.value)), str(caught.value)[:500]
    check_sentence(caught.value, str(tmp_path / "m.jsonl"))


def test_an_empty_audio_path_is_none(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": "a", "audio": ""}\n')
    assert Manifest.read(tmp_path / "m.jsonl")[0].audio is None


def test_fold_names_of_thousands_of_digits_are_sorted_and_read(tmp_path: Path) -> None:
    names = ["1" * 5000, "2", "10", "1" * 4999, "a" + "9" * 5000, "007", "7"]
    save_folds([Fold(name, ("a",), (), ("b",)) for name in names], tmp_path / "folds.json")
    assert [fold.name for fold in read_folds(tmp_path / "folds.json")] == [
        "2",
        "007",
        "7",
        "10",
        "1" * 4999,
        "1" * 5000,
        "a" + "9" * 5000,
    ]
    assert sorted(["s10", "s9", "s09", "s"], key=natural_key) == ["s", "s09", "s9", "s10"]

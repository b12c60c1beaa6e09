"""Manifests are read back as written, and bad rows are named."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache import Manifest, Utterance
from featcache.errors import ManifestError, UnknownNameError
from featcache.manifest import utterance_from_row

_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(lambda text: text.strip())
_rows = st.lists(
    st.builds(
        Utterance,
        id=_text.filter(lambda text: "\0" not in text),
        text=st.none() | st.text(st.characters(exclude_categories=["Cs"])),
        label=st.none() | _text,
        start_s=st.none() | st.floats(0, 10),
        extra=st.dictionaries(st.sampled_from(["a", "b c", "ü"]), st.integers() | st.lists(st.booleans())),
    ),
    min_size=1, max_size=5, unique_by=lambda utterance: utterance.id,
)  # fmt: skip


@given(_rows)
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[Utterance]) -> None:
    path = tmp_path_factory.mktemp("manifest") / "m.jsonl"
    Manifest(rows).write(path)
    assert list(Manifest.read(path)) == rows


def test_audio_stays_valid_when_the_manifest_is_written_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.wav").touch()
    manifest = Manifest([Utterance("a", "a.wav")], tmp_path / "corpus")
    manifest.write(tmp_path / "corpus" / "m.jsonl")
    assert json.loads((tmp_path / "corpus" / "m.jsonl").read_text())["audio"] == "a.wav"
    manifest.write(tmp_path / "elsewhere" / "m.jsonl")
    again = Manifest.read(tmp_path / "elsewhere" / "m.jsonl")
    assert again.audio_path(again[0]) == tmp_path / "corpus" / "a.wav"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"audio": "a.wav"}', "needs a non-empty text 'id', got None"),
        ('{"id": 3}', "needs a non-empty text 'id', got 3"),
        ('{"id": " "}', "needs a non-empty text 'id'"),
        ('{"id": "a", "text": 5}', "'a': column 'text' must be text, got 5"),
        ('{"id": "a", "start_s": "0"}', "column 'start_s' must be seconds"),
        ('{"id": "a", "start_s": -1}', "column 'start_s' must be seconds, 0 or more"),
        ('{"id": "a", "end_s": NaN}', "column 'end_s' must be seconds"),
        ('{"id": "a", "start_s": 2, "end_s": 1}', "ends at 1.0 s, not after its start 2.0 s"),
        ("[1, 2]", "expected a JSON object, got list"),
        ('{"id": "a"', "line 2"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "m.jsonl").write_text('{"id": "fine"}\n' + line + "\n")
    with pytest.raises(ManifestError, match="line 2: ") as caught:
        Manifest.read(tmp_path / "m.jsonl")
    assert message in str(caught.value)


def test_all_bad_rows_are_counted_and_ten_shown(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("{}\n" * 25)
    with pytest.raises(ManifestError, match=r"has 25 bad rows(.|\n)*and 15 more"):
        Manifest.read(tmp_path / "m.jsonl")


def test_an_id_twice_is_refused() -> None:
    with pytest.raises(ManifestError, match="1 ids occur more than once, such as 'a'"):
        Manifest([Utterance("a"), Utterance("b"), Utterance("a")])


def test_missing_and_empty_manifests_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="There is no manifest .*featcache corpus"):
        Manifest.read(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ManifestError, match="lists no utterance"):
        Manifest.read(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes('{"id": "ü"}'.encode("latin-1"))
    with pytest.raises(ManifestError, match="cannot be read"):
        Manifest.read(tmp_path / "latin.jsonl")


@pytest.mark.parametrize("audio", ["../secret.wav", "a/../../secret.wav", "/etc/passwd"])
def test_paths_cannot_leave_the_root(tmp_path: Path, audio: str) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(ManifestError, match="leads outside the root"):
        Manifest([Utterance("a", audio)], tmp_path / "root", root=tmp_path / "root")


def test_a_link_cannot_leave_the_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.wav").touch()
    (tmp_path / "root" / "a.wav").symlink_to(tmp_path / "secret.wav")
    with pytest.raises(ManifestError, match="leads outside the root"):
        Manifest([Utterance("a", "a.wav")], tmp_path / "root", root=tmp_path / "root")


def test_columns_and_selection() -> None:
    manifest = Manifest([Utterance("a", label="x", extra={"fold": 3}), Utterance("b")])
    assert [manifest[0].column(name) for name in ("label", "fold", "none")] == ["x", 3, None]
    assert manifest.select(["b", "a"]).ids == ["b", "a"]
    assert "a" in manifest
    assert "c" not in manifest
    with pytest.raises(UnknownNameError, match="no utterance 'c'. Known: a, b"):
        manifest.select(["c"])
    with pytest.raises(ManifestError, match="'b' has no audio"):
        manifest.audio_path(manifest[1])


@pytest.mark.parametrize(("name", "message"), [("\ud800", "not valid text"), ("a\0b", "holds a NUL character")])
def test_ids_that_cannot_be_stored_are_refused(name: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        utterance_from_row({"id": name})

"""A run as one file: it comes back whole, is the same bytes again, and nothing strange is unpacked."""

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_cli import call
from test_predict import STEPS, Corpus, predicted, refused, tell

from featcache.errors import ScoresError
from heads.runs import read_run
from pipelines import pack as pipeline
from pipelines.pack import LIST, pack, unpack


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def probe(corpus: Corpus) -> Path:
    return corpus.run("probe", "linear_probe")


@pytest.fixture
def file(probe: Path, tmp_path: Path) -> Path:
    pack(probe, tmp_path / "run.zip")
    return tmp_path / "run.zip"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_comes_back_whole_but_for_paths_of_recordings(
    corpus: Corpus, probe: Path, file: Path, tmp_path: Path
) -> None:
    output, _ = tell("unpack", file, "--out", tmp_path / "a" / "back")
    assert output == f"Wrote: {tmp_path / 'a' / 'back'}\n"
    before, after = contents(probe), contents(tmp_path / "a" / "back")
    rows = [json.loads(line) for line in after.pop("manifest.jsonl").splitlines()]
    assert [row["id"] for row in rows] == corpus.manifest.ids
    assert all("audio" not in row and row["speaker"] for row in rows)
    assert b"audio" in before.pop("manifest.jsonl")
    assert after == before
    assert read_run(tmp_path / "a" / "back").metrics == read_run(probe).metrics
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["back"]


def test_the_same_run_gives_the_same_bytes(probe: Path, file: Path, tmp_path: Path) -> None:
    shutil.copytree(probe, tmp_path / "copy", copy_function=shutil.copy)  # with other times
    tell("pack", tmp_path / "copy", "--out", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == file.read_bytes()


def test_a_pack_predicts_as_the_run_does(corpus: Corpus, probe: Path, file: Path) -> None:
    for options in ([], ["--fold", "own"]):
        assert predicted(file, corpus.wav(3), *options) == predicted(probe, corpus.wav(3), *options)


def test_a_pack_without_utterances_names_none_of_them(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    tell("pack", probe, "--out", tmp_path / "bare.zip", "--without-utterances")
    unpack(tmp_path / "bare.zip", tmp_path / "bare")
    for name, content in contents(tmp_path / "bare").items():
        assert not any(one.encode() in content for one in corpus.manifest.ids), name
    assert predicted(tmp_path / "bare", corpus.wav(3)) == predicted(probe, corpus.wav(3))
    assert "came without its utterances" in str(refused("predict", tmp_path / "bare", corpus.wav(3), "--fold", "own"))
    assert "has no scores" in str(refused("pack", tmp_path / "bare", "--out", tmp_path / "x.zip"))


def test_a_fused_run_brings_its_runs_along(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    svm, fused = corpus.run("svm", "svm"), probe.parent / "fused"
    if not fused.exists():
        call("fuse", probe, svm, "--weights", "0.6,1.0", "--out", fused)
    pack(fused, tmp_path / "fused.zip")
    unpack(tmp_path / "fused.zip", tmp_path / "alone" / "back")
    assert predicted(tmp_path / "alone" / "back", corpus.wav(5)) == predicted(fused, corpus.wav(5))
    pack(tmp_path / "alone" / "back", tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "fused.zip").read_bytes()


def test_files_and_folders_are_called_like_the_run(
    probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert tell("pack", probe)[0].startswith("Wrote probe.zip (")
    assert tell("unpack", "probe.zip")[0] == "Wrote: probe\n"
    assert read_run("probe").metrics == read_run(probe).metrics


def test_nothing_is_replaced_unasked(probe: Path, file: Path, tmp_path: Path) -> None:
    assert "is there already" in str(refused("pack", probe, "--out", file))
    tell("pack", probe, "--out", file, "--overwrite")
    assert "is a folder" in str(refused("pack", probe, "--out", tmp_path, "--overwrite"))
    assert "is there already" in str(refused("unpack", file, "--out", probe))
    (tmp_path / "empty").mkdir()
    unpack(file, tmp_path / "empty")
    assert "is not a run" in str(refused("pack", tmp_path / "nothing", "--out", tmp_path / "x.zip"))
    assert not (tmp_path / "x.zip").exists()


def rewrite(file: Path, out: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """Write a pack again with other entries."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return out


def listing(entries: dict[str, bytes], name: str, content: bytes, length: int | None = None) -> None:
    """Add a file to a pack and to its list, as whoever made it would."""
    head = json.loads(entries[LIST])
    size = len(content) if length is None else length
    head["files"][name] = {"bytes": size, "sha256": hashlib.sha256(content).hexdigest()}
    entries[LIST] = json.dumps(head).encode()
    entries[name] = content


BAD_NAMES = ["../x", "/x", "..\\x", "fused/../scores.csv", "fused/0/../../scores.csv", "fused/a/scores.csv", "x.py",
             "tensorboard/x", ".unfinished/x", "fused/0/", "C:x", "scores.csv/x"]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_no_name_that_a_run_does_not_have_is_unpacked(file: Path, tmp_path: Path, name: str) -> None:
    bad = rewrite(file, tmp_path / "bad.zip", lambda entries: listing(entries, name, b"x"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ScoresError, match="which its list or a run does not have"):
        unpack(bad, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_damaged_is_not_unpacked(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()

    def told(change: Callable[[dict[str, bytes]], None]) -> str:
        with pytest.raises(ScoresError) as caught:
            unpack(rewrite(file, tmp_path / "bad.zip", change), tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(caught.value)

    def edit(**changes: object) -> Callable[[dict[str, bytes]], None]:
        return lambda entries: entries.update({LIST: json.dumps({**json.loads(entries[LIST]), **changes}).encode()})

    assert "is not what its list says" in told(lambda entries: entries.update({"scores.csv": b"other"}))
    assert "which its list or a run does not have" in told(lambda entries: entries.pop("scores.csv") and None)
    assert "it has no featcache-run.json" in told(lambda entries: entries.pop(LIST) and None)
    assert "this featcache reads up to 1" in told(edit(format=2))
    assert "cannot be read" in told(edit(files=3))
    assert "cannot be read" in told(lambda entries: entries.update({LIST: b"["}))
    assert "sizes" in told(lambda entries: listing(entries, "scores.csv", b"x", 2**40))
    assert "sizes" in told(lambda entries: listing(entries, "scores.csv", b"x", -1))
    assert "is not what its list says" in told(lambda entries: listing(entries, "scores.csv", bytes(10**7), 5))
    for content in (whole[: len(whole) // 2], b"", b"PK no zip"):
        file.write_bytes(content)
        with pytest.raises(ScoresError, match="is damaged, or no packed run"):
            unpack(file, tmp_path / "out")
    with pytest.raises(ScoresError, match="There is no file"):
        unpack(tmp_path / "none.zip", tmp_path / "out")


def test_a_flipped_byte_anywhere_is_noticed_or_harmless(file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    unpack(file, tmp_path / "good")
    good = contents(tmp_path / "good")
    generator = np.random.default_rng(0)
    noticed = 0
    for number, at in enumerate(generator.integers(0, len(whole), 60).tolist()):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            unpack(file, tmp_path / f"out{number}")
        except ScoresError:
            noticed += 1
        else:
            assert contents(tmp_path / f"out{number}") == good
    assert noticed > 40


def test_a_failure_in_the_middle_leaves_nothing(
    probe: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = file.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        pack(probe, file, overwrite=True)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run.zip"]


def test_a_run_that_is_not_finished_is_not_packed(probe: Path, tmp_path: Path) -> None:
    shutil.copytree(probe, tmp_path / "run")
    (tmp_path / "run" / "scores.csv").unlink()
    with pytest.raises(ScoresError, match="not finished"):
        pack(tmp_path / "run", tmp_path / "x.zip")


def test_two_trainings_of_the_same_pack_alike(corpus: Corpus, probe: Path, tmp_path: Path) -> None:
    """All but how long it took: a model card, and every list, is in an order of its own."""
    again = tmp_path / "again"
    call("train-heads", corpus.path, "--cache", corpus.cache, "--head", "linear_probe", "--stream", "log_mel",
         "--folds", "speaker", *STEPS, "--out", again)  # fmt: skip
    before, after = contents(probe), contents(again)
    for name in ("config.yaml", "log.txt", "manifest.jsonl"):  # seconds; where audio lies
        del before[name], after[name]
    assert before == after
    assert b"# linear" in before["README.md"]

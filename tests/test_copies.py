"""Augmented copies: they train where their originals train, and are never chosen on or scored."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from featcache import Manifest, Utterance
from featcache.commit import StreamWriter, store
from featcache.errors import CacheError, ProtocolError
from featcache.stream import Features, StreamSpec
from heads.fit_settings import FitSettings
from heads.fold_copies import completed, originals, with_their_copies
from heads.folds import Fold, make_folds, save_folds
from heads.protocol import check_folds
from pipelines.check import check_run
from pipelines.check import run as check
from pipelines.config import TrainConfig
from pipelines.prepare import learnable
from pipelines.train_heads import run


def corpus(copies: int = 2) -> list[Utterance]:
    """Three sessions of eight utterances of two classes, and copies of each that say no more than whose they are."""
    made = []
    for session in "ABC":
        for number in range(8):
            name = f"{session}{number}"
            made.append(
                Utterance(name, label="xy"[number % 2], speaker=f"s{session}", session=session, extra={"sex": "f"})
            )
            made += [Utterance(f"{name}~{copy}", extra={"version_of": name}) for copy in range(copies)]
    return made


ORIGINALS = [one for one in corpus() if "~" not in one.id]


def original_of(name: str) -> str:
    return name.partition("~")[0]


@pytest.mark.parametrize("kind", ["session", "speaker", "random:3", "stratified:60/20/20", "within:session"])
@pytest.mark.parametrize("validation_by", ["utterance", "speaker"])
def test_copies_join_training_alone_and_change_nothing_else(kind: str, validation_by: str) -> None:
    plain = make_folds(ORIGINALS, kind, validation_by=validation_by)  # type: ignore[arg-type]
    folds = make_folds(corpus(), kind, validation_by=validation_by)  # type: ignore[arg-type]
    for fold, bare in zip(folds, plain, strict=True):
        assert (fold.name, fold.validation, fold.test) == (bare.name, bare.validation, bare.test)
        assert tuple(name for name in fold.train if "~" not in name) == bare.train
        assert sorted(fold.train) == sorted(f"{name}{end}" for name in bare.train for end in ("", "~0", "~1"))
        assert list(fold.train) == sorted(fold.train)
    assert {problem.name for problem in folds.problems} == {problem.name for problem in plain.problems}


def test_a_copy_has_what_its_original_has() -> None:
    by_id = {one.id: one for one in completed(corpus())}
    copy = by_id["B3~1"]
    assert (copy.label, copy.speaker, copy.session) == ("y", "sB", "B")
    assert copy.extra == {"sex": "f", "version_of": "B3"}
    own = Utterance("n", label="x", extra={"version_of": "A0", "sex": "m", "noise": 3})
    found = {one.id: one for one in completed([*ORIGINALS, own])}["n"]
    assert found.extra == {"sex": "m", "version_of": "A0", "noise": 3}


@pytest.mark.parametrize("nothing", [None, "", float("nan")])
def test_what_a_copy_leaves_empty_is_its_originals(nothing: object) -> None:
    original = Utterance("o", label="x", text="Hello.", extra={"votes": {"x": 2, "y": 1}, "arousal": 3})
    copy = Utterance("c", text=None, extra={"version_of": "o", "votes": nothing, "arousal": nothing})
    [_, found] = completed([original, copy], ["votes", "arousal"])
    assert found == replace(original, id="c", extra={**original.extra, "version_of": "o"})


def test_a_copy_of_a_copy_is_of_the_first_original() -> None:
    chain = [*ORIGINALS, Utterance("c1", extra={"version_of": "A0"}), Utterance("c2", extra={"version_of": "c1"})]
    assert originals(chain) == {"c1": "A0", "c2": "A0"}
    for fold in make_folds(chain, "session"):
        inside = {name for name in fold.train if name in ("c1", "c2")}
        assert inside == ({"c1", "c2"} if "A0" in fold.train else set())


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (Utterance("n", extra={"version_of": "nobody"}), "'n', a version of 'nobody'"),
        (Utterance("n", extra={"version_of": "n"}), "version of itself"),
        (Utterance("n", extra={"version_of": 3}), "must be the id"),
        (Utterance("n", label="y", extra={"version_of": "A0"}), "'n' has the label 'y', and its original 'A0' has 'x'"),
        (Utterance("n", speaker="sB", extra={"version_of": "A0"}), "has the speaker 'sB'"),
        (
            Utterance("n", text="No.", extra={"version_of": "A0"}),
            "'n' has the text 'No.', and its original 'A0' has No",
        ),
    ],
)
def test_a_copy_that_fits_no_original_is_refused_by_name(row: Utterance, told: str) -> None:
    with pytest.raises(ProtocolError, match=told):
        make_folds([*ORIGINALS, row], "session")


def test_a_copy_has_its_originals_votes_and_whatever_else_is_learnt() -> None:
    original = Utterance("o", label="x", extra={"votes": {"x": 2, "y": 1}, "arousal": 3, "noise_db": 0})
    for name, other in {"votes": {"x": 3}, "arousal": 0}.items():
        copy = Utterance("c", extra={"version_of": "o", "noise_db": 10, name: other})
        config = TrainConfig(head="linear_probe", votes="votes", label="arousal")
        with pytest.raises(ProtocolError, match=f"The copy 'c' has the {name} .*, and its original 'o' has"):
            learnable(Manifest([original, copy]), config)
        learnable(Manifest([original, copy]), replace(config, votes="", label="label"))


def fold_file(path: Path, train: Sequence[str], validation: Sequence[str] = (), test: Sequence[str] = ()) -> Path:
    save_folds([Fold("f", tuple(train), tuple(validation), tuple(test or ("C0", "C1")))], path)
    return path


def test_a_file_that_lists_no_copies_gets_those_of_its_training_part(tmp_path: Path) -> None:
    path = fold_file(tmp_path / "f.json", ["B0", "A0", "A1", "B1"], ["B2", "B3"])
    [fold] = make_folds(corpus(1), path)
    assert fold.train == ("B0", "A0", "A1", "B1", "A0~0", "A1~0", "B0~0", "B1~0")
    assert fold.validation == ("B2", "B3")


def test_a_file_that_lists_copies_is_taken_at_its_word(tmp_path: Path) -> None:
    path = fold_file(tmp_path / "f.json", ["A0", "A0~1", "A1", "B0", "B1"], ["B2", "B3"])
    [fold] = make_folds(corpus(), path)
    assert fold.train == ("A0", "A0~1", "A1", "B0", "B1")
    # Where validation is cut, the copies of what is cut go.
    names = [f"{session}{number}{end}" for session in "AB" for number in range(8) for end in ("", "~0")]
    [fold] = make_folds(corpus(), fold_file(tmp_path / "g.json", names), validation=0.5)
    assert len(fold.validation) == 8
    assert not any("~" in name for name in fold.validation)
    assert {original_of(name) for name in fold.train} == {name for name in fold.train if "~" not in name}
    assert len(fold.train) == 16


CHAIN = [Utterance("c1", extra={"version_of": "A0"}), Utterance("c2", extra={"version_of": "c1"})]


def test_a_file_may_list_a_copy_of_a_copy_alone(tmp_path: Path) -> None:
    path = fold_file(tmp_path / "f.json", ["A0", "c2", "A1", "B0", "B1"], ["B2", "B3"])
    [fold] = make_folds([*ORIGINALS, *CHAIN], path)
    assert fold.train == ("A0", "c2", "A1", "B0", "B1")
    [problem] = [
        one
        for one in check_folds([fold, Fold("g", ("A1", "c2"), (), ("A0",))], [*ORIGINALS, *CHAIN])
        if one.name == "copy"
    ]
    assert (problem.fold, "'c2', a version of 'A0'" in problem.text) == ("g", True)


def test_what_is_left_out_takes_all_its_copies_along() -> None:
    rows = [*corpus(1), *CHAIN]
    assert with_their_copies({"A0", "nobody"}, rows) == {"nobody", "A0", "A0~0", "c1", "c2"}
    assert with_their_copies({"c1"}, rows) == {"c1", "c2"}
    assert with_their_copies((), rows) == set()


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"train": ["A0", "A1"], "validation": ["A2~0", "A2"]}, "augmented copies are in validation, such as 'A2~0'"),
        ({"train": ["A0", "A1"], "test": ["C0", "C1", "C0~1"]}, "augmented copies are in test, such as 'C0~1'"),
        ({"train": ["A0", "A1", "A2~0"]}, "without their original, such as 'A2~0', a version of 'A2'"),
        ({"train": ["A0", "A1", "C0~0"]}, "without their original, such as 'C0~0'"),
    ],
)
def test_a_copy_where_none_may_be_is_refused_by_name(
    tmp_path: Path, parts: Mapping[str, Sequence[str]], told: str
) -> None:
    path = fold_file(tmp_path / "f.json", **parts)
    with pytest.raises(ProtocolError, match=told):
        make_folds(corpus(), path, validation=0, allow=("speaker", "class"))


def test_the_checks_find_copies_in_folds_that_were_made_elsewhere() -> None:
    [problem] = [one for one in check_folds([Fold("f", ("A0",), (), ("C0~0",))], corpus()) if one.name == "copy"]
    assert problem.severity == "error"
    assert "C0~0" in problem.text


def test_unlabelled_originals_take_their_copies_along() -> None:
    rows = [replace(one, label=None) if one.id == "A0" else one for one in corpus()]
    with pytest.raises(ProtocolError, match="3 of 72 utterances have no label"):
        make_folds(rows, "session")
    folds = make_folds(rows, "session", drop_unlabelled=True)
    assert folds.num_unlabelled == 3
    assert not any(original_of(name) == "A0" for fold in folds for part in fold.parts.values() for name in part)


def write_stream(cache: Path, ids: Sequence[str]) -> None:
    spec = StreamSpec("toy", 1, "audio", {}, ("a",), 4, frame_shift_s=0.02, sample_rate_hz=16000, dtype="float32")
    with StreamWriter(cache, spec, "zarr", "frames") as writer:
        stored = []
        for number, name in enumerate(ids):
            frames = np.random.default_rng(number).standard_normal((1, 5, 4)).astype(np.float32)
            stored.append(store(name, f"of {name}", 0, Features(frames), spec, "frames"))
        writer.commit(stored, {})


CONFIG = TrainConfig(head="linear_probe", streams=("toy",), fit=FitSettings(steps=2, eval_every=1, batch_size=4))


def test_a_run_trains_on_copies_and_scores_originals_alone(tmp_path: Path) -> None:
    manifest = Manifest(corpus(), tmp_path)
    write_stream(tmp_path / "cache", manifest.ids)
    trained = run(CONFIG, manifest, tmp_path / "cache", tmp_path / "run")
    assert trained.run.scores.ids == tuple(sorted(one.id for one in ORIGINALS))
    assert trained.run.validation_scores is not None
    assert not any("~" in name for name in trained.run.validation_scores.ids)
    kept = {one.id: one for one in Manifest.read(tmp_path / "run" / "manifest.jsonl")}
    assert kept["A0~0"].label == "x"
    assert trained.run.config is not None
    copies = {name for fold in trained.folds for name in fold.train if "~" in name}
    assert (trained.run.config["num_utterances"], trained.run.config["num_copies"]) == (24, len(copies))
    card = (tmp_path / "run" / "README.md").read_text()
    told = f"24 utterances of 3 speakers, and {len(copies)} augmented copies of them, in training alone"
    assert f"- Data: {told}.\n" in card
    plain = run(replace(CONFIG, copies=False), manifest, tmp_path / "cache", tmp_path / "plain").run
    assert plain.config is not None
    assert plain.config["num_utterances"] == 24
    assert "num_copies" not in plain.config
    assert "24 utterances of 3 speakers.\n" in (tmp_path / "plain" / "README.md").read_text()


def test_a_copy_stays_where_the_copy_that_it_was_made_of_is_lacking(tmp_path: Path) -> None:
    manifest = Manifest([*ORIGINALS, *CHAIN], tmp_path)
    write_stream(tmp_path / "cache", [name for name in manifest.ids if name != "c1"])
    trained = run(replace(CONFIG, missing="drop"), manifest, tmp_path / "cache", tmp_path / "run")
    assert trained.dropped == ["c1"]
    assert any("c2" in fold.train for fold in trained.folds)
    kept = {one.id: one for one in Manifest.read(tmp_path / "run" / "manifest.jsonl")}
    assert kept["c2"].extra["version_of"] == "A0"  # it is known as a copy without the one between
    assert not [problem for problem in check_run(trained.run) if problem.name == "copy"]


def test_a_copy_whose_original_a_stream_lacks_is_left_out_with_it(tmp_path: Path) -> None:
    manifest = Manifest(corpus(1), tmp_path)
    write_stream(tmp_path / "cache", [name for name in manifest.ids if name not in ("A0", "B1~0")])
    with pytest.raises(CacheError, match="lacks 2 of 48"):
        run(CONFIG, manifest, tmp_path / "cache", tmp_path / "run")
    trained = run(replace(CONFIG, missing="drop"), manifest, tmp_path / "cache", tmp_path / "run")
    assert sorted(trained.dropped) == ["A0", "A0~0", "B1~0"]


def test_check_tells_of_copies(tmp_path: Path) -> None:
    rows = [replace(one, text=f"text of {original_of(one.id)}") for one in corpus(1)]
    Manifest(rows, tmp_path).write(tmp_path / "m.jsonl")
    lines: list[str] = []
    assert check(tmp_path / "m.jsonl", "session", (), None, lines.append) == []
    assert "  24 are augmented copies of 24 others, for training alone" in lines
    assert any("0 have no label" not in line and "classes: x 24, y 24" in line for line in lines)
    (tmp_path / "m.jsonl").write_text(json.dumps({"id": "n", "text": "t", "version_of": "gone"}) + "\n")
    assert "'gone'" in check(tmp_path / "m.jsonl", "session", (), None, lines.append)[0]

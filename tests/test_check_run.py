"""`featcache check`, as a user runs it: on a manifest with copies, and on run folders that do not hold together."""

import csv
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from makers import tone, write_corpus
from safetensors.numpy import save_file
from test_cli import call, failure, rewrite

import featcache
from featcache import Manifest, Utterance
from featcache.errors import ProtocolError, ScoresError
from heads.duplicates import audio_digests, copied
from heads.fold_files import save_folds
from heads.folds import make_folds
from heads.protocol import Fold
from heads.runs import read_run, write_run
from heads.scores import Scores
from pipelines.check import check_run

CLASSES = ("a", "b")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """16 recordings of 4 speakers; speaker and class alternate."""
    folder = tmp_path / "corpus"
    rows = []
    folder.mkdir()
    for number in range(16):
        soundfile.write(folder / f"{number}.wav", tone(0.3, seed=number), 16000)
        rows.append(Utterance(f"u{number:02d}", f"{number}.wav", label="ab"[number // 4 % 2], speaker=f"s{number % 4}"))
    Manifest(rows, folder).write(folder / "manifest.jsonl")
    return folder / "manifest.jsonl"


def test_a_copy_of_a_recording_is_found_by_its_samples(recordings: Path) -> None:
    assert "copies" not in call("check", recordings, "--folds", "speaker")
    # Another name and another container, and the same samples.
    samples, rate = soundfile.read(recordings.parent / "0.wav", dtype="int16")
    soundfile.write(recordings.parent / "1.flac", samples, rate)
    rewrite(recordings, lambda number, _: {"audio": "1.flac"} if number == 1 else {})
    alone = call("check", recordings)
    assert "  2 utterances are copies of one another: 'u00', 'u01'\n" in alone
    assert alone.endswith("No problems.\n")
    output = call("check", recordings, "--folds", "speaker", code=3)
    assert "fold 's0': 1 utterances of test are copies of recordings in" in output
    assert "'duplicate' (copies of one recording are on both sides of a split)" in output
    output = call("check", recordings, "--folds", "speaker", "--allow", "duplicate", code=3)
    assert "  allowed: fold 's0': 1 utterances of test are copies of recordings in" in output
    assert "  warning: 1 recordings are there under several names, such as 'u00', 'u01'\n" in output
    assert output.endswith("2 problems.\n")


def test_a_cache_knows_copies_without_decoding_anything(tmp_path: Path, recordings: Path) -> None:
    (recordings.parent / "1.wav").write_bytes((recordings.parent / "0.wav").read_bytes())
    call("extract", recordings, "--cache", tmp_path / "cache", "--stream", "log_mel", "--tier", "stats")
    cache, manifest = featcache.open(tmp_path / "cache"), Manifest.read(recordings)
    digests = audio_digests([cache["log_mel"]], [*manifest.ids, "gone"])
    assert sorted(digests) == sorted(manifest.ids)
    assert sorted(copied(manifest, digests)) == ["u00", "u01"]
    texts: Any = SimpleNamespace(spec=SimpleNamespace(input="text"))  # two that say the same are no copies
    assert audio_digests([texts], manifest.ids) == {}
    assert audio_digests([texts, cache["log_mel"]], manifest.ids) == digests
    with pytest.raises(ProtocolError, match="1 utterances of test are copies of recordings in"):
        make_folds(manifest, "speaker", audio=digests)


def test_leaky_folds_and_folds_without_a_class_are_refused_by_check_and_by_training(
    tmp_path: Path, recordings: Path
) -> None:
    call("extract", recordings, "--cache", tmp_path / "cache", "--stream", "log_mel", "--tier", "stats")
    train = ["train-heads", recordings, "--cache", tmp_path / "cache", "--stream", "log_mel", "--head", "svm"]
    ids = [f"u{number:02d}" for number in range(16)]
    by_label = {label: [name for n, name in enumerate(ids) if "ab"[n // 4 % 2] == label] for label in "ab"}
    shares_speakers = Fold("1", tuple(ids[8:]), (), tuple(ids[:8]))
    lacks_a_class = Fold("1", tuple(by_label["a"]), (), tuple(by_label["b"]))
    for fold, sentence in (
        (shares_speakers, "speakers are in train and in test, such as 's"),
        (lacks_a_class, "fold '1': train has no 'b', which test has, so no head can learn it"),
    ):
        save_folds([fold], tmp_path / "folds.json")
        assert sentence in call("check", recordings, "--folds", tmp_path / "folds.json", code=3)
        said = failure(*train, "--folds", tmp_path / "folds.json", "--validation", "0", "--out", tmp_path / "run")
        assert sentence in said
        assert "allow by name what is meant" in said
        assert not (tmp_path / "run").exists()


def scores(ids: Sequence[str], folds: Sequence[str]) -> Scores:
    values = [[0.75, 0.25] if int(name[1:]) % 3 else [0.25, 0.75] for name in ids]
    return Scores(ids, folds, ["ab"[int(name[1:]) % 2] for name in ids], CLASSES, values)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A sound run over 24 utterances of 4 speakers in 4 folds, with validation."""
    utterances = [Utterance(f"u{n:02d}", label="ab"[n % 2], speaker=f"s{n // 6}") for n in range(24)]
    folds = make_folds(utterances, "speaker")
    folder = tmp_path / "run"
    test, validation = (
        scores(*zip(*[(name, fold.name) for fold in folds for name in fold.parts[part]], strict=True))
        for part in ("test", "validation")
    )
    write_run(folder, test, validation, {"head": "x", "allowed_leaks": []})
    save_folds(folds.folds, folder / "folds.json")
    Manifest(utterances).write(folder / "manifest.jsonl")
    return folder


def change_folds(folder: Path, change: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    content = json.loads((folder / "folds.json").read_text())
    for name, parts in change.items():
        content["folds"][name] |= parts
    (folder / "folds.json").write_text(json.dumps(content))


def write_candidates(folder: Path, rows: Sequence[tuple[str, float, float, float, bool]]) -> None:
    with (folder / "candidates.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("fold", "learning_rate", "validation", "test", "chosen"), *rows])


def test_a_sound_run_has_no_problems(run_folder: Path) -> None:
    assert call("check", run_folder) == "24 scores in 4 folds\nNo problems.\n"
    write_candidates(
        run_folder, [("s0", 0.1, 0.5, 0.9, False), ("s0", 0.2, 0.6, 0.4, True), ("s1", 0.1, math.nan, 0.4, True)]
    )
    assert check_run(read_run(run_folder)) == []


def test_scores_of_what_was_trained_on_are_found(run_folder: Path) -> None:
    fold = json.loads((run_folder / "folds.json").read_text())["folds"]["s0"]
    moved = {"train": [*fold["train"], "u00", "u01"], "test": fold["test"][2:]}
    change_folds(run_folder, {"s0": moved})
    output = call("check", run_folder, code=3)
    assert "error: fold 's0': 2 scored utterances are in train ('u00', 'u01')\n" in output
    assert "error: fold 's0': 1 speakers are in train and in test, such as 's0'" in output


def test_scores_of_what_was_chosen_on_are_found(run_folder: Path) -> None:
    run = read_run(run_folder)
    assert run.validation_scores is not None
    write_run(run_folder, run.scores, run.scores, {"head": "x"})
    output = call("check", run_folder, code=3)
    assert (
        "error: fold 's3': 6 of 6 tested utterances have validation scores too ('u18', 'u19', 'u20' and 3 more): what "
        "was chosen on validation was chosen on test\n"
    ) in output
    assert output.endswith("4 problems.\n")
    # The score files alone are enough.
    for name in ("folds.json", "manifest.jsonl", "config.yaml", "metrics.json"):
        (run_folder / name).unlink()
    assert call("check", run_folder, code=3).endswith("4 problems.\n")


def test_folds_in_which_test_is_validation_are_found(run_folder: Path) -> None:
    fold = json.loads((run_folder / "folds.json").read_text())["folds"]["s0"]
    change_folds(run_folder, {"s0": {"validation": fold["test"], "test": fold["validation"]}})
    output = call("check", run_folder, code=3)
    assert "error: fold 's0': 6 scored utterances are in validation ('u00', 'u01', 'u02' and 3 more)\n" in output
    assert "warning: fold 's0': 4 of 4 utterances of test have no scores" in output


def test_scores_of_other_folds_are_found(run_folder: Path) -> None:
    content = json.loads((run_folder / "folds.json").read_text())
    content["folds"]["other"] = content["folds"].pop("s2")
    content["folds"]["s1"]["test"][0] = "u12"
    (run_folder / "folds.json").write_text(json.dumps(content))
    found = [str(problem) for problem in check_run(read_run(run_folder)) if problem.severity == "error"]
    assert "fold 's2': 'scores.csv' has this fold, and 'folds.json' has not" in found
    assert "fold 's1': 1 scored utterances are in no part ('u06')" in found


def test_validation_scores_of_what_was_trained_on_are_a_warning(run_folder: Path) -> None:
    fold = json.loads((run_folder / "folds.json").read_text())["folds"]["s0"]
    change_folds(run_folder, {"s0": {"train": fold["train"] + fold["validation"], "validation": []}})
    found = [(one.name, one.severity) for one in check_run(read_run(run_folder)) if one.fold == "s0"]
    assert ("trained", "warning") in found
    assert ("selected", "error") not in found


def test_a_candidate_that_validation_did_not_prefer_is_found(run_folder: Path) -> None:
    write_candidates(run_folder, [("s0", 0.1, 0.5, 0.9, True), ("s0", 0.2, 0.625, 0.4, False)])
    output = call("check", run_folder, code=3)
    assert (
        "error: fold 's0': the candidate of this run has 0.500 on validation and another has 0.625: it was not chosen "
        "there\n"
    ) in output
    failed = ("s0", 0.05, math.nan, 0.1, False)
    write_candidates(run_folder, [failed, ("s0", 0.1, 0.5, 0.9, True), ("s0", 0.2, 0.625, 0.4, False)])
    assert [problem.name for problem in check_run(read_run(run_folder))] == ["selected"]
    write_candidates(run_folder, [failed, ("s0", 0.1, 0.5, 0.9, True), ("s0", 0.2, 0.5, 0.4, False)])
    assert check_run(read_run(run_folder)) == []


def test_a_choice_without_anything_to_choose_on_is_found(run_folder: Path) -> None:
    run = read_run(run_folder)
    write_run(run_folder, run.scores, None, {"head": "x"})
    fold = json.loads((run_folder / "folds.json").read_text())["folds"]["s0"]
    change_folds(run_folder, {"s0": {"train": fold["train"] + fold["validation"], "validation": []}})
    assert call("check", run_folder).endswith("No problems.\n")
    write_candidates(run_folder, [("s0", 0.1, math.nan, 0.9, True), ("s0", 0.2, math.nan, 0.4, False)])
    output = call("check", run_folder, code=3)
    assert "error: fold 's0': one of 2 candidates was chosen, and there is no validation part to choose on\n" in output


def test_labels_that_are_not_those_of_the_run_are_found(run_folder: Path) -> None:
    run = read_run(run_folder)
    write_run(run_folder, run.scores, run.validation_scores, {"head": "x", "classes": ["a", "b"]})
    assert check_run(read_run(run_folder)) == []
    write_run(run_folder, run.scores, run.validation_scores, {"head": "x", "classes": ["b", "a"]})
    rewrite(run_folder / "manifest.jsonl", lambda number, _: {"label": "c"} if number == 3 else {})
    output = call("check", run_folder, code=3)
    assert "error: 'config.yaml' has the classes b, a, in this order, and 'scores.csv' a, b: scores may stand" in output
    assert "error: 1 scored utterances have another label in 'manifest.jsonl' ('u03')\n" in output


def test_what_was_allowed_and_what_a_fusion_looked_at_is_told(run_folder: Path) -> None:
    run = read_run(run_folder)
    leak = "fold 's0': 1 speakers are in train and in test, such as 'x' (1 and 2 utterances)"
    write_run(
        run_folder, run.scores, None, {"fused": ["a", "b"], "allowed_leaks": [leak], "searched_on": "other-folds"}
    )
    output = call("check", run_folder, code=3)
    assert f"  error: {leak}\n" in output
    assert "  warning: what fuses each fold was found on the test scores of the other folds" in output


def test_scores_that_need_more_than_the_utterance_are_told(run_folder: Path) -> None:
    path = run_folder / "context.safetensors"
    for names, words in (
        (["length"], ["the one length that all utterances are padded to .*, length.: that of the longest"]),
        (["fixed_length"], ["the one length that all utterances"]),
        (["speaker/a", "speaker/b"], ["means over each speaker's utterances .*of 2 speakers"]),
        (["length", "speaker/a", "x"], ["means over", "the one length", r"what .* holds beside .*\(x\)"]),
    ):
        save_file({name: np.zeros(1) for name in names}, path)
        problems = check_run(read_run(run_folder))
        assert {(problem.name, problem.severity) for problem in problems} == {("context", "warning")}
        assert len(problems) == len(words)
        for problem, wanted in zip(problems, words, strict=True):
            assert re.search(f"scores depend on {wanted}", problem.text)
            assert ("speaker" in problem.text) == wanted.startswith("means")
    path.write_bytes(b"")
    with pytest.raises(ScoresError, match=r"context.safetensors' is damaged"):
        check_run(read_run(run_folder))


def test_a_run_with_nan_scores_is_refused_wherever_it_is_read(tmp_path: Path, run_folder: Path) -> None:
    path = run_folder / "scores.csv"
    sound = tmp_path / "sound"
    shutil.copytree(run_folder, sound)
    lines = path.read_text().splitlines()
    row = next(number for number, line in enumerate(lines) if line.startswith("u07,"))
    lines[row] = "u07,s1,b,nan,0.5"
    path.write_text("\n".join(lines))
    sentence = "1 of 24 utterances have scores that are not finite, such as 'u07' in fold 's1': nan for 'a'"
    for arguments in (
        ["check", run_folder],
        ["report", sound, run_folder, "--out", tmp_path / "report.html"],
        ["fuse", sound, run_folder, "--weights", "1,1", "--out", tmp_path / "fused"],
    ):
        said = failure(*arguments)
        assert sentence in said
        assert str(path) in said


def test_a_mistaken_folder_or_option_is_answered_in_a_sentence(tmp_path: Path, run_folder: Path) -> None:
    write_corpus(tmp_path / "corpus", [0.3])
    assert "is not a run: there is no 'scores.csv' in it" in failure("check", tmp_path / "corpus")
    assert "--folds, --allow and --root are for a manifest" in failure("check", run_folder, "--folds", "speaker")
    assert "There is no manifest" in failure("check", tmp_path / "gone")
    (run_folder / "folds.json").write_text("{")
    assert "cannot be read" in failure("check", run_folder)

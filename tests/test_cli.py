"""The commands, as a user runs them: from a corpus on disk to scores, and what they say when something is wrong."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from makers import speech_checkpoint, tone, write_corpus
from text_makers import text_checkpoint
from typer.testing import CliRunner

import featcache
from featcache import Manifest, Utterance
from heads.runs import read_run
from pipelines.cli import app, main

runner = CliRunner()


def call(*arguments: object, code: int = 0) -> str:
    """Run a command and return its standard output; an unexpected exit code fails with all it printed."""
    result = runner.invoke(app, [str(argument) for argument in arguments])
    if result.exit_code != code:
        raise AssertionError(f"exit code {result.exit_code}, expected {code}\n{result.output}") from result.exception
    return result.stdout


def shell(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def rewrite(manifest: Path, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> None:
    """Replace each row of a manifest by row and the columns that `change` gives for its number and itself."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    changed = [{**row, **change(number, row)} for number, row in enumerate(rows)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in changed))


def failure(*arguments: object) -> str:
    """Run a command that fails with an error of this project, and return its sentence."""
    result = runner.invoke(app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, featcache.FeatcacheError)
    return str(result.exception)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """24 recordings of 4 speakers in 2 sessions; class 'loud' is louder than class 'soft'."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    rows = []
    for number in range(24):
        label = "loud" if number % 2 else "soft"
        samples = tone(0.4 + 0.02 * (number % 5), seed=number) * (4.0 if label == "loud" else 0.5)
        soundfile.write(folder / f"u{number:02d}.wav", samples, 16000, subtype="FLOAT")
        speaker = number // 2 % 4
        rows.append(
            Utterance(
                f"u{number:02d}", f"u{number:02d}.wav", label=label, text=f"sentence {number}",
                speaker=f"s{speaker}", session=f"S{speaker // 2}",
            )
        )  # fmt: skip
    Manifest(rows, folder).write(folder / "manifest.jsonl")
    return folder / "manifest.jsonl"


def test_several_seeds_are_a_run_each_and_their_spread_is_told(tmp_path: Path, manifest: Path) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    call("extract", manifest, "--cache", cache, "--stream", "log_mel")
    train = [
        "train-heads", manifest, "--cache", cache, "--stream", "log_mel", "--head", "linear_probe",
        "--folds", "random:3", "--set", "fit.steps=6", "--set", "fit.eval_every=3", "--out", run,
    ]  # fmt: skip
    output = call(*train, "--seeds", "3,1")
    assert sorted(path.name for path in run.iterdir()) == ["seed-1", "seed-3"]
    means = {seed: read_run(run / f"seed-{seed}").metrics["mean"]["ua"] for seed in (3, 1)}
    *_, header, three, one, spread = [
        line for line in output.splitlines() if line.strip() and not set(line) <= set("- ")
    ]
    assert header.split()[0] == "seed"
    for seed, line in ((3, three), (1, one)):
        assert line.split()[0] == str(seed)
        assert line.split()[2] == f"{100 * means[seed]:.1f}"
        assert read_run(run / f"seed-{seed}").config["fit"]["seed"] == seed  # type: ignore[index]
    mean, std = 50 * (means[3] + means[1]), 100 * abs(means[3] - means[1]) / 2**0.5
    assert f"{mean:.1f} ± {std:.1f}" in spread
    assert call(*train, "--seeds", "3").count("Already there") == 1
    assert "whole numbers with commas between, such as 0,1,2; got '1;2'" in failure(*train, "--seeds", "1;2")
    assert "A seed occurs twice in '1,2,1'" in failure(*train, "--seeds", "1,2,1")


def test_from_recordings_to_scores_metrics_and_fusion(tmp_path: Path, manifest: Path) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    output = call("extract", manifest, "--cache", cache, "--stream", "log_mel", "--stream", "ge2e_states")
    assert output.count("24 computed, 0 present, 0 failed") == 2
    assert "0 computed, 24 present" in call("extract", manifest, "--cache", cache, "--stream", "log_mel")
    for number, head in enumerate(("layer_mix", "svm")):
        output = call(
            "train-heads", manifest, "--cache", cache, "--stream", "log_mel", "--head", head, "--folds", "speaker",
            "--set", "fit.steps=60", "--set", "fit.eval_every=20", "--out", f"{run}{number}",
        )  # fmt: skip
        assert re.search(r"^mean ± std +\d+\.\d ± \d+\.\d", output, flags=re.MULTILINE)
    found = read_run(f"{run}0")
    assert sorted(found.scores.ids) == Manifest.read(manifest).ids
    assert found.scores.classes == ("loud", "soft")
    assert json.loads((tmp_path / "run0" / "metrics.json").read_text()) == found.metrics
    for name in ("validation_scores.csv", "folds.json", "candidates.csv", "curves.csv", "weights.safetensors"):
        assert (tmp_path / "run0" / name).stat().st_size > 0
    call("fuse", f"{run}0", f"{run}1", "--weights", "0.6,1.0", "--out", tmp_path / "fused")
    fused = read_run(tmp_path / "fused").scores
    expected = (0.6 * found.scores.probabilities + 1.0 * read_run(f"{run}1").scores.probabilities) / 1.6
    np.testing.assert_allclose(fused.probabilities, expected, rtol=1e-12)


def test_a_run_is_not_trained_twice_nor_overwritten_by_another(tmp_path: Path, manifest: Path) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    call("extract", manifest, "--cache", cache, "--stream", "log_mel", "--tier", "stats")
    arguments = ["train-heads", manifest, "--cache", cache, "--stream", "log_mel", "--head", "svm", "--out", run]
    assert "Wrote" in call(*arguments)
    assert "Already there" in call(*arguments)
    failed = shell(*arguments, "--set", "settings.C=2")
    assert failed.returncode == 1
    assert "holds another run. Give another --out, or --overwrite" in failed.stderr
    assert "Wrote" in call(*arguments, "--set", "settings.C=2", "--overwrite")


def test_a_run_on_other_features_is_another_run(tmp_path: Path, manifest: Path) -> None:
    cache = tmp_path / "cache"
    extract = ["extract", manifest, "--cache", cache, "--stream", "log_mel", "--tier", "stats"]
    train = ["train-heads", manifest, "--cache", cache, "--stream", "log_mel", "--head", "svm", "--out", tmp_path / "r"]
    call(*extract)
    call(*train)
    soundfile.write(manifest.parent / "u07.wav", tone(0.5, seed=99), 16000, subtype="FLOAT")
    assert "1 computed, 23 present" in call(*extract)
    assert "holds another run" in failure(*train)
    call(*train, "--overwrite")
    assert "Already there" in call(*train)


def test_a_run_on_other_folds_is_another_run(tmp_path: Path, manifest: Path) -> None:
    cache = tmp_path / "cache"
    call("extract", manifest, "--cache", cache, "--stream", "log_mel", "--tier", "stats")
    train = [
        "train-heads", manifest, "--cache", cache, "--stream", "log_mel", "--head", "svm", "--folds", "split",
        "--allow", "speaker", "--out", tmp_path / "r",
    ]  # fmt: skip
    rewrite(manifest, lambda number, _: {"split": "test" if number < 6 else "train"})
    call(*train)
    rewrite(manifest, lambda number, _: {"split": "test" if number < 7 else "train"})
    assert "holds another run" in failure(*train)


def test_numbers_and_flags_are_labels_and_what_has_none_can_be_left_out(tmp_path: Path, manifest: Path) -> None:
    cache = tmp_path / "cache"
    call("extract", manifest, "--cache", cache, "--stream", "log_mel", "--tier", "stats")
    absent = {3: None, 4: "", 5: float("nan")}
    rewrite(
        manifest,
        lambda number, row: {
            "level": absent.get(number, number % 2), "shouted": row["label"] == "loud", "votes": {"loud": 2},
        },
    )  # fmt: skip
    train = ["train-heads", manifest, "--cache", cache, "--stream", "log_mel", "--head", "svm"]
    assert "3 of 24 utterances have no label ('u03', 'u04', 'u05')" in failure(*train, "--label", "level")
    result = runner.invoke(
        app, [*map(str, train), "--label", "level", "--drop-unlabelled", "--out", str(tmp_path / "level")]
    )
    assert "3 utterances are left out: they have no level." in result.stderr
    scores = read_run(tmp_path / "level").scores
    assert scores.classes == ("0", "1")
    assert len(scores.ids) == 21
    call(*train, "--label", "shouted", "--out", tmp_path / "shouted")
    assert read_run(tmp_path / "shouted").scores.classes == ("False", "True")
    assert "The column 'votes' cannot be learnt: 'u00' has {'loud': 2} there" in failure(*train, "--label", "votes")
    assert "There is no labelled utterance" in failure(*train, "--label", "gone", "--drop-unlabelled")


def test_an_unlabelled_utterance_that_is_left_out_need_not_be_in_the_cache(tmp_path: Path, manifest: Path) -> None:
    (manifest.parent / "u03.wav").unlink()
    call("extract", manifest, "--cache", tmp_path / "cache", "--stream", "log_mel", "--tier", "stats", code=3)
    rewrite(manifest, lambda number, row: {"label": None if number == 3 else row["label"]})
    call(
        "train-heads", manifest, "--cache", tmp_path / "cache", "--stream", "log_mel", "--head", "svm",
        "--drop-unlabelled", "--out", tmp_path / "run",
    )  # fmt: skip
    assert len(read_run(tmp_path / "run").scores.ids) == 23


def test_hidden_states_of_a_folder_are_extracted_and_probed_layer_by_layer(tmp_path: Path, manifest: Path) -> None:
    cache, checkpoint = tmp_path / "cache", speech_checkpoint(tmp_path / "model")
    options = ["--stream", "hidden_states", "--set", f"hidden_states.checkpoint={checkpoint}", "--backend", "hdf5"]
    plan = call("extract", manifest, "--cache", cache, *options, "--dry-run")
    assert re.search(r"hidden_states-\w{8} +24 +0 +0 +0 +1", plan)
    assert not cache.exists()
    call("extract", manifest, "--cache", cache, *options)
    call(
        "train-heads", manifest, "--cache", cache, "--stream", "hidden_states", "--head", "linear_probe",
        "--set", "fit.steps=30", "--set", "fit.eval_every=10", "--out", tmp_path / "run",
    )  # fmt: skip
    lines = (tmp_path / "run" / "candidates.csv").read_text().splitlines()
    assert lines[0] == "fold,layer,learning_rate,weight_decay,layer_name,validation,test,chosen"
    assert len(lines) == 1 + 2 * 4
    assert "4 x 32" in call("info", cache)


def test_another_checkpoint_or_setting_is_another_stream_and_says_what_differs(tmp_path: Path, manifest: Path) -> None:
    cache = tmp_path / "cache"
    folders = [speech_checkpoint(tmp_path / str(seed) / "model", seed=seed) for seed in (0, 1)]
    arguments = ["extract", manifest, "--cache", cache, "--stream", "hidden_states", "--tier", "stats", "--set"]
    assert "it is not" not in call(*arguments, f"hidden_states.checkpoint={folders[0]}")
    output = call(*arguments, f"hidden_states.checkpoint={folders[1]}")
    assert re.search(r"it is not hidden_states-\w{8}: checkpoint\.weights_sha256: \w+ -> \w+\n", output)
    output = call(*arguments, f"hidden_states.checkpoint={folders[0]}", "--set", "hidden_states.tap=final_norm")
    assert "settings.tap: layer_outputs -> final_norm" in output


def test_an_utterance_without_text_fails_alone(tmp_path: Path, manifest: Path) -> None:
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[3]["text"] = "  "
    del rows[4]["text"]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = text_checkpoint(tmp_path / "text")
    output = call(
        "extract", manifest, "--cache", tmp_path / "cache", "--stream", "token_states",
        "--set", f"token_states.checkpoint={folder}", code=3,
    )  # fmt: skip
    assert "22 computed, 0 present, 2 failed" in output
    assert output.count("it has no text. Fill the manifest's column 'text'") == 2


def test_bad_recordings_fail_alone_and_are_told_in_summary_index_and_exit_code(tmp_path: Path, manifest: Path) -> None:
    cache, corpus = tmp_path / "cache", manifest.parent
    soundfile.write(corpus / "u01.wav", np.zeros(0, np.float32), 16000)
    soundfile.write(corpus / "u02.wav", np.zeros(4000, np.float32), 16000)
    (corpus / "u03.wav").write_bytes(b"no audio")
    (corpus / "u04.wav").unlink()
    (corpus / "u05.wav").write_bytes((corpus / "u05.wav").read_bytes()[:9000])
    soundfile.write(corpus / "u06.wav", np.full(4000, np.nan, np.float32), 16000, subtype="FLOAT")
    output = call("extract", manifest, "--cache", cache, "--stream", "log_mel", code=3)
    assert "18 computed, 0 present, 6 failed" in output
    for name, reason in {
        "u01": "empty",
        "u02": "silence",
        "u03": "decoded",
        "u04": "no audio file",
        "u05": "truncated",
        "u06": "NaN",
    }.items():
        assert re.search(rf"failed: '{name}': .*{reason}", output)
    assert sorted(featcache.open(cache)["log_mel"].failures) == ["u01", "u02", "u03", "u04", "u05", "u06"]
    coverage = call("coverage", cache, manifest, code=3)
    assert re.search(r"log_mel-\w{8} +18 +0 +6 +0", coverage)
    assert call("check", manifest, code=3).endswith("6 problems.\n")
    train = [
        "train-heads",
        manifest,
        "--cache",
        cache,
        "--stream",
        "log_mel",
        "--head",
        "svm",
        "--out",
        tmp_path / "run",
    ]
    failed = shell(*train)
    assert failed.returncode == 1
    assert "lacks 6 of 24 utterances, such as 'u01'" in failed.stderr
    left = shell(*train, "--missing", "drop")
    assert left.returncode == 0
    assert "6 utterances are left out" in left.stderr


def test_check_tells_leaks_from_sound_folds(tmp_path: Path, manifest: Path) -> None:
    assert call("check", manifest, "--folds", "speaker").endswith("No problems.\n")
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    for row in rows:
        row["split"] = "test" if row["id"] < "u06" else "train"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "speaker" in call("check", manifest, "--folds", "split", code=3)


def test_verify_says_nothing_of_a_whole_cache_and_names_what_is_broken(tmp_path: Path, manifest: Path) -> None:
    cache = tmp_path / "cache"
    call("extract", manifest, "--cache", cache, "--stream", "log_mel", "--backend", "hdf5")
    assert "24 utterances checked (every byte compared), 0 problems." in call("verify", cache)
    part = next(cache.glob("*/part-*.h5"))
    part.write_bytes(part.read_bytes()[:-5000])
    assert "run the same extract again" in call("verify", cache, code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", "M", "--stream", "log_mell"], "no stream 'log_mell'. Known: "),
        (["extract", "M", "--cache", "C"], "Say what to extract with --stream NAME"),
        (["extract", "M", "--stream", "log_mel", "--set", "log_mel.bins=3"], "has no setting bins"),
        (["extract", "M", "--stream", "log_mel", "--set", "ge2e.x=3"], "--set names ge2e, which is not extracted"),
        (["extract", "M", "--stream", "log_mel", "--backend", "hdf6"], "no backend 'hdf6'. Known: hdf5, zarr"),
        (["extract", "M", "--stream", "log_mel", "--dtype", "float8"], "Choose one of: float16, float32, int8"),
        (["extract", "M", "--preset", "demoo"], "no preset 'demoo'. Known: demo"),
        (["extract", "gone.jsonl", "--stream", "log_mel"], "There is no manifest 'gone.jsonl'"),
        (["corpus", "iemocapp", "."], "no corpus 'iemocapp'. Known: "),
        (["corpus", "emodb", "gone"], "There is no folder 'gone'"),
        (["train-heads", "M", "--cache", "gone", "--stream", "x"], "There is no cache 'gone'"),
        (["train-heads", "M", "--head", "transformer"], "no head 'transformer'. Known: ecapa, encoder_decoder"),
        (["fuse", "gone", "--weights", "1", "--out", "x"], "'gone' is not a run"),
        (["fuse", "gone", "--weights", "a", "--out", "x"], "--weights takes numbers"),
        (["info", "gone"], "There is no cache 'gone'"),
        (["verify", "gone"], "There is no cache 'gone'"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path, [0.3]).write(tmp_path / "M")
    result = runner.invoke(app, arguments)
    assert isinstance(result.exception, featcache.FeatcacheError)
    assert message in str(result.exception)


def test_an_error_exits_with_1_and_without_a_traceback(tmp_path: Path) -> None:
    result = shell("info", tmp_path / "gone")
    assert result.returncode == 1
    assert result.stderr.startswith("error: There is no cache")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["corpus", "table", "M.csv", "--out", "FILE/x"], "File exists: FILE"),
        (["export", "M", "--out", "FILE/x"], "File exists: FILE"),
        (["report", "RUN", "--out", "FILE/x"], "File exists: FILE"),
        (["train-heads", "M", "--out", "FILE"], "'FILE' is a file. Give --out a folder."),
        (["train-heads", "M", "--out", "FILE", "--overwrite"], "'FILE' is a file. Give --out a folder."),
        (["train-heads", "M", "--out", "FILE/x/y"], "'FILE' is a file. Give --out a folder."),
        (["fuse", "RUN", "--weights", "1", "--out", "FILE/x"], "'FILE' is a file. Give --out a folder."),
    ],
)
def test_an_out_below_a_file_is_answered_in_a_sentence(
    tmp_path: Path,
    manifest: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("precious")
    Manifest.read(manifest).write(tmp_path / "M")
    train = ["--stream", "log_mel", "--head", "svm"]
    call("export", "M", "--out", "M.csv")
    call("extract", "M", "--stream", "log_mel", "--tier", "stats")
    call("train-heads", "M", *train, "--out", "RUN")
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["featcache", *arguments, *(train if arguments[0] == "train-heads" else [])])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 1
    assert f"error: {message}\n" in capsys.readouterr().err
    assert (tmp_path / "FILE").read_text() == "precious"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("extract", "Interrupted. What was whole is committed; run the same command to go on."),
        ("train-heads", "Interrupted. The run in hand is not finished; run the same command to go on with it."),
    ],
)
def test_an_interrupted_command_says_what_it_left(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"pipelines.{command.replace('-', '_')}.run", interrupt)
    result = runner.invoke(app, [command, str(manifest), "--cache", str(tmp_path / "cache"), "--stream", "log_mel"])
    assert result.exit_code == 130
    assert message in result.stderr


def test_ctrl_c_after_the_last_batch_of_a_stream_stops_before_the_next(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import extract as pipeline

    def interrupted(*arguments: Any, **options: Any) -> Any:
        summary = featcache.extract.extract(*arguments, **options)
        signal.raise_signal(signal.SIGINT)
        return summary

    monkeypatch.setattr(pipeline, "extract", interrupted)
    cache = tmp_path / "cache"
    call("extract", manifest, "--cache", cache, "--stream", "log_mel", "--stream", "ge2e_states", code=130)
    assert [name.rpartition("-")[0] for name in featcache.open(cache)] == ["log_mel"]
    assert len(featcache.open(cache)["log_mel"]) == 24

"""`featcache fuse` with weights that are searched or learned, as a user runs it."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_cli import call, failure, runner
from test_fusion_search import make_runs

from featcache.errors import ConfigError
from heads.metrics import evaluate
from heads.runs import read_run, write_run
from heads.scores import Scores
from pipelines import fuse
from pipelines.cli import app


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def config_of(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "config.yaml").read_text())


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    """Three runs with validation scores, of three folds."""
    names = [tmp_path / name for name in ("speech", "text", "face")]
    for folder, run in zip(names, make_runs(20, (0.6, 0.9, 0.8)), strict=True):
        write_run(folder, run.scores, run.validation_scores, {"head": "x", "speaker_independent": True})
    return names


def test_searched_weights_are_written_with_what_they_were_searched_on(tmp_path: Path, folders: list[Path]) -> None:
    out = tmp_path / "fused"
    arguments = ["fuse", *folders[:2], "--weights", "search", "--space", "log", "--select-by", "wa", "--out", out]
    result = runner.invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0
    assert "The fused validation scores are optimistic: the fusion was found on those utterances." in result.stderr
    config, weights, curve = config_of(out), rows_of(out / "fusion_weights.csv"), rows_of(out / "fusion_curve.csv")
    assert list(weights[0]) == ["fold", "w_speech", "w_text", "utterances", "ua", "wa", "log_loss"]
    assert list(curve[0]) == ["fold", "weight", "search_ua", "search_wa", "test_ua", "test_wa"]
    assert (config["searched_on"], config["selected_by"], config["space"]) == ("validation", "wa", "log")
    assert config["validation_scores_were_searched_on"] is True
    assert config["speaker_independent"] is True
    validation = {one["fold"]: one for one in read_run(out).validation_scores and _folds(out)}
    for row in weights:
        pair = [float(row["w_speech"]), float(row["w_text"])]
        assert config["weights"][row["fold"]] == pair
        assert sum(pair) == pytest.approx(1)
        assert config["on_search"][row["fold"]]["wa"] == float(row["wa"]) == validation[row["fold"]]["wa"]
        assert f"fold {row['fold']}: weight of speech {pair[0]:.3g}, weight of text {pair[1]:.3g}" in result.stderr
    assert len(curve) == 3 * 101
    call("report", out, "--out", tmp_path / "report.html")
    assert "weight of speech" in (tmp_path / "report.html").read_text()


def _folds(out: Path) -> list[Any]:
    return evaluate(read_run(out).validation_scores)["folds"]


def test_padis_two_ways_can_be_asked_for(tmp_path: Path, folders: list[Path]) -> None:
    call("fuse", *folders[:2], "--weights", "search", "--space", "log", "--out", tmp_path / "a")
    call("fuse", *folders[:2], "--weights", "1,1", "--space", "log", "--standardise", "--out", tmp_path / "b")
    assert isinstance(config_of(tmp_path / "a")["weights"], dict)
    assert config_of(tmp_path / "b")["weights"] == [1.0, 1.0]
    assert "searched_on" not in config_of(tmp_path / "b")
    assert not list((tmp_path / "b").glob("fusion_*"))


def test_score_files_alone_are_fused_on_other_folds_or_by_fixed_weights(tmp_path: Path, folders: list[Path]) -> None:
    for folder in folders:
        for name in ("validation_scores.csv", "metrics.json", "config.yaml"):
            (folder / name).unlink()
    out = tmp_path / "fused"
    said = failure("fuse", *folders, "--weights", "search", "--out", out)
    assert "speech kept no validation scores; text kept no validation scores" in said
    assert "Use --search-on other-folds instead" in said
    assert not out.exists()
    for weights in ("search", "stack"):
        call("fuse", *folders, "--weights", weights, "--search-on", "other-folds", "--out", out, "--overwrite")
        assert config_of(out)["searched_on"] == "other-folds"
        assert config_of(out)["validation_scores_were_searched_on"] is False
        assert not (out / "fusion_curve.csv").exists()
    call("fuse", *folders, "--weights", "1,2,3", "--out", out, "--overwrite")


def test_stacking_writes_its_coefficients_and_replaces_what_lay_there(tmp_path: Path, folders: list[Path]) -> None:
    out = tmp_path / "fused"
    call("fuse", *folders[:2], "--weights", "search", "--out", out)
    call("fuse", *folders[:2], "--weights", "stack", "--space", "log", "--out", out, "--overwrite")
    assert [path.name for path in out.glob("fusion_*")] == ["fusion_coefficients.csv"]
    rows = rows_of(out / "fusion_coefficients.csv")
    assert len(rows) == 3 * 4 * (1 + 2 * 4)
    assert {row["run"] for row in rows} == {"", "speech", "text"}
    assert config_of(out)["method"] == config_of(out)["weights"] == "stack"
    assert config_of(out)["validation_scores_were_searched_on"] is True
    call("fuse", *folders[:2], "--weights", "1,1", "--out", out, "--overwrite")
    assert not list(out.glob("fusion_*"))


def test_a_class_that_could_not_be_learned_is_told(tmp_path: Path) -> None:
    [run] = make_runs(21, (1.0,))
    held = run.validation_scores
    rows = [row for row, label in enumerate(held.labels) if (held.folds[row], label) != ("2", "sad")]
    columns = ([column[row] for row in rows] for column in (held.ids, held.folds, held.labels))
    write_run(tmp_path / "a", run.scores, type(held)(*columns, held.classes, held.probabilities[rows]))
    result = runner.invoke(app, ["fuse", str(tmp_path / "a"), "--weights", "stack", "--out", str(tmp_path / "f")])
    assert "fold 2: sad did not occur on validation, and gets probability 0." in result.stderr
    assert config_of(tmp_path / "f")["unseen_classes"] == {"2": ["sad"]}


def test_runs_of_the_same_name_have_columns_of_their_own(tmp_path: Path) -> None:
    runs = make_runs(22)
    for place, run in zip(("a", "b"), runs, strict=True):
        write_run(tmp_path / place / "run", run.scores, run.validation_scores)
    for number, places in enumerate((("a", "b"), ("a", "a"))):
        inputs = [tmp_path / place / "run" for place in places]
        call("fuse", *inputs, "--weights", "search", "--out", tmp_path / str(number))
        [*_, last] = rows_of(tmp_path / str(number) / "fusion_weights.csv")
        assert len([name for name in last if name.startswith("w_")]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "best"], "such as 0.6,1.0, or search, stack or joint; got 'best'"),
        (["--weights", "1", "--search-on", "validation"], "--search-on is for --weights search, stack or joint"),
        (["--weights", "1", "--select-by", "wa"], "--select-by is for --weights search, stack or joint"),
        (["--weights", "search", "--search-on", "test"], "--search-on takes validation or other-folds, got 'test'"),
        (["--weights", "search", "--select-by", "f1"], "--select-by takes ua or wa, got 'f1'"),
        (["--weights", "search", "--space", "logit"], "--space takes prob or log, got 'logit'"),
    ],
)
def test_options_that_do_not_fit_are_answered_in_a_sentence(tmp_path: Path, options: list[str], message: str) -> None:
    assert message in failure("fuse", tmp_path / "gone", *options, "--out", tmp_path / "out")


def test_a_fusion_replaces_nobodys_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, Scores(["u", "v"], ["1", "1"], ["x", "y"], ("x", "y"), np.full((2, 2), 0.5)))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "README.md").write_text("notes")
    with pytest.raises(ConfigError, match=r"holds files that are not of a run \('README.md'\)"):
        fuse.run([tmp_path / "a", tmp_path / "b"], "1,1", mine)
    assert (mine / "README.md").read_text() == "notes"

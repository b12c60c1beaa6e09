"""TensorBoard event files: every number of the run, read back by TensorBoard itself."""

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
from test_predict import refused, tell
from test_report import write_full_run

from featcache.errors import MissingExtraError
from heads.runs import read_run
from pipelines import tensorboard
from pipelines.run_folders import existing_run

pytest.importorskip("tensorboard")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_full_run(tmp_path / "run", folds=("1", "../2", "s ö"))


def load(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = load(folder)
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_curves_and_test_metrics_of_each_fold_are_there(run: Path) -> None:
    output, _ = tell("tensorboard", run)
    assert output == f"Wrote: {run / 'tensorboard'}\n"
    found = read_run(run)
    assert sorted(path.name for path in (run / "tensorboard").iterdir()) == [
        "fold-..%2F2", "fold-1", "fold-s%20%C3%B6", "run",
    ]  # fmt: skip
    rows = list(csv.DictReader((run / "curves.csv").read_text().splitlines()))
    names = {"1": "fold-1", "../2": "fold-..%2F2", "s ö": "fold-s%20%C3%B6"}
    for measured in found.metrics["folds"]:
        values = scalars(run / "tensorboard" / names[measured["fold"]])
        own = [row for row in rows if row["fold"] == measured["fold"]]
        assert own
        assert values["train/loss"] == [(int(row["step"]), pytest.approx(float(row["loss"]))) for row in own]
        assert values["validation/ua"] == [(int(row["step"]), pytest.approx(float(row["ua"]))) for row in own]
        assert values["test/ua"] == [(20, pytest.approx(measured["ua"]))]
        assert values["test/weighted_f1"] == [(20, pytest.approx(measured["weighted_f1"]))]
    assert scalars(run / "tensorboard" / "run")["test/wa"] == [(0, pytest.approx(found.metrics["mean"]["wa"]))]


def test_settings_are_there_for_the_table_of_hyperparameters(run: Path) -> None:
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    tensorboard.run(run)
    content = load(run / "tensorboard" / "run").summary_metadata[metadata.SESSION_START_INFO_TAG]
    started = plugin_data_pb2.HParamsPluginData.FromString(content.plugin_data.content).session_start_info
    settings = {name: value.string_value or value.number_value for name, value in started.hparams.items()}
    assert settings["head"] == "linear_probe"
    assert settings["fit.steps"] == 20
    assert settings["folds"] == "speaker"


def test_the_same_run_gives_the_same_bytes_and_replaces_the_earlier_ones(run: Path, tmp_path: Path) -> None:
    first = tensorboard.run(run)
    before = {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    tensorboard.run(run, tmp_path / "other")
    again = tensorboard.run(run)
    for folder in (again, tmp_path / "other"):
        assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert not list(run.glob(".tmp-*"))


def test_several_runs_lie_in_one_folder(run: Path, tmp_path: Path) -> None:
    second = write_full_run(tmp_path / "second")
    tell("tensorboard", run, second, "--out", tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["run", "second"]


def test_a_run_without_curves_has_its_metrics(run: Path) -> None:
    (run / "curves.csv").unlink()
    tensorboard.run(run)
    assert set(scalars(run / "tensorboard" / "fold-1")) == {f"test/{name}" for name in tensorboard._METRICS}


def test_other_files_are_left_alone(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "all" / "run"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("x")
    assert "holds other files" in str(refused("tensorboard", run, "--out", tmp_path / "all"))
    assert (mine / "notes.txt").exists()


@pytest.mark.parametrize("row", ["1,x,0.5,0.5", "1,nan,0.5,0.5", "1,,0.5,0.5"])
def test_a_damaged_curve_is_told(run: Path, row: str) -> None:
    with (run / "curves.csv").open("a") as file:
        file.write(row + "\n")
    assert "curves.csv' is damaged" in str(refused("tensorboard", run))
    assert not (run / "tensorboard").exists()


def test_without_the_package_the_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    error = refused("tensorboard", run)
    assert isinstance(error, MissingExtraError)
    assert "featcache[tensorboard]" in str(error)


def test_they_are_no_strange_files_in_a_run_folder(run: Path) -> None:
    tensorboard.run(run)
    (run / "scores.csv").unlink()
    (run / "metrics.json").unlink()
    assert existing_run(run, "", overwrite=False) is None

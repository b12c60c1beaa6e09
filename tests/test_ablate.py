"""Ablations that run: side by side as if alone, what is done not again, what fails told, a table of results."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import Result
from pyarrow import parquet
from safetensors.numpy import load_file
from speech_task import make_task
from typer.testing import CliRunner

import featcache
from featcache import Manifest, Utterance, claims
from featcache.errors import ConfigError, FeatcacheError
from heads.runs import read_run
from pipelines import ablate as ablate_pipeline
from pipelines import train_heads
from pipelines.ablate_plan import Plan, make_plan, write_down
from pipelines.ablate_results import standings
from pipelines.ablate_spec import read_ablation
from pipelines.cli_ablate import app
from pipelines.jobs import Job

FIT = {"steps": 20, "eval_every": 5, "batch_size": 8}
SPEC: dict[str, Any] = {
    "base": {"head": "linear_probe", "streams": "toy", "folds": "speaker", "fit": FIT},
    "seeds": [0, 1],
    "grid": {"settings.layer": "every", "fit.learning_rate": [0.1, 0.01], "fit.weight_decay": [0.0]},
    "runs": {"svm": {"head": "svm", "settings.C": [1, 10]}, "pooled": {"head": "mean_pool", "fit.learning_rate": 0.05}},
    "fuse": {"both": {"runs": ["svm", "pooled"], "weights": "search"}},
}
FILES = {"config.yaml", "folds.json", "candidates.csv", "curves.csv", "weights.safetensors", "scores.csv"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a cache and a manifest."""
    folder = tmp_path_factory.mktemp("corpus")
    make_task(folder / "cache", [6 + number % 7 for number in range(36)])
    utterances = [
        Utterance(f"u{number:03d}", label="abc"[number % 3], speaker=f"s{number // 3 % 4}") for number in range(36)
    ]
    Manifest(utterances).write(folder / "manifest.jsonl")
    return folder


def ablate(corpus: Path, out: Path, spec: Any = SPEC, *options: str) -> Result:
    path = out.parent / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    given = [str(path), str(corpus / "manifest.jsonl"), "--cache", str(corpus / "cache"), "--out", str(out)]
    given += [] if "--jobs" in options else ["--jobs", "1"]  # a process takes seconds to start
    given += options
    return CliRunner().invoke(app, given)


def plan_of(corpus: Path, out: Path, spec: Any = SPEC) -> Plan:
    path = out.parent / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    opened = featcache.open(corpus / "cache")
    ablation = read_ablation(str(path), lambda streams: len(opened[streams[0]].spec.layers))
    return make_plan(ablation, Manifest.read(corpus / "manifest.jsonl"), corpus / "cache", out)


def rows(out: Path, without: tuple[str, ...] = ()) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key not in without} for row in csv.DictReader(file)]


def error_of(result: Result) -> str:
    assert isinstance(result.exception, FeatcacheError)
    return str(result.exception)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let jobs run in this process, which a test that is not about processes need not start."""

    def run(todo: Sequence[Job], at_once: int, on_progress: Any, on_message: Any, on_end: Any, keep: bool) -> None:
        for job in todo:
            job.work(on_progress=partial(on_progress, job.name), on_message=partial(on_message, job.name))
            on_end(job.name, None)

    monkeypatch.setattr(ablate_pipeline.jobs, "run", run)


@pytest.fixture(scope="module")
def done(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an ablation that ran."""
    out = tmp_path_factory.mktemp("done") / "out"
    result = ablate(corpus, out, SPEC, "--jobs", "2")
    assert result.exit_code == 0, result.output
    assert "20 runs: 0 there, 20 to train; then 2 fusions." in result.output
    assert "16 runs train side by side in 2 of them" in result.output
    assert f"featcache report {out}" in result.output
    return out


def test_runs_that_trained_side_by_side_are_those_trained_alone(corpus: Path, done: Path, tmp_path: Path) -> None:
    plan, manifest = plan_of(corpus, done), Manifest.read(corpus / "manifest.jsonl")
    for run in plan.ablation.runs:
        alone, together = tmp_path / run.name, done / run.name
        train_heads.run(run.config, manifest, corpus / "cache", alone)
        assert {path.name for path in alone.iterdir()} == {path.name for path in together.iterdir()} >= FILES - {
            "weights.safetensors", "curves.csv"
        }  # fmt: skip
        for name in ("folds.json", "manifest.jsonl"):
            assert (alone / name).read_bytes() == (together / name).read_bytes()
        ours, theirs = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (together, alone))
        for name in ("seconds", "peak_mib"):
            ours.pop(name), theirs.pop(name)
        assert ours == theirs  # the digest and the steps chosen, too
        for name in ("candidates.csv", "curves.csv"):
            assert_alike(together / name, alone / name)
        for one, other in zip(*(read_scores(folder) for folder in (together, alone)), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6, rtol=0)
        if (alone / "weights.safetensors").exists():
            one, other = (load_file(folder / "weights.safetensors") for folder in (together, alone))
            assert one.keys() == other.keys()
            for name, values in one.items():
                np.testing.assert_allclose(values, other[name], atol=1e-5, rtol=1e-5)
        assert train_heads.run(run.config, manifest, corpus / "cache", together).skipped


def read_scores(folder: Path) -> list[np.ndarray]:
    run = read_run(folder)
    assert run.validation_scores is not None
    return [run.scores.probabilities, run.validation_scores.probabilities]


def assert_alike(one: Path, other: Path) -> None:
    """Compare tables: texts by themselves, numbers to rounding."""
    assert one.exists() == other.exists()
    tables = [list(csv.reader(path.read_text().splitlines())) for path in (one, other) if path.exists()]
    for first, second in zip(*tables, strict=True) if tables else ():
        for cell, same in zip(first, second, strict=True):
            assert cell == same or float(cell) == pytest.approx(float(same), abs=1e-5)


def test_results_have_a_row_a_run_and_fold_and_are_the_same_in_both_files(done: Path) -> None:
    table = rows(done)
    assert len(table) == (20 + 2) * 4
    assert list(table[0])[:7] == [
        "run",
        "fold",
        "settings.layer",
        "fit.learning_rate",
        "fit.weight_decay",
        "head",
        "settings.C",
    ]
    assert table[0] | {"fold": "s0", "settings.layer": "0", "fit.learning_rate": "0.1", "seed": "0"} == table[0]
    of_svm = next(row for row in table if row["run"] == "svm,seed=1")
    assert (of_svm["fit.learning_rate"], of_svm["settings.C"], of_svm["seed"]) == ("", "1.0+10.0", "1")
    run = read_run(done / "pooled,seed=1")
    of_pooled = [row for row in table if row["run"] == "pooled,seed=1"]
    assert [float(row["ua"]) for row in of_pooled] == [fold["ua"] for fold in run.metrics["folds"]]
    assert {row["digest"] for row in of_pooled} == {(run.config or {})["digest"]}
    of_parquet = parquet.read_table(done / "results.parquet")
    assert of_parquet.column_names == list(table[0])
    assert str(of_parquet.schema.field("settings.layer").type) == "int64"
    assert str(of_parquet.schema.field("ua").type) == "double"
    as_text = [
        {key: "" if value is None else str(value) for key, value in row.items()} for row in of_parquet.to_pylist()
    ]
    assert as_text == table


def test_what_is_done_is_not_done_again(corpus: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("scores.csv")}
    result = ablate(corpus, out)
    assert result.exit_code == 0, result.output
    assert "20 runs: 20 there, 0 to train" in result.output
    assert {path: path.stat().st_mtime_ns for path in out.rglob("scores.csv")} == before
    for name in ("results.csv", "results.parquet"):
        assert (out / name).read_bytes() == (done / name).read_bytes()
    assert not list(out.glob(".*"))


def test_a_run_is_known_by_its_digest_whatever_its_folder_is_called(corpus: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    renamed = {**SPEC, "runs": {"machine": SPEC["runs"]["svm"]}, "fuse": {}}
    result = ablate(corpus, out, renamed)
    assert result.exit_code == 0, result.output
    assert "18 runs: 18 there, 0 to train" in result.output
    assert "svm,seed=0 is called machine,seed=0 from now on." in result.output
    assert "has runs that are not of this ablation: both,seed=0, both,seed=1, pooled,seed=0 and 1 more" in result.output
    assert {row["run"] for row in rows(out)} >= {"machine,seed=0"}
    assert not any(row["run"].startswith("pooled") for row in rows(out))


@pytest.mark.usefixtures("in_process")
def test_what_is_new_joins_what_is_there(corpus: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    more = {**SPEC, "grid": {**SPEC["grid"], "fit.learning_rate": [0.1, 0.01, 0.001]}, "seeds": [0]}
    result = ablate(corpus, out, more, "--dry-run")
    assert "14 runs: 10 there, 4 to train; then 1 fusions." in result.output
    assert "Time: about" in result.output
    assert rows(out) == rows(done)
    assert ablate(corpus, out, more).exit_code == 0
    assert len(rows(out)) == (14 + 1) * 4


def test_a_dry_run_shows_the_plan_and_writes_nothing(corpus: Path, tmp_path: Path) -> None:
    result = ablate(corpus, tmp_path / "out", SPEC, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "layer=3,learning_rate=0.01,weight_decay=0,seed=1" in result.output
    assert re.search(
        r"Time: about \d+ s, by a trial of a few steps, for 18 runs; unknown for 2 others\. Disk: about", result.output
    )
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_run_or_fail_are_told_and_the_others_done(corpus: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "corpus"
    shutil.copytree(corpus, damaged)
    for path in (damaged / "cache").glob("log_mel-*/part-*/frames/c/**/*"):
        if path.is_file():
            path.write_bytes(b"")
    spec = {
        "base": {"head": "linear_probe", "folds": "speaker", "fit": FIT},
        "grid": {"streams": ["toy", "nowhere"], "settings.layer": [0, 9]},
        "runs": {"broken": {"head": "mean_pool", "streams": "log_mel"}},
        "fuse": {"both": {"runs": ["broken", "streams=toy,layer=0"]}},
    }
    result = ablate(damaged, tmp_path / "out", spec)
    assert result.exit_code == 3, result.output
    assert "Cannot run: streams=toy,layer=9: There is no layer for linear_probe '9'." in result.output
    assert "Cannot run: streams=nowhere,layer=0, streams=nowhere,layer=9: There is no stream" in result.output
    assert "broken failed: " in result.output
    assert "both failed: broken failed." in result.output
    assert {row["run"] for row in rows(tmp_path / "out")} == {"streams=toy,layer=0"}


def test_nothing_that_can_run_is_an_error(corpus: Path, tmp_path: Path) -> None:
    result = ablate(corpus, tmp_path / "out", {"base": {"streams": "nowhere"}})
    assert result.exit_code == 1
    assert "base failed: There is no stream" in result.output


@pytest.mark.usefixtures("in_process")
def test_folds_that_leak_are_let_pass_by_name_alone(corpus: Path, tmp_path: Path) -> None:
    spec = {"base": {"head": "svm", "streams": "toy", "folds": str(tmp_path / "folds.json")}}
    ids = [f"u{number:03d}" for number in range(36)]
    parts = {"train": ids[:12], "validation": ids[12:24], "test": ids[24:]}
    (tmp_path / "folds.json").write_text(json.dumps({"folds": {"one": parts}}))
    refused = ablate(corpus, tmp_path / "out", spec)
    assert refused.exit_code == 1, refused.output
    assert "speaker" in refused.output
    allowed = ablate(corpus, tmp_path / "out", spec, "--allow", "speaker")
    assert allowed.exit_code == 0, allowed.output
    assert (read_run(tmp_path / "out" / "base").config or {})["allowed_leaks"]


@pytest.mark.usefixtures("in_process")
def test_other_runs_in_the_folder_are_refused_or_replaced(corpus: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(done, out)
    changed = {**SPEC, "base": {**SPEC["base"], "validation": 0.3}}
    assert "Other runs lie in" in error_of(ablate(corpus, out, changed))
    assert rows(out) == rows(done)
    small = {**changed, "grid": {"settings.layer": [2]}, "runs": {"svm": {"head": "svm"}}, "seeds": [0], "fuse": {}}
    result = ablate(corpus, out, small, "--overwrite")
    assert result.exit_code == 0, result.output
    assert (read_run(out / "svm,seed=0").config or {})["validation"] == 0.3
    (tmp_path / "file").write_text("")
    assert "is a file" in error_of(ablate(corpus, tmp_path / "file", small))


def test_a_second_ablation_in_the_same_folder_is_kept_out(corpus: Path, tmp_path: Path) -> None:
    claim = claims.take(tmp_path / "out", ".ablate")
    assert claim is not None
    try:
        assert "Another featcache ablate is at work in" in error_of(ablate(corpus, tmp_path / "out"))
    finally:
        claim.release()
    assert not (tmp_path / "out" / "results.csv").exists()


def test_a_job_that_was_begun_goes_on_with_the_same_runs(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plan = plan_of(corpus, out)
    batch = next(batch for batch in plan.batches if len(batch.runs) > 1)
    write_down(plan)
    first = batch.runs[0]  # a kill between the folders of two runs
    train_heads.run(
        plan.prepared[first].config, Manifest.read(corpus / "manifest.jsonl"), corpus / "cache", out / first
    )
    again = plan_of(corpus, out)
    assert again.done == {first}
    assert batch in again.batches
    assert first not in again.todo
    smaller = plan_of(corpus, out, {**SPEC, "grid": {**SPEC["grid"], "settings.layer": [0, 1]}})
    assert batch not in smaller.batches
    assert all(first not in one.runs for one in smaller.batches)
    write_down(smaller)
    assert not batch.unfinished.exists()


def test_many_runs_are_several_jobs(corpus: Path, tmp_path: Path) -> None:
    grid = {"settings.layer": "every", "fit.learning_rate": [10.0**-power for power in range(10)]}
    plan = plan_of(corpus, tmp_path / "out", {**SPEC, "grid": grid, "runs": {}, "fuse": {}, "seeds": [0]})
    assert [len(batch.runs) for batch in plan.batches] == [20, 20]


def test_runs_are_ordered_by_validation_and_never_by_test() -> None:
    table = [
        {"run": run, "validation_ua": validation, "ua": test, "wa": test}
        for run, validation, test in [
            ("a,seed=0", 0.5, 1.0), ("a,seed=1", 0.7, 0.8), ("b,seed=0", 0.9, 0.1), ("c,seed=0", None, 1.0),
        ]
    ]  # fmt: skip
    found = standings(table, lambda name: name.partition(",")[0])
    assert [(one.label, one.validation, one.test, one.num) for one in found] == [
        ("b", 0.9, 0.1, 1), ("a", pytest.approx(0.6), 0.9, 2), ("c", None, 1.0, 1),
    ]  # fmt: skip
    assert (found[0].std, found[1].std) == (None, pytest.approx(0.2 / 2**0.5))


def test_a_setting_that_nobody_reads_is_refused_before_anything_runs(corpus: Path, tmp_path: Path) -> None:
    result = ablate(corpus, tmp_path / "out", {**SPEC, "grid": {"settings.layr": [1]}})
    assert "Did you mean 'layer'?" in error_of(result)
    assert isinstance(result.exception, ConfigError)
    assert not (tmp_path / "out").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("seed", range(2))
def test_an_ablation_that_was_killed_ends_as_if_it_had_not_been(
    corpus: Path, done: Path, tmp_path: Path, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    out, path = tmp_path / "out", tmp_path / "out.yaml"
    path.write_text(yaml.safe_dump(SPEC, sort_keys=False))
    command = [
        sys.executable, "-c", "from pipelines.cli_ablate import app; app()", str(path), str(corpus / "manifest.jsonl"),
        "--cache", str(corpus / "cache"), "--out", str(out),
    ]  # fmt: skip
    kills = 0
    for kill_at in sorted(generator.integers(0, 20, 3).tolist()):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and len(list(out.glob("*/scores.csv"))) < kill_at and time.monotonic() < deadline:
            time.sleep(0.001)
        kills += process.poll() is None
        process.kill()
        process.wait()
    assert kills
    assert ablate(corpus, out).exit_code == 0
    assert rows(out, ("seconds",)) == rows(done, ("seconds",))
    assert not list(out.glob(".*"))


def test_a_run_that_diverges_costs_none_of_those_that_train_with_it(corpus: Path, tmp_path: Path) -> None:
    base = {"head": "linear_probe", "streams": "toy", "folds": "speaker", "fit": {"steps": 8, "eval_every": 4}}
    spec = {"base": base, "grid": {"fit.learning_rate": [0.01, 1e38, 0.001]}}
    out = tmp_path / "out"
    for trained in (True, False):  # the second time, the others are there
        result = ablate(corpus, out, spec)
        assert result.exit_code == 3, result.output
        assert "learning_rate=1e+38 failed: " in result.output
        assert {path.parent.name for path in out.glob("*/scores.csv")} == {"learning_rate=0.01", "learning_rate=0.001"}
        assert {row["run"] for row in rows(out)} == {"learning_rate=0.01", "learning_rate=0.001"}, trained


def test_settings_that_no_head_can_have_refuse_their_runs_or_the_spec_in_a_sentence(
    corpus: Path, tmp_path: Path
) -> None:
    base = {"head": "layer_mix", "streams": "toy", "folds": "speaker"}
    result = ablate(corpus, tmp_path / "a", {"base": base, "grid": {"settings.projector_dim": [8, -1]}})
    assert "projector_dim must be at least 1, got -1." in error_of(result)
    result = ablate(corpus, tmp_path / "b", {"base": {"head": "linear_probe"}, "grid": {"settings.layer": "every"}})
    assert "Say which one, with streams." in error_of(result)


def test_results_that_say_nothing_of_people_say_so_in_every_row(corpus: Path, tmp_path: Path, in_process: None) -> None:
    spoken = [replace(one, extra={**one.extra, "synthetic": True}) for one in Manifest.read(corpus / "manifest.jsonl")]
    Manifest(spoken, corpus).write(tmp_path / "manifest.jsonl")
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({"base": SPEC["base"]}))
    out = tmp_path / "out"
    given = [str(path), str(tmp_path / "manifest.jsonl"), "--cache", str(corpus / "cache"), "--out", str(out)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert "Synthetic speech: these numbers say nothing of human speech." in result.output
    assert {(row["synthetic"], row["random_weights"]) for row in rows(out)} == {("True", "False")}

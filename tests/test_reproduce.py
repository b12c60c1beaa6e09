"""A paper reproduced: every row run once, what is lacking refused before anything trains, what failed told in place."""

import csv
import pickle
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import speech_task
import yaml
from speech_task import make_task
from test_report import HOSTILE
from typer.testing import CliRunner

from featcache import Manifest, Utterance
from featcache.commit import StreamWriter
from featcache.errors import CacheError, ConfigError, FeatcacheError, ProtocolError, UnknownNameError
from heads.runs import read_run
from pipelines import codes, jobs, prepare, probe, reproduce, train_heads
from pipelines.cli import app
from pipelines.config import recorded_config
from pipelines.jobs import Job
from pipelines.paper import Paper, read_paper
from pipelines.reporting.differences import differences
from pipelines.reproduce import Reproduced
from pipelines.reproduce_plan import Plan, make_plan
from pipelines.reproduce_rows import Options
from pipelines.reproduce_show import describe

LENGTHS = [6 + number % 7 for number in range(24)]
THERE = "there (inputs not compared)"
DEMO = Options(demo=True, jobs=2)

SPEECH: dict[str, Any] = {
    "extract": {"streams": {"toy": {}, "log_mel": {}, "speaker": {}, "phones": {}}},
    "train": {
        "head": "encoder_decoder",
        "streams": ["toy", "log_mel", "speaker", "phones"],
        "settings": {
            "window": 8, "bottleneck": 4, "factor": 4, "channels": 12, "phone_channels": 8, "phone_dim": 3,
            "decoder_channels": 8, "decoder_dim": 6, "post_net_channels": 8, "classifier_dim": 16,
        },
        "fit": {"steps": 6, "batch_size": 4, "learning_rate": 0.01, "eval_every": 3},
    },
}  # fmt: skip
LIGHT: dict[str, Any] = {
    "extract": {"streams": {"toy": {}}},
    "train": {"head": "mean_pool", "streams": ["toy"], "fit": {"steps": 20, "eval_every": 10, "learning_rate": 0.05}},
}
BIG: dict[str, Any] = {
    "extract": {"streams": {"toy": {"checkpoint": "somebody/large"}}},
    "train": {"head": "mean_pool", "streams": ["toy"], "fit": {"steps": 7000}},
}
PROBE: dict[str, Any] = {
    "train": {
        "head": "mlp_probe", "settings": {"hidden": [8]}, "validation": 0.2,
        "fit": {"steps": 4, "batch_size": 4, "eval_every": 2},
    },
}  # fmt: skip
PAPER: dict[str, Any] = {
    "title": "A small paper",
    "authors": "Ann Author",
    "venue": "A venue",
    "year": 2021,
    "doi": "10.1/2",
    "corpus": {"name": "CORPUS", "utterances": 24, "speakers": 4, "sessions": 2, "classes": ["a", "b", "c"]},
    "metrics": {"UA": "wa", "WA": "ua"},
    "notes": {"phones": "Of another aligner.", "weights": "Given."},
    "runs": {
        "speech": {"preset": "big.yaml", "demo": "speech.yaml", "notes": ["phones"]},
        "light": {"preset": "big.yaml", "demo": "light.yaml"},
        "large": {"preset": "big.yaml"},
    },
    "fusions": {
        "fused": {"runs": ["speech", "light"], "weights": "0.6,1.0", "notes": ["weights"]},
        "searched": {"runs": ["speech", "light"], "weights": "search", "select_by": "wa"},
        "never": {"runs": ["light", "large"], "weights": "0.6,1.0"},
    },
    "probes": {
        "who": {"run": "speech", "target": "speaker", "preset": "probe.yaml", "demo": "probe.yaml"},
        "sex": {"run": "speech", "target": "sex", "preset": "probe.yaml", "demo": "probe.yaml"},
        "phone": {"run": "speech", "target": "phone", "preset": "probe.yaml", "demo": "probe.yaml"},
        "colour": {"run": "speech", "target": "colour", "preset": "probe.yaml", "demo": "probe.yaml"},
    },
    "projection": {"short": "speech"},
    "tables": [
        {
            "name": "Table 1", "title": "One", "metrics": ["UA"], "by_fold": True,
            "rows": [
                {"label": "Speech", "run": "speech", "paper": {"UA": {"folds": [60, 70], "mean": 65, "std": 7.1}}},
                {"label": "Who speaks", "run": "who", "paper": {"UA": {"mean": 12.5}}},
            ],
        },
        {
            "name": "Table 2", "title": "Two", "metrics": ["UA", "WA"],
            "rows": [
                {"label": "Theirs [3]", "cited": True, "paper": {"UA": {"mean": 50.0}}},
                {"label": "Light", "run": "light", "paper": {"UA": {"mean": 61.0}, "WA": {"mean": 62.0}}},
                {"label": "Large", "run": "large", "paper": {"UA": {"mean": 71.0}, "WA": {"mean": 72.0}}},
                {"label": "Fused", "run": "fused", "paper": {"UA": {"mean": 73.0}, "WA": {"mean": 73.5}}},
                {"label": "Searched", "run": "searched"},
                {"label": "Never", "run": "never"},
                {"label": "Sex", "run": "sex"},
                {"label": "Phone", "run": "phone"},
                {"label": "Colour", "run": "colour"},
            ],
        },
    ],
}  # fmt: skip


ONE_ROW: dict[str, Any] = {
    "runs": {"light": {"preset": "light.yaml"}}, "fusions": {}, "probes": {}, "projection": {},
    "tables": [
        {
            "name": "Table 1", "title": "One", "metrics": ["UA"],
            "rows": [{"label": "Light", "run": "light", "paper": {"UA": {"mean": 61.0}}}],
        }
    ],
}  # fmt: skip


def write_paper(folder: Path, **changes: Any) -> Paper:
    folder.mkdir(exist_ok=True)
    for name, preset in {"speech": SPEECH, "light": LIGHT, "big": BIG, "probe": PROBE}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
    path = folder / "small2021.yaml"
    path.write_text(yaml.safe_dump({**PAPER, **changes}, sort_keys=False))
    return read_paper(str(path))


def make_manifest(**changes: Any) -> Manifest:
    return Manifest(
        Utterance(
            f"u{number:03d}",
            label="abc"[number % 3],
            speaker=f"s{number // 3 % 4}",
            session=f"Ses{number // 3 % 4 // 2}",
            extra={"gender": "fm"[number // 3 % 2], **changes},
        )
        for number in range(len(LENGTHS))
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    make_task(folder, LENGTHS)
    return folder


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Paper:
    return write_paper(tmp_path_factory.mktemp("paper"))


def in_this_process(ran: list[str]) -> Callable[..., dict[str, str]]:
    """Return what takes the place of `jobs.run`: work is pickled as it is for a process, and done in this one."""

    def run(
        todo: list[Job], at_once: int, on_progress: Callable[..., None], on_message: Callable[..., None]
    ) -> dict[str, str]:
        failures = {}
        for job in todo:
            ran.append(job.name)
            work = pickle.loads(pickle.dumps(job.work))  # noqa: S301  our own
            try:
                work(
                    on_progress=lambda done, total, name=job.name: on_progress(name, done, total),
                    on_message=lambda text, name=job.name: on_message(name, text),
                )
            except FeatcacheError as error:
                failures[job.name] = str(error)
        return failures

    return run


@pytest.fixture(scope="module")
def finished(cache: Path, paper: Paper, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reproduced, Plan]:
    """The whole paper, in its demo form."""
    plan = make_plan(paper, make_manifest(), cache, tmp_path_factory.mktemp("out") / "out", DEMO)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "run", in_this_process([]))
        return reproduce.run(plan, DEMO), plan


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Jobs run in this process, where parts of them can be replaced; returns the names of those that ran."""
    ran: list[str] = []
    monkeypatch.setattr(jobs, "run", in_this_process(ran))
    return ran


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """No report is drawn, which takes most of the time that pages take."""
    monkeypatch.setattr("pipelines.report.run", lambda *_: None)


@pytest.fixture
def trained(finished: tuple[Reproduced, Plan], tmp_path: Path) -> Path:
    """A copy of the folder of the finished paper."""
    shutil.copytree(finished[1].out, tmp_path / "out")
    return tmp_path / "out"


def rows_of(out: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """Return the lines of tables.csv by row, metric and fold."""
    with (out / "tables.csv").open(newline="") as file:
        return {(row["row"], row["metric"], row["fold"]): row for row in csv.DictReader(file)}


def test_every_row_that_can_be_run_is_run(finished: tuple[Reproduced, Plan]) -> None:
    done, plan = finished
    assert not done.failures
    assert list(done.runs) == ["speech", "light", "who", "sex", "phone", "fused", "searched"]
    for name in ("tables.md", "tables.csv", "tables.html", "report.html", "projection.svg"):
        assert (plan.out / name).is_file(), name


def test_numbers_are_those_of_the_runs_under_the_right_names(finished: tuple[Reproduced, Plan]) -> None:
    done, plan = finished
    rows = rows_of(plan.out)
    for label, key in {"Light": "light", "Fused": "fused", "Sex": "sex"}.items():
        metrics = read_run(plan.out / key).metrics
        for metric, name in (("accuracy", "wa"), ("mean recall", "ua")):
            row = rows[label, metric, "mean"]
            assert float(row["here_percent"]) == pytest.approx(100 * metrics["mean"][name], abs=1e-3)
            assert row["name_here"] == name.upper()
            assert row["name_in_paper"] == {"wa": "UA", "ua": "WA"}[name]
    assert rows["Light", "accuracy", "mean"]["paper_percent"] == "61"
    assert rows["Light", "mean recall", "mean"]["paper_percent"] == "62"
    folds = read_run(plan.out / "speech").metrics["folds"]
    assert [float(rows["Speech", "accuracy", str(n + 1)]["here_percent"]) for n in range(2)] == pytest.approx(
        [100 * fold["wa"] for fold in folds], abs=1e-3
    )
    assert done.document.tables[0].fold_names == ["Ses0", "Ses1"]


def test_a_fusion_is_the_weighted_sum_of_its_runs(finished: tuple[Reproduced, Plan]) -> None:
    out = finished[1].out
    speech, light, fused = (read_run(out / key).scores for key in ("speech", "light", "fused"))
    assert speech.ids == light.ids == fused.ids
    expected = (0.6 * speech.probabilities + 1.0 * light.probabilities) / 1.6
    assert np.allclose(fused.probabilities, expected, atol=1e-6)
    assert (read_run(out / "searched").config or {})["selected_by"] == "wa"


def test_what_has_no_demo_form_says_so_in_its_row_and_in_rows_made_of_it(finished: tuple[Reproduced, Plan]) -> None:
    rows = rows_of(finished[1].out)
    assert "not run: needs somebody/large, no demo form" in rows["Large", "accuracy", "mean"]["note"]
    assert rows["Large", "accuracy", "mean"]["here_percent"] == ""
    assert rows["Large", "accuracy", "mean"]["paper_percent"] == "71"
    assert "not run: large is left out" in rows["Never", "accuracy", "mean"]["note"]
    assert "not run: no utterance has the column colour" in rows["Colour", "accuracy", "mean"]["note"]
    assert rows["Theirs [3]", "accuracy", "mean"]["note"] == "cited by the paper"


def test_a_probe_stands_beside_the_commonest_class(finished: tuple[Reproduced, Plan]) -> None:
    config = read_run(finished[1].out / "who").config or {}
    share = 100 * sum(config["majority"].values()) / len(config["majority"])
    assert (
        f"always the commonest class: {share:.1f} % accuracy"
        in rows_of(finished[1].out)["Who speaks", "accuracy", "mean"]["note"]
    )


def test_what_was_run_says_in_what_it_differs_from_the_papers_preset(finished: tuple[Reproduced, Plan]) -> None:
    runs = {row[0]: row for row in finished[0].document.runs.rows}
    told = runs["light"][-1]
    assert "steps 20 (7,000)" in told
    assert "learning_rate 0.05 (0.001)" in told
    assert "checkpoint of toy unset (somebody/large)" in told
    assert "validation" not in told
    assert "log_mel and speaker and phones in place of none" in runs["speech"][-1]
    assert runs["light"][4].startswith("toy-")
    assert runs["fused"][4] == "speech × 0.6 + light × 1"
    assert runs["searched"][4].count("|") == 2
    assert any("2 of 2 trainings are not in the paper's form" in banner for banner in finished[0].document.banners)


def test_the_facts_come_from_the_manifest(finished: tuple[Reproduced, Plan], cache: Path, paper: Paper) -> None:
    facts = dict(finished[0].document.facts)
    counted = "24 utterances, 4 speakers, 2 sessions, 3 classes (a 8, b 8, c 8)"
    assert facts["Corpus, here"] == f"{counted}; the paper's counts"
    assert "session (leave one session out), 2 folds; speaker-independent; validation: 0.2" in facts["Folds, here"]
    assert not any("Not the paper's corpus" in banner for banner in finished[0].document.banners)


@pytest.mark.usefixtures("no_report")
def test_synthetic_speech_and_another_corpus_have_a_banner(cache: Path, trained: Path, here: list[str]) -> None:
    corpus = {**PAPER["corpus"], "utterances": 5531}
    plan = make_plan(write_paper(trained.parent, corpus=corpus, projection={}), make_manifest(), cache, trained, DEMO)
    banners = reproduce.run(plan, DEMO).document.banners
    assert "Not the paper's corpus (CORPUS)" in banners[0]
    plan = replace(plan, manifest=make_manifest(synthetic=True))
    for page in ("tables.md", "tables.html"):
        assert "say nothing of human speech" not in (trained / page).read_text()
    assert "say nothing of human speech" in reproduce.run(plan, DEMO).document.banners[0]
    for page in ("tables.md", "tables.html"):
        assert "say nothing of human speech" in (trained / page).read_text()


def test_the_same_command_again_trains_nothing_and_writes_the_same_bytes(
    finished: tuple[Reproduced, Plan], cache: Path, trained: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(finished[1].paper, make_manifest(), cache, trained, DEMO)
    assert {training.state for training in plan.trainings.values()} == {"done"}

    def never(*_: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(prepare, "make_task", never)
    monkeypatch.setattr(probe, "_train", never)
    reproduce.run(plan, DEMO)
    assert here == ["speech", "light", "speech", "who", "sex", "phone"]
    for name in ("tables.md", "tables.csv", "tables.html", "report.html", "projection.svg", "speech/config.yaml"):
        assert (trained / name).read_bytes() == (finished[1].out / name).read_bytes(), name


@pytest.mark.usefixtures("no_report")
def test_what_was_lost_is_run_again_and_nothing_else(
    finished: tuple[Reproduced, Plan], cache: Path, trained: Path, here: list[str]
) -> None:
    shutil.rmtree(trained / "light")
    plan = make_plan(finished[1].paper, make_manifest(), cache, trained, DEMO)
    assert {key: training.state for key, training in plan.trainings.items()} == {"speech": "done", "light": "to do"}
    before = (trained / "speech" / "scores.csv").stat().st_mtime_ns
    reproduce.run(plan, DEMO)
    assert (trained / "speech" / "scores.csv").stat().st_mtime_ns == before
    assert (trained / "light" / "scores.csv").read_bytes() == (finished[1].out / "light/scores.csv").read_bytes()


@pytest.mark.usefixtures("no_report")
def test_another_run_in_the_folder_is_refused_at_the_start_and_replaced_where_asked(
    finished: tuple[Reproduced, Plan], cache: Path, trained: Path, here: list[str]
) -> None:
    changed = replace(DEMO, settings=("fit.steps=4",))
    with pytest.raises(
        ConfigError, match=r"Other runs lie in .*out': speech, light\. Of speech: .*steps 4 \(6\).*--overwrite"
    ):
        make_plan(finished[1].paper, make_manifest(), cache, trained, changed)
    changed = replace(changed, overwrite=True)
    done = reproduce.run(make_plan(finished[1].paper, make_manifest(), cache, trained, changed), changed)
    assert not done.failures
    assert recorded_config(read_run(trained / "speech").config or {}).fit.steps == 4
    again = make_plan(finished[1].paper, make_manifest(), cache, trained, changed)
    assert {training.state for training in again.trainings.values()} == {"done"}


def other_target(trained: Path) -> Paper:
    return write_paper(trained.parent, probes={**PAPER["probes"], "who": {**PAPER["probes"]["who"], "target": "sex"}})


def other_run(trained: Path) -> Paper:
    runs = {**PAPER["runs"], "again": PAPER["runs"]["speech"]}
    return write_paper(
        trained.parent, runs=runs, probes={**PAPER["probes"], "phone": {**PAPER["probes"]["phone"], "run": "again"}}
    )


def other_steps(trained: Path) -> Paper:
    paper = write_paper(trained.parent)
    fit = {**PROBE["train"]["fit"], "steps": 5}
    (paper.folder / "probe.yaml").write_text(yaml.safe_dump({"train": {**PROBE["train"], "fit": fit}}))
    return paper


def other_fusion(trained: Path) -> Paper:
    shutil.rmtree(trained / "fused")
    shutil.copytree(trained / "light", trained / "fused")
    return write_paper(trained.parent)


def other_files(trained: Path) -> Paper:
    shutil.rmtree(trained / "sex")
    (trained / "sex").mkdir()
    (trained / "sex" / "thesis.tex").touch()
    return write_paper(trained.parent)


def a_file(trained: Path) -> Paper:
    shutil.rmtree(trained / "fused")
    (trained / "fused").touch()
    return write_paper(trained.parent)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_target, r"out': who\. Of who: it differs in target sex \(speaker\)\..*--overwrite"),
        (other_run, r"out': phone\. Of phone: it differs in of run again \(speech\)\. "),
        (other_steps, r"out': who, sex, phone\. Of who: it differs in steps 5 \(4\)\. "),
        (other_fusion, r"out': fused\. Of fused: it differs in head fusion \(mean_pool\)\. "),
        (other_files, "holds files that are not of a run \\('thesis.tex'\\)"),
        (a_file, "fused' is a file"),
    ],
)
def test_folders_of_probes_and_fusions_that_hold_something_else_are_refused_at_the_start(
    cache: Path, trained: Path, change: Callable[[Path], Paper], words: str
) -> None:
    paper = change(trained)
    with pytest.raises(ConfigError, match=words):
        make_plan(paper, make_manifest(), cache, trained, DEMO)


@pytest.mark.parametrize("change", [other_target, other_steps, other_fusion])
def test_other_probes_and_fusions_do_not_stop_a_plan_that_replaces_them(
    cache: Path, trained: Path, change: Callable[[Path], Paper]
) -> None:
    options = replace(DEMO, overwrite=True)
    plan = make_plan(change(trained), make_manifest(), cache, trained, options)
    assert "another run" in describe(plan)


@pytest.fixture
def lacking(cache: Path, tmp_path: Path) -> Path:
    """The cache without phones, which speech reads and light does not."""
    folder = tmp_path / "lacking"
    shutil.copytree(cache, folder)
    [phones] = folder.glob("phones-*")
    shutil.rmtree(phones)
    return folder


def test_a_lacking_stream_is_refused_before_anything_trains(
    paper: Paper, lacking: Path, tmp_path: Path, here: list[str]
) -> None:
    plan = make_plan(paper, make_manifest(), lacking, tmp_path / "out", DEMO)
    with pytest.raises(
        CacheError,
        match=r"(?s)1 of the 3 .*speech: .*no phones.*featcache extract.*--preset speech.yaml.*--skip-m",
    ):
        reproduce.run(plan, DEMO)
    assert here == []
    assert not (tmp_path / "out").exists()


def test_rows_that_lack_a_stream_can_be_left_out(paper: Paper, lacking: Path, tmp_path: Path, here: list[str]) -> None:
    options = replace(DEMO, skip_missing=True)
    done = reproduce.run(make_plan(paper, make_manifest(), lacking, tmp_path / "out", options), options)
    assert list(done.runs) == ["light"]
    assert here == ["light"]
    assert not done.failures
    rows = rows_of(tmp_path / "out")
    assert "not run: The cache" in rows["Speech", "accuracy", "mean"]["note"]
    assert "not run: speech is left out" in rows["Fused", "accuracy", "mean"]["note"]
    assert rows["Light", "accuracy", "mean"]["here_percent"]


@pytest.mark.usefixtures("no_report")
def test_utterances_that_a_stream_lacks_are_refused_or_left_out_of_every_row(
    paper: Paper, cache: Path, tmp_path: Path, here: list[str]
) -> None:
    more = Manifest([*make_manifest(), replace(make_manifest()[0], id="v999")])
    plan = make_plan(paper, more, cache, tmp_path / "out", DEMO)
    with pytest.raises(
        CacheError, match=r"lacks 1 of 25 utterances, such as 'v999' \(never extracted\).*--missing drop"
    ):
        reproduce.run(plan, DEMO)
    options = replace(DEMO, missing="drop")
    plan = make_plan(paper, more, cache, tmp_path / "out", options)
    assert (plan.num_dropped, len(plan.manifest)) == (1, 24)
    done = reproduce.run(plan, options)
    assert dict(done.document.facts)["Left out"].startswith("1 utterances of every row")
    assert len(set(done.runs["light"].scores.ids)) == 24


def test_what_is_left_out_of_every_row_takes_its_copies_along(paper: Paper, cache: Path, tmp_path: Path) -> None:
    rows = list(make_manifest())
    rows[0] = replace(rows[0], extra={**rows[0].extra, "version_of": "v999"})  # the cache has the copy alone
    more = Manifest([*rows, replace(make_manifest()[0], id="v999")])
    plan = make_plan(paper, more, cache, tmp_path / "out", replace(DEMO, missing="drop"))
    assert plan.num_dropped == 2
    assert set(plan.manifest.ids) == set(make_manifest().ids) - {"u000"}


def test_utterances_that_a_stream_holds_and_then_failed_on_are_lacking(
    cache: Path, tmp_path: Path, here: list[str]
) -> None:
    shutil.copytree(cache, tmp_path / "cache")
    with StreamWriter(tmp_path / "cache", speech_task.SPECS["toy"], "zarr", "frames") as writer:
        writer.commit([], {"u003": "It is silent now."}, {"u003": 1})
    paper = write_paper(tmp_path / "paper", **ONE_ROW)
    plan = make_plan(paper, make_manifest(), tmp_path / "cache", tmp_path / "out", Options())
    assert "lacks 1 of 24 utterances, such as 'u003' (It is silent now.)" in next(iter(plan.missing))
    options = Options(missing="drop")
    plan = make_plan(paper, make_manifest(), tmp_path / "cache", tmp_path / "out", options)
    assert plan.num_dropped == 1
    done = reproduce.run(plan, options)
    assert not done.failures
    assert set(make_manifest().ids) - set(done.runs["light"].scores.ids) == {"u003"}


def test_utterances_without_a_label_are_refused_or_left_out_of_every_row(
    cache: Path, tmp_path: Path, here: list[str]
) -> None:
    *others, last = make_manifest()
    # The second is in no stream, which matters as little as its label.
    manifest = Manifest([*others, replace(last, label=None), replace(last, id="v999", label=None)])
    paper = write_paper(tmp_path / "paper", **ONE_ROW)
    with pytest.raises(
        ProtocolError, match=r"1 of 24 .* no label, such as 'u023', .* every row with --drop-unlabelled"
    ):
        make_plan(paper, Manifest(manifest[:24]), cache, tmp_path / "out", Options())
    manifest.write(tmp_path / "m.jsonl")
    given = (paper.folder / "small2021.yaml", tmp_path / "m.jsonl", "--cache", cache, "--out", tmp_path / "out")
    planned = call(*given, "--drop-unlabelled", "--dry-run")
    assert "2 utterances are left out of every row: they have no label." in planned.stdout
    assert "\n23 utterances.\n" in planned.stdout
    done = call(*given, "--drop-unlabelled")
    assert done.exit_code == 0, done.output
    assert set(read_run(tmp_path / "out" / "light").scores.ids) == {one.id for one in others}
    assert "Without a label: 2 utterances, left out of every row" in (tmp_path / "out" / "tables.md").read_text()
    assert rows_of(tmp_path / "out")["Light", "accuracy", "mean"]["note"] == ""


@pytest.mark.usefixtures("no_report")
def test_a_failing_training_costs_its_own_rows_alone(
    paper: Paper, cache: Path, tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = train_heads.run

    def fail(config: Any, *arguments: Any) -> Any:
        if config.head == "encoder_decoder":
            raise ProtocolError("The weights <b>diverged</b>.")
        return train(config, *arguments)

    monkeypatch.setattr(train_heads, "run", fail)
    done = reproduce.run(make_plan(paper, make_manifest(), cache, tmp_path / "out", DEMO), DEMO)
    assert done.failures == {"speech": "The weights <b>diverged</b>."}
    assert list(done.runs) == ["light"]
    rows = rows_of(tmp_path / "out")
    assert "failed: The weights <b>diverged</b>." in rows["Speech", "accuracy", "mean"]["note"]
    assert "not run: speech failed" in rows["Fused", "accuracy", "mean"]["note"]
    assert "not run: speech failed" in rows["Who speaks", "accuracy", "mean"]["note"]
    assert rows["Light", "accuracy", "mean"]["here_percent"]
    assert "&lt;b&gt;diverged" in (tmp_path / "out" / "tables.html").read_text()
    assert "Failed: speech." in done.document.banners


@pytest.mark.usefixtures("no_report")
def test_failing_codes_cost_the_probes_and_the_picture_alone(
    finished: tuple[Reproduced, Plan], cache: Path, trained: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise CacheError("The disk is full.")

    monkeypatch.setattr(codes, "run", fail)
    done = reproduce.run(make_plan(finished[1].paper, make_manifest(), cache, trained, DEMO), DEMO)
    assert done.failures == dict.fromkeys(["who", "sex", "phone", "projection"], "codes of speech: The disk is full.")
    assert {"speech", "fused"} <= set(done.runs)
    assert done.document.figures == []


@pytest.mark.usefixtures("no_report")
def test_a_failing_fusion_costs_nothing_else(
    finished: tuple[Reproduced, Plan], cache: Path, trained: Path, here: list[str]
) -> None:
    (trained / "speech" / "validation_scores.csv").unlink()
    done = reproduce.run(make_plan(finished[1].paper, make_manifest(), cache, trained, DEMO), DEMO)
    assert set(done.failures) == {"searched"}
    assert "failed: " in rows_of(trained)["Searched", "accuracy", "mean"]["note"]


@pytest.mark.parametrize("error", [ConfigError("No column."), OSError(28, "No space left"), ValueError("No numbers.")])
@pytest.mark.usefixtures("no_report")
def test_a_picture_that_cannot_be_drawn_costs_itself_alone(
    paper: Paper, cache: Path, trained: Path, here: list[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr("pipelines.project.figure", fail)
    (trained / "tables.csv").unlink()
    plan = make_plan(paper, make_manifest(), cache, trained, DEMO)
    done = reproduce.run(plan, DEMO)
    assert done.failures == {"projection": str(error)}
    assert rows_of(trained)["Speech", "accuracy", "mean"]["here_percent"]
    assert not (trained / "projection.svg").exists()
    assert "projection.svg" not in (trained / "tables.html").read_text()
    assert "Failed: projection." in done.document.banners


def test_a_report_and_a_picture_of_an_earlier_state_do_not_stay(
    cache: Path, trained: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left")

    monkeypatch.setattr("pipelines.report.run", fail)
    assert (trained / "report.html").is_file()
    assert (trained / "projection.svg").is_file()
    told: list[str] = []
    paper = write_paper(trained.parent, **ONE_ROW)
    done = reproduce.run(make_plan(paper, make_manifest(), cache, trained, Options()), Options(), told.append)
    assert told == ["There is no report: [Errno 28] No space left"]
    assert not (trained / "report.html").exists()
    assert not (trained / "projection.svg").exists()
    assert list(done.document.links) == ["The numbers as CSV"]


@pytest.mark.usefixtures("no_report")
def test_a_row_that_was_not_run_in_the_papers_form_says_so_beside_its_number(
    finished: tuple[Reproduced, Plan], cache: Path, trained: Path, tmp_path: Path, here: list[str]
) -> None:
    rows = rows_of(finished[1].out)
    assert rows["Light", "accuracy", "mean"]["note"] == "demo form: toy"
    assert rows["Speech", "accuracy", "mean"]["note"] == "demo form: toy, log_mel, speaker, phones"
    for label in ("Fused", "Searched", "Sex"):
        assert "demo form: toy, log_mel, speaker, phones" in rows[label, "accuracy", "mean"]["note"], label
    paper = write_paper(trained.parent, **ONE_ROW)
    done = reproduce.run(make_plan(paper, make_manifest(), cache, trained, Options()), Options())
    assert rows_of(trained)["Light", "accuracy", "mean"]["note"] == ""
    assert not any("paper's form" in banner for banner in done.document.banners)
    options = Options(settings=("fit.steps=3",))
    reproduce.run(make_plan(paper, make_manifest(), cache, tmp_path / "other", options), options)
    assert rows_of(tmp_path / "other")["Light", "accuracy", "mean"]["note"] == (
        "not the paper's form (see What was run)"
    )


@pytest.mark.usefixtures("no_report")
def test_the_picture_has_the_titles_of_the_papers_file(
    paper: Paper, cache: Path, trained: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def look(read: Mapping[str, tuple[Path, Any]], *_: Any) -> Any:
        drawn.extend(f"{title} {folder.name}" for title, (folder, _) in read.items())
        raise ConfigError("Seen.")

    monkeypatch.setattr("pipelines.project.figure", look)
    reproduce.run(make_plan(paper, make_manifest(), cache, trained, DEMO), DEMO)
    assert drawn == ["short speech"]


@pytest.mark.parametrize(
    ("aligner", "told"),
    [("gentle", None), ("pocketsphinx", None), ("mfa", "phones aligned by mfa (pocketsphinx or gentle)")],
)
@pytest.mark.usefixtures("no_report")
def test_the_papers_own_aligner_is_no_difference(
    tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch, aligner: str, told: str | None
) -> None:
    phones = speech_task.SPECS["phones"]
    aligned = replace(phones, settings={**phones.settings, "alignment": {"settings": {"aligner": aligner}}})
    monkeypatch.setitem(speech_task.SPECS, "phones", aligned)
    make_task(tmp_path / "cache", LENGTHS)
    rows = [{"label": "Speech", "run": "speech", "paper": {"UA": {"mean": 61.0}}}]
    changes = {
        **ONE_ROW, "aligner": "gentle", "runs": {"speech": {"preset": "aligned.yaml"}},
        "tables": [{"name": "Table 1", "title": "One", "metrics": ["UA"], "rows": rows}],
    }  # fmt: skip
    streams = {"toy": {}, "log_mel": {}, "speaker": {}, "alignment": {"aligner": "pocketsphinx"}, "phones": {}}
    (tmp_path / "aligned.yaml").write_text(yaml.safe_dump({**SPEECH, "extract": {"streams": streams}}))
    paper = write_paper(tmp_path, **changes)
    plan = make_plan(paper, make_manifest(), tmp_path / "cache", tmp_path / "out", Options())
    [row] = reproduce.run(plan, Options()).document.runs.rows
    assert f"aligned by {aligner}" in row[4]
    assert row[-1] == (told or "nothing")


def test_folds_that_would_leak_are_refused_before_anything_trains(paper: Paper, cache: Path, tmp_path: Path) -> None:
    mixed = Manifest(replace(one, session=f"x{number % 2}") for number, one in enumerate(make_manifest()))
    with pytest.raises(ProtocolError, match="'speaker'"):
        make_plan(paper, mixed, cache, tmp_path / "out", DEMO)
    allowed = make_plan(paper, mixed, cache, tmp_path / "out", replace(DEMO, allow=("speaker",)))
    assert len(allowed.folds["light"]) == 2


def test_other_folds_are_taken_by_every_row(paper: Paper, cache: Path, tmp_path: Path) -> None:
    plan = make_plan(paper, make_manifest(), cache, tmp_path / "out", replace(DEMO, folds="speaker"))
    assert {len(folds) for folds in plan.folds.values()} == {4}
    assert any("folds speaker (session)" in line for line in differences(
        plan.trainings["light"].config, plan.trainings["light"].published
    ))  # fmt: skip


def test_settings_that_do_not_fit_are_refused_before_anything_trains(cache: Path, tmp_path: Path) -> None:
    runs = {**PAPER["runs"], "light": {"preset": "big.yaml", "demo": "light.yaml", "train": {"settings": {"sise": 3}}}}
    paper = write_paper(tmp_path / "paper", runs=runs)
    with pytest.raises(ConfigError, match="has no setting sise"):
        make_plan(paper, make_manifest(), cache, tmp_path / "out", DEMO)


def test_a_run_states_what_differs_from_its_preset(cache: Path, tmp_path: Path) -> None:
    runs = {**PAPER["runs"], "light": {"preset": "big.yaml", "demo": "light.yaml", "train": {"fit": {"seed": 7}}}}
    plan = make_plan(write_paper(tmp_path / "paper", runs=runs), make_manifest(), cache, tmp_path / "out", DEMO)
    fit = plan.trainings["light"].config.fit
    assert (fit.seed, fit.steps) == (7, 20)
    assert not any("seed" in line for line in differences(
        plan.trainings["light"].config, plan.trainings["light"].published
    ))  # fmt: skip


def test_a_stream_can_be_named_for_its_kind(paper: Paper, cache: Path, tmp_path: Path) -> None:
    [toy] = [path.name for path in cache.glob("toy-*")]
    full = make_plan(paper, make_manifest(), cache, tmp_path / "out", Options())
    assert list(full.missing.values()) == [["speech", "light", "large"]]
    named = make_plan(paper, make_manifest(), cache, tmp_path / "out", Options(streams=(toy,)))
    assert not named.missing
    assert named.trainings["large"].config.streams == (toy,)


def test_a_stream_that_no_row_could_read_is_refused(paper: Paper, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UnknownNameError, match=r"no stream in the cache .* for --stream 'toy-00000000'\. Known: .*toy-"
    ):
        make_plan(paper, make_manifest(), cache, tmp_path / "out", replace(DEMO, streams=("toy-00000000",)))
    with pytest.raises(UnknownNameError, match="'toy'"):  # a kind is no full name
        make_plan(paper, make_manifest(), cache, tmp_path / "out", replace(DEMO, streams=("toy",)))
    [mel] = [path.name for path in cache.glob("log_mel-*")]
    light = write_paper(tmp_path / "paper", **ONE_ROW)
    with pytest.raises(ConfigError, match=rf"--stream {mel}: no row reads a stream of that kind\. Rows read: toy\."):
        make_plan(light, make_manifest(), cache, tmp_path / "out", Options(streams=(mel,)))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("streams=[toy]", "Name one with --stream"),
        ("folds=speaker", "with --folds"),
        ("allow=[speaker]", "with --allow"),
        ("missing=drop", "with --missing"),
        ("device=cpu", "with --device"),
        ("label=gender", "the paper's"),
        ("head=linear_svm", "the paper's"),
        ("place=disk", "Leave it out"),
        ("label.x=gender", "the paper's"),
    ],
)
def test_settings_that_are_the_papers_or_an_options_are_refused(
    paper: Paper, cache: Path, tmp_path: Path, setting: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"--set {setting.partition('=')[0].partition('.')[0]} is not for .*{words}"):
        make_plan(paper, make_manifest(), cache, tmp_path / "out", replace(DEMO, settings=("fit.steps=3", setting)))


def test_settings_reach_every_training_and_the_seed_alone_reaches_probes(cache: Path, tmp_path: Path) -> None:
    settings = ("fit.steps=3", "fit.seed=7", "validation=0.3", "validation_by=utterance", "drop_unlabelled=true")
    options = replace(DEMO, settings=settings)
    plan = make_plan(write_paper(tmp_path / "paper"), make_manifest(), cache, tmp_path / "out", options)
    for training in plan.trainings.values():
        assert (training.config.fit.steps, training.config.fit.seed) == (3, 7)
        assert (training.config.validation, training.config.drop_unlabelled) == (0.3, True)
    assert [(one.config.fit.steps, one.config.fit.seed, one.config.validation) for one in plan.probes.values()] == [
        (4, 7, 0.2)
    ] * 3


def test_the_plan_in_words_has_steps_folds_streams_and_what_is_there(
    finished: tuple[Reproduced, Plan], cache: Path, trained: Path
) -> None:
    shutil.rmtree(trained / "speech")
    (trained / "speech" / ".unfinished").mkdir(parents=True)
    text = describe(make_plan(finished[1].paper, make_manifest(), cache, trained, DEMO))
    [light] = [line for line in text.splitlines() if line.startswith("light ")]
    [toy] = [path.name for path in cache.glob("toy-*")]
    assert re.split(r" {2,}", light) == ["light", "light.yaml", "20", "32", "session (2)", THERE, toy]
    [speech] = [line for line in text.splitlines() if line.startswith("speech ")]
    assert re.split(r" {2,}", speech)[5] == "begun"
    assert "large: not run: needs somebody/large, no demo form" in text
    for key in ("who", "sex", "phone", "fused", "searched"):
        [line] = [line for line in text.splitlines() if line.startswith(f"{key} ")]
        assert THERE in line
    assert text.endswith("24 utterances.\nTrainings: 2, 52 steps in all.\nProbes: 3, 24 steps in all.")


def test_hostile_labels_stay_labels(cache: Path, trained: Path, here: list[str]) -> None:
    tables = [{**PAPER["tables"][1], "rows": [{"label": HOSTILE, "run": "light", "paper": {"UA": {"mean": 61.0}}}]}]
    paper = write_paper(
        trained.parent, tables=tables, title=HOSTILE, notes={**PAPER["notes"], "phones": HOSTILE}, projection={}
    )
    reproduce.run(make_plan(paper, make_manifest(), cache, trained, DEMO), DEMO)
    for page in ("tables.html", "report.html"):
        text = (trained / page).read_text()
        assert "<script>alert(1)" not in text
        assert "<img" not in text
    assert "<script" not in (trained / "tables.md").read_text()
    assert "&lt;script&gt;alert(1)" in (trained / "tables.html").read_text()


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


def test_the_command_says_what_it_would_do_does_it_and_tells_failures_by_its_exit_code(
    cache: Path, lacking: Path, tmp_path: Path, here: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_manifest().write(tmp_path / "m.jsonl")
    paper = write_paper(tmp_path / "paper", projection={})
    given = (paper.folder / "small2021.yaml", tmp_path / "m.jsonl", "--out", tmp_path / "out", "--demo")
    planned = call(*given, "--cache", cache, "--dry-run")
    assert (planned.exit_code, here) == (0, [])
    assert "Trainings: 2, 52 steps in all.\nProbes: 3, 24 steps in all." in planned.stdout
    assert call(*given, "--cache", lacking, "--dry-run").exit_code == 3
    assert isinstance(call(*given, "--cache", lacking).exception, CacheError)
    done = call(*given, "--cache", cache)
    assert done.exit_code == 0, done.output
    assert "Table 2: Two" in done.stdout
    assert "cited by the paper" in done.stdout

    def fail(*_: Any, **__: Any) -> Mapping[str, str]:
        raise ProtocolError("It failed.")

    monkeypatch.setattr(probe, "run", fail)
    failed = call(*given, "--cache", cache)
    assert failed.exit_code == 3
    assert "who failed: It failed." in failed.stderr


@pytest.mark.heavy
def test_the_whole_paper_in_processes_is_the_same(
    finished: tuple[Reproduced, Plan], cache: Path, tmp_path: Path
) -> None:
    plan = make_plan(finished[1].paper, make_manifest(), cache, tmp_path / "out", DEMO)
    assert not reproduce.run(plan, DEMO).failures
    for name in ("speech", "light", "who", "sex", "phone", "fused", "searched"):
        there, here = (read_run(folder / name).scores for folder in (tmp_path / "out", finished[1].out))
        assert (there.ids, there.folds, there.labels) == (here.ids, here.folds, here.labels)
        # A process has its share of the cores, and other numbers of threads add in another order.
        assert np.allclose(there.probabilities, here.probabilities, atol=0.01), name
    assert (tmp_path / "out" / "tables.csv").is_file()

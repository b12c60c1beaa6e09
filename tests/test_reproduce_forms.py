"""Rows that need other rows: encoders fine-tuned for them, weights to begin with; forms; what random weights leave."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from makers import write_corpus

import featcache
from featcache import Manifest
from featcache.errors import ConfigError, UnknownNameError
from heads.runs import read_run
from pipelines import reproduce
from pipelines.config import extract_config, read_preset
from pipelines.paper import Paper, read_paper
from pipelines.reporting.reproduction import RANDOM
from pipelines.reproduce_plan import Plan, make_plan
from pipelines.reproduce_rows import Options, extractions
from pipelines.reproduce_show import describe, describe_extraction

FIT = {"steps": 2, "eval_every": 1, "batch_size": 4, "learning_rate": 0.01}
LAPTOP = Options(laptop=True, jobs=1, device="cpu")

PRESETS: dict[str, dict[str, Any]] = {
    "mels": {
        "extract": {"streams": {"log_mel": {}}},
        "train": {"head": "mean_pool", "streams": ["log_mel"], "fit": FIT},
    },
    "speakers": {
        "extract": {"streams": {"log_mel": {}}},
        "train": {"head": "mean_pool", "streams": ["log_mel"], "label": "speaker", "fit": FIT},
    },
    "tune": {
        "extract": {"streams": {"ge2e_mels": {}}, "dtype": "float32"},
        "train": {"head": "finetune", "streams": ["ge2e_mels"], "settings": {"checkpoint": "resemblyzer"}, "fit": FIT},
    },
    "read": {
        "extract": {"streams": {"ge2e_states@tuned": {}, "log_mel": {}}},
        "train": {
            "head": "mean_pool", "streams": ["ge2e_states@tuned", "log_mel"], "fit": FIT,
            "settings": {"fusion": "late"},
        },
    },
    "random": {
        "extract": {"streams": {"hidden_states": {"checkpoint": "demo:wav2vec2"}}},
        "train": {"head": "mean_pool", "streams": ["hidden_states"], "fit": FIT},
    },
    "large": {
        "extract": {"streams": {"hidden_states": {"checkpoint": "somebody/large"}}},
        "train": {"head": "mean_pool", "streams": ["hidden_states"], "fit": {"steps": 7000}},
    },
}  # fmt: skip

NUMBER = {"WA": {"mean": 61.0}}
PAPER: dict[str, Any] = {
    "title": "A paper of stages", "authors": "Ann Author", "venue": "A venue", "year": 2022, "doi": "10.1/3",
    "corpus": {"name": "CORPUS", "utterances": 24, "speakers": 3, "classes": ["happy", "sad"]},
    "metrics": {"WA": "wa"},
    "notes": {},
    "runs": {
        # The order of the file is not that of what needs what.
        "reads": {"preset": "large.yaml", "laptop": "read.yaml"},
        "begun": {"preset": "large.yaml", "laptop": "mels.yaml", "start": "speakers"},
        "speakers": {"preset": "large.yaml", "laptop": "speakers.yaml", "folds": "within:session"},
        "tuned": {"preset": "large.yaml", "laptop": "tune.yaml"},
        "random": {"preset": "large.yaml", "laptop": "random.yaml"},
        "large": {"preset": "large.yaml"},
        "voted": {"preset": "large.yaml", "laptop": "mels.yaml", "train": {"votes": "votes"}},
    },
    "fusions": {
        "both": {"runs": ["reads", "random"], "weights": "0.5,0.5"},
        "real": {"runs": ["reads", "begun"], "weights": "0.5,0.5"},
    },
    "tables": [
        {
            "name": "Table 1", "title": "One", "metrics": ["WA"],
            "rows": [
                {"label": "Reads", "run": "reads", "paper": NUMBER, "parameters": 21.5e6},
                {"label": "Begun", "run": "begun", "paper": NUMBER},
                {"label": "Random", "run": "random", "paper": NUMBER},
                {"label": "Both", "run": "both", "paper": NUMBER},
                {"label": "Real", "run": "real", "paper": NUMBER},
                {"label": "Large", "run": "large", "paper": NUMBER},
                {"label": "Voted", "run": "voted"},
            ],
        }
    ],
}  # fmt: skip


def write_paper(folder: Path, **changes: Any) -> Paper:
    folder.mkdir(exist_ok=True)
    for name, preset in PRESETS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
    path = folder / "stages2022.yaml"
    path.write_text(yaml.safe_dump({**PAPER, **changes}, sort_keys=False))
    return read_paper(str(path))


def in_process(todo: Any, at_once: int, on_progress: Any, on_message: Any) -> dict[str, str]:
    """Stand in for :func:`pipelines.jobs.run`."""
    failures = {}
    for job in todo:
        try:
            job.work(lambda *_: None, lambda *_: None)
        except ConfigError as error:
            failures[job.name] = str(error)
    return failures


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("corpus")
    return write_corpus(folder, [0.5 + 0.03 * number for number in range(36)], speakers=3)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, corpus: Manifest) -> tuple[Plan, reproduce.Reproduced, list[str]]:
    folder = tmp_path_factory.mktemp("stages")
    paper = write_paper(folder / "paper")
    told: list[str] = []
    reproduce.extract(paper, corpus, folder / "cache", LAPTOP, told.append)
    plan = make_plan(paper, corpus, folder / "cache", folder / "out", LAPTOP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce.jobs, "run", in_process)  # a process for each job takes longer than the job
        return plan, reproduce.run(plan, LAPTOP, told.append), told


def test_each_run_comes_after_those_that_it_needs(done: tuple[Plan, reproduce.Reproduced, list[str]]) -> None:
    plan, _, _ = done
    assert plan.trainings["reads"].after == ("tuned",)
    assert plan.trainings["begun"].after == ("speakers",)
    order = list(plan.trainings)
    assert order.index("reads") > order.index("tuned")
    assert order.index("begun") > order.index("speakers")
    assert plan.not_run["large"] == "needs somebody/large, no laptop form"
    assert plan.not_run["voted"] == "no utterance has the column votes"


def test_encoders_are_fine_tuned_extracted_and_read_fold_by_fold(
    done: tuple[Plan, reproduce.Reproduced, list[str]], corpus: Manifest
) -> None:
    plan, reproduced, told = done
    assert reproduced.failures == {}
    assert sorted(path.name for path in (plan.out / "tuned" / "encoders").iterdir()) == ["s0", "s1", "s2"]
    assert not (plan.out / "random" / "encoders").exists()  # nobody reads them
    assert "ge2e_states@tuned: extracting, by the encoder of each fold" in told
    made = [name for name in featcache.open(plan.cache) if name.startswith("ge2e_states-")]
    assert len(made) == 3
    run = read_run(plan.out / "reads")
    assert run.config is not None
    assert sorted(run.scores.ids) == sorted(corpus.ids)
    begun = read_run(plan.out / "begun").config
    assert begun is not None
    assert Path(begun["start"]).name == "speakers"


def test_no_fold_learnt_speakers_from_what_it_tests(
    done: tuple[Plan, reproduce.Reproduced, list[str]], corpus: Manifest
) -> None:
    plan, reproduced, _ = done
    assert not any("Allowed leak" in banner for banner in reproduced.document.banners)
    assert len(plan.folds["speakers"]) == 3
    for fold in plan.folds["speakers"]:
        used = {corpus.utterance(name).session for part in fold.parts.values() for name in part}
        assert fold.name not in used
        assert len(used) == 2


def test_numbers_of_random_weights_are_left_out(done: tuple[Plan, reproduce.Reproduced, list[str]]) -> None:
    _, reproduced, _ = done
    lines = {line.label: line for line in reproduced.document.tables[0].lines}
    for label in ("Random", "Both"):
        assert lines[label].here == {}
        assert RANDOM in lines[label].remark
    for label in ("Reads", "Begun", "Real"):
        assert lines[label].here["wa"].mean is not None
        assert RANDOM not in lines[label].remark
    [banner] = [banner for banner in reproduced.document.banners if "random weights" in banner]
    assert banner.startswith("2 of 7 runs began with random weights")


def test_parameters_stand_beside_the_papers(done: tuple[Plan, reproduce.Reproduced, list[str]]) -> None:
    plan, reproduced, _ = done
    config = read_run(plan.out / "reads").config
    assert config is not None
    remark = reproduced.document.tables[0].lines[0].remark
    assert f"parameters: {config['parameters'] / 1e6:.1f} M (paper 21.5 M)" in remark


def test_the_same_again_trains_and_extracts_nothing(
    done: tuple[Plan, reproduce.Reproduced, list[str]], corpus: Manifest
) -> None:
    plan, _, _ = done
    before = {
        path: path.stat().st_mtime_ns
        for path in plan.out.glob("*/scores.csv")
        if path.parent.name not in ("both", "real")
    }
    streams = sorted(featcache.open(plan.cache))
    again = make_plan(plan.paper, corpus, plan.cache, plan.out, LAPTOP)
    assert {training.state for training in again.trainings.values()} == {"done"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce.jobs, "run", in_process)
        reproduce.run(again, LAPTOP)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(featcache.open(plan.cache)) == streams


def test_encoders_of_other_runs_of_the_same_name_stay_in_the_cache_and_are_no_matter(
    tmp_path: Path, corpus: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce.jobs, "run", in_process)
    runs = {key: PAPER["runs"][key] for key in ("reads", "tuned")}
    rows = [{"label": "Reads", "run": "reads", "paper": NUMBER}]
    table = {"name": "Table 1", "title": "One", "metrics": ["WA"], "rows": rows}
    paper = write_paper(tmp_path / "paper", runs=runs, fusions={}, tables=[table])

    def reproduced(out: str, **more: Any) -> list[str]:
        """Return the streams that the row that reads encoders has read."""
        options = Options(laptop=True, jobs=1, device="cpu", **more)
        reproduce.extract(paper, corpus, tmp_path / "cache", options)
        plan = make_plan(paper, corpus, tmp_path / "cache", tmp_path / out, options)
        done = reproduce.run(plan, options)
        assert done.failures == {}
        config = done.runs["reads"].config or {}
        assert config["streams"]["ge2e_states@tuned"] == "ge2e_states@tuned"
        return list(config["fold_streams"]["ge2e_states@tuned"].values())

    first = reproduced("a")
    again = reproduced("a", settings=("fit.steps=3",), overwrite=True)
    elsewhere = reproduced("b", settings=("fit.seed=1",))
    assert len({*first, *again, *elsewhere}) == 9
    assert reproduced("b", settings=("fit.seed=1",)) == elsewhere
    assert reproduced("c") == first


def test_codes_of_random_weights_are_not_drawn(
    tmp_path: Path, corpus: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproduce.jobs, "run", in_process)
    exported: list[str] = []
    monkeypatch.setattr(reproduce.codes, "run", lambda folder, *_, **__: exported.append(folder.name))
    monkeypatch.setattr(reproduce._Work, "_draw", lambda _, keys: exported.append(f"drawn: {list(keys)}"))
    runs = {"random": PAPER["runs"]["random"], "mels": {"preset": "large.yaml", "laptop": "mels.yaml"}}
    rows = [{"label": key, "run": key, "paper": NUMBER} for key in runs]
    table = {"name": "Table 1", "title": "One", "metrics": ["WA"], "rows": rows}
    projection = {"One": "random", "Other": "mels"}
    paper = write_paper(tmp_path / "paper", runs=runs, fusions={}, tables=[table], projection=projection)
    reproduce.extract(paper, corpus, tmp_path / "cache", LAPTOP)
    reproduce.run(make_plan(paper, corpus, tmp_path / "cache", tmp_path / "out", LAPTOP), LAPTOP)
    assert exported == ["mels", "drawn: ['Other']"]


def test_a_typo_in_settings_extracts_nothing_and_names_the_row(tmp_path: Path, corpus: Manifest) -> None:
    paper = write_paper(tmp_path / "paper")
    options = Options(laptop=True, settings=("fit.stps=1",), device="cpu")
    with pytest.raises(ConfigError, match="reads of stages2022: fit has no setting stps"):
        reproduce.extract(paper, corpus, tmp_path / "cache", options)
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_says_what_would_be_extracted(tmp_path: Path) -> None:
    text = describe_extraction(write_paper(tmp_path / "paper"), LAPTOP)
    assert text.splitlines()[1:] == ["  log_mel", "  ge2e_mels", "  hidden_states (checkpoint=demo:wav2vec2)"]


def test_rows_say_which_form_they_have(done: tuple[Plan, reproduce.Reproduced, list[str]]) -> None:
    _, reproduced, _ = done
    remarks = {line.label: line.remark for line in reproduced.document.tables[0].lines}
    assert "laptop form" in remarks["Reads"]
    assert "demo form" not in " ".join(remarks.values())


def test_what_a_plan_needs_is_said_in_a_dry_run(done: tuple[Plan, reproduce.Reproduced, list[str]]) -> None:
    text = describe(done[0])
    assert "ge2e_states@tuned" in text
    assert "large: not run: needs somebody/large, no laptop form" in text


def test_what_needs_a_run_that_is_left_out_is_left_out(tmp_path: Path, corpus: Manifest) -> None:
    runs = {**PAPER["runs"], "tuned": {"preset": "large.yaml"}, "speakers": {"preset": "large.yaml"}}
    paper = write_paper(tmp_path / "paper", runs=runs)
    options = Options(laptop=True, skip_missing=True, device="cpu")
    (tmp_path / "cache").mkdir()
    plan = make_plan(paper, corpus, tmp_path / "cache", tmp_path / "out", options)
    assert plan.not_run["reads"].startswith("The cache") or plan.not_run["reads"] == "tuned is left out"
    assert plan.trainings == {}


def test_a_failed_run_takes_along_only_what_needs_it(
    tmp_path: Path, corpus: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = write_paper(tmp_path / "paper")
    reproduce.extract(paper, corpus, tmp_path / "cache", LAPTOP)
    plan = make_plan(paper, corpus, tmp_path / "cache", tmp_path / "out", LAPTOP)

    def broken(*_: Any, **__: Any) -> None:
        raise ConfigError("The encoder is broken.")

    monkeypatch.setattr(reproduce.jobs, "run", in_process)
    monkeypatch.setattr(reproduce.finetune, "run", broken)
    done = reproduce.run(plan, LAPTOP)
    assert done.failures == {"tuned": "The encoder is broken."}
    assert "begun" in done.runs
    remarks = {line.label: line.remark for line in done.document.tables[0].lines}
    assert "not run: tuned failed" in remarks["Reads"]
    assert "not run: reads failed" in remarks["Real"]


def test_an_encoder_of_no_run_is_refused(tmp_path: Path, corpus: Manifest) -> None:
    runs = {name: of for name, of in PAPER["runs"].items() if name in ("reads", "large")}
    rows = [{"label": "Reads", "run": "reads", "paper": NUMBER}]
    tables = [{"name": "Table 1", "title": "One", "metrics": ["WA"], "rows": rows}]
    paper = write_paper(tmp_path / "paper", runs=runs, fusions={}, tables=tables)
    (tmp_path / "cache").mkdir()
    with pytest.raises(ConfigError, match="reads 'ge2e_states@tuned', and there is no run 'tuned'"):
        make_plan(paper, corpus, tmp_path / "cache", tmp_path / "out", LAPTOP)


def test_a_start_that_is_no_run_is_refused(tmp_path: Path) -> None:
    runs = {**PAPER["runs"], "begun": {"preset": "large.yaml", "start": "nobody"}}
    with pytest.raises((ConfigError, UnknownNameError), match="nobody"):
        write_paper(tmp_path / "paper", runs=runs)


def test_one_form_is_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--demo and --laptop"):
        Options(demo=True, laptop=True)
    paper = write_paper(tmp_path / "paper")
    streams = [sorted(config.streams) for config in extractions(paper, LAPTOP)]
    assert streams.count(["log_mel"]) == 1  # of three presets that read it alone, or beside an encoder's
    assert ["ge2e_mels"] in streams
    assert not any("@" in name for names in streams for name in names)


def test_a_preset_that_reads_encoders_extracts_the_rest(tmp_path: Path) -> None:
    write_paper(tmp_path / "paper")
    config = extract_config(read_preset(str(tmp_path / "paper" / "read.yaml")), [], {}, [])
    assert list(config.streams) == ["log_mel"]

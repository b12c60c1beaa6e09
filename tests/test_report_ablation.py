"""The report of many runs: all have a row, those that validation puts first a section, and what differs is tested."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import write_corpus
from test_fuzz_report import PAYLOADS, check_page
from test_report import FOLDS, Page, make_scores, write_full_run, write_report, write_small_run
from test_report_parts import write_two

from featcache import Manifest, Utterance
from featcache.errors import ConfigError, ScoresError
from heads import statistics
from heads.metrics import evaluate
from heads.runs import read_run, write_run
from heads.scores import Scores
from pipelines import compare, fuse, report
from pipelines.reporting.wording import between, percent, points


def write_runs(folder: Path, num: int, validation: Sequence[int] | None = None, **config: Any) -> Path:
    """Write runs of one speaker in six utterances; `validation` are the seeds of their validation scores."""
    scores = make_scores()
    manifest = Manifest(
        [Utterance(name, speaker=f"s{number % 10}", text=f"say {name}") for number, name in enumerate(scores.ids)]
    )
    for number in range(num):
        fit = {"steps": 20, "select_by": "ua", "seed": number % 2}
        settings = {"layer": number // 2}
        run = folder / f"layer={number // 2},seed={number % 2}"
        write_small_run(run, seed=number, fit=fit, settings=settings, **config)
        if validation is not None:
            make_scores(seed=validation[number]).write(run / "validation_scores.csv")
        manifest.write(run / "manifest.jsonl")
    return folder


def rows(page: Page) -> list[str]:
    """Return the rows of the table of runs, as markup."""
    [table] = re.findall(r"<table[^>]*data-view>.*?</table>", page.html, re.DOTALL)
    [body] = re.findall(r"<tbody>(.*)</tbody>", table, re.DOTALL)
    return re.findall(r"<tr.*?</tr>", body, re.DOTALL)


def sections(page: Page) -> list[str]:
    return [values["id"] for values in page.tags("details") if values.get("class") == "run"]


def page_of(tmp_path: Path, *runs: Path, **options: Any) -> Page:
    report.run(runs, tmp_path / "report.html", "report", **options)
    return Page(tmp_path / "report.html")


def test_sections_are_for_the_runs_that_validation_puts_first(tmp_path: Path) -> None:
    order = [3, 0, 5, 1, 4, 2, 6, 7]
    folder = write_runs(tmp_path / "out", 8, validation=order)
    read = [read_run(path) for path in sorted(folder.iterdir())]
    validation = [evaluate(run.validation_scores)["mean"]["ua"] for run in read if run.validation_scores]
    by_validation = sorted(range(8), key=lambda place: -validation[place])
    by_test = sorted(range(8), key=lambda place: -read[place].metrics["mean"]["ua"])
    assert set(by_validation[:3]) != set(by_test[:3])
    page = page_of(tmp_path, folder, details=3)
    assert sections(page) == [f"run-{place + 1}" for place in sorted(by_validation[:3])]
    assert len(rows(page)) == 8
    assert "3 of 8 runs have a section below: those of the highest mean UA on validation" in page.text("hint")
    # What leads to a run leads somewhere, whether it has a section or a row alone.
    ids = {values["id"] for _, values in page.elements if "id" in values}
    assert {f"run-{number}" for number in range(1, 9)} <= ids


def test_where_a_run_kept_no_validation_scores_the_first_have_sections(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "out", 4, validation=range(4))
    (folder / "layer=1,seed=1" / "validation_scores.csv").unlink()
    page = page_of(tmp_path, folder, details=2)
    assert sections(page) == ["run-1", "run-2"]
    assert "2 of 4 runs have a section below: the first ones" in page.text("hint")
    assert not sections(page_of(tmp_path, folder, details=0))
    with pytest.raises(ConfigError, match="0 or more, got -1"):
        page_of(tmp_path, folder, details=-1)


def test_what_differs_has_columns_and_seeds_are_summed_up(tmp_path: Path) -> None:
    page = page_of(tmp_path, write_runs(tmp_path / "out", 6), details=1)
    keys = [values["data-key"] for values in page.tags("th") if "data-key" in values]
    assert keys[:4] == ["run", "head", "settings.layer", "fit.seed"]
    assert all(f'data-sort="{number // 2}">{number // 2}<' in row for number, row in enumerate(rows(page)))
    assert "Runs that differ in the seed alone" in page.text("hint")
    assert len(re.findall(r"2 <span class=\"muted\">\(0, 1\)</span>", page.html)) == 3
    assert "UA by settings.layer" in {values["aria-label"].split(". ")[0] for values in page.tags("svg")}


def test_many_settings_that_differ_stand_behind_the_metrics(tmp_path: Path) -> None:
    for number in range(2):
        settings = dict.fromkeys("abcdefg", number) if number else {"a": 5}
        write_small_run(tmp_path / "out" / str(number), seed=number, settings=settings)
    page = page_of(tmp_path, tmp_path / "out", details=0)
    keys = [values["data-key"] for values in page.tags("th") if "data-key" in values]
    assert keys.index("ua") < keys.index("settings.a") < keys.index("settings.g") < keys.index("n")
    cells = [re.findall(r"<(?:th|td)[^>]*data-sort=\"([^\"]*)\"", row) for row in rows(page)]
    assert [row[keys.index("settings.a")] for row in cells] == ["5", "1"]
    assert [row[keys.index("settings.g")] for row in cells] == ["", "1"]
    assert [row[keys.index("n")] for row in cells] == ["60", "60"]


def test_the_interval_is_that_of_the_statistics_by_speakers(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "out", 1) / "layer=0,seed=0"
    run = read_run(folder)
    found = statistics.interval(run.scores, compare.speakers_of(run))
    assert (found.clustered_by, found.num_clusters) == ("speaker", 10)
    page = page_of(tmp_path, folder)
    shown = f"{percent(found.value)} {between(found.low, found.high)}"
    assert shown in page.text("summary")
    assert f"pooled UA {percent(found.value)} % {between(found.low, found.high)}" in page.text("figures")
    assert "by resampling speakers" in page.text("hint")


def test_where_speakers_are_not_known_the_page_says_so(tmp_path: Path) -> None:
    page = write_report(tmp_path / "1.html", write_small_run(tmp_path / "a"), write_small_run(tmp_path / "b", seed=1))
    assert "by resampling utterances: speakers are not known" in page.text("hint")
    assert "Speakers are not known, so that utterances were resampled" in page.text()


@pytest.mark.parametrize(("num", "expected"), [(3, 3), (6, 15), (8, 7)])
def test_runs_are_compared_two_by_two_or_with_the_first(tmp_path: Path, num: int, expected: int) -> None:
    folder = write_runs(tmp_path / "out", num)
    page = page_of(tmp_path, folder, details=1)
    [table] = re.findall(r"aria-label=\"Differences\">.*?<tbody>(.*?)</tbody>", page.html, re.DOTALL)
    found = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
    assert len(found) == expected
    paths = sorted(folder.iterdir())
    pairs = compare.pairs([read_run(path) for path in paths], [path.name for path in paths], 0 if num > 6 else None)
    for row, pair in zip(found, pairs, strict=True):
        assert f'data-sort="{pair.comparison.difference}">{points(pair.comparison.difference)}<' in row
        assert f'data-sort="{pair.p_corrected}"' in row
    assert ("Each run against the first, layer=0,seed=0." in page.text()) == (num > 6)
    assert "A large p does not say that runs are alike." in page.text()


def test_one_run_is_compared_with_none(tmp_path: Path) -> None:
    page = page_of(tmp_path, write_runs(tmp_path / "out", 1))
    assert "Differences" not in page.text("h2")
    assert "What no run recognises" not in page.text("h2")


def test_speakers_time_memory_and_what_is_hard_are_shown(tmp_path: Path) -> None:
    page = page_of(tmp_path, write_runs(tmp_path / "out", 2, peak_mib=321.4))
    text = page.text()
    assert "321" in "".join(rows(page))
    assert "1.2" in "".join(rows(page))
    assert {"Speaker by speaker", "Calibration"} <= {values["aria-label"].split(". ")[0] for values in page.tags("svg")}
    assert "Hardest utterances" in text
    assert "What no run recognises" in text
    run = read_run(tmp_path / "out" / "layer=0,seed=0")
    [table] = re.findall(r"aria-label=\"Hardest utterances of layer=0,seed=0\">.*?</table>", page.html, re.DOTALL)
    wrong = {run.scores.ids[row] for row in np.flatnonzero(run.scores.reference != run.scores.predicted)}
    shown = re.findall(r"<th scope=\"row\" class=\"name\">(u\d+)</th>", table)
    assert len(shown) == min(10, len(wrong))
    assert set(shown) <= wrong
    assert all(f"say {name}" in table for name in shown)


def test_a_searched_fusion_shows_its_metric_by_weight(tmp_path: Path) -> None:
    runs = write_two(tmp_path)
    fused = fuse.run(runs, "search", tmp_path / "fused")
    stacked = fuse.run(runs, "stack", tmp_path / "stacked")
    page = page_of(tmp_path, fused.folder, stacked.folder)
    assert "UA by fusion weight" in {values["aria-label"].split(". ")[0] for values in page.tags("svg")}
    assert "Coefficients of the stacking" in page.text("h3")
    assert "optimistic" in page.text("badge")


def test_what_choosing_on_test_would_have_claimed_is_told(tmp_path: Path) -> None:
    # Validation chooses layer 1 (60 %), where test has 60 % and its best, layer 3, 80 %.
    page = page_of(tmp_path, write_full_run(tmp_path / "run"))
    assert "Chosen on validation: 60.0 % UA. Chosen on test, fold by fold, it would have been 80.0 %" in page.text()


def test_a_training_that_has_not_ended_is_named(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "out", 2)
    (folder / "layer=7,seed=0" / ".unfinished").mkdir(parents=True)
    page = page_of(tmp_path, folder)
    assert "Training was begun in layer=7,seed=0, and there are no scores yet." in page.text("apart")


def test_recordings_are_in_the_page_where_they_are_asked_for(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", [0.3] * 6)
    labels = tuple("ab"[number % 2] for number in range(6))
    scores = Scores(manifest.ids, FOLDS * 2, labels, ("a", "b"), [[0.6, 0.4]] * 6)
    write_run(tmp_path / "run", scores)
    manifest.write(tmp_path / "run" / "manifest.jsonl")
    silent = page_of(tmp_path, tmp_path / "run")
    assert "media-src" not in silent.html
    assert not silent.tags("audio")
    page = page_of(tmp_path, tmp_path / "run", audio=True)
    assert len(page.tags("audio")) == 3
    assert all(values["src"].startswith("data:audio/") for values in page.tags("audio"))
    [policy] = [values["content"] for values in page.tags("meta") if "http-equiv" in values]
    assert "media-src data:;" in policy
    assert "with recordings of the corpus" in page.text("banner")
    before = page.html
    assert page_of(tmp_path, tmp_path / "run", audio=True).html == before


def test_what_is_said_and_who_says_it_stay_text(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "out", 2)
    text = " ".join(payload for payload in PAYLOADS if "\0" not in payload and len(payload) < 100)
    manifest = Manifest([Utterance(name, speaker=f"{text}{name}", text=text) for name in make_scores().ids])
    for path in folder.iterdir():
        manifest.write(path / "manifest.jsonl")
    page = page_of(tmp_path, folder, details=1)
    check_page(page, "report")
    assert " ".join(text.split()) in page.text("hard")


def test_many_runs_make_a_page_that_can_be_sent(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "out", 60, validation=range(60), problems=["a warning"])
    steps: list[tuple[int, int]] = []
    page = page_of(tmp_path, folder, details=1, on_progress=lambda done, total: steps.append((done, total)))
    assert steps == [(number, 120) for number in range(1, 121)]
    assert len(rows(page)) == 60
    assert len(page.html) < 2_000_000
    # A warning that all have does not name each of them.
    assert page.text("warnings").endswith("a warning (all 60 runs)")
    before = page.html
    assert page_of(tmp_path, folder, details=1).html == before


def test_scores_that_are_not_finite_are_named_by_run_and_utterance(tmp_path: Path) -> None:
    folder = write_runs(tmp_path / "out", 3)
    path = folder / "layer=1,seed=0" / "scores.csv"
    lines = path.read_text().splitlines()
    lines[1] = ",".join([*lines[1].split(",")[:3], "nan", "nan", "nan"])
    path.write_text("\n".join(lines))
    with pytest.raises(ScoresError, match=r"layer=1,seed=0/scores.csv'.*not finite, such as 'u0'"):
        page_of(tmp_path, folder)


def test_what_an_ablation_keeps_unfinished_hides_none_of_its_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_small_run(tmp_path / "mine" / name)
    (tmp_path / "mine" / ".unfinished" / "job").mkdir(parents=True)
    (tmp_path / "mine" / "c" / ".unfinished").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "mine"):
        found = report.find_runs([folder])
        assert [run.name for run in found.runs] == ["a", "b"]
        assert list(found.unfinished) == ["c"]

"""The report: one page that holds the numbers of the runs, runs nothing it should not, and needs nothing else."""

import base64
import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from featcache.errors import ConfigError, FeatcacheError, ScoresError
from heads.runs import read_run, write_run
from heads.scores import Scores
from pipelines import report
from pipelines.reporting.details import read_candidates, read_curves
from pipelines.reporting.wording import distinct

CLASSES = ("angry", "happy", "sad")
FOLDS = ("1", "2", "3")
LEAK = "fold '1': 2 speakers are in train and in test, such as 'anna' (3 and 4 utterances)"
HOSTILE = "</title></style></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}$x"


def make_scores(folds: Sequence[str] = FOLDS, classes: Sequence[str] = CLASSES, seed: int = 0, num: int = 60) -> Scores:
    """Return scores that are right more often than not."""
    generator = np.random.default_rng(seed)
    truth = np.arange(num) % len(classes)
    values = generator.random((num, len(classes)))
    values[np.arange(num), truth] += 0.4
    return Scores(
        tuple(f"u{number}" for number in range(num)),
        tuple(folds[number // len(classes) % len(folds)] for number in range(num)),
        tuple(classes[index] for index in truth),
        tuple(classes),
        values / values.sum(axis=1, keepdims=True),
    )


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_small_run(folder: Path, folds: Sequence[str] = FOLDS, seed: int = 0, **config: Any) -> Path:
    """Write a run with scores and a configuration."""
    made = {
        "head": "linear_probe",
        "streams": {"hidden_states": "hidden_states-0a1b2c3d"},
        "folds": "speaker",
        "fit": {"steps": 20, "select_by": "ua"},
        "speaker_independent": True,
        "synthetic": False,
        "problems": [],
        "allowed_leaks": [],
        "seconds": 1.25,
        "versions": {"featcache": "0.1.0"},
        "chosen": {fold: {"layer": 1, "step": 20} for fold in folds},
    }
    write_run(folder, make_scores(folds, seed=seed), None, {**made, **config})
    return folder


def write_full_run(folder: Path, folds: Sequence[str] = FOLDS, layers: int = 4, **config: Any) -> Path:
    """Write a run with all that training leaves."""
    write_small_run(folder, folds, **config)
    names = [f"layer_{number}" for number in range(layers)]
    write_csv(
        folder / "curves.csv",
        ("fold", "step", "loss", "ua"),
        [(fold, step, 20 / step, 0.5 + step / 100) for fold in folds for step in (10, 20)],
    )
    write_csv(
        folder / "layer_weights.csv",
        ("fold", "layer", "layer_name", "weight"),
        [(fold, layer, names[layer], 1 / layers) for fold in folds for layer in range(layers)],
    )
    write_csv(
        folder / "candidates.csv",
        ("fold", "layer", "learning_rate", "layer_name", "validation", "test", "chosen"),
        [
            (fold, layer, 0.001, names[layer], 0.6 - abs(layer - 1) / 10, 0.5 + layer / 10, layer == 1)
            for fold in folds
            for layer in range(layers)
        ],
    )
    return folder


class Page(HTMLParser):
    """What a browser would make of a page: elements with their attributes, and texts by the classes they lie in."""

    VOID = frozenset({"meta", "link", "wbr", "br", "img"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self._open: list[tuple[str, str]] = []
        self._goes_on = False
        self.feed(self.html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.append((tag, values))
        self._goes_on = tag == "wbr"  # where a line may end, a word does not
        if tag not in self.VOID:
            self._open.append((tag, values.get("class", "")))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._goes_on and self.texts:
            data = self.texts.pop()[1] + data
        self._goes_on = False
        self.texts.append((tuple(item for pair in self._open for item in pair), data))

    def text(self, within: str = "body") -> str:
        """Return all text within elements of a name or class."""
        return " ".join(" ".join(data for where, data in self.texts if within in " ".join(where).split()).split())

    def tags(self, name: str) -> list[dict[str, str]]:
        return [values for tag, values in self.elements if tag == name]


def write_report(out: Path, *runs: Path, title: str = "report") -> Page:
    report.run(runs, out, title)
    return Page(out)


def test_the_page_holds_the_numbers_of_the_metrics(tmp_path: Path) -> None:
    folder = write_small_run(tmp_path / "probe")
    page = write_report(tmp_path / "out" / "report.html", folder)
    metrics = read_run(folder).metrics
    text = page.text()
    for name in ("wa", "ua", "macro_f1", "weighted_f1"):
        std = metrics["std"][name]
        assert std is not None
        assert f"{100 * metrics['mean'][name]:.1f} ± {100 * std:.1f}" in text
        assert f"{100 * metrics['pooled'][name]:.1f}" in text  # type: ignore[literal-required]
    for fold in metrics["folds"]:
        assert f"{100 * fold['ua']:.1f}" in text
    confusion = [int(count) for count in re.findall(r"<td style=\"--share:[\d.]+\"[^>]*>(\d+)<small>", page.html)]
    assert confusion == [count for row in metrics["pooled"]["confusion"] for count in row]


def test_the_page_shows_what_training_left(tmp_path: Path) -> None:
    page = write_report(tmp_path / "report.html", write_full_run(tmp_path / "probe"))
    assert {values["aria-label"].split(".")[0] for values in page.tags("svg")} == {
        "UA",
        "Recall of each class",
        "Fold by fold",
        "Calibration",
        "Learning curves",
        "Layer weights",
        "UA by layer, chosen on validation",
    }
    text = page.text()
    assert "Nothing is chosen on test" in text
    assert "All 4 settings that were tried" in text
    assert "hidden_states = hidden_states-0a1b2c3d" in text
    assert "1.2 s" in text
    assert "leave one speaker out" in text


def test_names_that_hold_markup_stay_names(tmp_path: Path) -> None:
    hostile = HOSTILE.replace("/", "\N{FRACTION SLASH}")
    folder = tmp_path / hostile
    config = {"head": HOSTILE, "streams": {HOSTILE: HOSTILE}, "problems": [HOSTILE], "allowed_leaks": [f"1{HOSTILE}"]}
    write_run(
        folder, make_scores((HOSTILE, "2"), (HOSTILE, "b")), None, {**config, "chosen": {"2": {HOSTILE: HOSTILE}}}
    )
    write_csv(folder / "curves.csv", ("fold", "step", "loss", "wa"), [(HOSTILE, 1, 1, 1)])
    write_csv(folder / "layer_weights.csv", ("fold", "layer", "layer_name", "weight"), [(HOSTILE, 0, HOSTILE, 1)])
    header = ("fold", HOSTILE, "layer", "layer_name", "validation", "test", "chosen")
    write_csv(folder / "candidates.csv", header, [("2", HOSTILE, layer, HOSTILE, 1, 1, "True") for layer in (0, 1)])
    page = write_report(tmp_path / "report.html", folder, title=HOSTILE)
    # The page's own script and nothing else; no element or attribute of the names'.
    assert len(page.tags("script")) == 1
    assert not page.tags("img")
    assert not [name for _, values in page.elements for name in values if name.startswith("on")]
    assert HOSTILE in page.text("h1")
    assert "49" not in page.text("h1")


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    page = write_report(tmp_path / "report.html", write_small_run(tmp_path / "probe"))
    [script] = re.findall(r"<script>(.*?)</script>", page.html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    [policy] = [values["content"] for values in page.tags("meta") if "http-equiv" in values]
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}';" in policy


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = write_report(
        tmp_path / "report.html", write_full_run(tmp_path / "a"), write_full_run(tmp_path / "b", seed=1)
    )
    assert "@import" not in page.html
    for _, values in page.elements:
        # Published numbers name the addresses of their papers, as text.
        assert not any("http" in value for name, value in values.items() if name != "http-equiv"), values
        assert not {"src", "srcset", "data", "action"} & set(values)
        assert values.get("href", "#").startswith(("#", "data:,"))
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", page.html))


def test_ids_are_unique_and_what_refers_to_them_finds_them(tmp_path: Path) -> None:
    page = write_report(tmp_path / "report.html", write_full_run(tmp_path / "a"), write_full_run(tmp_path / "b"))
    ids = Counter(values["id"] for _, values in page.elements if "id" in values)
    assert not [name for name, count in ids.items() if count > 1]
    targets = re.findall(r"url\(#(.*?)\)", page.html)
    for _, values in page.elements:
        targets += [values["href"][1:]] if values.get("href", "").startswith("#") else []
        targets += values.get("aria-labelledby", "").split()
    assert set(targets) <= set(ids)


def test_the_same_runs_give_the_same_bytes_whatever_the_users_plot_settings(tmp_path: Path) -> None:
    runs = [write_full_run(tmp_path / "a"), write_full_run(tmp_path / "b", seed=1)]
    report.run(runs, tmp_path / "first.html", "report")
    with matplotlib.rc_context({"font.size": 30.0, "text.color": "red", "svg.hashsalt": "other"}):
        before = dict(matplotlib.rcParams)
        report.run(runs, tmp_path / "second.html", "report")
        assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "first.html").read_bytes() == (tmp_path / "second.html").read_bytes()


def test_figures_take_their_colours_from_the_page(tmp_path: Path) -> None:
    page = write_report(tmp_path / "report.html", write_full_run(tmp_path / "probe"))
    inside = "".join(re.findall(r"<svg.*?</svg>", page.html, re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b", inside)
    used = set(re.findall(r"var\(--(\w+)\)", inside))
    [dark] = re.findall(r"@media screen and \(prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}", page.html, re.DOTALL)
    assert used <= set(re.findall(r"--(\w+):", dark))


def test_a_folder_with_scores_alone_is_a_run(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    make_scores().write(tmp_path / "theirs" / "scores.csv")
    page = write_report(tmp_path / "report.html", tmp_path / "theirs")
    assert len(page.tags("svg")) == 4
    assert "not stated" in page.text("summary")
    assert "How it was made" not in page.text()
    assert "Settings of each fold" not in page.text()


def test_one_fold_has_a_mean_and_no_deviation(tmp_path: Path) -> None:
    folder = write_full_run(tmp_path / "single", folds=("test",))
    page = write_report(tmp_path / "report.html", folder)
    assert f"{100 * read_run(folder).metrics['mean']['ua']:.1f}" in page.text("summary")
    assert "±" not in page.text("summary")
    assert "Fold by fold" not in page.text()


def test_a_leak_that_was_allowed_is_red_and_in_words(tmp_path: Path) -> None:
    folder = write_small_run(
        tmp_path / "leaky", problems=[LEAK, "a warning"], allowed_leaks=[LEAK], speaker_independent=False
    )
    page = write_report(tmp_path / "report.html", folder, write_small_run(tmp_path / "clean"))
    assert page.text("leak").count(LEAK) == 2  # above all runs, and in its own section
    assert "leak" in page.text("summary")
    assert re.search(r"\.leak, [^}]*\{ color: var\(--bad\)", page.html)
    # It is told once, as what it is.
    assert page.text("warnings") == "Protocol warnings 1 finding of the protocol checks a warning (leaky)"


def test_synthetic_speech_has_a_banner_and_human_speech_has_none(tmp_path: Path) -> None:
    human, made = write_small_run(tmp_path / "human"), write_small_run(tmp_path / "made", synthetic=True)
    banner = "synthetic speech: not a result on human speech"
    assert write_report(tmp_path / "1.html", made).text("banner") == banner
    assert write_report(tmp_path / "2.html", human, made).text("banner") == f"{banner} : made"
    assert write_report(tmp_path / "3.html", human).text("banner") == ""


def test_runs_over_other_utterances_are_told_apart(tmp_path: Path) -> None:
    first = write_small_run(tmp_path / "first")
    (tmp_path / "fewer").mkdir()
    make_scores(num=57).write(tmp_path / "fewer" / "scores.csv")
    page = write_report(
        tmp_path / "report.html", first, tmp_path / "fewer", write_small_run(tmp_path / "again", seed=1)
    )
    assert "Group 1: first, again." in page.text("apart")
    assert "fewer lacks 3 of the 60 utterances of first" in page.text("apart")
    assert write_report(tmp_path / "one.html", first, tmp_path / "again").text("apart") == ""


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "given"),
        (
            {"method": "search", "searched_on": "validation", "selected_by": "ua"},
            "searched on the fold&#39;s validation",
        ),
        (
            {"method": "stack", "searched_on": "other-folds", "selected_by": "wa"},
            "learned (logistic stacking) on the test",
        ),
    ],
)
def test_a_fused_run_says_how_it_got_its_weights(tmp_path: Path, config: dict[str, str], told: str) -> None:
    folder = tmp_path / "fused"
    write_run(folder, make_scores(), None, {"head": "fusion", "fused": ["a", "b"], "space": "prob", **config})
    assert told in write_report(tmp_path / "report.html", folder).html


def test_a_fused_run_shows_what_it_is_made_of_and_nothing_of_training(tmp_path: Path) -> None:
    folder = write_full_run(tmp_path / "fused")
    config = {"head": "fusion", "fused": ["x/speech", "x/text"], "weights": [0.6, 1.0], "space": "log"}
    write_run(folder, make_scores(), None, config)
    page = write_report(tmp_path / "report.html", folder)
    assert "speech × 0.6 + text × 1" in page.text("summary")
    assert "Learning curves" not in page.text()


def test_runs_of_the_same_name_are_told_apart_by_their_path(tmp_path: Path) -> None:
    page = write_report(
        tmp_path / "report.html", write_small_run(tmp_path / "a" / "run"), write_small_run(tmp_path / "b" / "run")
    )
    assert "a/run" in page.text("name")
    assert "b/run" in page.text("name")
    assert str(tmp_path) not in page.html


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/r/a", "/r/b"], ["a", "b"]),
        (["/r/a/x", "/r/b/x", "/r/b/y"], ["a/x", "b/x", "y"]),
        (["x", "a/x"], ["x", "a/x"]),
        (["/p/a/x/1", "/p/b/x/1"], ["a/x/1", "b/x/1"]),
        (["a/x", "a/x"], ["x", "x"]),
    ],
)
def test_names_are_as_short_as_they_can_be(paths: list[str], names: list[str]) -> None:
    assert distinct(paths) == names


def test_of_each_layer_the_candidate_that_is_best_on_validation_counts(tmp_path: Path) -> None:
    rows = [
        ("1", 0, 0.1, 0.5, 0.9, "False"),
        ("1", 0, 0.01, 0.6, 0.2, "False"),
        ("1", 3, 0.1, 0.8, 0.3, "True"),
        ("1", 3, 0.01, 0.7, 1.0, "False"),
    ]
    write_csv(tmp_path / "candidates.csv", ("fold", "layer", "lr", "validation", "test", "chosen"), rows)
    found = read_candidates(tmp_path, ["1"])
    assert found is not None
    sweep = found.by_layer()
    assert sweep is not None
    assert sweep.layers == (0, 3)
    np.testing.assert_array_equal(sweep.validation, [[0.6, 0.8]])
    np.testing.assert_array_equal(sweep.test, [[0.2, 0.3]])
    np.testing.assert_array_equal(sweep.num_chosen, [0, 1])


def test_the_kept_weights_are_the_first_of_the_best_on_validation(tmp_path: Path) -> None:
    rows = [("1", step, "nan", value) for step, value in ((1, "nan"), (2, 0.7), (3, 0.7), (4, 0.1))]
    write_csv(tmp_path / "curves.csv", ("fold", "step", "loss", "wa"), rows)
    found = read_curves(tmp_path, ["1"])
    assert found is not None
    assert (found.metric, found.by_fold["1"].best) == ("wa", 1)


def test_training_that_diverged_can_be_reported(tmp_path: Path) -> None:
    folder = write_full_run(tmp_path / "diverged")
    rows = [(fold, step, value, "nan") for fold in FOLDS for step, value in ((1, "inf"), (2, "nan"))]
    write_csv(folder / "curves.csv", ("fold", "step", "loss", "ua"), rows)
    assert "Learning curves" in write_report(tmp_path / "report.html", folder).text()


def test_names_in_any_script_can_be_drawn(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    make_scores(classes=("愤怒", "\u200fغضب", "sad\x07\nness")).write(tmp_path / "theirs" / "scores.csv")
    assert "愤怒" in write_report(tmp_path / "report.html", tmp_path / "theirs").text("svg")


BROKEN = {
    "a cut file": ("layer_weights.csv", "fold,layer,layer_name,weight\n1,0,a,1\n1,1,b,1\n2,0,a,1\n", "fold '2' has no"),
    "a cut line": ("curves.csv", "fold,step,loss,ua\n1,10,0.5\n", "line 2: 3 fields"),
    "no number": ("curves.csv", "fold,step,loss,ua\n1,10,0.5,good\n", "line 2: 'ua' holds 'good', not a number"),
    "a percentage": ("candidates.csv", "fold,validation,test,chosen\n1,61,0.5,True\n", "'validation' holds 61, not a"),
    "no column": ("candidates.csv", "fold,validation,test\n1,0.6,0.5\n", "no column 'chosen'"),
    "no metric": ("curves.csv", "fold,step,loss\n1,10,0.5\n", "no column 'ua' or 'wa'"),
    "another run's file": ("curves.csv", "fold,step,loss,ua\nx,10,0.5,0.5\n", "the fold 'x', which the run's scores"),
    "not finite": ("layer_weights.csv", "fold,layer,layer_name,weight\n1,0,a,nan\n", "not finite"),
    "not text": ("curves.csv", "fold,step\0", "no column 'step'|cannot be read"),
}


@pytest.mark.parametrize(("name", "content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    folder = write_full_run(tmp_path / "run")
    (folder / name).write_text(content, encoding="utf-8")
    with pytest.raises(ScoresError, match=rf"{re.escape(name)}.*({message})"):
        report.run([folder], tmp_path / "report.html", "report")
    assert not (tmp_path / "report.html").exists()


def test_what_cannot_be_reported_is_said(tmp_path: Path) -> None:
    folder = write_small_run(tmp_path / "run")
    missing = tmp_path / "missing"
    cases: list[tuple[list[Path], Path, type[FeatcacheError], str]] = [
        ([folder, missing], tmp_path / "report.html", ScoresError, "missing' is not a run: there is no such folder"),
        ([folder, folder], tmp_path / "report.html", ConfigError, "the same run as"),
        ([folder, tmp_path / "run" / ".." / "run"], tmp_path / "report.html", ConfigError, "Name each run once"),
        ([], tmp_path / "report.html", ConfigError, "no run was given"),
        ([folder], tmp_path, ConfigError, "is a folder"),
    ]
    for runs, out, error, message in cases:
        with pytest.raises(error, match=message):
            report.run(runs, out, "report")


def test_a_configuration_in_other_words_is_no_obstacle(tmp_path: Path) -> None:
    odd = {
        "streams": "x",
        "problems": "one",
        "allowed_leaks": None,
        "chosen": [1],
        "versions": 3,
        "fit": [],
        "folds": 5,
    }
    write_run(tmp_path / "odd", make_scores(), None, {**odd, "seconds": "long"})
    assert "one (odd)" in write_report(tmp_path / "report.html", tmp_path / "odd").text("warnings")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("curves.csv", "fold,step,loss,ua\n1,1e308,1,0.5\n", "'step' holds 1e\\+308, more than can be drawn"),
        ("layer_weights.csv", f"fold,layer,layer_name,weight\n1,{'9' * 5000},a,1\n", "not a whole number of up to 15"),
    ],
)
def test_numbers_that_cannot_be_drawn_are_refused_by_line(tmp_path: Path, name: str, text: str, told: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "scores.csv").write_text("id,fold,label,p_a,p_b\nu,1,a,1,0\nv,1,b,0,1\n")
    (folder / name).write_text(text)
    with pytest.raises(ScoresError, match=told):
        report.run([folder], tmp_path / "report.html", "x")

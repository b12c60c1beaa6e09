"""Papers: what they print is typed right, every name in them exists, and a file that does not fit is refused."""

import copy
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from featcache.errors import ConfigError, UnknownNameError
from heads.metrics import METRICS
from pipelines.config import preset_names
from pipelines.paper import Numbers, Paper, paper_names, read_paper

ROUNDED = 0.05 + 1e-9

SMALL: dict[str, Any] = {
    "title": "A title",
    "authors": "Ann Author",
    "venue": "A venue",
    "year": 2021,
    "doi": "10.1/2",
    "corpus": {"name": "Corpus", "utterances": 4, "speakers": 2, "classes": ["a", "b"]},
    "metrics": {"UA": "wa", "WA": "ua"},
    "notes": {"hint": "A hint."},
    "runs": {"one": {"preset": "demo"}, "two": {"preset": "demo", "notes": ["hint"]}},
    "fusions": {"both": {"runs": ["one", "two"], "weights": "search"}},
    "probes": {"who": {"run": "one", "target": "speaker", "preset": "makiuchi-probe"}},
    "tables": [
        {
            "name": "Table 1",
            "title": "Rows",
            "metrics": ["UA", "WA"],
            "rows": [
                {"label": "One", "run": "one", "paper": {"UA": {"mean": 60.0}, "WA": {"mean": 50.0}}},
                {"label": "Theirs", "cited": True, "paper": {"WA": {"mean": 40.0}}},
            ],
        }
    ],
}


def write(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None) -> str:
    """Write the small paper, changed, and return its path."""
    values = copy.deepcopy(SMALL)
    change(values)
    path = folder / "paper.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture(params=paper_names())
def paper(request: pytest.FixtureRequest) -> Paper:
    return read_paper(request.param)


def printed(paper: Paper) -> list[tuple[str, Numbers]]:
    return [
        (f"{table.name}, {row.label}, {metric}", numbers)
        for table in paper.tables
        for row in table.rows
        for metric, numbers in row.paper.items()
    ]


def test_printed_means_and_deviations_are_those_of_the_printed_folds(paper: Paper) -> None:
    with_folds = [(where, numbers) for where, numbers in printed(paper) if numbers.folds]
    assert bool(with_folds) == (paper.name == "makiuchi2021")  # the others print no folds
    for where, numbers in with_folds:
        assert numbers.mean == pytest.approx(statistics.mean(numbers.folds), abs=ROUNDED), where
        assert numbers.std is not None
        # Each fold is rounded by up to 0.05, and so may move the deviation by as much.
        assert numbers.std == pytest.approx(statistics.stdev(numbers.folds), abs=2 * ROUNDED), where


def test_the_same_run_has_the_same_number_in_every_table(paper: Paper) -> None:
    found: dict[tuple[str, str], set[float | None]] = {}
    for table in paper.tables:
        for row in table.rows:
            for metric, numbers in row.paper.items():
                if row.run is not None:
                    found.setdefault((row.run, metric), set()).add(numbers.mean)
    assert any(len(means) == 1 for means in found.values())
    assert {key: means for key, means in found.items() if len(means) > 1} == {}


def test_every_preset_of_a_paper_exists(paper: Paper) -> None:
    named = [one.preset for one in (*paper.runs.values(), *paper.probes.values())]
    named += [one.demo for one in (*paper.runs.values(), *paper.probes.values()) if one.demo is not None]
    assert named
    assert sorted(set(named) - set(preset_names())) == []


def test_everything_that_is_computed_is_in_a_table(paper: Paper) -> None:
    rows = {row.run for table in paper.tables for row in table.rows}
    assert set(paper.computed) <= rows


def test_every_note_is_referred_to(paper: Paper) -> None:
    used = {name for one in paper.computed.values() for name in one.notes}
    used |= {name for table in paper.tables for name in (*table.notes, *(n for row in table.rows for n in row.notes))}
    assert used == set(paper.notes)


def test_makiuchis_picture_has_titles_that_are_not_cut() -> None:
    paper = read_paper("makiuchi2021")
    assert paper.projection == {"small": "speech-small", "large": "speech-large"}


def test_makiuchis_aligner_is_no_preset_of_ours() -> None:
    paper = read_paper("makiuchi2021")
    assert paper.aligner == "gentle"
    assert "aligner, which gives the phones of the decoder, is Gentle" in paper.notes["phones"]
    assert "another aligner" not in paper.notes["phones"]


def test_makiuchi_swaps_the_names_of_the_metrics() -> None:
    paper = read_paper("makiuchi2021")
    assert paper.metrics == {"wa": "UA", "ua": "WA"}
    fused = next(row for table in paper.tables for row in table.rows if row.run == "fused")
    # Table 6 prints UA 73.0 and WA 73.5; its UA is the fraction of utterances classified right, which is wa here.
    assert (fused.paper["wa"].mean, fused.paper["ua"].mean) == (73.0, 73.5)


def test_makiuchis_rows_are_those_that_the_papers_text_prints() -> None:
    """Every row of a table is a line of one in the text: its numbers, column by column, in the order of the page."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "seeds"
    texts = [path.read_text(encoding="utf-8") for path in folder.glob("000*.txt")]
    if not texts:
        pytest.skip("the papers' texts are not at hand")
    lines = [re.findall(r"\d+\.\d", line) for line in texts[0].splitlines() if line.startswith("|")]
    checked = 0
    for table in read_paper("makiuchi2021").tables:
        for row in table.rows if table.name.startswith("Table") else []:
            cells = [row.paper[metric] for metric in table.metrics if metric in row.paper]
            numbers = [number for one in cells for number in (*one.folds, one.mean, one.std) if number is not None]
            wanted = [f"{number:.1f}" for number in numbers]
            assert not wanted or wanted in [line[-len(wanted) :] for line in lines], (table.name, row.label)
            checked += bool(wanted)
    assert checked == 2 + 7 + 2 + 7 + 5 + 5
    assert "achieved an UA of 50.4%" in texts[0]


def test_numbers_stand_under_this_projects_names(tmp_path: Path) -> None:
    paper = read_paper(write(tmp_path))
    [table] = paper.tables
    assert table.metrics == ("wa", "ua")
    assert {metric: numbers.mean for metric, numbers in table.rows[0].paper.items()} == {"wa": 60.0, "ua": 50.0}
    assert {metric: numbers.mean for metric, numbers in table.rows[1].paper.items()} == {"ua": 40.0}
    assert set(table.metrics) < set(METRICS)


def test_presets_may_lie_beside_the_paper(tmp_path: Path) -> None:
    paper = read_paper(write(tmp_path))
    assert paper.preset("tiny.yaml") == str(tmp_path / "tiny.yaml")
    assert paper.preset("demo") == "demo"


def rows(values: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = values["tables"][0]["rows"]
    return found


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("doi"), "the file needs doi"),
        (lambda v: v.pop("tables"), "the file needs a list tables"),
        (lambda v: v.update(tabels=[]), "has no setting tabels"),
        (lambda v: v["corpus"].pop("utterances"), "corpus needs utterances"),
        (lambda v: v["runs"].update(one={"present": "demo"}), "runs.one needs preset"),
        (lambda v: v["runs"].update(one={"preset": "demo", "step": 3}), "runs.one has no setting step"),
        (lambda v: v["runs"].update({"../one": {"preset": "demo"}}), "key '../one' is not made of"),
        (lambda v: v["fusions"].update(one=v["fusions"]["both"]), "key 'one' stands for two things"),
        (lambda v: v["fusions"]["both"]["runs"].append("three"), "fusions.both names 'three', which there is not"),
        (lambda v: v["probes"]["who"].update(run="three"), "probes.who names 'three'"),
        (lambda v: v.update(projection={"fused": "both"}), "projection names 'both'"),
        (lambda v: v.update(projection=["one"]), "projection takes values by name, got ['one']"),
        (lambda v: v["runs"].update(projection={"preset": "demo"}), "key 'projection' is that of the picture"),
        (lambda v: v["runs"]["two"].update(notes=["hints"]), "the notes of two names 'hints'"),
        (lambda v: v["metrics"].update(UA="accuracy"), "metrics.UA is 'accuracy'; it may be wa, ua"),
        (lambda v: v["metrics"].update(F1="wa"), "two names of the paper to one metric"),
        (lambda v: v["tables"][0].update(metrics=["F1"]), "has the metric 'F1'; the section metrics has UA, WA"),
        (lambda v: v["tables"][0].update(metrics=["UA"]), "no column for a number of its row 'One'"),
        (lambda v: v["tables"][0].update(metrics=[]), "names no metrics"),
        (lambda v: rows(v)[0].update(run="three"), "row 'One' names 'three'"),
        (lambda v: rows(v)[0].update(cited=True), "names what is run, or is cited"),
        (lambda v: rows(v)[1].update(cited=False), "names what is run, or is cited"),
        (lambda v: rows(v)[1].update(paper={}), "cited needs the paper's numbers"),
        (lambda v: rows(v)[0]["paper"].update(UA={"mean": 160}), "a percentage, 0 to 100, got 160"),
        (lambda v: rows(v)[0]["paper"].update(UA={"std": 2}), "need a mean or folds"),
        (lambda v: rows(v)[0]["paper"].update(UA=70.1), "takes values by name, got 70.1"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_place(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    path = write(tmp_path, change)
    with pytest.raises(ConfigError, match=re.escape(words)) as error:
        read_paper(path)
    assert path in str(error.value)


def test_the_small_paper_is_one_without_the_changes(tmp_path: Path) -> None:
    assert list(read_paper(write(tmp_path)).computed) == ["one", "two", "who", "both"]


def test_an_unknown_paper_lists_those_that_there_are() -> None:
    with pytest.raises(UnknownNameError, match="no paper 'nobody1999'. Known: .*makiuchi2021"):
        read_paper("nobody1999")
    with pytest.raises(ConfigError, match="no paper file 'nobody.yaml'"):
        read_paper("nobody.yaml")


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "paper.yaml"
    path.write_text("title: [")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_paper(str(path))
    path.write_text("- title")
    with pytest.raises(ConfigError, match="must hold sections by name, got list"):
        read_paper(str(path))

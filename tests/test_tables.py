"""Tables of a paper: metrics by what they are, every number in its cell, and texts that stay texts."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from test_report import HOSTILE, Page

from pipelines.reporting import tables
from pipelines.reporting.tables import Document, Grid, Line, Table, Values, grid

SWAPPED = {"wa": "UA", "ua": "WA"}
SMALL = Line(
    "Small",
    paper={"wa": Values(0.701, 0.023, (0.679, 0.717, 0.673, 0.722, 0.716))},
    here={"wa": Values(0.5, 0.1, (0.4, 0.6))},
    notes=["a", "b"],
)
FOLDS = Table("Table 1", "By fold", {"wa": "UA"}, [SMALL], by_fold=True, fold_names=["s1", "s2"])
BOTH = Table(
    "Table 2",
    "Side by side",
    SWAPPED,
    [
        Line("Cited [3]", paper={"wa": Values(0.683)}, remark="cited by the paper"),
        Line("Ours", paper={"wa": Values(0.701), "ua": Values(0.707)}, here={"wa": Values(0.5), "ua": Values(0.25)}),
        Line("Lost", remark="failed: no memory"),
    ],
    notes=["c"],
)
DOCUMENT = Document(
    "A title", "A citation", ["A banner"], [("Corpus", "ours")], [FOLDS, BOTH], {"a": "First.", "b": "Second."},
    Grid(["run", "preset"], [["small", "demo"]], [False, False]),
)  # fmt: skip


def test_a_metric_is_named_by_what_it_is_and_by_the_papers_name() -> None:
    header = list(grid(BOTH).header)
    assert header[1:5] == [
        "accuracy (the paper's UA), paper", "accuracy (the paper's UA), here",
        "mean recall (the paper's WA), paper", "mean recall (the paper's WA), here",
    ]  # fmt: skip
    assert grid(BOTH).rows[1][1:5] == ["70.1", "50.0", "70.7", "25.0"]


def test_the_legend_says_that_names_are_swapped_where_they_are() -> None:
    legend = tables.legend(DOCUMENT.tables)
    assert legend.startswith("The paper swaps names. Accuracy is WA in this project and UA in the paper;")
    alike = replace(BOTH, metrics={"wa": "WA", "ua": "UA"})
    assert tables.legend([alike]).startswith("Accuracy is WA in this project and WA in the paper")
    assert "swaps" not in tables.legend([replace(BOTH, metrics={"wa": "Acc."})])


def test_folds_have_columns_with_the_papers_line_above_ours() -> None:
    cells = grid(FOLDS)
    assert cells.header == ["row", "whose", *(f"fold {n}" for n in range(1, 6)), "mean ± std", "notes"]
    paper, here = cells.rows
    assert paper == ["Small", "paper", "67.9", "71.7", "67.3", "72.2", "71.6", "70.1 ± 2.3", ""]
    assert here == ["Small", "here", "40.0", "60.0", "–", "–", "–", "50.0 ± 10.0", "a b"]
    assert FOLDS.caption == "Accuracy (the paper's UA), in %; the folds here are s1, s2."


def test_many_folds_leave_their_columns_to_the_csv() -> None:
    many = replace(SMALL, here={"wa": Values(0.5, 0.1, (0.5,) * 40)})
    cells = grid(replace(FOLDS, lines=[many]))
    assert len(cells.header) == 5 + 4
    assert cells.rows[1][2:] == ["–"] * 5 + ["50.0 ± 10.0", "a b"]
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(replace(DOCUMENT, tables=[replace(FOLDS, lines=[many])])))))
    assert sum(row["here_percent"] == "50" for row in rows) == 40 + 1


def test_the_caption_counts_folds_that_have_no_columns() -> None:
    names = [f"speaker {number}" for number in range(24)]
    many = replace(FOLDS, lines=[replace(SMALL, here={"wa": Values(0.5, 0.1, (0.5,) * 24)})], fold_names=names)
    assert many.caption == "Accuracy (the paper's UA), in %; here 24 folds, in tables.csv."
    assert replace(many, fold_names=[]).caption == many.caption
    few = replace(many, lines=[replace(SMALL, here={"wa": Values(0.5, 0.1, (0.5,) * 12)})], fold_names=names[:12])
    assert few.caption.endswith("; the folds here are " + ", ".join(names[:12]) + ".")


def test_every_row_of_a_grid_has_as_many_cells_as_the_header() -> None:
    for table in (FOLDS, BOTH, replace(FOLDS, metrics=SWAPPED)):
        cells = grid(table)
        assert {len(row) for row in cells.rows} == {len(cells.header)} == {len(cells.numeric)}


def test_the_csv_has_a_line_for_each_number_in_percent() -> None:
    rows = list(csv.DictReader(io.StringIO(tables.csv_text(DOCUMENT))))
    first = [row for row in rows if row["table"] == "Table 1"]
    assert [row["fold"] for row in first] == ["1", "2", "3", "4", "5", "mean", "std"]
    assert [row["paper_percent"] for row in first] == ["67.9", "71.7", "67.3", "72.2", "71.6", "70.1", "2.3"]
    assert [row["here_percent"] for row in first] == ["40", "60", "", "", "", "50", "10"]
    assert {(row["metric"], row["name_here"], row["name_in_paper"]) for row in rows} == {
        ("accuracy", "WA", "UA"), ("mean recall", "UA", "WA"),
    }  # fmt: skip
    [lost, _] = [row for row in rows if row["row"] == "Lost"]
    assert (lost["fold"], lost["paper_percent"], lost["here_percent"], lost["note"]) == (
        "mean", "", "", "failed: no memory",
    )  # fmt: skip


def test_markdown_has_the_tables_with_columns_in_line() -> None:
    text = tables.markdown(DOCUMENT)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    blocks = re.split(r"\n\n", text)
    for block in [block for block in blocks if block.startswith("|")]:
        assert len({len(line) for line in block.splitlines()}) == 1
    assert len(lines) == (2 + 2) + (2 + 3) + (2 + 1)
    assert "> **A banner**" in text
    assert "- **a** First." in text
    assert "failed: no memory" in text


def test_the_terminal_shows_every_number_of_the_tables() -> None:
    text = tables.text(DOCUMENT)
    for words in ("A banner", "Table 1: By fold", "70.1 ± 2.3", "50.0 ± 10.0", "accuracy, paper", "failed: no memory"):
        assert words in text


@pytest.fixture
def hostile() -> Document:
    line = replace(BOTH.lines[1], label=HOSTILE, remark=HOSTILE)
    table = replace(BOTH, name=HOSTILE, title=HOSTILE, lines=[line], metrics={"wa": HOSTILE}, fold_names=[HOSTILE])
    runs = Grid([HOSTILE], [[HOSTILE]], [False])
    return Document(HOSTILE, HOSTILE, [HOSTILE], [(HOSTILE, HOSTILE)], [table], {"a": HOSTILE}, runs)


def test_a_name_that_holds_markup_stays_a_name_on_the_page(hostile: Document, tmp_path: Path) -> None:
    path = tmp_path / "tables.html"
    path.write_text(tables.html(hostile), encoding="utf-8")
    page = Page(path)
    names = {name for name, _ in page.elements}
    assert not names & {"script", "img"}
    assert all(not attribute.startswith("on") for _, attributes in page.elements for attribute in attributes)
    shown = "".join(text for _, text in page.texts)
    assert shown.count("<script>alert(1)</script>") >= 9
    assert "{{ 7 * 7 }}" in shown


def test_the_page_needs_nothing_from_outside_and_runs_nothing() -> None:
    page = tables.html(replace(DOCUMENT, links={"Every run in full": "report.html"}))
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    assert '<a href="report.html">Every run in full</a>' in page
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_each_row_links_to_its_own_run_even_where_labels_are_alike() -> None:
    lines = [replace(SMALL, link="report.html#run-3"), replace(SMALL, link="report.html#run-4"), SMALL]
    for table in (FOLDS, BOTH):
        page = tables.html(replace(DOCUMENT, tables=[replace(table, lines=lines)]))
        assert re.findall(r'<a href="(.*?)">Small</a>', page) == ["report.html#run-3", "report.html#run-4"]


def test_a_name_that_holds_markup_stays_a_name_in_markdown(hostile: Document) -> None:
    pipes = replace(hostile, tables=[replace(BOTH, lines=[replace(SMALL, label="a|b\nc `d` *e* [f](g) \\| <b>")])])
    text = tables.markdown(pipes)
    assert "<" not in text.replace("&lt;", "")
    [row] = [line for line in text.splitlines() if line.startswith("| a")]
    assert len(re.split(r"(?<!\\)\|", row)) == len(grid(BOTH).header) + 2
    assert row.startswith(r"| a\|b c \`d\` \*e\* [f]\(g) \\\| &lt;b>")

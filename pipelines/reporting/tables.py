"""A paper's tables beside this project's numbers: as Markdown, as CSV, as one HTML page, and as text for a terminal.

A metric is named by what it is, with the paper's name for it in brackets, since papers call different things alike.
Numbers are fractions here, and percentages where they are shown.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

import jinja2
from markupsafe import Markup

from pipelines import show
from pipelines.reporting.figures import Plot
from pipelines.reporting.wording import TITLES, percent, spread

MEANINGS: Mapping[str, str] = {
    "wa": "accuracy", "ua": "mean recall", "macro_f1": "macro-F1", "weighted_f1": "weighted F1",
}  # fmt: skip
"""The metrics of `heads.metrics.evaluate`, and what each is."""

_MOST_FOLDS = 12
_NONE = "–"
_CSV = ("table", "row", "fold", "metric", "name_here", "name_in_paper", "paper_percent", "here_percent", "note")


@dataclass(frozen=True)
class Values:
    """One metric of one row, as fractions.

    Attributes:
        mean: over folds; None where it is not known.
        std: over folds; None where it is not known, or there is one fold.
        folds: (folds,) each fold's; empty where they are not known.
    """

    mean: float | None = None
    std: float | None = None
    folds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Line:
    """A row of a table.

    Attributes:
        label: what it is.
        paper: metric to what the paper prints; empty where the row is not in the paper.
        here: metric to what was measured; empty where nothing was.
        remark: why there is nothing, or what to know of it; empty where there is nothing to say.
        notes: letters of notes on it.
        link: address of the run in the report; empty where there is none.
    """

    label: str
    paper: Mapping[str, Values] = field(default_factory=dict)
    here: Mapping[str, Values] = field(default_factory=dict)
    remark: str = ""
    notes: Sequence[str] = ()
    link: str = ""

    @property
    def note(self) -> str:
        """Letters and remark in one text."""
        return "; ".join(text for text in (" ".join(self.notes), self.remark) if text)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: such as ``Table 1``.
        title: what it shows.
        metrics: this project's metric to the paper's name of it, in the order of the columns.
        lines: the rows.
        by_fold: whether folds have columns.
        notes: letters of notes on all of it.
        fold_names: the folds here, where their names are not simply 1, 2, ...
    """

    name: str
    title: str
    metrics: Mapping[str, str]
    lines: Sequence[Line]
    by_fold: bool = False
    notes: Sequence[str] = ()
    fold_names: Sequence[str] = ()

    @property
    def caption(self) -> str:
        """What the numbers are."""
        parts = []
        if self.by_fold:
            parts.append(f"{' and '.join(heading(metric, name) for metric, name in self.metrics.items())}, in %")
        else:
            parts.append("In %")
        count = max((len(values.folds) for line in self.lines for values in line.here.values()), default=0)
        if self.by_fold and count > _MOST_FOLDS:
            parts.append(f"here {count} folds, in tables.csv")
        elif self.fold_names:
            parts.append(f"the folds here are {', '.join(self.fold_names)}")
        if self.notes:
            parts.append(f"see {' '.join(self.notes)}")
        words = "; ".join(parts)
        return f"{words[0].upper()}{words[1:]}."


@dataclass(frozen=True)
class Grid:
    """Cells of a table.

    Attributes:
        header: names of the columns.
        rows: rows of as many cells.
        numeric: for each column, whether its cells stand to the right.
        links: for each row, an address that its first cell leads to, or nothing; empty where no row has one.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool]
    links: Sequence[str] = ()


@dataclass(frozen=True)
class Document:
    """Everything that is written of a paper.

    Attributes:
        title: of the paper.
        citation: of the paper, in one line.
        banners: what must be read first.
        facts: terms and texts: what was measured on, and how.
        tables: the tables.
        notes: letter to text.
        runs: how each run was made.
        figures: further figures, for the page.
        links: text to address of other files, for the page.
    """

    title: str
    citation: str
    banners: Sequence[str]
    facts: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    notes: Mapping[str, str]
    runs: Grid
    figures: Sequence[Plot] = ()
    links: Mapping[str, str] = field(default_factory=dict)


def heading(metric: str, name: str) -> str:
    """Return what a metric is called in a header: what it is, and how the paper calls it."""
    return f"{MEANINGS[metric]} (the paper's {name})"


def legend(tables: Sequence[Table]) -> str:
    """Return which name of the paper is which name of this project; nothing where no table has a metric."""
    names = {metric: name for table in tables for metric, name in table.metrics.items()}
    texts = [
        f"{MEANINGS[metric]} is {TITLES[metric]} in this project and {name} in the paper"
        for metric, name in names.items()
    ]
    swapped = [metric for metric, name in names.items() if name != TITLES[metric] and name in TITLES.values()]
    if not texts:
        return ""
    words = "; ".join(texts)
    return ("The paper swaps names. " if swapped else "") + words[0].upper() + words[1:] + "."


def grid(table: Table) -> Grid:
    """Return a table's cells, in percent: the paper's line above what was measured, or one column beside the other."""
    return _by_fold(table) if table.by_fold else _side_by_side(table)


def _side_by_side(table: Table) -> Grid:
    header = ["row", *(f"{heading(*one)}, {whose}" for one in table.metrics.items() for whose in ("paper", "here"))]
    rows = [
        [
            line.label,
            *(_cell(values, metric) for metric in table.metrics for values in (line.paper, line.here)),
            line.note,
        ]
        for line in table.lines
    ]
    numeric = [False, *[True] * (2 * len(table.metrics)), False]
    return Grid([*header, "notes"], rows, numeric, [line.link for line in table.lines])


def _by_fold(table: Table) -> Grid:
    every = [values for line in table.lines for side in (line.paper, line.here) for values in side.values()]
    count = max([len(one.folds) for one in every if len(one.folds) <= _MOST_FOLDS], default=0)
    several = len(table.metrics) > 1
    rows, links = [], []
    for line in table.lines:
        for metric, name in table.metrics.items():
            for whose, side in (("paper", line.paper), ("here", line.here)):
                folds = side[metric].folds if metric in side else ()
                shown = [percent(value) for value in folds] if len(folds) <= count else []
                shown += [_NONE] * (count - len(shown))
                note = line.note if whose == "here" else ""
                which = [heading(metric, name)] if several else []
                rows.append([line.label, *which, whose, *shown, _cell(side, metric), note])
                links.append(line.link if whose == "here" else "")
    header = ["row", *(["metric"] if several else []), "whose", *(f"fold {n + 1}" for n in range(count))]
    texts = 3 if several else 2
    numeric = [*[False] * texts, *[True] * (count + 1), False]
    return Grid([*header, "mean ± std", "notes"], rows, numeric, links)


def _cell(side: Mapping[str, Values], metric: str) -> str:
    values = side.get(metric, Values())
    return _NONE if values.mean is None else spread(values.mean, values.std)


def text(document: Document) -> str:
    """Return the tables for a terminal."""
    parts = [*document.banners]
    for table in document.tables:
        cells = grid(table)
        lines = [f"{table.name}: {table.title}", show.table([_short(cells.header, table), *cells.rows])]
        parts.append("\n".join(lines) + f"\n{table.caption}")
    parts.append("\n".join([legend(document.tables), *(f"{key}: {note}" for key, note in document.notes.items())]))
    return "\n\n".join(part for part in parts if part)


def _short(header: Sequence[str], table: Table) -> list[str]:
    """Return a header that a terminal has room for; the legend below explains it."""
    names = {heading(metric, name): MEANINGS[metric] for metric, name in table.metrics.items()}
    short = list(header)
    for long, meaning in names.items():
        short = [cell.replace(long, meaning) for cell in short]
    return short


def markdown(document: Document) -> str:
    """Return everything as Markdown."""
    parts = [f"# {_escape(document.title)}", _escape(document.citation)]
    parts += [f"> **{_escape(banner)}**" for banner in document.banners]
    parts.append(_escape(legend(document.tables)))
    parts.append("\n".join(f"- {_escape(term)}: {_escape(words)}" for term, words in document.facts))
    for table in document.tables:
        parts += [f"## {_escape(table.name)}: {_escape(table.title)}", _markdown(grid(table)), _escape(table.caption)]
    if document.notes:
        parts += ["## Notes", "\n".join(f"- **{key}** {_escape(note)}" for key, note in document.notes.items())]
    if document.runs.rows:
        parts += ["## What was run", _markdown(document.runs)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown(cells: Grid) -> str:
    rows = [[_escape(cell) for cell in row] for row in (cells.header, *cells.rows)]
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    numbers = list(zip(widths, cells.numeric, strict=True))
    lines = []
    for row in rows:
        padded = (
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, (width, numeric) in zip(row, numbers, strict=True)
        )
        lines.append("| " + " | ".join(padded) + " |")
    rule = ("-" * (width - 1) + (":" if numeric else "-") for width, numeric in numbers)
    lines.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join(lines)


def _escape(words: str) -> str:
    """Return a text that Markdown shows as it is: no table cell, emphasis, code, link or HTML comes of it."""
    line = " ".join(words.split())
    for mark in "\\`*_|~":
        line = line.replace(mark, f"\\{mark}")
    return line.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")


def csv_text(document: Document) -> str:
    """Return every number as tidy CSV, in percent: a line for each table, row, metric, and fold, mean or std."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_CSV)
    for table in document.tables:
        for line in table.lines:
            for metric, name in table.metrics.items():
                paper, here = line.paper.get(metric, Values()), line.here.get(metric, Values())
                for fold, (theirs, ours) in _numbers(paper, here).items():
                    cells = (table.name, line.label, fold, MEANINGS[metric], TITLES[metric], name)
                    writer.writerow([*cells, _number(theirs), _number(ours), line.remark])
    return out.getvalue()


def _numbers(paper: Values, here: Values) -> dict[str, tuple[float | None, float | None]]:
    """Return the paper's number and ours, by fold from 1 on, mean and std."""
    count = max(len(paper.folds), len(here.folds))
    sides = [[*values.folds, *[None] * (count - len(values.folds))] for values in (paper, here)]
    found: dict[str, tuple[float | None, float | None]] = {
        str(number): (theirs, ours) for number, (theirs, ours) in enumerate(zip(*sides, strict=True), start=1)
    }
    found["mean"] = (paper.mean, here.mean)
    if paper.std is not None or here.std is not None:
        found["std"] = (paper.std, here.std)
    return found


def _number(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.4f}".rstrip("0").rstrip(".")


def html(document: Document) -> str:
    """Return everything as one HTML page that needs nothing else and runs nothing."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("tables.html.jinja").render(
        document=document,
        legend=legend(document.tables),
        grids=[grid(table) for table in document.tables],
        css=Markup(_template("report.css")),  # noqa: S704  ours
    )


def _template(name: str) -> str:
    return (resources.files("pipelines") / "templates" / name).read_text(encoding="utf-8")

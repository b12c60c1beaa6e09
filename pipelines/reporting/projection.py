"""Codes in two dimensions: a row of panels a run, a column for each thing that the codes may tell.

The axes of such a picture have no units, so they have no ticks, and what looks apart in it may not be: under each panel
stands a number taken from the codes themselves. Colours lie between the lightness of a white and of a dark page, and do
not follow its theme. They were searched for by their least distance (CIE L*a*b*) as seen with and without each colour
blindness (Machado et al. 2009, https://doi.org/10.1109/TVCG.2009.113). A class has a marker too.
"""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from heads.fold_files import natural_key
from pipelines.reporting.svg import GRID, INK, MUTED, plain

COLOURS = ("#2b7afb", "#f07c10", "#1b8147", "#b4289a", "#7d7408", "#6248f5", "#13a8da", "#bf8068")
MARKERS: Mapping[str, float] = {
    "o": 1.0, "^": 1.05, "s": 0.88, "D": 0.78, "v": 1.05, "P": 1.12, "X": 1.08, "p": 1.1, "<": 1.05, "*": 1.35,
    ">": 1.05, "h": 1.1,
}  # fmt: skip
"""Shapes, and by how much each is wider or narrower than the circle, so that all look alike in size."""
MOST_CLASSES = 24
"""Eight colours and twelve markers taken in turn give this many pairs before one comes again."""
GREY, _DARKER = "#9aa3af", "#717a87"

# Sizes in inches.
_PANEL, _LEFT, _RIGHT, _APART, _EDGE = 2.9, 0.62, 0.15, 0.2, 0.14
_TITLE_LINE, _HEADING, _CAPTION, _BETWEEN, _LEGEND_LINE, _NOTE_LINE = 0.23, 0.3, 0.46, 0.14, 0.178, 0.165
_LETTER, _HANDLE = 0.072, 0.36
_TITLE_LETTERS, _NOTE_LETTERS = 11.5, 16.5  # an inch
_MOST_COLUMNS, _LONGEST = 4, 16
_MOST_MARKS, _RASTER_DPI = 3000, 200


@dataclass(frozen=True)
class Panel:
    """What a column shows of one run.

    Attributes:
        column: what is told apart, such as ``emotion``.
        classes: class of each utterance; None is not coloured.
        part: the part of the fold that is coloured.
        accuracy: balanced accuracy of the nearest neighbours; None where there are no two classes.
        of_speakers: each class has one speaker, so that the number is of speakers as well.
    """

    column: str
    classes: Sequence[str | None]
    part: str
    accuracy: float | None
    of_speakers: bool = False

    @property
    def counts(self) -> Counter[str]:
        """Utterances of each class."""
        return Counter(name for name in self.classes if name is not None)


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        title: its name.
        fold: whose model gave the codes.
        num_values: numbers that an utterance's codes are.
        points: ``(utterances, 2)``.
        panels: one a column, in the order of columns, the same in all rows.
    """

    title: str
    fold: str
    num_values: int
    points: NDArray[np.float32]
    panels: Sequence[Panel]


class _Style(NamedTuple):
    """How a class is drawn."""

    colour: str
    marker: str


def draw(rows: Sequence[Row], method: str, note: str, synthetic: bool) -> Figure:
    """Draw runs; call it inside :func:`pipelines.reporting.svg.style`.

    Args:
        rows: the runs, from top to bottom.
        method: how the points were found, for the title.
        note: what is coloured, and what the numbers are.
        synthetic: made from synthetic speech, which the title then says.
    """
    columns = [[row.panels[number] for row in rows] for number in range(len(rows[0].panels))]
    width = _LEFT + len(columns) * _PANEL + (len(columns) - 1) * _APART + _RIGHT
    titles = textwrap.wrap(_title(rows, method, synthetic), int((width - 2 * _EDGE) * _TITLE_LETTERS))
    lines = textwrap.wrap(note, int((width - 2 * _EDGE) * _NOTE_LETTERS))
    styles = [_styles(panels) for panels in columns]
    legends = [_legend(panels, style) for panels, style in zip(columns, styles, strict=True)]
    per_row = _PANEL + _CAPTION + _BETWEEN
    legend_height = max(ceil(len(labels) / num_columns) for labels, _, num_columns in legends) * _LEGEND_LINE
    head, foot = _EDGE + _TITLE_LINE * len(titles) + _HEADING, 2 * _EDGE + _NOTE_LINE * len(lines)
    height = head + len(rows) * per_row + legend_height + foot

    figure = Figure(figsize=(width, height), dpi=_RASTER_DPI)
    figure.set_layout_engine("none")
    for number, line in enumerate(titles):
        y = 1 - (_EDGE + _TITLE_LINE * (number + 0.5)) / height
        figure.text(_EDGE / width, y, line, fontweight="bold", va="center")
    for place, row in enumerate(rows):
        for number, panel in enumerate(row.panels):
            left, bottom = _LEFT + number * (_PANEL + _APART), height - head - place * per_row - _PANEL
            axes = figure.add_axes((left / width, bottom / height, _PANEL / width, _PANEL / height))
            _draw_panel(axes, row, panel, styles[number])
            if place == 0:
                axes.set_title(plain(panel.column, 30), fontsize=10.5, pad=6)
            if number == 0:
                _name_row(axes, row)
    for number, (labels, handles, num_columns) in enumerate(legends):
        corner = (_LEFT + number * (_PANEL + _APART)) / width, (foot + legend_height) / height
        legend = figure.legend(
            # matplotlib leaves out labels that begin with an underscore, so the names are set afterwards.
            handles, ["?"] * len(handles), loc="upper left", bbox_to_anchor=corner, ncols=num_columns, fontsize=8.5,
            borderaxespad=0.0, borderpad=0.0, handlelength=1.0, handletextpad=0.4, columnspacing=1.0, labelspacing=0.45,
        )  # fmt: skip
        for shown, label in zip(legend.get_texts(), labels, strict=True):
            shown.set_text(label)
    for number, line in enumerate(lines):
        y = (foot - _EDGE - _NOTE_LINE * (number + 0.5)) / height
        figure.text(_EDGE / width, y, line, color=MUTED, fontsize=8, va="center")
    return figure


def _title(rows: Sequence[Row], method: str, synthetic: bool) -> str:
    told = [f"fold {plain(row.fold)}, {len(row.points):,} utterances" for row in rows]
    if len(set(told)) > 1:
        told = [f"{plain(row.title)}: {what}" for row, what in zip(rows, told, strict=True)]
    speech = "  ·  synthetic speech" if synthetic else ""
    return f"Codes, {method}  ·  {'; '.join(dict.fromkeys(told))}{speech}"


def _styles(panels: Sequence[Panel]) -> dict[str, _Style]:
    """Return a style for each class of a column; the commonest have one where there are too many."""
    counts = sum((panel.counts for panel in panels), Counter[str]())
    shown = sorted(counts, key=lambda name: (-counts[name], natural_key(name)))[:MOST_CLASSES]
    markers = list(MARKERS)
    return {
        name: _Style(COLOURS[number % len(COLOURS)], markers[number % len(markers)])
        for number, name in enumerate(sorted(shown, key=natural_key))
    }


def _legend(panels: Sequence[Panel], styles: Mapping[str, _Style]) -> tuple[list[str], list[Line2D], int]:
    """Return labels, what stands before each, and in how many columns they fit below a panel."""
    labels = [plain(name, _LONGEST) for name in styles]
    handles = [_handle(style.colour, style.marker) for style in styles.values()]
    further = {name for panel in panels for name in panel.counts} - set(styles)
    if further:
        labels.append(f"and {len(further)} more")
        handles.append(_handle(_DARKER, "o"))
    if any(None in panel.classes for panel in panels):
        labels.append("others")
        handles.append(_handle(GREY, "o", 0.55))
    fitting = [number for number in range(2, _MOST_COLUMNS + 1) if _legend_width(labels, number) <= _PANEL]
    return labels, handles, max(fitting, default=1)


def _legend_width(labels: Sequence[str], num_columns: int) -> float:
    """Return about how wide a legend is; it is filled column by column."""
    columns = np.array_split([len(label) for label in labels], num_columns)
    return sum(_HANDLE + _LETTER * int(column.max(initial=0)) for column in columns)


def _handle(colour: str, marker: str, size: float = 1.0) -> Line2D:
    width = 6.0 * size * MARKERS[marker]
    return Line2D([], [], color=colour, marker=marker, linestyle="", markersize=width, markeredgewidth=0)


def _draw_panel(axes: Axes, row: Row, panel: Panel, styles: Mapping[str, _Style]) -> None:
    """Draw the points of one panel, those that are not coloured behind the others, and what is told below it."""
    numbers = {name: number for number, name in enumerate(styles, start=1)}
    classes = np.array([-1 if name is None else numbers.get(name, 0) for name in panel.classes])
    num_coloured = int((classes >= 0).sum())
    area = float(np.clip(9000 / max(num_coloured, 1), 7, 34))
    looks: dict[int, dict[str, Any]] = {
        -1: {"color": GREY, "marker": "o", "s": 0.45 * area, "alpha": 0.4},
        0: {"color": _DARKER, "marker": "o", "s": 0.7 * area, "alpha": 0.7},
    }
    for name, (colour, marker) in styles.items():
        size = area * MARKERS[marker] ** 2
        looks[numbers[name]] = {"color": colour, "marker": marker, "s": size, "alpha": 0.8}
    many = len(row.points) > _MOST_MARKS  # would make a page slow
    for number, look in looks.items():
        points = row.points[classes == number]
        if len(points):
            axes.scatter(points[:, 0], points[:, 1], linewidths=0, zorder=2, rasterized=many, **look)
    _frame(axes, row.points)
    axes.text(0.5, -0.1 / _PANEL, _number(panel), transform=axes.transAxes, ha="center", va="top", fontsize=9)
    axes.text(
        0.5, -0.28 / _PANEL,
        f"coloured: {num_coloured:,} of {panel.part}{', each class one speaker' if panel.of_speakers else ''}",
        transform=axes.transAxes, ha="center", va="top", fontsize=8, color=MUTED,
    )  # fmt: skip


def _number(panel: Panel) -> str:
    if panel.accuracy is None:
        return "one class here: nothing to tell apart"
    chance = f"{100 / len(panel.counts):.1f}".removesuffix(".0")
    return f"neighbours right: {100 * panel.accuracy:.0f} %  (chance {chance} %)"


def _frame(axes: Axes, points: NDArray[np.float32]) -> None:
    """Make a unit as long in both directions, and draw a box without ticks."""
    low, high = points.min(axis=0).astype(float), points.max(axis=0).astype(float)
    half = 0.535 * (float((high - low).max()) or 1.0)
    middle = (low + high) / 2
    axes.set_xlim(middle[0] - half, middle[0] + half)
    axes.set_ylim(middle[1] - half, middle[1] + half)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set(visible=True, color=GRID, linewidth=0.8)


def _name_row(axes: Axes, row: Row) -> None:
    style: dict[str, Any] = {"transform": axes.transAxes, "rotation": 90, "ha": "center", "va": "center"}
    axes.text(-0.34 / _PANEL, 0.5, plain(row.title, 28), color=INK, fontweight="bold", **style)
    values = f"{row.num_values:,} numbers an utterance"
    axes.text(-0.13 / _PANEL, 0.5, values, color=MUTED, fontsize=8, **style)

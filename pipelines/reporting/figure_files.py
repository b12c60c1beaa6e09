"""Figures as files, for papers and slides: SVG and PDF, on white, with the fonts inside.

In an SVG the letters are outlines, so that it looks alike everywhere; in a PDF they are TrueType, which submission
systems ask for. The same figure gives the same bytes.
"""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from featcache.files import write_atomically
from heads.runs import Run
from pipelines.reporting.groups import Group
from pipelines.reporting.section import Section
from pipelines.reporting.svg import FIRST, INK, METADATA, plain

FORMS = ("svg", "pdf")

_FONTS: Mapping[Any, Any] = {"svg.fonttype": "path", "pdf.fonttype": 42}
_COLOURS = LinearSegmentedColormap.from_list("share", ["white", FIRST])
_MOST_COUNTED = 8
_LONGEST, _SHORTENED = 80, 60


class Album:
    """The figures that are written, run by run: what is written is not kept.

    Attributes:
        forms: in which they are written.
        titles: name of the file, without its ending, to what the figure shows; those of groups come first.
        paths: the files.
    """

    def __init__(self, folder: Path, forms: Sequence[str]) -> None:
        self._folder = folder
        self.forms = forms
        self.titles: dict[str, str] = {}
        self.paths: list[Path] = []

    def add_run(self, name: str, section: Section) -> None:
        """Write a run's figures: its confusion matrix, and those of the page."""
        found = {f"{name}-confusion": ("Confusion", confusion(section.run))}
        for plot in section.plots:
            found[f"{name}-{plot.ident.removeprefix(f'{section.ident}-')}"] = (plot.title, plot.figure)
        self.titles |= self._write(found)

    def add_groups(self, groups: Sequence[Group]) -> None:
        """Write what the page draws of runs beside each other."""
        plots = [(group.plot.title.replace("UA", "comparison"), group.plot) for group in groups]
        plots += [(plot.title, plot) for group in groups for plot in group.settings]
        names = file_names([title for title, _ in plots])
        drawn = {name: (plot.title, plot.figure) for name, (_, plot) in zip(names, plots, strict=True)}
        self.titles = self._write(drawn) | self.titles

    def _write(self, found: Mapping[str, tuple[str, Figure]]) -> dict[str, str]:
        figures = {name: figure for name, (_, figure) in found.items()}
        self.paths += write_figures(figures, self._folder, self.forms)
        return {name: title for name, (title, _) in found.items()}


def confusion(run: Run) -> Figure:
    """Draw a run's confusion matrix, all folds pooled: percent of each row, and counts where there is room."""
    classes = run.scores.classes
    counts = np.array(run.metrics["pooled"]["confusion"], np.int64)
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    side = 0.62 if len(classes) <= _MOST_COUNTED else 0.42
    figure = Figure(figsize=(1.6 + side * len(classes), 1.1 + side * len(classes)))
    axes = figure.add_subplot()
    axes.pcolormesh(shares, cmap=_COLOURS, vmin=0, vmax=1, edgecolors="white", linewidth=1)
    for row, column in np.ndindex(*counts.shape):
        words = f"{100 * shares[row, column]:.0f}" if totals[row, 0] else "–"
        words += f"\n({counts[row, column]})" if len(classes) <= _MOST_COUNTED else ""
        colour = "white" if shares[row, column] > 0.55 else INK
        axes.text(column + 0.5, row + 0.5, words, ha="center", va="center", color=colour, fontsize=8)
    middles = np.arange(len(classes)) + 0.5
    names = [plain(name, 16) for name in classes]
    axes.set_xticks(middles, names, rotation=45, ha="right", rotation_mode="anchor", color=INK)
    axes.set_yticks(middles, names, color=INK)
    axes.tick_params(length=0)
    axes.set_ylim(len(classes), 0)
    axes.set_aspect("equal")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("recognised as")
    axes.set_ylabel("true class")
    return figure


def write_figures(drawn: Mapping[str, Figure], folder: Path, forms: Sequence[str]) -> list[Path]:
    """Write figures, each in every form; to be called inside :func:`pipelines.reporting.svg.style`.

    Args:
        drawn: name of the file, without its ending, to figure.
        folder: where to write.
        forms: of `FORMS`.

    Returns:
        The files, figure by figure.
    """
    paths = []
    for name, figure in drawn.items():
        for form in forms:
            picture = io.BytesIO()
            with matplotlib.rc_context(dict(_FONTS)):
                figure.savefig(picture, format=form, metadata=METADATA[f".{form}"], facecolor="white")
            path = folder / f"{name}.{form}"
            write_atomically(path, picture.getvalue())
            paths.append(path)
    return paths


def file_names(names: Sequence[str]) -> list[str]:
    r"""Return names as parts of file names, all different: letters, digits, hyphens and underscores, for ``\input``."""
    found: dict[str, None] = {}
    for name in names:
        stem = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "run"
        if len(stem) > _LONGEST:
            stem = (
                f"{stem[:_SHORTENED]}-{hashlib.blake2b(name.encode(errors='surrogatepass'), digest_size=4).hexdigest()}"
            )
        numbered = (stem if number == 1 else f"{stem}-{number}" for number in range(1, len(names) + 1))
        # Some file systems take upper and lower case for the same.
        taken = {one.lower() for one in found}
        found[next(one for one in numbered if one.lower() not in taken)] = None
    return list(found)

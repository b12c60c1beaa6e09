"""The report's figures, drawn with matplotlib's object-oriented interface inside :func:`pipelines.reporting.svg.style`.

Each function takes numbers and returns a figure, in percent where a metric is shown. Colour never stands alone: what
is told apart by it is told apart by shape or line style too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from numpy.typing import NDArray

from pipelines.reporting.calibration import NUM_BINS, Calibration
from pipelines.reporting.details import Curves, LayerSweep, LayerWeights
from pipelines.reporting.fusions import FusionCurve
from pipelines.reporting.speakers import SpeakerRow
from pipelines.reporting.svg import FIRST, GRID, INK, MUTED, SECOND, plain

_WIDTH = 4.4
_LEGEND: dict[str, Any] = {
    "loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "borderaxespad": 0.2, "handlelength": 1.5,
    "columnspacing": 1.2,
}  # fmt: skip
_MOST_TICKS = 13
_MOST_SPEAKERS = 60
_LONGEST_NAME = 56


@dataclass(frozen=True)
class Entry:
    """A line of the comparison: a run's name, a metric in every fold, and its mean and standard deviation."""

    name: str
    folds: Sequence[float]
    mean: float
    std: float | None


def comparison(entries: Sequence[Entry], chance: float) -> Figure:
    """Draw a metric of several runs: every fold, and the mean with one standard deviation to both sides.

    Args:
        entries: the runs, from top to bottom.
        chance: what guessing gives; drawn where the runs come near it.
    """
    longest = max(len(plain(entry.name, _LONGEST_NAME)) for entry in entries)
    figure = Figure(figsize=(_WIDTH + 0.07 * max(0, longest - 20), 0.85 + 0.36 * len(entries)))
    axes = figure.add_subplot()
    for row, entry in enumerate(entries):
        # Folds of nearly the same value lie beside each other instead of hiding each other.
        offsets = np.linspace(-0.22, 0.22, len(entry.folds)) if len(entry.folds) > 1 else [0.0]
        axes.plot(_percent(entry.folds), row + np.asarray(offsets), "o", color=MUTED, alpha=0.55, markersize=4, mew=0)
        spread = None if entry.std is None else 100 * entry.std
        axes.errorbar(100 * entry.mean, row, xerr=spread, fmt="D", color=FIRST, markersize=6, capsize=4, linewidth=1.8)
    lowest = min(value for entry in entries for value in (*entry.folds, entry.mean - (entry.std or 0)))
    highest = max(value for entry in entries for value in (*entry.folds, entry.mean + (entry.std or 0)))
    axes.axvline(100 * chance, color=SECOND, linestyle="--", linewidth=1)
    axes.set_xlim(max(0, 100 * lowest - 3), min(100, 100 * highest) + 3)
    axes.set_ylim(len(entries) - 0.4, -0.6)
    axes.set_yticks(range(len(entries)), [plain(entry.name, _LONGEST_NAME) for entry in entries], color=INK)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("UA (%)")
    return figure


def recall(classes: Sequence[str], pooled: NDArray[np.float64], by_fold: NDArray[np.float64]) -> Figure:
    """Draw the recall of each class.

    Args:
        classes: names.
        pooled: (classes,) over all folds; NaN for a class that does not occur.
        by_fold: (folds, classes) of each fold.
    """
    figure = Figure(figsize=(_WIDTH, 0.8 + 0.36 * len(classes)))
    axes = figure.add_subplot()
    rows = np.arange(len(classes))
    axes.barh(rows, 100 * np.nan_to_num(pooled), color=FIRST, alpha=0.35, height=0.66)
    if len(by_fold) > 1:
        offsets = np.linspace(-0.2, 0.2, len(by_fold))[:, None]
        axes.plot(
            (100 * by_fold).ravel(), (rows + offsets).ravel(), "o", color=FIRST, markersize=3.5, mew=0, clip_on=False
        )
    axes.set_yticks(rows, [plain(name) for name in classes], color=INK)
    axes.set_ylim(len(classes) - 0.5, -0.5)
    axes.set_xlim(0, 102)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("recall (%)")
    return figure


def by_fold(names: Sequence[str], ua: Sequence[float], wa: Sequence[float], mean_ua: float) -> Figure:
    """Draw UA and WA of every fold, and the mean UA."""
    figure = Figure(figsize=(_wide(len(names), 0.3), 2.7))
    axes = figure.add_subplot()
    places = np.arange(len(names))
    beside = 0.08 if len(names) <= 6 else 0.18
    axes.plot(places - beside, _percent(ua), "o", color=FIRST, markersize=6, label="UA")
    axes.plot(places + beside, _percent(wa), "s", color=SECOND, markersize=5.5, fillstyle="none", mew=1.5, label="WA")
    axes.axhline(100 * mean_ua, color=FIRST, linestyle="--", linewidth=1, label="mean UA")
    turned = len(names) * max(map(len, names)) > 44
    axes.set_xticks(places, [plain(name, 14) for name in names], rotation=60 if turned else 0, color=INK)
    axes.set_xlim(-0.6, len(names) - 0.4)
    low, high = axes.get_ylim()
    axes.set_ylim(max(0, low - 3), min(101, high + 3))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("fold")
    axes.set_ylabel("%")
    axes.legend(**_LEGEND)
    return figure


def by_speaker(rows: Sequence[SpeakerRow]) -> Figure:
    """Draw UA and accuracy of every speaker, the hardest first, and the mean UA."""
    ordered = sorted(rows, key=lambda row: row.ua)
    figure = Figure(figsize=(_wide(len(ordered), 0.22), 2.9))
    axes = figure.add_subplot()
    places = np.arange(len(ordered))
    ua, wa = [row.ua for row in ordered], [row.wa for row in ordered]
    axes.plot(places, _percent(ua), "o", color=FIRST, markersize=5.5, label="UA", clip_on=False)
    axes.plot(places, _percent(wa), "s", color=SECOND, markersize=5, fillstyle="none", mew=1.3, label="WA")
    axes.axhline(100 * float(np.mean(ua)), color=FIRST, linestyle="--", linewidth=1, label="mean UA")
    shown = range(0, len(ordered), -(-len(ordered) // _MOST_SPEAKERS))
    turned = len(ordered) * max(len(row.name) for row in ordered) > 40
    labels = [plain(ordered[place].name, 14) for place in shown]
    axes.set_xticks(list(shown), labels, rotation=90 if turned else 0, color=INK)
    axes.set_xlim(-0.6, len(ordered) - 0.4)
    axes.set_ylim(0, 103)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("speaker")
    axes.set_ylabel("%")
    axes.legend(**_LEGEND)
    return figure


def reliability(found: Calibration) -> Figure:
    """Draw accuracy against confidence in bins, and how many utterances lie in each."""
    figure = Figure(figsize=(_WIDTH, 3.7))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    middles = 100 * (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    above.plot((0, 100), (0, 100), "--", color=SECOND, linewidth=1, label="as confident as right")
    above.bar(middles, 100 * np.nan_to_num(found.accuracy), width=92 / NUM_BINS, color=FIRST, alpha=0.35)
    above.plot(100 * found.confidence, 100 * found.accuracy, "o", color=FIRST, markersize=4.5)
    above.set_ylim(0, 102)
    above.set_ylabel("accuracy (%)")
    above.legend(**_LEGEND)
    below.bar(middles, found.counts, width=92 / NUM_BINS, color=MUTED, alpha=0.6)
    below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    below.set_ylabel("utterances")
    below.set_xlim(0, 100)
    below.set_xlabel("confidence (%)")
    return figure


def fusion(found: FusionCurve, where: str) -> Figure:
    """Draw a metric by the weight of the second run: a thin line for each fold, a thick one for their mean.

    Args:
        found: the curves.
        where: what was searched on, such as ``validation``.
    """
    figure = Figure(figsize=(_WIDTH, 3.9))
    opacity = max(0.2, 0.6 - 0.05 * len(found.folds))
    drawn = ((found.searched, FIRST, "-", "o", where), (found.test, SECOND, "--", "s", "test"))
    for axes, (values, colour, line, mark, name) in zip(figure.subplots(2, 1, sharex=True), drawn, strict=True):
        for fold, chosen in zip(values, found.chosen, strict=True):
            axes.plot(found.weights, 100 * fold, line, color=colour, alpha=opacity, linewidth=1)
            place = found.weights[chosen], 100 * fold[chosen]
            axes.plot(*place, mark, color=INK, markersize=6, fillstyle="none", mew=1.4, clip_on=False)
        if len(values) > 1:
            axes.plot(found.weights, 100 * values.mean(axis=0), line, color=colour, linewidth=2.2)
        axes.set_ylabel(f"{name}, {found.metric.upper()} (%)")
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlim(0, 1)
    axes.set_xlabel(f"weight of {plain(found.names[1], 30)}")
    return figure


def by_setting(name: str, values: Sequence[float], test: Sequence[float], validation: Sequence[float] | None) -> Figure:
    """Draw a metric of several runs against a setting: a point for each run, lines through the means.

    Args:
        name: the setting.
        values: (runs,) of it; each that occurs has a place of its own on the axis.
        test: (runs,) the metric, a fraction.
        validation: (runs,) the same on validation; None where not every run has it.
    """
    grid, places = np.unique(values, return_inverse=True)
    figure = Figure(figsize=(_wide(len(grid), 0.2), 3.0))
    axes = figure.add_subplot()
    drawn = [(test, SECOND, "--s", "test")]
    drawn += [] if validation is None else [(validation, FIRST, "-o", "validation")]
    for numbers, colour, form, label in reversed(drawn):
        means = [np.mean(_percent(numbers)[places == place]) for place in range(len(grid))]
        full = "none" if form.endswith("s") else "full"
        axes.plot(means, form, color=colour, markersize=4.5, fillstyle=full, label=label)
        if len(values) > len(grid):
            axes.plot(places, _percent(numbers), form[-1], color=colour, alpha=0.3, markersize=2.5, mew=0)
    axes.margins(y=0.1)
    axes.set_xlim(-0.6, len(grid) - 0.4)
    shown = range(0, len(grid), -(-len(grid) // _MOST_TICKS))
    axes.set_xticks(list(shown), [f"{grid[place]:g}" for place in shown], color=INK)
    axes.set_xlabel(plain(name, 40))
    axes.set_ylabel("UA (%)")
    axes.legend(**_LEGEND)
    return figure


def curves(found: Curves) -> Figure:
    """Draw loss and metric against steps: a thin line for each fold, a ring where its weights were kept."""
    figure = Figure(figsize=(_WIDTH, 3.7))
    above, below = figure.subplots(2, 1, sharex=True)
    opacity = max(0.25, 0.9 - 0.08 * len(found.by_fold))
    for curve in found.by_fold.values():
        finite = np.where(np.isfinite(curve.loss), curve.loss, np.nan)
        above.plot(curve.steps, finite, color=FIRST, alpha=opacity, linewidth=1.2)
        below.plot(curve.steps, _percent(curve.validation), color=FIRST, alpha=opacity, linewidth=1.2)
        if curve.best is not None:
            place = curve.steps[curve.best], 100 * curve.validation[curve.best]
            below.plot(*place, "o", color=SECOND, markersize=6, fillstyle="none", mew=1.5)
    above.set_ylabel("train loss")
    above.set_ylim(bottom=0)
    below.set_ylabel(f"validation {found.metric.upper()} (%)")
    below.set_xlabel("optimiser steps")
    below.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def layer_weights(found: LayerWeights) -> Figure:
    """Draw what each layer contributes: the mean over folds as bars, every fold as a row of a heat map."""
    num_folds, num_layers = found.values.shape
    heat_height = min(0.2 * num_folds, 4.0) + 0.3
    figure = Figure(figsize=(_wide(num_layers, 0.15), 1.9 + heat_height))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1.4, heat_height))
    places = np.arange(num_layers)
    above.bar(places, found.values.mean(axis=0), color=FIRST, alpha=0.6, width=0.8)
    for number, (_, layers) in enumerate(found.streams):
        above.hlines(1 / len(layers), layers[0] - 0.5, layers[-1] + 0.5, SECOND, "--", linewidth=1)
        if number:
            above.axvline(layers[0] - 0.5, color=INK, linewidth=0.5)
    above.set_ylabel("mean weight")
    above.grid(visible=False, axis="x")
    # Opacity, not colour, carries the weight: it reads on light and on dark alike.
    sizes = np.abs(found.values)  # weights that are ratios may be negative
    opacity = sizes / sizes.max() if sizes.max() > 0 else sizes
    left, top = np.meshgrid(places - 0.5, np.arange(num_folds) - 0.5)
    below.bar(
        left.ravel() + 0.5,
        np.ones(left.size),
        width=1.0,
        bottom=top.ravel(),
        color=[
            (FIRST if value >= 0 else SECOND, float(share))
            for value, share in zip(found.values.ravel(), opacity.ravel(), strict=True)
        ],
    )
    below.set_ylim(num_folds - 0.5, -0.5)
    below.set_xlim(-0.6, num_layers - 0.4)
    below.grid(visible=False)
    _thin(below, found.layers)
    shown = range(0, num_folds, -(-num_folds // 20))
    below.set_yticks(list(shown), [plain(found.folds[row], 10) for row in shown], color=INK)
    below.set_xlabel("layer")
    below.set_ylabel("fold")
    return figure


def by_layer(found: LayerSweep, metric: str) -> Figure:
    """Draw a metric on validation and on test against the layer, and mark the layers that validation chose."""
    figure = Figure(figsize=(_wide(len(found.layers), 0.15), 3.0))
    axes = figure.add_subplot()
    places = np.arange(len(found.layers))
    validation, test = 100 * found.validation.mean(axis=0), 100 * found.test.mean(axis=0)
    axes.plot(places, validation, "-o", color=FIRST, markersize=3.5, label="validation")
    axes.plot(places, test, "--s", color=SECOND, markersize=3.5, fillstyle="none", label="test")
    chosen = np.flatnonzero(found.num_chosen)
    axes.plot(
        chosen,
        validation[chosen],
        "o",
        color=INK,
        markersize=9,
        fillstyle="none",
        mew=1.4,
        label="chosen on validation",
    )
    for place in chosen:
        where = (place, validation[place])
        axes.annotate(str(found.num_chosen[place]), where, (0, 8), textcoords="offset points", ha="center", fontsize=8)
    axes.margins(y=0.16)
    axes.set_xlim(-0.6, len(places) - 0.4)
    _thin(axes, found.layers)
    axes.set_xlabel("layer")
    axes.set_ylabel(f"{metric}, mean over folds (%)")
    axes.legend(**_LEGEND)
    return figure


def _percent(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    return 100 * np.asarray(values, np.float64)


def _wide(count: int, each: float) -> float:
    """Return a figure's width in inches: the usual one, or more where `count` things need it."""
    return max(_WIDTH, 0.9 + each * count)


def _thin(axes: Axes, layers: Sequence[int]) -> None:
    """Label at most `_MOST_TICKS` layers, at even distances."""
    places = range(0, len(layers), -(-len(layers) // _MOST_TICKS))
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.set_xticklabels([str(layers[place]) for place in places], color=INK)
    axes.tick_params(axis="x", color=GRID)

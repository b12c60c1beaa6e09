"""A run's figures, each with a title, a caption, and words for those who do not see it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

from heads.metrics import Pooled, recalls
from heads.runs import Run
from pipelines.reporting import plots
from pipelines.reporting.calibration import NUM_BINS, Calibration
from pipelines.reporting.details import Curves, LayerSweep, LayerWeights
from pipelines.reporting.fusions import FusionCurve
from pipelines.reporting.speakers import SpeakerRow
from pipelines.reporting.svg import inline
from pipelines.reporting.wording import TITLES, percent

_WIDEST_IN = 5.0


@dataclass(frozen=True)
class Plot:
    """A figure of a page.

    Attributes:
        ident: unique on the page.
        title: what it shows.
        figure: as it was drawn.
        svg: the ``<svg>`` element.
        caption: what to know to read it.
        wide: whether it needs a row of the page for itself.
    """

    ident: str
    title: str
    figure: Figure
    svg: Markup
    caption: str
    wide: bool


def make_plot(ident: str, title: str, figure: Figure, label: str, caption: str) -> Plot:
    """Return a figure for a page.

    Args:
        ident: unique on the page; goes before the figure's ids.
        title: what it shows.
        figure: the figure.
        label: its content in words.
        caption: what to know to read it.
    """
    svg = inline(figure, ident, f"{title}. {label}")
    return Plot(ident, title, figure, svg, caption, figure.get_size_inches()[0] > _WIDEST_IN)


def recall(run: Run, ident: str) -> Plot:
    """Return the recall of each class."""
    classes, folds = run.scores.classes, run.metrics["folds"]
    pooled = _recalls(run.metrics["pooled"])
    figure = plots.recall(classes, pooled, np.array([_recalls(fold) for fold in folds]))
    caption = "Bars: all folds pooled." + (" Dots: each fold, the first on top." if len(folds) > 1 else "")
    return make_plot(ident, "Recall of each class", figure, _percentages(zip(classes, pooled, strict=True)), caption)


def by_fold(run: Run, ident: str) -> Plot:
    """Return UA and WA of every fold."""
    folds = run.metrics["folds"]
    names, ua = [fold["fold"] for fold in folds], [fold["ua"] for fold in folds]
    figure = plots.by_fold(names, ua, [fold["wa"] for fold in folds], run.metrics["mean"]["ua"])
    label = "UA: " + _percentages(zip(names, ua, strict=True))
    return make_plot(ident, "Fold by fold", figure, label, "The numbers are in the table of folds.")


def by_speaker(rows: Sequence[SpeakerRow], ident: str) -> Plot:
    """Return UA and WA of every speaker."""
    worst, best = min(rows, key=lambda row: row.ua), max(rows, key=lambda row: row.ua)
    words = f"{len(rows)} speakers; UA from {percent(worst.ua)} % ({worst.name}) to {percent(best.ua)} % ({best.name})."
    caption = "The hardest speaker first; dashed, the mean of their UA. " + words
    return make_plot(ident, "Speaker by speaker", plots.by_speaker(rows), words, caption)


def reliability(found: Calibration, ident: str) -> Plot:
    """Return accuracy against confidence."""
    words = f"Expected calibration error {percent(found.ece)} %, Brier score {found.brier:.3f}."
    confidence = np.nansum(found.confidence * found.counts) / found.counts.sum()
    accuracy = np.nansum(found.accuracy * found.counts) / found.counts.sum()
    words += f" Mean confidence {percent(confidence)} %, accuracy {percent(accuracy)} %."
    caption = (
        f"{words} Above the dashed line the run is right more often than it says, below less often. {NUM_BINS} bins of "
        "equal width; all folds pooled."
    )
    return make_plot(ident, "Calibration", plots.reliability(found), words, caption)


def fusion(found: FusionCurve, searched_on: str, ident: str) -> Plot:
    """Return a metric by fusion weight, where the weight was searched and on test.

    Args:
        found: the curves.
        searched_on: as ``config.yaml`` says it: ``validation`` or ``other-folds``.
        ident: unique on the page.
    """
    where = {"validation": "validation", "other-folds": "other folds"}.get(searched_on, "searched")
    chosen = ", ".join(
        f"{fold} {found.weights[place]:g}" for fold, place in zip(found.folds, found.chosen, strict=True)
    )
    caption = (
        f"A thin line for each fold, a thick one for their mean; {found.names[0]} has the rest. Marks: the weight that "
        f"was chosen on {where}, fold by fold. Nothing is chosen on test: its highest point is not a result."
    )
    title = f"{found.metric.upper()} by fusion weight"
    return make_plot(ident, title, plots.fusion(found, where), f"Weights chosen, by fold: {chosen}.", caption)


def by_setting(
    name: str, values: Sequence[float], test: Sequence[float], validation: Sequence[float] | None, ident: str
) -> Plot:
    """Return the UA of several runs against a setting; for arguments see `pipelines.reporting.plots.by_setting`."""
    means = {
        value: np.mean([ua for own, ua in zip(values, test, strict=True) if own == value]) for value in set(values)
    }
    label = "On test: " + _percentages((f"{value:g}", float(means[value])) for value in sorted(means))
    several = " Small marks: each run; lines: means of the runs of a value." if len(values) > len(means) else ""
    caption = f"Means over folds.{several} The highest point of the dashed line is a choice on test, not a result."
    return make_plot(ident, f"UA by {name}", plots.by_setting(name, values, test, validation), label, caption)


def curves(found: Curves, ident: str) -> Plot:
    """Return the learning curves."""
    kept = [curve.validation[curve.best] for curve in found.by_fold.values() if curve.best is not None]
    label = f"Loss on train and {TITLES[found.metric]} on validation by optimiser step, {len(found.by_fold)} folds."
    label += f" Best on validation: {percent(min(kept))} to {percent(max(kept))} percent." if kept else ""
    caption = "A line for each fold, of the setting it chose. Rings: the weights that were kept, best on validation."
    return make_plot(ident, "Learning curves", plots.curves(found), label, caption)


def layer_weights(found: LayerWeights, ident: str) -> Plot:
    """Return the weight of each layer, as a heat map over folds."""
    several = len(found.streams) > 1
    largest = " ".join(
        _largest(found, name, layers) for name, layers in found.streams if len(layers) > 1 or not several
    )
    label = f"{len(found.layers)} layers, {len(found.folds)} folds. {largest}"
    alike = "all layers of a stream alike" if several else "all layers alike"
    caption = f"Above: mean over folds; dashed, {alike}. Below: full colour is {found.values.max():.3f}. "
    return make_plot(ident, "Layer weights", plots.layer_weights(found), label, caption + largest)


def _largest(found: LayerWeights, stream: str, layers: range) -> str:
    mean = found.values.mean(axis=0)
    top = max(layers, key=lambda layer: mean[layer])
    of = f" of {stream} (layers {found.layers[layers[0]]} to {found.layers[layers[-1]]})" if stream else ""
    name = found.names[top].removeprefix(f"{stream}: ") if stream else found.names[top]
    return f"Largest mean{of}: layer {found.layers[top]}, {name} ({mean[top]:.3f})."


def by_layer(found: LayerSweep, metric: str, ident: str) -> Plot:
    """Return a metric by layer, on validation and on test.

    Args:
        found: the layers.
        metric: what the metric is called.
        ident: unique on the page.
    """
    test = _percentages(zip((f"layer {layer}" for layer in found.layers), found.test.mean(axis=0), strict=True))
    picks = ", ".join(
        f"layer {layer} in {count}" for layer, count in zip(found.layers, found.num_chosen, strict=True) if count
    )
    chosen = f"Folds in which validation chose a layer: {picks}." if picks else ""
    caption = (
        "Means over folds. Rings: layers that validation chose, with the number of folds that did. Nothing is chosen "
        "on test: the highest point of the dashed line is not a result."
    )
    label = f"On test: {test}. {chosen}"
    return make_plot(ident, f"{metric} by layer, chosen on validation", plots.by_layer(found, metric), label, caption)


def _recalls(measured: Pooled) -> NDArray[np.float64]:
    return recalls(np.array(measured["confusion"], np.int64))


def _percentages(pairs: Iterable[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {percent(value)} %" for name, value in pairs)

"""What training leaves in a run folder beside scores, for those who report it: curves, layer weights, candidates.

The three files are written by :mod:`pipelines.train_heads`, and any other program may write them:

* ``curves.csv``: ``fold, step, loss`` and the metric on validation, ``ua`` or ``wa``;
* ``layer_weights.csv``: ``fold, layer, layer_name, weight``;
* ``candidates.csv``: ``fold``, what was varied, ``validation``, ``test``, ``chosen``.

Each may be absent, and is then None. One that is there is read strictly: a file that lacks a cell, or speaks of folds
that were not scored, was left by another run or cut off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featcache.errors import ScoresError
from pipelines.reporting.csv_table import CsvTable

Floats = NDArray[np.float64]

_NOT_VARIED = ("fold", "layer_name", "validation", "test", "chosen")


@dataclass(frozen=True, eq=False)
class Curve:
    """How one fold's chosen candidate learnt.

    Attributes:
        steps: (evaluations,) optimiser steps done.
        loss: (evaluations,) on train, since the last evaluation; not finite where training diverged.
        validation: (evaluations,) metric on validation, a fraction.
    """

    steps: Floats
    loss: Floats
    validation: Floats

    @property
    def best(self) -> int | None:
        """The evaluation whose weights are kept: the first of the best; None where there is no metric."""
        return None if np.isnan(self.validation).all() else int(np.nanargmax(self.validation))


@dataclass(frozen=True, eq=False)
class Curves:
    """Learning curves: the `metric` on validation (``"ua"`` or ``"wa"``), and a curve for each fold."""

    metric: str
    by_fold: Mapping[str, Curve]


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """What each layer contributes.

    Attributes:
        folds: (folds,) names.
        layers: (layers,) positions in the stream; of several streams, counted through all of them.
        names: (layers,) names; ``STREAM: LAYER`` of several streams.
        values: (folds, layers) weights.
    """

    folds: tuple[str, ...]
    layers: tuple[int, ...]
    names: tuple[str, ...]
    values: Floats

    @property
    def streams(self) -> list[tuple[str, range]]:
        """Name of each stream (empty where there is but one) and where its layers stand, whose weights sum to 1."""
        starts = [at for at, name in enumerate(self.names) if at == 0 or _stream(name) != _stream(self.names[at - 1])]
        ends = [*starts[1:], len(self.names)]
        return [(_stream(self.names[start]), range(start, end)) for start, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True, eq=False)
class LayerSweep:
    """Candidates by layer: of each fold and layer, the candidate that was best on validation.

    Attributes:
        layers: (layers,) positions in the stream.
        names: (layers,) names.
        validation: (folds, layers) metric on validation, by which things are chosen.
        test: (folds, layers) the same metric on test, by which nothing is chosen.
        num_chosen: (layers,) in how many folds validation chose the layer.
    """

    layers: tuple[int, ...]
    names: tuple[str, ...]
    validation: Floats
    test: Floats
    num_chosen: NDArray[np.int64]


@dataclass(frozen=True)
class SettingSummary:
    """One setting over the folds that tried it: values of what was varied, means, and in how many folds it was chosen.

    `validation` and `test` are fractions, NaN where a fold has none.
    """

    values: tuple[str, ...]
    num_folds: int
    num_chosen: int
    validation: float
    test: float


@dataclass(frozen=True, eq=False)
class Candidates:
    """Every setting that was tried in every fold; all fields have one item a row of the file.

    Attributes:
        folds: names.
        settings: what was varied, as written: name to values.
        layer_names: names of the layers; empty texts where no layer was varied.
        validation: metric on validation, NaN where nothing was chosen.
        test: the same metric on test.
        chosen: whether it is the one whose scores the run holds.
    """

    folds: tuple[str, ...]
    settings: Mapping[str, tuple[str, ...]]
    layer_names: tuple[str, ...]
    validation: Floats
    test: Floats
    chosen: NDArray[np.bool_]

    @property
    def varied(self) -> tuple[str, ...]:
        """The settings that differ between candidates."""
        return tuple(name for name, values in self.settings.items() if len(set(values)) > 1)

    def by_setting(self) -> list[SettingSummary]:
        """Return one summary for each combination of what was `varied`, in the order of the file."""
        columns = [self.settings[name] for name in self.varied]
        groups: dict[tuple[str, ...], list[int]] = {}
        for row, _ in enumerate(self.folds):
            groups.setdefault(tuple(column[row] for column in columns), []).append(row)
        return [
            SettingSummary(
                values,
                len(rows),
                int(self.chosen[rows].sum()),
                float(self.validation[rows].mean()),
                float(self.test[rows].mean()),
            )
            for values, rows in groups.items()
        ]

    def by_layer(self) -> LayerSweep | None:
        """Return the candidates by layer; None where there were not several layers to choose from.

        Where a layer was tried with several other settings, validation decides which of them stands for it.

        Raises:
            ScoresError: a fold lacks a layer that another fold has.
        """
        layers = [int(value) for value in self.settings.get("layer", ())]
        if len(set(layers)) < 2:
            return None
        best: dict[tuple[str, int], int] = {}
        for row, key in enumerate(zip(self.folds, layers, strict=True)):
            if key not in best or self.validation[row] > self.validation[best[key]]:
                best[key] = row
        numbers = tuple(sorted(set(layers)))
        rows = _grid("layer", tuple(dict.fromkeys(self.folds)), numbers, best)
        names = dict(zip(layers, self.layer_names, strict=True))
        counts = [sum(bool(self.chosen[row]) for row, layer in enumerate(layers) if layer == one) for one in numbers]
        return LayerSweep(
            numbers,
            tuple(names[number] for number in numbers),
            self.validation[rows],
            self.test[rows],
            np.array(counts, np.int64),
        )


def read_curves(folder: Path, folds: Sequence[str]) -> Curves | None:
    """Read ``curves.csv``.

    Args:
        folder: the run folder.
        folds: folds that were scored.

    Raises:
        ScoresError: the file is not usable; the message names it, and the line where there is one.
    """
    table = CsvTable.read(folder / "curves.csv", ("fold", "step", "loss"), folds)
    if table is None:
        return None
    metric = next((name for name in ("ua", "wa") if name in table.header), None)
    if metric is None:
        raise ScoresError(f"{str(table.path)!r} has no column 'ua' or 'wa', the metric on validation.")
    names = np.array(table.texts("fold"), dtype=object)
    steps, loss, validation = table.numbers("step"), table.numbers("loss"), table.fractions(metric)
    parts = {name: np.flatnonzero(names == name) for name in dict.fromkeys(names)}
    return Curves(metric, {name: Curve(steps[rows], loss[rows], validation[rows]) for name, rows in parts.items()})


def read_layer_weights(folder: Path, folds: Sequence[str]) -> LayerWeights | None:
    """Read ``layer_weights.csv``; arguments and errors as `read_curves`."""
    table = CsvTable.read(folder / "layer_weights.csv", ("fold", "layer", "layer_name", "weight"), folds)
    if table is None:
        return None
    layers, weights = table.whole_numbers("layer"), table.numbers("weight")
    if not np.isfinite(weights).all():
        raise ScoresError(f"{str(table.path)!r} has layer weights that are not finite. The run has failed there.")
    names = dict(zip(layers, table.texts("layer_name"), strict=True))
    cells = {key: row for row, key in enumerate(zip(table.texts("fold"), layers, strict=True))}
    shown, numbers = tuple(dict.fromkeys(table.texts("fold"))), tuple(sorted(names))
    try:
        rows = _grid("layer", shown, numbers, cells)
    except ScoresError as error:
        raise ScoresError(f"{str(table.path)!r}: {error}") from None
    return LayerWeights(shown, numbers, tuple(names[number] for number in numbers), weights[rows])


def read_candidates(folder: Path, folds: Sequence[str]) -> Candidates | None:
    """Read ``candidates.csv``; arguments and errors as `read_curves`."""
    table = CsvTable.read(folder / "candidates.csv", ("fold", "validation", "test", "chosen"), folds)
    if table is None:
        return None
    settings = {name: tuple(table.texts(name)) for name in table.header if name not in _NOT_VARIED}
    if "layer" in settings:
        settings["layer"] = tuple(str(layer) for layer in table.whole_numbers("layer"))
    found = Candidates(
        tuple(table.texts("fold")),
        settings,
        tuple(table.texts("layer_name")) if "layer_name" in table.header else ("",) * len(table.rows),
        table.fractions("validation"),
        table.fractions("test"),
        np.array([text.lower() == "true" for text in table.texts("chosen")]),
    )
    try:
        found.by_layer()
    except ScoresError as error:
        raise ScoresError(f"{str(table.path)!r}: {error}") from None
    return found


def _stream(name: str) -> str:
    return name.rpartition(": ")[0]


def _grid(
    what: str, folds: Sequence[str], numbers: Sequence[int], cells: Mapping[tuple[str, int], int]
) -> NDArray[np.int64]:
    """Return ``(folds, numbers)`` rows of a table that has one for each."""
    for fold in folds:
        for number in numbers:
            if (fold, number) not in cells:
                raise ScoresError(f"fold {fold!r} has no {what} {number}, which others have. Was the file cut off?")
    return np.array([[cells[fold, number] for number in numbers] for fold in folds], np.int64)

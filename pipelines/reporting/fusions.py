"""What a fusion leaves in its run folder: metrics by weight, and coefficients; see :mod:`pipelines.fuse`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from featcache.errors import ScoresError
from pipelines.reporting.csv_table import CsvTable
from pipelines.reporting.facts import Table

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FusionCurve:
    """Two runs fused: a metric by the weight of the second, where the weight was searched and on test.

    Attributes:
        names: the two runs.
        metric: ``"ua"`` or ``"wa"``, whichever was maximised.
        folds: (folds,) names.
        weights: (points,) of the second run; the first has the rest to 1.
        searched: (folds, points) the metric on what was searched, a fraction.
        test: (folds, points) the same on test, by which nothing is chosen.
        chosen: (folds,) position of the weight that was chosen.
    """

    names: tuple[str, str]
    metric: Literal["ua", "wa"]
    folds: tuple[str, ...]
    weights: Floats
    searched: Floats
    test: Floats
    chosen: NDArray[np.int64]


def read_fusion_curve(folder: Path, folds: Sequence[str], metric: str) -> FusionCurve | None:
    """Read ``fusion_curve.csv`` and, for what was chosen, ``fusion_weights.csv``.

    Args:
        folder: the run folder.
        folds: folds that were scored.
        metric: the metric that was maximised; UA where it is none of the file's.

    Returns:
        The curve, or None where a file is absent: other fusions than searches over two runs have none.

    Raises:
        ScoresError: a file is not usable; the message names it.
    """
    name: Literal["ua", "wa"] = "wa" if metric == "wa" else "ua"
    curve = CsvTable.read(folder / "fusion_curve.csv", ("fold", "weight", f"search_{name}", f"test_{name}"), folds)
    table = CsvTable.read(folder / "fusion_weights.csv", ("fold",), folds)
    if curve is None or table is None:
        return None
    columns = [column for column in table.header if column.startswith("w_")]
    if len(columns) != 2:
        raise ScoresError(f"{str(table.path)!r} has {len(columns)} weights where 'fusion_curve.csv' is of two runs.")
    names, weights = np.array(curve.texts("fold"), dtype=object), curve.fractions("weight")
    shown, grid = tuple(dict.fromkeys(names)), np.unique(weights)
    rows = [np.flatnonzero(names == fold) for fold in shown]
    if any(not np.array_equal(weights[own], grid) for own in rows):
        raise ScoresError(f"{str(curve.path)!r} does not have the same weights for every fold. Was the file cut off?")
    picked = dict(zip(table.texts("fold"), table.fractions(columns[1]), strict=True))
    lacking = [fold for fold in shown if fold not in picked]
    if lacking:
        raise ScoresError(f"{str(table.path)!r} lacks fold {lacking[0]!r}, which 'fusion_curve.csv' has.")
    return FusionCurve(
        (columns[0].removeprefix("w_"), columns[1].removeprefix("w_")),
        name,
        shown,
        grid,
        curve.fractions(f"search_{name}")[rows],
        curve.fractions(f"test_{name}")[rows],
        np.array([np.abs(grid - picked[fold]).argmin() for fold in shown], np.int64),
    )


def read_coefficients(folder: Path, folds: Sequence[str]) -> Table | None:
    """Return what each run's score of a class adds to that class, mean over folds, of ``fusion_coefficients.csv``.

    Raises:
        ScoresError: the file is not usable; the message names it.
    """
    table = CsvTable.read(
        folder / "fusion_coefficients.csv", ("fold", "class", "run", "score_of", "coefficient"), folds
    )
    if table is None:
        return None
    values: dict[tuple[str, str], list[float]] = {}
    columns = (table.texts(name) for name in ("class", "run", "score_of"))
    for one, run, of, value in zip(*columns, table.numbers("coefficient"), strict=True):
        if of in ("", one):
            values.setdefault((one, run or "intercept"), []).append(float(value))
    classes, terms = (list(dict.fromkeys(key[place] for key in values)) for place in (0, 1))
    rows = [
        [one, *(f"{np.mean(values[one, term]):.2f}" if (one, term) in values else "–" for term in terms)]
        for one in classes
    ]
    return Table(["class", *terms], rows)

"""Late fusion: one score table from several, by weights.

- ``prob``: the weighted sum of probabilities (Makiuchi 2021, Eq. 4, https://doi.org/10.1109/ASRU51503.2021.9688036).
  Their weights, 0.6 and 1, do not sum to one; here the sum is divided by its total, so that a fused table holds
  probabilities again. No decision changes by that.
- ``log``: the weighted sum of log-probabilities (Padi 2022, Eq. 1), and its softmax, likewise without effect on the
  decision.
- Standardised scores (Padi 2022, Eq. 2): each run's scores, less their mean and divided by their standard deviation
  on hold-out data, before the weighted sum; then softmax. The paper's statistics are one number a modality, so here
  they are taken over all utterances and classes of a run's validation scores, fold by fold: test data decides
  nothing, and a run by itself keeps its decisions.

Weights are given here; :mod:`heads.fusion_search` finds them fold by fold, and :mod:`heads.fusion_stack` learns a
model in their place.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from heads.fusion_data import Fused, Inputs, Model, gather, score
from heads.fusion_values import FLOOR, Array, Space, in_space, shares_of, standardised, to_probabilities, weighted_sum
from heads.runs import Run
from heads.scores import Scores, match

__all__ = ["FLOOR", "Fused", "Space", "fuse", "fuse_runs", "weighing"]


def fuse(
    scores: Sequence[Scores],
    weights: Sequence[float],
    *,
    space: Space = "prob",
    standardise_by: Sequence[Scores] | None = None,
    names: Sequence[str] = (),
) -> Scores:
    """Fuse score tables over the same utterances.

    Args:
        scores: the tables, in any order of rows and classes; the first decides that of the result.
        weights: one for each table, 0 or more, in any scale.
        space: ``prob`` sums probabilities, ``log`` sums their logarithms.
        standardise_by: hold-out scores of each run, over the same folds; given, scores are standardised first.
        names: what to call each table in messages.

    Returns:
        Probabilities. Weights (1, 0, ...) give the decisions of the first table.

    Raises:
        ConfigError: weights or space do not fit.
        ScoresError: tables over other utterances, classes, folds or labels, or hold-out scores that do not fit.
    """
    shares = shares_of(weights, len(scores))
    names = names or [f"run {index}" for index in range(1, len(scores) + 1)]
    first = scores[0]
    values = []
    for index, table in enumerate(scores):
        rows, columns = match(first, table, (names[0], names[index]))
        if standardise_by is None:
            found = in_space(table, space)
        else:
            found = standardised(table, standardise_by[index], space, names[index])
        values.append(found[rows][:, columns])
    sums_to_one = space == "prob" and standardise_by is None
    fused = _weigh(np.stack(values), shares, sums_to_one)
    return Scores(first.ids, first.folds, first.labels, first.classes, fused)


def fuse_runs(
    runs: Sequence[Run], weights: Sequence[float], *, space: Space = "prob", standardise: bool = False
) -> Fused:
    """Fuse runs over the same utterances: their test scores, and their validation scores where that is possible.

    Args:
        runs: the runs.
        weights: one for each run, 0 or more, in any scale; the same in every fold.
        space: ``prob`` sums probabilities, ``log`` sums their logarithms.
        standardise: standardise each run's scores by its own validation scores first.

    Raises:
        ConfigError: weights or space do not fit.
        ScoresError: test scores over other utterances, classes, folds or labels; or, to standardise, a run without
            validation scores for every fold.
    """
    shares = shares_of(weights, len(runs))
    inputs = gather(runs, space, standardise)
    return score(inputs, dict.fromkeys(inputs.folds, weighing(inputs, shares)))


def weighing(inputs: Inputs, shares: Array) -> Model:
    """Return what fuses values of some runs by weights.

    Args:
        inputs: the runs.
        shares: (runs,) weights, which sum to 1.
    """
    return partial(_weigh, shares=shares, sums_to_one=inputs.sums_to_one)


def _weigh(values: Array, shares: Array, sums_to_one: bool) -> Array:
    return to_probabilities(weighted_sum(values, shares), sums_to_one)

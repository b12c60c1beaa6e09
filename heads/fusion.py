"""Late fusion: one score table from several, by fixed weights.

- ``prob``: the weighted sum of probabilities (Makiuchi 2021, Eq. 4, https://doi.org/10.1109/ASRU51503.2021.9688036).
  Their weights, 0.6 and 1, do not sum to one; here the sum is divided by its total, so that a fused table holds
  probabilities again. No decision changes by that.
- ``log``: the weighted sum of log-probabilities (Padi 2022, Eq. 1), and its softmax, likewise without effect on the
  decision.
- Standardised scores (Padi 2022, Eq. 2): each run's scores, less their mean and divided by their standard deviation
  on hold-out data, before the weighted sum; then softmax. The paper's statistics are one number a modality, so here
  they are taken over all utterances and classes of a run's validation scores, fold by fold: test data decides
  nothing, and a run by itself keeps its decisions.

Weights are given, never found here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from featcache.errors import ConfigError, ScoresError
from heads.runs import Run
from heads.scores import Scores, align, match

Space = Literal["prob", "log"]

FLOOR = float(np.finfo(np.float32).tiny)
"""Smallest probability whose logarithm is taken: what a float32 softmax gives is left as it is, and 0 stays finite."""


@dataclass(frozen=True, eq=False)
class Fused:
    """Fused runs.

    Attributes:
        scores: test utterances.
        validation_scores: validation utterances, or None where there are none to fuse.
        why_no_validation: why there are none, in words; empty where there are.
    """

    scores: Scores
    validation_scores: Scores | None
    why_no_validation: str


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
    shares = _shares(weights, len(scores))
    names = names or [f"run {index}" for index in range(1, len(scores) + 1)]
    first = scores[0]
    total = np.zeros(first.probabilities.shape)
    for index, (table, share) in enumerate(zip(scores, shares, strict=True)):
        values = _in_space(table, space)
        if standardise_by is not None:
            values = _standardise(values, table, standardise_by[index], space, names[index])
        rows, columns = match(first, table, (names[0], names[index]))
        total += share * values[rows][:, columns]
    sums_to_one = space == "prob" and standardise_by is None
    fused = total / total.sum(axis=1, keepdims=True) if sums_to_one else _softmax(total)
    return Scores(first.ids, first.folds, first.labels, first.classes, fused)


def fuse_runs(
    runs: Sequence[Run], weights: Sequence[float], *, space: Space = "prob", standardise: bool = False
) -> Fused:
    """Fuse runs over the same utterances: their test scores, and their validation scores where that is possible.

    Args:
        runs: the runs.
        weights: one for each run, 0 or more, in any scale.
        space: ``prob`` sums probabilities, ``log`` sums their logarithms.
        standardise: standardise each run's scores by its own validation scores first.

    Raises:
        ConfigError: weights or space do not fit.
        ScoresError: test scores over other utterances, classes, folds or labels; or, to standardise, a run without
            validation scores for every fold.
    """
    names = [run.name for run in runs]
    validation = [run.validation_scores for run in runs if run.validation_scores is not None]
    without = [run.name for run in runs if run.validation_scores is None]
    if standardise and without:
        raise ScoresError(
            f"{', '.join(without)} kept no validation scores, and standardising needs them. "
            "Train again with a validation part, or fuse without standardising."
        )
    holdout = validation if standardise else None
    scores = fuse([run.scores for run in runs], weights, space=space, standardise_by=holdout, names=names)
    if without:
        return Fused(scores, None, f"{', '.join(without)} kept no validation scores")
    try:
        align(validation, names)
    except ScoresError as error:
        # Runs may have cut validation differently; their test scores can be fused by fixed weights all the same.
        return Fused(scores, None, f"the runs were not validated on the same utterances: {error}")
    return Fused(scores, fuse(validation, weights, space=space, standardise_by=holdout, names=names), "")


def _shares(weights: Sequence[float], num_runs: int) -> NDArray[np.float64]:
    """Return the weights, divided by their sum."""
    if not num_runs:
        raise ConfigError("There is nothing to fuse: no run was given.")
    if len(weights) != num_runs:
        raise ConfigError(f"Fusion needs one weight for each run: {num_runs} runs, {len(weights)} weights.")
    for weight in weights:
        if not math.isfinite(weight) or weight < 0:
            raise ConfigError(f"A fusion weight must be a number, 0 or more, got {weight!r}.")
    if not any(weights):
        raise ConfigError("All fusion weights are 0. At least one run must count.")
    shares = np.asarray(weights, np.float64)
    # The largest first, so that neither huge nor tiny weights leave the range of float64.
    shares = shares / shares.max()
    return shares / shares.sum()


def _in_space(table: Scores, space: Space) -> NDArray[np.float64]:
    if space == "prob":
        return table.probabilities
    if space == "log":
        return np.log(np.maximum(table.probabilities, FLOOR))
    raise ConfigError(f"Fusion has no space {space!r}. Known: prob, log.")


def _standardise(
    values: NDArray[np.float64], table: Scores, holdout: Scores, space: Space, name: str
) -> NDArray[np.float64]:
    if holdout.classes != table.classes:
        raise ScoresError(
            f"{name} has the classes {list(table.classes)} in its scores and {list(holdout.classes)} in its hold-out."
        )
    known = _in_space(holdout, space)
    where, from_fold = np.asarray(table.folds, dtype=object), np.asarray(holdout.folds, dtype=object)
    result = np.empty_like(values)
    for fold in dict.fromkeys(table.folds):
        sample = known[from_fold == fold]
        if not sample.size:
            raise ScoresError(f"{name} has no validation scores for fold {fold!r}, and standardising needs them.")
        if sample.min() == sample.max():
            raise ScoresError(
                f"{name} gives every class of every validation utterance of fold {fold!r} the same score, "
                "so its scores cannot be standardised. Has that fold been trained?"
            )
        result[where == fold] = (values[where == fold] - sample.mean()) / sample.std()
    return result


def _softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)

"""The numbers that late fusion adds: probabilities or their logarithms, standardised where that is asked.

Sources and departures from them are in :mod:`heads.fusion`.
"""

import math
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from featcache.errors import ConfigError, ScoresError
from heads.scores import Scores

Space = Literal["prob", "log"]
Array = NDArray[np.float64]

FLOOR = float(np.finfo(np.float32).tiny)
"""Smallest probability whose logarithm is taken: what a float32 softmax gives is left as it is, and 0 stays finite."""


def in_space(table: Scores, space: Space) -> Array:
    """Return ``(utterances, classes)`` probabilities, or their logarithms.

    Raises:
        ConfigError: an unknown space.
    """
    if space == "prob":
        return table.probabilities
    if space == "log":
        return np.log(np.maximum(table.probabilities, FLOOR))
    raise ConfigError(f"Fusion has no space {space!r}. Known: prob, log.")


def standardised(table: Scores, holdout: Scores, space: Space, name: str, leave_out: Collection[str] = ()) -> Array:
    """Return a table's values, less the mean of their fold's hold-out scores and divided by their standard deviation.

    Args:
        table: the scores.
        holdout: scores of the same run, over the same folds.
        space: what values are.
        name: what to call the run in messages.
        leave_out: ids of utterances of `holdout` that are not looked at: those of a fold that is to be decided about.

    Returns:
        (utterances, classes), in the order of `table`.

    Raises:
        ScoresError: hold-out scores of other classes; a fold without any, or where they are all the same.
    """
    if set(holdout.classes) != set(table.classes):
        raise ScoresError(
            f"{name} has the classes {list(table.classes)} in its scores and {list(holdout.classes)} in its hold-out."
        )
    values, known = in_space(table, space), in_space(holdout, space)
    where, from_fold = np.asarray(table.folds, dtype=object), np.asarray(holdout.folds, dtype=object)
    usable = np.array([one not in leave_out for one in holdout.ids])
    result = np.empty_like(values)
    for fold in dict.fromkeys(table.folds):
        sample = known[(from_fold == fold) & usable]
        if not sample.size and (from_fold == fold).any():
            raise ScoresError(
                f"All utterances on which {name} validated fold {fold!r} are tested by the fold to be decided about, "
                "so its scores cannot be standardised by them. Leave --standardise out, or search on validation."
            )
        if not sample.size:
            raise ScoresError(f"{name} has no validation scores for fold {fold!r}, and standardising needs them.")
        if sample.min() == sample.max():
            raise ScoresError(
                f"{name} gives every class of every validation utterance of fold {fold!r} the same score, "
                "so its scores cannot be standardised. Has that fold been trained?"
            )
        result[where == fold] = (values[where == fold] - sample.mean()) / sample.std()
    return result


def shares_of(weights: Sequence[float], num_runs: int) -> Array:
    """Return (runs,) weights, divided by their sum.

    Raises:
        ConfigError: not one weight a run, a weight that is no number of 0 or more, or nothing but zeros.
    """
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


def weighted_sum(values: Array, shares: Array) -> Array:
    """Return ``(..., utterances, classes)`` weighted sums over runs.

    Args:
        values: (runs, utterances, classes).
        shares: (..., runs) weights, which sum to 1.
    """
    total = np.zeros((*shares.shape[:-1], *values.shape[1:]))
    for run, one in enumerate(values):
        total += shares[..., run, None, None] * one
    return total


def to_probabilities(total: Array, sums_to_one: bool) -> Array:
    """Return ``(..., utterances, classes)`` probabilities of weighted sums; no decision changes.

    Args:
        total: (..., utterances, classes).
        sums_to_one: these are sums of probabilities, so rows are divided by their sum (it is 1 up to rounding);
            otherwise their softmax is taken.
    """
    powers = total if sums_to_one else np.exp(total - total.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))

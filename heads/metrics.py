"""Metrics of classification, from arrays of classes or from a score table.

Conventions
-----------
- Every metric is a fraction in 0..1. Percentages are made where they are printed.
- ``wa`` is plain accuracy: each utterance counts alike.
- ``ua`` is the mean of the per-class recalls, over the classes that occur in the reference: a class with
  nothing to recall has no recall. It is scikit-learn's ``balanced_accuracy_score``. Makiuchi 2021 and MMER's
  code use the two names the other way round.
- ``macro_f1`` is the mean of the per-class F1 over the classes that occur in the reference or among the
  predictions, and ``weighted_f1`` the mean weighted by how often a class occurs in the reference (MELD's
  metric); both as in scikit-learn's ``f1_score``.
- A confusion matrix has the reference in rows and the prediction in columns.
- A prediction is the class of highest score, the first of them at a tie.
- ``mean`` and ``std`` are over folds, each fold alike; ``std`` is the sample standard deviation (n - 1). Makiuchi
  2021 does so: its folds 67.9 71.7 67.3 72.2 71.6 are printed as 70.1 ± 2.3, where division by n gives 2.1.
  One fold has no standard deviation: None.
- ``pooled`` puts the utterances of all folds together first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from featcache.errors import ScoresError
from heads.fold_files import natural_key
from heads.scores import Scores

Counts = NDArray[np.int64]


class Totals(NamedTuple):
    """All that the metrics need to know of a confusion matrix, or of many of them at once.

    Attributes:
        right: (..., classes) how many utterances of each class were taken for it.
        true: (..., classes) how many utterances of each class there are; not all 0.
        predicted: (..., classes) how many utterances were taken for each class.
    """

    right: NDArray[Any]
    true: NDArray[Any]
    predicted: NDArray[Any]


class Pooled(TypedDict):
    """Metrics of some utterances: ``n`` of them, fractions, and the confusion matrix in the order of classes."""

    n: int
    wa: float
    ua: float
    macro_f1: float
    weighted_f1: float
    confusion: list[list[int]]


class OfFold(Pooled):
    """Metrics of one fold."""

    fold: str


class Metrics(TypedDict):
    """What ``metrics.json`` holds; `mean` and `std` are by the name of the metric."""

    classes: list[str]
    folds: list[OfFold]
    mean: dict[str, float]
    std: dict[str, float | None]
    pooled: Pooled


def validate(reference: ArrayLike, predicted: ArrayLike) -> None:
    """Check that two arrays can be compared.

    Args:
        reference: (utterances,) the true classes, as whole numbers or as text.
        predicted: (utterances,) the predicted classes, of the same kind.

    Raises:
        ScoresError: they are empty, of other shapes, or not classes; the message guesses the mistake.
    """
    reference, predicted = np.asarray(reference), np.asarray(predicted)
    kinds: list[str] = []
    for what, values in (("reference", reference), ("prediction", predicted)):
        if values.ndim != 1:
            hint = " Scores of each class? Take their argmax first." if values.ndim == 2 else ""
            raise ScoresError(f"The {what} must be one class for each utterance, got shape {values.shape}.{hint}")
        if values.dtype.kind not in "iubUOS":
            raise ScoresError(
                f"The {what} holds {values.dtype} values, not classes. Scores? Take their argmax first. "
                "Class numbers? Convert them to int."
            )
        kinds.append("numbers" if values.dtype.kind in "iub" else "text")
    if len(reference) != len(predicted):
        raise ScoresError(
            f"The reference has {len(reference)} utterances and the prediction {len(predicted)}. "
            "Did both leave out the same ones?"
        )
    if not len(reference):
        raise ScoresError("There is no utterance to score.")
    if kinds[0] != kinds[1]:
        raise ScoresError(
            f"The reference holds {kinds[0]} and the prediction {kinds[1]}. Names here and positions there? "
            "Use one of the two for both."
        )


def confusion(reference: ArrayLike, predicted: ArrayLike, num_classes: int) -> Counts:
    """Count how often each class was taken for each.

    Args:
        reference: (utterances,) true classes, 0 to `num_classes` - 1.
        predicted: (utterances,) predicted classes, likewise.
        num_classes: number of classes.

    Returns:
        (classes, classes) counts: reference in rows, prediction in columns.

    Raises:
        ScoresError: see `validate`, and a class out of range.
    """
    validate(reference, predicted)
    pair = np.stack([np.asarray(reference), np.asarray(predicted)])
    if pair.dtype.kind not in "iub":
        raise ScoresError("A confusion matrix counts class numbers, and these are names. Number the classes first.")
    if pair.min() < 0 or pair.max() >= num_classes:
        raise ScoresError(
            f"Classes go from {pair.min()} to {pair.max()} where 0 to {num_classes - 1} was expected. "
            "Do they count from 1?"
        )
    counts = np.zeros((num_classes, num_classes), np.int64)
    rows, columns = pair.astype(np.int64)
    np.add.at(counts, (rows, columns), 1)
    return counts


def recalls(counts: Counts) -> NDArray[np.float64]:
    """Return the recall of each class.

    Args:
        counts: (classes, classes) confusion matrix.

    Returns:
        (classes,) fractions; NaN for a class that does not occur in the reference.
    """
    return _divided(counts.diagonal(), counts.sum(axis=1))


def wa(reference: ArrayLike, predicted: ArrayLike) -> float:
    """Return the accuracy. See `validate` for the arguments and errors."""
    return float(_wa(_count(reference, predicted)))


def ua(reference: ArrayLike, predicted: ArrayLike) -> float:
    """Return the mean recall of the classes in the reference. See `validate` for the arguments and errors."""
    return float(_ua(_count(reference, predicted)))


def macro_f1(reference: ArrayLike, predicted: ArrayLike) -> float:
    """Return the mean F1 of the classes in either array. See `validate` for the arguments and errors."""
    return float(_macro_f1(_count(reference, predicted)))


def weighted_f1(reference: ArrayLike, predicted: ArrayLike) -> float:
    """Return the mean F1 weighted by occurrence in the reference. See `validate` for the arguments and errors."""
    return float(_weighted_f1(_count(reference, predicted)))


def mean_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and the sample standard deviation (n - 1) of a metric over folds.

    Args:
        values: (folds,) fractions.

    Returns:
        Both as fractions; the deviation is None where there is one fold only.

    Raises:
        ScoresError: no value, or one that is not a fraction.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not len(array):
        raise ScoresError(f"A mean over folds needs one value for each fold, got shape {array.shape}.")
    if not np.all((array >= 0) & (array <= 1)):
        hint = " Are these percentages? Divide them by 100." if 1 < array.max() <= 100 else ""
        raise ScoresError(f"A metric is a fraction in 0..1, got {array[~((array >= 0) & (array <= 1))][0]:g}.{hint}")
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else None


def evaluate(scores: Scores) -> Metrics:
    """Return every metric of a score table: by fold, over folds, and pooled.

    Args:
        scores: the scores, of one or more folds.

    Returns:
        What ``metrics.json`` holds. Folds are in natural order of their names, whatever the order of rows.
    """
    num_classes = len(scores.classes)
    reference, predicted, names = scores.reference, scores.predicted, np.asarray(scores.folds, dtype=object)
    tables = {
        name: confusion(reference[names == name], predicted[names == name], num_classes)
        for name in sorted(set(scores.folds), key=natural_key)
    }
    spread = {
        name: mean_std([float(metric(totals(counts))) for counts in tables.values()])
        for name, metric in METRICS.items()
    }
    return {
        "classes": list(scores.classes),
        "folds": [{"fold": name, **_measure(counts)} for name, counts in tables.items()],
        "mean": {name: mean for name, (mean, _) in spread.items()},
        "std": {name: std for name, (_, std) in spread.items()},
        "pooled": _measure(confusion(reference, predicted, num_classes)),
    }


def totals(counts: Counts) -> Totals:
    """Return what `METRICS` are computed from.

    Args:
        counts: (classes, classes) confusion matrix.
    """
    return Totals(counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0))


def _count(reference: ArrayLike, predicted: ArrayLike) -> Totals:
    validate(reference, predicted)
    both = np.concatenate([np.asarray(reference), np.asarray(predicted)])
    classes, numbers = np.unique(both, return_inverse=True)
    half = len(both) // 2
    return totals(confusion(numbers[:half], numbers[half:], len(classes)))


def _divided(numerator: NDArray[Any], denominator: NDArray[Any]) -> NDArray[np.float64]:
    """Return quotients; NaN where there is nothing to divide by."""
    return np.divide(numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)


def _wa(of: Totals) -> NDArray[np.float64]:
    return np.asarray(of.right.sum(axis=-1) / of.true.sum(axis=-1))


def _ua(of: Totals) -> NDArray[np.float64]:
    return np.asarray(np.nanmean(_divided(of.right, of.true), axis=-1))


def _f1(of: Totals) -> NDArray[np.float64]:
    """Return the F1 of each class; NaN for a class that occurs neither in the reference nor among predictions."""
    return _divided(2 * of.right, of.true + of.predicted)


def _macro_f1(of: Totals) -> NDArray[np.float64]:
    return np.asarray(np.nanmean(_f1(of), axis=-1))


def _weighted_f1(of: Totals) -> NDArray[np.float64]:
    return np.asarray(np.nansum(_f1(of) * of.true, axis=-1) / of.true.sum(axis=-1))


METRICS: Mapping[str, Callable[[Totals], NDArray[np.float64]]] = {
    "wa": _wa,
    "ua": _ua,
    "macro_f1": _macro_f1,
    "weighted_f1": _weighted_f1,
}
"""The metrics of `evaluate`: name, and what it is of totals of shape (..., classes), as an array of shape (...)."""


def _measure(counts: Counts) -> Pooled:
    of = totals(counts)
    return {
        "n": int(counts.sum()),
        "wa": float(_wa(of)),
        "ua": float(_ua(of)),
        "macro_f1": float(_macro_f1(of)),
        "weighted_f1": float(_weighted_f1(of)),
        "confusion": counts.tolist(),
    }

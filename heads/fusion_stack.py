"""Late fusion by logistic stacking: a linear model learns each class's score from all runs' scores of all classes.

Multinomial logistic regression (scikit-learn's ``LogisticRegression``) on the runs' log-probabilities or probabilities
side by side: stacked generalisation (Wolpert 1992, https://doi.org/10.1016/S0893-6080(05)80023-1), which Padi 2022
(section 2) names beside weighted sums as a way of late fusion. Unlike one weight for each run it can believe a run in
one class and not in another, and undo a bias or a confusion of classes.

- Every column is brought to mean 0 and standard deviation 1 over what is learned from, and a column that hardly
  varies is left out. So the scale of a run's scores is no matter, nor is a run that says the same of every
  utterance. Scores with many exact zeros, such as rounded ones, are better learned from in ``prob`` space: there a
  zero is no outlier.
- Regularised by half the squared length of the coefficients (L2, C = 1; not of the intercepts), beside the sum of
  the utterances' losses: it fades with their number. Nothing is tuned.
- Selected by UA, every class weighs alike in the loss; by WA, every utterance.
- A class that does not occur in what a fold's model is learned from gets probability 0 there, and is reported.

What may be learned from is in :mod:`heads.fusion_data`: what searched weights may be found on, and nothing else.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.errors import ConfigError, ScoresError
from heads.fusion_data import Evidence, Fused, SearchOn, SelectBy, evidence, gather, score, validation_decided
from heads.fusion_search import OnSearch, measure
from heads.fusion_values import Array, Space, to_probabilities
from heads.runs import Run

COST = 1.0
"""scikit-learn's ``C``: how much the utterances' losses count beside the length of the coefficients."""

_MAX_ITERATIONS = 10_000
_TOLERANCE = 1e-6
_HARDLY = 1e-9


@dataclass(frozen=True, eq=False)
class LinearModel:
    """A fitted model: class scores are ``intercepts + coefficients · values``, and their softmax is the result.

    Attributes:
        seen: (seen,) positions of the classes that it was learned from; others get probability 0.
        coefficients: (seen, runs, classes) for values as they come, in the space of fusion.
        intercepts: (seen,).
    """

    seen: NDArray[np.int64]
    coefficients: Array
    intercepts: Array

    def __call__(self, values: Array) -> Array:
        """Return (utterances, classes) probabilities of (runs, utterances, classes) values."""
        _, utterances, classes = values.shape
        total = np.einsum("src,ruc->us", self.coefficients, values) + self.intercepts
        result = np.zeros((utterances, classes))
        result[:, self.seen] = to_probabilities(total, sums_to_one=False)
        return result


@dataclass(frozen=True, eq=False)
class FoldModel:
    """What was learned for one fold.

    Attributes:
        fold: its name.
        model: the model; runs and classes are in the order of the runs and of the first run's classes.
        unseen: classes that did not occur in what it was learned from.
        on_search: metrics there; optimistic, as it learned from it.
    """

    fold: str
    model: LinearModel
    unseen: tuple[str, ...]
    on_search: OnSearch


@dataclass(frozen=True, eq=False)
class Stacked:
    """Runs fused by a learned model.

    Attributes:
        fused: the score tables. Validation scores are optimistic where the model was learned from them.
        folds: what was learned for each fold, in natural order of their names.
        validation_decided: whether utterances of the fused validation scores were among those learned from.
    """

    fused: Fused
    folds: tuple[FoldModel, ...]
    validation_decided: bool


def stack_runs(
    runs: Sequence[Run],
    *,
    space: Space = "prob",
    standardise: bool = False,
    search_on: SearchOn = "validation",
    select_by: SelectBy = "ua",
) -> Stacked:
    """Fuse runs by a logistic regression, learned for each fold from data that it does not test.

    Args:
        runs: one or more runs over the same utterances.
        space: ``prob`` learns from probabilities, ``log`` from their logarithms.
        standardise: standardise each run's scores by its own validation scores first.
        search_on: learn from the fold's own validation scores, or from the test scores of the other folds.
        select_by: whether classes (``ua``) or utterances (``wa``) weigh alike.

    Raises:
        ConfigError: no run, or an unknown choice.
        ScoresError: runs over other utterances; nothing to learn from (see `heads.fusion_data.evidence`), or one
            class only; a fit that does not settle.
    """
    inputs = gather(runs, space, standardise)
    classes = inputs.test[0].classes
    found_on = [evidence(inputs, fold, search_on) for fold in inputs.folds]
    models = {one.fold: learn(one, select_by) for one in found_on}
    folds = []
    for one in found_on:
        model = models[one.fold]
        unseen = tuple(name for position, name in enumerate(classes) if position not in model.seen)
        folds.append(FoldModel(one.fold, model, unseen, measure(one, model(one.values), select_by)))
    return Stacked(score(inputs, models), tuple(folds), validation_decided(inputs, found_on))


def learn(found_on: Evidence, select_by: SelectBy) -> LinearModel:
    """Return the model that is learned from some utterances.

    Raises:
        ConfigError: an unknown choice.
        ScoresError: there is one class only, or the fit does not settle.
    """
    if select_by not in ("ua", "wa"):
        raise ConfigError(f"A model cannot be learned for {select_by!r}. Use ua or wa.")
    if len(set(found_on.reference.tolist())) < 2:
        raise ScoresError(
            f"Fold {found_on.fold!r} has one class only in the {len(found_on.ids)} utterances to learn from. "
            "Learn from more (--search-on), or use --weights search, or fixed weights."
        )
    runs, utterances, classes = found_on.values.shape
    # An order of runs that only their scores decide, so that the order they were given in decides nothing.
    order = sorted(range(runs), key=lambda run: found_on.values[run].tobytes())
    columns = found_on.values[order].transpose(1, 0, 2).reshape(utterances, runs * classes)
    mean, spread = columns.mean(axis=0), columns.std(axis=0)
    varies = spread > _HARDLY * np.maximum(1.0, np.abs(mean))
    spread = np.where(varies, spread, 1.0)
    seen, learned, constant = _fit(found_on, np.where(varies, (columns - mean) / spread, 0.0), select_by)
    learned = np.where(varies, learned, 0.0) / spread
    coefficients = np.empty((len(seen), runs, classes))
    coefficients[:, order] = learned.reshape(len(seen), runs, classes)
    return LinearModel(seen, coefficients, constant - learned @ mean)


def _fit(found_on: Evidence, columns: Array, select_by: SelectBy) -> tuple[NDArray[np.int64], Array, Array]:
    """Return the classes seen, and for each its (columns,) coefficients and its intercept."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    balance = "balanced" if select_by == "ua" else None
    machine = LogisticRegression(C=COST, class_weight=balance, max_iter=_MAX_ITERATIONS, tol=_TOLERANCE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            machine.fit(columns, found_on.reference)
    except ConvergenceWarning:
        raise ScoresError(
            f"The stacked model of fold {found_on.fold!r} did not settle in {_MAX_ITERATIONS} iterations. "
            "Use --weights search, or --space log where it was prob."
        ) from None
    coefficients, intercepts = machine.coef_, machine.intercept_
    if len(machine.classes_) == 2:  # scikit-learn keeps the difference of the two
        coefficients, intercepts = np.concatenate([-coefficients, coefficients]) / 2, np.outer([-0.5, 0.5], intercepts)
    return machine.classes_, coefficients, np.ravel(intercepts)

"""Late fusion by joint linear layers: each run's probabilities through a layer of its own, summed, softmax.

Source: Zhou et al., section 5.3: "both models produce 5x1 vectors containing the probabilities for each class. We pass
each vector through a Linear layer, after which they are summed up and passed through a Softmax layer", trained with
cross-entropy, Adam and a weight decay of 1e-3. So the result is ``softmax(sum over runs of (W_r p_r + b_r))``.

What is exact, and what is not:

- The form is the paper's: probabilities as they are (no logarithm, nothing standardised), a matrix and a bias a run.
- So is the objective: the mean cross-entropy, and half the weight decay times the squared length of all weights and
  biases, which is what Adam's weight decay adds to the gradient.
- The paper stops after 15 epochs from random weights, where its learning rate of 1.5e-4 has moved none by more than
  0.4 (in batches of 32), so what came out depended on the seed. The objective is strictly convex, and here its one
  optimum is taken.
- The paper does not say on what the layers are trained, nor whether the two models beneath learn on. Here these stay
  as they are, and a fold's layers learn from the fold's validation scores (or other folds' test scores), as searched
  weights do; never from what the fold tests.

Selected by UA, every class weighs alike in the loss; by WA, every utterance, as in the paper. Beside logistic stacking
(:mod:`heads.fusion_stack`), the same family of models, this one standardises nothing and is held back by the decay
alone, as strongly for many utterances as for few. A class that does not occur in what is learned from gets a small
probability, not 0.
"""

from collections.abc import Sequence

import numpy as np

from featcache.errors import ConfigError, ScoresError
from heads.fusion_data import Evidence, SearchOn, SelectBy, evidence, gather, score, validation_decided
from heads.fusion_search import measure
from heads.fusion_stack import FoldModel, LinearModel, Stacked
from heads.fusion_values import Array
from heads.runs import Run

WEIGHT_DECAY = 1e-3
"""The paper's (its Table 2)."""

_MAX_ITERATIONS = 10_000
_STEEPEST = 1e-7
"""Largest gradient that counts as none: no weight is then further than 1e-4 from the optimum's."""


def join_runs(runs: Sequence[Run], *, search_on: SearchOn = "validation", select_by: SelectBy = "ua") -> Stacked:
    """Fuse runs by joint linear layers, learned for each fold from data that it does not test.

    Args:
        runs: one or more runs over the same utterances.
        search_on: learn from the fold's own validation scores, or from the test scores of the other folds.
        select_by: whether classes (``ua``) or utterances (``wa``) weigh alike.

    Raises:
        ConfigError: no run, or an unknown choice.
        ScoresError: runs over other utterances; nothing to learn from (see `heads.fusion_data.evidence`); a fit that
            does not settle.
    """
    inputs = gather(runs)
    found_on = [evidence(inputs, fold, search_on) for fold in inputs.folds]
    models = {one.fold: learn(one, select_by) for one in found_on}
    folds = [
        FoldModel(one.fold, models[one.fold], (), measure(one, models[one.fold](one.values), select_by))
        for one in found_on
    ]
    return Stacked(score(inputs, models), tuple(folds), validation_decided(inputs, found_on))


def learn(found_on: Evidence, select_by: SelectBy, weight_decay: float = WEIGHT_DECAY) -> LinearModel:
    """Return the layers that are best on some utterances; their biases are summed.

    Args:
        found_on: the utterances, with probabilities.
        select_by: whether classes or utterances weigh alike.
        weight_decay: of weights and biases, above 0.

    Raises:
        ConfigError: an unknown choice.
        ScoresError: the fit does not settle.
    """
    from scipy.optimize import minimize

    if select_by not in ("ua", "wa"):
        raise ConfigError(f"A model cannot be learned for {select_by!r}. Use ua or wa.")
    runs, utterances, classes = found_on.values.shape
    # An order of runs that only their scores decide, so that the order they were given in decides nothing.
    order = sorted(range(runs), key=lambda run: found_on.values[run].tobytes())
    # One column for the biases: equal ones are best, and R of b / R are as long as one of b / sqrt(R).
    constant = np.full((utterances, 1), np.sqrt(runs))
    columns = np.concatenate([*found_on.values[order], constant], axis=1)
    target = np.eye(classes)[found_on.reference]
    of_class = target.sum(axis=0)[found_on.reference]
    weights = 1 / of_class if select_by == "ua" else np.ones(utterances)
    weights = weights / weights.sum()

    def objective(flat: Array) -> tuple[float, Array]:
        theta = flat.reshape(classes, -1)
        logits = columns @ theta.T
        logits = logits - logits.max(axis=1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
        gradient = ((np.exp(logits) - target) * weights[:, None]).T @ columns + weight_decay * theta
        loss = -(weights[:, None] * target * logits).sum() + weight_decay / 2 * (theta**2).sum()
        return float(loss), gradient.ravel()

    start = np.zeros(classes * columns.shape[1])
    options = {"maxiter": _MAX_ITERATIONS, "maxfun": 2 * _MAX_ITERATIONS, "ftol": 0.0, "gtol": _STEEPEST / 100}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    if np.abs(found.jac).max() > _STEEPEST:
        raise ScoresError(
            f"The joint layers of fold {found_on.fold!r} did not settle in {_MAX_ITERATIONS} iterations. "
            "Use --weights stack or search."
        )
    theta = found.x.reshape(classes, -1)
    coefficients = np.empty((classes, runs, classes))
    coefficients[:, order] = theta[:, :-1].reshape(classes, runs, classes)
    return LinearModel(np.arange(classes), coefficients, theta[:, -1] * np.sqrt(runs))

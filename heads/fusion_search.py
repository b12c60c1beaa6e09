"""Late fusion with weights that are searched, fold by fold, on data that the fold does not test.

Padi 2022 (section 3.3) searches one weight of two on a hold-out set, with ``w2 = 1 - w1``, on log-probabilities; which
metric it maximises, in which steps, is not said. Makiuchi 2021 (section 8) tries weights of probabilities (Eq. 4) and
reports the best; on what data is not said. Here:

- Weights are 0 or more, sum to 1, and lie on a grid. Its step is 1/100, or the next smaller fraction that has equal
  weights on the grid (1/102 for three runs). Decisions change at finitely many weights, and all of those could be
  tried; but a plateau narrower than a step is chance.
- One to three runs: every point of the grid is tried, so nothing on it is better. Four and more: ascents along pairs
  of runs, one weight growing by what the other loses, every split of the two tried; from equal weights and from each
  of the three best runs alone. What is found is no worse, on the data searched, than equal weights or any one run.
- What is maximised is UA, or WA. Ties go to the lower log loss, with classes weighing alike for UA and utterances
  alike for WA; then to the weights nearest to equal; then to the first in the order of the grid.

The order of runs, of rows and of columns decides nothing but what no rule above decides. What may be searched on is
in :mod:`heads.fusion_data`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from featcache.errors import ConfigError
from heads.fusion import weighing
from heads.fusion_data import Evidence, Fused, Inputs, SearchOn, SelectBy, evidence, gather, score, validation_decided
from heads.fusion_values import FLOOR, Array, Space, to_probabilities, weighted_sum
from heads.metrics import ua, wa
from heads.runs import Run

STEPS = 100
"""The coarsest grid: so many steps from 0 to 1."""

_TRIED_WHOLE = 3
_ASCENTS = 3
_NUMBERS_AT_ONCE = 100_000
_Rank = tuple[float, float, float, tuple[int, ...]]


@dataclass(frozen=True)
class OnSearch:
    """How well a fold's fusion does on what it was found on; fractions, and natural logarithms.

    Attributes:
        num_utterances: how many there were.
        ua: mean of the per-class recalls.
        wa: accuracy.
        log_loss: mean of -log p of the true class: over classes where UA was maximised, else over utterances.
    """

    num_utterances: int
    ua: float
    wa: float
    log_loss: float


@dataclass(frozen=True)
class FoldWeights:
    """What was found for one fold.

    Attributes:
        fold: its name.
        weights: (runs,) 0 or more; they sum to 1.
        on_search: metrics there.
    """

    fold: str
    weights: tuple[float, ...]
    on_search: OnSearch


@dataclass(frozen=True)
class CurvePoint:
    """Metrics of two runs for one weight in one fold. Those on test are for readers; nothing is chosen by them.

    Attributes:
        fold: its name.
        weight: of the second run; the first has the rest to 1.
        search_ua: on what was searched; and so on.
    """

    fold: str
    weight: float
    search_ua: float
    search_wa: float
    test_ua: float
    test_wa: float


@dataclass(frozen=True, eq=False)
class Searched:
    """Runs fused by weights that were searched.

    Attributes:
        fused: the score tables. Validation scores are optimistic where weights were searched on them.
        folds: what was found for each fold, in natural order of their names.
        curve: every weight of the grid for each fold, for two runs; empty for other numbers of runs.
        validation_decided: whether utterances of the fused validation scores were among those searched on.
    """

    fused: Fused
    folds: tuple[FoldWeights, ...]
    curve: tuple[CurvePoint, ...]
    validation_decided: bool


def search_runs(
    runs: Sequence[Run],
    *,
    space: Space = "prob",
    standardise: bool = False,
    search_on: SearchOn = "validation",
    select_by: SelectBy = "ua",
) -> Searched:
    """Fuse runs by the weights that are best, for each fold, on data that it does not test.

    Args:
        runs: one or more runs over the same utterances.
        space: ``prob`` sums probabilities, ``log`` sums their logarithms.
        standardise: standardise each run's scores by its own validation scores first.
        search_on: the fold's own validation scores, or the test scores of the other folds.
        select_by: the metric to maximise.

    Raises:
        ConfigError: no run, or an unknown choice.
        ScoresError: runs over other utterances, or nothing to search on; see `heads.fusion_data.evidence`.
    """
    inputs = gather(runs, space, standardise)
    found_on = [evidence(inputs, fold, search_on) for fold in inputs.folds]
    shares = [find_weights(one.values, one.reference, select_by, inputs.sums_to_one) for one in found_on]
    models = {one.fold: weighing(inputs, share) for one, share in zip(found_on, shares, strict=True)}
    folds = tuple(
        FoldWeights(one.fold, tuple(share.tolist()), measure(one, models[one.fold](one.values), select_by))
        for one, share in zip(found_on, shares, strict=True)
    )
    curve = tuple(point for one in found_on for point in _curve(inputs, one)) if len(runs) == 2 else ()
    return Searched(score(inputs, models), folds, curve, validation_decided(inputs, found_on))


def find_weights(values: Array, reference: NDArray[np.int64], select_by: SelectBy, sums_to_one: bool) -> Array:
    """Return the (runs,) weights that are best on some utterances; they sum to 1.

    Args:
        values: (runs, utterances, classes) what is summed.
        reference: (utterances,) positions of the true classes.
        select_by: the metric to maximise.
        sums_to_one: values are probabilities; of the sums of others, the log loss is that of their softmax.

    Raises:
        ConfigError: an unknown metric.
    """
    if select_by not in ("ua", "wa"):
        raise ConfigError(f"Weights cannot be selected by {select_by!r}. Use ua or wa.")
    # An order of runs that only their scores decide, so that the order they were given in decides nothing.
    order = sorted(range(len(values)), key=lambda run: values[run].tobytes())
    grid = _Grid(values[order], reference, select_by, sums_to_one)
    units = np.empty(len(values))
    units[order] = grid.search()
    return units / grid.steps


def measure(found_on: Evidence, probabilities: Array, select_by: SelectBy) -> OnSearch:
    """Return the metrics of fused scores on what their fusion was found on.

    Args:
        found_on: the utterances.
        probabilities: (utterances, classes) fused.
        select_by: which log loss to give.
    """
    predicted, reference = probabilities.argmax(axis=1), found_on.reference
    loss = float(_log_loss(probabilities, reference, _importance(reference, probabilities.shape[1], select_by)))
    return OnSearch(len(reference), ua(reference, predicted), wa(reference, predicted), loss)


class _Grid:
    """The grid of weights over some utterances, and the search on it. Points are whole numbers of steps."""

    def __init__(self, values: Array, reference: NDArray[np.int64], select_by: SelectBy, sums_to_one: bool) -> None:
        self.values, self.reference, self.select_by, self.sums_to_one = values, reference, select_by, sums_to_one
        self.runs, _, self.classes = values.shape
        self.steps = self.runs * -(-STEPS // self.runs)
        self.importance = _importance(reference, self.classes, select_by)

    def search(self) -> tuple[int, ...]:
        if self.runs <= _TRIED_WHOLE:
            return self.best(_simplex(self.runs, self.steps))[-1]
        alone = [self.best(point[None]) for point in self.steps * np.eye(self.runs, dtype=np.int64)]
        starts = [self.best(np.full((1, self.runs), self.steps // self.runs)), *sorted(alone)[:_ASCENTS]]
        return min(map(self.ascend, starts))[-1]

    def ascend(self, found: _Rank) -> _Rank:
        pairs = [(one, other) for one in range(self.runs) for other in range(one + 1, self.runs)]
        while True:
            before = found
            for one, other in pairs:
                point = np.array(found[-1])
                shared = int(point[one] + point[other])
                line = np.repeat(point[None], shared + 1, axis=0)
                line[:, one] = np.arange(shared + 1)
                line[:, other] = shared - line[:, one]
                found = min(found, self.best(line))
            if found == before:
                return found

    def best(self, points: NDArray[np.int64]) -> _Rank:
        """Return the best of (points, runs), behind what it is ranked by: lower is better."""
        metric = _ua_wa(self.values, points / self.steps, self.reference)[:, 0 if self.select_by == "ua" else 1]
        tied = points[metric == metric.max()]
        losses = np.concatenate([self._losses(part) for part in _parts(tied, self.values)])
        # Rounded, so that the order in which computers add does not break a tie.
        losses = losses.round(9)
        tied = tied[losses == losses.min()]
        distances = ((self.runs * tied - self.steps) ** 2).sum(axis=1)
        nearest = min(map(tuple, tied[distances == distances.min()].tolist()))
        return -float(metric.max()), float(losses.min()), float(distances.min()), nearest

    def _losses(self, points: NDArray[np.int64]) -> Array:
        total = weighted_sum(self.values, points / self.steps)
        return _log_loss(to_probabilities(total, self.sums_to_one), self.reference, self.importance)


def _curve(inputs: Inputs, found_on: Evidence) -> list[CurvePoint]:
    test = inputs.test[0]
    rows = np.asarray(test.folds, dtype=object) == found_on.fold
    second = np.arange(STEPS + 1) / STEPS
    shares = np.stack([np.arange(STEPS, -1, -1) / STEPS, second], axis=1)
    on_search = _ua_wa(found_on.values, shares, found_on.reference)
    on_test = _ua_wa(inputs.values(inputs.test)[:, rows], shares, test.reference[rows])
    metrics = np.concatenate([on_search, on_test], axis=1).tolist()
    return [CurvePoint(found_on.fold, weight, *row) for weight, row in zip(second.tolist(), metrics, strict=True)]


def _simplex(num_runs: int, steps: int) -> NDArray[np.int64]:
    """Return (points, runs): all ways to give `steps` steps to runs."""
    free = product(range(steps + 1), repeat=num_runs - 1)
    return np.array([(*point, steps - sum(point)) for point in free if sum(point) <= steps], np.int64)


def _ua_wa(values: Array, shares: Array, reference: NDArray[np.int64]) -> Array:
    """Return (points, 2): UA and WA for (points, runs) weights, rounded so that equal fractions are equal numbers."""
    of_class = np.eye(values.shape[-1])[reference]
    support = of_class.sum(axis=0)
    found = []
    for part in _parts(shares, values):
        right = (_predicted(values, part) == reference) @ of_class
        recalls = right[:, support > 0] / support[support > 0]
        found.append(np.stack([recalls.mean(axis=1), right.sum(axis=1) / len(reference)], axis=1))
    return np.concatenate(found).round(12)


def _predicted(values: Array, shares: Array) -> NDArray[np.int64]:
    """Return (points, utterances) the first class of highest sum, for (points, runs) weights."""
    by_class = np.ascontiguousarray(values.transpose(2, 0, 1))[..., None]
    highest = weighted_sum(by_class[0], shares)[..., 0]
    predicted = np.zeros(highest.shape, np.int64)
    # Class by class: an argmax over the last few numbers of a row takes several times as long.
    for position, one in enumerate(by_class[1:], start=1):
        total = weighted_sum(one, shares)[..., 0]
        predicted[total > highest] = position
        np.maximum(highest, total, out=highest)
    return predicted


def _parts(points: NDArray, values: Array) -> list[NDArray]:
    """Return points in portions whose sums over all utterances stay near the processor."""
    portion = max(1, _NUMBERS_AT_ONCE // values[0].size)
    return [points[start : start + portion] for start in range(0, len(points), portion)]


def _importance(reference: NDArray[np.int64], num_classes: int, select_by: SelectBy) -> Array:
    """Return (utterances,) what each counts in the log loss; the sum is 1."""
    counts = np.bincount(reference, minlength=num_classes)
    weight = 1 / counts[reference] if select_by == "ua" else np.ones(len(reference))
    return np.asarray(weight / weight.sum())


def _log_loss(probabilities: Array, reference: NDArray[np.int64], importance: Array) -> Array:
    """Return (...) the log loss of (..., utterances, classes) probabilities."""
    true = probabilities[..., np.arange(len(reference)), reference]
    return -(np.log(np.maximum(true, FLOOR)) * importance).sum(axis=-1)

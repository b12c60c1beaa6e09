"""How sure a result is: intervals that resample speakers, and paired tests between two runs.

What the numbers are about
--------------------------
- Utterances of one speaker are alike in how hard they are, so that they count for less than as many of different
  people. What is drawn again here is therefore whole *clusters*: all utterances of a speaker together, or, where
  speakers are not known, all scores of an utterance together. `clustered_by` says which.
- An interval covers the metric that the very same models would have over *new speakers* from where these came from. It
  knows nothing of how a model would differ if it were trained again: other seeds, other folds.
- A metric is taken of all utterances together (``pooled`` in `heads.metrics`), not as a mean over folds. An utterance
  that is scored in several folds counts each time; its scores stay in one cluster.
- A small p-value says that a difference between two runs is hard to explain by chance; it does not say that it is
  large, and a large one does not say that the runs are alike.

Sources: bootstrap percentile intervals, Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13;
resampling of whole clusters, Davison and Hinkley 1997, Bootstrap Methods and their Application, section 3.8, and Field
and Welsh 2007, Bootstrapping clustered data, J. R. Stat. Soc. B 69(3); the wider levels for few clusters, Hesterberg
2015, What Teachers Should Know About the Bootstrap (https://arxiv.org/abs/1411.5279); McNemar 1947, Note
on the sampling error of the difference between correlated proportions, Psychometrika 12; the + 1 in a drawn permutation
test, Phipson and Smyth 2010 (https://arxiv.org/abs/1603.05766); Holm 1979, A simple sequentially rejective multiple
test procedure, Scand. J. Stat. 6.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr, stdtrit

from featcache.errors import ScoresError, UnknownNameError
from featcache.files import listed, quoted
from heads.metrics import METRICS, Totals
from heads.scores import Scores, align

ClusteredBy = Literal["speaker", "utterance"]
_Table = NDArray[np.float64]

_TOLERANCE = 1e-12
"""Differences that are nearer than this are one difference, computed in another order."""

_MOST_VALUES = 2**22
"""How many weights, or sums, are held at a time: 32 MiB."""


@dataclass(frozen=True)
class Interval:
    """A metric, and where it may lie over new speakers.

    Attributes:
        value: the metric of the scores, over all utterances together; a fraction.
        low: lower end; NaN where there is one cluster only.
        high: upper end, likewise.
        confidence: how often such an interval is to cover the value of all speakers there are.
        num_clusters: how many speakers or utterances were resampled.
        clustered_by: what was resampled as a whole.
    """

    value: float
    low: float
    high: float
    confidence: float
    num_clusters: int
    clustered_by: ClusteredBy


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same utterances.

    Attributes:
        metric: what is compared.
        difference: the metric of the other run less that of the first, a fraction; positive where the other is better.
        low: lower end of its 95 % interval over new speakers; NaN where there is one cluster only.
        high: upper end, likewise.
        p_mcnemar: of McNemar's exact test. Null hypothesis: an utterance that just one of the runs gets right is as
            likely to be the one's as the other's. It is about accuracy (WA) whatever `metric` is, and it takes
            utterances for independent, which those of one speaker are not: where it is far below `p_permutation`,
            believe that. NaN where utterances are scored in several folds, which are not independent at all.
        p_permutation: of the permutation test of `metric`. Null hypothesis: which of the two runs a speaker's
            predictions came from makes no difference, for any speaker.
        num_utterances: scored utterances; one that is scored in several folds counts each time.
        num_differing: of these, how many just one of the two runs gets right.
        num_clusters: how many speakers or utterances were resampled and swapped.
        clustered_by: what was resampled and swapped as a whole.
    """

    metric: str
    difference: float
    low: float
    high: float
    p_mcnemar: float
    p_permutation: float
    num_utterances: int
    num_differing: int
    num_clusters: int
    clustered_by: ClusteredBy


def interval(
    scores: Scores,
    speakers: Mapping[str, str] | None,
    metric: str = "ua",
    confidence: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return a metric with a confidence interval by resampling whole speakers.

    The interval holds the middle of the metrics of `draws` sets of as many speakers as there are, drawn with
    replacement. Its levels are those of Student's t with a variance unbiased by the number of speakers (Hesterberg's
    expanded percentile interval), without which an interval of ten speakers is almost a fifth too narrow.

    Args:
        scores: test scores of a run.
        speakers: the speaker of each utterance, by id; None resamples utterances.
        metric: one of `heads.metrics.METRICS`.
        confidence: between 0 and 1.
        draws: how many sets are drawn.
        seed: of the draws.

    Raises:
        UnknownNameError: no such metric.
        ScoresError: an utterance without a speaker, or a number out of range.
    """
    value = _metric(metric)

    def statistic(sums: _Table) -> _Table:
        return value(sums)[..., 0]

    _check(draws, confidence)
    clusters = _gather([scores], speakers)
    low, high = _percentiles(statistic, clusters, confidence, draws, seed)
    return Interval(float(statistic(clusters.total)), low, high, confidence, clusters.number, clusters.by)


def compare(
    first: Scores,
    other: Scores,
    speakers: Mapping[str, str] | None,
    metric: str = "ua",
    draws: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two runs over the same utterances.

    Args:
        first: test scores of one run.
        other: those of the other, in any order.
        speakers: the speaker of each utterance, by id; None resamples and swaps utterances.
        metric: one of `heads.metrics.METRICS`.
        draws: how many sets of speakers are drawn for the interval, and how many swaps for the permutation test,
            unless there are no more swaps than these: then each is tried once, and the p-value is exact.
        seed: of the draws.

    Returns:
        The difference `other` less `first`, its 95 % interval as of `interval` (the same speakers are drawn for both
        runs), and the p-values of two tests, both two-sided.

    Raises:
        UnknownNameError: no such metric.
        ScoresError: other classes, utterances, folds or labels, an utterance without a speaker, or no draws.
    """
    value = _metric(metric)

    def statistic(sums: _Table) -> _Table:
        values = value(sums)
        return values[..., 1] - values[..., 0]

    _check(draws)
    first, other = align([first, other])
    clusters = _gather([first, other], speakers)
    low, high = _percentiles(statistic, clusters, 0.95, draws, seed)
    won, lost = _discordant(first, other)
    return Comparison(
        metric=metric,
        difference=float(statistic(clusters.total)),
        low=low,
        high=high,
        p_mcnemar=_mcnemar(won, lost) if len(set(first.ids)) == len(first.ids) else math.nan,
        p_permutation=_permutation(statistic, clusters, draws, seed),
        num_utterances=len(first.ids),
        num_differing=won + lost,
        num_clusters=clusters.number,
        clustered_by=clusters.by,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for how many there are (Holm 1979), in the same order.

    Of all comparisons whose corrected value is below 0.05, the chance that even one is a false alarm is below 0.05.

    Args:
        p_values: of every test that was looked at, 0 to 1; may be empty.

    Raises:
        ScoresError: a value that is not a probability.
    """
    values = np.asarray(p_values, np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ScoresError(f"A p-value lies in 0..1, got {listed(f'{value:g}' for value in values)}.")
    order = values.argsort(kind="stable")
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return [float(value) for value in corrected]


def _check(draws: int, confidence: float = 0.95) -> None:
    if draws < 1:
        raise ScoresError(f"Resampling needs one draw or more, got {draws}.")
    if not 0 < confidence < 1:
        raise ScoresError(f"A confidence lies between 0 and 1, got {confidence:g}. For 95 % say 0.95.")


def _metric(name: str) -> Callable[[_Table], _Table]:
    """Return a metric as a function of sums over clusters, of shape (..., 3, classes)."""
    if name not in METRICS:
        raise UnknownNameError("metric", name, METRICS)
    return lambda sums: METRICS[name](Totals(sums[..., 0, :], sums[..., 1, :], sums[..., 2, :]))


class _Clusters(NamedTuple):
    """What is drawn and swapped. Clusters that are alike are one kind: of utterances there are few, however many.

    Attributes:
        kinds: (kinds, runs, 3, classes) what metrics are made of, see `heads.metrics.Totals`.
        counts: (kinds,) how many clusters are of each kind.
        by: what a cluster is.
    """

    kinds: _Table
    counts: NDArray[np.int64]
    by: ClusteredBy

    @property
    def number(self) -> int:
        return int(self.counts.sum())

    @property
    def total(self) -> _Table:
        return _sums(self.counts[None], self.kinds)[0]


def _gather(runs: Sequence[Scores], speakers: Mapping[str, str] | None) -> _Clusters:
    """Return the clusters of runs that were aligned."""
    names, by = _cluster_names(runs[0], speakers)
    numbers = np.unique(np.asarray(names, dtype=object), return_inverse=True)[1]
    reference, predicted = runs[0].reference, np.stack([run.predicted for run in runs])
    num_classes, counts = len(runs[0].classes), np.ones(numbers.max() + 1)
    if len(counts) == len(numbers):
        # Each score is a cluster: those that are alike are put together first, since all tables might not fit.
        codes = reference
        for each in predicted:
            codes = codes * num_classes + each
        _, rows, counts = np.unique(codes, return_index=True, return_counts=True)
        reference, predicted, numbers = reference[rows], predicted[:, rows], np.arange(len(rows))
    tables = np.zeros((len(counts), len(runs), 3, num_classes))
    for run, each in enumerate(predicted):
        right = reference == each
        np.add.at(tables[:, run, 0], (numbers[right], reference[right]), 1)
        np.add.at(tables[:, run, 1], (numbers, reference), 1)
        np.add.at(tables[:, run, 2], (numbers, each), 1)
    kinds, kind = np.unique(tables, axis=0, return_inverse=True)
    return _Clusters(kinds, np.bincount(kind.ravel(), counts).astype(np.int64), by)


def _cluster_names(scores: Scores, speakers: Mapping[str, str] | None) -> tuple[Sequence[str], ClusteredBy]:
    """Return (utterances,) the name of each score's cluster, and what a cluster is."""
    if speakers is None:
        return scores.ids, "utterance"
    lacking = sorted({name for name in scores.ids if not speakers.get(name)})
    if lacking:
        raise ScoresError(
            f"{len(lacking)} scored utterances have no speaker, such as {quoted(lacking[0])}, so that speakers cannot "
            "be resampled. Fill the column in, or resample utterances."
        )
    return [speakers[name] for name in scores.ids], "speaker"


def _percentiles(
    statistic: Callable[[_Table], _Table], clusters: _Clusters, confidence: float, draws: int, seed: int
) -> tuple[float, float]:
    """Return the ends of an interval of a statistic of the sum over clusters."""
    num = clusters.number
    if num < 2:
        return math.nan, math.nan
    generator = np.random.default_rng(seed)
    values = [
        statistic(_sums(generator.multinomial(num, clusters.counts / num, size=size), clusters.kinds))
        for size in _sizes(draws, clusters.kinds)
    ]
    level = float(ndtr(math.sqrt(num / (num - 1)) * stdtrit(num - 1, (1 - confidence) / 2)))
    low, high = np.quantile(np.concatenate(values), [level, 1 - level])
    return float(low), float(high)


def _permutation(statistic: Callable[[_Table], _Table], clusters: _Clusters, draws: int, seed: int) -> float:
    """Return the two-sided p-value of a difference when runs are swapped, cluster by cluster."""
    changes = clusters.kinds[:, ::-1] - clusters.kinds  # what swapping a cluster adds to the sums
    differing = changes.any(axis=(1, 2, 3))
    changes, counts = changes[differing], clusters.counts[differing]
    exact = 2 ** int(counts.sum()) <= draws
    if exact:
        changes, draws = changes.repeat(counts, axis=0), 2 ** int(counts.sum())
    generator = np.random.default_rng(seed)
    threshold = abs(float(statistic(clusters.total))) - _TOLERANCE
    extreme = done = 0
    for size in _sizes(draws, changes):
        swaps = _bits(done, size, len(changes)) if exact else generator.binomial(counts, 0.5, (size, len(counts)))
        extreme += int((np.abs(statistic(clusters.total + _sums(swaps, changes))) >= threshold).sum())
        done += size
    # One is added for the runs as they are; among all swaps they are counted already.
    return extreme / draws if exact else (extreme + 1) / (draws + 1)


def _sizes(draws: int, kinds: _Table) -> list[int]:
    """Return how many draws to make at a time, such that their weights and sums fit into little memory."""
    most = max(1, _MOST_VALUES // max(1, len(kinds), math.prod(kinds.shape[1:])))
    return [most] * (draws // most) + ([draws % most] if draws % most else [])


def _bits(start: int, count: int, num_bits: int) -> NDArray[np.int64]:
    """Return (count, bits) the digits of whole numbers in base 2."""
    return np.arange(start, start + count)[:, None] >> np.arange(num_bits) & 1


def _sums(weights: NDArray[np.int64], table: _Table) -> _Table:
    """Return (draws, ...) sums over (kinds, ...) with (draws, kinds) weights."""
    return np.tensordot(weights.astype(np.float64), table, axes=1)


def _discordant(first: Scores, other: Scores) -> tuple[int, int]:
    """Return how many utterances only the first run gets right, and how many only the other does."""
    right, other_right = (one.predicted == first.reference for one in (first, other))
    return int((right & ~other_right).sum()), int((other_right & ~right).sum())


def _mcnemar(won: int, lost: int) -> float:
    """Return the exact two-sided p-value: of a fair coin, tossed for each utterance that one run alone gets right."""
    return min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5)))

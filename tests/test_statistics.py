"""Intervals and tests between runs: laws, enumeration, SciPy and statsmodels, and simulations whose answer is known."""

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from featcache.errors import ScoresError, UnknownNameError
from heads import statistics
from heads.metrics import METRICS, evaluate, macro_f1, ua, wa, weighted_f1
from heads.scores import Scores
from heads.statistics import compare, holm, interval

CLASSES = ("angry", "happy", "neutral", "sad")
OF_ARRAYS = {"wa": wa, "ua": ua, "macro_f1": macro_f1, "weighted_f1": weighted_f1}
Corpus = tuple[Scores, Scores, dict[str, str]]


def table(reference: Sequence[int], predicted: Sequence[int], ids: Sequence[str] = (), folds: str = "1") -> Scores:
    """Scores that predict these classes."""
    probabilities = np.full((len(reference), len(CLASSES)), 0.1)
    probabilities[np.arange(len(reference)), predicted] = 0.7
    names = ids or [f"u{number:05d}" for number in range(len(reference))]
    return Scores(names, [folds] * len(reference), [CLASSES[label] for label in reference], CLASSES, probabilities)


def two_runs(
    seed: int,
    num_speakers: int,
    per_speaker: int = 8,
    spread: float = 0.0,
    effect: float = 0.0,
    level: float = 0.6,
) -> Corpus:
    """Two runs whose accuracies vary from speaker to speaker, together (`spread`) and apart (`effect`)."""
    generator = np.random.default_rng(seed)
    speaker = np.arange(num_speakers).repeat(per_speaker)
    reference = generator.choice(len(CLASSES), len(speaker), p=[0.4, 0.3, 0.2, 0.1])
    accuracy = level + generator.normal(0, spread, num_speakers)
    apart = generator.normal(0, effect, num_speakers)
    runs = []
    for sign in (-0.5, 0.5):
        right = generator.random(len(speaker)) < np.clip(accuracy + sign * apart, 0.02, 0.98)[speaker]
        other = (reference + generator.integers(1, len(CLASSES), len(speaker))) % len(CLASSES)
        runs.append(table(reference, np.where(right, reference, other)))
    return runs[0], runs[1], {name: f"s{one:03d}" for name, one in zip(runs[0].ids, speaker, strict=True)}


def rows_of(scores: Scores, speakers: Mapping[str, str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(scores.ids):
        rows.setdefault(speakers[name], []).append(row)
    return rows


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("clustered", [True, False])
def test_the_value_and_the_difference_are_those_of_the_pooled_metrics(metric: str, clustered: bool) -> None:
    first, other, speakers = two_runs(0, 5)
    pooled = [evaluate(one)["pooled"][metric] for one in (first, other)]  # type: ignore[literal-required]
    known = speakers if clustered else None
    assert interval(first, known, metric).value == pytest.approx(pooled[0], abs=1e-12)
    assert compare(first, other, known, metric, 10).difference == pytest.approx(pooled[1] - pooled[0], abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_an_interval_of_three_speakers_spans_every_way_to_draw_three(metric: str) -> None:
    scores, _, speakers = two_runs(1, 3)
    rows = list(rows_of(scores, speakers).values())
    drawn = [[row for number in numbers for row in rows[number]] for numbers in product(range(3), repeat=3)]
    values = [OF_ARRAYS[metric](scores.reference[each], scores.predicted[each]) for each in drawn]
    found = interval(scores, speakers, metric)
    assert (found.low, found.high) == pytest.approx((min(values), max(values)), abs=1e-6)
    assert (found.num_clusters, found.clustered_by) == (3, "speaker")


@pytest.mark.parametrize("metric", ["wa", "ua"])
def test_intervals_of_utterances_agree_with_scipy(metric: str) -> None:
    scores, _, _ = two_runs(2, 20, 10)
    found = interval(scores, None, metric, draws=20_000)
    # The same levels: SciPy's percentile interval is not widened for the number of utterances.
    level = scipy.stats.norm.cdf(math.sqrt(200 / 199) * scipy.stats.t.ppf(0.025, 199))
    expected = scipy.stats.bootstrap(
        (scores.reference, scores.predicted), OF_ARRAYS[metric], paired=True, vectorized=False, method="percentile",
        confidence_level=1 - 2 * level, n_resamples=3000, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)
    assert (found.num_clusters, found.clustered_by) == (200, "utterance")


def test_an_interval_of_many_equal_speakers_is_that_of_the_mean_of_speakers() -> None:
    scores, _, speakers = two_runs(3, 200, spread=0.15)
    each = [np.mean(scores.reference[rows] == scores.predicted[rows]) for rows in rows_of(scores, speakers).values()]
    half = scipy.stats.t.ppf(0.975, 199) * np.std(each, ddof=1) / math.sqrt(200)
    found = interval(scores, speakers, "wa", draws=20_000)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.003)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("num_speakers", [1, 2, 6])
def test_few_speakers_are_swapped_in_every_way(metric: str, num_speakers: int) -> None:
    first, other, speakers = two_runs(4, num_speakers)
    rows = list(rows_of(first, speakers).values())
    differences = []
    for swapped in product([False, True], repeat=num_speakers):
        one, two = first.predicted.copy(), other.predicted.copy()
        for each in (each for each, swap in zip(rows, swapped, strict=True) if swap):
            one[each], two[each] = other.predicted[each], first.predicted[each]
        differences.append(OF_ARRAYS[metric](first.reference, two) - OF_ARRAYS[metric](first.reference, one))
    extreme = [abs(one) >= abs(differences[0]) - 1e-12 for one in differences]
    found = compare(first, other, speakers, metric, draws=2**num_speakers)
    assert found.p_permutation == pytest.approx(np.mean(extreme), abs=1e-12)
    assert found.difference == pytest.approx(differences[0], abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_swapping_utterances_agrees_with_scipy(metric: str, seed: int) -> None:
    first, other, _ = two_runs(seed, 1, 9, level=0.5)

    def difference(one: np.ndarray, two: np.ndarray) -> float:
        return OF_ARRAYS[metric](first.reference, two) - OF_ARRAYS[metric](first.reference, one)

    expected = scipy.stats.permutation_test(
        (first.predicted, other.predicted), difference, permutation_type="samples", vectorized=False, n_resamples=np.inf
    )
    assert compare(first, other, None, metric).p_permutation == pytest.approx(expected.pvalue, abs=1e-12)


def test_drawn_swaps_come_near_to_all_of_them_and_count_the_runs_as_they_are() -> None:
    first, other, speakers = two_runs(5, 12, spread=0.1, effect=0.2)
    exact = compare(first, other, speakers, draws=2**12).p_permutation
    drawn = compare(first, other, speakers, draws=2**12 - 1).p_permutation
    assert drawn == pytest.approx(exact, abs=0.03)
    assert (drawn * 2**12) == pytest.approx(round(drawn * 2**12), abs=1e-9)
    clear = two_runs(6, 40, level=0.9)[0]
    worst = table(clear.reference.tolist(), [(label + 1) % 4 for label in clear.reference])
    assert compare(clear, worst, None, draws=99).p_permutation == 1 / 100


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_agrees_with_statsmodels(won: int, lost: int) -> None:
    reference = np.zeros(won + lost + 2, int)
    first = [0] * won + [1] * lost + [0, 1]
    other = [1] * won + [0] * lost + [0, 1]
    found = compare(table(reference.tolist(), first), table(reference.tolist(), other), None, "wa", draws=1)
    expected = mcnemar([[1, won], [lost, 1]], exact=True)
    assert found.p_mcnemar == pytest.approx(expected.pvalue, abs=1e-12)
    assert (found.num_differing, found.num_utterances) == (won + lost, won + lost + 2)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0, 1) | st.sampled_from([0.01, 0.04]), min_size=1, max_size=20))
def test_holm_agrees_with_statsmodels(values: list[float]) -> None:
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1].tolist(), abs=1e-12)


def test_holm_by_hand() -> None:
    assert holm([]) == []
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    for wrong in (math.nan, -0.1, 1.1):
        with pytest.raises(ScoresError, match=r"p-value lies in 0\.\.1, got 0\.5"):
            holm([0.5, wrong])


@pytest.mark.parametrize("clustered", [True, False])
def test_a_run_does_not_differ_from_itself(clustered: bool) -> None:
    run, _, speakers = two_runs(7, 20)
    found = compare(run, run, speakers if clustered else None)
    assert (found.difference, found.low, found.high, found.num_differing) == (0, 0, 0, 0)
    assert (found.p_mcnemar, found.p_permutation) == (1, 1)


def test_the_other_way_round_the_sign_changes_and_nothing_else() -> None:
    first, other, speakers = two_runs(8, 9, effect=0.3)
    one, two = compare(first, other, speakers), compare(other, first, speakers)
    assert two.difference == -one.difference != 0
    assert (two.p_mcnemar, two.p_permutation) == (one.p_mcnemar, one.p_permutation)
    assert (two.low, two.high) == pytest.approx((-one.high, -one.low), abs=0.01)


def test_the_order_of_rows_and_classes_and_the_names_of_folds_change_nothing() -> None:
    first, other, speakers = two_runs(9, 6)
    rows, columns = np.random.default_rng(0).permutation(len(other.ids)), [2, 0, 3, 1]
    shuffled = Scores(
        [other.ids[row] for row in rows], ["fold"] * len(rows), [other.labels[row] for row in rows],
        [CLASSES[column] for column in columns], other.probabilities[rows][:, columns],
    )  # fmt: skip
    assert compare(first, shuffled, speakers) == compare(first, other, speakers)
    assert interval(first, dict(reversed(speakers.items()))) == interval(first, speakers)


def test_the_same_seed_gives_the_same_numbers_however_many_are_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    first, other, speakers = two_runs(10, 14)
    whole = compare(first, other, speakers, draws=999), compare(first, other, speakers, draws=2**14)
    assert compare(first, other, speakers, draws=999, seed=1) != whole[0]
    monkeypatch.setattr(statistics, "_MOST_VALUES", 100)
    assert (compare(first, other, speakers, draws=999), compare(first, other, speakers, draws=2**14)) == whole


def test_one_speaker_tells_nothing_of_others() -> None:
    first, other, speakers = two_runs(11, 1)
    alone = interval(first, speakers)
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    assert alone.value == ua(first.reference, first.predicted)
    found = compare(first, other, speakers)
    assert math.isnan(found.low)
    assert found.p_permutation == 1


def test_sets_of_speakers_without_a_class_are_measured_on_the_classes_that_they_have() -> None:
    scores = table([0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 0, 0])
    speakers = dict(zip(scores.ids, "aabbcc", strict=True))
    found = interval(scores, speakers)
    assert (found.low, found.high) == pytest.approx((0, 1), abs=1e-6)


def test_an_utterance_that_is_scored_in_several_folds_stays_one_cluster() -> None:
    one, two, _ = two_runs(12, 4)
    again = [
        Scores(s.ids * 2, ["1"] * 32 + ["2"] * 32, s.labels * 2, CLASSES, np.tile(s.probabilities, (2, 1)))
        for s in (one, two)
    ]
    single, double = compare(one, two, None), compare(*again, None)
    assert (double.num_utterances, double.num_clusters) == (64, 32)
    assert (double.p_permutation, double.low, double.high) == (single.p_permutation, single.low, single.high)
    assert math.isnan(double.p_mcnemar)
    assert interval(again[0], None) == interval(one, None)


def test_what_cannot_be_compared_is_refused() -> None:
    first, other, speakers = two_runs(13, 2)
    with pytest.raises(UnknownNameError, match="no metric 'f1'. Known: macro_f1, ua, wa, weighted_f1"):
        interval(first, speakers, "f1")
    with pytest.raises(UnknownNameError, match="no metric 'f1'"):
        compare(first, other, speakers, "f1")
    with pytest.raises(ScoresError, match="1 scored utterances have no speaker, such as 'u00003'"):
        interval(first, {**speakers, "u00003": ""})
    with pytest.raises(ScoresError, match="one draw or more, got 0"):
        compare(first, other, speakers, draws=0)
    with pytest.raises(ScoresError, match="between 0 and 1, got 95. For 95 % say 0.95"):
        interval(first, speakers, confidence=95)
    with pytest.raises(ScoresError, match="lacks 1 of the 16 utterances of run 1"):
        compare(first, table(first.reference[1:].tolist(), first.predicted[1:].tolist(), first.ids[1:]), speakers)


@pytest.mark.parametrize("num_speakers", [6, 40])
def test_intervals_by_speaker_cover_the_truth_as_often_as_they_say_and_those_by_utterance_do_not(
    num_speakers: int,
) -> None:
    # Clipping is symmetric around the level, so that the accuracy over all speakers there are is exactly the level.
    level, repeats = 0.5, 200
    covered = {"speaker": 0, "utterance": 0}
    for seed in range(repeats):
        scores, _, speakers = two_runs(seed, num_speakers, 40, spread=0.15, level=level)
        for by, known in (("speaker", speakers), ("utterance", None)):
            found = interval(scores, known, draws=500, seed=seed)
            covered[by] += found.low <= level <= found.high
    # Three standard deviations of a count of 200 trials at 95 %: 9.
    assert abs(covered["speaker"] - 0.95 * repeats) <= 9
    assert covered["utterance"] < 0.85 * repeats


def test_runs_that_differ_by_speakers_alone_are_told_apart_by_mcnemar_and_not_by_swapping_speakers() -> None:
    repeats, alarms = 200, {"mcnemar": 0, "permutation": 0}
    for seed in range(repeats):
        first, other, speakers = two_runs(seed, 9, 60, effect=0.3, level=0.5)
        found = compare(first, other, speakers, "wa", draws=2**9)
        alarms["mcnemar"] += found.p_mcnemar <= 0.05
        alarms["permutation"] += found.p_permutation <= 0.05
    # The null hypothesis is true: neither run is better over all speakers. Three standard deviations at 5 %: 9.
    assert alarms["permutation"] <= 0.05 * repeats + 9
    assert alarms["mcnemar"] > 0.3 * repeats

"""Metrics: golden values by hand, laws, and agreement with scikit-learn."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from featcache.errors import ScoresError
from heads.metrics import METRICS as TOTALS_METRICS
from heads.metrics import (
    Totals,
    confusion,
    evaluate,
    macro_f1,
    mean_std,
    recalls,
    totals,
    ua,
    validate,
    wa,
    weighted_f1,
)
from heads.scores import Scores

METRICS = {"wa": wa, "ua": ua, "macro_f1": macro_f1, "weighted_f1": weighted_f1}

# Four of a, two of b, one of c; d never occurs.
REFERENCE = ["a", "a", "a", "a", "b", "b", "c"]
PREDICTED = ["a", "a", "a", "b", "b", "d", "a"]


def test_golden_values_by_hand():
    assert wa(REFERENCE, PREDICTED) == pytest.approx(4 / 7, abs=1e-15)
    assert ua(REFERENCE, PREDICTED) == pytest.approx((3 / 4 + 1 / 2 + 0) / 3, abs=1e-15)
    # F1: a 6/8, b 2/4, c 0, d 0.
    assert macro_f1(REFERENCE, PREDICTED) == pytest.approx((3 / 4 + 1 / 2) / 4, abs=1e-15)
    assert weighted_f1(REFERENCE, PREDICTED) == pytest.approx((4 * 3 / 4 + 2 * 1 / 2) / 7, abs=1e-15)


def test_confusion_has_the_reference_in_rows():
    counts = confusion([0, 0, 1], [1, 1, 0], 3)
    assert counts.tolist() == [[0, 2, 0], [1, 0, 0], [0, 0, 0]]
    assert recalls(counts).tolist()[:2] == [0, 0]
    assert np.isnan(recalls(counts)[2])


CLASSES = st.lists(st.integers(0, 4), min_size=1, max_size=40)


@settings(deadline=None)
@given(CLASSES)
def test_perfect_predictions_give_one(reference):
    for metric in METRICS.values():
        assert metric(reference, reference) == 1


@settings(deadline=None)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=20))
def test_predictions_that_are_all_wrong_give_zero(reference):
    for metric in METRICS.values():
        assert metric(reference, [1 - value for value in reference]) == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=60), st.permutations(range(6)))
def test_names_and_order_of_classes_and_utterances_change_nothing(pairs, names):
    reference, predicted = np.array(pairs).T
    renamed = np.array([f"class {name}" for name in names])
    for metric in METRICS.values():
        expected = metric(reference, predicted)
        assert metric(reference[::-1], predicted[::-1]) == pytest.approx(expected, abs=1e-12)
        assert metric(renamed[reference], renamed[predicted]) == pytest.approx(expected, abs=1e-12)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=30), st.integers(1, 5))
def test_repeating_a_class_changes_accuracy_and_not_unweighted_recall(reference, times):
    reference = [0, 1, 2, 3, *reference]
    predicted = [0, 1, 1, 3, *([1] * (len(reference) - 4))]
    again = [(r, p) for r, p in zip(reference, predicted, strict=True) for _ in range(times if r == 2 else 1)]
    assert ua(*zip(*again, strict=True)) == pytest.approx(ua(reference, predicted), abs=1e-12)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 200), st.integers(2, 7))
def test_metrics_agree_with_scikit_learn(seed, utterances, num_classes):
    generator = np.random.default_rng(seed)
    reference = generator.integers(0, num_classes, utterances)
    predicted = np.where(generator.random(utterances) < 0.5, reference, generator.integers(0, num_classes, utterances))
    with warnings.catch_warnings():
        # It warns where a class is predicted and never true, and counts as here.
        warnings.simplefilter("ignore")
        expected = {
            "wa": sklearn.accuracy_score(reference, predicted),
            "ua": sklearn.balanced_accuracy_score(reference, predicted),
            "macro_f1": sklearn.f1_score(reference, predicted, average="macro"),
            "weighted_f1": sklearn.f1_score(reference, predicted, average="weighted"),
        }
        labels = list(range(num_classes))
        counts = sklearn.confusion_matrix(reference, predicted, labels=labels)
    for name, metric in METRICS.items():
        assert metric(reference, predicted) == pytest.approx(expected[name], abs=1e-12)
    assert confusion(reference, predicted, num_classes).tolist() == counts.tolist()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_metrics_of_many_matrices_at_once_are_those_of_each(seed, num_classes):
    counts = np.random.default_rng(seed).integers(0, 3, (5, num_classes, num_classes))
    counts[:, 0, 0] += 1  # a matrix of nothing has no metrics; any other class may be absent
    each = [totals(one) for one in counts]
    together = Totals(*(np.stack(parts) for parts in zip(*each, strict=True)))
    for name, metric in TOTALS_METRICS.items():
        assert metric(together).tolist() == [float(metric(one)) for one in each], name


@pytest.mark.parametrize("classes", [(0, 1), (0, 3), (2, 3)])
def test_classes_that_do_not_occur_are_counted_as_scikit_learn_counts_them(classes):
    reference, predicted = np.repeat(classes, 4), np.tile(classes, 4)
    labels = ["angry", "happy", "neutral", "sad"]
    names = [[labels[number] for number in numbers] for numbers in (reference, predicted)]
    assert ua(*names) == pytest.approx(sklearn.balanced_accuracy_score(*names), abs=1e-12)
    assert macro_f1(*names) == pytest.approx(sklearn.f1_score(*names, average="macro"), abs=1e-12)
    assert weighted_f1(*names) == pytest.approx(sklearn.f1_score(*names, average="weighted"), abs=1e-12)
    counts = confusion(reference, predicted, len(labels))
    assert counts.tolist() == sklearn.confusion_matrix(*names, labels=labels).tolist()
    assert np.isnan(recalls(counts)).tolist() == [number not in classes for number in range(4)]


@pytest.mark.parametrize(
    ("reference", "predicted", "message"),
    [
        ([], [], r"one class for each|holds float64|no utterance"),
        (np.array([], int), np.array([], int), "no utterance to score"),
        ([0, 1], [0], "reference has 2 utterances and the prediction 1"),
        ([0, 1], [[0.2, 0.8], [0.5, 0.5]], r"got shape \(2, 2\). Scores of each class\? Take their argmax"),
        ([0, 1], [0.0, 1.0], "prediction holds float64 values, not classes"),
        (["a", "b"], [0, 1], "reference holds text and the prediction numbers"),
    ],
)
def test_mistakes_are_guessed(reference, predicted, message):
    with pytest.raises(ScoresError, match=message):
        validate(reference, predicted)


def test_confusion_refuses_classes_out_of_range():
    with pytest.raises(ScoresError, match="from 1 to 3 where 0 to 2 was expected. Do they count from 1"):
        confusion([1, 2, 3], [1, 2, 3], 3)
    with pytest.raises(ScoresError, match="Number the classes first"):
        confusion(["a"], ["a"], 1)


def test_the_deviation_is_the_one_that_makiuchi_prints():
    mean, std = mean_std([0.679, 0.717, 0.673, 0.722, 0.716])
    assert f"{100 * mean:.1f} ± {100 * (std or 0):.1f}" == "70.1 ± 2.3"
    mean, std = mean_std([0.596, 0.736, 0.660, 0.713, 0.700])
    assert f"{100 * mean:.1f} ± {100 * (std or 0):.1f}" == "68.1 ± 5.5"


def test_one_fold_has_no_deviation():
    assert mean_std([0.7]) == (0.7, None)


def test_percentages_and_other_non_fractions_are_refused():
    with pytest.raises(ScoresError, match=r"got 67\.9\. Are these percentages\? Divide them by 100"):
        mean_std([67.9, 71.7])
    with pytest.raises(ScoresError, match="fraction in 0..1, got nan"):
        mean_std([0.5, np.nan])
    with pytest.raises(ScoresError, match="one value for each fold"):
        mean_std([])


def scores_of(rows):
    """Rows of fold, label and predicted class."""
    classes = ("a", "b", "c")
    probabilities = [[0.6 if name == predicted else 0.2 for name in classes] for _, _, predicted in rows]
    ids = [f"u{index}" for index in range(len(rows))]
    return Scores(ids, [fold for fold, _, _ in rows], [label for _, label, _ in rows], classes, probabilities)


def test_evaluate_gives_every_fold_the_spread_and_the_pool():
    rows = [("10", "a", "a"), ("10", "b", "a"), ("10", "b", "b"), ("9", "a", "a"), ("9", "c", "c"), ("9", "c", "c")]
    result = evaluate(scores_of(rows))
    assert result["classes"] == ["a", "b", "c"]
    assert [fold["fold"] for fold in result["folds"]] == ["9", "10"]
    nine, ten = result["folds"]
    assert nine == {
        "fold": "9",
        "n": 3,
        "wa": 1.0,
        "ua": 1.0,
        "macro_f1": 1.0,
        "weighted_f1": 1.0,
        "confusion": [[1, 0, 0], [0, 0, 0], [0, 0, 2]],
    }
    assert ten["wa"] == pytest.approx(2 / 3)
    assert ten["ua"] == pytest.approx(3 / 4)
    assert ten["macro_f1"] == pytest.approx(2 / 3)
    assert ten["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    assert result["mean"]["ua"] == pytest.approx(7 / 8)
    assert result["std"]["ua"] == pytest.approx(np.std([1, 3 / 4], ddof=1))
    assert result["pooled"]["n"] == 6
    assert result["pooled"]["wa"] == pytest.approx(5 / 6)
    assert result["pooled"]["ua"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert result["pooled"]["confusion"] == [[2, 0, 0], [1, 1, 0], [0, 0, 2]]


def test_evaluate_ignores_the_order_of_rows_and_is_plain_json():
    rows = [("1", "a", "b"), ("2", "b", "b"), ("1", "c", "c"), ("2", "a", "c")]
    result = evaluate(scores_of(rows))
    assert result == evaluate(scores_of(rows[::-1]))
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_evaluate_of_perfect_scores_is_one():
    result = evaluate(scores_of([("1", "a", "a"), ("2", "b", "b"), ("2", "c", "c")]))
    assert set(result["mean"].values()) == {1.0}
    assert set(result["std"].values()) == {0.0}
    assert [result["pooled"][name] for name in ("wa", "ua", "macro_f1", "weighted_f1")] == [1.0] * 4


def test_evaluate_of_one_fold_has_no_deviation():
    assert set(evaluate(scores_of([("1", "a", "b"), ("1", "b", "b")]))["std"].values()) == {None}


def test_flags_are_counted_as_classes() -> None:
    assert confusion([True, False, False], [True, True, False], 2).tolist() == [[1, 1], [0, 1]]

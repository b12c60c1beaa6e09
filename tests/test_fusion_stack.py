"""Logistic stacking: what it learns, and that the scored fold teaches it nothing."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_fusion_search import CLASSES, WAYS, as_run, disturbed, ids_of, make_run, make_runs, rows_where, take

from featcache.errors import ConfigError, ScoresError
from heads import fusion_stack
from heads.fusion_stack import stack_runs
from heads.metrics import evaluate
from heads.runs import Run
from heads.scores import Scores


def with_probabilities(run: Run, change) -> Run:
    tables = []
    for table in (run.scores, run.validation_scores):
        values = change(table.probabilities)
        tables.append(replace(table, probabilities=values / values.sum(axis=1, keepdims=True)))
    return as_run(*tables, run.name)


def accuracy(scores: Scores) -> float:
    return evaluate(scores)["pooled"]["ua"]


@pytest.mark.parametrize("space", ["prob", "log"])
@pytest.mark.parametrize("by", ["ua", "wa"])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_it_is_logistic_regression_on_standardised_columns(space, by, num_classes):
    runs = make_runs(1)
    if num_classes == 2:
        kept = [row for row, label in enumerate(runs[0].scores.labels) if label in CLASSES[:2]]
        tables = [take(run.scores, kept) for run in runs]
        halves = [
            table.probabilities[:, :2] / table.probabilities[:, :2].sum(axis=1, keepdims=True) for table in tables
        ]
        runs = [
            as_run(Scores(table.ids, table.folds, table.labels, CLASSES[:2], half))
            for table, half in zip(tables, halves, strict=True)
        ]
    found = stack_runs(runs, space=space, search_on="other-folds", select_by=by).fused.scores
    columns = np.concatenate([run.scores.probabilities for run in runs], axis=1)
    columns = np.log(columns) if space == "log" else columns
    for fold in ("1", "2", "3"):
        tested = np.array(found.folds) == fold
        model = LogisticRegression(class_weight="balanced" if by == "ua" else None, tol=1e-8, max_iter=10_000)
        expected = make_pipeline(StandardScaler(), model).fit(columns[~tested], found.reference[~tested])
        assert found.probabilities[tested] == pytest.approx(expected.predict_proba(columns[tested]), abs=1e-4)


@pytest.mark.parametrize("space", ["prob", "log"])
@pytest.mark.parametrize("on", ["validation", "other-folds"])
def test_confused_classes_and_biases_are_put_right(space, on):
    run = make_run(2, strength=4, in_fold=40)
    confused = with_probabilities(run, lambda values: values[:, [1, 2, 3, 0]])
    biased = with_probabilities(run, lambda values: values * np.array([0.001, 1, 1, 1]))
    whole = accuracy(run.scores)
    for spoilt in (confused, biased):
        assert accuracy(spoilt.scores) < 0.8 * whole
        assert accuracy(stack_runs([spoilt], space=space, search_on=on).fused.scores) > 0.95 * whole


def test_a_run_that_is_right_in_one_class_only_is_believed_there():
    one, other = make_runs(3, (3.0, 3.0), in_fold=60)
    one = with_probabilities(
        one, lambda values: np.concatenate([values[:, :2], values[:, 2:].mean(1)[:, None] * [1, 1]], 1)
    )
    other = with_probabilities(
        other, lambda values: np.concatenate([values[:, :2].mean(1)[:, None] * [1, 1], values[:, 2:]], 1)
    )
    stacked = accuracy(stack_runs([one, other], space="log").fused.scores)
    assert stacked > max(accuracy(one.scores), accuracy(other.scores)) + 0.1


@pytest.mark.parametrize("space", ["prob", "log"])
def test_a_run_that_says_the_same_of_all_changes_nothing(space):
    run = make_run(4)
    flat = replace(with_probabilities(run, lambda values: np.ones_like(values)))
    expected, found = stack_runs([run], space=space), stack_runs([flat, run], space=space)
    assert found.fused.scores.probabilities == pytest.approx(expected.fused.scores.probabilities, abs=1e-12)
    assert not any(one.model.coefficients[:, 0].any() for one in found.folds)


@pytest.mark.parametrize(("on", "standardise"), WAYS)
def test_the_scored_fold_teaches_its_model_nothing(on, standardise):
    runs = make_runs(5)
    before = stack_runs(runs, space="log", standardise=standardise, search_on=on).folds
    for number, fold in enumerate(("1", "2", "3")):
        changed = [disturbed(run, ids_of(run, fold), seed) for seed, run in enumerate(runs)]
        after = stack_runs(changed, space="log", standardise=standardise, search_on=on).folds
        for one, (mine, theirs) in enumerate(zip(before, after, strict=True)):
            same = np.array_equal(mine.model.coefficients, theirs.model.coefficients)
            assert same == (mine.on_search == theirs.on_search) == (one == number)


def test_the_order_of_runs_rows_and_columns_decides_nothing():
    """Not even the last digit of a coefficient."""
    runs, order, columns = make_runs(6, (0.6, 0.8, 1.0)), [2, 0, 1], [2, 0, 3, 1]
    expected = stack_runs(runs, space="log")
    found = stack_runs([runs[index] for index in order], space="log")
    assert np.array_equal(found.fused.scores.predicted, expected.fused.scores.predicted)
    for mine, theirs in zip(expected.folds, found.folds, strict=True):
        assert np.array_equal(theirs.model.coefficients, mine.model.coefficients[:, order])

    def shuffled(table: Scores, classes: list[int]) -> Scores:
        table = take(table, np.random.default_rng(0).permutation(len(table.ids)).tolist())
        names, values = [CLASSES[index] for index in classes], table.probabilities[:, classes]
        return Scores(table.ids, table.folds, table.labels, names, values)

    for changed, classes in ((0, [0, 1, 2, 3]), (1, columns), (2, columns)):
        runs[changed] = as_run(
            *(shuffled(one, classes) for one in (runs[changed].scores, runs[changed].validation_scores))
        )
        for mine, theirs in zip(expected.folds, stack_runs(runs, space="log").folds, strict=True):
            assert np.array_equal(theirs.model.coefficients, mine.model.coefficients)


def test_a_class_that_was_not_there_to_learn_gets_probability_0_and_is_named():
    runs = make_runs(7)
    held = [rows_where(run.validation_scores, np.array(run.validation_scores.labels) != "happy") for run in runs]
    found = stack_runs([as_run(run.scores, table) for run, table in zip(runs, held, strict=True)])
    assert [one.unseen for one in found.folds] == [("happy",)] * 3
    assert not found.fused.scores.probabilities[:, 1].any()
    assert found.fused.scores.probabilities.sum(axis=1) == pytest.approx(1)
    whole = stack_runs(runs)
    assert [one.unseen for one in whole.folds] == [()] * 3
    assert (whole.fused.scores.probabilities > 0).all()


def test_one_class_is_nothing_to_learn_from():
    run = make_run(8)
    held = rows_where(run.validation_scores, np.array(run.validation_scores.labels) == "sad")
    with pytest.raises(ScoresError, match="Fold '1' has one class only in the . utterances to learn from"):
        stack_runs([as_run(run.scores, held)])


def test_a_fit_that_does_not_settle_is_an_error(monkeypatch):
    monkeypatch.setattr(fusion_stack, "_MAX_ITERATIONS", 1)
    with pytest.raises(ScoresError, match="stacked model of fold '1' did not settle in 1 iterations"):
        stack_runs(make_runs(9))


@pytest.mark.parametrize("space", ["prob", "log"])
def test_certain_scores_and_zeros_are_learned_from(space):
    """What comes of a separable set, and of probabilities that are exactly 0: finite, and settled."""
    run = make_run(10)
    sure = as_run(
        *(replace(table, probabilities=np.eye(4)[table.reference]) for table in (run.scores, run.validation_scores))
    )
    found = stack_runs([sure, run], space=space).fused.scores
    assert found.predicted.tolist() == found.reference.tolist()


def test_metrics_on_validation_are_those_of_the_fused_validation_scores():
    found = stack_runs(make_runs(11), space="log")
    assert found.validation_decided
    for one, measured in zip(found.folds, evaluate(found.fused.validation_scores)["folds"], strict=True):
        assert (one.on_search.ua, one.on_search.wa) == pytest.approx((measured["ua"], measured["wa"]))


def test_unknown_choices_and_nothing_to_learn_from_are_refused():
    with pytest.raises(ConfigError, match="cannot be learned for 'f1'. Use ua or wa"):
        stack_runs([make_run(0)], select_by="f1")
    with pytest.raises(ScoresError, match="bare kept no validation scores. Use --search-on other-folds instead"):
        stack_runs([as_run(make_run(0).scores, name="bare")])

"""Fusion of score tables by fixed weights."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from featcache.errors import ConfigError, ScoresError
from heads.fusion import fuse, fuse_runs
from heads.metrics import evaluate
from heads.runs import Run
from heads.scores import Scores

CLASSES = ("angry", "happy", "sad")


def table(seed=0, rows=8, prefix="u", probabilities=None, classes=CLASSES, folds=("1", "2")):
    if probabilities is None:
        probabilities = np.random.default_rng(seed).dirichlet(np.ones(len(classes)), rows)
    rows = len(probabilities)
    return Scores(
        [f"{prefix}{index}" for index in range(rows)],
        [folds[index % len(folds)] for index in range(rows)],
        [classes[index % len(classes)] for index in range(rows)],
        classes,
        probabilities,
    )


def run(scores, validation=None, name="run"):
    return Run(Path(name), scores, validation, evaluate(scores), None)


def test_the_weighted_sum_is_makiuchis_up_to_scale():
    speech, text = [[0.5, 0.3, 0.2]], [[0.1, 0.2, 0.7]]
    fused = fuse([table(probabilities=speech), table(probabilities=text)], [0.6, 1.0])
    expected = np.array([0.6 * 0.5 + 0.1, 0.6 * 0.3 + 0.2, 0.6 * 0.2 + 0.7]) / 1.6
    assert fused.probabilities[0] == pytest.approx(expected, abs=1e-15)


def test_log_space_is_padis_sum_and_its_softmax():
    speech, text = np.array([[0.5, 0.3, 0.2]]), np.array([[0.1, 0.2, 0.7]])
    fused = fuse([table(probabilities=speech), table(probabilities=text)], [0.06, 0.94], space="log")
    expected = speech**0.06 * text**0.94
    assert fused.probabilities == pytest.approx(expected / expected.sum(), abs=1e-14)


def test_standardised_scores_by_hand():
    scores, holdout = table(seed=1), table(seed=2, prefix="v")
    other, other_holdout = table(seed=3), table(seed=4, prefix="v")
    fused = fuse([scores, other], [1, 1], space="log", standardise_by=[holdout, other_holdout])
    rows = np.array(scores.folds) == "2"
    total = np.zeros((rows.sum(), 3))
    for mine, held in ((scores, holdout), (other, other_holdout)):
        sample = np.log(held.probabilities[np.array(held.folds) == "2"])
        total += 0.5 * (np.log(mine.probabilities[rows]) - sample.mean()) / sample.std()
    expected = np.exp(total) / np.exp(total).sum(axis=1, keepdims=True)
    assert fused.probabilities[rows] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize("space", ["prob", "log"])
@pytest.mark.parametrize("standardise", [False, True])
@settings(deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-300, 1e300))
def test_a_weight_of_one_beside_zeros_reproduces_that_run(space, standardise, seed, scale):
    tables = [table(seed=seed + index) for index in range(3)]
    ordered = np.sort(tables[0].probabilities, axis=1)
    assume((ordered[:, -1] - ordered[:, -2]).min() > 1e-6)
    holdout = [table(seed=seed + index, prefix="v") for index in range(3)] if standardise else None
    fused = fuse(tables, [scale, 0, 0], space=space, standardise_by=holdout)
    assert fused.predicted.tolist() == tables[0].predicted.tolist()
    if not standardise:
        assert fused.probabilities == pytest.approx(tables[0].probabilities, abs=1e-12)


@pytest.mark.parametrize("space", ["prob", "log"])
def test_a_run_fused_with_itself_is_itself(space):
    scores = table()
    assert fuse([scores, scores, scores], [3, 1, 2], space=space).probabilities == pytest.approx(
        scores.probabilities, abs=1e-12
    )


@pytest.mark.parametrize("space", ["prob", "log"])
def test_the_scale_of_weights_and_the_order_of_runs_change_nothing(space):
    one, other = table(seed=1), table(seed=2)
    expected = fuse([one, other], [0.6, 1.0], space=space).probabilities
    assert fuse([one, other], [6, 10], space=space).probabilities == pytest.approx(expected, abs=1e-12)
    assert fuse([other, one], [1.0, 0.6], space=space).probabilities == pytest.approx(expected, abs=1e-12)


def test_rows_and_classes_in_another_order_are_put_right():
    one, other = table(seed=1), table(seed=2)
    order, columns = [7, 0, 3, 2, 1, 6, 5, 4], [2, 0, 1]
    shuffled = Scores(
        [other.ids[row] for row in order],
        [other.folds[row] for row in order],
        [other.labels[row] for row in order],
        [other.classes[column] for column in columns],
        other.probabilities[order][:, columns],
    )
    for space in ("prob", "log"):
        expected, fused = fuse([one, other], [1, 2], space=space), fuse([one, shuffled], [1, 2], space=space)
        assert np.array_equal(fused.probabilities, expected.probabilities)
        assert (fused.ids, fused.folds, fused.labels, fused.classes) == (one.ids, one.folds, one.labels, one.classes)


def test_a_probability_of_zero_stays_finite_in_log_space():
    certain, other = table(probabilities=[[1.0, 0.0, 0.0]]), table(probabilities=[[0.0, 1.0, 0.0]])
    fused = fuse([certain, other], [1, 1], space="log")
    assert fused.probabilities[0] == pytest.approx([0.5, 0.5, 0], abs=1e-12)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "one weight for each run: 2 runs, 1 weights"),
        ([1, 2, 3], "2 runs, 3 weights"),
        ([1, -0.5], r"0 or more, got -0\.5"),
        ([1, float("nan")], "got nan"),
        ([1, float("inf")], "got inf"),
        ([0, 0.0], "All fusion weights are 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights, message):
    with pytest.raises(ConfigError, match=message):
        fuse([table(), table()], weights)


def test_nothing_to_fuse_and_unknown_spaces_are_refused():
    with pytest.raises(ConfigError, match="nothing to fuse"):
        fuse([], [])
    with pytest.raises(ConfigError, match="no space 'logit'. Known: prob, log"):
        fuse([table()], [1], space="logit")


def test_runs_over_other_utterances_are_refused_by_name():
    with pytest.raises(ScoresError, match="text lacks 2 of the 8 utterances of speech"):
        fuse_runs([run(table(), name="runs/speech"), run(table(rows=6), name="runs/text")], [1, 1])


def test_validation_scores_are_fused_where_every_run_has_them():
    runs = [run(table(seed=1), table(seed=2, prefix="v")), run(table(seed=3), table(seed=4, prefix="v"))]
    for standardise in (False, True):
        fused = fuse_runs(runs, [0.6, 1], standardise=standardise)
        holdout = [table(seed=2, prefix="v"), table(seed=4, prefix="v")]
        expected = fuse(holdout, [0.6, 1], standardise_by=holdout if standardise else None)
        assert fused.validation_scores is not None
        assert np.array_equal(fused.validation_scores.probabilities, expected.probabilities)
        assert fused.why_no_validation == ""


def test_missing_or_different_validation_scores_are_said():
    whole, bare = run(table(seed=1), table(seed=2, prefix="v"), "whole"), run(table(seed=3), name="bare")
    fused = fuse_runs([whole, bare], [1, 1])
    assert fused.validation_scores is None
    assert fused.why_no_validation == "bare kept no validation scores"
    differing = run(table(seed=3), table(seed=2, prefix="w"), "differing")
    fused = fuse_runs([whole, differing], [1, 1])
    assert fused.validation_scores is None
    assert "not validated on the same utterances: differing lacks 8 of the 8" in fused.why_no_validation
    with pytest.raises(ScoresError, match="bare kept no validation scores, and standardising needs them"):
        fuse_runs([whole, bare], [1, 1], standardise=True)


def test_differently_validated_runs_can_be_standardised():
    runs = [run(table(seed=1), table(seed=2, prefix="v")), run(table(seed=3), table(seed=4, prefix="w"))]
    fused = fuse_runs(runs, [1, 1], space="log", standardise=True)
    assert fused.validation_scores is None
    assert len(fused.scores.ids) == 8


def test_standardising_refuses_hold_out_scores_that_say_nothing():
    flat = table(probabilities=np.full((8, 3), 1 / 3), prefix="v")
    with pytest.raises(ScoresError, match="run 1 gives every class of every validation utterance of fold '1' the same"):
        fuse([table()], [1], standardise_by=[flat])
    with pytest.raises(ScoresError, match="run 1 has no validation scores for fold '2'"):
        fuse([table()], [1], standardise_by=[table(folds=("1",))])
    with pytest.raises(ScoresError, match="in its scores and"):
        fuse([table()], [1], standardise_by=[table(classes=("a", "b", "c"))])

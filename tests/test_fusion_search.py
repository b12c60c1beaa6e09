"""Fusion weights that are searched: what is found, and that the scored fold decides nothing."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import ConfigError, ScoresError
from heads.fusion import fuse, fuse_runs
from heads.fusion_search import find_weights, search_runs
from heads.metrics import evaluate, ua, wa
from heads.runs import Run
from heads.scores import Scores

CLASSES = ("angry", "happy", "neutral", "sad")
WAYS = [(on, standardise) for on in ("validation", "other-folds") for standardise in (False, True)]


def as_run(scores: Scores, validation: Scores | None = None, name: str = "run") -> Run:
    return Run(Path(name), scores, validation, evaluate(scores), None)


def make_run(seed: int, strength: float = 1.0, num_folds: int = 3, in_fold: int = 16, name: str = "run") -> Run:
    """A run that leaves folds out one by one; each fold is validated on half of what it does not test."""
    generator = np.random.default_rng(seed)
    number = np.arange(num_folds * in_fold)
    fold = number % num_folds
    label = np.array([0, 1, 2, 3, 2, 1, 2])[(number // num_folds + 2 * fold) % 7]
    test: list[tuple[int, int]] = [(k, n) for k in range(num_folds) for n in number[fold == k]]
    validation = [(k, n) for k in range(num_folds) for n in number[fold != k] if (n // num_folds + k) % 2]

    def scores(rows: list[tuple[int, int]]) -> Scores:
        logits = generator.normal(size=(len(rows), len(CLASSES)))
        logits[np.arange(len(rows)), [label[n] for _, n in rows]] += strength
        powers = np.exp(logits)
        labels = [CLASSES[label[n]] for _, n in rows]
        ids, folds = [f"u{n:03d}" for _, n in rows], [str(k + 1) for k, _ in rows]
        return Scores(ids, folds, labels, CLASSES, powers / powers.sum(axis=1, keepdims=True))

    return as_run(scores(test), scores(validation), name)


def make_runs(seed: int, strengths: Sequence[float] = (0.7, 1.0), **options: int) -> list[Run]:
    return [
        make_run(1000 * seed + index, strength, name=f"run{index}", **options)
        for index, strength in enumerate(strengths)
    ]


def take(table: Scores, rows: Sequence[int]) -> Scores:
    ids, folds, labels = ([column[row] for row in rows] for column in (table.ids, table.folds, table.labels))
    return Scores(ids, folds, labels, table.classes, table.probabilities[list(rows)])


def rows_where(table: Scores, wanted: Sequence[bool]) -> Scores:
    return take(table, np.flatnonzero(wanted).tolist())


def disturbed(run: Run, ids: set[str], seed: int = 0) -> Run:
    """The run with other labels and other scores of some utterances, on test and on validation."""

    def change(table: Scores) -> Scores:
        probabilities = table.probabilities.copy()
        hit = np.array([name in ids for name in table.ids])
        probabilities[hit] = np.random.default_rng(seed).dirichlet(np.ones(len(table.classes)), hit.sum())
        next_class = dict(zip(table.classes, [*table.classes[1:], table.classes[0]], strict=True))
        labels = tuple(next_class[one] if there else one for one, there in zip(table.labels, hit, strict=True))
        return replace(table, labels=labels, probabilities=probabilities)

    return as_run(change(run.scores), change(run.validation_scores), run.name)


def ids_of(run: Run, fold: str) -> set[str]:
    return {name for name, where in zip(run.scores.ids, run.scores.folds, strict=True) if where == fold}


def brute_force(runs: Sequence[Run], fold: str, space: str, on: str, standardise: bool, by: str) -> list[float]:
    """The search as the documentation has it, with the fusion by fixed weights and nothing else."""
    tested = ids_of(runs[0], fold)
    if on == "validation":
        tables = [rows_where(run.validation_scores, np.array(run.validation_scores.folds) == fold) for run in runs]
    else:
        tables = [rows_where(run.scores, np.array(run.scores.folds) != fold) for run in runs]
    holdouts = [
        rows_where(run.validation_scores, [name not in tested for name in run.validation_scores.ids]) for run in runs
    ]
    found = []
    for step in range(101):
        weights = [step / 100, (100 - step) / 100]
        fused = fuse(tables, weights, space=space, standardise_by=holdouts if standardise else None)
        metric = (ua if by == "ua" else wa)(fused.reference, fused.predicted)
        losses = -np.log(fused.probabilities[np.arange(len(fused.ids)), fused.reference])
        of_class = [losses[fused.reference == one].mean() for one in set(fused.reference.tolist())]
        loss = np.mean(of_class) if by == "ua" else losses.mean()
        found.append((-round(metric, 10), round(loss, 9), abs(step - 50), weights))
    return min(found)[-1]


@pytest.mark.parametrize(("on", "standardise"), WAYS)
@pytest.mark.parametrize("space", ["prob", "log"])
@pytest.mark.parametrize("by", ["ua", "wa"])
def test_two_runs_get_the_weights_of_a_brute_force_search(space, on, standardise, by):
    runs = make_runs(7)
    found = search_runs(runs, space=space, standardise=standardise, search_on=on, select_by=by)
    assert [one.fold for one in found.folds] == ["1", "2", "3"]
    for one in found.folds:
        expected = brute_force(runs, one.fold, space, on, standardise, by)
        assert list(one.weights) == pytest.approx(expected, abs=1e-12)
    assert len({one.weights for one in found.folds}) > 1


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), strengths=st.tuples(st.floats(0, 3), st.floats(0, 3)))
def test_two_runs_of_any_strength_get_the_weights_of_a_brute_force_search(seed, strengths):
    runs = make_runs(seed, strengths, num_folds=2, in_fold=8)
    for one in search_runs(runs, search_on="other-folds").folds:
        expected = brute_force(runs, one.fold, "prob", "other-folds", False, "ua")
        assert list(one.weights) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("on", "standardise"), WAYS)
@pytest.mark.parametrize("num_runs", [2, 4])
def test_the_scored_fold_decides_nothing_about_its_weights(on, standardise, num_runs):
    runs = make_runs(3, np.linspace(0.5, 1.2, num_runs))
    before = search_runs(runs, space="log", standardise=standardise, search_on=on)
    for number, fold in enumerate(("1", "2", "3")):
        changed = [disturbed(run, ids_of(run, fold), seed) for seed, run in enumerate(runs)]
        after = search_runs(changed, space="log", standardise=standardise, search_on=on)
        assert after.folds[number] == before.folds[number]
        assert after.folds != before.folds  # other folds may look there, so the change was one


def test_a_fold_follows_its_own_validation_scores_and_no_others():
    runs = make_runs(4)
    before = search_runs(runs)
    changed = []
    for run, other in zip(runs, runs[::-1], strict=True):  # what one run said of fold 2, the other says now
        mine, theirs = run.validation_scores, other.validation_scores
        second = np.array(mine.folds)[:, None] == "2"
        swapped = np.where(second, theirs.probabilities, mine.probabilities)
        changed.append(as_run(run.scores, replace(mine, probabilities=swapped), run.name))
    after = search_runs(changed)
    assert after.folds[1].weights == before.folds[1].weights[::-1] != before.folds[1].weights
    assert (after.folds[0], after.folds[2]) == (before.folds[0], before.folds[2])


@pytest.mark.parametrize("space", ["prob", "log"])
@pytest.mark.parametrize("copies", [1, 2, 3, 5])
def test_copies_of_a_run_share_its_weight_and_keep_its_decisions(space, copies):
    run = make_run(1)
    found = search_runs([run] * copies, space=space)
    for one in found.folds:
        assert one.weights == pytest.approx([1 / copies] * copies, abs=1e-12)
    assert found.fused.scores.predicted.tolist() == run.scores.predicted.tolist()
    assert found.fused.scores.probabilities == pytest.approx(run.scores.probabilities, abs=1e-12)


@pytest.mark.parametrize("space", ["prob", "log"])
@pytest.mark.parametrize(("on", "position"), [("validation", 0), ("other-folds", 1)])
def test_a_run_that_knows_nothing_changes_no_decision(space, on, position):
    run = make_run(2)
    flat = [
        replace(table, probabilities=np.full(table.probabilities.shape, 0.25))
        for table in (run.scores, run.validation_scores)
    ]
    runs = [run]
    runs.insert(position, as_run(*flat, "flat"))
    found = search_runs(runs, space=space, search_on=on)
    assert found.fused.scores.predicted.tolist() == run.scores.predicted.tolist()


@pytest.mark.parametrize("space", ["prob", "log"])
@pytest.mark.parametrize("num_runs", [2, 3, 4])
def test_a_perfect_run_gets_all_the_weight(space, num_runs):
    runs = make_runs(5, [0.5] * (num_runs - 1))
    sure = []
    for table in (runs[0].scores, runs[0].validation_scores):
        sure.append(replace(table, probabilities=np.where(np.eye(4)[table.reference], 0.997, 0.001)))
    found = search_runs([*runs, as_run(*sure, "perfect")], space=space)
    for one in found.folds:
        assert one.on_search.ua == one.on_search.wa == 1
        assert one.weights[-1] > 0.9
    assert found.fused.scores.predicted.tolist() == sure[0].reference.tolist()


@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10_000), num_runs=st.integers(2, 4))
def test_the_order_of_runs_decides_nothing(seed, num_runs):
    runs = make_runs(seed, np.linspace(0.4, 1.2, num_runs), num_folds=2, in_fold=10)
    first = search_runs(runs, space="log")
    for order in list(permutations(range(num_runs)))[1:4]:
        other = search_runs([runs[index] for index in order], space="log")
        assert other.fused.scores.predicted.tolist() == first.fused.scores.predicted.tolist()
        for mine, theirs in zip(first.folds, other.folds, strict=True):
            assert theirs.weights == tuple(mine.weights[index] for index in order)


def test_rows_columns_and_folds_may_be_ordered_and_called_otherwise():
    runs = make_runs(6)
    expected = search_runs(runs)
    called, columns = {"1": "Ses03", "2": "Ses01", "3": "Ses02"}, [2, 0, 3, 1]
    tables = []
    for table in (runs[1].scores, runs[1].validation_scores):
        table = take(table, np.random.default_rng(0).permutation(len(table.ids)).tolist())
        classes, folds = [CLASSES[column] for column in columns], [called[fold] for fold in table.folds]
        tables.append(Scores(table.ids, folds, table.labels, classes, table.probabilities[:, columns]))
    found = search_runs([runs[0], as_run(*tables, "shuffled")])
    assert found.folds == expected.folds
    assert np.array_equal(found.fused.scores.probabilities, expected.fused.scores.probabilities)
    assert np.array_equal(found.fused.validation_scores.probabilities, expected.fused.validation_scores.probabilities)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10_000), by=st.sampled_from(["ua", "wa"]))
def test_many_runs_are_no_worse_than_any_alone_equal_or_any_exchange_between_two(seed, by):
    generator = np.random.default_rng(seed)
    reference = np.append(generator.integers(0, 3, 40), [0, 1, 2])
    values = generator.dirichlet(np.ones(3), (5, 43)) + 0.4 * np.eye(3)[reference]
    values /= values.sum(axis=-1, keepdims=True)
    metric = ua if by == "ua" else wa

    def reached(weights: np.ndarray) -> float:
        return metric(reference, np.tensordot(weights, values, 1).argmax(axis=1))

    weights = find_weights(values, reference, by, True)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    best = reached(weights) + 1e-12
    assert all(reached(one) <= best for one in [*np.eye(5), np.full(5, 0.2)])
    for one, other in combinations(range(5), 2):
        for share in np.linspace(0, 1, 21):
            moved = weights.copy()
            steps = round(100 * (weights[one] + weights[other]))
            moved[one] = round(share * steps) / 100
            moved[other] = (steps - round(share * steps)) / 100
            assert reached(moved) <= best


def test_three_runs_get_the_best_point_of_the_whole_grid():
    runs = make_runs(8, (0.5, 0.7, 0.9))
    tables = [rows_where(run.validation_scores, np.array(run.validation_scores.folds) == "1") for run in runs]
    values, reference = np.stack([table.probabilities for table in tables]), tables[0].reference
    best = max(
        ua(reference, np.tensordot([one, other, 102 - one - other], values, 1).argmax(axis=1))
        for one in range(103)
        for other in range(103 - one)
    )
    assert search_runs(runs).folds[0].on_search.ua == pytest.approx(best)


def test_what_is_aimed_at_decides():
    """Of four rare and eight common utterances, one run knows the rare ones and the other most of the common ones."""
    labels = ["rare"] * 4 + ["common"] * 8
    rare, common = np.array([[0.9, 0.1]] * 12), np.array([[0.2, 0.8]] * 12)
    rare[4:6] = [0.1, 0.9]

    def run(probabilities: np.ndarray, name: str) -> Run:
        ids = [f"{part}{number}" for part in "tv" for number in range(12)]
        test = Scores(ids[:12], ["1"] * 12, labels, ("rare", "common"), probabilities)
        return as_run(test, replace(test, ids=tuple(ids[12:])), name)

    runs = [run(rare, "rare"), run(common, "common")]
    by_ua, by_wa = (search_runs(runs, select_by=by).folds[0] for by in ("ua", "wa"))
    assert by_ua.on_search.ua == pytest.approx((1 + 2 / 8) / 2)
    assert by_wa.on_search.wa == pytest.approx(8 / 12)
    assert by_ua.on_search.wa < by_wa.on_search.wa
    assert by_wa.on_search.ua < by_ua.on_search.ua


def test_metrics_on_validation_are_those_of_the_fused_validation_scores():
    for runs in (make_runs(9), make_runs(9, (0.5, 0.7, 0.9))):
        found = search_runs(runs, space="log")
        for one, measured in zip(found.folds, evaluate(found.fused.validation_scores)["folds"], strict=True):
            assert (one.fold, one.on_search.num_utterances) == (measured["fold"], measured["n"])
            assert (one.on_search.ua, one.on_search.wa) == pytest.approx((measured["ua"], measured["wa"]))


@pytest.mark.parametrize(("on", "standardise"), WAYS)
def test_the_curve_is_that_of_fixed_weights(on, standardise):
    runs = make_runs(10)
    found = search_runs(runs, search_on=on, standardise=standardise)
    assert len(found.curve) == 3 * 101
    for point in found.curve[::37]:
        fixed = fuse_runs(runs, [1 - point.weight, point.weight], standardise=standardise)
        [test] = [one for one in evaluate(fixed.scores)["folds"] if one["fold"] == point.fold]
        assert (point.test_ua, point.test_wa) == pytest.approx((test["ua"], test["wa"]))
        if on == "validation":
            [held] = [one for one in evaluate(fixed.validation_scores)["folds"] if one["fold"] == point.fold]
            assert (point.search_ua, point.search_wa) == pytest.approx((held["ua"], held["wa"]))
    for one in found.folds:
        line = {point.weight: point.search_ua for point in found.curve if point.fold == one.fold}
        assert max(line.values()) == pytest.approx(line[one.weights[1]]) == pytest.approx(one.on_search.ua)


def test_the_ends_of_the_curve_are_the_runs_alone_where_classes_tie():
    """Scores of one decimal tie often; the first class counts, as in every metric here."""
    generator = np.random.default_rng(0)
    runs = []
    for run in make_runs(10):
        tables = (run.scores, run.validation_scores)
        runs.append(
            as_run(*(replace(one, probabilities=generator.multinomial(10, one.probabilities) / 10) for one in tables))
        )
    ends = {(point.fold, point.weight): point for point in search_runs(runs).curve}
    for weight, run in enumerate(runs):
        assert (np.diff(np.sort(run.scores.probabilities)[:, -2:]) == 0).any()
        of_test, of_validation = evaluate(run.scores)["folds"], evaluate(run.validation_scores)["folds"]
        for test, held in zip(of_test, of_validation, strict=True):
            point = ends[test["fold"], weight]
            assert (point.test_ua, point.search_ua) == pytest.approx((test["ua"], held["ua"]))


def test_one_run_is_itself_and_has_no_curve():
    run = make_run(11)
    found = search_runs([run])
    assert [one.weights for one in found.folds] == [(1.0,)] * 3
    assert found.fused.scores.probabilities == pytest.approx(run.scores.probabilities, abs=1e-12)
    assert found.curve == search_runs(make_runs(11, (1, 1, 1))).curve == ()


def test_whether_validation_utterances_decided_is_known():
    runs = make_runs(12)
    assert search_runs(runs).validation_decided
    assert search_runs(runs, search_on="other-folds").validation_decided  # other folds test what a fold validates on
    elsewhere = [
        as_run(run.scores, replace(run.validation_scores, ids=tuple("v" + name for name in run.validation_scores.ids)))
        for run in runs
    ]
    assert search_runs(elsewhere).validation_decided
    assert not search_runs(elsewhere, search_on="other-folds").validation_decided


def test_scores_alone_can_be_searched_on_other_folds():
    runs = make_runs(13)
    bare = [as_run(run.scores, name=run.name) for run in runs]
    found = search_runs(bare, search_on="other-folds")
    assert found.folds == search_runs(runs, search_on="other-folds").folds
    assert found.fused.validation_scores is None
    assert found.fused.why_no_validation == "run0 kept no validation scores; run1 kept no validation scores"
    assert not found.validation_decided


def test_nothing_to_search_on_is_said_with_what_to_do_instead():
    whole, other = make_runs(14)
    held = whole.validation_scores
    with pytest.raises(ScoresError, match="bare kept no validation scores. Use --search-on other-folds instead"):
        search_runs([whole, as_run(other.scores, name="bare")])
    renamed = replace(held, ids=tuple("w" + name for name in held.ids))
    with pytest.raises(
        ScoresError, match=r"not validated on the same utterances: \w+ lacks .* --search-on other-folds"
    ):
        search_runs([whole, as_run(other.scores, renamed, "renamed")])
    swapped = replace(held, folds=tuple({"1": "2", "2": "1"}.get(fold, fold) for fold in held.folds))
    with pytest.raises(ScoresError, match="not validated on the same utterances"):
        search_runs([whole, as_run(other.scores, swapped, "swapped")])
    elsewhere = replace(held, folds=tuple("x" + fold for fold in held.folds))
    with pytest.raises(ScoresError, match="strange kept no validation scores of the folds that it tests"):
        search_runs([whole, as_run(other.scores, elsewhere, "strange")])
    partly = rows_where(held, np.array(held.folds) != "3")
    with pytest.raises(ScoresError, match="no run kept validation scores for fold '3'. Use --search-on other-folds"):
        search_runs([as_run(whole.scores, partly)])
    single = as_run(rows_where(whole.scores, np.array(whole.scores.folds) == "1"), held)
    with pytest.raises(ScoresError, match="no fold but '1' is there. Use --search-on validation instead"):
        search_runs([single], search_on="other-folds")


def test_folds_that_were_validated_on_each_others_utterances_are_not_mixed_up():
    """Each utterance is validated once, so that ids alone would pair fold 1 of one run with fold 2 of the other."""
    whole, other = make_runs(15, num_folds=2)
    held = other.validation_scores
    swapped = replace(held, folds=tuple({"1": "2", "2": "1"}[fold] for fold in held.folds))
    with pytest.raises(ScoresError, match="run0 and swapped validated other folds on them"):
        search_runs([whole, as_run(other.scores, swapped, "swapped")])


def test_test_utterances_among_what_is_searched_on_are_refused():
    run = make_run(16)
    with pytest.raises(ScoresError, match="16 of 16 utterances that fold '1' tests are also among its validation"):
        search_runs([as_run(run.scores, run.scores)])
    ids = tuple("same" if row in (0, 47) else name for row, name in enumerate(run.scores.ids))
    repeated = as_run(replace(run.scores, ids=ids))
    with pytest.raises(ScoresError, match="1 of 16 utterances that fold '1' tests are also among those of other folds"):
        search_runs([repeated], search_on="other-folds")


def test_standardising_looks_at_no_utterance_that_the_fold_tests():
    """With two folds, each validated on what the other tests, nothing is left to standardise the other folds by."""
    runs = make_runs(17, num_folds=2)
    assert len(search_runs(runs, standardise=True).folds) == 2
    with pytest.raises(ScoresError, match="tested by the fold to be decided about.*Leave --standardise out"):
        search_runs(runs, standardise=True, search_on="other-folds")


def test_unknown_choices_are_refused():
    with pytest.raises(ConfigError, match="cannot be selected by 'f1'. Use ua or wa"):
        search_runs([make_run(0)], select_by="f1")
    with pytest.raises(ConfigError, match="Nothing can be searched on 'test'. Use validation or other-folds"):
        search_runs([make_run(0)], search_on="test")
    with pytest.raises(ConfigError, match="no space 'logit'"):
        search_runs([make_run(0)], space="logit")
    with pytest.raises(ConfigError, match="nothing to fuse"):
        search_runs([])

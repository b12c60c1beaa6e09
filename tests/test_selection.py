"""Nested selection: what validation chose against what choosing on test would have claimed, by cases done by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import make_scores, write_csv, write_full_run, write_small_run

from featcache.errors import ScoresError
from heads.metrics import evaluate
from heads.runs import Run, read_run, write_run
from heads.scores import Scores
from pipelines.reporting import selection
from pipelines.reporting.selection import over_candidates, over_runs

HEADER = ("fold", "layer", "learning_rate", "layer_name", "validation", "test", "chosen")
# Fold 1 chooses layer 0, fold 2 layer 1; on test each would have chosen the other, and for both layer 1 is best.
TWO_FOLDS = [
    ("1", 0, 0.1, "low", 0.70, 0.60, "True"),
    ("1", 1, 0.1, "high", 0.65, 0.80, "False"),
    ("2", 0, 0.1, "low", 0.50, 0.58, "False"),
    ("2", 1, 0.1, "high", 0.55, 0.56, "True"),
]


def write_candidates(folder: Path, rows: Sequence[Sequence[Any]], **config: Any) -> Run:
    write_small_run(folder, tuple(dict.fromkeys(str(row[0]) for row in rows)), **config)
    write_csv(folder / "candidates.csv", HEADER, rows)
    return read_run(folder)


def right(share: float, folds: Sequence[str] = ("1", "2")) -> Scores:
    """Return scores of two classes of ten utterances a fold, of which `share` of each class are recognised."""
    rows = [(fold, label, place < round(10 * share)) for fold in folds for label in "ab" for place in range(10)]
    values = np.array([[1, 0] if (label == "a") == is_right else [0, 1] for _, label, is_right in rows], float)
    ids = [f"{fold}{label}{number}" for number, (fold, label, _) in enumerate(rows)]
    return Scores(tuple(ids), tuple(row[0] for row in rows), tuple(row[1] for row in rows), ("a", "b"), values)


def make_run(test: float, validation: float | None) -> Run:
    scores = right(test)
    return Run(Path("nowhere"), scores, None if validation is None else right(validation), evaluate(scores), {})


def test_each_fold_keeps_what_validation_chose_and_shows_what_test_would_have(tmp_path: Path) -> None:
    found = over_candidates(write_candidates(tmp_path / "run", TWO_FOLDS))
    assert found is not None
    assert [(one.fold, one.chosen, one.best) for one in found.folds] == [
        ("1", "layer 0 (low)", "layer 1 (high)"), ("2", "layer 1 (high)", "layer 0 (low)"),
    ]  # fmt: skip
    assert found.metric == "UA"
    assert found.reported == pytest.approx((0.60 + 0.56) / 2)
    assert found.by_fold == pytest.approx((0.80 + 0.58) / 2)
    assert (found.single, found.by_single) == ("layer 1 (high)", pytest.approx((0.80 + 0.56) / 2))
    words = selection.candidates_words(found)
    assert "58.0 % UA" in words
    assert "69.0 % (+11.0 points)" in words
    assert "68.0 % (+10.0 points)" in words
    table = selection.candidates_table(found)
    assert list(table.rows[0]) == ["1", "layer 0 (low)", "70.0", "60.0", "layer 1 (high)", "80.0"]
    assert list(table.rows[2]) == ["mean", "", "62.5", "58.0", "", "69.0"]
    assert {len(row) for row in table.rows} == {len(table.header)}


def test_among_equals_the_first_wins(tmp_path: Path) -> None:
    rows = [(fold, layer, 0.1, "", 0.5, 0.5, layer == 0) for fold in ("1", "2") for layer in (0, 1, 2)]
    found = over_candidates(write_candidates(tmp_path / "run", rows))
    assert found is not None
    assert {one.best for one in found.folds} == {"layer 0"}
    assert found.single == "layer 0"
    assert "(+0.0 points)" in selection.candidates_words(found)
    assert over_runs([make_run(0.5, 0.5), make_run(0.5, 0.5)], ["a", "b"]) == selection.OverRuns(
        "UA", "a", 0.5, 0.5, "a", 0.5, 0.5, 2, 0, False
    )


def test_candidates_without_a_number_are_passed_over(tmp_path: Path) -> None:
    rows = [
        ("1", 0, 0.1, "", "nan", 0.4, "True"),
        ("1", 1, 0.1, "", "nan", "nan", "False"),
        ("2", 0, 0.1, "", 0.5, 0.6, "True"),
        ("2", 1, 0.1, "", 0.4, 0.9, "False"),
    ]
    found = over_candidates(write_candidates(tmp_path / "run", rows))
    assert found is not None
    assert found.by_fold == pytest.approx((0.4 + 0.9) / 2)
    # Layer 1 has a number in one fold only: it is no setting for all folds.
    assert (found.single, found.by_single) == ("layer 0", pytest.approx(0.5))
    assert math.isnan(found.folds[0].validation)
    assert selection.candidates_table(found).rows[0][2] == "–"
    none = [(*row[:5], "nan", row[6]) for row in rows]
    empty = over_candidates(write_candidates(tmp_path / "none", none))
    assert empty is not None
    assert (empty.single, empty.folds[0].best) == ("", "")
    assert math.isnan(empty.reported)
    assert "Chosen on validation: – %" in selection.candidates_words(empty)


def test_a_setting_that_some_folds_lack_is_none_for_all(tmp_path: Path) -> None:
    rows = [
        ("1", 0, 0.1, "", 0.5, 0.5, "True"), ("1", 0, 0.2, "", 0.4, 0.9, "False"),
        ("2", 0, 0.1, "", 0.5, 0.5, "True"), ("2", 0, 0.3, "", 0.4, 0.4, "False"),
    ]  # fmt: skip
    found = over_candidates(write_candidates(tmp_path / "run", rows))
    assert found is not None
    assert (found.single, found.by_single) == ("learning_rate 0.1", 0.5)
    assert found.by_fold == pytest.approx((0.9 + 0.5) / 2)


def test_no_choice_is_told_as_none(tmp_path: Path) -> None:
    assert over_candidates(read_run(write_small_run(tmp_path / "small"))) is None
    one = [(fold, 3, 0.1, "", 0.5, 0.5, "True") for fold in ("1", "2")]
    assert over_candidates(write_candidates(tmp_path / "one", one)) is None
    # Each fold had one candidate, though not the same.
    other = [("1", 3, 0.1, "", 0.5, 0.5, "True"), ("2", 4, 0.2, "", 0.5, 0.5, "True")]
    write_csv(tmp_path / "one" / "candidates.csv", [n for n in HEADER if n != "layer"], [(r[0], *r[2:]) for r in other])
    assert over_candidates(read_run(tmp_path / "one")) is None
    folder = write_full_run(tmp_path / "fused")
    write_run(folder, make_scores(), None, {"fused": ["a", "b"]})
    assert over_candidates(read_run(folder)) is None


def test_a_fold_that_chose_nothing_is_refused_by_name(tmp_path: Path) -> None:
    rows = [(*row[:6], "False" if row[0] == "2" else row[6]) for row in TWO_FOLDS]
    with pytest.raises(ScoresError, match="candidates.csv' has no chosen candidate in fold '2'"):
        over_candidates(write_candidates(tmp_path / "run", rows))


def test_of_several_runs_validation_chooses_and_the_gap_to_test_is_told() -> None:
    runs = [make_run(0.6, 0.7), make_run(0.9, 0.5), make_run(0.7, 0.8), make_run(0.8, None)]
    found = over_runs(runs, ["a", "b", "c", "d"])
    assert found is not None
    assert (found.chosen, found.validation, found.test) == ("c", pytest.approx(0.8), pytest.approx(0.7))
    assert (found.best, found.best_test, found.num_runs, found.num_without) == ("b", pytest.approx(0.9), 4, 1)
    words = selection.runs_words(found)
    assert "validation chooses c: 70.0 % UA on test" in words
    assert "b, has 90.0 % (+20.0 points)" in words
    assert "1 runs kept no validation scores" in words
    assert [list(row) for row in selection.runs_table(found).rows] == [
        ["validation", "c", "80.0", "70.0"], ["validation, fold by fold", "each fold's own", "", "70.0"],
        ["test: not a result", "b", "", "90.0"],
    ]  # fmt: skip


def mixed(test: Sequence[float], validation: Sequence[float]) -> Run:
    """Return a run with these UAs in folds 1 and 2."""

    def joined(shares: Sequence[float]) -> Scores:
        parts = [right(share, (fold,)) for fold, share in zip(("1", "2"), shares, strict=True)]
        names = [[name for part in parts for name in getattr(part, of)] for of in ("ids", "folds", "labels")]
        values = np.concatenate([part.probabilities for part in parts])
        return Scores(*map(tuple, names), ("a", "b"), values)  # type: ignore[arg-type]

    scores = joined(test)
    return Run(Path("nowhere"), scores, joined(validation), evaluate(scores), {})


def test_each_fold_may_choose_its_own_run() -> None:
    runs = [mixed((0.6, 0.9), (0.8, 0.6)), mixed((0.7, 0.5), (0.7, 0.8)), mixed((1.0, 1.0), (0.5, 0.5))]
    found = over_runs(runs, ["a", "b", "c"])
    assert found is not None
    # Fold 1 takes a, fold 2 takes b; by the mean over folds b is chosen, and on test c is best.
    assert (found.chosen, found.best) == ("b", "c")
    assert found.nested == pytest.approx((0.6 + 0.5) / 2)
    assert found.test == pytest.approx((0.7 + 0.5) / 2)
    assert "on its own validation part: 55.0 %" in selection.runs_words(found)
    other = replace(runs[0], validation_scores=right(0.5, ("1", "x")))
    apart = over_runs([other, runs[1]], ["a", "b"])
    assert apart is not None
    assert math.isnan(apart.nested)
    assert "own validation part" not in selection.runs_words(apart)


def test_without_validation_nothing_chooses() -> None:
    found = over_runs([make_run(0.6, None), make_run(0.7, None)], ["a", "b"])
    assert found is not None
    assert found.chosen == ""
    assert math.isnan(found.test)
    assert "would be to choose on test" in selection.runs_words(found)
    assert list(selection.runs_table(found).rows[0]) == ["validation", "–", "–", "–"]
    assert over_runs([make_run(0.6, 0.7)], ["a"]) is None


def test_validation_scores_that_were_searched_on_are_told() -> None:
    fused = replace(make_run(0.7, 0.9), config={"validation_scores_were_searched_on": True})
    found = over_runs([make_run(0.7, 0.8), fused], ["a", "fused"])
    assert found is not None
    assert (found.chosen, found.optimistic) == ("fused", True)
    assert "searched on, which favours it" in selection.runs_words(found)

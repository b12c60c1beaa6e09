"""Runs side by side for late fusion, and what may decide about each fold.

Nothing is found here. `gather` puts runs into one order, `evidence` takes out what the weights of one fold may be
found on, `score` makes tables of whatever turns the runs' scores into one.

What may decide about a fold:

- ``validation``: the validation scores that the runs kept of that very fold (Padi 2022, section 3.3, searches "on a
  hold-out set"). They flatter a run that chose its epoch or its settings on them.
- ``other-folds``: the test scores of all other folds; any program's ``scores.csv`` will do. The models of those folds
  have trained on utterances of the fold in hand, as in any cross-validation; its own scores and labels are not read.

A test utterance of the fold never takes part, not even in the statistics for standardising. Where the tables show one
on both sides, that is an error. Speakers are not in the tables: folds that share speakers are not noticed here.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from featcache.errors import ConfigError, ScoresError
from heads.fold_files import natural_key
from heads.fusion_values import Array, Space, in_space, standardised
from heads.runs import Run
from heads.scores import Scores, align, match

SearchOn = Literal["validation", "other-folds"]
SelectBy = Literal["ua", "wa"]
Model = Callable[[Array], Array]
"""Turns (runs, utterances, classes) values into (utterances, classes) probabilities."""


@dataclass(frozen=True, eq=False)
class Fused:
    """Fused runs.

    Attributes:
        scores: test utterances.
        validation_scores: validation utterances, or None where there are none to fuse.
        why_no_validation: why there are none, in words; empty where there are.
    """

    scores: Scores
    validation_scores: Scores | None
    why_no_validation: str


@dataclass(frozen=True, eq=False)
class Inputs:
    """Runs over the same utterances, in the order of rows, folds and classes of the first.

    Attributes:
        names: (runs,) what to call each in messages.
        test: (runs,) their test scores, alike but for the probabilities.
        validation: (runs,) their validation scores, likewise; empty where the runs were not validated alike.
        why_no_validation: why `validation` is empty, in words.
        holdouts: (runs,) each run's own validation scores, with the folds called as in `test`, to standardise by;
            empty where nothing is to be standardised.
        space: whether values are probabilities or their logarithms.
    """

    names: tuple[str, ...]
    test: tuple[Scores, ...]
    validation: tuple[Scores, ...]
    why_no_validation: str
    holdouts: tuple[Scores, ...]
    space: Space

    @property
    def folds(self) -> list[str]:
        """Names of the tested folds, in natural order."""
        return sorted(set(self.test[0].folds), key=natural_key)

    @property
    def sums_to_one(self) -> bool:
        """Whether weighted sums of the values are probabilities as they stand."""
        return self.space == "prob" and not self.holdouts

    def values(self, tables: Sequence[Scores], leave_out: Collection[str] = ()) -> Array:
        """Return ``(runs, utterances, classes)`` values, standardised where that was asked.

        Args:
            tables: one of each run.
            leave_out: ids that take no part in the statistics for standardising.

        Raises:
            ScoresError: statistics cannot be taken; see `heads.fusion_values.standardised`.
        """
        if not self.holdouts:
            return np.stack([in_space(table, self.space) for table in tables])
        runs = zip(tables, self.holdouts, self.names, strict=True)
        return np.stack([standardised(table, kept, self.space, name, leave_out) for table, kept, name in runs])


@dataclass(frozen=True, eq=False)
class Evidence:
    """What may decide about one fold. Rows are in the order of their ids, whatever that of the tables.

    Attributes:
        fold: the fold that is decided about.
        ids: (utterances,) names; none is tested in that fold.
        values: (runs, utterances, classes) in the space of fusion, standardised where that was asked.
        reference: (utterances,) positions of the true classes.
    """

    fold: str
    ids: tuple[str, ...]
    values: Array
    reference: NDArray[np.int64]


def gather(runs: Sequence[Run], space: Space = "prob", standardise: bool = False) -> Inputs:
    """Put runs side by side.

    Folds may be called differently from run to run: validation scores are matched by what the runs call the folds
    that test the same utterances. Validation scores of folds that test nothing are left out.

    Raises:
        ConfigError: no run.
        ScoresError: test scores over other utterances, classes, folds or labels; or, to standardise, a run without
            validation scores.
    """
    if not runs:
        raise ConfigError("There is nothing to fuse: no run was given.")
    names = tuple(run.name for run in runs)
    test = tuple(align([run.scores for run in runs], names))
    kept, lacking = [], []
    for run in runs:
        table = _validation(run, runs[0])
        if isinstance(table, Scores):
            kept.append(table)
        else:
            lacking.append(table)
    if standardise and lacking:
        raise ScoresError(
            f"{'; '.join(lacking)}, and standardising needs them. "
            "Train again with a validation part, or fuse without standardising."
        )
    aligned, why = ((), "; ".join(lacking)) if lacking else _aligned(kept, names)
    return Inputs(names, test, aligned, why, tuple(kept) if standardise else (), space)


def evidence(inputs: Inputs, fold: str, search_on: SearchOn) -> Evidence:
    """Return what may decide about a fold.

    Raises:
        ConfigError: an unknown choice.
        ScoresError: there is nothing of the kind; or an utterance that the fold tests is among it.
    """
    if search_on not in ("validation", "other-folds"):
        raise ConfigError(f"Nothing can be searched on {search_on!r}. Use validation or other-folds.")
    on_validation = search_on == "validation"
    instead = f"Use --search-on {'other-folds' if on_validation else 'validation'} instead"
    if on_validation and not inputs.validation:
        raise ScoresError(
            f"There is nothing to search on: {inputs.why_no_validation.rstrip('.')}. {instead}, or give fixed weights."
        )
    tables = inputs.validation if on_validation else inputs.test
    table, first = tables[0], inputs.test[0]
    rows = [row for row, where in enumerate(table.folds) if (where == fold) == on_validation]
    rows.sort(key=lambda row: (table.ids[row], table.folds[row]))
    if not rows:
        what = f"no run kept validation scores for fold {fold!r}" if on_validation else f"no fold but {fold!r} is there"
        raise ScoresError(f"There is nothing to search on: {what}. {instead}, or give fixed weights.")
    tested = {name for name, where in zip(first.ids, first.folds, strict=True) if where == fold}
    seen = sorted(tested & {table.ids[row] for row in rows})
    if seen:
        raise ScoresError(
            f"{len(seen)} of {len(tested)} utterances that fold {fold!r} tests are also among "
            f"{'its validation scores' if on_validation else 'those of other folds'}, such as {seen[0]!r}: what is "
            f"found there would be found on test data. {instead}, or give fixed weights."
        )
    values = inputs.values([_rows(one, rows) for one in tables], tested)
    return Evidence(fold, tuple(table.ids[row] for row in rows), values, table.reference[rows])


def score(inputs: Inputs, models: Mapping[str, Model]) -> Fused:
    """Fuse test and validation scores.

    Args:
        inputs: the runs.
        models: for each fold, what turns the runs' values into probabilities.

    Raises:
        ScoresError: statistics for standardising cannot be taken.
    """
    scores = _scored(inputs, inputs.test, models)
    validation = _scored(inputs, inputs.validation, models) if inputs.validation else None
    return Fused(scores, validation, inputs.why_no_validation)


def validation_decided(inputs: Inputs, found_on: Sequence[Evidence]) -> bool:
    """Return whether some fold's validation utterances are among those that decided about it."""
    ids = {one.fold: set(one.ids) for one in found_on}
    return any(
        name in ids[fold]
        for table in inputs.validation[:1]
        for name, fold in zip(table.ids, table.folds, strict=True)
    )  # fmt: skip


def _validation(run: Run, first: Run) -> Scores | str:
    """Return a run's validation scores, with the folds called as in the first run; or why there are none, in words."""
    table = run.validation_scores
    if table is None:
        return f"{run.name} kept no validation scores"
    rows, _ = match(first.scores, run.scores, (first.name, run.name))
    called = {run.scores.folds[row]: fold for row, fold in zip(rows.tolist(), first.scores.folds, strict=True)}
    kept = [row for row, fold in enumerate(table.folds) if fold in called]
    if not kept:
        return f"{run.name} kept no validation scores of the folds that it tests"
    table = _rows(table, kept)
    return replace(table, folds=tuple(called[fold] for fold in table.folds))


def _aligned(tables: Sequence[Scores], names: Sequence[str]) -> tuple[tuple[Scores, ...], str]:
    """Return validation scores in one order; or none, and why."""
    try:
        for other, name in zip(tables[1:], names[1:], strict=True):
            rows, _ = match(tables[0], other, (names[0], name))
            if any(other.folds[row] != fold for row, fold in zip(rows.tolist(), tables[0].folds, strict=True)):
                raise ScoresError(f"{names[0]} and {name} validated other folds on them.")
        return tuple(align(tables, names)), ""
    except ScoresError as error:
        # Runs may have cut validation differently; their test scores can be fused all the same.
        return (), f"the runs were not validated on the same utterances: {error}"


def _rows(table: Scores, rows: Sequence[int]) -> Scores:
    ids, folds, labels = (tuple(column[row] for row in rows) for column in (table.ids, table.folds, table.labels))
    return Scores(ids, folds, labels, table.classes, table.probabilities[list(rows)])


def _scored(inputs: Inputs, tables: Sequence[Scores], models: Mapping[str, Model]) -> Scores:
    first, values = tables[0], inputs.values(tables)
    folds = np.asarray(first.folds, dtype=object)
    probabilities = np.empty_like(first.probabilities)
    for fold in dict.fromkeys(first.folds):
        rows = folds == fold
        probabilities[rows] = models[fold](values[:, rows])
    return replace(first, probabilities=probabilities)

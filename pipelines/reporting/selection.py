"""Nested selection: what was chosen on validation, and what would have been reported by choosing on test.

Cawley and Talbot 2010 (On over-fitting in model selection, JMLR 11) show that a number on data which chose something is
optimistic. How much so is shown here for a run's own candidates (``candidates.csv``), and for a set of runs such as an
ablation's. All numbers are fractions, means over folds; among equals the first wins.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from featcache.errors import ScoresError
from heads.metrics import Metrics, evaluate
from heads.runs import Run
from pipelines.reporting.details import Candidates, read_candidates
from pipelines.reporting.facts import Table
from pipelines.reporting.wording import TITLES, percent, points

_NONE = "–"


@dataclass(frozen=True)
class FoldChoice:
    """What one fold chose among its candidates.

    Attributes:
        fold: name.
        chosen: the setting that the run used, in words.
        validation: its metric on validation; NaN where there was none.
        test: its metric on test.
        best: the setting that is best on test, in words; empty where no candidate has a number.
        best_test: its metric on test.
    """

    fold: str
    chosen: str
    validation: float
    test: float
    best: str
    best_test: float


@dataclass(frozen=True)
class OverCandidates:
    """A run's candidates, chosen on validation, and as if chosen on test.

    Attributes:
        metric: what readers call the metric by which was chosen.
        folds: what each fold chose.
        reported: mean test metric of what validation chose.
        by_fold: mean test metric had each fold chosen on its own test part.
        single: the one setting for all folds that is best on test, in words; empty where none was tried in all.
        by_single: its mean test metric; NaN where there is none.
    """

    metric: str
    folds: Sequence[FoldChoice]
    reported: float
    by_fold: float
    single: str
    by_single: float


@dataclass(frozen=True)
class OverRuns:
    """Several runs over the same utterances: the one that validation chooses, and the one that is best on test.

    Attributes:
        metric: what readers call the metric.
        chosen: name of the run of the highest mean on validation; empty where no run has validation scores.
        validation: its mean on validation; NaN where there is none.
        test: its mean on test; NaN where there is none.
        best: name of the run of the highest mean on test.
        best_test: its mean on test.
        nested: mean on test where each fold takes the run that its own validation part chooses; NaN where the runs
            that have validation scores do not have them for the same folds.
        num_runs: how many there are.
        num_without: how many of them have no validation scores and cannot be chosen.
        optimistic: the chosen run's validation scores were searched on (a fusion's), so that they say more than they
            should.
    """

    metric: str
    chosen: str
    validation: float
    test: float
    best: str
    best_test: float
    nested: float
    num_runs: int
    num_without: int
    optimistic: bool


def over_candidates(run: Run, candidates: Candidates | None = None) -> OverCandidates | None:
    """Return what a run chose among its candidates, and what choosing on test would have given.

    Args:
        run: the run.
        candidates: its candidates, where they have been read already.

    Returns:
        The choices; None where the run had nothing to choose from, or was not trained.

    Raises:
        ScoresError: ``candidates.csv`` is not usable, or has a fold in which nothing was chosen.
    """
    config = run.config or {}
    if "fused" in config:
        return None
    if candidates is None:
        candidates = read_candidates(run.folder, [fold["fold"] for fold in run.metrics["folds"]])
    if candidates is None or not candidates.varied or len(set(candidates.folds)) == len(candidates.folds):
        return None
    found = candidates
    words = _settings(found)
    names = np.array(found.folds, dtype=object)
    folds = []
    for fold in dict.fromkeys(found.folds):
        rows = np.flatnonzero(names == fold)
        chosen = rows[found.chosen[rows]]
        if not len(chosen):
            raise ScoresError(f"{str(run.folder / 'candidates.csv')!r} has no chosen candidate in fold {fold!r}.")
        taken, best = chosen[0], _first_best(found.test, rows)
        folds.append(
            FoldChoice(
                fold,
                words[taken],
                float(found.validation[taken]),
                float(found.test[taken]),
                "" if best is None else words[best],
                math.nan if best is None else float(found.test[best]),
            )
        )
    single, by_single = _single(found, words, len(folds))
    fit = config.get("fit")
    return OverCandidates(
        TITLES.get(str(fit.get("select_by")) if isinstance(fit, Mapping) else "", "metric"),
        folds,
        _mean([one.test for one in folds]),
        _mean([one.best_test for one in folds]),
        single,
        by_single,
    )


def over_runs(runs: Sequence[Run], names: Sequence[str], metric: str = "ua") -> OverRuns | None:
    """Return which of several runs validation chooses, beside the one that is best on test.

    Args:
        runs: runs over the same utterances.
        names: what to call each.
        metric: one of `heads.metrics.METRICS`.

    Returns:
        The choice; None where there is only one run.
    """
    if len(runs) < 2:
        return None
    validation = np.array([validation_mean(run, metric) for run in runs])
    test = np.array([run.metrics["mean"][metric] for run in runs])
    chosen = _first_best(validation, np.arange(len(runs)))
    best = int(test.argmax())
    return OverRuns(
        TITLES[metric],
        "" if chosen is None else names[chosen],
        math.nan if chosen is None else float(validation[chosen]),
        math.nan if chosen is None else float(test[chosen]),
        names[best],
        float(test[best]),
        _nested(runs, metric),
        len(runs),
        int(np.isnan(validation).sum()),
        chosen is not None and bool((runs[chosen].config or {}).get("validation_scores_were_searched_on")),
    )


def validation_mean(run: Run, metric: str = "ua") -> float:
    """Return the mean over folds of a metric on validation; NaN where the run kept no validation scores."""
    return math.nan if run.validation_scores is None else evaluate(run.validation_scores)["mean"][metric]


def _nested(runs: Sequence[Run], metric: str) -> float:
    """Return the mean on test where each fold takes the run that its own validation part chooses; NaN for none."""
    pairs = [
        (_by_fold(evaluate(run.validation_scores), metric), _by_fold(run.metrics, metric))
        for run in runs
        if run.validation_scores is not None
    ]
    folds = set(pairs[0][1]) if pairs else set()
    if not folds or any(set(part) != folds for pair in pairs for part in pair):
        return math.nan
    return _mean([max(pairs, key=lambda pair: pair[0][fold])[1][fold] for fold in sorted(folds)])


def _by_fold(metrics: Metrics, metric: str) -> dict[str, float]:
    return {fold["fold"]: fold[metric] for fold in metrics["folds"]}  # type: ignore[literal-required]


def candidates_table(found: OverCandidates) -> Table:
    """Return what each fold chose, and below it the means, in percent."""
    rows = [
        [one.fold, one.chosen, percent(one.validation), percent(one.test), one.best or _NONE, percent(one.best_test)]
        for one in found.folds
    ]
    validation = _mean([one.validation for one in found.folds])
    rows.append(["mean", "", percent(validation), percent(found.reported), "", percent(found.by_fold)])
    if found.single:
        rows.append(["one setting for all", "", "", "", found.single, percent(found.by_single)])
    header = [
        "fold", "chosen on validation", f"validation {found.metric} (%)", f"test {found.metric} (%), reported",
        "best on test", f"test {found.metric} (%), chosen on test",
    ]  # fmt: skip
    return Table(header, rows)


def runs_table(found: OverRuns) -> Table:
    """Return what validation chooses above the run that is best on test, in percent."""
    header = ["chosen on", "run", f"validation {found.metric} (%)", f"test {found.metric} (%)"]
    chosen = ["validation", found.chosen or _NONE, percent(found.validation), percent(found.test)]
    nested = ["validation, fold by fold", "each fold's own", "", percent(found.nested)]
    return Table(header, [chosen, nested, ["test: not a result", found.best, "", percent(found.best_test)]])


def candidates_words(found: OverCandidates) -> str:
    """Return the gap between choosing on test and choosing on validation, in a sentence or two."""
    words = (
        f"Chosen on validation: {percent(found.reported)} % {found.metric}. Chosen on test, fold by fold, it would "
        f"have been {percent(found.by_fold)} % ({points(found.by_fold - found.reported)} points)"
    )
    if found.single:
        words += (
            f", and with the one setting that is best on test for all folds {percent(found.by_single)} % "
            f"({points(found.by_single - found.reported)} points)"
        )
    return f"{words}. Only the first is a result."


def runs_words(found: OverRuns) -> str:
    """Return which run is chosen by what, and the gap between the two, in a sentence or two."""
    if not found.chosen:
        return (
            f"No run kept validation scores, so nothing can choose among these {found.num_runs} runs; to take the "
            f"best on test ({percent(found.best_test)} % {found.metric}) would be to choose on test."
        )
    words = (
        f"Of {found.num_runs} runs, validation chooses {found.chosen}: {percent(found.test)} % {found.metric} on test."
    )
    if found.best != found.chosen:
        words += (
            f" The best on test, {found.best}, has {percent(found.best_test)} % "
            f"({points(found.best_test - found.test)} points): choosing it on test would be optimistic by that much."
        )
    else:
        words += " It is the best on test as well."
    if not math.isnan(found.nested):
        words += f" Chosen anew in each fold, on its own validation part: {percent(found.nested)} %."
    if found.optimistic:
        words += " Its validation scores were searched on, which favours it."
    if found.num_without:
        words += f" {found.num_without} runs kept no validation scores and could not be chosen."
    return words


def _settings(found: Candidates) -> list[str]:
    """Return each row's setting in words: what was varied, and the layer by its name too."""
    words = []
    for row in range(len(found.folds)):
        parts = [f"{name} {found.settings[name][row]}" for name in found.varied]
        if "layer" in found.varied and found.layer_names[row]:
            parts[found.varied.index("layer")] += f" ({found.layer_names[row]})"
        words.append(", ".join(parts))
    return words


def _single(found: Candidates, words: Sequence[str], num_folds: int) -> tuple[str, float]:
    """Return the one setting for all folds that is best on test, and its mean; nothing where none was tried in all."""
    tried: dict[str, dict[str, float]] = {}
    for setting, fold, test in zip(words, found.folds, found.test.tolist(), strict=True):
        tried.setdefault(setting, {}).setdefault(fold, test)
    means = {setting: _mean(list(by_fold.values())) for setting, by_fold in tried.items() if len(by_fold) == num_folds}
    best = _first_best(np.array(list(means.values())), np.arange(len(means)))
    return ("", math.nan) if best is None else list(means.items())[best]


def _first_best(values: NDArray[np.float64], rows: NDArray[np.int64]) -> int | None:
    """Return the first of the rows with the highest value; None where none has one."""
    known = rows[~np.isnan(values[rows])]
    return int(known[values[known].argmax()]) if len(known) else None


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))

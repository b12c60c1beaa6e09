"""Compare runs over the same utterances, two by two, and say how sure the differences are.

The statistics, and what they are about, are in :mod:`heads.statistics`.
"""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from tqdm import tqdm

from featcache.errors import ConfigError, ScoresError
from featcache.files import listed, quoted
from heads.runs import Run, read_run
from heads.scores import align
from heads.statistics import Comparison, Interval, compare, holm, interval
from pipelines import show
from pipelines.reporting.wording import TITLES, distinct, percent


@dataclass(frozen=True)
class Pair:
    """Two runs and how they differ.

    Attributes:
        first: name of the one run.
        other: name of the other.
        comparison: what was found; `difference` is other less first.
        p_corrected: `comparison.p_permutation`, corrected by Holm's method for all pairs that were compared.
    """

    first: str
    other: str
    comparison: Comparison
    p_corrected: float


@dataclass(frozen=True)
class Compared:
    """Several runs, each by itself and in pairs.

    Attributes:
        metric: what was compared.
        draws: how many sets and swaps were drawn at most, for each pair.
        folders: (runs,) where they lie.
        names: (runs,) what they are called.
        intervals: (runs,) the metric of each.
        pairs: those compared.
        provisos: what must stand beside the numbers, such as that the speech is synthetic.
    """

    metric: str
    draws: int
    folders: Sequence[Path]
    names: Sequence[str]
    intervals: Sequence[Interval]
    pairs: Sequence[Pair]
    provisos: Sequence[str] = ()


def run(folders: Sequence[Path], reference: str | None = None, metric: str = "ua", draws: int = 10_000) -> Compared:
    """Compare run folders.

    Args:
        folders: runs over the same utterances; a ``scores.csv`` is enough.
        reference: name or folder of the run that each other one is compared with; a folder that is not among
            `folders` becomes the first of them. None compares all pairs.
        metric: one of `heads.metrics.METRICS`.
        draws: see `heads.statistics.compare`.

    Raises:
        ConfigError: fewer than two runs, one of them twice, or no such reference.
        ScoresError: runs that cannot be compared; the message names both.
        UnknownNameError: no such metric.
    """
    position, folders = _with_reference(folders, reference)
    if len(folders) < 2:
        raise ConfigError("Comparing takes two runs or more. Name another run folder, or one with --reference.")
    places = [os.path.realpath(folder) for folder in folders]
    twice = next((folder for folder, place in zip(folders, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise ConfigError(f"{str(twice)!r} is named twice. Name each run once.")
    names = distinct([os.path.abspath(folder) for folder in folders])
    runs = [read_run(folder) for folder in folders]
    speakers = _speakers(runs, names)
    found = pairs(runs, names, position, metric, draws)
    intervals = [interval(one.scores, speakers, metric) for one in runs]
    provisos = show.provisos([one.config or {} for one in runs])
    return Compared(metric, draws, folders, names, intervals, found, provisos)


def pairs(
    runs: Sequence[Run], names: Sequence[str], reference: int | None = None, metric: str = "ua", draws: int = 10_000
) -> list[Pair]:
    """Compare each two runs, or each run with one.

    Args:
        runs: runs over the same utterances.
        names: what to call each.
        reference: position of the run that each other one is compared with; None compares all pairs.
        metric: one of `heads.metrics.METRICS`.
        draws: see `heads.statistics.compare`.

    Returns:
        The pairs, in the order of the runs; with a reference, it is `first` in all of them.

    Raises:
        ScoresError: the runs are over other utterances, folds, classes or labels, or disagree on who speaks.
        UnknownNameError: no such metric.
    """
    scores = align([one.scores for one in runs], names)
    speakers = _speakers(runs, names)
    numbers = range(len(runs))
    chosen = list(combinations(numbers, 2))
    if reference is not None:
        chosen = [(reference, number) for number in numbers if number != reference]
    progress = tqdm(chosen, desc="comparing", unit=" pairs", file=sys.stderr, leave=False, delay=2)
    found = [compare(scores[first], scores[other], speakers, metric, draws) for first, other in progress]
    corrected = holm([one.p_permutation for one in found])
    return [
        Pair(names[first], names[other], one, p)
        for (first, other), one, p in zip(chosen, found, corrected, strict=True)
    ]


def speakers_of(run: Run) -> dict[str, str] | None:
    """Return the speaker of each scored utterance, by id; None where not every one is known."""
    known = {one.id: one.speaker for one in run.manifest or () if one.speaker}
    ids = set(run.scores.ids)
    return {name: known[name] for name in sorted(ids)} if ids <= known.keys() else None


def _speakers(runs: Sequence[Run], names: Sequence[str]) -> dict[str, str] | None:
    """Return who speaks, of whichever runs know it.

    Raises:
        ScoresError: they say different things.
    """
    known = [(name, found) for name, found in zip(names, map(speakers_of, runs), strict=True) if found is not None]
    for name, speakers in known[1:]:
        where, first = known[0]
        other = next((one for one in first if speakers.get(one, first[one]) != first[one]), None)
        if other is not None:
            raise ScoresError(
                f"{quoted(other)} is spoken by {quoted(first[other])} in {where} and by {quoted(speakers[other])} in "
                f"{name}. Make both runs from the same manifest."
            )
    return known[0][1] if known else None


def _with_reference(folders: Sequence[Path], reference: str | None) -> tuple[int | None, list[Path]]:
    """Return the position of the reference, and the folders with it among them."""
    folders = list(folders)
    if reference is None:
        return None, folders
    names = distinct([os.path.abspath(folder) for folder in folders])
    places = [os.path.realpath(folder) for folder in folders]
    for candidates, wanted in ((names, reference), (places, os.path.realpath(reference))):
        if wanted in candidates:
            return candidates.index(wanted), folders
    if not (Path(reference) / "scores.csv").is_file():
        raise ConfigError(
            f"--reference {reference!r} is none of the runs ({listed(names)}), and no run folder. Name one of them."
        )
    return 0, [Path(reference), *folders]


def text(compared: Compared) -> str:
    """Return what a terminal shows: a table of the runs, a table of the pairs, and what they rest on."""
    title = TITLES[compared.metric]
    runs = [("run", title, "95 % interval")]
    runs += [
        (name, percent(one.value), _ends(one.low, one.high))
        for name, one in zip(compared.names, compared.intervals, strict=True)
    ]
    rows = [("run", "less", title, "95 % interval", "p (McNemar)", "p (permutation)", "p (corrected)")]
    for pair in compared.pairs:
        one = pair.comparison
        values = (f"{100 * one.difference:+.1f}", _ends(one.low, one.high, "+"))
        tests = (_p(one.p_mcnemar), _p(one.p_permutation), _p(pair.p_corrected))
        rows.append((pair.other, pair.first, *values, *tests))
    return "\n".join([show.table(runs), "", show.table(rows), "", *_notes(compared)])


def document(compared: Compared) -> dict[str, Any]:
    """Return everything as plain values, for JSON; numbers that do not exist are None."""
    runs = [
        {"run": name, "folder": str(folder), **_plain(asdict(one))}
        for name, folder, one in zip(compared.names, compared.folders, compared.intervals, strict=True)
    ]
    found = [
        {"first": pair.first, "other": pair.other, **_plain(asdict(pair.comparison)), "p_corrected": pair.p_corrected}
        for pair in compared.pairs
    ]
    return {
        "metric": compared.metric,
        "draws": compared.draws,
        "provisos": list(compared.provisos),
        "runs": runs,
        "pairs": found,
    }


def _notes(compared: Compared) -> list[str]:
    one, num_pairs = compared.pairs[0].comparison, len(compared.pairs)
    lines = [f"Intervals and permutations take each of {one.num_clusters} speakers as a whole."]
    if one.clustered_by == "utterance":
        lines = [
            f"No run says who speaks in every utterance, so intervals and permutations take {one.num_clusters} "
            "utterances as if each were another person's: the intervals are too narrow and the p-values too small if "
            "they are not."
        ]
    lines += _limits(one.num_clusters, num_pairs, compared.draws)
    if math.isnan(one.p_mcnemar):
        lines.append(
            "McNemar's test is left out: utterances are scored in several folds, and it would count them anew."
        )
    correction = f"The corrected p is the permutation test's, by Holm's method over these {num_pairs} pairs."
    if num_pairs == 1:
        correction = "Nothing was corrected for: there is one pair."
    pooled = f"{TITLES[compared.metric]} is of all {one.num_utterances} scores together, in percent."
    return [*lines, f"{pooled} {correction}", *compared.provisos]


def _limits(num_clusters: int, num_pairs: int, draws: int) -> list[str]:
    """Return what no pair can show, whatever the runs."""
    if num_clusters == 1:
        return ["There is only one: nothing can be said of others."]
    exact = 2**num_clusters <= draws
    least = 2.0 ** (1 - num_clusters) if exact else 1 / (draws + 1)
    if num_pairs * least < 0.05:
        return []
    sentence = (
        f"{'With so few' if exact else f'With {draws} draws'}, no p of the permutation test can be below {least:.2g}"
    )
    if num_pairs > 1:
        sentence += f", and corrected for {num_pairs} pairs none below {min(1.0, num_pairs * least):.2g}"
        sentence += "; name one run as --reference, or fewer runs"
    return [sentence + ("." if exact else "; give more --draws.")]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}


def _ends(low: float, high: float, sign: str = "") -> str:
    return "–" if math.isnan(low) else f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"

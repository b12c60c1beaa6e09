"""Runs beside each other: which can be compared, how they differ, and what none of them recognises."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from featcache.errors import ScoresError
from heads.runs import Run
from heads.scores import Scores, align, match
from pipelines.compare import Pair, pairs
from pipelines.reporting import figures
from pipelines.reporting.figures import Plot, make_plot
from pipelines.reporting.hardest import Hard, lost
from pipelines.reporting.plots import Entry, comparison
from pipelines.reporting.section import Section
from pipelines.reporting.selection import OverRuns, over_runs
from pipelines.reporting.varied import varied
from pipelines.reporting.wording import percent, spread

MOST_PAIRED = 6
"""Up to so many runs each is compared with each; more are compared with the first."""

_MOST_DRAWN = 40
_FEWEST_VALUES, _MOST_SETTINGS = 3, 4


@dataclass(frozen=True)
class Group:
    """Runs that score the same utterances, in the same folds, and so can be compared.

    Attributes:
        sections: the runs.
        reason: why they are not in an earlier group; empty for the first.
        plot: their comparison.
        settings: UA by each setting that takes three values or more.
        pairs: how runs differ, two by two; empty where there is one run.
        lost: utterances that no run recognises, those first whose class is given least; not all of them.
        num_lost: how many there are.
        selection: the run that validation chooses beside the best on test; None where there is one run.
    """

    sections: Sequence[Section]
    reason: str
    plot: Plot
    settings: Sequence[Plot]
    pairs: Sequence[Pair]
    lost: Sequence[Hard]
    num_lost: int
    selection: OverRuns | None


@dataclass(frozen=True)
class Comparable:
    """Positions of runs that can be compared, and why they cannot be with an earlier group; empty for the first."""

    places: Sequence[int]
    reason: str


def comparable(runs: Sequence[Run], names: Sequence[str]) -> list[Comparable]:
    """Return the runs in groups that can be compared, in the order of their first members.

    Args:
        runs: the runs.
        names: what they are called.
    """
    members: list[list[int]] = []
    reasons: list[str] = []
    for place, run in enumerate(runs):
        differences = [_difference(runs[own[0]].scores, run.scores, (names[own[0]], names[place])) for own in members]
        if "" in differences:
            members[differences.index("")].append(place)
        else:
            members.append([place])
            reasons.append(differences[0] if differences else "")
    return [Comparable(own, reason) for own, reason in zip(members, reasons, strict=True)]


def with_manifests(runs: Sequence[Run], groups: Sequence[Comparable]) -> list[Run]:
    """Return the runs, with what another of the group knows of the utterances where one does not, as a fusion."""
    found = list(runs)
    for group in groups:
        own = next((runs[place].manifest for place in group.places if runs[place].manifest is not None), None)
        for place in group.places:
            if runs[place].manifest is None:
                found[place] = replace(runs[place], manifest=own)
    return found


def make_groups(sections: Sequence[Section], groups: Sequence[Comparable], with_audio: bool = False) -> list[Group]:
    """Return what the page shows of groups of runs; to be called inside :func:`pipelines.reporting.svg.style`.

    Args:
        sections: all runs.
        groups: see `comparable`.
        with_audio: put recordings of utterances that no run recognises in.
    """
    titles = [f"UA, group {number}" for number in range(1, len(groups) + 1)] if len(groups) > 1 else ["UA"]
    return [
        _group([sections[place] for place in group.places], group.reason, title, f"group-{number}", with_audio)
        for number, (group, title) in enumerate(zip(groups, titles, strict=True), start=1)
    ]


def _group(sections: Sequence[Section], reason: str, title: str, ident: str, with_audio: bool) -> Group:
    runs, names = [section.run for section in sections], [section.name for section in sections]
    found: list[Hard] = []
    differences: list[Pair] = []
    num_lost = 0
    if len(runs) > 1:
        differences = pairs(runs, names, None if len(runs) <= MOST_PAIRED else 0)
        found, num_lost = lost(align([run.scores for run in runs], names), runs[0].manifest, with_audio)
    plot = _compare(sections, title, ident)
    settings = _by_setting(sections, ident)
    return Group(sections, reason, plot, settings, differences, found, num_lost, over_runs(runs, names))


def _difference(first: Scores, other: Scores, names: tuple[str, str]) -> str:
    """Return why two runs cannot be compared; nothing where they can."""
    try:
        match(first, other, names)
    except ScoresError as error:
        return str(error)
    return ""


def _compare(sections: Sequence[Section], title: str, ident: str) -> Plot:
    shown = [section for section in sections if section.detailed] if len(sections) > _MOST_DRAWN else sections
    shown = (shown or sections)[:_MOST_DRAWN]
    entries = [_entry(section.name, section.run) for section in shown]
    chance = 1 / len(sections[0].run.scores.classes)
    label = "; ".join(f"{entry.name} {spread(entry.mean, entry.std)} %" for entry in entries)
    caption = f"Diamonds: mean ± std over folds. Dots: each fold. Guessing gives {percent(chance)} %."
    if len(shown) < len(sections):
        caption += f" {len(shown)} of {len(sections)} runs; all are in the table."
    return make_plot(ident, title, comparison(entries, chance), label, caption)


def _entry(name: str, run: Run) -> Entry:
    metrics = run.metrics
    return Entry(name, [fold["ua"] for fold in metrics["folds"]], metrics["mean"]["ua"], metrics["std"]["ua"])


def _by_setting(sections: Sequence[Section], ident: str) -> list[Plot]:
    """Return UA by each setting that is a number and takes several values; the seed is none of them."""
    found: list[Plot] = []
    for setting in varied([section.run for section in sections]):
        if setting.numbers is None or setting.name == "fit.seed" or len(found) == _MOST_SETTINGS:
            continue
        values = np.array(setting.numbers)
        have = [section for section, value in zip(sections, values, strict=True) if not np.isnan(value)]
        values = values[~np.isnan(values)]
        if len(set(values)) < _FEWEST_VALUES:
            continue
        test = [section.run.metrics["mean"]["ua"] for section in have]
        validation = [section.validation_ua for section in have if section.validation_ua is not None]
        complete = validation if len(validation) == len(have) else None
        found.append(figures.by_setting(setting.name, values.tolist(), test, complete, f"{ident}-by-{len(found)}"))
    return found

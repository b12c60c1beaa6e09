"""What is written of a paper that was reproduced: its tables, and how the runs behind them differ from the paper's.

Whatever is said of a run here is read from the run, its streams and the manifest; only the notes stand in the paper's
file.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from string import ascii_lowercase
from typing import Any

import numpy as np

from featcache.manifest import Manifest
from heads.fold_kinds import plain_kind
from heads.folds import KINDS, FoldSet
from heads.runs import Run
from pipelines.config import TrainConfig
from pipelines.paper import Numbers, Paper, PaperTable, Row
from pipelines.reporting.figures import Plot
from pipelines.reporting.reproduction_runs import Form, forms_of, runs_grid
from pipelines.reporting.tables import Document, Line, Table, Values
from pipelines.reporting.wording import percent
from pipelines.reproduce_plan import Plan

SYNTHETIC = "Synthetic speech: these numbers say nothing of human speech."
RANDOM = "random weights: no result"


def make_document(
    plan: Plan,
    runs: Mapping[str, Run],
    remarks: Mapping[str, str],
    figures: Sequence[Plot] = (),
    places: Mapping[str, str] | None = None,
    links: Mapping[str, str] | None = None,
) -> Document:
    """Return what is written of a paper.

    Args:
        plan: what was to be done.
        runs: what was done, by key.
        remarks: key to why it was not, of what was not done.
        figures: for the page.
        places: key to the address of its run in the report.
        links: text to address of other files.
    """
    paper = plan.paper
    letters = _letters(paper)
    forms = forms_of(plan, runs)
    random = random_runs(plan, runs)
    remarks = {**remarks, **dict.fromkeys(random, RANDOM)}
    shown = {key: run for key, run in runs.items() if key not in random}
    return Document(
        title=paper.title,
        citation=paper.citation,
        banners=_banners(plan, runs, remarks, forms, random),
        facts=_facts(plan, runs),
        tables=[_table(table, paper, shown, remarks, forms, letters, places or {}) for table in paper.tables],
        notes={letter: paper.notes[name] for name, letter in letters.items()},
        runs=runs_grid(plan, runs),
        figures=figures,
        links=links or {},
    )


def random_runs(plan: Plan, runs: Mapping[str, Run]) -> list[str]:
    """Return the runs that began with random weights where the paper's were trained, or are made of such a run."""
    found = [key for key, run in runs.items() if (run.config or {}).get("random_weights")]
    found += [key for key, probe in plan.probes.items() if probe.of.run in found]
    found += [key for key, fusion in plan.fusions.items() if any(run in found for run in fusion.runs)]
    return list(dict.fromkeys(found))


def _letters(paper: Paper) -> dict[str, str]:
    """Return a letter for each note, in the order in which the tables refer to them."""
    names = dict.fromkeys(
        name
        for table in paper.tables
        for source in (table.notes, *(_notes(row, paper) for row in table.rows))
        for name in source
    )
    marks = [*ascii_lowercase, *(f"{one}{other}" for one in ascii_lowercase for other in ascii_lowercase)]
    return dict(zip(names, marks, strict=False))


def _notes(row: Row, paper: Paper) -> tuple[str, ...]:
    return (*row.notes, *(() if row.run is None else paper.computed[row.run].notes))


def _table(
    table: PaperTable,
    paper: Paper,
    runs: Mapping[str, Run],
    remarks: Mapping[str, str],
    forms: Mapping[str, Form],
    letters: Mapping[str, str],
    places: Mapping[str, str],
) -> Table:
    lines = [
        Line(
            label=row.label,
            paper={metric: _printed(numbers) for metric, numbers in row.paper.items()},
            here=_measured(runs.get(row.run or ""), table.metrics),
            remark="; ".join(_remarks(row, runs, remarks, forms)),
            notes=sorted({letters[name] for name in _notes(row, paper)}, key=lambda mark: (len(mark), mark)),
            link=places.get(row.run or "", ""),
        )
        for row in table.rows
    ]
    return Table(
        name=table.name,
        title=table.title,
        metrics={metric: paper.metrics[metric] for metric in table.metrics},
        lines=lines,
        by_fold=table.by_fold,
        notes=[letters[name] for name in table.notes],
        fold_names=_fold_names(table, runs),
    )


def _fold_names(table: PaperTable, runs: Mapping[str, Run]) -> list[str]:
    """Return the names of the folds that were run, where columns called 1, 2, ... would not tell them."""
    measured = [runs[row.run] for row in table.rows if row.run is not None and row.run in runs]
    measured = measured if table.by_fold else []
    names = [fold["fold"] for fold in measured[0].metrics["folds"]] if measured else []
    return [] if names == [str(number) for number in range(1, len(names) + 1)] else names


def _printed(numbers: Numbers) -> Values:
    """Return the paper's numbers as fractions."""
    mean = None if numbers.mean is None else numbers.mean / 100
    std = None if numbers.std is None else numbers.std / 100
    return Values(mean, std, tuple(number / 100 for number in numbers.folds))


def _measured(run: Run | None, metrics: Sequence[str]) -> dict[str, Values]:
    if run is None:
        return {}
    measured = run.metrics
    folds: Sequence[Mapping[str, Any]] = measured["folds"]
    return {
        metric: Values(
            measured["mean"][metric], measured["std"][metric], tuple(float(fold[metric]) for fold in folds)
        )
        for metric in metrics
    }  # fmt: skip


def _remarks(row: Row, runs: Mapping[str, Run], remarks: Mapping[str, str], forms: Mapping[str, Form]) -> list[str]:
    if row.run is None:
        return ["cited by the paper"]
    found = [] if row.paper else ["not in the paper"]
    run = runs.get(row.run)
    if run is None:
        return [*found, remarks.get(row.run, "not run")]
    if row.run in forms:
        found.append(forms[row.run].words)
    if row.parameters is not None:
        here = (run.config or {}).get("parameters")
        told = f"{here / 1e6:.1f} M" if isinstance(here, int) else "not counted"
        found.append(f"parameters: {told} (paper {row.parameters / 1e6:.1f} M)")
    majority = (run.config or {}).get("majority")
    if isinstance(majority, Mapping) and majority:
        found.append(f"always the commonest class: {percent(float(np.mean(list(majority.values()))))} % accuracy")
    return found


def _banners(
    plan: Plan,
    runs: Mapping[str, Run],
    remarks: Mapping[str, str],
    forms: Mapping[str, Form],
    random: Sequence[str],
) -> list[str]:
    banners = []
    if random:
        banners.append(
            f"{len(random)} of {len(runs)} runs began with random weights where the paper's were trained: they show "
            "that everything runs, and their numbers are left out."
        )
    if any((run.config or {}).get("synthetic") for run in runs.values()) or _is_synthetic(plan.manifest):
        banners.append(SYNTHETIC)
    if not _is_papers(plan):
        banners.append(
            f"Not the paper's corpus ({plan.paper.corpus.name}): the numbers stand side by side for their form alone."
        )
    changed = [key for key in runs if key in plan.trainings and key in forms]
    if changed:
        banners.append(
            f"{len(changed)} of {sum(key in plan.trainings for key in runs)} trainings are not in the paper's form; "
            "'What was run' says in what they differ."
        )
    failed = [key for key, remark in remarks.items() if remark.startswith("failed")]
    if failed:
        banners.append(f"Failed: {', '.join(failed)}.")
    leaks: dict[str, list[str]] = {}
    # Folds within a training part share its speakers on purpose: what they train is begun with, and is no result.
    for key in (key for key in plan.trainings if not plan.folds[key].kind.startswith("within:")):
        for leak in ((runs[key].config or {}).get("allowed_leaks") or []) if key in runs else []:
            leaks.setdefault(str(leak), []).append(key)
    return banners + [f"Allowed leak: {leak} ({', '.join(keys)})" for leak, keys in leaks.items()]


def _is_synthetic(manifest: Manifest) -> bool:
    return any(utterance.extra.get("synthetic") for utterance in manifest)


def _is_papers(plan: Plan) -> bool:
    """Say whether the counts are those of the paper's corpus."""
    corpus, manifest = plan.paper.corpus, plan.manifest
    labelled = [utterance for utterance in manifest if utterance.label]
    return (
        not _is_synthetic(manifest)
        and len(labelled) == corpus.utterances
        and len({utterance.speaker for utterance in labelled}) == corpus.speakers
        and {utterance.label for utterance in labelled} == set(corpus.classes)
    )


def _facts(plan: Plan, runs: Mapping[str, Run]) -> list[tuple[str, str]]:
    corpus = plan.paper.corpus
    sessions = f", {corpus.sessions} sessions" if corpus.sessions else ""
    kinds = dict.fromkeys(
        _folds(plan.folds[key], training.config, runs.get(key)) for key, training in plan.trainings.items()
    )
    facts = [
        (
            "Corpus, paper",
            f"{corpus.name}: {corpus.utterances:,} utterances, {corpus.speakers} speakers{sessions}, "
            f"{len(corpus.classes)} classes ({', '.join(corpus.classes)})",
        ),
        ("Corpus, here", _corpus(plan.manifest) + ("; the paper's counts" if _is_papers(plan) else "")),
    ]
    if plan.num_dropped:
        facts.append(("Left out", f"{plan.num_dropped} utterances of every row: a stream lacks them"))
    if plan.num_unlabelled:
        facts.append(("Without a label", f"{plan.num_unlabelled} utterances, left out of every row"))
    facts += [("Folds, here", words) for words in kinds]
    facts.append(("Rows", f"{len(runs)} of {len(plan.paper.computed)} trainings, probes and fusions were run"))
    return facts


def _corpus(manifest: Manifest) -> str:
    """Return what a manifest holds, in words."""
    labelled = [utterance for utterance in manifest if utterance.label]
    classes = Counter(str(utterance.label) for utterance in labelled)
    parts = [f"{len(labelled):,} utterances"]
    for column, word in (("speaker", "speakers"), ("session", "sessions")):
        values = {utterance.column(column) for utterance in labelled} - {None}
        parts += [f"{len(values)} {word}"] if values else []
    parts.append(f"{len(classes)} classes ({', '.join(f'{name} {count}' for name, count in sorted(classes.items()))})")
    if _is_synthetic(manifest):
        parts.append("synthetic speech")
    return ", ".join(parts)


def _folds(folds: FoldSet, config: TrainConfig, run: Run | None) -> str:
    family = folds.kind.partition(":")[0]
    meaning = next((words for name, words in KINDS.items() if name.partition(":")[0] == family), "")
    own = family in ("stratified", "within")  # they divide off validation themselves
    cut = f"validation: {config.validation:g} of train, by {config.validation_by}"
    cut = cut if config.validation and not own else ""
    kind = plain_kind(folds.kind) + (f" ({meaning})" if meaning else "")
    # What had learnt before is known to the run alone.
    stated = True if run is None else (run.config or {}).get("speaker_independent", True)
    independent = "speaker-independent" if folds.speaker_independent and stated else "not speaker-independent"
    return "; ".join(part for part in (f"{kind}, {len(folds)} folds", independent, cut) if part)

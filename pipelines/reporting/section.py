"""What the report says of one run, ready for a template. Text is plain here; the template escapes it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import yaml

from heads.metrics import evaluate, recalls
from heads.runs import Run
from heads.statistics import Interval, interval
from pipelines.compare import speakers_of
from pipelines.reporting import facts, figures
from pipelines.reporting.calibration import calibration
from pipelines.reporting.details import Candidates, read_candidates, read_curves, read_layer_weights
from pipelines.reporting.facts import Table
from pipelines.reporting.figures import Plot
from pipelines.reporting.fusions import read_coefficients, read_fusion_curve
from pipelines.reporting.hardest import Hard, hardest
from pipelines.reporting.selection import OverCandidates, over_candidates
from pipelines.reporting.speakers import SpeakerRow
from pipelines.reporting.speakers import by_speaker as speaker_rows
from pipelines.reporting.wording import TITLES, percent, text, texts


@dataclass(frozen=True)
class ConfusionRow:
    """A class: how often it occurs, its recall, and count and share of what it was taken for, class by class."""

    name: str
    num_utterances: int
    recall: float | None
    cells: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Section:
    """One run, as the page shows it.

    Attributes:
        ident: the section's id on the page.
        name: what tells the run from the others.
        run: the run.
        head: name of the head; empty where unknown.
        inputs: streams it reads, or runs it fuses; empty where unknown.
        folds: kind of the folds where it is known, and their number.
        speaker_independent: ``yes``, ``no`` or ``not stated``.
        synthetic: made from synthetic speech.
        random: began with random weights where trained ones belong, so that its numbers are no result.
        leaks: protocol errors that were allowed.
        warnings: other findings of the protocol checks.
        num_utterances: utterances that were scored; one scored in several folds counts once.
        confusion: a row for each class, pooled over folds.
        plots: figures; none where only a row is shown.
        chosen: settings that validation chose, fold by fold; None where there were none.
        candidates: what was tried; None where there was no choice.
        facts: how the run was made: terms and texts.
        config: all of ``config.yaml``; empty where there is none.
        detailed: whether the page has a section for it, and not a row alone.
        interval: of the UA of all folds together.
        validation_ua: mean UA over folds on validation, a fraction; None where the run kept no validation scores.
        optimistic: the validation scores were searched on, so that they say more than they should.
        seconds: what training took; None where unknown.
        peak_mib: the most memory it took, in MiB; None where unknown.
        speakers: a row for each speaker; empty where unknown, or where each is a fold.
        hardest: utterances that were mistaken with the greatest confidence.
        coefficients: of a stacking fusion; None for other runs.
        selection: what choosing on test would have claimed; None where there was no choice.
    """

    ident: str
    name: str
    run: Run
    head: str
    inputs: str
    folds: str
    speaker_independent: str
    synthetic: bool
    random: bool
    leaks: Sequence[str]
    warnings: Sequence[str]
    num_utterances: int
    confusion: Sequence[ConfusionRow]
    plots: Sequence[Plot]
    chosen: Table | None
    candidates: Table | None
    facts: Sequence[tuple[str, str]]
    config: str
    detailed: bool
    interval: Interval
    validation_ua: float | None
    optimistic: bool
    seconds: float | None
    peak_mib: float | None
    speakers: Sequence[SpeakerRow]
    hardest: Sequence[Hard]
    coefficients: Table | None
    selection: OverCandidates | None


def make_section(run: Run, ident: str, name: str, detailed: bool = True, with_audio: bool = False) -> Section:
    """Return what the page shows of a run; to be called inside :func:`pipelines.reporting.svg.style`.

    Args:
        run: the run.
        ident: id of its section, unique on the page.
        name: what tells the run from the others.
        detailed: whether a section is wanted, and not a row of the table alone.
        with_audio: put recordings of the hardest utterances in.

    Raises:
        ScoresError: a file in the run's folder is not usable.
    """
    config = run.config or {}
    names = [fold["fold"] for fold in run.metrics["folds"]]
    # A fused run is not trained: were such files in its folder, they would be of a run that lay there before.
    fused = "fused" in config
    candidates = read_candidates(run.folder, names) if detailed and not fused else None
    independent = config.get("speaker_independent")
    leaks = list(dict.fromkeys(texts(config.get("allowed_leaks"))))
    speakers = speakers_of(run)
    by_speaker = speaker_rows(run, speakers) if detailed else []
    return Section(
        ident=ident,
        name=name,
        run=run,
        head=text(config.get("head")),
        inputs=facts.inputs(config),
        folds=facts.folds(config, len(names)),
        speaker_independent=text(independent) if isinstance(independent, bool) else "not stated",
        synthetic=bool(config.get("synthetic")),
        random=bool(config.get("random_weights")),
        leaks=leaks,
        warnings=[problem for problem in dict.fromkeys(texts(config.get("problems"))) if problem not in leaks],
        num_utterances=len(set(run.scores.ids)),
        confusion=_confusion(run),
        plots=list(_plots(run, ident, names, candidates, by_speaker)) if detailed else [],
        chosen=facts.chosen(config, names),
        candidates=_tried(candidates),
        facts=facts.facts(config),
        config=yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True) if config else "",
        detailed=detailed,
        interval=interval(run.scores, speakers),
        validation_ua=validation_ua(run),
        optimistic=bool(config.get("validation_scores_were_searched_on")),
        seconds=_number(config.get("seconds")),
        peak_mib=_number(config.get("peak_mib")),
        speakers=by_speaker,
        hardest=hardest(run, with_audio) if detailed else [],
        coefficients=read_coefficients(run.folder, names) if detailed and fused else None,
        selection=None if candidates is None else over_candidates(run, candidates),
    )


def validation_ua(run: Run) -> float | None:
    """Return the mean UA over folds on validation, a fraction; None where the run kept no validation scores."""
    return None if run.validation_scores is None else evaluate(run.validation_scores)["mean"]["ua"]


def shown_in_full(runs: Sequence[Run], most: int) -> tuple[bool, frozenset[int]]:
    """Return whether validation chose, and the positions of the runs that are shown in full: never chosen by test."""
    values = [validation_ua(run) for run in runs]
    known = [value for value in values if value is not None]
    if len(known) < len(runs):
        return False, frozenset(range(min(most, len(runs))))
    return True, frozenset(sorted(range(len(runs)), key=lambda place: -known[place])[:most])


def by_text(sections: Sequence[Section], of: Callable[[Section], Sequence[str]]) -> dict[str, list[str]]:
    """Return each text that runs have with the names of these runs."""
    found: dict[str, list[str]] = {}
    for section in sections:
        for sentence in of(section):
            found.setdefault(sentence, []).append(section.name)
    return found


def _number(value: object) -> float | None:
    """Return a value of a configuration as a number that can be shown; None where it is none."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < 1e12 else None  # type: ignore[operator,arg-type]


def _confusion(run: Run) -> list[ConfusionRow]:
    counts = np.array(run.metrics["pooled"]["confusion"], np.int64)
    rows = []
    for name, row, recall in zip(run.scores.classes, counts, recalls(counts), strict=True):
        total = int(row.sum())
        cells = [(int(count), float(count / total) if total else 0.0) for count in row]
        rows.append(ConfusionRow(name, total, None if np.isnan(recall) else float(recall), cells))
    return rows


def _plots(
    run: Run, ident: str, names: Sequence[str], candidates: Candidates | None, by_speaker: Sequence[SpeakerRow]
) -> Iterator[Plot]:
    yield figures.recall(run, f"{ident}-recall")
    if len(names) > 1:
        yield figures.by_fold(run, f"{ident}-folds")
    if len(by_speaker) > 1:
        yield figures.by_speaker(by_speaker, f"{ident}-speakers")
    yield figures.reliability(calibration(run.scores), f"{ident}-calibration")
    if "fused" in (run.config or {}):
        yield from _of_fusion(run, ident, names)
    else:
        yield from _of_training(run, ident, names, candidates)


def _of_fusion(run: Run, ident: str, names: Sequence[str]) -> Iterator[Plot]:
    config = run.config or {}
    found = read_fusion_curve(run.folder, names, text(config.get("selected_by")))
    if found is not None:
        yield figures.fusion(found, text(config.get("searched_on")), f"{ident}-fusion")


def _of_training(run: Run, ident: str, names: Sequence[str], candidates: Candidates | None) -> Iterator[Plot]:
    curves, weights = read_curves(run.folder, names), read_layer_weights(run.folder, names)
    if curves is not None:
        yield figures.curves(curves, f"{ident}-curves")
    if weights is not None:
        yield figures.layer_weights(weights, f"{ident}-weights")
    sweep = None if candidates is None else candidates.by_layer()
    if sweep is not None:
        fit = (run.config or {}).get("fit")
        metric = TITLES.get(str(fit.get("select_by")), "Metric") if isinstance(fit, Mapping) else "Metric"
        yield figures.by_layer(sweep, metric, f"{ident}-layers")


def _tried(candidates: Candidates | None) -> Table | None:
    """Return every setting that was tried, over folds; None where there was nothing to choose."""
    summaries = [] if candidates is None else candidates.by_setting()
    if candidates is None or len(summaries) < 2:
        return None
    names = dict(zip(candidates.settings.get("layer", ()), candidates.layer_names, strict=False))
    place = candidates.varied.index("layer") if "layer" in candidates.varied and any(names.values()) else None
    header = [*candidates.varied, *([] if place is None else ["layer name"])]
    rows = [
        [
            *one.values,
            *([] if place is None else [names[one.values[place]]]),
            percent(one.validation),
            percent(one.test),
            f"{one.num_chosen} of {one.num_folds}",
        ]
        for one in summaries
    ]
    return Table([*header, "validation (%)", "test (%)", "chosen, folds"], rows)

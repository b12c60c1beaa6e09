r"""What a paper takes from a report: Markdown, LaTeX tables, and every figure as a file.

The folder holds, as asked for::

    report.md        all tables, as GitHub shows them; with figures where SVG was asked for too
    report.tex       shows all tables, to look at them
    tables/*.tex     one table a file, for \input; needs booktabs
    figures/*.svg    every figure of the page, and the confusion matrices
    figures/*.pdf    the same

Nothing here is chosen on test data, bold type included: it marks the run that validation chooses. The same runs give
the same bytes. Files of the same names are replaced, others stay.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featcache.errors import ConfigError, UnknownNameError
from featcache.files import write_atomically
from heads.runs import read_run
from pipelines.reporting import figure_files, latex, markdown, published, selection
from pipelines.reporting.facts import Table
from pipelines.reporting.folders import find_runs
from pipelines.reporting.groups import Group, comparable, make_groups, with_manifests
from pipelines.reporting.section import Section, by_text, make_section, shown_in_full
from pipelines.reporting.svg import style
from pipelines.reporting.tables import Grid
from pipelines.reporting.varied import by_seed, varied
from pipelines.reporting.wording import TITLES, between, p_value, percent, points, some, spread

FORMS: Mapping[str, str] = {
    "md": "report.md: all tables, as GitHub shows them",
    "latex": "tables/*.tex: tables with booktabs, for \\input; report.tex shows them all",
    "svg": "figures/*.svg: every figure, letters as outlines",
    "pdf": "figures/*.pdf: every figure, TrueType letters",
}
"""The forms that `write` knows, with what each gives."""

_MOST_FOLDS = 12
BOLD = "Bold: the run that validation chooses."


@dataclass(frozen=True)
class Block:
    """A table and what is said about it, as plain text.

    Attributes:
        name: of the LaTeX file.
        title: what it shows.
        grid: its cells.
        caption: what to know to read it.
        strong: position of the row to be set in bold; None for none.
        words: what stands below it.
    """

    name: str
    title: str
    grid: Grid
    caption: str = ""
    strong: int | None = None
    words: Sequence[str] = ()


@dataclass(frozen=True)
class Content:
    """Everything that is written of some runs, as plain text.

    Attributes:
        title: of it all.
        banners: what must be read first: synthetic speech, leaks that were allowed.
        notes: other findings of the protocol checks, and why runs are not compared.
        blocks: the tables.
    """

    title: str
    banners: Sequence[str]
    notes: Sequence[str]
    blocks: Sequence[Block]


def write(
    runs: Sequence[Path],
    out: Path,
    title: str,
    forms: Sequence[str],
    details: int = 20,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Path]:
    """Write what a paper takes from runs.

    Args:
        runs: run folders, and folders of runs, as for the report.
        out: folder to write into; made when missing.
        title: of it all.
        forms: of `FORMS`.
        details: of how many runs there are confusion matrices, choices and figures: those of the highest mean UA on
            validation where every run has one, else the first.
        on_progress: called with how many runs are done and how many there are.

    Returns:
        The files that were written.

    Raises:
        ConfigError: there is no run, one is named twice, no form was asked for, or `details` is negative, or
            `out` is a file.
        UnknownNameError: no such form.
        ScoresError: a folder is not a run and holds none, or a file of a run is not usable.
    """
    forms = list(dict.fromkeys(forms))
    unknown = next((form for form in forms if form not in FORMS), None)
    if unknown is not None:
        raise UnknownNameError("form", unknown, FORMS)
    if not forms:
        raise ConfigError(f"No form was asked for. There are {', '.join(FORMS)}.")
    if details < 0:
        raise ConfigError(f"--details takes 0 or more, got {details}.")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{str(out)!r} is a file. Give a folder for the files to lie in.")
    found = find_runs(runs)
    read = [read_run(folder) for folder in found.runs]
    together = comparable(read, found.names)
    read = with_manifests(read, together)
    album = figure_files.Album(out / "figures", [form for form in forms if form in figure_files.FORMS])
    chosen = sorted(shown_in_full(read, details)[1])
    names = dict(zip(chosen, figure_files.file_names([found.names[place] for place in chosen]), strict=True))
    sections = []
    with style():
        for place, run in enumerate(read):
            detailed = place in names and bool(album.forms)
            sections.append(make_section(run, f"run-{place + 1}", found.names[place], detailed))
            if detailed:
                album.add_run(names[place], sections[-1])
            on_progress(place + 1, len(read))
        groups = make_groups(sections, together)
        if album.forms:
            album.add_groups(groups)
    shown = {name: sections[place] for place, name in names.items()}
    content = _content(title, sections, groups, shown, found.unfinished)
    paths = album.paths
    if "latex" in forms:
        paths = [*_write_latex(content, out), *paths]
    if "md" in forms:
        figures = album.titles if "svg" in forms else {}
        write_atomically(out / "report.md", _markdown(content, figures).encode("utf-8"))
        paths = [out / "report.md", *paths]
    return paths


def _content(
    title: str,
    sections: Sequence[Section],
    groups: Sequence[Group],
    shown: Mapping[str, Section],
    unfinished: Sequence[str],
) -> Content:
    synthetic = [section.name for section in sections if section.synthetic]
    banners = [f"Synthetic speech, not a result on human speech: {some(synthetic, len(sections))}"] if synthetic else []
    random = [section.name for section in sections if section.random]
    banners += [f"Random weights, no result: {some(random, len(sections))}"] if random else []
    banners += [f"Allowed leak: {leak}" for leak in _told(sections, lambda section: section.leaks)]
    notes = [f"Group {number}: {group.reason}" for number, group in enumerate(groups, start=1) if group.reason]
    notes += _told(sections, lambda section: section.warnings)
    notes += [f"{name} was begun and is not finished; it is not here" for name in unfinished]
    several = len(groups) > 1
    blocks: list[Block | None] = [_results(sections, groups), _seeds(sections)]
    for number, group in enumerate(groups, start=1):
        tail, of_group = (f"-{number}", f", group {number}") if several else ("", "")
        blocks += [
            _recall(group, f"recall{tail}", of_group),
            _folds(group, f"folds{tail}", of_group),
            _differences(group, f"differences{tail}", of_group),
            _choice(group, f"choice{tail}", of_group),
        ]
    for name, section in shown.items():
        blocks += [_confusion(section, f"confusion-{name}"), _candidates(section, f"candidates-{name}")]
    beside = published.beside([section.run for section in sections])
    blocks.append(Block("published", beside.title, beside.grid, beside.caption, words=beside.notes))
    return Content(title, banners, notes, [block for block in blocks if block is not None])


def _told(sections: Sequence[Section], of: Callable[[Section], Sequence[str]]) -> list[str]:
    """Return each text that runs have, once, with the runs that have it."""
    return [f"{text} ({some(names, len(sections))})" for text, names in by_text(sections, of).items()]


def _results(sections: Sequence[Section], groups: Sequence[Group]) -> Block:
    group_of = {section.ident: number for number, group in enumerate(groups, start=1) for section in group.sections}
    several = len(groups) > 1
    title = f"UA, pooled, {100 * sections[0].interval.confidence:.0f} % interval"
    settings = varied([section.run for section in sections])
    header = ["run", *(one.name for one in settings), *TITLES.values(), title]
    header += ["UA on validation", "n", "folds", "notes"]
    rows = []
    for place, section in enumerate(sections):
        mean, std = section.run.metrics["mean"], section.run.metrics["std"]
        found = section.interval
        marks = [*(["LEAK"] if section.leaks else []), *(["synthetic"] if section.synthetic else [])]
        marks += ["random weights"] if section.random else []
        marks += [f"group {group_of[section.ident]}"] if several else []
        rows.append([
            section.name, *(one.values[place] for one in settings),
            *(spread(mean[metric], std[metric]) for metric in TITLES),
            f"{percent(found.value)} {between(found.low, found.high)}", percent(section.validation_ua),
            str(section.num_utterances), section.folds, ", ".join(marks),
        ])  # fmt: skip
    chosen = selection.over_runs([section.run for section in sections], [section.ident for section in sections])
    strong = None
    if chosen is not None and chosen.chosen and not several:
        strong = [section.ident for section in sections].index(chosen.chosen)
    clusters = _clusters({section.interval.clustered_by for section in sections})
    caption = f"Mean ± sample standard deviation over folds, in %. {clusters}"
    leaks = "; ".join(_told(sections, lambda section: section.leaks))
    caption += (f" {BOLD}" if strong is not None else "") + (f" LEAK: {leaks}." if leaks else "")
    numeric = [False, *(one.numbers is not None for one in settings), *[True] * (len(TITLES) + 3), False, False]
    return Block("results", "Results", Grid(header, rows, numeric), caption, strong)


def _seeds(sections: Sequence[Section]) -> Block | None:
    """Return the runs that differ in the seed alone, together; None where there are none."""
    found = by_seed([section.run for section in sections], [section.name for section in sections])
    rows = [
        [one.name, str(len(one.seeds)), *(spread(one.mean[metric], one.std[metric]) for metric in TITLES)]
        for one in found
    ]
    if not rows:
        return None
    grid = Grid(["runs", "seeds", *TITLES.values()], rows, [False, *[True] * (len(TITLES) + 1)])
    return Block(
        "seeds", "Over seeds", grid, "Mean ± sample standard deviation over folds and seeds, each alike, in %."
    )


def _clusters(kinds: Collection[str]) -> str:
    """Return what intervals resample."""
    if kinds == {"speaker"}:
        return "Intervals resample whole speakers, over all folds together."
    words = "utterances as if each were another person's, and are too narrow where they are not"
    if kinds == {"utterance"}:
        return f"Speakers are not known: intervals resample {words}."
    return f"Intervals resample whole speakers, over all folds together; where they are not known, {words}."


def _differences(group: Group, name: str, of_group: str) -> Block | None:
    if not group.pairs:
        return None
    header = ["run", "less", "UA, points", "95 % interval", "p (McNemar)", "p (permutation)", "p (corrected)"]
    rows = []
    for pair in group.pairs:
        one = pair.comparison
        tests = [p_value(p) for p in (one.p_mcnemar, one.p_permutation, pair.p_corrected)]
        rows.append([pair.other, pair.first, points(one.difference), between(one.low, one.high, signed=True), *tests])
    clusters = {pair.comparison.clustered_by for pair in group.pairs}
    caption = (
        f"UA over all folds together. {_clusters(clusters)} Permutations swap whole {' or '.join(sorted(clusters))}s; "
        f"the corrected p is theirs, by Holm's method over {len(rows)} {'pair' if len(rows) == 1 else 'pairs'}."
    )
    return Block(name, f"Differences between runs{of_group}", Grid(header, rows, [False, False, *[True] * 5]), caption)


def _recall(group: Group, name: str, of_group: str) -> Block:
    classes = group.sections[0].run.scores.classes
    rows = []
    for section in group.sections:
        recalls = {row.name: row.recall for row in section.confusion}
        rows.append([section.name, *(percent(recalls[one]) for one in classes)])
    grid = Grid(["run", *classes], rows, [False, *[True] * len(classes)])
    return Block(name, f"Recall of each class{of_group}", grid, "In %, all folds pooled.")


def _folds(group: Group, name: str, of_group: str) -> Block | None:
    """Return the UA of each fold; None where there is one, or too many, or runs call them differently."""
    names = [fold["fold"] for fold in group.sections[0].run.metrics["folds"]]
    rows = []
    for section in group.sections:
        metrics = section.run.metrics
        found = {fold["fold"]: fold["ua"] for fold in metrics["folds"]}
        if not 1 < len(names) <= _MOST_FOLDS or set(found) != set(names):
            return None
        rows.append(
            [section.name, *(percent(found[one]) for one in names), spread(metrics["mean"]["ua"], metrics["std"]["ua"])]
        )
    grid = Grid(["run", *names, "mean ± std"], rows, [False, *[True] * (len(names) + 1)])
    return Block(name, f"UA of each fold{of_group}", grid, "In %.")


def _choice(group: Group, name: str, of_group: str) -> Block | None:
    runs, names = [section.run for section in group.sections], [section.name for section in group.sections]
    found = selection.over_runs(runs, names)
    if found is None:
        return None
    words = selection.runs_words(found)
    return Block(name, f"Choosing a run{of_group}", _texts(selection.runs_table(found)), words)


def _candidates(section: Section, name: str) -> Block | None:
    found = selection.over_candidates(section.run)
    if found is None:
        return None
    title = f"Choosing settings: {section.name}"
    return Block(name, title, _texts(selection.candidates_table(found)), selection.candidates_words(found))


def _texts(table: Table) -> Grid:
    return Grid(table.header, table.rows, ["(%)" in name for name in table.header])


def _confusion(section: Section, name: str) -> Block:
    classes = [row.name for row in section.confusion]
    rows = []
    for row in section.confusion:
        cells = [f"{count} ({percent(share)})" if row.num_utterances else "–" for count, share in row.cells]
        rows.append([row.name, *cells, str(row.num_utterances)])
    caption = "Rows: true class; columns: what it was taken for. Counts, and percent of the row; all folds pooled."
    grid = Grid(["true class", *classes, "n"], rows, [False, *[True] * (len(classes) + 1)])
    return Block(name, f"Confusion: {section.name}", grid, caption)


def _write_latex(content: Content, out: Path) -> list[Path]:
    paths = []
    for block in content.blocks:
        caption = f"{block.title}. {block.caption}".strip()
        path = out / "tables" / f"{block.name}.tex"
        write_atomically(path, latex.table(block.grid, caption, block.name, block.strong, block.words).encode("utf-8"))
        paths.append(path)
    names = [f"tables/{block.name}" for block in content.blocks]
    write_atomically(out / "report.tex", latex.document(content.title, names).encode("utf-8"))
    return [*paths, out / "report.tex"]


def _markdown(content: Content, figures: Mapping[str, str]) -> str:
    parts = [f"# {markdown.escape(content.title)}"]
    parts += [f"> **{markdown.escape(banner)}**" for banner in content.banners]
    for block in content.blocks:
        parts += [f"## {markdown.escape(block.title)}", markdown.table(block.grid, block.strong)]
        parts += [markdown.escape(block.caption)] if block.caption else []
        parts += [_list(block.words)] if block.words else []
    if content.notes:
        parts += ["## Further notes", _list(content.notes)]
    parts += ["## Figures"] if figures else []
    parts += [f"![{markdown.escape(f'{name}: {title}')}](figures/{name}.svg)" for name, title in figures.items()]
    return "\n\n".join(parts) + "\n"


def _list(texts: Sequence[str]) -> str:
    return "\n".join(f"- {markdown.escape(text)}" for text in texts)

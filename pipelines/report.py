"""Write one HTML page on some runs.

The page needs nothing but itself: style, script and figures are inside, and its content security policy forbids
everything else, so that a name which holds markup stays a name even if escaping it were forgotten somewhere. The
same runs give the same bytes.

Every run has a row. Sections are for as many as `details` says: those that do best on validation, never on test.
"""

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from featcache.errors import ConfigError
from featcache.files import write_atomically
from featcache.manifest import Manifest
from heads.runs import Run, read_run
from pipelines.reporting import selection, wording
from pipelines.reporting.calibration import NUM_BINS
from pipelines.reporting.folders import find_runs
from pipelines.reporting.groups import MOST_PAIRED, Group, comparable, make_groups, with_manifests
from pipelines.reporting.hardest import LONGEST_S, NUM_HARDEST
from pipelines.reporting.published import beside
from pipelines.reporting.section import Section, by_text, make_section, shown_in_full
from pipelines.reporting.svg import style
from pipelines.reporting.varied import by_seed, varied

__all__ = ["Group", "Section", "find_runs", "run"]

_MOST_OPEN = 8
_MOST_FIRST = 4
"""Up to so many settings stand before the metrics, more behind them."""
_FILTERS: Mapping[str, Callable[..., object]] = {
    "breakable": wording.breakable,
    "percent": wording.percent,
    "points": wording.points,
    "p_value": wording.p_value,
    "some": wording.some,
    "candidates_table": selection.candidates_table,
    "candidates_words": selection.candidates_words,
    "runs_table": selection.runs_table,
    "runs_words": selection.runs_words,
}


def run(
    runs: Sequence[Path],
    out: Path,
    title: str,
    details: int = 20,
    audio: bool = False,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """Write a report.

    Args:
        runs: run folders, of which a ``scores.csv`` is enough; and folders of runs, such as an ablation's.
        out: HTML file to write.
        title: title of the page.
        details: for how many runs there is a section in full: those of the highest mean UA on validation where every
            run has one, else the first. The others have a row of the table.
        audio: put recordings of the hardest utterances into the page, at most 10 s of each, where they are found. The
            page then holds a part of the corpus, whose licence is the page's too.
        on_progress: called with what is done and what there is to do: each run is read, and then shown.

    Raises:
        ConfigError: there is no run, one is named twice, `details` is negative, or `out` is a folder.
        ScoresError: a folder is not a run and holds none, or a file of a run is not usable.
    """
    if out.is_dir():
        raise ConfigError(f"{str(out)!r} is a folder. Give --out the name of an HTML file.")
    if details < 0:
        raise ConfigError(f"--details takes 0 or more, got {details}.")
    found = find_runs(runs)
    read = _read(found.runs, on_progress)
    together = comparable(read, found.names)
    read = with_manifests(read, together)
    validation, chosen = shown_in_full(read, details)
    sections = []
    with style():
        for number, (one, name) in enumerate(zip(read, found.names, strict=True), start=1):
            sections.append(make_section(one, f"run-{number}", name, number - 1 in chosen, audio))
            on_progress(len(read) + number, 2 * len(read))
        groups = make_groups(sections, together, audio)
    page = _render(title, sections, groups, found.unfinished, validation, audio)
    write_atomically(out, page.encode("utf-8", "replace"))


def _read(folders: Sequence[Path], on_progress: Callable[[int, int], None]) -> list[Run]:
    """Read runs; those with the same manifest share it, which is most of what a run takes in memory."""
    runs: list[Run] = []
    manifests: list[Manifest] = []
    for number, folder in enumerate(folders, start=1):
        run = read_run(folder)
        if run.manifest is not None:
            own = run.manifest
            same = next((manifest for manifest in manifests if tuple(manifest) == tuple(own)), None)
            if same is None:
                manifests.append(own)
            run = replace(run, manifest=same or own)
        runs.append(run)
        on_progress(number, 2 * len(folders))
    return runs


def _render(
    title: str,
    sections: Sequence[Section],
    groups: Sequence[Group],
    unfinished: Sequence[str],
    by_validation: bool,
    audio: bool,
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= _FILTERS
    environment.globals |= {"spread": wording.spread, "between": wording.between, "titles": wording.TITLES}
    script = _template("report.js")
    runs = [section.run for section in sections]
    return environment.get_template("report.html.jinja").render(
        title=title,
        sections=sections,
        detailed=[section for section in sections if section.detailed],
        most_open=_MOST_OPEN,
        most_first=_MOST_FIRST,
        by_validation=by_validation,
        groups=groups,
        published=beside(runs),
        most_paired=MOST_PAIRED,
        varied=varied(runs),
        seeds=by_seed(runs, [section.name for section in sections]),
        unfinished=unfinished,
        leaks=by_text(sections, lambda section: section.leaks),
        warnings=by_text(sections, lambda section: section.warnings),
        synthetic=[section.name for section in sections if section.synthetic],
        random=[section.name for section in sections if section.random],
        audio=audio,
        longest_s=LONGEST_S,
        num_bins=NUM_BINS,
        num_hardest=NUM_HARDEST,
        css=Markup(_template("report.css")),  # noqa: S704  ours
        script=Markup(script),  # noqa: S704  ours
        script_digest=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
    )


def _template(name: str) -> str:
    return (resources.files("pipelines") / "templates" / name).read_text(encoding="utf-8")

"""Write one HTML page on some runs.

The page needs nothing but itself: style, script and figures are inside, and its content security policy forbids
everything else, so that a name which holds markup stays a name even if escaping it were forgotten somewhere. The
same runs give the same bytes.
"""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from featcache.errors import ConfigError, ScoresError
from featcache.files import write_atomically
from heads.runs import Run, read_run
from heads.scores import match
from pipelines.reporting.figures import Plot, make_plot
from pipelines.reporting.plots import Entry, comparison
from pipelines.reporting.section import Section, make_section
from pipelines.reporting.svg import style
from pipelines.reporting.wording import TITLES, distinct, percent, spread


@dataclass(frozen=True)
class Group:
    """Runs that score the same utterances, in the same folds, and so can be compared.

    Attributes:
        sections: the runs.
        reason: why they are not in an earlier group; empty for the first.
        plot: their comparison.
    """

    sections: Sequence[Section]
    reason: str
    plot: Plot


def run(runs: Sequence[Path], out: Path, title: str) -> None:
    """Write a report.

    Args:
        runs: run folders; a ``scores.csv`` is enough.
        out: HTML file to write.
        title: title of the page.

    Raises:
        ConfigError: there is no run, one is named twice, or `out` is a folder.
        ScoresError: a folder is not a run, or a file of it is not usable.
    """
    if not runs:
        raise ConfigError("There is nothing to report: no run was given.")
    if out.is_dir():
        raise ConfigError(f"{str(out)!r} is a folder. Give --out the name of an HTML file.")
    _check_once(runs)
    names = distinct([os.path.abspath(folder) for folder in runs])
    with style():
        sections = [
            make_section(read_run(folder), f"run-{number}", name)
            for number, (folder, name) in enumerate(zip(runs, names, strict=True), start=1)
        ]
        text = _render(title, sections, _groups(sections))
    write_atomically(out, text.encode("utf-8"))


def _check_once(runs: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for folder in runs:
        place = folder.resolve()
        if place in seen:
            raise ConfigError(f"{str(folder)!r} is the same run as {str(seen[place])!r}. Name each run once.")
        seen[place] = folder


def _groups(sections: Sequence[Section]) -> list[Group]:
    """Return the runs in groups that can be compared, in the order of their first members."""
    members: list[list[Section]] = []
    reasons: list[str] = []
    for section in sections:
        differences = [_difference(group[0], section) for group in members]
        if "" in differences:
            members[differences.index("")].append(section)
        else:
            members.append([section])
            reasons.append(differences[0] if differences else "")
    titles = [f"UA, group {number}" for number in range(1, len(members) + 1)] if len(members) > 1 else ["UA"]
    return [
        Group(group, reason, _compare(group, title, f"group-{number}"))
        for number, (group, reason, title) in enumerate(zip(members, reasons, titles, strict=True), start=1)
    ]


def _difference(first: Section, other: Section) -> str:
    """Return why two runs cannot be compared; nothing where they can."""
    try:
        match(first.run.scores, other.run.scores, (first.name, other.name))
    except ScoresError as error:
        return str(error)
    return ""


def _compare(sections: Sequence[Section], title: str, ident: str) -> Plot:
    entries = [_entry(section.name, section.run) for section in sections]
    chance = 1 / len(sections[0].run.scores.classes)
    label = "; ".join(f"{entry.name} {spread(entry.mean, entry.std)} %" for entry in entries)
    caption = f"Diamonds: mean ± std over folds. Dots: each fold. Guessing gives {percent(chance)} %."
    return make_plot(ident, title, comparison(entries, chance), label, caption)


def _entry(name: str, run: Run) -> Entry:
    metrics = run.metrics
    return Entry(name, [fold["ua"] for fold in metrics["folds"]], metrics["mean"]["ua"], metrics["std"]["ua"])


def _render(title: str, sections: Sequence[Section], groups: Sequence[Group]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.globals["spread"] = spread
    script = _template("report.js")
    return environment.get_template("report.html.jinja").render(
        title=title,
        titles=TITLES,
        sections=sections,
        groups=groups,
        leaks=_by_text({section.name: section.leaks for section in sections}),
        warnings=_by_text({section.name: section.warnings for section in sections}),
        synthetic=[section.name for section in sections if section.synthetic],
        css=Markup(_template("report.css")),  # noqa: S704  ours
        script=Markup(script),  # noqa: S704  ours
        script_digest=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
    )


def _by_text(texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return each text with the names of the runs that have it."""
    found: dict[str, list[str]] = {}
    for name, own in texts.items():
        for text in own:
            found.setdefault(text, []).append(name)
    return found


def _template(name: str) -> str:
    return (resources.files("pipelines") / "templates" / name).read_text(encoding="utf-8")

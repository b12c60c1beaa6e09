"""Published numbers, and what stands in the way of comparing runs with them.

``published.yaml`` holds the numbers of five papers, of SUPERB and of EmoBox, each with its protocol, the table it is
copied from, and whether the tested utterances chose anything. They are shown beside runs, never as comparable: a
column says in what each differs from the runs, as far as this can be checked, and what cannot be checked says so.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Literal

import yaml

from featcache.errors import ConfigError
from featcache.settings import build
from heads.metrics import METRICS
from heads.runs import Run
from pipelines.reporting.tables import Grid
from pipelines.reporting.wording import TITLES, text

Answer = Literal["yes", "no", "unknown"]
Modality = Literal["speech", "text", "both"]

ORIENTATION = "Published, for orientation: other corpora and protocols"
"""The title over numbers on a corpus that the runs are not known to be on."""

CAPTION = (
    "In %, under this report's names: WA is accuracy, UA the mean of the recalls. Not a ranking: 'differs in' compares "
    "corpus, classes, utterances, folds and speaker independence with the runs here, as far as they say; the models "
    "and what they were trained on before differ too."
)
"""What to know to read the table of `Beside`."""

_DEFAULT_CORPUS = "IEMOCAP"
_NONE = "–"
_CORPORA = {
    "iemocap": _DEFAULT_CORPUS, "emodb": "EMO-DB", "ravdess": "RAVDESS", "cremad": "CREMA-D", "meld": "MELD",
}  # fmt: skip
# What the releases call their recordings. The first word of a name is enough for a person, and not for a program: the
# demo corpus has names like IEMOCAP's.
_IDS = {
    _DEFAULT_CORPUS: re.compile(r"Ses0[1-5][FM]_(impro|script)\d\d\w*_[FM]\d{3}"),
    "EMO-DB": re.compile(r"(03|08|09|1[0-6])[ab]\d\d[AEFLNTW][a-z]"),
    "RAVDESS": re.compile(r"0[123](-0[1-8]){5}-([01]\d|2[0-4])"),
    "CREMA-D": re.compile(r"1\d{3}_[A-Z]{3}_[A-Z]{3}_(XX|LO|MD|HI|X)"),
}


@dataclass(frozen=True)
class Number:
    """One published number, in percent.

    Attributes:
        value: the mean over folds, or of the one split.
        std: over folds; None where none is printed.
        printed_as: what the paper calls the metric; empty where it calls it as this project does.
    """

    value: float
    std: float | None = None
    printed_as: str = ""

    def __post_init__(self) -> None:
        for number in (self.value, self.std):
            if number is not None and not 0 <= number <= 100:
                raise ConfigError(f"a published number is a percentage, 0 to 100, got {number}.")


@dataclass(frozen=True)
class Source:
    """Where numbers are from: a citation in one line, and an address where there is one."""

    citation: str
    url: str = ""


@dataclass(frozen=True)
class Row:
    """What is published of one system.

    Attributes:
        key: name of the row.
        system: who, and what.
        corpus: what it was measured on.
        classes: names of this project, in alphabetical order.
        values: metric of this project to its number.
        protocol: how the corpus was divided, in words.
        speaker_independent: whether no tested speaker was trained on.
        selected_on_test: whether tested utterances chose a checkpoint, a weight or a setting.
        selection: who says so, or why it is not known.
        modality: what the system is given.
        source: key of the source.
        table: where it stands there.
        test_sizes: (folds,) utterances tested in each; empty where they are not known.
        note: what else to know.
    """

    key: str
    system: str
    corpus: str
    classes: tuple[str, ...]
    values: Mapping[str, Number]
    protocol: str
    speaker_independent: Answer
    selected_on_test: Answer
    selection: str
    modality: Modality
    source: str
    table: str
    test_sizes: tuple[int, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        empty = [
            one.name for one in fields(self) if one.name not in ("test_sizes", "note") and not getattr(self, one.name)
        ]
        if empty:
            raise ConfigError(f"{empty[0]} is empty.")
        strange = [metric for metric in self.values if metric not in METRICS]
        if strange:
            raise ConfigError(f"values.{strange[0]}: the metrics are {', '.join(METRICS)}.")
        if list(self.classes) != sorted(set(self.classes)) or len(self.classes) < 2:
            raise ConfigError("classes: name two or more, each once, in alphabetical order.")


@dataclass(frozen=True)
class Published:
    """A file of published numbers: sources and rows, each by key."""

    sources: Mapping[str, Source]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Beside:
    """Published numbers to be shown beside runs.

    Attributes:
        title: what they are.
        grid: a row for each system.
        caption: what to know to read it.
        notes: on single rows, and the citations.
    """

    title: str
    grid: Grid
    caption: str
    notes: Sequence[str]


def load(path: Path | None = None) -> Published:
    """Read a file of published numbers.

    Args:
        path: the file; None is the one that comes with this project.

    Raises:
        ConfigError: it cannot be read, or a row of it is not complete; the message names the row.
    """
    path = Path(str(resources.files("pipelines") / "reporting" / "published.yaml")) if path is None else path
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The published numbers {str(path)!r} cannot be read: {error}") from None
    sections = [_section(content, name, path) for name in ("sources", "rows")]
    sources = {key: build(Source, values, f"{path.name}, source {key!r}") for key, values in sections[0].items()}
    rows = [_row(key, values, f"{path.name}, row {key!r}") for key, values in sections[1].items()]
    for row in rows:
        if row.source not in sources:
            raise ConfigError(f"{path.name}, row {row.key!r}: there is no source {row.source!r}.")
    return Published(sources, rows)


def _section(content: Any, name: str, path: Path) -> Mapping[str, Mapping[str, Any]]:
    values = content.get(name) if isinstance(content, dict) else None
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"{str(path)!r} must hold a section {name!r} of entries by name.")
    for key, entry in values.items():
        if not isinstance(entry, dict):
            raise ConfigError(
                f"{path.name}, {name}: {key!r} must hold values by name, got {text(entry) or 'nothing'!r}."
            )
    return {str(key): entry for key, entry in values.items()}


def _row(key: str, values: Mapping[str, Any], where: str) -> Row:
    # YAML reads a bare yes as true.
    words = {
        name: {True: "yes", False: "no"}[value] if isinstance(value, bool) else value for name, value in values.items()
    }
    return build(Row, {**words, "key": key}, where)


@cache
def _own() -> Published:
    return load()


def rows(corpus: str | None = None, classes: int | None = None, modality: Modality | None = None) -> list[Row]:
    """Return published rows.

    Args:
        corpus: only of this corpus, such as ``"IEMOCAP"``.
        classes: only of so many classes.
        modality: only of systems that are given this.
    """
    return [
        row
        for row in _own().rows
        if corpus in (None, row.corpus) and classes in (None, len(row.classes)) and modality in (None, row.modality)
    ]


def corpus_of(run: Run) -> str | None:
    """Return the corpus of a run's utterances: what its manifest says, or what the releases call their recordings.

    Synthetic speech, random weights, several corpora and names of no known release give None.
    """
    utterances = [] if run.manifest is None else list(run.manifest)
    config = run.config or {}
    synthetic = config.get("synthetic") or any(one.extra.get("synthetic") for one in utterances)
    if synthetic or config.get("random_weights"):
        return None
    said = [one.extra.get("corpus", one.extra.get("dataset")) for one in utterances]
    if said and all(isinstance(name, str) for name in said):
        names = {_CORPORA.get(re.sub(r"[^a-z0-9]", "", name.lower()), name) for name in said}
        return names.pop() if len(names) == 1 else None
    ids = set(run.scores.ids)
    return next((corpus for corpus, name in _IDS.items() if all(map(name.fullmatch, ids))), None)


def beside(runs: Sequence[Run]) -> Beside:
    """Return the published numbers on the corpora of some runs; on IEMOCAP, for orientation, where there are none.

    Args:
        runs: the runs that they are to stand beside; one or more.
    """
    corpora = [corpus_of(run) for run in runs]
    found = [row for row in _own().rows if row.corpus in corpora]
    title = f"Published on {' and '.join(dict.fromkeys(row.corpus for row in found))}" if found else ORIENTATION
    found = found or rows(_DEFAULT_CORPUS)
    metrics = [metric for metric in TITLES if any(metric in row.values for row in found)]
    letters = _letters(found)
    header = [
        "system", "source", "reads", *(TITLES[metric] for metric in metrics), "corpus", "protocol",
        "speaker-independent", "selected on test", "differs in", "notes",
    ]  # fmt: skip
    cells = [
        [
            row.system,
            f"{row.source}, {row.table}",
            row.modality,
            *(_cell(row.values.get(metric)) for metric in metrics),
            f"{row.corpus}, {len(row.classes)} classes",
            row.protocol,
            row.speaker_independent,
            row.selected_on_test,
            "; ".join(_differences(row, runs, corpora)) or "nothing that can be checked",
            " ".join(letters[words] for words in _remarks(row)),
        ]
        for row in found
    ]
    numeric = [name in TITLES.values() for name in header]
    notes = [f"{letter}: {words}." for words, letter in letters.items()]
    return Beside(title, Grid(header, cells, numeric), CAPTION, [*notes, *_citations(found)])


def _cell(number: Number | None) -> str:
    if number is None:
        return _NONE
    return _decimals(number.value) + ("" if number.std is None else f" ± {_decimals(number.std)}")


def _decimals(value: float) -> str:
    """Return a number with the decimals that papers print: one, or two."""
    return f"{value:.1f}" if round(value, 1) == value else f"{value:.2f}"


def _remarks(row: Row) -> list[str]:
    return [f"selected on test: {row.selected_on_test}; {row.selection}", *([row.note] if row.note else [])]


def _letters(found: Sequence[Row]) -> dict[str, str]:
    """Return what there is to say of the rows, each once, with the letter that stands for it."""
    return dict(zip(dict.fromkeys(words for row in found for words in _remarks(row)), ascii_lowercase, strict=False))


def _citations(found: Sequence[Row]) -> list[str]:
    sources = {row.source: _own().sources[row.source] for row in found}
    return [f"{key}: {one.citation}." + (f" {one.url}" if one.url else "") for key, one in sources.items()]


def _differences(row: Row, runs: Sequence[Run], corpora: Sequence[str | None]) -> list[str]:
    """Return in what a row differs from the runs; with the number of runs where it does so from some of them."""
    found = Counter(words for run, corpus in zip(runs, corpora, strict=True) for words in _different(row, run, corpus))
    told = [words if count == len(runs) else f"{words} ({count} of {len(runs)} runs)" for words, count in found.items()]
    return [*told, *(["was selected on test"] if row.selected_on_test == "yes" else [])]


def _different(row: Row, run: Run, corpus: str | None) -> list[str]:
    config = run.config or {}
    sizes = sorted(fold["n"] for fold in run.metrics["folds"])
    found = [] if corpus == row.corpus else ["corpus" if corpus else "corpus (not known here)"]
    if set(row.classes) != set(run.scores.classes):
        found.append("classes")
    if not row.test_sizes:
        found.append("folds")
    elif sizes != sorted(row.test_sizes):
        found.append("utterances and folds" if sum(sizes) != sum(row.test_sizes) else "folds")
    independent = config.get("speaker_independent")
    if not isinstance(independent, bool):
        found.append("speaker independence (not stated here)")
    elif row.speaker_independent != ("yes" if independent else "no"):
        found.append("speaker independence")
    return found

"""What a paper reports, and which runs of this project are its rows: one YAML file a paper, in ``pipelines/papers``.

A file holds what the paper prints, under the names it prints, and the presets that make its rows:

* ``title``, ``authors``, ``venue``, ``year``, ``doi``; ``corpus``, what it was measured on;
* ``metrics``: the paper's name of a metric to this project's. Numbers stand under the paper's names, so that the file
  can be compared with the page, and are translated when it is read: nothing else in this project ever sees them;
* ``notes``: differences in protocol, by a name that runs, tables and rows refer to;
* ``runs``, ``fusions``, ``probes``: what is computed, by a key that is the folder's name as well;
* ``projection``: runs whose codes are drawn, by a short title;
* ``aligner``: the paper's, where a preset states another that is as good;
* ``tables``: rows with a label, the key of what is computed, and the paper's numbers in percent. A row that is
  ``cited`` is another work's, and has no number of ours.

Whatever does not fit is refused when the file is read, before anything runs.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from featcache.errors import ConfigError, UnknownNameError
from featcache.settings import build
from heads.metrics import METRICS

T = TypeVar("T")

_KEY = re.compile(r"[a-z0-9][a-z0-9-]*")
PROJECTION = "projection"
"""What the picture of codes is called among what failed; nothing else may be."""

_PRESET_FILE = (".yaml", ".yml")


@dataclass(frozen=True)
class Numbers:
    """What a paper prints of one metric, in percent.

    Attributes:
        mean: over folds; None where it prints none.
        std: over folds; None where it prints none.
        folds: (folds,) each fold's; empty where it prints none.
    """

    mean: float | None = None
    std: float | None = None
    folds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for number in (self.mean, self.std, *self.folds):
            if number is not None and not 0 <= number <= 100:
                raise ConfigError(f"a number of the paper is a percentage, 0 to 100, got {number}.")
        if self.mean is None and not self.folds:
            raise ConfigError("numbers of the paper need a mean or folds.")


@dataclass(frozen=True)
class PaperCorpus:
    """What a paper measured on.

    Attributes:
        name: the corpus.
        utterances: how many.
        speakers: how many.
        sessions: how many; None where it has none.
        classes: names of the classes, as this project's manifests have them.
    """

    name: str
    utterances: int
    speakers: int
    classes: tuple[str, ...]
    sessions: int | None = None


@dataclass(frozen=True)
class RunOf:
    """A training.

    Attributes:
        preset: the paper's form: a preset's name, or a YAML file beside the paper's.
        demo: a small form; None where there is none.
        laptop: a form that needs no download, whose weights are real all the same; None where there is none.
        train: what differs from the preset's section ``train``.
        start: key of the run whose folds' weights it begins with; empty begins at random.
        folds: its folds, where they are not the preset's: ``within:session`` divides the training part of each fold.
        notes: names of notes on it.
    """

    preset: str
    demo: str | None = None
    laptop: str | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    start: str = ""
    folds: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FusionOf:
    """A late fusion.

    Attributes:
        runs: keys of the runs.
        weights: one a run, separated by commas; or ``search``, ``stack`` or ``joint``, on validation.
        select_by: what a search aims at.
        space: whether probabilities are fused or their logarithms.
        standardise: standardise each run's scores by its validation scores first.
        notes: names of notes on it.
    """

    runs: tuple[str, ...]
    weights: str
    select_by: Literal["ua", "wa"] = "ua"
    space: Literal["prob", "log"] = "prob"
    standardise: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProbeOf:
    """A probe of the codes of a run.

    Attributes:
        run: key of the run.
        target: what is asked of the codes, such as ``speaker``.
        preset: the paper's form.
        demo: a small form; None where there is none.
        notes: names of notes on it.
    """

    run: str
    target: str
    preset: str
    demo: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        label: as the paper prints it.
        run: key of what is computed; None where it is another work's.
        cited: whether it is another work's, cited by the paper.
        paper: metric of this project to what the paper prints; empty where the row is not in the paper.
        parameters: how many the paper says that the model has; None where it does not say.
        notes: names of notes on it.
    """

    label: str
    run: str | None = None
    cited: bool = False
    paper: Mapping[str, Numbers] = field(default_factory=dict)
    parameters: float | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.cited == (self.run is not None):
            raise ConfigError("a row names what is run, or is cited: true, and not both.")
        if self.cited and not self.paper:
            raise ConfigError("a row that is cited needs the paper's numbers.")


@dataclass(frozen=True)
class PaperTable:
    """A table.

    Attributes:
        name: such as ``Table 1``.
        title: what it shows.
        metrics: this project's metrics, in the order of the columns.
        rows: the rows.
        by_fold: whether folds have columns.
        notes: names of notes on all of it.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    rows: Sequence[Row]
    by_fold: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Paper:
    """A paper, as its file says; see the module for the fields.

    Attributes:
        name: of the file, without its suffix.
        folder: where the file lies, which presets given as files start from.
        metrics: this project's name of a metric to the paper's.
        projection: title to the key of the run, of runs whose codes are drawn.
        aligner: the paper's aligner; empty where it has none, or the presets state it.
    """

    name: str
    folder: Path
    title: str
    authors: str
    venue: str
    year: int | None
    doi: str
    corpus: PaperCorpus
    metrics: Mapping[str, str]
    notes: Mapping[str, str]
    runs: Mapping[str, RunOf]
    fusions: Mapping[str, FusionOf]
    probes: Mapping[str, ProbeOf]
    projection: Mapping[str, str]
    tables: Sequence[PaperTable]
    aligner: str = ""

    @property
    def computed(self) -> dict[str, RunOf | FusionOf | ProbeOf]:
        """Everything that is computed, by key: trainings, then probes, then fusions."""
        return {**self.runs, **self.probes, **self.fusions}

    @property
    def citation(self) -> str:
        """Authors, year, title, venue and DOI in one line; year and DOI where they are known."""
        year, doi = f" ({self.year})" if self.year else "", f" https://doi.org/{self.doi}" if self.doi else ""
        return f"{self.authors}{year}: {self.title}. {self.venue}.{doi}"

    def preset(self, name: str) -> str:
        """Return a preset's name, or the path of one that is a file."""
        return str(self.folder / name) if Path(name).suffix in _PRESET_FILE else name


def paper_names() -> list[str]:
    """Return the names of the papers that come with this project."""
    folder = resources.files("pipelines") / "papers"
    return sorted(path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml"))


def read_paper(name: str) -> Paper:
    """Return a paper, by its name or as a path of a YAML file.

    Raises:
        UnknownNameError: no such paper.
        ConfigError: the file is not in the form of one; the message says where.
    """
    path = Path(name)
    if path.suffix in _PRESET_FILE:
        if not path.is_file():
            raise ConfigError(f"There is no paper file {name!r}.")
    elif name in paper_names():
        path = Path(str(resources.files("pipelines") / "papers" / f"{name}.yaml"))
    else:
        raise UnknownNameError("paper", name, paper_names())
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The paper {str(path)!r} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"The paper {str(path)!r} must hold sections by name, got {type(values).__name__}.")
    return _Reader(path).paper(values)


class _Reader:
    """Turns the values of a file into a paper; every refusal names the file and the place in it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def paper(self, values: Mapping[str, Any]) -> Paper:
        sections = ("corpus", "metrics", "notes", "runs", "fusions", "probes", "projection", "tables")
        there = self._metrics(self._mapping(values, "metrics"))
        plain = {key: value for key, value in values.items() if key not in sections}
        paper = self._build(
            Paper,
            {
                **plain,
                "name": self._path.stem,
                "folder": self._path.parent,
                "corpus": self._build(PaperCorpus, self._mapping(values, "corpus"), "corpus"),
                "metrics": {here: name for name, here in there.items()},
                "notes": self._mapping(values, "notes"),
                "runs": self._each(RunOf, values, "runs"),
                "fusions": self._each(FusionOf, values, "fusions"),
                "probes": self._each(ProbeOf, values, "probes"),
                "projection": {str(title): run for title, run in self._mapping(values, "projection").items()},
                "tables": [
                    self._table(table, f"tables[{number}]", there)
                    for number, table in enumerate(self._list(values, "tables", "the file"), start=1)
                ],
            },
            "",
        )
        self._check(paper)
        return paper

    def _table(self, values: Any, where: str, there: Mapping[str, str]) -> PaperTable:
        values = self._is_mapping(values, where)
        rows = [
            self._row(row, f"{where}.rows[{number}]", there)
            for number, row in enumerate(self._list(values, "rows", where), start=1)
        ]
        metrics = values.get("metrics") or []
        metrics = [self._metric(name, there, where) for name in (metrics if isinstance(metrics, list) else [metrics])]
        if not metrics:
            raise self._refusal(f"{where} names no metrics; it may have {', '.join(there)}.")
        table = self._build(PaperTable, {**values, "metrics": metrics, "rows": rows}, where)
        for row in table.rows:
            stray = [metric for metric in row.paper if metric not in table.metrics]
            if stray:
                raise self._refusal(f"{where} has no column for a number of its row {row.label!r} ({stray[0]}).")
        return table

    def _row(self, values: Any, where: str, there: Mapping[str, str]) -> Row:
        values = self._is_mapping(values, where)
        paper = {
            self._metric(name, there, where): self._build(
                Numbers, self._is_mapping(numbers, f"{where}.paper.{name}"), f"{where}.paper.{name}"
            )
            for name, numbers in self._is_mapping(values.get("paper") or {}, f"{where}.paper").items()
        }
        return self._build(Row, {**values, "paper": paper}, where)

    def _metrics(self, values: Mapping[str, Any]) -> dict[str, str]:
        for name, here in values.items():
            if here not in METRICS:
                raise self._refusal(f"metrics.{name} is {here!r}; it may be {', '.join(METRICS)}.")
        if len(set(values.values())) != len(values):
            raise self._refusal("metrics gives two names of the paper to one metric.")
        return {str(name): str(here) for name, here in values.items()}

    def _metric(self, name: Any, there: Mapping[str, str], where: str) -> str:
        if name not in there:
            raise self._refusal(f"{where} has the metric {name!r}; the section metrics has {', '.join(there)}.")
        return there[name]

    def _check(self, paper: Paper) -> None:
        """Refuse references to what the file does not have."""
        keys = [*paper.runs, *paper.probes, *paper.fusions]
        odd = [key for key in keys if not _KEY.fullmatch(key)]
        if odd:
            raise self._refusal(f"the key {odd[0]!r} is not made of a to z, 0 to 9 and hyphens; folders are named so.")
        if PROJECTION in keys:
            raise self._refusal(f"the key {PROJECTION!r} is that of the picture of codes; take another.")
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise self._refusal(f"the key {twice[0]!r} stands for two things; runs, probes and fusions share names.")
        for where, name, known in _references(paper):
            if name not in known:
                raise self._refusal(f"{where} names {name!r}, which there is not. There is: {', '.join(known)}.")

    def _each(self, cls: type[T], values: Mapping[str, Any], section: str) -> dict[str, T]:
        return {
            str(key): self._build(cls, self._is_mapping(one, f"{section}.{key}"), f"{section}.{key}")
            for key, one in self._mapping(values, section).items()
        }

    def _mapping(self, values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        return self._is_mapping(values.get(name) or {}, name)

    def _is_mapping(self, value: Any, where: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise self._refusal(f"{where} takes values by name, got {value!r}.")
        return value

    def _list(self, values: Mapping[str, Any], name: str, where: str) -> list[Any]:
        value = values.get(name)
        if not isinstance(value, list) or not value:
            raise self._refusal(f"{where} needs a list {name}, got {value!r}.")
        return value

    def _build(self, cls: type[T], values: Mapping[str, Any], where: str) -> T:
        needed = [
            item.name
            for item in fields(cls)  # type: ignore[arg-type]
            if item.default is MISSING and item.default_factory is MISSING
        ]
        lacking = [name for name in needed if name not in values]
        if lacking:
            raise self._refusal(f"{where or 'the file'} needs {', '.join(lacking)}.")
        return build(cls, values, f"The paper {str(self._path)!r}{f', {where}' if where else ''}")

    def _refusal(self, text: str) -> ConfigError:
        return ConfigError(f"The paper {str(self._path)!r}: {text}")


def _references(paper: Paper) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Yield where a name stands, the name, and those that exist."""
    runs, computed, notes = list(paper.runs), list(paper.computed), list(paper.notes)
    for key, fusion in paper.fusions.items():
        yield from ((f"fusions.{key}", run, runs) for run in fusion.runs)
    for key, probe in paper.probes.items():
        yield f"probes.{key}", probe.run, runs
    yield from ((f"runs.{key}.start", of.start, runs) for key, of in paper.runs.items() if of.start)
    yield from (("projection", run, runs) for run in paper.projection.values())
    for key, one in paper.computed.items():
        yield from ((f"the notes of {key}", note, notes) for note in one.notes)
    for table in paper.tables:
        yield from ((f"the notes of {table.name!r}", note, notes) for note in table.notes)
        for row in table.rows:
            where = f"{table.name!r}, row {row.label!r}"
            yield from ((where, note, notes) for note in row.notes)
            if row.run is not None:
                yield where, row.run, computed

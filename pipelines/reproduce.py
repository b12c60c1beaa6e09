"""Run every row of a paper's tables over a cache, and write the tables, the paper's numbers beside ours.

The folder holds, beside a run folder for each training, probe and fusion:

* ``tables.md``, ``tables.csv``, ``tables.html``: the tables;
* ``report.html``: every run in full;
* ``projection.svg``: the codes in two dimensions, where the paper's file asks for them.

A report or picture of an earlier state does not stay beside new tables.

Trainings run first, then codes, then probes, each stage in processes side by side; fusions and pages take seconds. What
is done is not done again, and what was begun goes on. A row that fails costs its own numbers and those made of it.
"""

import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from featcache.errors import CacheError, ConfigError, FeatcacheError
from featcache.extract import resolve_device
from featcache.files import write_atomically
from featcache.manifest import Manifest
from heads.head import OnProgress
from heads.order import num_steps
from heads.runs import Run, read_config, read_run
from pipelines import codes, finetune, fuse, jobs, probe, project, report, train_heads
from pipelines import extract as extraction
from pipelines.extract import interval_s
from pipelines.jobs import Job
from pipelines.paper import PROJECTION, FusionOf, Paper
from pipelines.reporting import tables
from pipelines.reporting.figures import Plot, make_plot
from pipelines.reporting.reproduction import make_document, random_runs
from pipelines.reporting.svg import style
from pipelines.reporting.tables import Document
from pipelines.reproduce_plan import Plan
from pipelines.reproduce_rows import Options, Probe, Training, extractions, run_of
from pipelines.reproduce_show import refusal

OnMessage = Callable[[str], None]

_RUNNING_SHOWN = 3
_REPORT, _PICTURE = "report.html", "projection.svg"


@dataclass(frozen=True)
class Reproduced:
    """What reproducing a paper left.

    Attributes:
        document: the tables.
        runs: what there is, by key.
        failures: key to sentence, of what failed.
    """

    document: Document
    runs: Mapping[str, Run]
    failures: Mapping[str, str]


def run(plan: Plan, options: Options, on_message: OnMessage = lambda _: None) -> Reproduced:
    """Run what is planned, and write the tables.

    Args:
        plan: what is to be done.
        options: how; those that the plan was made with.
        on_message: called with a sentence for each thing worth knowing.

    Raises:
        CacheError: rows lack something, and are not to be left out.
    """
    if plan.missing and not options.skip_missing:
        raise refusal(plan)
    plan.out.mkdir(parents=True, exist_ok=True)
    work = _Work(plan, options, on_message)
    work.train()
    work.probe()
    work.fuse()
    runs = work.runs()
    figure = work.project()
    written = _pages(plan, runs, work.remarks(), figure, on_message)
    return Reproduced(written, runs, work.failures)


def extract(
    paper: Paper, manifest: Manifest, cache: Path, options: Options, on_message: OnMessage = lambda _: None
) -> None:
    """Extract what the rows of a paper read of the corpus, in the form that is run; what is there is not done again.

    Raises:
        ConfigError: settings that do not fit.
        CheckpointError: a checkpoint that cannot be found.
    """
    for config in extractions(paper, options):
        on_message(f"Extracting {', '.join(config.streams)}")
        summaries = extraction.run(config, manifest, cache)
        for summary in summaries:
            if summary.failures:
                on_message(f"{summary.stream}: {len(summary.failures)} utterances failed; see 'featcache coverage'.")


class _Work:
    """The stages; each looks at what failed before it."""

    def __init__(self, plan: Plan, options: Options, on_message: OnMessage) -> None:
        self._plan, self._options, self._tell = plan, options, on_message
        self.failures: dict[str, str] = {}
        self._without_codes: dict[str, str] = {}
        self._stopped: dict[str, str] = {}
        self._extracted: set[str] = set()

    def train(self) -> None:
        """Train the runs, each after those whose weights or encoders it needs."""
        left = dict(self._plan.trainings)
        while left:
            ready = {key: one for key, one in left.items() if not any(before in left for before in one.after)}
            left = {key: one for key, one in left.items() if key not in ready}
            self._train({key: one for key, one in ready.items() if self._has_inputs(key, one)})

    def _train(self, trainings: Mapping[str, Training]) -> None:
        plan, overwrite = self._plan, self._options.overwrite
        read = {run_of(stream) for training in plan.trainings.values() for stream in training.families}
        todo: dict[str, Callable[..., None]] = {}
        for key, one in trainings.items():
            work, meant = _fine_tune if key in read else _train, _digests(one, plan.out)
            todo[key] = partial(work, one, plan.manifest, plan.cache, plan.out / key, overwrite, meant)
        self.failures |= self._stage("training", todo, {key: _steps(one, plan) for key, one in trainings.items()})

    def _has_inputs(self, key: str, training: Training) -> bool:
        """Extract by the encoders of other runs what a run reads; say whether all that it needs is there."""
        without = [before for before in training.after if before in self.failures | self._stopped]
        if without:
            self._stopped[key] = f"{' and '.join(without)} failed"
            return False
        try:
            for stream, config in training.families.items():
                if stream not in self._extracted:
                    self._tell(f"{stream}: extracting, by the encoder of each fold")
                    extraction.run(replace(config, device=self._options.device), self._plan.manifest, self._plan.cache)
                    self._extracted.add(stream)
        except (FeatcacheError, OSError) as error:
            self.failures[key] = f"what it reads cannot be extracted: {error}"
            return False
        return True

    def probe(self) -> None:
        """Export the codes that probes and the picture read, and train the probes."""
        plan, options = self._plan, self._options
        todo = {
            key: partial(_export, plan.manifest, plan.cache, plan.out / key, options.device) for key in self._encoders()
        }
        totals = {key: len(plan.folds[key]) * len(plan.manifest) for key in todo}
        self._without_codes = self._stage("codes", todo, totals)
        probes = {}
        for key, one in plan.probes.items():
            of = one.of.run
            if of in self.failures | self._stopped:
                self._stopped[key] = f"{of} failed"
            elif of in self._without_codes:
                self.failures[key] = f"codes of {of}: {self._without_codes[of]}"
            else:
                probes[key] = partial(
                    _probe, one, plan.manifest, plan.cache, plan.out / of, plan.out / key, options.device,
                    options.overwrite,
                )  # fmt: skip
        totals = {key: plan.probes[key].config.fit.steps * len(plan.folds[plan.probes[key].of.run]) for key in probes}
        self.failures |= self._stage("probes", probes, totals)

    def fuse(self) -> None:
        """Fuse the runs that there are."""
        for key, fusion in self._plan.fusions.items():
            failed = [of for of in fusion.runs if of in self.failures | self._stopped]
            if failed:
                self._stopped[key] = f"{' and '.join(failed)} failed"
                continue
            try:
                _fuse(fusion, self._plan.out, self._plan.out / key)
            except (FeatcacheError, OSError) as error:
                self.failures[key] = str(error)

    def project(self) -> Plot | None:
        """Draw the codes; None where there is nothing to draw, or it fails, which costs nothing else."""
        keys = self._drawn()
        without = [f"codes of {key}: {self._without_codes[key]}" for key in keys.values() if key in self._without_codes]
        try:
            if without:
                raise CacheError("; ".join(without))
            return self._draw(keys) if keys else None
        except (FeatcacheError, OSError, ValueError) as error:  # scikit-learn has its own ValueErrors
            self.failures[PROJECTION] = str(error)
            self._tell(f"The codes are not drawn: {error}")
            return None

    def _draw(self, keys: Mapping[str, str]) -> Plot:
        """Draw the codes of runs, by title, and write the picture."""
        plan = self._plan
        read = {
            title: (plan.out / key, codes.run(plan.out / key, plan.manifest, plan.cache, device=self._options.device))
            for title, key in keys.items()
        }
        with style():
            figure = project.figure(read, plan.manifest, plan.cache)
            picture = io.BytesIO()
            figure.savefig(picture, format="svg", metadata={"Date": None})
            label = f"Codes of {', '.join(keys.values())} in two dimensions."
            caption = "A point for each utterance; one fold's model."
            drawn = make_plot(PROJECTION, "The codes in two dimensions", figure, label, caption)
        write_atomically(plan.out / _PICTURE, picture.getvalue())
        return drawn

    def runs(self) -> dict[str, Run]:
        """Return what there is, by key: trainings, probes, fusions."""
        keys = [*self._plan.trainings, *self._plan.probes, *self._plan.fusions]
        return {key: read_run(self._plan.out / key) for key in keys if key not in self.failures | self._stopped}

    def remarks(self) -> dict[str, str]:
        """Return why each of the others is not there."""
        not_run = dict(self._plan.not_run) | self._stopped
        return {key: f"not run: {reason}" for key, reason in not_run.items()} | {
            key: f"failed: {sentence}" for key, sentence in self.failures.items()
        }

    def _drawn(self) -> dict[str, str]:
        """Return the runs whose codes are drawn, by title: those of random weights would show nothing."""
        plan, trained = self._plan, set(self._plan.trainings) - set(self.failures | self._stopped)
        keys = {title: key for title, key in plan.paper.projection.items() if key in trained}
        of_random = random_runs(plan, {key: read_run(plan.out / key) for key in keys.values()})
        return {title: key for title, key in keys.items() if key not in of_random}

    def _encoders(self) -> list[str]:
        """Return the runs whose codes are read, and which did not fail."""
        wanted = {one.of.run for one in self._plan.probes.values()} | set(self._drawn().values())
        return [key for key in self._plan.trainings if key in wanted and key not in self.failures | self._stopped]

    def _stage(self, title: str, todo: Mapping[str, Callable[..., None]], totals: Mapping[str, int]) -> dict[str, str]:
        """Run jobs under one bar; return what failed."""
        if not todo:
            return {}
        with _bar(title, totals, self._tell) as bar:
            failures = jobs.run(
                [Job(key, work) for key, work in todo.items()], _at_once(self._options), bar.progress, bar.message
            )
            bar.finish([key for key in todo if key not in failures])
        for key, sentence in failures.items():
            self._tell(f"{key} failed: {sentence}")
        return failures


def _at_once(options: Options) -> int:
    """Return how many processes work at a time: as many as asked, one on a GPU, or one a core."""
    if options.jobs is not None:
        return options.jobs
    return 1 if resolve_device(options.device).startswith("cuda") else max(1, len(os.sched_getaffinity(0)))


def _steps(training: Training, plan: Plan) -> int:
    return sum(num_steps(training.config.fit, len(fold.train)) for fold in plan.folds[training.key])


def _digests(training: Training, out: Path) -> dict[str, str]:
    """Return the digest of the run behind each family that is read: a cache may hold those of others of that name."""
    return {
        name: str((read_config(out / run_of(name) / "config.yaml") or {}).get("digest", ""))
        for name in training.families
    }


def _train(
    training: Training, manifest: Manifest, cache: Path, out: Path, overwrite: bool, meant: Mapping[str, str],
    on_progress: OnProgress, on_message: OnMessage,
) -> None:  # fmt: skip
    """Train one run, in a child process."""

    def train(overwrite: bool) -> None:
        train_heads.run(training.config, manifest, cache, out, overwrite, on_progress, on_message, meant)

    _replacing(train, overwrite)


def _fine_tune(
    training: Training, manifest: Manifest, cache: Path, out: Path, overwrite: bool, meant: Mapping[str, str],
    on_progress: OnProgress, on_message: OnMessage,
) -> None:  # fmt: skip
    """Train one run and save the encoder of each of its folds, in a child process."""

    def train(overwrite: bool) -> None:
        finetune.run(training.config, manifest, cache, out, overwrite, on_progress, on_message, meant)

    _replacing(train, overwrite)


def _export(
    manifest: Manifest, cache: Path, run_folder: Path, device: str, on_progress: OnProgress, on_message: OnMessage
) -> None:
    """Export the codes of one run, in a child process."""
    codes.run(run_folder, manifest, cache, device=device, on_progress=on_progress)


def _probe(
    one: Probe, manifest: Manifest, cache: Path, run_folder: Path, out: Path, device: str, overwrite: bool,
    on_progress: OnProgress, on_message: OnMessage,
) -> None:  # fmt: skip
    """Train one probe, in a child process; the codes are there."""
    names = codes.run(run_folder, manifest, cache, device=device)

    def train(overwrite: bool) -> None:
        probe.run(
            run_folder, manifest, cache, out, one.of.target, one.config, names, overwrite, on_progress, on_message
        )

    _replacing(train, overwrite)


def _replacing(train: Callable[[bool], None], overwrite: bool) -> None:
    """Train; where that is refused and other runs are to be replaced, train over what is there.

    The very same run is looked for first, so that what is done is not done again.
    """
    try:
        train(False)
    except ConfigError:
        if not overwrite:
            raise
        train(True)


def _fuse(fusion: FusionOf, folder: Path, out: Path) -> None:
    """Fuse; the plan has refused to replace what is no fusion."""
    select_by = fusion.select_by if fusion.weights in ("search", "stack", "joint") else None
    fuse.run(
        [folder / key for key in fusion.runs], fusion.weights, out, fusion.space, fusion.standardise, overwrite=True,
        select_by=select_by,
    )  # fmt: skip


class _Bar:
    """One bar for all steps of a stage's jobs, with the names of those that run.

    Args:
        bar: the bar.
        totals: what each job has to do, as far as is known before it starts.
        on_message: called with sentences, the job's name before them.
    """

    def __init__(self, bar: tqdm, totals: Mapping[str, int], on_message: OnMessage) -> None:
        self._bar, self._tell = bar, on_message
        self._totals = dict(totals)
        self._done: dict[str, int] = {}

    def progress(self, name: str, done: int, total: int) -> None:
        self._totals[name], self._done[name] = total, done
        running = [key for key, count in self._done.items() if count < self._totals[key]]
        more = f" and {len(running) - _RUNNING_SHOWN} more" if len(running) > _RUNNING_SHOWN else ""
        self._bar.total = sum(self._totals.values())
        self._bar.set_postfix_str(", ".join(running[:_RUNNING_SHOWN]) + more, refresh=False)
        self._bar.update(sum(self._done.values()) - self._bar.n)

    def finish(self, names: Sequence[str]) -> None:
        """Count jobs as done; one that was done before told no progress."""
        for name in names:
            self.progress(name, self._totals[name], self._totals[name])

    def message(self, name: str, sentence: str) -> None:
        self._tell(f"{name}: {sentence}")


@contextmanager
def _bar(title: str, totals: Mapping[str, int], on_message: OnMessage) -> Iterator[_Bar]:
    with tqdm(
        total=sum(totals.values()), desc=title, unit=" steps", file=sys.stderr, mininterval=interval_s()
    ) as bar:  # fmt: skip
        yield _Bar(bar, totals, on_message)


def _pages(
    plan: Plan, runs: Mapping[str, Run], remarks: Mapping[str, str], figure: Plot | None, on_message: OnMessage
) -> Document:
    """Write the tables and the report, and return the tables."""
    places = _report(plan, runs, on_message)
    if figure is None:
        (plan.out / _PICTURE).unlink(missing_ok=True)
    links = ({"Every run in full": _REPORT} if places else {}) | {"The numbers as CSV": "tables.csv"}
    figures: Sequence[Plot] = [] if figure is None else [figure]
    links |= {"The codes as a picture": _PICTURE} if figures else {}
    document = make_document(plan, runs, remarks, figures, places, links)
    for name, text in (
        ("tables.md", tables.markdown(document)),
        ("tables.csv", tables.csv_text(document)),
        ("tables.html", tables.html(document)),
    ):
        write_atomically(plan.out / name, text.encode("utf-8"))
    return document


def _report(plan: Plan, runs: Mapping[str, Run], on_message: OnMessage) -> dict[str, str]:
    """Write the report, and return the address of each run in it; where there is none, remove an earlier one."""
    try:
        if runs:
            report.run([run.folder for run in runs.values()], plan.out / _REPORT, plan.paper.title, len(runs))
            return {key: f"{_REPORT}#run-{number}" for number, key in enumerate(runs, start=1)}
    except (FeatcacheError, OSError) as error:
        on_message(f"There is no report: {error}")
    (plan.out / _REPORT).unlink(missing_ok=True)
    return {}

"""Run what an ablation asks for, and write its results.

The folder holds, beside a run folder for each run and fusion, ``results.csv`` and ``results.parquet`` (see
:mod:`pipelines.ablate_results`), written anew after every job. While it works, ``.unfinished`` keeps what jobs of
several runs go on from after a kill, and a lock keeps a second ablation out.

Runs train as jobs, in processes side by side, each of which does one job after the other. A run that fails costs its
own numbers and those of the fusions that read it.
"""

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import yaml
from tqdm import tqdm

from featcache import claims
from featcache.errors import ConfigError, FeatcacheError
from featcache.files import canonical_json, listed, write_atomically
from heads.head import OnProgress
from heads.runs import read_config
from pipelines import ablate_results, fuse, jobs, train_heads
from pipelines.ablate_plan import Batch, Plan, write_down
from pipelines.ablate_spec import Fusion, Wanted
from pipelines.extract import interval_s
from pipelines.jobs import Job
from pipelines.run_folders import UNFINISHED
from pipelines.train_heads import Prepared

OnMessage = Callable[[str], None]

_LOCK = ".ablate"
_MESSAGES = 5


@dataclass(frozen=True)
class Ablated:
    """What an ablation left.

    Attributes:
        rows: of the results; see :mod:`pipelines.ablate_results`.
        failures: name to sentence, of runs and fusions that are not there.
    """

    rows: Sequence[ablate_results.Row]
    failures: Mapping[str, str]


def run(plan: Plan, on_message: OnMessage = lambda _: None) -> Ablated:
    """Run what is planned.

    Args:
        plan: what is to be done.
        on_message: called with a sentence for each thing worth knowing.

    Raises:
        ConfigError: another ablation is at work in the folder.
    """
    claim = claims.take(plan.out, _LOCK)
    if claim is None:
        raise ConfigError(
            f"Another featcache ablate is at work in {str(plan.out)!r}. Wait for it, or give another --out."
        )
    try:
        work = _Work(plan, on_message)
        work.train()
        work.fuse()
        return Ablated(work.rows(), work.failures)
    finally:
        claim.release()


class _Work:
    """The stages; each looks at what failed before it."""

    def __init__(self, plan: Plan, on_message: OnMessage) -> None:
        self._plan, self._tell = plan, on_message
        self._order = {name: number for number, name in enumerate(plan.ablation.labels)}
        self._found: dict[str, list[dict[str, object]]] = {}
        self.failures = dict(plan.refused)

    def train(self) -> None:
        """Train the runs."""
        plan = self._plan
        for name, folder in plan.moved.items():
            shutil.rmtree(plan.out / name, ignore_errors=True)  # what was begun there
            folder.rename(plan.out / name)
            self._tell(f"{folder.name} is called {name} from now on.")
        write_down(plan)
        self._say_once({message for name in plan.todo for message in plan.prepared[name].messages})
        self._add([run for run in plan.ablation.runs if run.name in plan.done])
        batches = {batch.name: batch for batch in plan.batches}
        todo = [Job(name, partial(_train, self._several(batch), batch.unfinished)) for name, batch in batches.items()]
        if todo:
            with _bar(batches, len(plan.done), len(self._plan.ablation.runs)) as bar:

                def on_end(name: str, failure: str | None) -> None:
                    bar.end(name, self._ended(batches[name], failure))

                jobs.run(todo, plan.at_once, bar.progress, self._told, on_end, keep=True)
        with suppress(OSError):  # what failed may go on
            (plan.out / UNFINISHED).rmdir()

    def fuse(self) -> None:
        """Fuse the runs that there are; a fusion of the same runs is not made again."""
        for fusion in self._plan.ablation.fusions:
            failed = [name for name in fusion.runs if name in self.failures]
            try:
                if failed:
                    raise ConfigError(f"{listed(failed)} failed.")
                _fuse(fusion, self._plan)
                self._add([fusion])
            except (FeatcacheError, OSError) as error:
                self.failures[fusion.name] = str(error)

    def rows(self) -> list[dict[str, object]]:
        """Return the rows of all that there is, in the order of the ablation."""
        return [row for name in sorted(self._found, key=self._order.__getitem__) for row in self._found[name]]

    def _several(self, batch: Batch) -> dict[Path, Prepared]:
        return {self._plan.out / name: self._plan.prepared[name] for name in batch.runs}

    def _ended(self, batch: Batch, failure: str | None) -> int:
        """Take in what a job left, and return how many runs there are more."""
        runs = {run.name: run for run in self._plan.ablation.runs}
        there = [name for name in batch.runs if failure is None or self._is_there(name)]
        self._add([runs[name] for name in there])
        if failure is not None:
            self._tell(f"{batch.name} failed: {failure}")
            self.failures |= {name: failure for name in batch.runs if name not in there}
        return len(set(there) - self._plan.done - set(self.failures))

    def _is_there(self, name: str) -> bool:
        """Return whether a run was written, whatever became of those that trained with it."""
        folder = self._plan.out / name
        if not (folder / "scores.csv").is_file():
            return False
        return (read_config(folder / "config.yaml") or {}).get("digest") == self._plan.prepared[name].digest

    def _add(self, several: Sequence[Wanted | Fusion]) -> None:
        """Add runs that are there to the results."""
        for one in several:
            try:
                self._found[one.name] = ablate_results.rows_of(self._plan.ablation, one, self._plan.out / one.name)
            except (FeatcacheError, OSError) as error:
                self.failures[one.name] = str(error)
        ablate_results.write(self.rows(), self._plan.out)

    def _told(self, name: str, sentence: str) -> None:
        self._tell(f"{name}: {sentence}")

    def _say_once(self, messages: set[str]) -> None:
        for message in sorted(messages)[:_MESSAGES]:
            self._tell(message)
        if len(messages) > _MESSAGES:
            self._tell(f"And {len(messages) - _MESSAGES} more of the kind; each run's log.txt has its own.")


def _train(several: Mapping[Path, Prepared], unfinished: Path, on_progress: OnProgress, on_message: OnMessage) -> None:
    """Train the runs of one job, in a child process."""
    train_heads.train(several, unfinished, on_progress)


def _fuse(fusion: Fusion, plan: Plan) -> None:
    """Fuse, unless the very same fusion is there; the plan has refused to replace what is no fusion."""
    digests = [plan.prepared[name].digest for name in fusion.runs]
    key = canonical_json([digests, fusion.weights, asdict(fusion.options)])
    digest = hashlib.sha256(key).hexdigest()[:16]
    if plan.recorded.get(fusion.name, {}).get("digest") == digest:
        return
    folders = [plan.out / name for name in fusion.runs]
    fused = fuse.run(folders, fusion.weights, plan.out / fusion.name, overwrite=True, **asdict(fusion.options))
    record = {**(fused.config or {}), "digest": digest}
    text = yaml.safe_dump(record, sort_keys=False, allow_unicode=True)
    write_atomically(plan.out / fusion.name / "config.yaml", text.encode("utf-8"))


class _Bar:
    """One bar for the steps of all jobs, with how many runs are there and what trains."""

    def __init__(self, bar: tqdm, batches: Mapping[str, Batch], done: int, runs: int) -> None:
        self._bar, self._batches, self._there, self._runs = bar, batches, done, runs
        self._steps = dict.fromkeys(batches, 0)
        self._show()

    def progress(self, name: str, done: int, total: int) -> None:
        self._steps[name] = self._batches[name].work * done // max(1, total)
        self._bar.update(sum(self._steps.values()) - self._bar.n)

    def end(self, name: str, there: int) -> None:
        """Count a job as ended, with how many runs it left; one that failed told no more progress."""
        self._there += there
        self.progress(name, 1, 1)
        self._show()

    def _show(self) -> None:
        self._bar.set_postfix_str(f"{self._there}/{self._runs} runs")


@contextmanager
def _bar(batches: Mapping[str, Batch], done: int, runs: int) -> Iterator[_Bar]:
    total = sum(batch.work for batch in batches.values())
    with tqdm(
        total=total, desc="ablation", unit=" steps", unit_scale=True, file=sys.stderr, mininterval=interval_s()
    ) as bar:  # fmt: skip
        yield _Bar(bar, batches, done, runs)

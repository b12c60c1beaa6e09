"""What an ablation takes: which runs are there already, which train together as one job, what cannot run and why.

A run is known by its digest, whatever its folder is called: one that was made under another name is taken over. Runs
that may train side by side (see :func:`heads.fit.side_by_side`) are one job, of at most 32 runs. Which runs share a job
is written down before the first of them trains, since it decides the last digits of their numbers: a job that a kill
cut off goes on with the same runs.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from featcache.errors import ConfigError, FeatcacheError
from featcache.extract import resolve_device
from featcache.files import canonical_json, write_json
from featcache.manifest import Manifest
from featcache.memory import available_bytes
from heads.head import GradientHead
from heads.order import num_steps
from heads.task import Task
from pipelines.ablate_spec import Ablation
from pipelines.run_folders import UNFINISHED, existing_run
from pipelines.train_heads import Prepared, Preparer

_MOST_TOGETHER = 32
_RUNS = "runs.json"
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML was built with it: ten times as fast
_ROW_BYTES, _CLASS_BYTES, _UTTERANCE_BYTES = 60, 20, 400  # about what scores.csv and manifest.jsonl take


@dataclass(frozen=True)
class Batch:
    """Runs that train as one job.

    Attributes:
        name: of the job: its first run's, and how many more there are.
        runs: their names.
        work: optimiser steps in all: runs x candidates x folds x steps.
        unfinished: the folder that keeps what is not finished.
    """

    name: str
    runs: tuple[str, ...]
    work: int
    unfinished: Path


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Attributes:
        ablation: the ablation.
        out: the folder of all that is written.
        prepared: name to training, of the runs that can run.
        refused: name to sentence, of those that cannot.
        done: names of the runs that are there.
        moved: name to the folder that holds the run under another name.
        batches: the jobs, the longest first.
        work: name to optimiser steps, of the runs that can run.
        recorded: folder name to how its run was made, of all runs that lie in the folder.
        at_once: jobs at a time.
        num_bytes: about what is written.
    """

    ablation: Ablation
    out: Path
    prepared: Mapping[str, Prepared]
    refused: Mapping[str, str]
    done: frozenset[str]
    moved: Mapping[str, Path]
    batches: Sequence[Batch]
    work: Mapping[str, int]
    recorded: Mapping[str, Mapping[str, Any]]
    at_once: int
    num_bytes: int

    @property
    def todo(self) -> list[str]:
        """Names of the runs that are to be trained, in the order of the ablation."""
        batched = {name for batch in self.batches for name in batch.runs} - self.done
        return [run.name for run in self.ablation.runs if run.name in batched]

    @property
    def strangers(self) -> list[str]:
        """Names of the runs in the folder that are not of this ablation."""
        return sorted(set(self.recorded) - set(self.ablation.labels) - {folder.name for folder in self.moved.values()})


def make_plan(
    ablation: Ablation, manifest: Manifest, cache: Path, out: Path, jobs: int | None = None, overwrite: bool = False
) -> Plan:
    """Return what an ablation takes; nothing is written.

    Args:
        ablation: the ablation.
        manifest: labelled utterances.
        cache: the cache's folder.
        out: the folder of all that is to be written.
        jobs: processes at a time; None is chosen by the machine.
        overwrite: replace other runs that lie in the folder.

    Raises:
        ConfigError: other runs or files lie where runs are to be written.
    """
    preparer, measure = Preparer(manifest, cache), _Measure()
    prepared: dict[str, Prepared] = {}
    refused: dict[str, str] = {}
    for run in ablation.runs:
        try:
            prepared[run.name] = preparer.prepare(run.config)
            measure.add(run.name, prepared[run.name])
        except FeatcacheError as error:
            refused[run.name] = str(error)
            prepared.pop(run.name, None)
    recorded = dict(_recorded(out))
    done = {name for name, one in prepared.items() if recorded.get(name, {}).get("digest") == one.digest}
    moved = _moved(ablation, prepared, recorded, done, out)
    done |= set(moved)
    _check_folders(ablation, [name for name in prepared if name not in done or name in moved], recorded, out, overwrite)
    batches = _batches(prepared, done, measure.work, out)
    todo = {name for batch in batches for name in batch.runs}
    at_once = _at_once(jobs, [prepared[name] for name in todo])
    num_bytes = sum(measure.num_bytes[name] for name in todo - done)
    return Plan(
        ablation, out, prepared, refused, frozenset(done), moved, batches, measure.work, recorded, at_once, num_bytes
    )  # fmt: skip


def write_down(plan: Plan) -> None:
    """Write down which runs share a job, and drop what is kept of jobs that nobody goes on with."""
    kept = plan.out / UNFINISHED
    wanted = {batch.unfinished for batch in plan.batches if len(batch.runs) > 1}
    for folder in kept.iterdir() if kept.is_dir() else ():
        if folder not in wanted:
            shutil.rmtree(folder, ignore_errors=True)
    for batch in plan.batches:
        if len(batch.runs) > 1:
            write_json(batch.unfinished / _RUNS, {name: plan.prepared[name].digest for name in batch.runs})


@dataclass
class _Measure:
    """What runs take; see :class:`Plan`."""

    work: dict[str, int] = field(default_factory=dict)
    num_bytes: dict[str, int] = field(default_factory=dict)
    _tasks: dict[int, Task] = field(default_factory=dict)
    _weights: dict[Any, int] = field(default_factory=dict)

    def add(self, name: str, prepared: Prepared) -> None:
        """Measure a run.

        Raises:
            FeatcacheError: its head cannot read what it is given.
        """
        if id(prepared.folds) not in self._tasks:
            self._tasks[id(prepared.folds)] = prepared.task()
        task = self._tasks[id(prepared.folds)]
        head, fit, folds = prepared.head, prepared.config.fit, prepared.folds
        rows = sum(len(fold.test) + len(fold.validation) for fold in folds)
        size = rows * (_ROW_BYTES + _CLASS_BYTES * len(task.classes)) + len(prepared.manifest) * _UTTERANCE_BYTES
        self.work[name] = len(folds)
        if isinstance(head, GradientHead):
            layers = head.layers(len(head.source(task).spec.layers))
            steps = sum(num_steps(fit, len(fold.train)) for fold in folds)
            self.work[name] = steps * len(layers) * len(fit.learning_rate) * len(fit.weight_decay)
            size += 4 * len(folds) * self._num_weights(head, task)
        self.num_bytes[name] = size

    def _num_weights(self, head: GradientHead, task: Task) -> int:
        shapes = head.shapes(task)
        what = (repr(head), tuple(shapes.items()))
        if what not in self._weights:
            try:
                with torch.device("meta"):
                    module = head.module(**shapes)
            except (RuntimeError, ValueError) as error:  # of torch, which is first to see some settings
                raise ConfigError(f"The head {head.kind()!r} cannot be made with these settings: {error}") from None
            self._weights[what] = sum(value.numel() for value in module.state_dict().values())
        return self._weights[what]


def _recorded(out: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the runs that lie in a folder, by the names of theirs, with how they were made; empty where unreadable."""
    for path in sorted(out.glob("*/scores.csv")):
        try:
            config = yaml.load((path.parent / "config.yaml").read_text(encoding="utf-8"), _LOADER)  # noqa: S506
        except (OSError, ValueError, yaml.YAMLError):
            config = None
        yield path.parent.name, config if isinstance(config, dict) else {}


def _moved(
    ablation: Ablation,
    prepared: Mapping[str, Prepared],
    recorded: Mapping[str, Mapping[str, Any]],
    done: set[str],
    out: Path,
) -> dict[str, Path]:
    """Return runs that are there under a name that is nobody's."""
    own = set(ablation.labels)
    free = {config.get("digest"): out / name for name, config in recorded.items() if name not in own}
    moved: dict[str, Path] = {}
    for name, one in prepared.items():
        if name not in done and name not in recorded and one.digest in free:
            moved[name] = free.pop(one.digest)
    return moved


def _check_folders(
    ablation: Ablation,
    todo: Sequence[str],
    recorded: Mapping[str, Mapping[str, Any]],
    out: Path,
    overwrite: bool,
) -> None:
    """Refuse folders that hold something else than what is to be written there."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{str(out)!r} is a file. Give --out a folder.")
    if overwrite:
        return
    fusions = [fusion.name for fusion in ablation.fusions]
    others = [name for name in todo if name in recorded]
    others += [name for name in fusions if name in recorded and recorded[name].get("head") != "fusion"]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise ConfigError(
            f"Other runs lie in {str(out)!r}: {', '.join(others[:3])}{more}. They are of other settings, features or "
            "utterances. Give another --out, or --overwrite to replace them."
        )
    for name in (*todo, *(name for name in fusions if name not in recorded)):
        existing_run(out / name, "", overwrite)  # refuses files that are not of a run


def _batches(prepared: Mapping[str, Prepared], done: set[str], work: Mapping[str, int], out: Path) -> list[Batch]:
    """Return the jobs: those that were begun as they were, then the other runs."""
    begun = list(_begun(prepared, done, out))
    taken = {name for names in begun for name in names} | done
    groups: dict[Any, list[str]] = {}
    for name, one in prepared.items():
        if name not in taken:
            groups.setdefault(one.together, []).append(name)
    for names in groups.values():
        stacked = isinstance(head := prepared[names[0]].head, GradientHead) and head.stacked
        parts = -(-len(names) // (_MOST_TOGETHER if stacked else 1))
        size = -(-len(names) // parts)
        begun += [sorted(names[start : start + size]) for start in range(0, len(names), size)]
    batches = [_batch(names, prepared, work, out) for names in begun]
    return sorted(batches, key=lambda batch: -batch.work)


def _batch(names: Sequence[str], prepared: Mapping[str, Prepared], work: Mapping[str, int], out: Path) -> Batch:
    first, *more = names
    digests = [prepared[name].digest for name in names]
    title = f"{first} and {len(more)} more" if more else first
    unfinished = out / first / UNFINISHED / digests[0]  # as train-heads has it
    if more:
        unfinished = out / UNFINISHED / hashlib.sha256(canonical_json(digests)).hexdigest()[:16]
    return Batch(title, tuple(names), sum(work[name] for name in names), unfinished)


def _begun(prepared: Mapping[str, Prepared], done: set[str], out: Path) -> Iterator[list[str]]:
    """Yield the runs of each job that was begun, is not done, and is still wanted as it was."""
    taken: set[str] = set()
    for path in sorted((out / UNFINISHED).glob(f"*/{_RUNS}")):
        try:
            runs = json.loads(path.read_text(encoding="utf-8"))
            wanted = all(prepared[name].digest == digest for name, digest in runs.items())
        except (OSError, ValueError, KeyError, AttributeError):
            continue
        if wanted and set(runs) - done and not set(runs) & taken:
            taken |= set(runs)
            yield list(runs)


def _at_once(jobs: int | None, todo: Sequence[Prepared]) -> int:
    """Return how many jobs run at a time: as asked, one on a GPU, or one a core, as far as memory goes."""
    if jobs is not None or not todo:
        return jobs or 1
    if resolve_device(todo[0].config.device).startswith("cuda"):
        return 1
    # Frames find their own share of the memory; stats are held whole, and joined once.
    needs = [
        16 * len(one.manifest) * len(stream.spec.layers) * stream.spec.dim
        for one in todo
        for stream in one.streams.values()
        if one.head.tier == "stats"
    ]
    fitting = available_bytes() // 2 // max([1, *needs])
    return max(1, min(len(os.sched_getaffinity(0)), fitting))

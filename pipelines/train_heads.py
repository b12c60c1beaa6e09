"""Train one head on every fold, and write a run folder.

The folder holds, beside ``scores.csv``, ``validation_scores.csv``, ``metrics.json`` and ``config.yaml``:

* ``folds.json``: the ids of each part of each fold;
* ``manifest.jsonl``: the utterances, as they were learnt: the column ``label`` is what was to be told apart;
* ``candidates.csv``: every setting tried in every fold, with its metric on validation and, for readers, on test;
* ``curves.csv``: loss and metric on validation, for each evaluation of the chosen candidate;
* ``layer_weights.csv``: what each layer contributes, where the head mixes layers;
* ``weights.safetensors``: the learned arrays, named ``FOLD/NAME``;
* ``learnt.json``: what had learnt before, where a fine-tuned encoder is read or a run's weights are begun with;
* ``log.txt``: what was run on, and what the protocol checks found.

While it trains, ``.unfinished`` keeps what a run that was killed goes on from; the same command takes it up.
"""

import resource
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from featcache.cache import CachedStream
from featcache.errors import ScoresError
from featcache.manifest import Manifest
from heads.fit import fit_each
from heads.fold_copies import originals
from heads.folds import FoldSet
from heads.head import GradientHead, OnProgress
from heads.runs import Run
from heads.task import Outcome, Task
from heads.unfinished import Unfinished
from pipelines.config import TrainConfig
from pipelines.prepare import Prepared, Preparer, covered, load_head, make_task, relabelled
from pipelines.provenance import is_random
from pipelines.run_folders import UNFINISHED, existing_run, plain, versions, write_training

__all__ = [
    "Prepared",
    "Preparer",
    "Trained",
    "covered",
    "load_head",
    "make_task",
    "relabelled",
    "run",
    "train",
]


@dataclass(frozen=True)
class Trained:
    """What a training left.

    Attributes:
        run: the run folder's contents.
        folds: the folds, with what the protocol checks found.
        dropped: ids left out because a stream lacks them.
        skipped: the folder held the very same run already, so nothing was trained.
    """

    run: Run
    folds: FoldSet
    dropped: Sequence[str]
    skipped: bool = False


def run(
    config: TrainConfig,
    manifest: Manifest,
    cache: str | Path,
    out: str | Path,
    overwrite: bool = False,
    on_progress: OnProgress = lambda *_: None,
    on_message: Callable[[str], None] = lambda _: None,
    meant: Mapping[str, str] = {},
) -> Trained:
    """Train as configured.

    Args:
        config: what to train.
        manifest: labelled utterances.
        cache: the cache's folder.
        out: the run folder.
        overwrite: replace another run that lies there.
        on_progress: called with what is done and what there is to do.
        on_message: called with a sentence for each thing worth knowing.
        meant: as :class:`Preparer` has it.

    Raises:
        ConfigError: settings that do not fit, or `out` holds another run.
        CacheError: the cache lacks utterances and `config.missing` is ``"error"``.
        ProtocolError: folds that would leak, or labels that are missing.
    """
    out = Path(out)
    prepared = Preparer(manifest, cache, meant).prepare(config)
    for message in prepared.messages:
        on_message(message)
    existing = existing_run(out, prepared.digest, overwrite)
    if existing is not None:
        shutil.rmtree(out / UNFINISHED, ignore_errors=True)  # of a kill after the last file was written
        return Trained(existing, prepared.folds, prepared.dropped, skipped=True)
    unfinished = out / UNFINISHED / prepared.digest
    if unfinished.exists():
        on_message("An earlier run of the same was not finished: going on where it stopped.")
    [written] = train({out: prepared}, unfinished, on_progress)
    return Trained(written, prepared.folds, prepared.dropped)


def train(several: Mapping[Path, Prepared], unfinished: Path, on_progress: OnProgress = lambda *_: None) -> list[Run]:
    """Train one training, or several that can train as one job, and write a run folder for each.

    Args:
        several: run folder to training; what another run left there is replaced.
        unfinished: the folder that keeps what is not finished; its name must follow from all that is trained. It is
            removed at the end, and what each run folder kept of its own.
        on_progress: called with what is done and what there is to do.

    Returns:
        The runs, in order. The seconds that each is recorded to have taken are its share of those of all.

    Raises:
        ScoresError: a training diverged; the others are written all the same.
    """
    trainings = list(several.values())
    _forget_peak()
    tasks = [replace(task, unfinished=Unfinished(unfinished)) for task in trainings[0].tasks()]
    task = replace(tasks[0], folds=tuple(trainings[0].folds))
    started = time.perf_counter()
    if len(trainings) == 1:
        outcomes = [_train_in_turn(trainings[0], tasks, on_progress)]
    else:
        pairs = [(one.head, one.config.fit) for one in trainings if isinstance(one.head, GradientHead)]
        outcomes = fit_each(pairs, task, on_progress)
    seconds = (time.perf_counter() - started) / len(trainings)
    written, failed = [], {}
    peak_mib = _peak_mib()
    for (out, one), of_one in zip(several.items(), outcomes, strict=True):
        try:
            record = _record(one, task, seconds, peak_mib, of_one)
            own = {name: _members(one, name) for name in one.families}
            written.append(write_training(out, task, of_one, record, one.manifest, own, one.learnt))
        except ScoresError as error:  # it diverged: the others did not
            failed[out.name] = error
    for folder in (unfinished, *(out / UNFINISHED for out in several)):
        shutil.rmtree(folder, ignore_errors=True)
    if failed:
        reasons = "; ".join(f"{name}: {error}" if len(several) > 1 else str(error) for name, error in failed.items())
        raise ScoresError(reasons)
    return written


def _train_in_turn(training: Prepared, tasks: Sequence[Task], on_progress: OnProgress) -> list[Outcome]:
    """Return the outcomes of tasks, one task after the other."""
    outcomes: list[Outcome] = []
    for number, task in enumerate(tasks):

        def advance(done: int, total: int, number: int = number) -> None:
            on_progress(number * total + done, len(tasks) * total)

        outcomes += training.head.train(task, training.config.fit, advance)
    return outcomes


def _members(training: Prepared, name: str) -> dict[str, CachedStream]:
    """Return the streams of a family that folds read, by fold."""
    return {fold.name: training.families[name].member(fold.name) for fold in training.folds}


def _forget_peak() -> None:
    """Let the system count this process's most memory anew; where it cannot, earlier trainings count too."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mib() -> int:
    """Return the most memory that this process took, in MiB, pages of mapped files included."""
    with suppress(OSError, ValueError, IndexError):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _record(
    prepared: Prepared, task: Task, seconds: float, peak_mib: int, outcomes: Sequence[Outcome]
) -> dict[str, Any]:
    """Return how a run was made, in plain values."""
    folds, families = prepared.folds, prepared.families
    members = {name: _members(prepared, name) for name in families}
    read = [*prepared.streams.values(), *(one for by_fold in members.values() for one in by_fold.values())]
    started_at_random = prepared.start is not None and prepared.start.random
    own = {name: {fold: one.name for fold, one in by_fold.items()} for name, by_fold in members.items()}
    num_copies = len(originals(prepared.manifest))
    parameters = next((one.num_parameters for one in outcomes if one.num_parameters is not None), None)
    return {
        **plain(asdict(prepared.config)),
        "digest": prepared.digest,
        "streams": {name: name if name in families else stream.name for name, stream in prepared.streams.items()},
        **({"fold_streams": own} if own else {}),
        "classes": list(task.classes),
        "num_utterances": len(task.ids) - num_copies,
        **({"num_copies": num_copies} if num_copies else {}),
        "dropped": len(prepared.dropped),
        "speaker_independent": folds.speaker_independent,
        "random_weights": is_random(read, prepared.head) or started_at_random,
        **({} if parameters is None else {"parameters": parameters}),
        "synthetic": any(utterance.extra.get("synthetic") for utterance in prepared.manifest),
        "problems": [str(problem) for problem in folds.problems],
        "allowed_leaks": [str(problem) for problem in folds.leaks],
        "seconds": round(seconds, 3),
        "peak_mib": peak_mib,
        "versions": versions(),
    }

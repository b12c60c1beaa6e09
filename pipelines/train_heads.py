"""Train one head on every fold, and write a run folder.

The folder holds, beside ``scores.csv``, ``validation_scores.csv``, ``metrics.json`` and ``config.yaml``:

* ``folds.json``: the ids of each part of each fold;
* ``candidates.csv``: every setting tried in every fold, with its metric on validation and, for readers, on test;
* ``curves.csv``: loss and metric on validation, for each evaluation of the chosen candidate;
* ``layer_weights.csv``: what each layer contributes, where the head mixes layers;
* ``weights.safetensors``: the learned arrays, named ``FOLD/NAME``;
* ``log.txt``: what was run on, and what the protocol checks found.

While it trains, ``.unfinished`` keeps what a run that was killed goes on from; the same command takes it up.
"""

import csv
import io
import json
import math
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from featcache import __version__, registry
from featcache.cache import Cache, CachedStream
from featcache.cache import open as open_cache
from featcache.errors import CacheError, ConfigError, ProtocolError
from featcache.extract import resolve_device
from featcache.files import write_atomically
from featcache.manifest import Manifest, Utterance
from featcache.settings import build
from heads.fold_files import save_folds
from heads.folds import Fold, FoldSet, make_folds
from heads.head import Head, OnProgress, Outcome, Task
from heads.runs import Run, write_run
from heads.scores import Scores
from heads.unfinished import Unfinished
from pipelines.config import TrainConfig

TRAINING_FILES = (
    "folds.json", "candidates.csv", "curves.csv", "layer_weights.csv", "weights.safetensors", "log.txt",
)  # fmt: skip
"""What a training leaves in a run folder beside the scores."""

FUSION_FILES = ("fusion_weights.csv", "fusion_curve.csv", "fusion_coefficients.csv")
"""What a fusion leaves there instead."""

_UNFINISHED = ".unfinished"

_FILES = {
    "scores.csv", "validation_scores.csv", "metrics.json", "config.yaml", *TRAINING_FILES, *FUSION_FILES, _UNFINISHED,
}  # fmt: skip


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

    Raises:
        ConfigError: settings that do not fit, or `out` holds another run.
        CacheError: the cache lacks utterances and `config.missing` is ``"error"``.
        ProtocolError: folds that would leak, or labels that are missing.
    """
    out = Path(out)
    head = load_head(config)
    if not config.streams:
        raise ConfigError("Say which stream to train on, with --stream NAME.")
    opened = open_cache(cache)
    streams = {name: opened[name] for name in config.streams}
    relabelled = [_relabelled(utterance, config.label) for utterance in manifest]
    unlabelled = [utterance for utterance in relabelled if config.drop_unlabelled and not utterance.label]
    wanted = [utterance for utterance in relabelled if utterance.label or not config.drop_unlabelled]
    kept, dropped = _covered(wanted, streams, config, opened)
    if dropped:
        on_message(f"{len(dropped)} utterances are left out: a stream lacks them ({dropped[0]!r} and so on).")
    folds = make_folds(
        [*kept, *unlabelled], config.folds, validation=config.validation, validation_by=config.validation_by,
        seed=config.fit.seed, allow=config.allow, drop_unlabelled=config.drop_unlabelled,
    )  # fmt: skip
    if folds.num_unlabelled:
        on_message(f"{folds.num_unlabelled} utterances are left out: they have no {config.label}.")
    for problem in folds.problems:
        on_message(str(problem))
    used = {name for fold in folds for ids in fold.parts.values() for name in ids}
    kept = [utterance for utterance in kept if utterance.id in used]
    digest = config.digest(
        [stream.name for stream in streams.values()],
        [_facts(utterance, streams.values()) for utterance in kept],
        [_membership(fold) for fold in folds],
    )
    existing = _existing(out, digest, overwrite)
    if existing is not None:
        return Trained(existing, folds, dropped, skipped=True)
    unfinished = Unfinished(out / _UNFINISHED / digest)
    if unfinished.folder.exists():
        on_message("An earlier run of the same was not finished: going on where it stopped.")
    task = replace(make_task(kept, folds, streams, resolve_device(config.device)), unfinished=unfinished)
    started = time.perf_counter()
    outcomes = head.train(task, config.fit, on_progress)
    seconds = time.perf_counter() - started
    record = {
        **_plain(asdict(config)),
        "digest": digest,
        "streams": {name: stream.name for name, stream in streams.items()},
        "classes": list(task.classes),
        "num_utterances": len(task.ids),
        "dropped": len(dropped),
        "speaker_independent": folds.speaker_independent,
        "synthetic": any(utterance.extra.get("synthetic") for utterance in kept),
        "problems": [str(problem) for problem in folds.problems],
        "allowed_leaks": [str(problem) for problem in folds.leaks],
        "seconds": round(seconds, 3),
        "versions": _versions(),
    }
    trained = Trained(_write(out, task, outcomes, record), folds, dropped)
    shutil.rmtree(out / _UNFINISHED, ignore_errors=True)
    return trained


def load_head(config: TrainConfig) -> Head:
    """Return the head of a configuration.

    Raises:
        UnknownNameError: no such head.
        ConfigError: settings that it does not have.
    """
    cls = registry.load("heads.models", config.head, Head)
    return build(cls, config.settings, f"head {config.head}")


def make_task(utterances: Sequence[Utterance], folds: FoldSet, streams: dict[str, CachedStream], device: str) -> Task:
    """Return the task of learning the utterances' labels; classes are in alphabetical order."""
    ordered = sorted(utterances, key=lambda utterance: utterance.id)
    classes = tuple(sorted({str(utterance.label) for utterance in ordered}))
    if len(classes) < 2:
        raise ProtocolError(f"All utterances are labelled {classes[0]!r}: there is nothing to tell apart.")
    labels = np.array([classes.index(str(utterance.label)) for utterance in ordered], np.int64)
    ids, speakers = [utterance.id for utterance in ordered], [utterance.speaker for utterance in ordered]
    return Task(streams, ids, labels, classes, tuple(folds), device, speakers)


def _relabelled(utterance: Utterance, column: str) -> Utterance:
    if column == "label":
        return utterance
    value = utterance.column(column)
    if isinstance(value, Mapping | list):
        raise ConfigError(
            f"--label {column}: {utterance.id!r} has {value!r} there. Name a column of texts, numbers or flags."
        )
    missing = value is None or value == "" or (isinstance(value, float) and math.isnan(value))
    return replace(utterance, label=None if missing else str(value))


def _covered(
    utterances: Sequence[Utterance], streams: dict[str, CachedStream], config: TrainConfig, cache: Cache
) -> tuple[list[Utterance], list[str]]:
    """Return the utterances that every stream holds, and the ids of the others."""
    lacking = {
        utterance.id: name for utterance in utterances for name, stream in streams.items() if utterance.id not in stream
    }
    if lacking and config.missing == "error":
        first, name = next(iter(lacking.items()))
        reason = streams[name].failures.get(first, "never extracted")
        raise CacheError(
            f"{streams[name].name} lacks {len(lacking)} of {len(utterances)} utterances, such as {first!r} ({reason}). "
            f"See 'featcache coverage {cache.path} MANIFEST'; extract them, or leave them out with --missing drop."
        )
    kept = [utterance for utterance in utterances if utterance.id not in lacking]
    if utterances and not kept:
        raise CacheError(f"{', '.join(stream.name for stream in streams.values())} holds none of the utterances.")
    return kept, list(lacking)


def _facts(utterance: Utterance, streams: Iterable[CachedStream]) -> list[Any]:
    """Return what a run takes from an utterance: what is known of it, and what each stream read and stored."""
    entries = [stream.locate(utterance.id).entry for stream in streams]
    stored = [[entry.input, entry.checksum] for entry in entries]
    return [utterance.id, utterance.label, utterance.speaker, utterance.session, stored]


def _membership(fold: Fold) -> list[Any]:
    return [fold.name, *([part, list(ids)] for part, ids in fold.parts.items())]


def check_folder(out: Path) -> None:
    """Refuse a run folder that is a file or would lie below one.

    Raises:
        ConfigError: it is.
    """
    nearest = next(path for path in (out, *out.parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{str(nearest)!r} is a file. Give --out a folder.")


def _existing(out: Path, digest: str, overwrite: bool) -> Run | None:
    """Return the run in `out` if it is the very one wanted.

    Raises:
        ConfigError: another run, or other files, lie there, or it is no folder.
    """
    from heads.runs import read_run

    check_folder(out)
    if overwrite or not out.exists():
        return None
    if (out / "scores.csv").exists():
        found = read_run(out)
        if (found.config or {}).get("digest") == digest:
            return found
        raise ConfigError(f"{str(out)!r} holds another run. Give another --out, or --overwrite to replace it.")
    strange = sorted(path.name for path in out.iterdir() if path.name not in _FILES)
    if strange:
        raise ConfigError(f"{str(out)!r} holds files that are not of a run ({strange[0]!r}). Give --out a new folder.")
    return None


def _write(out: Path, task: Task, outcomes: Sequence[Outcome], record: dict[str, Any]) -> Run:
    from safetensors.numpy import save

    out.mkdir(parents=True, exist_ok=True)
    for name in ("scores.csv", *FUSION_FILES):  # also of a fusion that lay there
        (out / name).unlink(missing_ok=True)
    save_folds(task.folds, out / "folds.json")
    _write_csv(
        out / "candidates.csv",
        [
            {
                "fold": outcome.fold,
                **candidate.settings,
                **(
                    {"layer_name": outcome.layer_names[candidate.settings["layer"]]}
                    if "layer" in candidate.settings
                    else {}
                ),
                "validation": candidate.validation,
                "test": candidate.test,
                "chosen": all(outcome.chosen.get(key) == value for key, value in candidate.settings.items()),
            }
            for outcome in outcomes
            for candidate in outcome.candidates
        ],
    )
    _write_csv(out / "curves.csv", [{"fold": one.fold, **point} for one in outcomes for point in one.curve])
    _write_csv(
        out / "layer_weights.csv",
        [
            {"fold": one.fold, "layer": index, "layer_name": one.layer_names[index], "weight": weight}
            for one in outcomes
            if one.layer_weights is not None
            for index, weight in enumerate(one.layer_weights.tolist())
        ],
    )
    weights = {f"{one.fold}/{name}": values for one in outcomes for name, values in one.weights.items()}
    if weights:
        write_atomically(out / "weights.safetensors", save(weights))
    else:
        (out / "weights.safetensors").unlink(missing_ok=True)
    record["chosen"] = {outcome.fold: _plain(dict(outcome.chosen)) for outcome in outcomes}
    log = yaml.safe_dump({key: record[key] for key in ("versions", "seconds", "problems", "chosen")}, sort_keys=False)
    write_atomically(out / "log.txt", log.encode())
    scores = _scores(task, outcomes, "test")
    if scores is None:
        raise ProtocolError("No fold has a test part, so there is nothing to score.")
    return write_run(out, scores, _scores(task, outcomes, "validation"), record)


def _scores(task: Task, outcomes: Sequence[Outcome], part: str) -> Scores | None:
    folds = {fold.name: fold for fold in task.folds}
    rows = [
        (name, outcome.fold, task.classes[task.labels[task.positions([name])[0]]], probabilities)
        for outcome in outcomes
        for name, probabilities in zip(getattr(folds[outcome.fold], part), getattr(outcome, part), strict=True)
    ]
    if not rows:
        return None
    ids, names, labels, values = zip(*rows, strict=True)
    return Scores(ids, names, labels, task.classes, np.stack(values))


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of the same columns; no file for no rows."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def _plain(value: Any) -> Any:
    """Return a value as YAML can hold it."""
    return json.loads(json.dumps(value))


def _versions() -> dict[str, str]:
    import sklearn
    import torch

    return {
        "featcache": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
    }

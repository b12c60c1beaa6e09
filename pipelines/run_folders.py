"""What every kind of training leaves in a run folder, and how a run that lies there is recognised.

A run folder needs nothing else to score other utterances (:mod:`pipelines.restore`): beside weights and configuration
it holds what decides the numbers of each stream read, and what else scores depend on.
"""

import csv
import io
import json
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save

from featcache import __version__, registry
from featcache.cache import CachedStream
from featcache.errors import ConfigError, ProtocolError
from featcache.files import write_atomically, write_json
from featcache.manifest import Manifest, Utterance
from featcache.settings import build
from heads.fold_files import save_folds
from heads.folds import Fold
from heads.head import Head
from heads.learnt import Source
from heads.metrics import evaluate
from heads.runs import UNFINISHED, Run, read_run, write_run
from heads.scores import Scores
from heads.task import Outcome, Task
from pipelines.model_card import NAME as CARD
from pipelines.model_card import card
from pipelines.provenance import LEARNT, write_learnt

STREAMS = "streams.json"
"""The whole spec of each stream read, by the name that the run gave it."""

INPUTS = "inputs.json"
"""The digest of each utterance's input, for each stream read: by it an utterance is known again."""

CONTEXT = "context.safetensors"
"""What scores depend on beside weights and the utterance itself; see :meth:`heads.head.Head.context`."""

TENSORBOARD = "tensorboard"
FUSED = "fused"
"""Folder of the runs that a fused run is made of, where it brings them along."""

ENCODERS = "encoders"
"""Folder of the checkpoints that ``featcache finetune`` makes, one a fold."""

TRAINING_FILES = (
    "folds.json", "candidates.csv", "curves.csv", "layer_weights.csv", "weights.safetensors", "log.txt",
    "manifest.jsonl", STREAMS, INPUTS, CONTEXT, LEARNT, CARD,
)  # fmt: skip
"""What a training leaves in a run folder beside the scores."""

FUSION_FILES = ("fusion_weights.csv", "fusion_curve.csv", "fusion_coefficients.csv")
"""What a fusion leaves there instead."""

_FILES = {
    "scores.csv", "validation_scores.csv", "metrics.json", "config.yaml", *TRAINING_FILES, *FUSION_FILES, UNFINISHED,
    TENSORBOARD, FUSED, ENCODERS,
}  # fmt: skip

_BEGUN = {UNFINISHED, "folds.json", "metrics.json", "config.yaml", *FUSION_FILES}
"""What a run that was not finished has at least one of."""


def facts(utterance: Utterance, streams: Iterable[CachedStream]) -> list[Any]:
    """Return what a run takes from an utterance: what is known of it, and what each stream read and stored."""
    entries = [stream.locate(utterance.id).entry for stream in streams]
    stored = [[entry.input, entry.checksum] for entry in entries]
    return [utterance.id, utterance.label, utterance.speaker, utterance.session, stored]


def membership(fold: Fold) -> list[Any]:
    """Return a fold as plain values: its name, and the ids of each part."""
    return [fold.name, *([part, list(ids)] for part, ids in fold.parts.items())]


def check_folder(out: Path) -> None:
    """Refuse a run folder that is a file or would lie below one.

    Raises:
        ConfigError: it is.
    """
    nearest = next(path for path in (out, *out.parents) if path.exists())
    if not nearest.is_dir():
        raise ConfigError(f"{str(nearest)!r} is a file. Give --out a folder.")


def existing_run(out: Path, digest: str, overwrite: bool) -> Run | None:
    """Return the run in `out` if it is the very one wanted.

    Raises:
        ConfigError: another run, or other files, lie there, or it is no folder.
    """
    check_folder(out)
    if overwrite or not out.exists():
        return None
    if (out / "scores.csv").exists():
        found = read_run(out)
        if (found.config or {}).get("digest") == digest:
            return found
        raise ConfigError(f"{str(out)!r} holds another run. Give another --out, or --overwrite to replace it.")
    check_unfinished(out)
    return None


def check_unfinished(out: Path) -> None:
    """Refuse a folder without scores that holds anything but what a run leaves that was not finished.

    Raises:
        ConfigError: it does.
    """
    # A kill in the middle of a write leaves the temporary file that it was made under.
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith(".tmp-")) if out.is_dir() else []
    strange = [name for name in names if name not in _FILES]
    if not strange and not _BEGUN.intersection(names):
        strange = names  # a user's own README.md, say
    if strange:
        raise ConfigError(f"{str(out)!r} holds files that are not of a run ({strange[0]!r}). Give --out a new folder.")


def write_training(
    out: Path,
    task: Task,
    outcomes: Sequence[Outcome],
    record: dict[str, Any],
    manifest: Manifest | None = None,
    fold_streams: Mapping[str, Mapping[str, CachedStream]] = {},
    learnt: Mapping[str, Sequence[Source]] = {},
) -> Run:
    """Write all files of a training.

    Args:
        out: the run folder; what another run left there is replaced.
        task: what was learnt.
        outcomes: one for each fold.
        record: how it was made, in plain values; what each fold chose is added.
        manifest: the utterances of all folds, for readers of the scores: speakers, texts, recordings.
        fold_streams: of the task's streams, those of which each fold read its own: name to fold to stream.
        learnt: fold to what had learnt before it was trained.

    Raises:
        ProtocolError: no fold has a test part.
    """
    out.mkdir(parents=True, exist_ok=True)
    for name in ("scores.csv", *FUSION_FILES):  # also of a fusion that lay there
        (out / name).unlink(missing_ok=True)
    for name in (TENSORBOARD, FUSED, ENCODERS):
        shutil.rmtree(out / name, ignore_errors=True)
    for left in out.glob(".tmp-*"):
        left.unlink(missing_ok=True)
    save_folds(task.folds, out / "folds.json")
    if manifest is None:
        (out / "manifest.jsonl").unlink(missing_ok=True)
    else:
        manifest.write(out / "manifest.jsonl")
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
    _write_scoring(out, task, record, fold_streams)
    record |= write_learnt(out, learnt)
    record["chosen"] = {outcome.fold: plain(dict(outcome.chosen)) for outcome in outcomes}
    log = yaml.safe_dump({key: record[key] for key in ("versions", "seconds", "problems", "chosen")}, sort_keys=False)
    write_atomically(out / "log.txt", log.encode())
    scores = _scores(task, outcomes, "test")
    if scores is None:
        raise ProtocolError("No fold has a test part, so there is nothing to score.")
    specs = {name: stream.spec for name, stream in task.streams.items()}
    write_atomically(out / CARD, card(record, evaluate(scores), specs, task.folds, manifest).encode())
    return write_run(out, scores, _scores(task, outcomes, "validation"), record)


def _write_scoring(
    out: Path, task: Task, record: Mapping[str, Any], fold_streams: Mapping[str, Mapping[str, CachedStream]]
) -> None:
    """Write what the head needs, beside its weights, to score other utterances; nothing for what is none's own."""
    for name in (STREAMS, INPUTS, CONTEXT):
        (out / name).unlink(missing_ok=True)
    if not task.streams:  # of a probe, whose folds read codes of their own
        return
    told: dict[str, Any] = {
        "format": 1,
        "streams": {name: _whole(stream) for name, stream in task.streams.items() if name not in fold_streams},
    }
    if fold_streams:
        of_folds = fold_streams.items()
        by_fold = {name: {fold: _whole(one) for fold, one in each.items()} for name, each in of_folds}
        told |= {"format": 2, "fold_streams": by_fold}
    write_json(out / STREAMS, told)
    inputs = {
        name: {kind: stream.locate(name).entry.input for kind, stream in task.streams.items()} for name in task.ids
    }
    write_json(out / INPUTS, inputs)
    context = load_head(record["head"], record["settings"]).context(task)
    if context:
        write_atomically(out / CONTEXT, save(context))


def _whole(stream: CachedStream) -> dict[str, Any]:
    """Return a stream's whole spec, as plain values."""
    return {**stream.spec.identity(), "notes": stream.spec.notes}


def load_head(name: str, settings: Mapping[str, Any]) -> Head:
    """Return a head by its name, with settings.

    Raises:
        UnknownNameError: no such head.
        ConfigError: settings that it does not have.
    """
    return build(registry.load("heads.models", name, Head), settings, f"head {name}")


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


def plain(value: Any) -> Any:
    """Return a value as YAML can hold it."""
    return json.loads(json.dumps(value))


def versions() -> dict[str, str]:
    """Return the releases of what computed a run, for readers."""
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

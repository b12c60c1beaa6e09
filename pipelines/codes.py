"""Export the codes of a trained head into the cache, one stream a fold, for probes and pictures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from featcache.cache import open as open_cache
from featcache.errors import ConfigError, ScoresError
from featcache.extract import resolve_device
from featcache.manifest import Manifest
from heads.codes import export_codes
from heads.fold_copies import completed, originals
from heads.fold_files import read_folds
from heads.head import GradientHead, OnProgress
from heads.protocol import Fold
from heads.runs import read_run
from heads.task import Task
from pipelines.config import recorded_config
from pipelines.restore import read_weights
from pipelines.train_heads import load_head


def run(
    run_folder: Path,
    manifest: Manifest,
    cache: Path,
    dtype: str = "float32",
    device: str = "auto",
    on_progress: OnProgress = lambda *_: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> dict[str, str]:
    """Export the codes of every utterance that a run trained, validated or tested on; what is there is kept.

    Args:
        run_folder: a run of a head that has codes, such as ``encoder_decoder``.
        manifest: the utterances, for their speakers.
        cache: the cache that it was trained from.
        dtype: type the codes are stored in.
        device: where the head runs.
        on_progress: called with utterances done and all, each fold counted.
        on_message: called with a sentence for each thing worth knowing.

    Returns:
        Fold to the full name of its stream, in the order of the run.

    Raises:
        ScoresError: the folder is not a run, or its weights are missing or damaged.
        ConfigError: its head has no codes, or the manifest is another one.
        CacheError: the cache lacks a stream that the run read.
    """
    record = read_run(run_folder).config or {}
    config = recorded_config(record)
    head = load_head(config)
    if not isinstance(head, GradientHead):
        raise ConfigError(
            f"The head {config.head!r} of {str(run_folder)!r} has no codes. One that has: encoder_decoder."
        )
    if record.get("fold_streams"):
        raise ConfigError(
            f"Codes of {str(run_folder)!r} cannot be exported: each of its folds reads the encoder of its own "
            f"({', '.join(record['fold_streams'])}), and codes are made of one stream for all folds. Name a run that "
            "reads no fine-tuned encoders."
        )
    weights = read_weights(run_folder)
    task = _task(run_folder, manifest, cache, record, resolve_device(device))
    missing = [fold.name for fold in task.folds if fold.name not in weights]
    if missing:
        raise ScoresError(f"{str(run_folder / 'weights.safetensors')!r} has no weights of the fold {missing[0]!r}.")
    total, done = len(task.ids) * len(task.folds), 0
    names: dict[str, str] = {}

    def advance(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total)

    for fold in task.folds:
        names[fold.name] = export_codes(head, task, fold.name, weights[fold.name], cache, dtype=dtype, on_done=advance)
        on_message(f"fold {fold.name}: {names[fold.name]}")
    return names


def _task(run_folder: Path, manifest: Manifest, cache: Path, record: Mapping[str, Any], device: str) -> Task:
    """Return what a run was trained on; labels, which codes do not read, are left out."""
    folds = read_folds(run_folder / "folds.json")
    opened = open_cache(cache)
    streams = {name: opened[full] for name, full in record["streams"].items()}
    ids = _ids(folds)
    known = set(manifest.ids)
    lacking = [name for name in ids if name not in known]
    if lacking:
        raise ConfigError(
            f"The manifest lacks {len(lacking)} of the run's {len(ids)} utterances, such as {lacking[0]!r}. Give the "
            f"manifest that {str(run_folder)!r} was trained with."
        )
    speakers = {utterance.id: utterance.speaker for utterance in completed(list(manifest))}
    copies = frozenset(originals(manifest))
    classes = tuple(str(name) for name in record["classes"]) if isinstance(record.get("classes"), list) else ()
    labels = np.zeros(len(ids), np.int64)
    return Task(streams, ids, labels, classes, folds, device, [speakers[name] for name in ids], copies)


def _ids(folds: list[Fold]) -> list[str]:
    return sorted({name for fold in folds for part in fold.parts.values() for name in part})

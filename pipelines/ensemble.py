"""Several trained runs together: which runs, by which weights, and their probabilities fused.

A fused run is predicted by the weights it was fused by, from the runs that it is made of. Models are fused fold by fold
where weights are by fold, or where logarithms are averaged; the mean over folds comes last.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.errors import ConfigError, ScoresError
from featcache.files import listed
from heads.fusion import Space, fuse
from heads.fusion_values import shares_of
from heads.runs import read_config
from heads.scores import Scores
from pipelines.restore import Restored, restore

Weights = list[float] | dict[str, list[float]]
Rows = dict[str, tuple[list[int], np.ndarray]]
"""Fold to positions of utterances, and their class probabilities ``(utterances, classes)``."""

_LEARNED = {"stack": "stacking", "joint": "joint linear layers"}


@dataclass(frozen=True)
class Ensemble:
    """Runs whose probabilities are fused.

    Attributes:
        runs: them; one alone is an ensemble too.
        weights: one for each run; or fold to such.
        space: see :mod:`heads.fusion`.
    """

    runs: Sequence[Restored]
    weights: Weights
    space: Space = "prob"


def gather(folders: Sequence[Path], weights: str | None) -> Ensemble:
    """Read runs and how they are fused.

    Raises:
        ScoresError: a folder is not a trained run.
        ConfigError: runs of other classes, weights that do not fit, or a fusion that weights do not give.
    """
    records = [read_config(folder / "config.yaml") or {} if folder.is_dir() else {} for folder in folders]
    fused = [number for number, record in enumerate(records) if record.get("fused")]
    if fused and (len(folders) > 1 or weights is not None):
        raise ConfigError(
            f"{str(folders[fused[0]])!r} is a fusion, with weights of its own. Give it alone, or name the runs that it "
            "is made of."
        )
    if fused:
        return _fusion(folders[0], records[0])
    runs = [restore(folder) for folder in folders]
    return Ensemble(_same_classes(runs), _numbers(weights, len(runs)))


def _fusion(folder: Path, record: Mapping[str, Any]) -> Ensemble:
    if record.get("standardise") or record.get("weights") in ("stack", "joint"):
        what = "standardised scores" if record.get("standardise") else _LEARNED[str(record["weights"])]
        raise ConfigError(
            f"{str(folder)!r} is a fusion by {what}, which predict does not do for new utterances. Name the runs that "
            "it is made of, with --with and --weights."
        )
    given, space = record.get("weights"), record.get("space", "prob")
    if not isinstance(given, list | dict) or space not in ("prob", "log"):
        raise ScoresError(f"{str(folder / 'config.yaml')!r} does not say by which weights the runs were fused.")
    runs = _same_classes([restore(one) for one in fused_folders(folder, record)])
    for weights in given.values() if isinstance(given, dict) else [given]:
        shares_of(weights, len(runs))
    return Ensemble(runs, {str(name): w for name, w in given.items()} if isinstance(given, dict) else given, space)


def _same_classes(runs: list[Restored]) -> list[Restored]:
    for one in runs[1:]:
        if set(one.classes) != set(runs[0].classes):
            raise ConfigError(
                f"Runs of other classes cannot be fused: {runs[0].name!r} has {listed(runs[0].classes)}, {one.name!r} "
                f"{listed(one.classes)}."
            )
    return runs


def _numbers(weights: str | None, count: int) -> list[float]:
    try:
        numbers = [1.0] * count if weights is None else [float(text) for text in weights.split(",")]
    except ValueError:
        raise ConfigError(f"--weights takes numbers separated by commas, such as 0.6,1.0; got {weights!r}.") from None
    shares_of(numbers, count)
    return numbers


def fused_folders(folder: Path, record: Mapping[str, Any]) -> list[Path]:
    """Return the folders of the runs that a fused run is made of: those that it brings, or those beside it.

    Args:
        folder: the fused run.
        record: its configuration.

    Raises:
        ScoresError: one is not there.
    """
    names = [str(name) for name in record["fused"]]
    paths = record.get("fused_from") or names
    digests = record.get("fused_digests") or [None] * len(names)
    found = []
    for number, name in enumerate(names):
        places = [folder / "fused" / f"{number}", Path(os.path.normpath(folder.resolve().parent / str(paths[number])))]
        place = next((path for path in places if (path / "config.yaml").is_file()), None)
        if place is None:
            raise ScoresError(
                f"{str(folder)!r} is a fusion of {', '.join(names)}, and {name!r} is not beside it. Put the runs into "
                "one folder, or name them: featcache predict RUN FILE --with RUN2 --weights 0.6,1.0."
            )
        of_run = read_config(place / "config.yaml") or {}
        if of_run.get("fused"):
            raise ConfigError(
                f"{str(folder)!r} is a fusion of a fusion, {name!r}, which predict does not do. Name the trained runs, "
                "with --with and --weights."
            )
        digest = of_run.get("digest")
        if digests[number] not in (None, digest):
            raise ScoresError(
                f"{str(place)!r} is not the run that {str(folder)!r} was fused from: it was trained again since. Fuse "
                "the runs again."
            )
        found.append(place)
    return found


def fused(ensemble: Ensemble, tables: Sequence[Rows], ids: Sequence[str], done: Sequence[str]) -> np.ndarray:
    """Return the probabilities of utterances, fused over the runs and averaged over the folds, ``(done, classes)``.

    Args:
        ensemble: the runs.
        tables: what the models of each gave.
        ids: utterances that positions in the tables count.
        done: those that every run scored, in the order of `ids`.

    Raises:
        ConfigError: runs of other folds, where these have weights of their own.
    """
    wanted = set(done)
    if ensemble.space == "prob" and isinstance(ensemble.weights, list):
        # A weighted mean of means over folds: the runs need not have the same folds.
        tables = [{"": _mean(rows, len(ids), len(ensemble.runs[0].classes))} for rows in tables]
    elif any(set(rows) != set(tables[0]) for rows in tables):
        raise ConfigError("The fused runs have other folds, and their weights are by fold. Name the runs with --with.")
    together: Rows = {}
    names = [one.name for one in ensemble.runs]
    for fold in tables[0]:
        common = set.intersection(*(set(rows[fold][0]) for rows in tables))
        kept = sorted(at for at in common if ids[at] in wanted)
        if not kept:
            continue
        weights = ensemble.weights if isinstance(ensemble.weights, list) else ensemble.weights.get(fold)
        if weights is None:
            raise ScoresError(f"The fused run has no weights for the fold {fold!r}. Fuse it again.")
        scores = [_table(rows[fold], kept, ids, one.classes) for rows, one in zip(tables, ensemble.runs, strict=True)]
        together[fold] = kept, fuse(scores, weights, space=ensemble.space, names=names).probabilities
    positions, values = _mean(together, len(ids), len(ensemble.runs[0].classes))
    if len(positions) < len(done):
        raise ConfigError(f"{names[0]!r} and the others tested utterances in other folds. Leave --fold own out.")
    return values


def _mean(rows: Rows, num_ids: int, num_classes: int) -> tuple[list[int], np.ndarray]:
    """Return positions of the utterances that a model scored, and the mean of what the models gave."""
    total, count = np.zeros((num_ids, num_classes)), np.zeros(num_ids)
    for positions, values in rows.values():
        total[positions] += values
        count[positions] += 1
    scored = np.flatnonzero(count)
    return scored.tolist(), total[scored] / count[scored, None]


def _table(
    rows: tuple[list[int], np.ndarray], kept: Sequence[int], ids: Sequence[str], classes: tuple[str, ...]
) -> Scores:
    """Return rows as a score table, which fusion reads; its labels have no part."""
    where = {at: number for number, at in enumerate(rows[0])}
    names = tuple(ids[at] for at in kept)
    return Scores(names, ("",) * len(names), (classes[0],) * len(names), classes, rows[1][[where[at] for at in kept]])

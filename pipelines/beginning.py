"""What a training begins with and aims at beside the manifest's labels: another run's weights, annotators' votes."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache.checkpoints import file_sha256
from featcache.errors import ConfigError
from featcache.files import listed, quoted
from featcache.manifest import Utterance
from featcache.stream import StreamSpec
from heads.folds import Fold
from heads.head import Begun, GradientHead, Head, check_same_head
from heads.learnt import Source
from heads.runs import read_config
from pipelines.config import recorded_config
from pipelines.provenance import records_of_run
from pipelines.restore import fold_weights, read_specs
from pipelines.run_folders import load_head


@dataclass(frozen=True)
class Start:
    """A run whose weights another one begins with.

    Attributes:
        folder: its folder.
        folds: fold of the training that begins to that of the run.
        sources: fold of the training that begins to what those weights have learnt from.
        sha256: digest of its weights.
        random: whether these come from weights that learnt nothing.
        head: the run's head.
        specs: fold of the training that begins to the streams that the run read there.
    """

    folder: Path
    folds: Mapping[str, str]
    sources: Mapping[str, Source]
    sha256: str
    random: bool
    head: GradientHead
    specs: Mapping[str, Sequence[StreamSpec]]

    def weights(self, fold: str) -> Begun:
        """Return the arrays that a fold's training begins with, by name, and what they were trained as."""
        return Begun(fold_weights(self.folder, self.folds[fold]), str(self.folder), self.head, self.specs[fold])


def open_start(folder: str, head: Head, folds: Sequence[Fold]) -> Start:
    """Return what a training begins with: for each fold the run's fold of that name, or its only one.

    Raises:
        ConfigError: the head takes no weights, or is not that of the run, with the settings that count; or the run
            lacks a fold. Whether the streams are the same shows when the training takes the weights.
        ScoresError: it is no trained run, or a file of it is damaged.
    """
    if not isinstance(head, GradientHead):
        raise ConfigError(f"The head {head.kind()!r} does not begin with weights of another run. Leave start out.")
    path = Path(folder).expanduser()
    records = records_of_run(path)
    only = next(iter(records)) if len(records) == 1 else None
    chosen = {fold.name: fold.name if fold.name in records else only for fold in folds}
    lacking = [name for name, found in chosen.items() if found is None]
    if lacking:
        raise ConfigError(
            f"{folder!r}, whose weights the training is to begin with, has no fold {lacking[0]!r}; it has "
            f"{listed(records)}. Train it on folds of the same names (such as within:KIND), or on a single one."
        )
    config = read_config(path / "config.yaml") or {}
    recorded = recorded_config(config)
    before = load_head(recorded.head, recorded.settings)
    if not isinstance(before, GradientHead):
        raise ConfigError(f"{folder!r} is of the head {before.kind()!r}, with whose weights no training begins.")
    check_same_head(folder, before, head)
    taken = {name: str(found) for name, found in chosen.items()}
    sources = {name: Source(f"the run {path.resolve().name!r}", records[found]) for name, found in taken.items()}
    for name in set(taken.values()):
        fold_weights(path, name, check_only=True)
    digest = file_sha256(path / "weights.safetensors")
    read, by_fold = read_specs(path)
    specs = {
        name: [by_fold.get(stream, {}).get(found, spec) for stream, spec in read.items()]
        for name, found in taken.items()
    }
    return Start(path, taken, sources, digest, bool(config.get("random_weights")), before, specs)


def shares_of_votes(
    utterances: Sequence[Utterance], column: str, classes: Sequence[str], labels: np.ndarray
) -> tuple[np.ndarray, int]:
    """Return what annotators' votes say of each utterance.

    Votes for classes that are not learnt are left out of the shares. An utterance without any other is as its label
    says.

    Args:
        utterances: them, in order.
        column: the manifest's column: class to number of votes.
        classes: class names, in order.
        labels: ``(utterances,)`` positions in `classes`.

    Returns:
        ``(utterances, classes)`` float32 whose rows sum to 1, and how many of them come from votes.

    Raises:
        ConfigError: nobody has such a column, or one holds something else.
    """
    shares = np.eye(len(classes), dtype=np.float64)[labels]
    voted = 0
    for row, utterance in enumerate(utterances):
        votes = _votes(utterance, column)
        counts = np.array([float(votes.get(name, 0)) for name in classes])
        if counts.max() > 0:
            counts /= counts.max()  # or the sum of huge ones is infinite
            shares[row] = counts / counts.sum()
            voted += 1
    if not voted:
        extra = sorted({name for utterance in utterances for name in utterance.extra})
        raise ConfigError(
            f"No utterance has votes for {listed(classes)} in the column {column!r}; it should hold a number for each "
            f'class, such as {{"happy": 2, "sad": 1}}. Further columns that exist: {listed(extra)}.'
        )
    return shares.astype(np.float32), voted


def _votes(utterance: Utterance, column: str) -> Mapping[str, Any]:
    value = utterance.column(column)
    if value is None or value == "":
        return {}
    if not isinstance(value, Mapping) or not all(map(_is_count, value.values())):
        raise ConfigError(
            f"{utterance.id!r} has {quoted(value)} in the column {column!r}, where votes are to be read: a number, 0 "
            'or more, for each class, such as {"happy": 2, "sad": 1}.'
        )
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max

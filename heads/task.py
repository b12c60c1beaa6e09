"""What a head learns from, and what learning gives: a task, and an outcome of each fold."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from featcache.cache import CachedStream
from featcache.errors import ConfigError
from featcache.stream import EXACT_DTYPES
from featcache.view import Place, View
from heads.folds import Fold
from heads.unfinished import Unfinished


@dataclass(frozen=True)
class Task:
    """What is to be learnt: labelled utterances, their features, and the folds.

    Attributes:
        streams: cached streams by the name the user gave them.
        ids: utterances.
        labels: ``(utterances,)`` int64, positions in `classes`.
        classes: class names, in order.
        folds: the folds.
        device: where training runs.
        speakers: speaker of each utterance; empty where nobody asked.
        copies: which of `ids` are augmented copies.
        places: where what is classified are frames and not utterances: the utterance and the frame (of the stream read)
            that each of `ids` stands for; empty otherwise.
        unfinished: where training that is not finished is kept; None keeps nothing.
        place: where frames are held; see :class:`featcache.view.View`.
        context: what :meth:`heads.head.Head.context` gave when the head was trained; empty in training.
        targets: ``(utterances, classes)`` float, what the loss aims at in place of `labels`, such as shares of votes;
            rows sum to 1. Metrics and choices are by `labels` all the same.
        start: fold to weights by name that training begins with, in place of random ones: all of a module but those of
            :meth:`heads.head.GradientHead.of_classes`. A fold that it lacks begins at random.
    """

    streams: Mapping[str, CachedStream]
    ids: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    folds: Sequence[Fold]
    device: str = "cpu"
    speakers: Sequence[str | None] = ()
    copies: Set[str] = frozenset()
    places: Sequence[tuple[str, int]] = ()
    unfinished: Unfinished | None = None
    place: Place = "auto"
    context: Mapping[str, np.ndarray] = field(default_factory=dict)
    targets: np.ndarray | None = None
    start: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)
    _positions: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_positions", {name: index for index, name in enumerate(self.ids)})

    def positions(self, ids: Sequence[str]) -> np.ndarray:
        """Return where utterances stand in :attr:`ids`, ``(utterances,)`` int64."""
        return np.array([self._positions[name] for name in ids], np.int64)

    def view(self, stream: CachedStream, ids: Sequence[str] | None = None, layers: Sequence[int] | None = None) -> View:
        """Return a stream's frames as tensors, of all of :attr:`ids` unless others are named."""
        return View(stream, self.ids if ids is None else ids, layers, self.device, self.place)

    def stream(self, head: str) -> CachedStream:
        """Return the stream of a head that reads exactly one.

        Raises:
            ConfigError: there are none, or several.
        """
        if len(self.streams) != 1:
            raise ConfigError(f"The head {head!r} reads one stream, got {', '.join(self.streams) or 'none'}.")
        return features_of(head, next(iter(self.streams.values())))


def features_of(head: str, stream: CachedStream) -> CachedStream:
    """Return a stream whose frames a head may read as features.

    Raises:
        ConfigError: its frames are ids or times.
    """
    if stream.spec.dtype in EXACT_DTYPES:
        raise ConfigError(
            f"The head {head!r} cannot learn from {stream.name}: its frames are no features but "
            f"{'times' if stream.spec.axis == 'intervals' else 'ids'}. Name another stream."
        )
    return stream


@dataclass(frozen=True)
class Candidate:
    """One setting that was tried in one fold.

    Attributes:
        settings: what was varied.
        validation: metric on validation that it could be chosen by; NaN where nothing was chosen.
        test: the same metric on test, for readers of the report; nothing is chosen by it.
    """

    settings: Mapping[str, Any]
    validation: float
    test: float


@dataclass(frozen=True)
class Outcome:
    """What one fold gave.

    Attributes:
        fold: its name.
        test: class probabilities of the fold's test part, ``(utterances, classes)``.
        validation: the same of its validation part.
        chosen: settings chosen on validation.
        candidates: everything that was tried.
        curve: for each evaluation: ``step``, ``loss`` on train since the last one, and the metric on validation.
        weights: learned arrays by name; empty where a head has none that can be stored.
        layer_weights: what each layer contributes, ``(layers,)``, sums to 1 over each stream; None where nothing mixes
            layers.
        layer_names: names of the layers that it read.
        num_parameters: parameters of the module, trained or not; None where there is no module.
    """

    fold: str
    test: np.ndarray
    validation: np.ndarray
    chosen: Mapping[str, Any]
    candidates: Sequence[Candidate]
    curve: Sequence[Mapping[str, float]] = ()
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    layer_weights: np.ndarray | None = None
    layer_names: Sequence[str] = ()
    num_parameters: int | None = None


@dataclass(frozen=True)
class Trained:
    """What the training of one fold left, for scoring.

    Attributes:
        weights: learned arrays by name.
        chosen: settings chosen on validation.
        precision: what modules compute in; see :class:`heads.fit_settings.FitSettings`.
    """

    weights: Mapping[str, np.ndarray]
    chosen: Mapping[str, Any] = field(default_factory=dict)
    precision: Literal["float32", "bfloat16"] = "float32"

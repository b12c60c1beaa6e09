"""The contract of a head: what it reads from a cache, and how it learns.

A head is a frozen dataclass; its fields are its settings. Most heads are gradient heads: they give a module,
and the one loop of :mod:`heads.fit` trains it. Others, such as a support vector machine, train themselves.
Nothing is ever chosen on test data: settings with several values are chosen on validation, fold by fold.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import nn

from featcache.cache import CachedStream
from featcache.errors import ConfigError, ScoresError, UnknownNameError
from featcache.stream import EXACT_DTYPES
from featcache.view import Place, View
from heads.folds import Fold
from heads.inputs import Inputs
from heads.layers import exact
from heads.unfinished import Unfinished

OnProgress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""


@dataclass(frozen=True)
class FitSettings:
    """How gradient heads train. Settings with several values are candidates, chosen on validation fold by fold.

    Attributes:
        steps: optimiser steps.
        batch_size: utterances in a batch.
        learning_rate: of Adam; one or several.
        weight_decay: decoupled (AdamW); one or several.
        gradient_clip: largest norm of a model's gradient; None is no bound.
        eval_every: steps between evaluations on validation; the best one's weights are kept.
        unit: what `steps`, `eval_every`, `halve_from` and `halve_every` count: optimiser steps, or ``"epoch"``: passes
            over the fold's training part, of the number of steps nearest to ``utterances / (batch_size * accumulate)``.
        accumulate: batches whose gradients are averaged for one optimiser step.
        average: weights of so many evaluations, the best on validation, are averaged and taken in place of the best
            one's alone (Morais et al. 2022, section 3.2).
        optimiser: ``"adamw"``, or ``"sgd"`` with `momentum`, whose weight decay is not decoupled.
        momentum: of ``"sgd"``.
        halve_from: the learning rate is halved when so many units are done, and then every `halve_every` units; None
            never halves it.
        halve_every: see `halve_from`.
        pretrained_rate: learning rate of what a head did not begin at random, see :meth:`GradientHead.pretrained`; None
            is `learning_rate`. It is halved alike.
        bucketed: batches are of utterances of like length, in random order; see :meth:`heads.inputs.Inputs.sizes`.
        patience: a model that was not better than ever before at so many evaluations in a row is done, even if it
            trains on beside others; None never stops early.
        select_by: metric on validation that chooses weights and candidates: ``"ua"`` or ``"wa"``.
        balanced: weigh classes by the inverse of their frequency in train.
        precision: what modules compute in; ``"bfloat16"`` is mixed precision: weights, losses and the optimiser stay
            float32. It pays where processor or GPU have it in hardware.
        seed: of initial weights, dropout and the order of batches; `pipelines.train_heads` also draws random folds
            and the validation cut from it.
    """

    steps: int = 2000
    batch_size: int = 32
    learning_rate: tuple[float, ...] = (1e-3,)
    weight_decay: tuple[float, ...] = (0.0,)
    gradient_clip: float | None = 1.0
    eval_every: int = 50
    unit: Literal["step", "epoch"] = "step"
    accumulate: int = 1
    average: int = 1
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: float = 0.9
    halve_from: int | None = None
    halve_every: int = 1
    pretrained_rate: float | None = None
    bucketed: bool = False
    patience: int | None = None
    select_by: Literal["ua", "wa"] = "ua"
    balanced: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "eval_every", "accumulate", "average", "halve_every", "halve_from"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum must be 0 to below 1, got {self.momentum}.")
        if self.pretrained_rate is not None and not (math.isfinite(self.pretrained_rate) and self.pretrained_rate > 0):
            raise ConfigError(f"pretrained_rate must be positive and finite, or None, got {self.pretrained_rate}.")
        if not self.learning_rate or not all(math.isfinite(rate) and rate > 0 for rate in self.learning_rate):
            raise ConfigError(f"learning_rate needs one or more positive, finite numbers, got {self.learning_rate}.")
        if not self.weight_decay or not all(math.isfinite(decay) and decay >= 0 for decay in self.weight_decay):
            raise ConfigError(f"weight_decay needs one or more finite numbers, 0 or more, got {self.weight_decay}.")
        if self.gradient_clip is not None and not (math.isfinite(self.gradient_clip) and self.gradient_clip > 0):
            raise ConfigError(f"gradient_clip must be positive and finite, or None, got {self.gradient_clip}.")


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
        places: where what is classified are frames and not utterances: the utterance and the frame (of the stream read)
            that each of `ids` stands for; empty otherwise.
        unfinished: where training that is not finished is kept; None keeps nothing.
        place: where frames are held; see :class:`featcache.view.View`.
        context: what :meth:`Head.context` gave when the head was trained; empty in training.
        targets: ``(utterances, classes)`` float, what the loss aims at in place of `labels`, such as shares of votes;
            rows sum to 1. Metrics and choices are by `labels` all the same.
        start: fold to weights by name that training begins with, in place of random ones: all of a module but those of
            :meth:`GradientHead.of_classes`. A fold that it lacks begins at random.
    """

    streams: Mapping[str, CachedStream]
    ids: Sequence[str]
    labels: np.ndarray
    classes: tuple[str, ...]
    folds: Sequence[Fold]
    device: str = "cpu"
    speakers: Sequence[str | None] = ()
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
class CodeShape:
    """Form of the codes that a head's module gives.

    Attributes:
        blocks: codes of one row, such as a window; they follow one another in time.
        dim: size of a code.
        shift_s: time from one code to the next, in seconds.
    """

    blocks: int
    dim: int
    shift_s: float


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


class Head(ABC):
    """A head. Subclasses are frozen dataclasses whose fields are the settings.

    Attributes:
        title: one line for listings.
        tier: what it reads of a stream.
    """

    title: ClassVar[str]
    tier: ClassVar[Literal["frames", "stats"]]

    @classmethod
    def kind(cls) -> str:
        """Return the public name: the stem of the plug-in's file."""
        return cls.__module__.rpartition(".")[2]

    def further_streams(self) -> tuple[str, ...]:
        """Return the kinds of streams that the head reads beside the one whose layers it reads; none by default."""
        return ()

    @abstractmethod
    def train(self, task: Task, settings: FitSettings, on_progress: OnProgress) -> list[Outcome]:
        """Train on every fold.

        Raises:
            ConfigError: the head cannot read these streams.
        """

    def context(self, task: Task) -> dict[str, np.ndarray]:
        """Return what scores depend on beside weights and the utterance itself, by name; nothing by default.

        A run folder keeps it, and a task to be scored brings it, so that an utterance gets the score that it had.
        """
        return {}

    def scoring(self) -> "Head":
        """Return the head that gives the same scores and reads no more than these need; itself by default."""
        return self

    def score(self, task: Task, trained: "Trained") -> np.ndarray:
        """Return the class probabilities ``(utterances, classes)`` of all of a task's utterances.

        Args:
            task: utterances, their streams and the classes; labels and folds have no part.
            trained: what a fold left.

        Raises:
            ConfigError: the head cannot score anything but what it was trained with.
            ScoresError: what was left is not of this head with these settings and streams.
        """
        raise ConfigError(f"The head {self.kind()!r} keeps nothing that other utterances could be scored with.")


@dataclass(frozen=True)
class Trained:
    """What the training of one fold left, for scoring.

    Attributes:
        weights: learned arrays by name.
        chosen: settings chosen on validation.
        precision: what modules compute in; see :class:`FitSettings`.
    """

    weights: Mapping[str, np.ndarray]
    chosen: Mapping[str, Any] = field(default_factory=dict)
    precision: Literal["float32", "bfloat16"] = "float32"


InputsT = TypeVar("InputsT", bound=Inputs)


class GradientHead(Head, Generic[InputsT]):
    """A head that is a module, trained by :func:`heads.fit.fit`.

    Attributes:
        stacked: whether a fold's candidates train side by side as one job, by ``torch.vmap``, and jobs in threads. A
            module with recurrent layers, batch norm or dropout (threads share one generator) trains alone.
    """

    stacked: ClassVar[bool]

    @abstractmethod
    def inputs(self, task: Task) -> InputsT:
        """Return the features the module reads."""

    def source(self, task: Task) -> CachedStream:
        """Return the stream whose layers the head reads.

        Raises:
            ConfigError: the task lacks a stream that the head needs, or has one that it does not know.
        """
        return task.stream(self.kind())

    def shapes(self, task: Task) -> dict[str, int]:
        """Return the arguments of :meth:`module` for a task."""
        spec = self.source(task).spec
        return {"num_layers": len(spec.layers), "dim": spec.dim, "num_classes": len(task.classes)}

    @abstractmethod
    def module(self, num_layers: int, dim: int, num_classes: int) -> nn.Module:
        """Return a fresh module: takes what :meth:`Inputs.batch` gives for one member, returns logits.

        In training it takes what :meth:`Inputs.training_batch` gives, and may return logits and a further loss, which
        is added to the cross-entropy; and it may return a multiple of the batch's rows: the batch, and further copies
        of it, one after the other. Parameters that need no gradient are not trained.

        Args:
            num_layers: layers of the stream.
            dim: size of a frame.
            num_classes: number of classes.
        """

    def example(self, shapes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        """Return zeros in the form of a training batch of two utterances of 100 frames, to show what a module does.

        Args:
            shapes: arguments of :meth:`module`.
        """
        num_layers, dim = shapes["num_layers"], shapes["dim"]
        if self.tier == "stats":
            return (torch.zeros(2, num_layers, dim),)
        return torch.zeros(2, num_layers, 100, dim), torch.full((2,), 100)

    def of_classes(self) -> str:
        """Return what names of parameters begin with that belong to a task's classes: :attr:`Task.start` has others."""
        return "classify."

    def pretrained(self, module: nn.Module) -> Collection[str]:
        """Return the names of the parameters that begin with what was learnt elsewhere; none by default.

        What :attr:`Task.start` brings counts as well.
        """
        return ()

    def layer_names(self, task: Task) -> Sequence[str]:
        """Return the name of each layer that is read; of several streams, one after the other.

        There are as many as the module's layer mixes have weights together.
        """
        layers = self.source(task).spec.layers
        return [layers[number] for number in self.read_layers(len(layers))]

    def code_shape(self, task: Task) -> CodeShape | None:
        """Return the form of the codes between what is read and what is classified; None where there are none."""
        return None

    def codes(self, module: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return codes ``(rows, blocks, dim)`` of what :meth:`Inputs.scored` gives; for heads that have them."""
        raise NotImplementedError(f"{self.kind()} has no codes")

    def layers(self, num_layers: int) -> Sequence[int | None]:
        """Return the layers to try, one candidate each; None is all layers together."""
        return [None]

    def read_layers(self, num_layers: int) -> Sequence[int]:
        """Return the layers of the stream that are read at all."""
        return range(num_layers)

    def prepare(self, module: nn.Module, inputs: InputsT, train: torch.Tensor, layer: int | None) -> None:
        """Set what a module takes from its training part before training, such as means; nothing by default."""

    def train(self, task: Task, settings: FitSettings, on_progress: OnProgress) -> list[Outcome]:
        """Train on every fold."""
        from heads.fit import fit

        return fit(self, task, settings, on_progress)

    def restored(self, task: Task, weights: Mapping[str, np.ndarray]) -> nn.Module:
        """Return the module of a task with trained weights, ready to score.

        Weights that the module lacks are passed over: those of what only training needs, see :meth:`scoring`.

        Raises:
            ScoresError: a weight is missing, or of another shape.
        """
        with torch.random.fork_rng(devices=[]):
            module = self.module(**self.shapes(task))
        names = module.state_dict()
        try:
            module.load_state_dict({key: torch.from_numpy(np.array(weights[key])) for key in names if key in weights})
        except RuntimeError as error:
            raise ScoresError(
                f"The weights are not of the head {self.kind()!r} with these settings and streams: {error}"
            ) from None
        return module.to(task.device).eval()

    def score(self, task: Task, trained: Trained) -> np.ndarray:
        """Return the class probabilities ``(utterances, classes)`` of all of a task's utterances."""
        module, inputs = self.restored(task, trained.weights), self.inputs(task)
        layer = trained.chosen.get("layer")
        layers = None if layer is None else torch.tensor([int(layer)])
        positions = torch.arange(len(task.ids))
        values = np.empty((len(positions), len(task.classes)))
        device, mixed = torch.device(task.device).type, trained.precision == "bfloat16"
        with exact(task.device), torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=mixed):
            for chunk in inputs.chunks(positions):
                batch, owners = inputs.scored(positions[chunk], layers)
                rows = torch.softmax(module(*batch).double(), dim=1).cpu()
                total = torch.zeros(len(chunk), rows.shape[1], dtype=torch.float64).index_add_(0, owners, rows)
                values[chunk.numpy()] = (total / torch.bincount(owners, minlength=len(chunk))[:, None]).numpy()
        return values


def chosen_layers(layer: int | str, num_layers: int, head: str) -> list[int]:
    """Return the layers that a setting ``layer`` means: one, counted from the end when negative, or each.

    Raises:
        UnknownNameError: no such layer.
    """
    if layer == "each":
        return list(range(num_layers))
    number = int(layer)
    if not -num_layers <= number < num_layers:
        raise UnknownNameError(f"layer for {head}", layer, ["each", *range(num_layers)])
    return [number % num_layers]


def layer_subset(subset: Sequence[int], num_layers: int, head: str) -> list[int]:
    """Return the layers that a setting ``subset`` means, in ascending order: all where it is empty.

    Args:
        subset: layers, counted from the end when negative.
        num_layers: layers of the stream.
        head: name of the head, for messages.

    Raises:
        UnknownNameError: no such layer.
        ConfigError: a layer occurs twice.
    """
    layers = sorted(chosen_layers(layer, num_layers, head)[0] for layer in subset)
    if len(set(layers)) < len(layers):
        raise ConfigError(f"A layer occurs twice in the subset {list(subset)} of {num_layers} layers. Name each once.")
    return layers or list(range(num_layers))


def check_width(projector_dim: int) -> None:
    """Raise ConfigError for a projection without a width."""
    if projector_dim < 1:
        raise ConfigError(f"projector_dim must be at least 1, got {projector_dim}.")

"""The contract of a head: what it reads from a cache, and how it learns.

A head is a frozen dataclass; its fields are its settings. Most heads are gradient heads: they give a module,
and the one loop of :mod:`heads.fit` trains it. Others, such as a support vector machine, train themselves.
Nothing is ever chosen on test data: settings with several values are chosen on validation, fold by fold.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
from torch import nn

from featcache.cache import CachedStream
from featcache.errors import ConfigError, ScoresError, UnknownNameError
from featcache.stream import StreamSpec
from heads.fit_settings import FitSettings
from heads.inputs import Inputs
from heads.layers import exact
from heads.task import Outcome, Task, Trained

OnProgress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""

_DECISIVE = ("settings.", "dim:", "layers:", "frame_shift_s:")
"""Lines of :meth:`StreamSpec.differences` on what trained weights depend on; not how frames are stored, for one."""


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


InputsT = TypeVar("InputsT", bound=Inputs)


class GradientHead(Head, Generic[InputsT]):
    """A head that is a module, trained by :func:`heads.fit.fit`.

    Attributes:
        stacked: whether a fold's candidates train side by side as one job, by ``torch.vmap``, and jobs in threads. A
            module with recurrent layers, batch norm or dropout (threads share one generator) trains alone.
        start_may_change: settings that may be others than those of the run whose weights a training begins with, as
            they do not decide what these weights compute.
    """

    stacked: ClassVar[bool]
    start_may_change: ClassVar[frozenset[str]] = frozenset(
        {"dropout", "pooled_dropout", "encoder_dropout", "freeze", "checkpoint", "revision"}
    )

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


class Begun(dict[str, np.ndarray]):
    """Trained weights by name, for another training to begin with, and what they were trained as.

    Args:
        weights: the arrays.
        run: folder of their run, for messages.
        head: the head that they were trained in.
        specs: the streams that it read.
    """

    def __init__(
        self, weights: Mapping[str, np.ndarray], run: str, head: GradientHead, specs: Iterable[StreamSpec]
    ) -> None:
        super().__init__(weights)
        self._run, self._head, self._specs = run, head, list(specs)

    def check(self, head: GradientHead, specs: Iterable[StreamSpec]) -> None:
        """Refuse a head or streams with which these weights would compute something else.

        Shapes do not tell: those of a convolution fit whatever its stride and the number of bands.

        Raises:
            ConfigError: see above; it names what differs.
        """
        check_same_head(self._run, self._head, head)
        before, now = (sorted(several, key=lambda spec: spec.kind) for several in (self._specs, specs))
        kinds = [", ".join(spec.kind for spec in several) for several in (before, now)]
        lines = [f"streams: {kinds[0]} -> {kinds[1]}"] if kinds[0] != kinds[1] else []
        lines += [
            f"{ours.kind}.{line}"
            for theirs, ours in zip(before, now, strict=False)
            for line in ours.differences(theirs)
            if ours.kind == theirs.kind and line.startswith(_DECISIVE)
        ]
        _refuse_differences(self._run, lines)


def check_same_head(run: str, before: GradientHead, now: GradientHead) -> None:
    """Refuse a head that is another one than that whose weights it is to begin with, or has other settings.

    Args:
        run: folder of the run whose weights they are, for messages.
        before: the head of that run.
        now: the head that is to begin.

    Raises:
        ConfigError: see above; settings that :attr:`GradientHead.start_may_change` names may be others.
    """
    if before.kind() != now.kind():
        raise ConfigError(
            f"{run!r}, whose weights the training is to begin with, is of the head {before.kind()!r}, and this "
            f"training of {now.kind()!r}. Start from a run of {now.kind()!r}."
        )
    names = [one.name for one in fields(now) if one.name not in now.start_may_change]  # type: ignore[arg-type]
    pairs = {name: (getattr(before, name), getattr(now, name)) for name in names}
    _refuse_differences(
        run, [f"settings.{name}: {theirs} -> {ours}" for name, (theirs, ours) in pairs.items() if theirs != ours]
    )


def _refuse_differences(run: str, lines: Sequence[str]) -> None:
    if lines:
        raise ConfigError(
            f"The weights of {run!r}, which the training is to begin with, would compute something else here (there -> "
            f"here): {'; '.join(lines)}. Train with what that run has there, or start from a run that has what is here."
        )


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

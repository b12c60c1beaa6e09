"""Heads that pool frames to an utterance: of one stream, or of several by early or late fusion.

Source of the two fusions: Morais et al. 2022, section 3.1. Early (their ``+``): every stream's layers are averaged, its
frames brought to the rate of the slowest stream, and what belongs to one time laid side by side, before one pooling.
Late (their ``&``): a pooling for each stream, whose utterance embeddings are laid side by side. Then dropout and a
linear layer. What a pooling head adds is its pooling, :meth:`PoolingHead.pooling`.

What lies behind an utterance has no part in a score or a gradient, as long as it is numbers: :meth:`View.padded` has
zeros there. Something that is no number would reach the gradients of the layer weights; to blank it first would copy
every layer of a batch.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from featcache.cache import CachedStream
from featcache.errors import ConfigError, UnknownNameError
from heads.head import GradientHead, layer_subset
from heads.layers import LayerMix, Standardise
from heads.streams import StreamInputs, StreamShape, check_rates, join, shift_of
from heads.task import Task, features_of


@dataclass(frozen=True)
class PoolingHead(GradientHead[StreamInputs]):
    """Frames of one or several streams, pooled and classified.

    Attributes:
        fusion: how several streams are joined: ``"early"`` (frames side by side at the rate of the slowest, one
            pooling) or ``"late"`` (a pooling for each, embeddings side by side; the only one for tokens, which have no
            rate). It must be said where there are several, and means nothing where there is one.
        dropout: share of the pooled values set to 0 in training.
        weighting: of layers: ``"softmax"`` as SUPERB, ``"ratio"`` as Makiuchi et al. 2021, Eq. 1.
        subset: layers to read of each stream, counted from the end when negative; all where it is empty.
        subsets: the same for single streams, by name or kind, in place of `subset`.
        standardise: give every dimension of every layer the mean 0 and standard deviation 1 over the frames of the
            training part, so that streams of different scales begin alike.
        block: name of the pooling in a module that reads one stream.
    """

    tier: ClassVar[Literal["frames", "stats"]] = "frames"
    stacked: ClassVar[bool] = False
    block: ClassVar[str] = "pool"

    fusion: Literal["early", "late"] | None = None
    dropout: float = 0.2
    weighting: Literal["softmax", "ratio"] = "softmax"
    subset: tuple[int, ...] = ()
    subsets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    standardise: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be 0 to below 1, got {self.dropout}.")

    @abstractmethod
    def pooling(self, dim: int) -> nn.Module:
        """Return a fresh pooling: ``(batch, frames, dim)`` and lengths ``(batch,)`` to ``(batch, width)``."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Size of what a pooling gives."""

    def held(self) -> int:
        """Return about how many numbers a pooling holds for every frame when it scores, to bound a batch."""
        return 0

    def streams(self, task: Task) -> dict[str, CachedStream]:
        """Return the streams read, by name and in the order of names, whatever order they were given in.

        Raises:
            ConfigError: there are none, or several without a `fusion`, or one whose frames are ids.
            UnknownNameError: `subsets` names a stream that is not read.
        """
        if not task.streams:
            raise ConfigError(f"The head {self.kind()!r} reads one stream or several, and got none. Name each.")
        if len(task.streams) > 1 and self.fusion is None:
            raise ConfigError(
                f"The head {self.kind()!r} got {', '.join(task.streams)}. Say how they are joined: "
                "settings.fusion=early (frame by frame, one pooling) or settings.fusion=late (an embedding of each)."
            )
        streams = {name: features_of(self.kind(), stream) for name, stream in sorted(task.streams.items())}
        known = [*streams, *(stream.spec.kind for stream in streams.values())]
        for name in self.subsets:
            if name not in known:
                raise UnknownNameError(f"stream in the subsets of {self.kind()}", name, sorted(set(known)))
        return streams

    def source(self, task: Task) -> CachedStream:
        """Return the first stream."""
        return next(iter(self.streams(task).values()))

    def read_layers(self, num_layers: int) -> Sequence[int]:
        """Return the subset."""
        return layer_subset(self.subset, num_layers, self.kind())

    def layers_of(self, name: str, stream: CachedStream) -> list[int]:
        """Return the layers read of a stream."""
        kind = stream.spec.kind
        subset = self.subsets.get(name, self.subsets.get(kind, self.subset))
        return layer_subset(subset, len(stream.spec.layers), f"{self.kind()}, {name}" if self.subsets else self.kind())

    def layer_names(self, task: Task) -> list[str]:
        """Return the name of each layer read; ``STREAM: LAYER`` of several streams."""
        streams = self.streams(task)
        return [
            stream.spec.layers[layer] if len(streams) == 1 else f"{name}: {stream.spec.layers[layer]}"
            for name, stream in streams.items()
            for layer in self.layers_of(name, stream)
        ]

    def inputs(self, task: Task) -> StreamInputs:
        """Return the frames of every stream.

        Raises:
            StreamError: an utterance is longer in one stream than in another, which early fusion cannot join.
        """
        streams = self.streams(task)
        views = [task.view(stream, layers=self.layers_of(name, stream)) for name, stream in streams.items()]
        if len(views) > 1 and self.fusion == "early":
            check_rates(streams, views, self.kind())
        return StreamInputs(views, self.held())

    def shapes(self, task: Task) -> dict[str, Any]:
        """Return the arguments of :meth:`module` for a task."""
        shapes = tuple(
            StreamShape(len(self.layers_of(name, stream)), stream.spec.dim, shift_of(stream.spec))
            for name, stream in self.streams(task).items()
        )
        return {**super().shapes(task), "streams": shapes}

    def module(
        self, num_layers: int, dim: int, num_classes: int, streams: Sequence[StreamShape] = ()
    ) -> "OneStream | SeveralStreams":
        """Return a fresh module.

        Args:
            num_layers: layers of the one stream.
            dim: size of its frames.
            num_classes: number of classes.
            streams: what is read of each stream; empty is the one stream that the others describe.
        """
        if not streams:
            streams = [StreamShape(len(self.read_layers(num_layers)), dim)]
        return (OneStream if len(streams) == 1 else SeveralStreams)(self, streams, num_classes)

    def example(self, shapes: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        """Return zeros in the form of a batch: frames and lengths of each stream."""
        streams = shapes.get("streams") or [StreamShape(len(self.read_layers(shapes["num_layers"])), shapes["dim"])]
        return tuple(
            item for one in streams for item in (torch.zeros(2, one.num_layers, 100, one.dim), torch.full((2,), 100))
        )

    def prepare(self, module: nn.Module, inputs: StreamInputs, train: torch.Tensor, layer: int | None) -> None:
        """Take the training part's mean and standard deviation."""
        blocks = [block for block in module.modules() if isinstance(block, Standardise)]
        if blocks:
            inputs.standardise(blocks, train)


class OneStream(nn.Module):
    """The network of a :class:`PoolingHead` that reads one stream."""

    def __init__(self, head: PoolingHead, streams: Sequence[StreamShape], num_classes: int) -> None:
        super().__init__()
        [shape] = streams
        self.standardise = _standardise(head, shape)
        self.mix = LayerMix(shape.num_layers, head.weighting)
        self._block = head.block
        self.add_module(head.block, head.pooling(shape.dim))
        # Behind the pooling, where it costs nothing: on every frame its random numbers took a third of a CPU step.
        self.dropout = nn.Dropout(head.dropout)
        self.classify = nn.Linear(head.width, num_classes)

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, layers, frames, dim)`` and ``(batch,)`` frame counts to logits ``(batch, classes)``."""
        frames = self.mix(self.standardise(hidden))  # (batch, frames, dim)
        logits: torch.Tensor = self.classify(self.dropout(self.get_submodule(self._block)(frames, lengths)))
        return logits


class SeveralStreams(nn.Module):
    """The network of a :class:`PoolingHead` that reads several streams; late fusion unless it says early."""

    def __init__(self, head: PoolingHead, streams: Sequence[StreamShape], num_classes: int) -> None:
        super().__init__()
        self._shifts_s = [shape.shift_s for shape in streams if shape.shift_s is not None]
        self._early = head.fusion == "early"
        dims = [shape.dim for shape in streams]
        self.standardise = nn.ModuleList(_standardise(head, shape) for shape in streams)
        self.mixes = nn.ModuleList(LayerMix(shape.num_layers, head.weighting) for shape in streams)
        self.pools = nn.ModuleList(head.pooling(dim) for dim in ([sum(dims)] if self._early else dims))
        self.dropout = nn.Dropout(head.dropout)
        self.classify = nn.Linear(head.width * len(self.pools), num_classes)

    def forward(self, *batch: torch.Tensor) -> torch.Tensor:
        """Map frames ``(batch, layers, frames, dim)`` and counts ``(batch,)`` of each stream to logits."""
        hidden, lengths = batch[::2], batch[1::2]
        frames = [
            mix(standardise(own)) for own, standardise, mix in zip(hidden, self.standardise, self.mixes, strict=True)
        ]
        if self._early:
            joined, num_frames = join(frames, lengths, self._shifts_s)
            frames, lengths = [joined], (num_frames,)
        embeddings = [pool(*one) for pool, one in zip(self.pools, zip(frames, lengths, strict=True), strict=True)]
        logits: torch.Tensor = self.classify(self.dropout(torch.cat(embeddings, dim=1)))
        return logits


def _standardise(head: PoolingHead, shape: StreamShape) -> nn.Module:
    return Standardise(shape.num_layers, 1, shape.dim) if head.standardise else nn.Identity()

"""Mean pooling over frames behind a nonlinear layer: what the stats tier cannot give.

A learned layer average, a projection with ReLU on every frame (or token), the mean over each utterance's own
frames, dropout, and a linear layer. Padding changes no score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from featcache.errors import ConfigError
from heads.head import GradientHead, Task, check_width, layer_subset
from heads.inputs import FrameInputs
from heads.layers import LayerMix, masked_mean


@dataclass(frozen=True)
class MeanPool(GradientHead[FrameInputs]):
    """A frame-wise projection, averaged over time.

    Attributes:
        projector_dim: width of the projection.
        dropout: share of the pooled values set to 0 in training.
        weighting: ``"softmax"`` as SUPERB, ``"ratio"`` as Makiuchi et al. 2021, Eq. 1.
        subset: layers to read, counted from the end when negative; all where it is empty.
    """

    title: ClassVar[str] = "layer average, frame-wise projection with ReLU, mean over time, linear"
    tier: ClassVar[Literal["frames", "stats"]] = "frames"
    stacked: ClassVar[bool] = False

    projector_dim: int = 256
    dropout: float = 0.2
    weighting: Literal["softmax", "ratio"] = "softmax"
    subset: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_width(self.projector_dim)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be 0 to below 1, got {self.dropout}.")

    def inputs(self, task: Task) -> FrameInputs:
        """Return the frames."""
        stream = task.stream(self.kind())
        return FrameInputs(task.view(stream, layers=self.read_layers(len(stream.spec.layers))))

    def read_layers(self, num_layers: int) -> Sequence[int]:
        """Return the subset."""
        return layer_subset(self.subset, num_layers, self.kind())

    def module(self, num_layers: int, dim: int, num_classes: int) -> nn.Module:
        """Return a fresh module."""
        return MeanPoolModule(self, len(self.read_layers(num_layers)), dim, num_classes)

    def example(self, shapes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        """Return zeros in the form of a batch."""
        return super().example({**shapes, "num_layers": len(self.read_layers(shapes["num_layers"]))})


class MeanPoolModule(nn.Module):
    """The network of :class:`MeanPool`."""

    def __init__(self, settings: MeanPool, num_layers: int, dim: int, num_classes: int) -> None:
        super().__init__()
        self.mix = LayerMix(num_layers, settings.weighting)
        self.project = nn.Sequential(nn.Linear(dim, settings.projector_dim), nn.ReLU())
        # Behind the pooling, where it costs nothing: on every frame its random numbers took a third of a CPU step.
        self.dropout = nn.Dropout(settings.dropout)
        self.classify = nn.Linear(settings.projector_dim, num_classes)

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, layers, frames, dim)`` and ``(batch,)`` frame counts to logits ``(batch, classes)``."""
        frames = self.project(self.mix(hidden))  # (batch, frames, projector_dim)
        logits: torch.Tensor = self.classify(self.dropout(masked_mean(frames, lengths)))
        return logits

"""Mean pooling over frames behind a nonlinear layer: what the stats tier cannot give.

A learned layer average, a projection with ReLU on every frame (or token), the mean over each utterance's own
frames, dropout, and a linear layer. Padding changes no score.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from heads.head import check_width
from heads.layers import masked_mean
from heads.pooling import PoolingHead


@dataclass(frozen=True)
class MeanPool(PoolingHead):
    """A frame-wise projection, averaged over time.

    Attributes:
        projector_dim: width of the projection.
    """

    title: ClassVar[str] = "layer average, frame-wise projection with ReLU, mean over time, linear"
    block: ClassVar[str] = "project"

    projector_dim: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        check_width(self.projector_dim)

    @property
    def width(self) -> int:
        """Width of the projection."""
        return self.projector_dim

    def pooling(self, dim: int) -> nn.Module:
        """Return a fresh projection with its mean."""
        return ProjectedMean(nn.Linear(dim, self.projector_dim), nn.ReLU())


class ProjectedMean(nn.Sequential):
    """Blocks on every frame, and the mean over an utterance's own."""

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Map ``(batch, frames, dim)`` and ``(batch,)`` frame counts to ``(batch, width)``."""
        return masked_mean(super().forward(frames), lengths)

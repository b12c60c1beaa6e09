"""Linear probe: one linear layer on the mean (and standard deviation) over time of one layer.

The usual probe of what a layer holds (Alain & Bengio 2017). Exact from the stats tier, since it is linear up to
its pooling.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from heads.head import GradientHead, chosen_layers
from heads.inputs import StatsInputs
from heads.layers import Classify, Standardise
from heads.task import Task


@dataclass(frozen=True)
class LinearProbe(GradientHead[StatsInputs]):
    """A linear classifier of one layer's stats.

    Attributes:
        layer: the layer read: a position, negative from the end, or ``"each"`` to train a probe on every layer and
            choose on validation.
        std: read the standard deviation over time beside the mean.
        standardise: give every dimension the mean 0 and standard deviation 1 of the training part.
    """

    title: ClassVar[str] = "one linear layer on the stats of one layer, or of each"
    tier: ClassVar[Literal["frames", "stats"]] = "stats"
    stacked: ClassVar[bool] = True

    layer: int | Literal["each"] = "each"
    std: bool = False
    standardise: bool = True

    def inputs(self, task: Task) -> StatsInputs:
        """Return the stats."""
        return StatsInputs(task.view(task.stream(self.kind())), self.std)

    def layers(self, num_layers: int) -> Sequence[int]:
        """Return the layers to try."""
        return chosen_layers(self.layer, num_layers, "linear_probe")

    def of_classes(self) -> str:
        """Return the last layer's name."""
        return "1."

    def module(self, num_layers: int, dim: int, num_classes: int) -> nn.Module:
        """Return a fresh probe: ``(batch, dim)`` to logits ``(batch, classes)``."""
        size = dim * (2 if self.std else 1)
        return nn.Sequential(Standardise(size), Classify(size, num_classes))

    def example(self, shapes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        """Return zeros in the form of a batch: one layer's mean, and its std where that is read."""
        return (torch.zeros(2, shapes["dim"] * (2 if self.std else 1)),)

    def prepare(self, module: nn.Module, inputs: StatsInputs, train: torch.Tensor, layer: int | None) -> None:
        """Take the training part's mean and standard deviation."""
        block = module.get_submodule("0")
        if self.standardise and isinstance(block, Standardise):
            inputs.standardise(block, train, layer)

"""SUPERB's emotion head: a learned layer average, a projection, the mean over time, a linear layer.

Source: Yang et al. 2021, and s3prl's ``downstream/emotion`` (projector of 256, mean pooling, one linear layer, Adam,
1e-4, batches of 32, 30,000 steps, best accuracy on validation); the preset ``superb`` holds these settings.

Everything before the pooling is linear, and the mean of a linear map is the map of the mean, so the head is exact
from the stats tier, whose bytes are those of four float16 frames an utterance.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import nn

from heads.head import GradientHead, check_width, layer_subset
from heads.inputs import StatsInputs
from heads.layers import LayerMix as Mix
from heads.layers import Standardise, linear
from heads.task import Task


@dataclass(frozen=True)
class LayerMix(GradientHead[StatsInputs]):
    """A learned average over layers, then two linear maps.

    Attributes:
        projector_dim: width of the projection.
        weighting: ``"softmax"`` as SUPERB, ``"ratio"`` as Makiuchi et al. 2021, Eq. 1.
        subset: layers to read, counted from the end when negative; all where it is empty.
        std: read the standard deviation over time beside the mean; SUPERB does not.
        standardise: give every dimension of every layer the mean 0 and standard deviation 1 of the training part;
            SUPERB does not.
    """

    title: ClassVar[str] = "SUPERB's emotion head: learned layer weights, projection, mean, linear"
    tier: ClassVar[Literal["frames", "stats"]] = "stats"
    stacked: ClassVar[bool] = True

    projector_dim: int = 256
    weighting: Literal["softmax", "ratio"] = "softmax"
    subset: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_width(self.projector_dim)

    std: bool = False
    standardise: bool = False

    def inputs(self, task: Task) -> StatsInputs:
        """Return the stats."""
        stream = task.stream(self.kind())
        return StatsInputs(task.view(stream, layers=self.read_layers(len(stream.spec.layers))), self.std)

    def read_layers(self, num_layers: int) -> Sequence[int]:
        """Return the subset."""
        return layer_subset(self.subset, num_layers, self.kind())

    def of_classes(self) -> str:
        """Return the last layer's name."""
        return "3."

    def module(self, num_layers: int, dim: int, num_classes: int) -> nn.Module:
        """Return a fresh module: ``(batch, layers, dim)`` to logits ``(batch, classes)``."""
        size = dim * (2 if self.std else 1)
        num_layers = len(self.read_layers(num_layers))
        return LayerMixModule(
            Standardise(num_layers, size) if self.standardise else nn.Identity(),
            Mix(num_layers, self.weighting),
            nn.Linear(size, self.projector_dim),
            nn.Linear(self.projector_dim, num_classes),
        )

    def example(self, shapes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        """Return zeros in the form of a batch: every layer's mean, and its std where that is read."""
        num_layers = len(self.read_layers(shapes["num_layers"]))
        return (torch.zeros(2, num_layers, shapes["dim"] * (2 if self.std else 1)),)

    def prepare(self, module: nn.Module, inputs: StatsInputs, train: torch.Tensor, layer: int | None) -> None:
        """Take the training part's mean and standard deviation."""
        block = module.get_submodule("0")
        if isinstance(block, Standardise):
            inputs.standardise(block, train, layer)


class LayerMixModule(nn.Sequential):
    """The network of :class:`LayerMix`, with the product of its two linear maps taken first.

    The same function and gradients as one map after the other, from a sixth of the operations with 32 rows, 1024 x 256
    and 4 classes, since the gradient of the projection has no more than the rank of the classes.
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, layers, dim)`` to logits ``(batch, classes)``."""
        project, classify = cast(nn.Linear, self[2]), cast(nn.Linear, self[3])
        mixed = self[1](self[0](hidden))
        bias = classify.bias + classify.weight @ project.bias
        return linear(mixed, classify.weight @ project.weight, bias)

"""The network of the ResNet head; see :mod:`heads.models.resnet`."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from featcache.errors import ConfigError
from heads.augment import Masks, spec_augment
from heads.layers import inside

_LEAST_VARIANCE = 1e-5  # as batch norm's: the root's gradient stays finite where nothing varies


class Block(nn.Module):
    """Two convolutions of 3 x 3 and what goes past them (He et al. 2016, Figure 5, left), with PReLU."""

    def __init__(self, channels: int, width: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(width)
        self.first_activation = nn.PReLU()
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(width)
        self.second_activation = nn.PReLU()
        self.past = None
        if stride != (1, 1) or channels != width:
            self.past = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, values: torch.Tensor, lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map ``(batch, channels, frames, mels)``, zeros behind each utterance, and frame counts to the same."""
        past = values if self.past is None else self.past(values)
        lengths = shortened(lengths, self.first.stride[0])
        values = hide(self.first_activation(self.first_norm(self.first(values))), lengths)
        values = self.second_activation(self.second_norm(self.second(values)) + past)
        return hide(values, lengths), lengths


class Convolutions(nn.Module):
    """A first convolution and stages of blocks; each stage has twice the channels of the one before.

    Args:
        channels: of the first convolution and the first stage.
        blocks: blocks of each stage.
        strides: ``(time, frequency)`` of each stage's first block.
        first_stride: of the first convolution.
    """

    def __init__(
        self,
        channels: int,
        blocks: Sequence[int],
        strides: Sequence[tuple[int, int]],
        first_stride: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, first_stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.activation = nn.PReLU()
        stages, before = [], channels
        for number, (count, stride) in enumerate(zip(blocks, strides, strict=True)):
            width = channels * 2**number
            for place in range(count):
                stages.append(Block(before, width, stride if place == 0 else (1, 1)))
                before = width
        self.blocks = nn.ModuleList(stages)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map ``(batch, frames, mels)`` and frame counts to ``(batch, frames', channels' * mels')`` and theirs."""
        values = hide(frames[:, None], lengths)  # (batch, channels, frames, mels)
        values = self.activation(self.norm(self.first(values)))
        lengths = shortened(lengths, self.first.stride[0])
        values = hide(values, lengths)
        for block in self.blocks:
            values, lengths = block(values, lengths)
        return values.transpose(1, 2).flatten(2), lengths


class ResnetModule(nn.Module):
    """Convolutions, mean and standard deviation over time, an embedding, a linear layer.

    Args:
        convolutions: what works on frames.
        pooled: size of mean and standard deviation together.
        embedding: size of the embedding.
        num_classes: number of classes.
        masks: what copies are masked by in training; None makes no copies.
        copies: masked copies of each row.
        frozen: the convolutions do not learn, nor do their batch norms' running means.
    """

    def __init__(
        self,
        convolutions: Convolutions,
        pooled: int,
        embedding: int,
        num_classes: int,
        masks: Masks | None = None,
        copies: int = 0,
        frozen: bool = False,
    ) -> None:
        super().__init__()
        self.convolutions = convolutions.requires_grad_(not frozen)
        # All that is fully connected is new for every task, so all of it has the name that is never taken over.
        self.classify = nn.Sequential(
            OrderedDict(
                embedding=nn.Linear(pooled, embedding),
                norm=nn.BatchNorm1d(embedding),
                activation=nn.PReLU(),
                output=nn.Linear(embedding, num_classes),
            )
        )
        self._masks, self._copies, self._frozen = masks, copies, frozen

    def train(self, mode: bool = True) -> "ResnetModule":
        """Switch training on or off; what is frozen stays as it is in evaluation."""
        super().train(mode)
        if self._frozen:
            self.convolutions.eval()
        return self

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Map frames to logits.

        Args:
            hidden: ``(batch, 1, frames, mels)``.
            lengths: ``(batch,)`` frames of each utterance, behind which nothing has a part; None is all of them.

        Returns:
            Logits ``(batch, classes)``; in training with masked copies ``((1 + copies) * batch, classes)``: the batch,
            then copies of it one after the other.

        Raises:
            ConfigError: training on a single row, of which batch norm has no variance.
        """
        frames = hidden[:, 0]
        if self.training and self._masks is not None:
            repeated = frames.repeat(self._copies, 1, 1)
            frames = torch.cat([frames, spec_augment(repeated, self._masks)])
            lengths = None if lengths is None else lengths.repeat(1 + self._copies)
        if self.training and len(frames) < 2:
            raise ConfigError("resnet cannot train on batches of one utterance. Set fit.batch_size to 2 or more.")
        codes, lengths = self.convolutions(frames, lengths)
        logits: torch.Tensor = self.classify(statistics(codes.float(), lengths))
        return logits


def shortened(lengths: torch.Tensor | None, stride: int) -> torch.Tensor | None:
    """Return how many frames convolutions of a stride leave, ``(batch,)``: those that begin inside an utterance."""
    return None if lengths is None else -(-lengths // stride)


def hide(values: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Set what lies behind each utterance to 0 in ``(batch, channels, frames, mels)``."""
    if lengths is None:
        return values
    return values.masked_fill(~inside(lengths, values.shape[2])[:, None, :, None], 0.0)


def statistics(frames: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """Return mean and standard deviation over time (Snyder et al. 2018, section 2.1), ``(batch, 2 * dim)``.

    Args:
        frames: ``(batch, frames, dim)``.
        lengths: ``(batch,)`` frames of each utterance, which alone have a part; None is all of them.
    """
    if lengths is None:
        variance, mean = torch.var_mean(frames, dim=1, correction=0)
    else:
        own = inside(lengths, frames.shape[1])[..., None]
        mean = (frames * own).sum(1) / lengths[:, None]
        variance = ((frames - mean[:, None]).square() * own).sum(1) / lengths[:, None]
    return torch.cat([mean, (variance + _LEAST_VARIANCE).sqrt()], dim=1)

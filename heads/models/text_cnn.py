"""Makiuchi's text model: four convolutions over the tokens of a text encoder, the mean over time, a linear layer.

Source: Makiuchi et al. 2021, section 3.2 and Figure 1, and the authors' published code
(https://github.com/mmakiuchi/multimodal_emotion_recognition, ``text/``). The figure gives widths and kernels; that
every convolution has one zero on either side (`conv_padding`) stands in the code alone.

In the paper every text is zero-padded to the longest of the corpus, and the mean goes over all positions. So a score
depends on how long another text is, and a short text is averaged mostly over positions that saw padding alone.
**The default departs from this**: the mean goes over the positions that see a token of the text, and over no others.
These see what they see in the paper, the zeros behind the text among it; so a text of one token is a text like any
other, and neither a batch nor the padding changes a score. ``fixed_length="longest"`` is the paper's form.

The published code departs from its paper as well. ``fixed_length=122, pooled=118, sigmoid=True`` is its network, number
for number: the longest text is 122 tokens, two of them special; the mean leaves the last two of 120 positions out; and
a sigmoid stands between the linear layer and the softmax, in training and in scores. With it no probability of four
classes exceeds 0.475, which matters to whoever fuses them. Two things of the code are no matter of a head: it
lower-cases every text, and it pads texts before the encoder, so that states of padding tokens follow a short text,
where the paper has zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from featcache.errors import ConfigError
from featcache.view import View
from heads.head import GradientHead, chosen_layers
from heads.inputs import FrameInputs
from heads.layers import LayerMix, masked_mean
from heads.task import Task

_SCORED_TOGETHER = 64
_LONGEST = "fixed_length"


@dataclass(frozen=True)
class TextCnn(GradientHead[FrameInputs]):
    """Convolutions over tokens, averaged over time. The paper's sizes are the defaults.

    Attributes:
        layer: the layer read: a position, negative from the end, or ``"mix"`` for a learned average of all. The paper
            reads the last.
        weighting: of the average: ``"softmax"`` as SUPERB, ``"ratio"`` as Makiuchi et al. 2021, Eq. 1.
        widths: channels of each convolution.
        kernels: tokens that each convolution spans.
        conv_padding: zeros on either side of each convolution's input; 1 in the published code.
        fixed_length: tokens that every text is zero-padded to, and the mean goes over all positions; ``"longest"`` is
            the longest text of the task, which a run folder keeps. None is the default form, which padding cannot
            change.
        pooled: positions, from the first on, that the mean of the fixed form goes over; None is all.
        sigmoid: put the logits through a sigmoid before the softmax, as the published code does.
    """

    title: ClassVar[str] = "Makiuchi's text model: four convolutions over tokens, mean over time, linear"
    tier: ClassVar[Literal["frames", "stats"]] = "frames"
    stacked: ClassVar[bool] = False

    layer: int | Literal["mix"] = -1
    weighting: Literal["softmax", "ratio"] = "softmax"
    widths: tuple[int, ...] = (256, 256, 128, 64)
    kernels: tuple[int, ...] = (1, 1, 8, 4)
    conv_padding: int = 1
    fixed_length: int | Literal["longest"] | None = None
    pooled: int | None = None
    sigmoid: bool = False

    def __post_init__(self) -> None:
        if not self.kernels or len(self.widths) != len(self.kernels) or min(*self.widths, *self.kernels) < 1:
            raise ConfigError(
                f"text_cnn takes a width and a kernel, 1 or more each, for every convolution, got widths {self.widths} "
                f"and kernels {self.kernels}."
            )
        if not 0 <= self.lead < self.span:
            raise ConfigError(
                f"text_cnn: {len(self.kernels)} convolutions with conv_padding={self.conv_padding} begin {self.lead} "
                f"tokens before the text, and a position of kernels {self.kernels} sees {self.span}. The first would "
                "see padding alone; set conv_padding to a smaller number, 0 or more."
            )
        if self.pooled is not None and self.fixed_length is None:
            raise ConfigError(f"pooled={self.pooled} is of the form that fixed_length gives; set both, or neither.")

    @property
    def span(self) -> int:
        """Tokens that one position sees behind the convolutions; 11 in the paper."""
        return 1 + sum(kernel - 1 for kernel in self.kernels)

    @property
    def lead(self) -> int:
        """Positions whose first token lies before the text."""
        return self.conv_padding * len(self.kernels)

    def inputs(self, task: Task) -> FrameInputs:
        """Return the tokens, of one layer or of all; in the fixed form all padded alike.

        Raises:
            ConfigError: a text is longer than `fixed_length`, or that is too short to be convolved and pooled.
        """
        stream = task.stream(self.kind())
        layers = None if self.layer == "mix" else chosen_layers(self.layer, len(stream.spec.layers), self.kind())
        view = task.view(stream, layers=layers)
        if self.fixed_length is None:
            return FrameInputs(view)
        longest = int(view.lengths.max())
        length = int(task.context.get(_LONGEST, longest)) if self.fixed_length == "longest" else self.fixed_length
        if longest > length:
            if self.fixed_length == "longest":
                raise ConfigError(
                    f"{view.ids[int(view.lengths.argmax())]!r} has {longest} {stream.spec.axis}, more than the longest "
                    f"of training, {length}, that text_cnn pads to. Shorten it, or train without fixed_length."
                )
            raise ConfigError(
                f"{view.ids[int(view.lengths.argmax())]!r} has {longest} {stream.spec.axis}, more than the "
                f"fixed_length of {length} that text_cnn pads to. Set fixed_length to {longest}, to 'longest', or to "
                "null for the form without it."
            )
        positions = length + 2 * self.lead - self.span + 1
        wanted = 1 if self.pooled is None else self.pooled
        if not 1 <= wanted <= positions:
            raise ConfigError(
                f"text_cnn: {length} {stream.spec.axis} of padded text give {max(0, positions)} positions, and the "
                f"mean is to go over {wanted}. Set a larger fixed_length, or pooled to 1 or more of them."
            )
        return FixedInputs(view, length)

    def context(self, task: Task) -> dict[str, np.ndarray]:
        """Return the length that every text is padded to, where the texts of the task decide it."""
        if self.fixed_length != "longest":
            return {}
        stream = task.stream(self.kind())
        return {_LONGEST: np.array(max(stream.num_frames(name) for name in task.ids))}

    def module(self, num_layers: int, dim: int, num_classes: int) -> nn.Module:
        """Return a fresh module."""
        return TextCnnModule(self, num_layers, dim, num_classes)


class FixedInputs(FrameInputs):
    """Whole utterances, all padded to one length: ``(1, batch, layers, length, dim)`` and lengths ``(1, batch)``."""

    def __init__(self, view: View, length: int) -> None:
        super().__init__(view)
        self.length = length

    def batch(self, indices: torch.Tensor, layers: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Return frames and lengths of the one member's batch."""
        frames, lengths = self.view.windows(indices[0], torch.zeros_like(indices[0]), self.length, self.buffer)
        return frames[None], lengths[None]

    def chunks(self, positions: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return utterances as they come; all take the same space."""
        return torch.arange(len(positions)).split(_SCORED_TOGETHER)


class TextCnnModule(nn.Module):
    """The network of :class:`TextCnn`."""

    def __init__(self, settings: TextCnn, num_layers: int, dim: int, num_classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.mix = LayerMix(num_layers, settings.weighting) if settings.layer == "mix" else None
        blocks: list[nn.Module] = []
        for size, width, kernel in zip((dim, *settings.widths), settings.widths, settings.kernels, strict=False):
            blocks += [nn.Conv1d(size, width, kernel, padding=settings.conv_padding), nn.ReLU()]
        self.convolve = nn.Sequential(*blocks)
        self.classify = nn.Linear(settings.widths[-1], num_classes)

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map tokens to logits.

        Args:
            hidden: ``(batch, layers, tokens, dim)``, all layers of a mix, else the one that is read; in the fixed form
                padded to that length.
            lengths: ``(batch,)`` tokens of each text; what lies behind them has no part.

        Returns:
            Logits ``(batch, classes)``.
        """
        settings = self.settings
        frames = hidden[:, 0] if self.mix is None else self.mix(hidden)  # (batch, tokens, dim)
        behind = torch.arange(frames.shape[1], device=frames.device) >= lengths[:, None]
        frames = frames.masked_fill(behind[..., None], 0.0).transpose(1, 2)  # (batch, dim, tokens)
        if settings.fixed_length is None:
            # Zeros up to where the last token is the first that a position sees. The edge, where convolutions pad what
            # is no longer zero, then lies behind every position that is averaged, however long the batch.
            codes = self.convolve(F.pad(frames, (0, settings.span - 1)))  # (batch, width, positions)
            mean = masked_mean(codes.transpose(1, 2), lengths + settings.lead)
        else:
            mean = self.convolve(frames)[..., : settings.pooled].mean(-1)  # (batch, width)
        logits: torch.Tensor = self.classify(mean)
        return logits.sigmoid() if settings.sigmoid else logits

"""The network of ECAPA-TDNN, every block of it blind to padding. Frames are ``(batch, channels, frames)`` throughout.

Source: Desplanques, Thienpondt and Demuynck 2020 (https://arxiv.org/abs/2005.07143), Figures 1 and 2. What these leave
open is as in SpeechBrain's ``speechbrain.lobes.models.ECAPA_TDNN``, whose weights fit by :func:`speechbrain_name`; so
is what :mod:`heads.models.ecapa` names as departures.
"""

import re
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from heads.layers import MaskedBatchNorm, inside, masked_mean

Edges = Literal["zeros", "reflect"]
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class Sizes:
    """Sizes of the network; see :class:`heads.models.ecapa.Ecapa`."""

    channels: int
    aggregated: int
    squeezed: int
    attention: int
    embedding: int
    scale: int
    kernel: int
    first_kernel: int
    dilations: tuple[int, ...]
    global_context: bool
    edges: Edges
    summed: bool = False


class FrameConv(nn.Conv1d):
    """A convolution that gives as many frames as it gets; around an utterance's own are zeros, or these mirrored.

    Args:
        dim: channels in.
        channels: channels out.
        kernel: odd number of frames.
        dilation: frames from one to the next of these.
        edges: what is before the first and behind the last frame.
    """

    def __init__(self, dim: int, channels: int, kernel: int = 1, dilation: int = 1, edges: Edges = "zeros") -> None:
        super().__init__(dim, channels, kernel, dilation=dilation)
        self.reach = dilation * (kernel - 1) // 2
        self.edges = edges

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Convolve ``(batch, dim, frames)`` to ``(batch, channels, frames)``."""
        if self.reach and self.edges == "reflect":
            at = mirrored(lengths, frames.shape[2], self.reach)
            frames = frames.gather(2, at[:, None].expand(-1, frames.shape[1], -1))
        elif self.reach:
            behind = ~inside(lengths, frames.shape[2])
            frames = F.pad(frames.masked_fill(behind[:, None], 0.0), (self.reach, self.reach))
        return super().forward(frames)


def mirrored(lengths: torch.Tensor, num_frames: int, reach: int) -> torch.Tensor:
    """Return the frame that stands at each place from `reach` before the first to `reach` behind the last.

    Places outside an utterance are mirrored at its first and last frame, as often as a short one needs it.

    Args:
        lengths: ``(batch,)`` frames of each utterance.
        num_frames: frames of the batch.
        reach: places on either side.

    Returns:
        ``(batch, num_frames + 2 * reach)``.
    """
    period = (2 * (lengths - 1)).clamp(min=1)[:, None]
    places = torch.arange(-reach, num_frames + reach, device=lengths.device).abs() % period
    return torch.minimum(places, period - places) * (lengths > 1)[:, None]


class Tdnn(nn.Module):
    """A convolution, ReLU and batch normalisation."""

    def __init__(self, dim: int, channels: int, kernel: int = 1, dilation: int = 1, edges: Edges = "zeros") -> None:
        super().__init__()
        self.conv = FrameConv(dim, channels, kernel, dilation, edges)
        self.norm = MaskedBatchNorm(channels)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, dim, frames)`` to ``(batch, channels, frames)``."""
        values = F.relu(self.conv(frames, lengths))
        normed: torch.Tensor = self.norm(values, inside(lengths, frames.shape[2]))
        return normed


class Res2Net(nn.Module):
    """Channels in groups: the first passes, each further one is convolved together with what the one before gave."""

    def __init__(self, sizes: Sizes, dilation: int) -> None:
        super().__init__()
        width = sizes.channels // sizes.scale
        self.blocks = nn.ModuleList(
            Tdnn(width, width, sizes.kernel, dilation, sizes.edges) for _ in range(sizes.scale - 1)
        )

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, channels, frames)`` to the same shape."""
        first, *groups = frames.chunk(len(self.blocks) + 1, dim=1)
        given = [first]
        for number, (block, group) in enumerate(zip(self.blocks, groups, strict=True)):
            given.append(block(group if number == 0 else group + given[-1], lengths))
        return torch.cat(given, dim=1)


class SqueezeExcitation(nn.Module):
    """Each channel times a gate, which an utterance's mean over its own frames opens."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, squeezed)
        self.excite = nn.Linear(squeezed, channels)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, channels, frames)`` to the same shape."""
        mean = masked_mean(frames.mT, lengths)  # (batch, channels)
        return frames * self.excite(F.relu(self.squeeze(mean))).sigmoid()[..., None]


class SeRes2Block(nn.Module):
    """Frame-wise, Res2Net, frame-wise, squeeze and excitation, around which the input passes (Figure 2)."""

    def __init__(self, sizes: Sizes, dilation: int) -> None:
        super().__init__()
        self.enter = Tdnn(sizes.channels, sizes.channels)
        self.res2net = Res2Net(sizes, dilation)
        self.leave = Tdnn(sizes.channels, sizes.channels)
        self.gate = SqueezeExcitation(sizes.channels, sizes.squeezed)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, channels, frames)`` to the same shape."""
        values = self.leave(self.res2net(self.enter(frames, lengths), lengths), lengths)
        gated: torch.Tensor = self.gate(values, lengths)
        return frames + gated


class AttentiveStatistics(nn.Module):
    """Mean and standard deviation over time, weighted for each channel by itself (section 3.1, Eq. 1 to 4).

    With `global_context` the attention sees, beside a frame, the utterance's unweighted mean and standard deviation.
    """

    def __init__(self, channels: int, attention: int, global_context: bool) -> None:
        super().__init__()
        self.global_context = global_context
        self.hidden = FrameConv(channels * (3 if global_context else 1), attention)
        self.norm = MaskedBatchNorm(attention)
        self.score = FrameConv(attention, channels)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, channels, frames)`` to ``(batch, 2 * channels)``: means, then standard deviations."""
        mask = inside(lengths, frames.shape[2])
        values = F.relu(self._hidden(frames, mask / lengths[:, None]))
        scores = self.score(torch.tanh(self.norm(values, mask)), lengths)
        weights = scores.masked_fill(~mask[:, None], -torch.inf).softmax(dim=2)
        return torch.cat(weighted_statistics(frames, weights), dim=1)

    def _hidden(self, frames: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Return the attention's first convolution of frames and context, without laying the two side by side."""
        if not self.global_context:
            hidden: torch.Tensor = F.conv1d(frames, self.hidden.weight, self.hidden.bias)
            return hidden
        of_frames, of_context = self.hidden.weight.split([frames.shape[1], 2 * frames.shape[1]], dim=1)
        context = torch.cat(weighted_statistics(frames, weights[:, None]), dim=1)
        shared = F.linear(context, of_context[..., 0], self.hidden.bias)  # (batch, attention)
        return F.conv1d(frames, of_frames) + shared[..., None]


def weighted_statistics(frames: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted mean and standard deviation over time, ``(batch, channels)`` each.

    Args:
        frames: ``(batch, channels, frames)``.
        weights: the same shape, or with one channel for all; sum to 1 over frames, and are 0 on padding.
    """
    mean = (weights * frames).sum(dim=2)
    variance = (weights * (frames - mean[..., None]).square()).sum(dim=2)
    return mean, variance.clamp(min=_LEAST_VARIANCE).sqrt()


class EcapaTdnn(nn.Module):
    """Frames to an utterance's embedding (Figure 1)."""

    def __init__(self, dim: int, sizes: Sizes) -> None:
        super().__init__()
        self.summed = sizes.summed
        self.first = Tdnn(dim, sizes.channels, sizes.first_kernel, 1, sizes.edges)
        self.blocks = nn.ModuleList(SeRes2Block(sizes, dilation) for dilation in sizes.dilations)
        self.aggregate = Tdnn(sizes.channels * len(sizes.dilations), sizes.aggregated)
        self.statistics = AttentiveStatistics(sizes.aggregated, sizes.attention, sizes.global_context)
        self.norm = MaskedBatchNorm(2 * sizes.aggregated)
        self.embed = nn.Linear(2 * sizes.aggregated, sizes.embedding)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, frames, dim)`` and ``(batch,)`` frame counts to embeddings ``(batch, embedding)``."""
        # What is no number would come back through the first convolution's gradient: 0 times it is none either.
        frames = frames.masked_fill(~inside(lengths, frames.shape[1])[..., None], 0.0)
        values = self.first(frames.mT, lengths)  # (batch, channels, frames)
        outputs: list[torch.Tensor] = []
        for block in self.blocks:
            outputs.append(block(values, lengths))
            values = values + outputs[-1] if self.summed else outputs[-1]
        aggregated = self.aggregate(torch.cat(outputs, dim=1), lengths)
        embedding: torch.Tensor = self.embed(self.norm(self.statistics(aggregated, lengths)))
        return embedding


_SPEECHBRAIN = (
    (r"^first\.", "blocks.0."),
    (r"^blocks\.(\d+)\.enter\.", r"blocks.+\1.tdnn1."),
    (r"^blocks\.(\d+)\.leave\.", r"blocks.+\1.tdnn2."),
    (r"^blocks\.(\d+)\.res2net\.", r"blocks.+\1.res2net_block."),
    (r"^blocks\.(\d+)\.gate\.squeeze\.", r"blocks.+\1.se_block.conv1.conv."),
    (r"^blocks\.(\d+)\.gate\.excite\.", r"blocks.+\1.se_block.conv2.conv."),
    (r"^aggregate\.", "mfa."),
    (r"^statistics\.hidden\.", "asp.tdnn.conv.conv."),
    (r"^statistics\.norm\.", "asp.tdnn.norm.norm."),
    (r"^statistics\.score\.", "asp.conv.conv."),
    (r"^norm\.", "asp_bn.norm."),
    (r"^embed\.", "fc.conv."),
)


def speechbrain_name(name: str) -> str:
    """Return SpeechBrain's name of a weight of :class:`EcapaTdnn`; its linear layers are convolutions of one frame."""
    for pattern, theirs in _SPEECHBRAIN:
        name, found = re.subn(pattern, theirs, name)
        if found:
            break
    name = re.sub(r"\+(\d+)", lambda match: str(1 + int(match[1])), name)  # their blocks begin with our `first`
    return re.sub(r"(tdnn1|tdnn2|mfa|blocks\.\d+)\.(conv|norm)\.(?=\w+$)", r"\1.\2.\2.", name)

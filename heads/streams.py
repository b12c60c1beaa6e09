"""Frames of several streams at once: how they are read, and how they are brought to one rate.

Frame ``i`` of a stream stands for the time from ``i`` to ``i + 1`` of its shifts. The rate that several streams share
is that of the slowest: what a faster one has within a slow frame's time is averaged, each frame by how much of it
lies there. Ratios are exact fractions, so that 0.02 s beside 0.01 s is a plain mean of two frames, in an hour as well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from featcache.cache import CachedStream
from featcache.errors import ConfigError, StreamError
from featcache.stream import StreamSpec
from featcache.view import View
from heads.inputs import FrameInputs, Inputs, longest_first
from heads.layers import Standardise

_MOST_APART = 4  # slow frames: windows that are centred, or lie within the audio, begin and end elsewhere


@dataclass(frozen=True)
class StreamShape:
    """What a module knows of a stream.

    Attributes:
        num_layers: layers read.
        dim: size of a frame.
        shift_s: time from one frame to the next, exactly; None where frames are not in time, as tokens are not.
    """

    num_layers: int
    dim: int
    shift_s: Fraction | None = None


def shift_of(spec: StreamSpec) -> Fraction | None:
    """Return the time from one frame to the next in seconds; None where frames are not in time."""
    if spec.axis != "frames" or not spec.frame_shift_s:
        return None
    return Fraction(spec.frame_shift_s).limit_denominator(1_000_000)


class StreamInputs(Inputs):
    """Whole utterances of one or several streams, each padded by itself; one member only.

    A batch is frames ``(1, batch, layers, frames, dim)`` and lengths ``(1, batch)`` of the first stream, then of the
    second, and so on. It is valid until the next one is read, which lies in the same memory.

    Args:
        views: the frames of each stream, of the same utterances.
        held: numbers that a module holds for every frame when it scores, beside the frame.
    """

    def __init__(self, views: Sequence[View], held: int = 0) -> None:
        self.views = list(views)
        self._frames = [FrameInputs(view) for view in self.views]
        # padded() gives float32
        self._bytes = torch.tensor([4 * (len(view.layers) * view.stream.spec.dim + held) for view in self.views])
        self._sizes = self._bytes[:, None] * torch.stack([view.lengths for view in self.views])  # (streams, utterances)

    def sizes(self) -> torch.Tensor:
        """Return the bytes of each utterance over all streams."""
        return self._sizes.sum(dim=0)

    def batch(self, indices: torch.Tensor, layers: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Return frames and lengths of each stream, of the one member's batch."""
        return tuple(item for stream in self._frames for item in stream.batch(indices, layers))

    def chunks(self, positions: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return utterances of like size together, at most 256 MiB padded over all streams, or one that is larger."""
        return longest_first(self._sizes[:, positions])

    def standardise(self, modules: Sequence[Standardise], train: torch.Tensor) -> None:
        """Give each stream's module the mean and standard deviation over the frames of a training part, by layer."""
        for view, module in zip(self.views, modules, strict=True):
            means, stds = (values[train.to(values.device)].double() for values in view.stats())
            shares = (view.lengths[train] / view.lengths[train].sum()).to(means.device)[:, None, None]
            mean = (shares * means).sum(dim=0)
            std = (shares * (stds.square() + (means - mean).square())).sum(dim=0).sqrt()
            module.set_from(mean[:, None].float(), std[:, None].float())


def check_rates(streams: Mapping[str, CachedStream], views: Sequence[View], head: str) -> None:
    """Refuse streams that cannot be joined frame by frame.

    Args:
        streams: the streams by name.
        views: their frames, of the same utterances.
        head: name of the head, for messages.

    Raises:
        ConfigError: a stream's frames are not in time.
        StreamError: an utterance is longer in one stream than in another; names it.
    """
    shifts = _shifts(streams, head)
    lengths = [view.lengths for view in views]
    counts = torch.stack(slow_lengths(lengths, shifts))  # (streams, utterances)
    apart = counts.max(dim=0).values - counts.min(dim=0).values
    if int(apart.max()) > _MOST_APART:
        worst = int(apart.argmax())
        told = ", ".join(
            f"{name} {float(int(length[worst]) * shift):.2f} s"
            for name, length, shift in zip(streams, lengths, shifts, strict=True)
        )
        raise StreamError(
            f"{views[0].ids[worst]!r} is not of one length in all streams ({told}), and early fusion joins them frame "
            f"by frame. Were they extracted from the same audio? See 'featcache coverage'; or set fusion=late."
        )


def _shifts(streams: Mapping[str, CachedStream], head: str) -> list[Fraction]:
    shifts = []
    for name, stream in streams.items():
        shift = shift_of(stream.spec)
        if shift is None:
            what = "tokens" if stream.spec.axis == "tokens" else "without a rate"
            raise ConfigError(
                f"The head {head!r} with fusion=early joins streams frame by frame, and the frames of {name} are "
                f"{what}. Set fusion=late, which pools each stream by itself."
            )
        shifts.append(shift)
    return shifts


def slow_lengths(lengths: Sequence[torch.Tensor], shifts_s: Sequence[Fraction]) -> list[torch.Tensor]:
    """Return how many whole frames of the slowest stream's rate each stream fills, at least 1.

    Args:
        lengths: ``(batch,)`` frames, of each stream.
        shifts_s: time from one frame to the next, of each stream.
    """
    slowest = max(shifts_s)
    ratios = [slowest / shift for shift in shifts_s]
    return [
        (length * ratio.denominator // ratio.numerator).clamp(min=1)
        for length, ratio in zip(lengths, ratios, strict=True)
    ]


def join(
    frames: Sequence[torch.Tensor], lengths: Sequence[torch.Tensor], shifts_s: Sequence[Fraction]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return streams side by side at the rate of the slowest; an utterance ends where its first stream does.

    Args:
        frames: ``(batch, frames, dim)`` of each stream.
        lengths: ``(batch,)`` frames that are not padding, of each stream.
        shifts_s: time from one frame to the next, of each stream.

    Returns:
        Frames ``(batch, frames, dims)`` and lengths ``(batch,)``.
    """
    slowest = max(shifts_s)
    joined = torch.stack(slow_lengths(lengths, shifts_s)).min(dim=0).values
    num_frames = int(joined.max())
    parts = [
        at_rate(own, length, slowest / shift, num_frames)
        for own, length, shift in zip(frames, lengths, shifts_s, strict=True)
    ]
    return torch.cat(parts, dim=2), joined


def at_rate(frames: torch.Tensor, lengths: torch.Tensor, ratio: Fraction, num_frames: int) -> torch.Tensor:
    """Return frames averaged to a slower rate, each by the share of the slow frame's time that it fills.

    Args:
        frames: ``(batch, frames, dim)``.
        lengths: ``(batch,)`` frames that are not padding; padding has no part.
        ratio: frames to one slow frame, 1 or more.
        num_frames: slow frames wanted.

    Returns:
        Frames ``(batch, num_frames, dim)``; behind an utterance zeros, or where the ratio is 1 what lies there.
    """
    if ratio == 1:
        return frames[:, :num_frames]
    # In units in which a frame is `unit` long and a slow one `span`: overlaps are whole numbers.
    span, unit = ratio.numerator, ratio.denominator
    starts = span * torch.arange(num_frames, device=frames.device)
    total = frames.new_zeros(len(frames), num_frames, frames.shape[2])
    filled = frames.new_zeros(len(frames), num_frames, 1)
    for number in range(-(-span // unit) + (unit > 1)):
        at = starts // unit + number  # (num_frames,)
        overlap = (torch.minimum((at + 1) * unit, starts + span) - torch.maximum(at * unit, starts)).clamp(min=0)
        share = (overlap * (at < lengths[:, None]))[..., None]  # (batch, num_frames, 1)
        picked = frames.index_select(1, at.clamp(max=frames.shape[1] - 1)).masked_fill(share == 0, 0.0)
        total = total + share * picked
        filled = filled + share
    return total / filled.clamp(min=1)

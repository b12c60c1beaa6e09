"""SpecAugment: random blocks of mels and of frames are masked, in training, on the device.

Source: Park et al. 2019 (https://doi.org/10.21437/Interspeech.2019-2680), section 2 and Table 1. A frequency mask
takes ``f`` of 0 to F mels from ``f0`` on, a time mask ``t`` of 0 to T frames from ``t0`` on; t is also at most a share
p of the utterance's frames. Widths and places are uniform. Time warping is left out: Padi et al. 2022 speak of masks
alone, and Park et al. find it no major factor (section 5).

Padi et al. 2022 (section 3.2.2) have two policies, conservative and aggressive, whose numbers stand in another paper
of theirs (Padi et al. 2021, https://arxiv.org/abs/2108.02510), which was not at hand. **Taken in their place** are the
two that Park et al. made for telephone speech, mild (SM) and strong (SS): of their four, these bound a time mask by the
length of the utterance, as chunks of 1.5 s need.
"""

from dataclasses import dataclass
from typing import Literal

import torch

Policy = Literal["none", "conservative", "aggressive"]


@dataclass(frozen=True)
class Masks:
    """How many masks there are, and how wide they may be.

    Attributes:
        frequency_masks: how many blocks of mels are masked (m_F in the source).
        frequency_width: most mels in one of them (F).
        time_masks: how many blocks of frames are masked (m_T).
        time_width: most frames in one of them (T).
        time_share: most of the utterance's frames in one of them, as a share (p).
    """

    frequency_masks: int
    frequency_width: int
    time_masks: int
    time_width: int
    time_share: float


POLICIES: dict[Policy, Masks] = {
    "conservative": Masks(2, 15, 2, 70, 0.2),  # SM
    "aggressive": Masks(2, 27, 2, 70, 0.2),  # SS
}


def spec_augment(frames: torch.Tensor, masks: Masks, value: float = 0.0) -> torch.Tensor:
    """Mask random blocks of mels and of frames; every row draws its own.

    Random numbers come from torch's generator of the device.

    Args:
        frames: ``(batch, frames, mels)``, all of them real.
        masks: how many and how wide.
        value: what masked values become. Of frames that were normalised, 0 is their mean.

    Returns:
        Masked copies, ``(batch, frames, mels)``.
    """
    batch, num_frames, mels = frames.shape
    longest = min(masks.time_width, int(masks.time_share * num_frames))
    masked_mels = _blocks(batch, masks.frequency_masks, min(masks.frequency_width, mels), mels, frames.device)
    masked_frames = _blocks(batch, masks.time_masks, longest, num_frames, frames.device)
    return frames.masked_fill(masked_mels[:, None, :] | masked_frames[:, :, None], value)


def _blocks(batch: int, count: int, widest: int, size: int, device: torch.device) -> torch.Tensor:
    """Return which places are in one of `count` random blocks, ``(batch, size)`` bool; a block has 0 to `widest`."""
    widths = torch.randint(widest + 1, (batch, count, 1), device=device)
    room = size - widths
    starts = (torch.rand(batch, count, 1, device=device, dtype=torch.float64) * (room + 1)).long().clamp(max=room)
    places = torch.arange(size, device=device)
    return ((starts <= places) & (places < starts + widths)).any(dim=1)

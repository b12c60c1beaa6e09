"""Blocks that several heads share; each exists once."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn


@contextmanager
def exact(device: str | torch.device) -> Iterator[None]:
    """Let float32 be float32 on a GPU, as in extraction, and repeat bit for bit where kernels can.

    cuDNN's convolutions and LSTMs use TF32 by default, whose 10 bits of mantissa are 1e-3 relative. All is as before
    when the context ends. CTC and gathers add up in any order on a GPU even so.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    with cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False):
        yield


class LayerMix(nn.Module):
    """A learned weighted average over layers.

    ``"softmax"`` weights are SUPERB's (Yang et al. 2021, s3prl's Featurizer): softmax of free parameters that start
    at 0. ``"ratio"`` weights are Makiuchi et al. 2021, Eq. 1: free parameters that start at 1, divided by their sum.
    Both start as the plain mean.
    """

    def __init__(self, num_layers: int, weighting: Literal["softmax", "ratio"] = "softmax") -> None:
        super().__init__()
        self.weighting = weighting
        self.alpha = nn.Parameter(torch.zeros(num_layers) if weighting == "softmax" else torch.ones(num_layers))

    def weights(self) -> torch.Tensor:
        """Return ``(layers,)`` weights that sum to 1."""
        return torch.softmax(self.alpha, 0) if self.weighting == "softmax" else self.alpha / self.alpha.sum()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Average ``(batch, layers, ...)`` to ``(batch, ...)``."""
        return torch.einsum("l,bl...->b...", self.weights(), hidden)


class Standardise(nn.Module):
    """Subtract the mean and divide by the standard deviation of a training part; the identity until it is set."""

    centre: torch.Tensor
    scale: torch.Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def set_from(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Take mean and standard deviation; dimensions that do not vary are only centred."""
        self.centre.copy_(mean)
        self.scale.copy_(torch.where(std > 0, std, 1.0))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Standardise ``(..., *shape)``."""
        return (values - self.centre).div_(self.scale)


def linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Map ``(rows, dim)`` to ``(rows, outputs)`` as ``F.linear`` does, for a handful of outputs.

    Matrix libraries are slow where a result is a few columns wide, as its gradient in ``F.linear`` is: from the left,
    rows are long, and a probe's forward and backward take a fifth of the time.
    """
    return (weight @ values.mT + bias[:, None]).mT


class Classify(nn.Linear):
    """A linear layer with few outputs."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Map ``(rows, dim)`` to ``(rows, outputs)``."""
        return linear(values, self.weight, self.bias)


def inside(lengths: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Return which of `num_frames` frames are no padding, ``(batch, frames)``, from ``(batch,)`` frame counts."""
    return torch.arange(num_frames, device=lengths.device) < lengths[:, None]


def masked_mean(frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Average ``(batch, frames, dim)`` over each utterance's own frames to ``(batch, dim)``; padding has no part."""
    behind = ~inside(lengths, frames.shape[1])
    return frames.masked_fill(behind[..., None], 0.0).sum(1) / lengths[:, None]


class MaskedBatchNorm(nn.BatchNorm1d):
    """Batch normalisation whose statistics are of what is no padding.

    With nothing masked it is ``nn.BatchNorm1d``, running statistics (of the unbiased variance) included. A single row
    without frames has no variance: in training it is normalised by the running statistics.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def forward(self, values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise; what is masked is normalised alike, and has no part.

        Args:
            values: ``(batch, channels, frames)``, or ``(batch, channels)`` without a mask.
            mask: ``(batch, frames)``, true where there is a frame; None is everywhere.
        """
        if not self.training or (mask is None and values[:, 0].numel() < 2):
            return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if mask is None:
            return super().forward(values)
        shown = values.float()  # bfloat16 has too few digits for sums over a batch
        behind, count = ~mask[:, None], mask.sum()
        mean = shown.masked_fill(behind, 0.0).sum((0, 2)) / count
        centred = shown - mean[:, None]
        variance = centred.square().masked_fill(behind, 0.0).sum((0, 2)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
            self.num_batches_tracked += 1
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None] + self.bias[:, None]).to(values.dtype)

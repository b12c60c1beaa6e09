"""A network in VGG form over a spectrogram: five convolutions with max pooling, two linear layers.

Source: Zhou et al., "A Multi-modal Approach to Speech Emotion Recognition", sections 4, 5.2 and 6.1: "CNN using VGG
frame": 5 convolutional layers with max pooling, 2 linear layers, LeakyReLU, dropout of 0.6, softmax; audio zero-padded
to one length; spectrograms normalised by mean and variance of the training set. The text gives no sizes. What is chosen
here is VGG's (Simonyan and Zisserman 2015, https://arxiv.org/abs/1409.1556): kernels of 3 x 3 with one zero on either
side, pools of 2 x 2, the widths of its five blocks, of which each has one convolution, no batch norm, dropout behind
the hidden linear layer. The hidden layer is narrow: VGG's 4096 would take 400 million parameters on a long utterance.
Convolutions begin with He's weights by what goes in, linear layers as PyTorch's do. torchvision's VGG begins smaller
(He's by what comes out, linear layers of 0.01), which hardly learns in the few epochs here: on 128 recordings of EmoDB,
at the paper's rate, the loss after six is 1.18, and 0.74 with these.

Where this departs from the paper, or reads it in one way of several:

- The paper pads the audio with zeros and normalises spectrograms, so that its padding is the spectrogram of silence,
  and silence weighs in mean and variance. Here both are of the training utterances' own frames, band by band, and the
  padding comes after: it is the mean of every band, so that how long the longest utterance is moves nobody's input.
- Pools keep an odd last row or column, so that few bands, such as 20 MFCCs, can be halved five times.
- What is longer than the common length is cut at its end, which happens to no utterance of the task with
  ``length="longest"``, the paper's form.

With one stream of 128 bands, five classes, and 1470 frames (34 s, IEMOCAP's longest, at 23 ms) there are 28.0 million
parameters, 24.1 million of them in the hidden layer; with 20 MFCCs 9.9 million. Augmented copies count among the
utterances of the task: slowed to 0.8 times the speed, the most that is drawn, the longest has 1838 frames, and there
are 34.3 and 11.5 million. A length that is named stays that of the originals. The paper states none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import nn

from featcache.errors import ConfigError
from featcache.view import View
from heads.head import GradientHead, chosen_layers
from heads.inputs import FrameInputs
from heads.layers import Standardise, inside
from heads.task import Task

_LENGTH = "length"
_SHOWN = 100
_SCORED_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Vgg(GradientHead["PaddedInputs"]):
    """Convolutions over time and bands, all utterances padded to one length.

    Attributes:
        length: frames that every utterance is padded to, or cut to; ``"longest"`` is the longest of the task, slowed
            copies included, which a run folder keeps.
        layer: the layer read: a position, negative from the end.
        widths: channels of each convolution; each is followed by a 2 x 2 pool.
        hidden: width of the first linear layer.
        dropout: share of the hidden layer's values set to 0 in training.
    """

    title: ClassVar[str] = "Zhou's VGG network on spectrograms: five convolutions with max pooling, two linear layers"
    tier: ClassVar[Literal["frames", "stats"]] = "frames"
    stacked: ClassVar[bool] = False

    length: int | Literal["longest"] = "longest"
    layer: int = -1
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    hidden: int = 256
    dropout: float = 0.6

    def __post_init__(self) -> None:
        if not self.widths or min(*self.widths, self.hidden) < 1:
            raise ConfigError(f"vgg takes widths and hidden of 1 or more, got {self.widths} and {self.hidden}.")
        if self.length != "longest" and self.length < 1:
            raise ConfigError(f"vgg pads to a length of 1 frame or more, or to 'longest'; got {self.length}.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be 0 to below 1, got {self.dropout}.")

    def inputs(self, task: Task) -> "PaddedInputs":
        """Return the frames of one layer, all padded alike."""
        stream = self.source(task)
        view = task.view(stream, layers=self.read_layers(len(stream.spec.layers)))
        return PaddedInputs(view, self._length(task), 4 * stream.spec.dim * max(self.widths))

    def context(self, task: Task) -> dict[str, np.ndarray]:
        """Return the common length, where the utterances of the task decide it."""
        return {_LENGTH: np.array(self._length(task))} if self.length == "longest" else {}

    def shapes(self, task: Task) -> dict[str, int]:
        """Return the arguments of :meth:`module`, the common length among them."""
        return super().shapes(task) | {_LENGTH: self._length(task)}

    def read_layers(self, num_layers: int) -> Sequence[int]:
        """Return the one layer."""
        return chosen_layers(self.layer, num_layers, self.kind())

    def module(self, num_layers: int, dim: int, num_classes: int, length: int | None = None) -> nn.Module:
        """Return a fresh module.

        Args:
            num_layers: layers of the stream; one is read.
            dim: bands.
            num_classes: number of classes.
            length: frames that every utterance is padded to; None is the setting's, or 100 where the task decides.
        """
        return VggModule(self, dim, num_classes, self._shown if length is None else length)

    def example(self, shapes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        """Return zeros in the form of a training batch of two utterances."""
        length = shapes.get(_LENGTH, self._shown)
        return torch.zeros(2, 1, length, shapes["dim"]), torch.full((2,), length)

    def prepare(self, module: nn.Module, inputs: "PaddedInputs", train: torch.Tensor, layer: int | None) -> None:
        """Take mean and variance of each band over all frames of the training part."""
        block = module.get_submodule("standardise")
        if isinstance(block, Standardise):
            block.set_from(*inputs.moments(train))

    @property
    def _shown(self) -> int:
        """Frames of an utterance where there is no task."""
        return _SHOWN if self.length == "longest" else self.length

    def _length(self, task: Task) -> int:
        if self.length != "longest":
            return self.length
        if _LENGTH in task.context:
            return int(task.context[_LENGTH])
        stream = self.source(task)
        return max(stream.num_frames(name) for name in task.ids)


class PaddedInputs(FrameInputs):
    """Utterances padded or cut to one length: ``(1, batch, 1, length, dim)`` and their real frames ``(1, batch)``.

    Args:
        view: the frames of one layer.
        length: frames of each.
        frame_bytes: what a frame takes inside the network, to score as many at once as fit.
    """

    def __init__(self, view: View, length: int, frame_bytes: int) -> None:
        super().__init__(view)
        self.length = length
        self._together = max(1, _SCORED_BYTES // (frame_bytes * length))

    def batch(self, indices: torch.Tensor, layers: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Return frames and lengths of the one member's batch."""
        frames, lengths = self.view.windows(indices[0], torch.zeros_like(indices[0]), self.length, self.buffer)
        return frames[None], lengths[None]

    def chunks(self, positions: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return utterances as they come; all take the same space."""
        return torch.arange(len(positions)).split(self._together)

    def moments(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation ``(dim,)`` over all frames of some utterances, from those of each."""
        positions = positions.cpu()
        ids = [self.view.ids[position] for position in positions.tolist()]
        each_mean, each_std = (values[:, self.view.layers[0]].astype(float) for values in self.view.stream.stats(ids))
        share = (self.view.lengths[positions].double() / self.view.lengths[positions].sum()).numpy()
        mean = share @ each_mean
        variance = share @ (each_std**2 + (each_mean - mean) ** 2)
        return torch.from_numpy(mean).float(), torch.from_numpy(variance).sqrt().float()


class VggModule(nn.Module):
    """The network of :class:`Vgg`."""

    def __init__(self, settings: Vgg, dim: int, num_classes: int, length: int) -> None:
        super().__init__()
        self.standardise = Standardise(dim)
        blocks: list[nn.Module] = []
        for size, width in zip((1, *settings.widths), settings.widths, strict=False):
            convolution = nn.Conv2d(size, width, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="leaky_relu")
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            # The pool first: the order of the two changes no number, and a quarter is left to do.
            blocks += [convolution, nn.MaxPool2d(2, ceil_mode=True), nn.LeakyReLU(inplace=True)]
            dim, length = -(-dim // 2), -(-length // 2)
        self.convolve = nn.Sequential(*blocks)
        self.project = nn.Sequential(nn.Linear(settings.widths[-1] * length * dim, settings.hidden), nn.LeakyReLU())
        self.dropout = nn.Dropout(settings.dropout)
        self.classify = nn.Linear(settings.hidden, num_classes)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map spectrograms to logits.

        Args:
            frames: ``(batch, 1, frames, dim)``, padded to the common length.
            lengths: ``(batch,)`` real frames of each; what lies behind them has no part.

        Returns:
            Logits ``(batch, classes)``.
        """
        behind = ~inside(lengths, frames.shape[2])
        values = self.standardise(frames).masked_fill(behind[:, None, :, None], 0.0)
        codes = self.convolve(values).flatten(1)  # (batch, width * frames / 32 * dim / 32)
        logits: torch.Tensor = self.classify(self.dropout(self.project(codes)))
        return logits

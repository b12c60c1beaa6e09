"""Padi's speech model: a ResNet34 over log-mels, mean and standard deviation over time, an embedding, a classifier.

Source: Padi et al. 2022, sections 3.2 and 4.2.1 (Odyssey 2022, https://arxiv.org/abs/2202.08974); the network is that
of He et al. 2016 with 34 layers, as it is used for speaker recognition (Zeinali et al. 2019,
https://arxiv.org/abs/1910.12592).

Of the network the paper states 32 channels in the first block, PReLU and batch norm everywhere but at the output,
statistics pooling, an embedding of 512, and 21.5 million parameters. The rest is chosen here:

- Stages of 3, 4, 6 and 3 blocks with 32, 64, 128 and 256 channels, as Zeinali et al.
- Stages 2 to 4 halve the time, as theirs do. Theirs halve the frequency as well: then 256 channels x 16 bands are
  pooled, and 9.5 million parameters result. With one halving, in stage 2, 256 x 64 bands are pooled, most parameters
  are in the embedding layer, and there are **22.1 million** with 128 mels and four classes, the nearest to the paper's
  21.5 that whole halvings give.

**Normalisation.** Every mel has mean 0 and variance 1 over its whole segment ("segment level"), from which chunks are
then drawn; so training and test are normalised alike.

**Chunks.** In training each batch draws one length from `chunks`, and each segment an offset. Behind a shorter segment
follows padding (section 4.2.1): zeros, the mean of what is normalised, which count as frames, as the paper names no
mask. ``shorter="repeat"`` repeats the segment instead, as speaker recognition does it
(https://github.com/clovaai/voxceleb_trainer): where many segments are shorter than a chunk, padding would teach the
network, and batch norm's running statistics, what no whole utterance has. Scores are of whole utterances; what lies
behind them in a batch is hidden after every convolution, and changes no score.

**Transfer.** A run starts from another (``start``) with its convolutions; all that is fully connected, embedding and
output, is new ("we replace the FC layers"). Sizes, strides, normalisation and the stream must be that run's. `freeze`
keeps the convolutions as they begin, the running means of their batch norms too; without it they learn at
``fit.pretrained_rate``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from featcache.errors import ConfigError
from featcache.view import View
from heads.augment import POLICIES, Policy
from heads.head import GradientHead, chosen_layers
from heads.inputs import FrameInputs, longest_first
from heads.models._resnet import Convolutions, ResnetModule
from heads.task import Task

_SCORED_BYTES = 2**28  # of the first stage's values, the largest there are
_LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class Resnet(GradientHead["SegmentInputs"]):
    """A ResNet over mels, pooled over time. The defaults are the paper's speech model; it reads one layer.

    Attributes:
        layer: the layer read: a position, negative from the end. A stream of log-mels has one.
        channels: of the first stage; each later one has twice as many.
        first_stride: by what the first convolution shortens time and frequency. (2, 2) takes a quarter of the time, for
            a laptop.
        blocks: residual blocks of each stage; (3, 4, 6, 3) is ResNet34, (2, 2, 2, 2) ResNet18.
        time_strides: by what each stage shortens the time.
        frequency_strides: by what each stage shortens the frequency; (1, 2, 2, 2) is usual in speaker recognition.
        embedding: size of the layer behind the pooling.
        chunks: frames of a training batch's chunks; one of these is drawn for each batch.
        shorter: what fills a chunk that is longer than its segment: ``"zeros"``, or ``"repeat"``, the segment again.
        normalise: ``"segment"``: each mel's mean and standard deviation over the whole segment; or ``"none"``.
        augment: policy of the masked copies in training, see :mod:`heads.augment`; ``"none"`` makes no copies.
        copies: masked copies beside each chunk, in the same step.
        freeze: ``"convolutions"`` trains the fully connected layers alone; it wants a run to start from.
    """

    title: ClassVar[str] = "Padi's speech model: ResNet34 over log-mels, mean and std over time, embedding, linear"
    tier: ClassVar[Literal["frames", "stats"]] = "frames"
    stacked: ClassVar[bool] = False
    start_may_change: ClassVar[frozenset[str]] = GradientHead.start_may_change | {
        "augment", "chunks", "copies", "embedding", "shorter",
    }  # fmt: skip

    layer: int = -1
    channels: int = 32
    first_stride: tuple[int, int] = (1, 1)
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    time_strides: tuple[int, ...] = (1, 2, 2, 2)
    frequency_strides: tuple[int, ...] = (1, 2, 1, 1)
    embedding: int = 512
    chunks: tuple[int, ...] = (150, 200, 250, 300)
    shorter: Literal["zeros", "repeat"] = "zeros"
    normalise: Literal["segment", "none"] = "segment"
    augment: Policy = "none"
    copies: int = 2
    freeze: Literal["nothing", "convolutions"] = "nothing"

    def __post_init__(self) -> None:
        stages = {len(self.blocks), len(self.time_strides), len(self.frequency_strides)}
        if not self.blocks or len(stages) > 1:
            raise ConfigError(
                f"resnet takes a number of blocks and two strides for every stage, got blocks {self.blocks}, "
                f"time_strides {self.time_strides} and frequency_strides {self.frequency_strides}."
            )
        if not self.chunks:
            raise ConfigError("resnet needs one or more lengths of chunks, in frames.")
        sizes = (*self.first_stride, *self.blocks, *self.time_strides, *self.frequency_strides, *self.chunks)
        if min(self.channels, self.embedding, self.copies, *sizes) < 1:
            raise ConfigError(f"resnet takes sizes, strides, chunks and copies of 1 or more, got {self}.")
        if self.normalise == "none" and (self.augment != "none" or self.shorter == "zeros"):
            raise ConfigError(
                "resnet masks and pads with 0, which is the mean of normalised segments, and louder than speech in "
                "log-mels as they are. Set normalise to segment, or augment to none and shorter to repeat."
            )

    def read_layers(self, num_layers: int) -> Sequence[int]:
        """Return the one layer."""
        return chosen_layers(self.layer, num_layers, self.kind())

    def inputs(self, task: Task) -> "SegmentInputs":
        """Return the frames of the layer."""
        stream = task.stream(self.kind())
        view = task.view(stream, layers=self.read_layers(len(stream.spec.layers)))
        return SegmentInputs(view, self)

    def module(self, num_layers: int, dim: int, num_classes: int) -> ResnetModule:
        """Return a fresh module."""
        strides = list(zip(self.time_strides, self.frequency_strides, strict=True))
        bands = dim
        for stride in (self.first_stride[1], *self.frequency_strides):
            bands = -(-bands // stride)
        width = self.channels * 2 ** (len(self.blocks) - 1)
        return ResnetModule(
            Convolutions(self.channels, self.blocks, strides, self.first_stride),
            2 * width * bands,
            self.embedding,
            num_classes,
            POLICIES.get(self.augment),
            self.copies,
            self.freeze == "convolutions",
        )

    def prepare(self, module: torch.nn.Module, inputs: "SegmentInputs", train: torch.Tensor, layer: int | None) -> None:
        """Refuse to freeze convolutions that never learnt anything.

        Raises:
            ConfigError: see above.
        """
        if self.freeze == "convolutions" and not int(module.state_dict()["convolutions.norm.num_batches_tracked"]):
            raise ConfigError(
                "resnet is to freeze its convolutions, and they begin at random. Set start to the folder of a run of "
                "resnet, such as one that tells speakers apart, or settings.freeze to nothing."
            )


class SegmentInputs(FrameInputs):
    """Normalised segments: whole ones to score, chunks of one length a batch to train on."""

    def __init__(self, view: View, settings: Resnet) -> None:
        super().__init__(view)
        self._settings = settings
        self._norms = view.stats() if settings.normalise == "segment" else None

    def batch(self, indices: torch.Tensor, layers: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Return whole utterances, ``(1, batch, 1, frames, mels)``, and their lengths; anything lies behind them."""
        frames, lengths = self.view.padded(indices[0], self.buffer)
        return self._normalised(frames, indices[0])[None], lengths[None]

    def training_batch(
        self, indices: torch.Tensor, layers: torch.Tensor | None, generator: torch.Generator
    ) -> tuple[torch.Tensor, ...]:
        """Return a chunk of each utterance, ``(1, batch, 1, chunk, mels)``; a shorter one is filled up."""
        chosen, chunks = indices[0].cpu(), self._settings.chunks
        length = chunks[int(torch.randint(len(chunks), (), generator=generator))]
        room = (self.view.lengths[chosen] - length).clamp(min=0)
        starts = (torch.rand(len(chosen), generator=generator, dtype=torch.float64) * (room + 1)).long().clamp(max=room)
        frames, counts = self.view.windows(chosen, starts, length, self.buffer)
        frames = self._normalised(frames, chosen)
        if int(self.view.lengths[chosen].min()) < length:
            places = torch.arange(length, device=frames.device)
            if self._settings.shorter == "zeros":
                frames.masked_fill_((places >= counts[:, None])[:, None, :, None], 0.0)
            else:
                frames = frames.gather(2, (places % counts[:, None])[:, None, :, None].expand_as(frames))
        return (frames[None],)

    def chunks(self, positions: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return utterances of like length together, as many as the first stage's values leave memory for."""
        frame_bytes = 4 * self._settings.channels * self.view.stream.spec.dim
        return longest_first(frame_bytes * self.view.lengths[positions][None], _SCORED_BYTES)

    def _normalised(self, frames: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Normalise ``(batch, 1, frames, mels)`` by each utterance's own mean and standard deviation, in place."""
        if self._norms is None:
            return frames
        mean, std = (values[indices.to(values.device)][:, :, None] for values in self._norms)
        # A mel that varies by less than float16 resolves, such as a band without sound, is not blown up.
        spread = torch.maximum(std, _LEAST_SPREAD * mean.abs()).clamp(min=1e-12)
        return frames.sub_(mean).div_(spread)

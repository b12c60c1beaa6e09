"""Fine-tuning: an encoder trained together with the mean over time and a linear layer.

Source: Morais et al. 2022, section 2.2 (wav2vec 2.0 and HuBERT with mean pooling and a linear layer), as SUPERB's
emotion head with an encoder that trains; Padi et al. 2022, section 3.1.2, have BERT with a new classification head.

Training starts at the stream that is read, so what is frozen for good is computed once, see :mod:`heads.encoder`.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from featcache.cache import CachedStream
from featcache.errors import ConfigError
from featcache.files import canonical_json
from featcache.stream import EXACT_DTYPES, StreamSpec
from featcache.view import View
from heads.encoder import EncoderModule, Freeze, check_freeze, check_least, encoder_of, load_encoder, start_of
from heads.head import GradientHead
from heads.inputs import FrameInputs, longest_first
from heads.layers import masked_mean
from heads.task import Task, features_of

_SAMPLES, _FRAMES = 480_000, 4000
"""What is scored at once, padding included: 30 s of samples, or so many frames; an encoder holds 1 to 60 KB of each."""


@dataclass(frozen=True)
class Finetune(GradientHead["EncoderInputs"]):
    """An encoder, the mean over an utterance's own frames, and a linear layer.

    Attributes:
        checkpoint: the encoder: a folder, a name on the Hub, ``"minilm"``, ``"resemblyzer"`` or a demo checkpoint; None
            is the one that the stream was computed with.
        revision: branch, tag or commit on the Hub; None is what is on this machine, else the default branch.
        freeze: what does not train: ``"nothing"``, ``"front_end"`` (the convolutions of a speech encoder, the
            embeddings of a text encoder), N for all up to layer N, or ``"all"``. None is the front end, or all that
            lies below the stream that is read.
        start_layer: layer of the stream that the encoder starts from, where the stream has several: 0 is its first,
            negative ones count from the end.
        dropout: keep the encoder's own dropout, layer drop and SpecAugment in training. Without it, fine-tuning from
            any boundary gives the same numbers.
        pooled_dropout: share of the pooled values set to 0 in training.
        projector_dim: width of a linear layer between pooling and classes, as SUPERB's head has; 0 is none.
    """

    title: ClassVar[str] = "an encoder trained jointly with mean pooling and a linear layer"
    tier: ClassVar[Literal["frames", "stats"]] = "frames"
    stacked: ClassVar[bool] = False

    checkpoint: str | None = None
    revision: str | None = None
    freeze: Freeze | None = None
    start_layer: int | None = None
    dropout: bool = False
    pooled_dropout: float = 0.0
    projector_dim: int = 0

    def __post_init__(self) -> None:
        check_freeze(self.freeze)
        if not 0 <= self.pooled_dropout < 1:
            raise ConfigError(f"pooled_dropout must be 0 to below 1, got {self.pooled_dropout}.")
        if self.projector_dim < 0:
            raise ConfigError(f"projector_dim must be 0, for none, or a width, got {self.projector_dim}.")

    def source(self, task: Task) -> CachedStream:
        """Return the stream that the encoder starts from: ids of tokens are features here, other ids are not.

        Raises:
            ConfigError: there are several streams or none, or no encoder starts from this one.
        """
        if len(task.streams) != 1:
            return task.stream(self.kind())
        [stream] = task.streams.values()
        if stream.spec.dtype in EXACT_DTYPES and stream.spec.kind != "tokens":
            features_of(self.kind(), stream)
        encoder_of(stream.spec)
        return stream

    def inputs(self, task: Task) -> "EncoderInputs":
        """Return the frames of the one layer that is read.

        Raises:
            StreamError: an utterance is too short to give a state; names it.
        """
        stream = self.source(task)
        view = task.view(stream, layers=[start_of(stream.spec, self.start_layer)])
        check_least(view, self.checkpoint, self.revision)
        return EncoderInputs(view)

    def layer_names(self, task: Task) -> Sequence[str]:
        """Return the name of the layer that is read."""
        spec = self.source(task).spec
        return [spec.layers[start_of(spec, self.start_layer)]]

    def shapes(self, task: Task) -> dict[str, Any]:
        """Return the arguments of :meth:`module` for a task."""
        spec = self.source(task).spec
        return super().shapes(task) | {"stream": canonical_json(spec.identity()).decode()}

    def module(self, num_layers: int, dim: int, num_classes: int, stream: str = "") -> "FinetuneModule":
        """Return a module with the checkpoint's weights.

        Args:
            num_layers: layers of the stream.
            dim: size of its frame.
            num_classes: number of classes.
            stream: what decides its numbers, as JSON. Without it the module is for frames of any encoder, which is left
                out, to show what comes behind.
        """
        encoder = None
        if stream:
            spec = StreamSpec.from_json(json.loads(stream))
            encoder = load_encoder(spec, self.checkpoint, self.revision, self.freeze, self.dropout, self.start_layer)
        return FinetuneModule(self, encoder, dim, num_classes)

    def example(self, shapes: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        """Return zeros in the form of a batch of two utterances: of one layer, and a quarter of a second of samples."""
        length = 4000 if shapes["dim"] == 1 else 100
        return torch.zeros(2, 1, length, shapes["dim"]), torch.full((2,), length)

    def pretrained(self, module: nn.Module) -> Collection[str]:
        """Return the names of the encoder's parameters."""
        return [name for name, _ in module.named_parameters() if name.startswith("encoder.")]

    def save_encoder(self, task: Task, weights: Mapping[str, np.ndarray], folder: Path) -> None:
        """Save the encoder that a fold ended with, as a checkpoint that streams can be extracted with.

        Args:
            task: what it was trained on; its stream says where it started.
            weights: what the fold left, see :class:`heads.task.Trained`.
            folder: where to; an older one there is replaced.

        Raises:
            ScoresError: the weights are not of this head with these settings and streams.
        """
        module = self.restored(task, weights)
        encoder = module.encoder
        if not isinstance(encoder, EncoderModule):
            raise TypeError(f"got a {type(module).__name__} without an encoder, expected what module() returns")
        encoder.save(folder)


class EncoderInputs(FrameInputs):
    """Whole utterances of the one layer that is read; few at a time are scored, since an encoder holds much of each."""

    def __init__(self, view: View) -> None:
        super().__init__(view)
        self._most = _SAMPLES if view.stream.spec.kind == "waveform" else _FRAMES

    def chunks(self, positions: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return utterances of like length together, of bounded length in all, or one that alone is longer."""
        return longest_first(self.view.lengths[positions][None], self._most)


class FinetuneModule(nn.Module):
    """The network of :class:`Finetune`.

    Attributes:
        encoder: the encoder; None where only what is behind it is shown.
    """

    def __init__(self, settings: Finetune, encoder: EncoderModule | None, dim: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        dim = dim if encoder is None else encoder.dim
        width = settings.projector_dim
        self.project = nn.Linear(dim, width) if width else nn.Identity()
        self.dropout = nn.Dropout(settings.pooled_dropout)
        self.classify = nn.Linear(width or dim, num_classes)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, 1, frames, dim)`` and ``(batch,)`` frame counts to logits ``(batch, classes)``."""
        states, counts = (frames[:, 0], lengths) if self.encoder is None else self.encoder(frames, lengths)
        logits: torch.Tensor = self.classify(self.dropout(self.project(masked_mean(states, counts))))
        return logits

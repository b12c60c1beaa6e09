"""What the streams of self-supervised speech encoders share: checkpoint, samples as they go in, frame counts, batches.

The families are wav2vec 2.0, HuBERT, WavLM and data2vec.

Batching. Padding changes no number only where every normalisation is per frame, that is with layer norm in the
convolutional front end and in the position embedding; other checkpoints get batches of equal length.
"""

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from featcache import checkpoints, hub
from featcache.checkpoints import Checkpoint
from featcache.errors import CheckpointError, StreamError
from featcache.staging import StagedExtractor, Staging, to_device
from featcache.stream import Features, Stream

if TYPE_CHECKING:
    import torch

FAMILIES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")
SAMPLE_RATE_HZ = 16000

_NEEDED = ("num_hidden_layers", "hidden_size", "intermediate_size", "conv_dim", "conv_kernel", "conv_stride")
_MOST_PADDING = 1.05
_LARGE_PARAMETERS = 3.0e8
# Seconds for a second of audio at wav2vec2-large's size on 2 CPU cores with AMX (benchmarks/extraction.py), for plans
# only. Elsewhere nothing was measured, and a plan says that the time is unknown.
_COSTS = {("cpu", "float32"): 0.25, ("cpu", "bfloat16"): 0.08}


def resolve(name: str, revision: str | None, kind: str) -> Checkpoint:
    """Find the checkpoint of a speech encoder.

    Args:
        name: as :func:`featcache.checkpoints.resolve` takes it.
        revision: likewise.
        kind: what wants it, for messages.

    Raises:
        CheckpointError: there is none, or it is of another kind.
    """
    checkpoint = checkpoints.resolve(name, revision)
    family = checkpoint.config.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(
            f"The checkpoint {name!r} is of type {family!r}; {kind} takes {', '.join(FAMILIES)}. "
            "For text encoders use the stream token_states."
        )
    lacking = [key for key in _NEEDED if key not in checkpoint.config]
    if lacking:
        raise CheckpointError(f"The config.json of {name!r} lacks {', '.join(lacking)}. Save it again.")
    return checkpoint


def hides_padding(config: Mapping[str, Any]) -> bool:
    """Say whether an attention mask makes a padded batch give the same frames as one utterance alone."""
    if config["model_type"] == "data2vec-audio":  # its position embedding normalises what lies in the padding
        return False
    return config.get("feat_extract_norm") == "layer" and not config.get("conv_pos_batch_norm", False)


def normalises(checkpoint: Checkpoint, revision: str | None, kind: str, wanted: bool | None = None) -> bool:
    """Say whether samples get zero mean and unit variance before the model.

    Args:
        checkpoint: the checkpoint.
        revision: of the Hub, from where ``preprocessor_config.json`` may have to be fetched.
        kind: what wants to know, for messages.
        wanted: what the user says; None does as ``preprocessor_config.json`` says, and normalises where there is none.

    Raises:
        CheckpointError: that file cannot be read, or the checkpoint wants another sample rate.
    """
    settings = _preprocessor(checkpoint, revision, kind, fetch=wanted is None)
    rate = settings.get("sampling_rate", SAMPLE_RATE_HZ)
    if rate != SAMPLE_RATE_HZ:
        raise CheckpointError(
            f"The checkpoint {checkpoint.name!r} wants audio at {rate} Hz; {kind} feeds {SAMPLE_RATE_HZ} Hz. Choose a "
            "checkpoint trained at that rate."
        )
    return bool(settings.get("do_normalize", True)) if wanted is None else wanted


def _preprocessor(checkpoint: Checkpoint, revision: str | None, kind: str, fetch: bool) -> Mapping[str, Any]:
    """Return what ``preprocessor_config.json`` says; a checkpoint may come without one."""
    path = checkpoint.folder / "preprocessor_config.json"
    if not path.is_file() and checkpoint.from_hub and fetch:
        hub.fetch_optional(checkpoint.name, revision, path.name, f"Or set {kind}.normalise.")
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is not JSON: {error}. Download it again.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{str(path)!r} must hold a JSON object. Download it again.")
    return values


def normalised(samples: np.ndarray) -> np.ndarray:
    """Return samples of zero mean and unit variance, with the epsilon of transformers' feature extractor."""
    return ((samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)).astype(np.float32)


def num_frames(config: Mapping[str, Any], num_samples: int) -> int:
    """Return how many frames the convolutional front end gives for that many samples."""
    length = num_samples
    for kernel, stride in zip(config["conv_kernel"], config["conv_stride"], strict=True):
        length = (length - kernel) // stride + 1
    return max(0, length)


def seconds_per_second(config: Mapping[str, Any], device: str, compute_dtype: str, layers: int) -> float | None:
    """Return a rough cost of the front end and the first `layers` layers; None where none was measured."""
    cost = _COSTS.get((device, compute_dtype))
    if cost is None:
        return None
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    parameters = layers * (4 * width * width + 2 * width * inner)
    return cost * (0.1 + 0.9 * parameters / _LARGE_PARAMETERS)


@dataclass(frozen=True)
class SpeechEncoderStream(Stream):
    """A stream computed by a speech encoder, or by its front end.

    Attributes:
        checkpoint: name on the Hugging Face Hub, a folder, or a demo checkpoint such as ``"demo:wav2vec2"``.
        revision: branch, tag or commit on the Hub; None is what is on this machine, else the default branch.
        normalise: zero mean and unit variance for each utterance's samples before the model. None does as the
            checkpoint's ``preprocessor_config.json`` says, and normalises where there is none.
        pad: ``"match_log_mel"`` adds zeros on both sides so that there are as many frames as ``log_mel`` has at
            20 ms (Makiuchi et al.: 160 samples a side when ``samples % 320 >= 80``, else 319).
    """

    checkpoint: str = "facebook/wav2vec2-large-lv60"
    revision: str | None = None
    normalise: bool | None = None
    pad: Literal["none", "match_log_mel"] = "none"

    def num_frames(self, num_samples: int) -> int:
        """Return how many frames the convolutional front end gives for that many samples."""
        return num_frames(self.resolved.config, num_samples + 2 * self._side(num_samples))

    def batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Group by length: equal where the model demands it, else within 5 %."""
        most = _MOST_PADDING if hides_padding(self.resolved.config) else 1.0
        groups: list[list[int]] = []
        for index in sorted(range(len(lengths)), key=lambda at: (lengths[at], at)):
            if groups and len(groups[-1]) < batch_size and lengths[index] <= most * lengths[groups[-1][0]]:
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups

    def prepare(self, samples: np.ndarray, normalise: bool) -> np.ndarray:
        """Return ``(samples,)`` as the model receives them: padded, then normalised."""
        side = self._side(len(samples))
        padded = np.pad(samples, side) if side else samples
        return normalised(padded) if normalise else padded

    def _side(self, num_samples: int) -> int:
        """Return the zeros to add on each side."""
        if self.pad == "none":
            return 0
        return 160 if num_samples % 320 >= 80 else 319

    @cached_property
    def resolved(self) -> Checkpoint:
        """The checkpoint's files, as they were when this was first asked."""
        return resolve(self.checkpoint, self.revision, self.kind())

    def resolve_again(self) -> Checkpoint:
        """Return :attr:`resolved` of the files as they are now."""
        self.__dict__.pop("resolved", None)
        return self.resolved

    def input_settings(self) -> dict[str, Any]:
        """Return what a spec's settings say of the samples that the model receives."""
        return {"normalise": self.normalises, "pad": self.pad}

    @property
    def normalises(self) -> bool:
        """Whether samples are normalised."""
        return normalises(self.resolved, self.revision, self.kind(), self.normalise)

    @property
    def frame_shift_s(self) -> float:
        """Time from one frame to the next, in seconds."""
        return float(np.prod(self.resolved.config["conv_stride"])) / self.sample_rate_hz


class SpeechEncoderExtractor(StagedExtractor):
    """Brings batches of samples to a model.

    Args:
        stream: its settings.
        parameter: any weight of the model, which says on what device and in what type it computes.
    """

    def __init__(self, stream: SpeechEncoderStream, parameter: "torch.Tensor") -> None:
        self._stream = stream
        self._normalise = stream.normalises
        self._device, self._dtype = parameter.device, parameter.dtype
        self._staging = Staging()

    def start(self, inputs: Sequence[np.ndarray]) -> Callable[[], list[Features]]:
        """Start a batch of ``(samples,)`` float32 arrays at 16 kHz."""
        counts = [self._stream.num_frames(len(samples)) for samples in inputs]
        shortest = min(range(len(inputs)), key=lambda index: counts[index])
        if counts[shortest] < 1:
            raise StreamError(
                f"it has {len(inputs[shortest])} samples, too few for one frame of "
                f"{self._stream.checkpoint} (400 samples are 25 ms). Leave it out, or give a longer span."
            )
        batch = [self._stream.prepare(samples, self._normalise) for samples in inputs]
        longest = max(len(samples) for samples in batch)
        values = np.zeros((len(batch), longest), np.float32)
        mask = np.zeros((len(batch), longest), np.int64)
        for row, samples in enumerate(batch):
            values[row, : len(samples)] = samples
            mask[row, : len(samples)] = 1
        with checkpoints.inference():
            states = self.run(to_device(values, self._device, self._dtype), to_device(mask, self._device))
            copied = self._staging.start(states)

        def finish() -> list[Features]:
            states = copied()  # (batch, layers, frames, dim)
            return [Features(states[row, :, :count]) for row, count in enumerate(counts)]

        return finish

    @abstractmethod
    def run(self, values: "torch.Tensor", mask: "torch.Tensor") -> "Sequence[torch.Tensor]":
        """Run the model, without gradients.

        Args:
            values: ``(batch, samples)``, zero-padded at the end.
            mask: ``(batch, samples)`` int64, 1 where they are no padding.

        Returns:
            ``(batch, frames, dim)`` of each layer; frames behind a shorter utterance are meaningless.
        """

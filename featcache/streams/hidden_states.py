"""Hidden states of a self-supervised speech encoder: what enters its transformer, and what each layer gives.

Source of the definition: Makiuchi et al. 2021, section 3.1.1 (25 x 1024 of wav2vec2-large-lv60), and SUPERB
(Yang et al. 2021). The tap points are modules, not positions in what transformers returns, because those moved:
``hidden_states[-1]`` of a stable-layer-norm model is before the encoder's final layer norm in transformers 5 and
after it in 4. Here ``layer_N`` is always what transformer block N returns, and ``encoder_input`` is what
block 1 receives, which includes the convolutional position embedding.

Batching. Padding changes no number only where every normalisation is per frame, that is with layer norm in the
convolutional front end and in the position embedding; other checkpoints get batches of equal length.
"""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from featcache import checkpoints, hub
from featcache.checkpoints import Checkpoint
from featcache.errors import CheckpointError, StreamError
from featcache.staging import StagedExtractor, Staging, to_device
from featcache.stream import Features, Stream, StreamSpec

if TYPE_CHECKING:
    import torch

FAMILIES = ("wav2vec2", "hubert", "wavlm", "data2vec-audio")
_MOST_PADDING = 1.05
_LARGE_PARAMETERS = 3.0e8
# Seconds for a second of audio at wav2vec2-large's size on 2 CPU cores with AMX (benchmarks/extraction.py), for plans
# only. Elsewhere nothing was measured, and a plan says that the time is unknown.
_COSTS = {("cpu", "float32"): 0.25, ("cpu", "bfloat16"): 0.08}


@dataclass(frozen=True)
class HiddenStates(Stream):
    """All layers of a wav2vec2, HuBERT, WavLM or data2vec-audio encoder.

    Attributes:
        checkpoint: name on the Hugging Face Hub, or a folder.
        revision: branch, tag or commit on the Hub; None is what is on this machine, else the default branch.
        tap: ``"layer_outputs"`` takes every block's output as it is; ``"final_norm"`` passes the last one through
            the encoder's final layer norm, where the model has one behind its blocks.
        normalise: zero mean and unit variance for each utterance's samples before the model. None does as the
            checkpoint's ``preprocessor_config.json`` says, and normalises where there is none.
        pad: ``"match_log_mel"`` adds zeros on both sides so that there are as many frames as ``log_mel`` has at
            20 ms (Makiuchi et al.: 160 samples a side when ``samples % 320 >= 80``, else 319).
    """

    title: ClassVar[str] = "all layers of a self-supervised speech encoder (wav2vec2, HuBERT, WavLM, data2vec)"

    checkpoint: str = "facebook/wav2vec2-large-lv60"
    revision: str | None = None
    tap: Literal["layer_outputs", "final_norm"] = "layer_outputs"
    normalise: bool | None = None
    pad: Literal["none", "match_log_mel"] = "none"

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the numbers; reads the configuration and hashes the weights, loads no model."""
        self.__dict__.pop("_resolved", None)  # the files may be others than when this was last asked
        checkpoint = self._resolved
        config = checkpoint.config
        normed = self.tap == "final_norm" and bool(config.get("do_stable_layer_norm"))
        num_layers = int(config["num_hidden_layers"])
        layers = ["encoder_input", *(f"layer_{number}" for number in range(1, num_layers + 1))]
        if normed:
            layers[-1] += "_normed"
        return StreamSpec(
            kind=self.kind(),
            version=1,
            input="audio",
            settings={
                "tap": "final_norm" if normed else "layer_outputs",
                "normalise": self._normalises(checkpoint),
                "pad": self.pad,
            },
            layers=tuple(layers),
            dim=int(config["hidden_size"]),
            frame_shift_s=float(np.prod(config["conv_stride"])) / self.sample_rate_hz,
            sample_rate_hz=self.sample_rate_hz,
            checkpoint=checkpoint.identity(),
            compute_dtype=compute_dtype,
            dtype=dtype,
            notes="encoder_input: input of the first transformer block; layer_N: output of block N.",
        )

    def load(self, device: str, compute_dtype: str) -> "HiddenStatesExtractor":
        """Load the encoder."""
        checkpoint = self._resolved
        model = checkpoints.load_model(checkpoint, device, compute_dtype)
        return HiddenStatesExtractor(self, model, self._normalises(checkpoint))

    def num_frames(self, num_samples: int) -> int:
        """Return how many frames the convolutional front end gives for that many samples."""
        config = self._resolved.config
        length = num_samples + 2 * self.padding(num_samples)
        for kernel, stride in zip(config["conv_kernel"], config["conv_stride"], strict=True):
            length = (length - kernel) // stride + 1
        return max(0, length)

    def padding(self, num_samples: int) -> int:
        """Return the zeros to add on each side."""
        if self.pad == "none":
            return 0
        return 160 if num_samples % 320 >= 80 else 319

    def batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Group by length: equal where the model demands it, else within 5 %."""
        most = _MOST_PADDING if _hides_padding(self._resolved.config) else 1.0
        groups: list[list[int]] = []
        for index in sorted(range(len(lengths)), key=lambda at: (lengths[at], at)):
            if groups and len(groups[-1]) < batch_size and lengths[index] <= most * lengths[groups[-1][0]]:
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups

    def seconds_per_second(self, device: str, compute_dtype: str) -> float | None:
        """Return a rough cost, from the transformer's size; None where none was measured."""
        cost = _COSTS.get((device, compute_dtype))
        if cost is None:
            return None
        config = self._resolved.config
        width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
        parameters = int(config["num_hidden_layers"]) * (4 * width * width + 2 * width * inner)
        return cost * (0.1 + 0.9 * parameters / _LARGE_PARAMETERS)

    @cached_property
    def _resolved(self) -> Checkpoint:
        checkpoint = checkpoints.resolve(self.checkpoint, self.revision)
        family = checkpoint.config.get("model_type")
        if family not in FAMILIES:
            raise CheckpointError(
                f"The checkpoint {self.checkpoint!r} is of type {family!r}; hidden_states takes {', '.join(FAMILIES)}. "
                "For text encoders use the stream token_states."
            )
        needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "conv_kernel", "conv_stride")
        lacking = [key for key in needed if key not in checkpoint.config]
        if lacking:
            raise CheckpointError(f"The config.json of {self.checkpoint!r} lacks {', '.join(lacking)}. Save it again.")
        return checkpoint

    def _normalises(self, checkpoint: Checkpoint) -> bool:
        settings = self._preprocessor(checkpoint)
        rate = settings.get("sampling_rate", self.sample_rate_hz)
        if rate != self.sample_rate_hz:
            raise CheckpointError(
                f"The checkpoint {self.checkpoint!r} wants audio at {rate} Hz; hidden_states feeds "
                f"{self.sample_rate_hz} Hz. Choose a checkpoint trained at that rate."
            )
        return bool(settings.get("do_normalize", True)) if self.normalise is None else self.normalise

    def _preprocessor(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """Return what ``preprocessor_config.json`` says; a checkpoint may come without one."""
        path = checkpoint.folder / "preprocessor_config.json"
        if not path.is_file() and checkpoint.from_hub and self.normalise is None:
            hub.fetch_optional(self.checkpoint, self.revision, path.name, "Or set hidden_states.normalise.")
        if not path.is_file():
            return {}
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(f"{str(path)!r} is not JSON: {error}. Download it again.") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{str(path)!r} must hold a JSON object. Download it again.")
        return values


def _hides_padding(config: Mapping[str, Any]) -> bool:
    """Say whether an attention mask makes a padded batch give the same frames as one utterance alone."""
    if config["model_type"] == "data2vec-audio":  # its position embedding normalises what lies in the padding
        return False
    return config.get("feat_extract_norm") == "layer" and not config.get("conv_pos_batch_norm", False)


class HiddenStatesExtractor(StagedExtractor):
    """A loaded encoder.

    Args:
        stream: its settings.
        model: the encoder, in eval mode.
        normalise: whether samples get zero mean and unit variance.
    """

    def __init__(self, stream: HiddenStates, model: Any, normalise: bool) -> None:
        self._stream = stream
        self._model = model
        self._normalise = normalise
        self._normed = stream.tap == "final_norm" and bool(getattr(model.config, "do_stable_layer_norm", False))
        self._masked = _hides_padding(model.config.to_dict())
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
        copied = self._run([self._prepare(samples) for samples in inputs])

        def finish() -> list[Features]:
            states = copied()
            return [Features(states[row, :, :count]) for row, count in enumerate(counts)]

        return finish

    def _prepare(self, samples: np.ndarray) -> np.ndarray:
        """Pad, then normalise, in the order and with the epsilon of transformers' feature extractor."""
        side = self._stream.padding(len(samples))
        padded = np.pad(samples, side) if side else samples
        if not self._normalise:
            return padded
        return ((padded - padded.mean()) / np.sqrt(padded.var() + 1e-7)).astype(np.float32)

    def _run(self, batch: Sequence[np.ndarray]) -> Callable[[], np.ndarray]:
        """Start the model; what is returned waits for ``(batch, layers, frames, dim)`` float32.

        Frames behind a shorter utterance are meaningless.
        """
        longest = max(len(samples) for samples in batch)
        values = np.zeros((len(batch), longest), np.float32)
        mask = np.zeros((len(batch), longest), np.int64)
        for row, samples in enumerate(batch):
            values[row, : len(samples)] = samples
            mask[row, : len(samples)] = 1
        parameter = next(self._model.parameters())
        with warnings.catch_warnings(), checkpoints.inference(), _Taps(self._model.encoder.layers) as taps:
            # WavLM in transformers 5 hands torch masks of two types, which torch accepts with a warning.
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
            self._model(
                to_device(values, parameter.device, parameter.dtype),
                attention_mask=to_device(mask, parameter.device) if self._masked else None,
            )
            states = taps.states
            if self._normed:
                states[-1] = self._model.encoder.layer_norm(states[-1])
            return self._staging.start(states)


class _Taps:
    """Hooks that collect what the first block receives and what every block returns, during one forward pass."""

    def __init__(self, blocks: Any) -> None:
        self._blocks = blocks
        self.states: list[torch.Tensor] = []

    def __enter__(self) -> "_Taps":
        first = self._blocks[0].register_forward_pre_hook(self._input, with_kwargs=True)
        self._handles = [first, *(block.register_forward_hook(self._output) for block in self._blocks)]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _input(self, _: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.states.append(args[0] if args else kwargs["hidden_states"])

    def _output(self, _: Any, __: Any, output: Any) -> None:
        self.states.append(output[0] if isinstance(output, tuple) else output)

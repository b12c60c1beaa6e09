"""Hidden states of a self-supervised speech encoder: what enters its transformer, and what each layer gives.

Source of the definition: Makiuchi et al. 2021, section 3.1.1 (25 x 1024 of wav2vec2-large-lv60), and SUPERB
(Yang et al. 2021). The tap points are modules, not positions in what transformers returns, because those moved:
``hidden_states[-1]`` of a stable-layer-norm model is before the encoder's final layer norm in transformers 5 and
after it in 4. Here ``layer_N`` is always what transformer block N returns, and ``encoder_input`` is what
block 1 receives, which includes the convolutional position embedding.

How utterances share batches is said in :mod:`featcache.speech_encoders`.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from featcache import checkpoints, speech_encoders
from featcache.speech_encoders import SpeechEncoderExtractor, SpeechEncoderStream
from featcache.stream import StreamSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class HiddenStates(SpeechEncoderStream):
    """All layers of a wav2vec2, HuBERT, WavLM or data2vec-audio encoder; further settings are those of every such one.

    Attributes:
        tap: ``"layer_outputs"`` takes every block's output as it is; ``"final_norm"`` passes the last one through
            the encoder's final layer norm, where the model has one behind its blocks.
        layers: ``"all"``, or the ``"last"`` alone, such as of the encoder of each fold, whose 25 layers would take 25
            times the space.
    """

    title: ClassVar[str] = "all layers of a self-supervised speech encoder (wav2vec2, HuBERT, WavLM, data2vec)"

    tap: Literal["layer_outputs", "final_norm"] = "layer_outputs"
    layers: Literal["all", "last"] = "all"

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the numbers; reads the configuration and hashes the weights, loads no model."""
        checkpoint = self.resolve_again()
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
                **self.input_settings(),
                # Streams of all layers are older than the setting, and keep their digest.
                **({"layers": self.layers} if self.layers == "last" else {}),
            },
            layers=tuple(layers if self.layers == "all" else layers[-1:]),
            dim=int(config["hidden_size"]),
            frame_shift_s=self.frame_shift_s,
            sample_rate_hz=self.sample_rate_hz,
            checkpoint=checkpoint.identity(),
            compute_dtype=compute_dtype,
            dtype=dtype,
            notes="encoder_input: input of the first transformer block; layer_N: output of block N.",
        )

    def load(self, device: str, compute_dtype: str) -> "HiddenStatesExtractor":
        """Load the encoder."""
        return HiddenStatesExtractor(self, checkpoints.load_model(self.resolved, device, compute_dtype))

    def seconds_per_second(self, device: str, compute_dtype: str) -> float | None:
        """Return a rough cost, from the transformer's size; None where none was measured."""
        config = self.resolved.config
        return speech_encoders.seconds_per_second(config, device, compute_dtype, int(config["num_hidden_layers"]))


class HiddenStatesExtractor(SpeechEncoderExtractor):
    """A loaded encoder.

    Args:
        stream: its settings.
        model: the encoder, in eval mode.
    """

    def __init__(self, stream: HiddenStates, model: Any) -> None:
        super().__init__(stream, next(model.parameters()))
        self._model = model
        self._first = -1 if stream.layers == "last" else 0
        self._normed = stream.tap == "final_norm" and bool(getattr(model.config, "do_stable_layer_norm", False))
        self._masked = speech_encoders.hides_padding(model.config.to_dict())

    def run(self, values: "torch.Tensor", mask: "torch.Tensor") -> "list[torch.Tensor]":
        """Return what the first block receives, and what each one gives."""
        with warnings.catch_warnings(), _Taps(self._model.encoder.layers) as taps:
            # WavLM in transformers 5 hands torch masks of two types, which torch accepts with a warning.
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
            self._model(values, attention_mask=mask if self._masked else None)
        states = taps.states
        if self._normed:
            states[-1] = self._model.encoder.layer_norm(states[-1])
        return states[self._first :]


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

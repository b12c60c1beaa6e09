"""What the convolutional front end of a self-supervised speech encoder gives, before the feature projection.

Source: Baevski et al. 2020 ("wav2vec 2.0"), section 2: the feature encoder, which is kept frozen when the rest is
fine-tuned. Its output is the same in every epoch, so fine-tuning can start from here (``heads/encoder.py``); the layer
norm and the linear layer of the feature projection are among what is trained.

How utterances share batches is said in :mod:`featcache.speech_encoders`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from featcache import checkpoints, speech_encoders
from featcache.speech_encoders import SpeechEncoderExtractor, SpeechEncoderStream
from featcache.stream import StreamSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ConvFeatures(SpeechEncoderStream):
    """Output of the convolutions of a wav2vec2, HuBERT, WavLM or data2vec-audio encoder; settings as hidden_states."""

    title: ClassVar[str] = "convolutional front end of a speech encoder, from which fine-tuning can start"

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the numbers; reads the configuration and hashes the weights, loads no model."""
        checkpoint = self.resolve_again()
        return StreamSpec(
            kind=self.kind(),
            version=1,
            input="audio",
            settings=self.input_settings(),
            layers=("conv",),
            dim=int(checkpoint.config["conv_dim"][-1]),
            frame_shift_s=self.frame_shift_s,
            sample_rate_hz=self.sample_rate_hz,
            checkpoint=checkpoint.identity(),
            compute_dtype=compute_dtype,
            dtype=dtype,
            notes="conv: output of the last convolution; the feature projection and its layer norm come behind it.",
        )

    def load(self, device: str, compute_dtype: str) -> "ConvFeaturesExtractor":
        """Load the encoder, and keep its front end."""
        model = checkpoints.load_model(self.resolved, "cpu", compute_dtype)
        return ConvFeaturesExtractor(self, model.feature_extractor.to(device))

    def seconds_per_second(self, device: str, compute_dtype: str) -> float | None:
        """Return a rough cost; None where none was measured."""
        return speech_encoders.seconds_per_second(self.resolved.config, device, compute_dtype, layers=0)


class ConvFeaturesExtractor(SpeechEncoderExtractor):
    """A loaded front end.

    Args:
        stream: its settings.
        front_end: the convolutions, in eval mode.
    """

    def __init__(self, stream: ConvFeatures, front_end: Any) -> None:
        super().__init__(stream, next(front_end.parameters()))
        self._front_end = front_end

    def run(self, values: "torch.Tensor", mask: "torch.Tensor") -> "list[torch.Tensor]":
        """Return the one layer. No mask is needed: what hides padding in convolutions is that none comes before."""
        return [self._front_end(values).transpose(1, 2)]

"""Self-supervised speech encoders: wav2vec 2.0, HuBERT, WavLM, data2vec, from the samples or from any layer on.

Above the boundary it is transformers' own modules that run, so that what they do in training (layerdrop, SpecAugment)
is theirs as well; the modules below are taken out.

Padding. The convolutions of a checkpoint with group norm see all of an utterance at once, so they get one utterance, or
several of equal length, at a time. data2vec's position embedding, and HuBERT's where it has batch norm, normalise what
lies in the padding: there the whole encoder goes by equal lengths. Everywhere else one padded batch is run, and an
attention mask hides the padding.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from featcache import checkpoints, speech_encoders
from featcache.checkpoints import Checkpoint
from featcache.errors import ConfigError, StreamError
from heads.encoder import EncoderModule, Parts, save_model
from heads.layers import inside

_FRONT_END, _INPUT, _NORM = "front_end", "input", "final_norm"


class SpeechEncoder(EncoderModule):
    """A speech encoder above its freeze boundary.

    Its parts: the convolutions (``front_end``); the feature projection, the position embedding and, where blocks end in
    a layer norm, the one before the first of them (``input``); the layers; and, where they begin with one, the one
    behind the last (``final_norm``).

    Args:
        checkpoint: where it came from.
        model: the model, which loses what is not wanted.
        below: how many parts are not wanted.
        normalise: whether samples get zero mean and unit variance.
    """

    title: ClassVar[str] = "wav2vec2, HuBERT, WavLM, data2vec: from the samples, the convolutions or any layer on"
    kinds: ClassVar[tuple[str, ...]] = ("waveform", "conv_features", "hidden_states")
    raw: ClassVar[str] = "waveform"

    def __init__(self, checkpoint: Checkpoint, model: Any, below: int, normalise: bool) -> None:
        config = checkpoint.config
        super().__init__(checkpoint, int(config["hidden_size"]))
        self.model = model
        self._normalise = normalise
        self._held = self.parts(checkpoint).names[below:]
        self._mixed_convolutions = config.get("feat_extract_norm") == "layer"
        self._mixed_layers = config["model_type"] != "data2vec-audio" and not config.get("conv_pos_batch_norm")
        self._spec_augment = False

    @classmethod
    def resolve(cls, checkpoint: str | None, revision: str | None) -> Checkpoint:
        """Find a checkpoint of a speech encoder."""
        if checkpoint is None:
            raise ConfigError("Say which speech encoder is to be trained, by the setting checkpoint.")
        return speech_encoders.resolve(checkpoint, revision, "finetune")

    @classmethod
    def parts(cls, checkpoint: Checkpoint) -> Parts:
        """Return what it consists of."""
        config = checkpoint.config
        layers = [f"layer_{number}" for number in range(1, int(config["num_hidden_layers"]) + 1)]
        return Parts((_FRONT_END, _INPUT, *layers, *([_NORM] if _norm_comes_last(config) else [])), 1)

    @classmethod
    def below(cls, parts: Parts, kind: str, layer: str) -> int:
        """Return how many parts lie below a layer of a stream."""
        if kind != "hidden_states":
            return cls.kinds.index(kind)
        if layer.endswith("_normed"):
            return len(parts.names)
        return parts.up_to(0 if layer == "encoder_input" else int(layer.removeprefix("layer_")))

    @classmethod
    def least(cls, checkpoint: Checkpoint, kind: str) -> int:
        """Return how many samples give a frame."""
        if kind != cls.raw:
            return 1
        samples = 1
        for kernel, stride in zip(
            reversed(checkpoint.config["conv_kernel"]), reversed(checkpoint.config["conv_stride"]), strict=True
        ):
            samples = (samples - 1) * stride + kernel
        return samples

    @classmethod
    def build(cls, checkpoint: Checkpoint, revision: str | None, below: int, frozen: int, dropout: bool) -> Self:
        """Load the weights."""
        model = checkpoints.load_model(checkpoint, "cpu")
        names = cls.parts(checkpoint).names
        still = [module for name in names[below:frozen] for module in _modules_of(model, name, names)]
        _remove(model, names, below)
        still += [module for module in model.modules() if isinstance(module, _PositionBias)]
        encoder = cls(checkpoint, model, below, speech_encoders.normalises(checkpoint, revision, "finetune"))
        if any(name.startswith("layer_") for name in names[below:frozen]):
            model.config.layerdrop = 0.0  # it would skip frozen layers too, whose output a boundary above them has
        encoder.freeze(still, dropout)
        encoder._spec_augment = dropout and _INPUT in names[frozen:]
        if hasattr(model, "masked_spec_embed"):
            model.masked_spec_embed.requires_grad_(encoder._spec_augment)
        return encoder

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map ``(batch, 1, frames, dim)`` and ``(batch,)`` to states ``(batch, states, dim)`` and ``(batch,)``."""
        states = frames[:, 0]
        if _FRONT_END in self._held:
            states, lengths = self._convolve(states[..., 0], lengths)
        if self._mixed_layers:
            return self._encode(states, lengths), lengths
        return _by_length(self._encode_alike, states, lengths), lengths

    def save(self, folder: Path) -> None:
        """Save the whole encoder as an ordinary folder of transformers."""
        save_model(self, folder)

    def _convolve(self, samples: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map ``(batch, samples)`` to frames ``(batch, frames, dim)``, and their lengths."""
        counts = [speech_encoders.num_frames(self.checkpoint.config, length) for length in lengths.tolist()]
        if min(counts) < 1:
            raise StreamError(
                f"An utterance has {int(lengths.min())} samples, too few for one frame of {self.checkpoint.name}, "
                f"which needs {self.least(self.checkpoint, self.raw)}. Leave it out."
            )
        samples = samples[:, : int(lengths.max())]
        own = inside(lengths, samples.shape[1])
        samples = _normalised(samples, own) if self._normalise else samples.masked_fill(~own, 0.0)
        if self._mixed_convolutions:
            frames = self.model.feature_extractor(samples).transpose(1, 2)
        else:
            frames = _by_length(lambda rows: self.model.feature_extractor(rows).transpose(1, 2), samples, lengths)
        return frames, torch.tensor(counts, device=lengths.device)

    def _encode(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Run what lies behind the convolutions on a padded batch."""
        own = inside(lengths, states.shape[1])
        padded = not bool(own.all())
        states = states.masked_fill(~own[..., None], 0.0)
        if _INPUT in self._held:
            projected = self.model.feature_projection(states)
            states = projected[0] if isinstance(projected, tuple) else projected
            if self._spec_augment and self.model.training and states.shape[1] > self.model.config.mask_time_length:
                states = self._augmented(states, own)
        with _quiet_masks() if padded and self.checkpoint.config["model_type"] == "wavlm" else nullcontext():
            states = self.model.encoder(states, attention_mask=own if padded else None).last_hidden_state
        return states.masked_fill(~own[..., None], 0.0)

    def _encode_alike(self, states: torch.Tensor) -> torch.Tensor:
        return self._encode(states, torch.full((len(states),), states.shape[1], device=states.device))

    def _augmented(self, states: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Mask as transformers does, by numbers that follow from torch's generator, which training keeps."""
        # Transformers draws from NumPy's one generator, whose state is others' too.
        state = np.random.get_state()
        np.random.seed(int(torch.randint(2**31, ())))
        try:
            masked: torch.Tensor = self.model._mask_hidden_states(states, attention_mask=own.long())
        finally:
            np.random.set_state(state)
        return masked


def _norm_comes_last(config: Any) -> bool:
    return bool(config.get("do_stable_layer_norm"))


def _modules_of(model: Any, part: str, names: tuple[str, ...]) -> list[nn.Module]:
    """Return the modules that a part of a model is made of."""
    encoder = model.encoder
    if part == _FRONT_END:
        return [model.feature_extractor]
    if part == _INPUT:
        norm = [] if _NORM in names else [encoder.layer_norm]
        return [model.feature_projection, encoder.pos_conv_embed, encoder.dropout, *norm]
    return [encoder.layer_norm if part == _NORM else encoder.layers[int(part.removeprefix("layer_")) - 1]]


def _remove(model: Any, names: tuple[str, ...], below: int) -> None:
    """Take the lowest parts out of a model, so that its encoder can be given what comes out of them."""
    encoder = model.encoder
    gone = names[:below]
    if hasattr(model, "adapter"):
        model.adapter = None  # behind the encoder
    if _FRONT_END in gone:
        del model.feature_extractor
    if _INPUT in gone:
        del model.feature_projection
        if hasattr(model, "masked_spec_embed"):
            del model.masked_spec_embed
        encoder.pos_conv_embed, encoder.dropout = _Nothing(), nn.Identity()
        if _NORM not in names:
            encoder.layer_norm = nn.Identity()
    if _NORM in gone:
        encoder.layer_norm = nn.Identity()
    first = sum(name.startswith("layer_") for name in gone)
    if first == 0:
        return
    # Modules keep their names, so the encoder runs over a list that begins with a later one.
    kept = nn.ModuleList()
    if model.config.model_type == "wavlm":
        kept.add_module("0", _PositionBias(encoder.layers[0].attention))
    for number in range(first, len(encoder.layers)):
        kept.add_module(str(number), encoder.layers[number])
    encoder.layers = kept


class _Nothing(nn.Module):
    """Stands where a position embedding was added, which is in the states already."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Return a zero."""
        return states.new_zeros(())


class _PositionBias(nn.Module):
    """What is left of WavLM's first layer: the relative position bias, which it computes for all others.

    Args:
        attention: of the first layer; loses all weights but those of the bias, which do not train.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        for name in [name for name, _ in attention.named_children() if name != "rel_attn_embed"]:
            delattr(attention, name)
        for name, _ in list(attention.named_parameters(recurse=False)):
            delattr(attention, name)
        self.attention = attention

    def forward(self, states: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the states as they are, and the bias in the form in which layers hand it on."""
        batch, frames, _dim = states.shape
        bias = self.attention.compute_bias(frames, frames)  # (heads, frames, frames)
        return states, bias.unsqueeze(0).repeat(batch, 1, 1, 1).view(-1, frames, frames)


def _normalised(samples: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Give each utterance zero mean and unit variance over its own samples; 0 behind them.

    As :func:`featcache.speech_encoders.normalised`, which extraction uses.
    """
    count = own.sum(1, keepdim=True)
    mean = samples.masked_fill(~own, 0.0).sum(1, keepdim=True) / count
    centred = (samples - mean).masked_fill(~own, 0.0)
    return centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()


def _by_length(
    run: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Run utterances of equal length together, without padding, and pad what they give."""
    outputs: dict[int, torch.Tensor] = {}
    for length in lengths.unique().tolist():
        rows = torch.nonzero(lengths == length)[:, 0]
        outputs |= dict(zip(rows.tolist(), run(values[rows, :length]), strict=True))
    longest = max(len(output) for output in outputs.values())
    return torch.stack([F.pad(outputs[row], (0, 0, 0, longest - len(outputs[row]))) for row in range(len(values))])


@contextmanager
def _quiet_masks() -> Iterator[None]:
    """WavLM in transformers 5 hands torch masks of two types, which torch accepts with a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
        yield

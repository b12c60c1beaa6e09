"""The network of the cross-representation speech model; see :mod:`heads.models.encoder_decoder`."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from heads.layers import LayerMix

_LARGE = 2**22  # weights of a layer from which on mixed precision on a CPU goes other ways than PyTorch's; measured


class ConvStack(nn.Module):
    """Convolutions of 5 frames with batch norm and ReLU after each; frames stay as many."""

    def __init__(self, dim: int, channels: int, num_layers: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            conv_norm(dim if number == 0 else channels, channels, "relu") for number in range(num_layers)
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, frames, dim)`` to ``(batch, frames, channels)``."""
        values = frames.transpose(1, 2)
        for block in self.blocks:
            values = F.relu(block(values))
        return values.transpose(1, 2)


class Conv(nn.Conv1d):
    """A convolution of 5 frames that keeps their number.

    A large one on a CPU in bfloat16 is one matrix product over the frames and their neighbours: the weights are read as
    they lie, where oneDNN's convolution copies them into an order of its own, forwards and twice backwards. Small ones,
    and all in float32, are faster as they are.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__(dim, channels, kernel_size=5, padding=2)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, dim, frames)`` to ``(batch, channels, frames)``."""
        mixed = values.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if not mixed or self.weight.numel() < _LARGE:
            return super().forward(values)
        frames = values.shape[2]
        padded = F.pad(values.transpose(1, 2).bfloat16(), (0, 0, 2, 2))
        neighbours = torch.stack([padded[:, at : at + frames] for at in range(5)], dim=-1)  # (batch, frames, dim, 5)
        return F.linear(neighbours.flatten(2), self.weight.flatten(1), self.bias).transpose(1, 2).contiguous()


def conv_norm(dim: int, channels: int, gain: str) -> nn.Sequential:
    """Return a convolution of 5 frames and its batch norm, Xavier-initialised for the activation behind it."""
    conv = Conv(dim, channels)
    nn.init.xavier_uniform_(conv.weight, gain=nn.init.calculate_gain(gain))  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.BatchNorm1d(channels))


def recur(lstm: nn.LSTM, frames: torch.Tensor) -> torch.Tensor:
    """Return the states ``(batch, frames, units)`` of an LSTM over ``(batch, frames, dim)``.

    A large one on a CPU is always in float32: in bfloat16 oneDNN's backward pass takes three times as long, which its
    faster forward pass does not make up for.
    """
    states: torch.Tensor
    if frames.device.type == "cpu" and 4 * lstm.hidden_size**2 >= _LARGE:
        with torch.autocast("cpu", enabled=False):
            states, _ = lstm(frames.float())
    else:
        states, _ = lstm(frames)
    return states


class Encoder(nn.Module):
    """Frames and a speaker embedding to codes: convolutions, a two-layer BLSTM, and every `factor`-th state of it.

    Args:
        dim: size of a frame.
        speaker_dim: size of a speaker embedding.
        channels: of the convolutions.
        bottleneck: units of the BLSTM in each direction.
        factor: frames in a block, of which one state of each direction is kept.
    """

    def __init__(self, dim: int, speaker_dim: int, channels: int, bottleneck: int, factor: int) -> None:
        super().__init__()
        self.convolve = ConvStack(dim + speaker_dim, channels)
        self.lstm = nn.LSTM(channels, bottleneck, num_layers=2, batch_first=True, bidirectional=True)
        self.factor = factor

    def forward(self, frames: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, frames, dim)`` and ``(batch, speaker_dim)`` to codes ``(batch, blocks, 2 * bottleneck)``."""
        return downsampled(recur(self.lstm, self.convolve(with_speaker(frames, speaker))), self.factor)


def downsampled(states: torch.Tensor, factor: int) -> torch.Tensor:
    """Keep, of every block of frames, the forward state of its last frame and the backward state of its first.

    Args:
        states: ``(batch, frames, 2 * units)`` of a bidirectional LSTM, the forward direction first.
        factor: frames in a block.

    Returns:
        ``(batch, frames / factor, 2 * units)``.
    """
    forward, backward = states.chunk(2, dim=-1)
    return torch.cat([forward[:, factor - 1 :: factor], backward[:, ::factor]], dim=-1)


def with_speaker(frames: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
    """Join a speaker's embedding ``(batch, speaker_dim)`` to each frame of ``(batch, frames, dim)``."""
    return torch.cat([frames, speaker[:, None].expand(-1, frames.shape[1], -1)], dim=-1)


class PhoneEncoder(nn.Module):
    """One-hot phones to phone embeddings: convolutions and a two-layer BLSTM."""

    def __init__(self, num_phones: int, channels: int, units: int) -> None:
        super().__init__()
        self.convolve = ConvStack(num_phones, channels)
        self.lstm = nn.LSTM(channels, units, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, phones: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, frames, num_phones)`` to ``(batch, frames, 2 * units)``."""
        return recur(self.lstm, self.convolve(phones))


class Decoder(nn.Module):
    """Codes, speaker and phones at every frame to log-mels."""

    def __init__(self, dim: int, channels: int, units: int, num_mels: int) -> None:
        super().__init__()
        self.lstm1 = nn.LSTM(dim, channels, batch_first=True)
        self.convolve = ConvStack(channels, channels)
        self.lstm2 = nn.LSTM(channels, units, num_layers=2, batch_first=True)
        self.project = nn.Linear(units, num_mels)
        nn.init.xavier_uniform_(self.project.weight)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, frames, dim)`` to ``(batch, frames, num_mels)``."""
        mel: torch.Tensor = self.project(recur(self.lstm2, self.convolve(recur(self.lstm1, frames))))
        return mel


class PostNet(nn.Module):
    """Five convolutions whose output is added to the decoder's; tanh after all but the last."""

    def __init__(self, num_mels: int, channels: int) -> None:
        super().__init__()
        sizes = [num_mels, *[channels] * 4, num_mels]
        gains = ["tanh"] * 4 + ["linear"]
        self.blocks = nn.ModuleList(
            conv_norm(dim, out, gain) for (dim, out), gain in zip(pairwise(sizes), gains, strict=True)
        )

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, frames, num_mels)`` to the same."""
        values = mel.transpose(1, 2)
        *inner, last = self.blocks
        for block in inner:
            values = torch.tanh(block(values))
        refined: torch.Tensor = last(values)
        return mel + refined.transpose(1, 2)


class SpeechModel(nn.Module):
    """Encoder, classifier on its codes, and the decoder that rebuilds the log-mels from codes, speaker and phones.

    Args:
        mix: average over layers; None where the frames have one layer.
        encoder: frames to codes.
        classify: flattened codes to logits.
        phone_encoder: phones to phone embeddings; it, the decoder and the post-net are None where nothing is rebuilt.
        decoder: to log-mels.
        post_net: refines them.
    """

    def __init__(
        self,
        mix: LayerMix | None,
        encoder: Encoder,
        classify: nn.Module,
        phone_encoder: PhoneEncoder | None = None,
        decoder: Decoder | None = None,
        post_net: PostNet | None = None,
    ) -> None:
        super().__init__()
        self.mix = mix
        self.encoder = encoder
        self.classify = classify
        self.phone_encoder = phone_encoder
        self.decoder = decoder
        self.post_net = post_net

    def codes(self, hidden: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, layers, frames, dim)`` and ``(batch, speaker_dim)`` to codes ``(batch, blocks, 2d)``."""
        frames = hidden[:, 0] if self.mix is None else self.mix(hidden)
        codes: torch.Tensor = self.encoder(frames, speaker)
        return codes

    def forward(
        self,
        hidden: torch.Tensor,
        speaker: torch.Tensor,
        phones: torch.Tensor | None = None,
        mel: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Classify windows, and with phones and mels say how well these are rebuilt.

        Args:
            hidden: ``(batch, layers, frames, dim)``.
            speaker: ``(batch, speaker_dim)``.
            phones: ``(batch, frames, num_phones)`` one-hot; zeros behind the end of the utterance.
            mel: ``(batch, frames, num_mels)``, what the decoder is to give.

        Returns:
            Logits ``(batch, classes)``; in training also the mean squared error of the decoder plus that of the
            post-net, over all frames of all windows, padding included, as the authors' code has it.
        """
        codes = self.codes(hidden, speaker)
        logits: torch.Tensor = self.classify(codes.flatten(1))
        if phones is None or mel is None or self.phone_encoder is None or self.decoder is None or self.post_net is None:
            return logits
        repeated = codes.repeat_interleave(self.encoder.factor, dim=1)  # (batch, frames, 2d)
        rough = self.decoder(torch.cat([with_speaker(repeated, speaker), self.phone_encoder(phones)], dim=-1))
        refined = self.post_net(rough)
        return logits, F.mse_loss(rough.float(), mel) + F.mse_loss(refined.float(), mel)

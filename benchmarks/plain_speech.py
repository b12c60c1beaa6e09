"""The reference of the training benchmark: Makiuchi's speech model of PyTorch's own modules, fed one file at a time.

What one writes first: ``nn.Conv1d``, ``nn.LSTM``, ``torch.optim.Adam``, and for each sample of a batch ``np.load`` of
the utterance's features, of which a window is cut. Modules are made in the order of featcache's model, so that the
weights of the one fit the other; a test compares their losses over several steps.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from heads.models.encoder_decoder import EncoderDecoder


def convs(sizes: Sequence[int], activation: type[nn.Module]) -> list[nn.Module]:
    """Return convolutions of 5 frames, each with batch norm and an activation."""
    blocks: list[nn.Module] = []
    for dim, out in pairwise(sizes):
        blocks += [nn.Conv1d(dim, out, 5, padding=2), nn.BatchNorm1d(out), activation()]
    return blocks


class PlainModel(nn.Module):
    """The model of :class:`heads.models.encoder_decoder.EncoderDecoder`, with the sizes of its settings."""

    def __init__(
        self, settings: EncoderDecoder, layers: int, dim: int, classes: int, mels: int, speaker: int, phones: int
    ) -> None:
        super().__init__()
        bottleneck, self.factor = {"small": (8, 48), "large": (128, 2)}[settings.size]
        channels = settings.channels or 2048
        self.alpha = nn.Parameter(torch.ones(layers))
        self.encoder_convs = nn.Sequential(*convs([dim + speaker, *[channels] * 3], nn.ReLU))
        self.encoder_lstm = nn.LSTM(channels, bottleneck, 2, batch_first=True, bidirectional=True)
        self.classifier = nn.Sequential(
            nn.Linear(2 * bottleneck * settings.window // self.factor, settings.classifier_dim),
            nn.Linear(settings.classifier_dim, settings.classifier_dim),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.classifier_dim, classes),
        )
        self.phone_convs = nn.Sequential(*convs([phones, *[settings.phone_channels] * 3], nn.ReLU))
        self.phone_lstm = nn.LSTM(settings.phone_channels, settings.phone_dim, 2, batch_first=True, bidirectional=True)
        width = settings.decoder_channels
        self.decoder_lstm1 = nn.LSTM(2 * bottleneck + speaker + 2 * settings.phone_dim, width, batch_first=True)
        self.decoder_convs = nn.Sequential(*convs([width] * 4, nn.ReLU))
        self.decoder_lstm2 = nn.LSTM(width, settings.decoder_dim, 2, batch_first=True)
        self.decoder_out = nn.Linear(settings.decoder_dim, mels)
        self.post_net = nn.Sequential(*convs([mels, *[settings.post_net_channels] * 4, mels], nn.Tanh)[:-1])

    def forward(
        self, hidden: torch.Tensor, speaker: torch.Tensor, phones: torch.Tensor, mel: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits, and the losses of decoder and post-net together; shapes as featcache's model takes them."""
        mixed = (hidden * self.alpha.view(1, -1, 1, 1)).sum(1) / self.alpha.sum()
        speakers = speaker.unsqueeze(1).repeat(1, mixed.shape[1], 1)
        states = self.encoder_convs(torch.cat([mixed, speakers], 2).transpose(1, 2)).transpose(1, 2)
        states, _ = self.encoder_lstm(states)
        forward, backward = states.chunk(2, dim=2)
        codes = torch.cat([forward[:, self.factor - 1 :: self.factor], backward[:, :: self.factor]], 2)
        logits = self.classifier(codes.flatten(1))
        spoken, _ = self.phone_lstm(self.phone_convs(phones.transpose(1, 2)).transpose(1, 2))
        decoded, _ = self.decoder_lstm1(torch.cat([codes.repeat_interleave(self.factor, dim=1), speakers, spoken], 2))
        decoded, _ = self.decoder_lstm2(self.decoder_convs(decoded.transpose(1, 2)).transpose(1, 2))
        rough = self.decoder_out(decoded)
        refined = rough + self.post_net(rough.transpose(1, 2)).transpose(1, 2)
        return logits, F.mse_loss(rough.float(), mel) + F.mse_loss(refined.float(), mel)


def carry_over(weights: Mapping[str, torch.Tensor], model: PlainModel) -> None:
    """Give the plain model the weights of featcache's, which come in the same order."""
    model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))


def save_files(folder: Path, number: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the features of one utterance, a file each."""
    for name, values in arrays.items():
        np.save(folder / f"{name}-{number}.npy", values)


def load_batch(folder: Path, hidden: str, numbers: Sequence[int], window: int, phones: int) -> list[torch.Tensor]:
    """Return a batch of windows drawn at random, each cut from files that are read whole.

    Args:
        folder: with a file ``NAME-NUMBER.npy`` for each kind of feature and utterance.
        hidden: name of the encoded features.
        numbers: utterances.
        window: frames in a window.
        phones: phones of the inventory.
    """
    samples = []
    for number in numbers:
        frames, mel, ids, speaker = (
            np.load(folder / f"{name}-{number}.npy") for name in (hidden, "log_mel", "phones", "speaker")
        )
        start = int(torch.randint(len(mel) - window + 1, ()))
        cut = slice(start, start + window)
        one_hot = F.one_hot(torch.from_numpy(ids[cut]).long(), phones)
        samples.append(
            (torch.from_numpy(frames[:, cut]), torch.from_numpy(speaker), one_hot, torch.from_numpy(mel[cut]))
        )
    return [torch.stack(items).float() for items in zip(*samples, strict=True)]


def plain_step(
    model: PlainModel,
    optimiser: torch.optim.Optimizer,
    batch: Sequence[torch.Tensor],
    labels: torch.Tensor,
    precision: str,
) -> float:
    """Take one step; return the loss."""
    optimiser.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        logits, further = model(*batch)
    loss = F.cross_entropy(logits.float(), labels) + further
    loss.backward()
    optimiser.step()
    return float(loss.detach())

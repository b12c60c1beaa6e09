"""Resemblyzer's speaker encoder (Wan et al. 2018), from its mels or from any of its three LSTM layers on.

1.4 million parameters whose weights come in a wheel, see :mod:`featcache.ge2e`: what can be fine-tuned on a laptop. The
linear layer that makes a speaker's embedding of the last state does not train; it is saved as it is.
"""

from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import nn

from featcache import checkpoints, ge2e
from featcache.checkpoints import Checkpoint
from featcache.errors import CheckpointError
from heads.encoder import EncoderModule, Parts, written_aside
from heads.layers import inside

_WHEEL = "resemblyzer"


class Ge2eEncoder(EncoderModule):
    """The LSTM layers above the freeze boundary; it has no front end, and no dropout.

    Args:
        checkpoint: where it came from.
        layers: number to layer, from the bottom to the top.
    """

    title: ClassVar[str] = "Resemblyzer's speaker encoder: from its mels or any of its three LSTM layers on"
    kinds: ClassVar[tuple[str, ...]] = ("ge2e_mels", "ge2e_states")
    raw: ClassVar[str] = "ge2e_mels"

    def __init__(self, checkpoint: Checkpoint, layers: dict[int, nn.LSTM]) -> None:
        super().__init__(checkpoint, ge2e.DIM)
        self.model = nn.ModuleDict({f"lstm_{number}": layer for number, layer in layers.items()})

    @classmethod
    def resolve(cls, checkpoint: str | None, revision: str | None) -> Checkpoint:
        """Find a saved encoder; None and ``"resemblyzer"`` are the one in the wheel."""
        if checkpoint in (None, _WHEEL):
            return Checkpoint(_WHEEL, Path(_WHEEL), ge2e.identity()["weights_sha256"], {})
        found = checkpoints.resolve(checkpoint, revision)
        if (kind := found.config.get("model_type")) != ge2e.MODEL_TYPE:
            raise CheckpointError(
                f"The checkpoint {checkpoint!r} is of type {kind!r}; what starts from {' or '.join(cls.kinds)} is a "
                f"speaker encoder: {_WHEEL!r}, or a folder that 'featcache finetune' saved."
            )
        return found

    @classmethod
    def parts(cls, checkpoint: Checkpoint) -> Parts:
        """Return what it consists of."""
        return Parts(tuple(f"layer_{number}" for number in range(1, ge2e.NUM_LAYERS + 1)), 0)

    @classmethod
    def below(cls, parts: Parts, kind: str, layer: str) -> int:
        """Return how many parts lie below a layer of a stream."""
        return 0 if kind == cls.raw else int(layer.removeprefix("lstm_"))

    @classmethod
    def build(cls, checkpoint: Checkpoint, revision: str | None, below: int, frozen: int, dropout: bool) -> Self:
        """Load the weights."""
        weights = ge2e.load_weights(_source(checkpoint))
        layers: dict[int, nn.LSTM] = {}
        for number in range(below + 1, ge2e.NUM_LAYERS + 1):
            layer = nn.LSTM(ge2e.NUM_MELS if number == 1 else ge2e.DIM, ge2e.DIM, batch_first=True)
            layer.load_state_dict({name: weights[_name(number, name)] for name in layer.state_dict()})
            layers[number] = layer
        encoder = cls(checkpoint, layers)
        # On a GPU, LSTMs give gradients in training mode alone; these have no dropout that it would turn on.
        encoder.freeze([layer for number, layer in layers.items() if number <= frozen], dropout=True)
        return encoder

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map ``(batch, 1, frames, dim)`` and ``(batch,)`` to states ``(batch, frames, 256)`` and ``(batch,)``.

        Padding behind an utterance cannot reach back: the network is causal.
        """
        states = frames[:, 0]
        for layer in self.model.values():
            states, _ = layer(states)
        return states.masked_fill(~inside(lengths, states.shape[1])[..., None], 0.0), lengths

    def save(self, folder: Path) -> None:
        """Save the whole encoder as a folder that ``ge2e_states.checkpoint`` takes."""
        weights = ge2e.load_weights(_source(self.checkpoint))
        for key, layer in self.model.items():
            number = int(key.removeprefix("lstm_"))
            weights |= {_name(number, name): value.detach() for name, value in layer.state_dict().items()}
        with written_aside(folder) as aside:
            ge2e.save_encoder(aside, weights)


def _source(checkpoint: Checkpoint) -> str | None:
    """Return what the functions of :mod:`featcache.ge2e` call a checkpoint; the wheel's has no configuration."""
    return str(checkpoint.folder) if checkpoint.config else None


def _name(number: int, name: str) -> str:
    """Return what a checkpoint calls a weight of layer `number`, which PyTorch calls ``weight_ih_l0``."""
    return f"lstm.{name[:-1]}{number - 1}"

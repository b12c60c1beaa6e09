"""Text encoders, from the token ids or from any layer on: BERT, RoBERTa, ELECTRA, DistilBERT and their like.

Above the boundary it is transformers' own model that runs, without the modules below. That needs layers that take
nothing but the states of the one below, so families are named that are built so. Any other encoder that transformers
loads can be trained from the token ids, with nothing, its embeddings or all of it frozen.
"""

from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from featcache import checkpoints
from featcache.checkpoints import Checkpoint
from featcache.errors import ConfigError
from heads.encoder import EncoderModule, Parts, save_model
from heads.layers import inside

_LAYERED = {
    "bert": "encoder.layer",
    "camembert": "encoder.layer",
    "distilbert": "transformer.layer",
    "electra": "encoder.layer",
    "roberta": "encoder.layer",
    "xlm-roberta": "encoder.layer",
}
"""Model type to where its layers are."""
_NUM_LAYERS = ("num_hidden_layers", "n_layers")
# Their tokenizers give token types that the stream `tokens` does not keep.
_TYPED = ("xlnet", "funnel")
_FRONT_END, _REST = "front_end", "layers"


class TextEncoder(EncoderModule):
    """A text encoder above its freeze boundary.

    Its parts: the embeddings (``front_end``), and the layers; or, in a family that is not known, all that follows
    (``layers``). A pooler is no part of it: no state depends on it.

    Args:
        checkpoint: where it came from.
        model: the model, which loses what is not wanted.
        below: how many parts are not wanted.
    """

    title: ClassVar[str] = "BERT, RoBERTa, ELECTRA, DistilBERT and their like: from the token ids or any layer on"
    kinds: ClassVar[tuple[str, ...]] = ("tokens", "token_states")
    raw: ClassVar[str] = "tokens"

    def __init__(self, checkpoint: Checkpoint, model: Any, below: int) -> None:
        super().__init__(checkpoint, int(model.config.hidden_size))
        self.model = model
        self._takes_ids = below == 0
        self._padding = getattr(model.config, "pad_token_id", None) or 0

    @classmethod
    def resolve(cls, checkpoint: str | None, revision: str | None) -> Checkpoint:
        """Find a checkpoint of a text encoder."""
        if checkpoint is None:
            raise ConfigError("Say which text encoder is to be trained, by the setting checkpoint.")
        found = checkpoints.resolve(checkpoint, revision)
        family = found.config.get("model_type")
        if family in _TYPED or found.config.get("is_encoder_decoder"):
            raise ConfigError(
                f"The checkpoint {checkpoint!r} is of type {family!r}, which cannot be trained from tokens alone. "
                f"Choose one of {', '.join(_LAYERED)}."
            )
        return found

    @classmethod
    def parts(cls, checkpoint: Checkpoint) -> Parts:
        """Return what it consists of."""
        config = checkpoint.config
        count = next((int(config[name]) for name in _NUM_LAYERS if name in config), 0)
        if not count or config.get("model_type") not in _LAYERED:
            return Parts((_FRONT_END, _REST), 1)
        return Parts((_FRONT_END, *(f"layer_{number}" for number in range(1, count + 1))), 1)

    @classmethod
    def below(cls, parts: Parts, kind: str, layer: str) -> int:
        """Return how many parts lie below a layer of a stream."""
        if kind == cls.raw:
            return 0
        if not parts.num_layers:
            raise ConfigError(
                "An encoder of this family can be trained from the stream tokens alone: it is not known how its layers "
                f"hang together. From a layer on start: {', '.join(_LAYERED)}."
            )
        return parts.up_to(0 if layer == "embeddings" else int(layer.removeprefix("layer_")))

    @classmethod
    def build(cls, checkpoint: Checkpoint, revision: str | None, below: int, frozen: int, dropout: bool) -> Self:
        """Load the weights."""
        model = checkpoints.load_model(checkpoint, "cpu")
        if hasattr(model, "pooler"):
            model.pooler = None
        names = cls.parts(checkpoint).names
        still = [module for name in names[below:frozen] for module in _modules_of(model, name)]
        if below:
            _remove(model, below)
        encoder = cls(checkpoint, model, below)
        encoder.freeze(still, dropout)
        return encoder

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map ``(batch, 1, tokens, dim)`` and ``(batch,)`` to states ``(batch, tokens, dim)`` and ``(batch,)``."""
        own = inside(lengths, frames.shape[2])
        if self._takes_ids:
            ids = frames[:, 0, :, 0].long().masked_fill(~own, self._padding)
            output = self.model(input_ids=ids, attention_mask=own.long())
        else:
            states = frames[:, 0].masked_fill(~own[..., None], 0.0)
            output = self.model(inputs_embeds=states, attention_mask=own.long())
        return output.last_hidden_state.masked_fill(~own[..., None], 0.0), lengths

    def save(self, folder: Path) -> None:
        """Save the whole encoder and its tokenizer as an ordinary folder of transformers."""
        save_model(self, folder)


def _modules_of(model: Any, part: str) -> list[nn.Module]:
    """Return the modules that a part of a model is made of."""
    if part == _FRONT_END:
        projection = getattr(model, "embeddings_project", None)  # of ELECTRA
        return [getattr(model, "embeddings", model.get_input_embeddings()), *([projection] if projection else [])]
    if part == _REST:
        return [model]
    return [_layers(model)[int(part.removeprefix("layer_")) - 1]]


def _layers(model: Any) -> Any:
    return model.get_submodule(_LAYERED[model.config.model_type])


def _remove(model: Any, below: int) -> None:
    """Take the embeddings and the lowest layers out of a model, so that it can be given what comes out of them."""
    model.embeddings = _Given()
    if hasattr(model, "embeddings_project"):
        model.embeddings_project = nn.Identity()
    holder, _, name = _LAYERED[model.config.model_type].rpartition(".")
    layers, kept = _layers(model), nn.ModuleList()
    for number in range(below - 1, len(layers)):  # they keep their names
        kept.add_module(str(number), layers[number])
    setattr(model.get_submodule(holder), name, kept)


class _Given(nn.Module):
    """Stands where the embeddings were, and gives the states that are handed in as such."""

    def forward(self, *given: Any, **named: Any) -> torch.Tensor:
        """Return the only argument that is of numbers."""
        [states] = [
            value
            for value in (*given, *named.values())
            if isinstance(value, torch.Tensor) and value.is_floating_point()
        ]
        return states

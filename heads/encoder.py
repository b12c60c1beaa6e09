"""The contract of an encoder that trains, and the freeze boundary: where it starts.

What is frozen gives the same numbers at every step, so it is computed once and cached, and training starts there. Which
stream is read says where: ``waveform``, ``tokens`` or ``ge2e_mels`` are raw inputs, and below them nothing is; below
``conv_features`` is a convolutional front end, below layer N of ``hidden_states``, ``token_states`` or ``ge2e_states``
whatever that layer is made of. What lies below is not computed, and not even held.

An encoder consists of parts, from the bottom to the top: its front end (the convolutions of a speech encoder, the
embeddings of a text encoder), its layers, and what is behind them. The stream's frames are what comes out of the lowest
``below`` of them; the lowest ``frozen`` do not train; the law is ``below <= frozen``. Fine-tuning from a boundary then
gives what fine-tuning from the raw input gives, with the same parts frozen: states, gradients and trained parameters
agree to 1e-5 relative where the stream is stored as float32 (``featcache extract --dtype float32``) and no dropout
draws random numbers. From float16 they agree to its rounding.
"""

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import nn

from featcache import checkpoints, registry
from featcache.checkpoints import Checkpoint
from featcache.errors import CheckpointError, ConfigError, StreamError
from featcache.files import sync
from featcache.stream import StreamSpec
from featcache.view import View

Freeze = int | str
"""What of an encoder does not train: one of `FREEZES`, or all up to layer N (0: all below layer 1)."""

FREEZES = ("nothing", "front_end", "all")
"""Names of what does not train."""

_PLUGINS = "heads.encoders"
_SMALL = (".json", ".txt", ".model")
_NOT_COPIED = ("config.json", "featcache.json")
_INDEX = "*.index.json"


@dataclass(frozen=True)
class Parts:
    """What an encoder consists of.

    Attributes:
        names: its parts from the bottom to the top; layers are ``layer_1``, ``layer_2`` and so on.
        front_end: how many of them are its front end.
    """

    names: tuple[str, ...]
    front_end: int

    @property
    def num_layers(self) -> int:
        """Number of layers; 0 where they cannot be told apart."""
        return sum(name.startswith("layer_") for name in self.names)

    def up_to(self, layer: int) -> int:
        """Return how many parts there are up to a layer and with it; 0 is what lies below the first one."""
        return self.names.index("layer_1") + layer


class EncoderModule(nn.Module, ABC):
    """An encoder, or what of it lies above the freeze boundary. Plug-ins are subclasses.

    Args:
        checkpoint: where its weights came from.
        dim: size of a state.

    Attributes:
        title: one line for listings.
        kinds: kinds of streams that it can start from.
        raw: the one of them below which nothing is.
        dim: size of a state.
        checkpoint: where its weights came from.
    """

    title: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    raw: ClassVar[str]
    dim: int

    def __init__(self, checkpoint: Checkpoint, dim: int) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.dim = dim
        self._noisy = False
        self._frozen: tuple[nn.Module, ...] = ()

    @classmethod
    @abstractmethod
    def resolve(cls, checkpoint: str | None, revision: str | None) -> Checkpoint:
        """Find a checkpoint that this plug-in can load.

        Args:
            checkpoint: as the stream of this plug-in takes it; None is the plug-in's own, where it has one.
            revision: on the Hub.

        Raises:
            CheckpointError: there is none, or it is of another kind.
        """

    @classmethod
    @abstractmethod
    def parts(cls, checkpoint: Checkpoint) -> Parts:
        """Return what the encoder of a checkpoint consists of."""

    @classmethod
    @abstractmethod
    def below(cls, parts: Parts, kind: str, layer: str) -> int:
        """Return how many parts lie below a layer of a stream."""

    @classmethod
    def least(cls, checkpoint: Checkpoint, kind: str) -> int:
        """Return how many frames of a stream give at least one state."""
        return 1

    @classmethod
    @abstractmethod
    def build(cls, checkpoint: Checkpoint, revision: str | None, below: int, frozen: int, dropout: bool) -> Self:
        """Load the weights.

        Args:
            checkpoint: what :meth:`resolve` returned.
            revision: what it was given.
            below: how many parts are not wanted.
            frozen: how many parts do not train, `below` or more.
            dropout: see :meth:`freeze`.
        """

    @abstractmethod
    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode a batch. What lies behind an utterance's own frames changes no state of it.

        Args:
            frames: ``(batch, 1, frames, dim)`` of the stream, float32.
            lengths: ``(batch,)`` frames of each utterance.

        Returns:
            States ``(batch, states, dim)`` of the last layer, 0 behind an utterance's own: the ``last_hidden_state`` of
            the model's encoder, so with its final norm where it has one; and how many an utterance has, ``(batch,)``.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Save the whole encoder, what lies below the boundary too, as a checkpoint of its own.

        It is written aside and renamed into place; an older one there is replaced.

        Args:
            folder: what :func:`featcache.checkpoints.resolve` can then be given.
        """

    def freeze(self, frozen: Sequence[nn.Module], dropout: bool) -> None:
        """Switch on what trains: all parameters but those of some modules.

        Args:
            frozen: they need no gradient and stay in eval mode.
            dropout: whether what trains is in training mode when this module is: with dropout and its like.
        """
        self._frozen, self._noisy = tuple(frozen), dropout
        self.requires_grad_(True)
        for module in frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Switch training mode, of what neither is frozen nor has its dropout switched off."""
        super().train(mode)
        for child in self.children():
            child.train(mode and self._noisy)
        for module in self._frozen:
            module.eval()
        return self


def load_encoder(
    spec: StreamSpec,
    checkpoint: str | None,
    revision: str | None = None,
    freeze: Freeze | None = None,
    dropout: bool = False,
    start_layer: int | None = None,
) -> EncoderModule:
    """Load what of an encoder lies above a stream, ready to be trained.

    Args:
        spec: of the stream that is read.
        checkpoint: as `featcache extract` takes it: a folder, a name on the Hub; ``"resemblyzer"`` for the streams
            ``ge2e_mels`` and ``ge2e_states``. None is the one that the stream names.
        revision: branch, tag or commit on the Hub.
        freeze: what does not train. None is the front end, or all below the boundary where that is more.
        dropout: whether the encoder's own dropout, layerdrop and SpecAugment are on in training; layerdrop is not where
            a frozen layer is run, which it would skip as well.
        start_layer: the layer of the stream that is read, counted from the end when negative; a stream of one layer
            needs none.

    Raises:
        ConfigError: no encoder starts from this stream, the stream is of another checkpoint, the layer is missing, or
            something is to train that lies below the boundary.
        CheckpointError: the checkpoint cannot be loaded.
    """
    check_freeze(freeze)
    plugin = encoder_of(spec)
    found = checkpoint_of(spec, checkpoint, revision)
    parts = plugin.parts(found)
    layer = spec.layers[start_of(spec, start_layer)]
    below = plugin.below(parts, spec.kind, layer)
    frozen = _frozen(parts, freeze, below, f"{layer} of {spec.name}")
    with torch.device("cpu"):  # even where sizes are counted on a device without numbers
        return plugin.build(found, revision, below, frozen, dropout)


def check_freeze(freeze: Freeze | None) -> None:
    """Refuse what no encoder can freeze, before one is loaded.

    Raises:
        ConfigError: it is text, and none of `FREEZES`.
    """
    if isinstance(freeze, str) and freeze not in FREEZES:
        raise ConfigError(f"freeze is {freeze!r}; it may be {', '.join(FREEZES)}, or a number of layers.")


def encoder_of(spec: StreamSpec) -> type[EncoderModule]:
    """Return the plug-in that starts from a stream.

    Raises:
        ConfigError: none does; says which streams there are.
    """
    plugins = [registry.load(_PLUGINS, name, EncoderModule) for name in registry.names(_PLUGINS)]
    chosen = next((plugin for plugin in plugins if spec.kind in plugin.kinds), None)
    if chosen is None:
        kinds = ", ".join(kind for plugin in plugins for kind in plugin.kinds)
        raise ConfigError(f"No encoder starts from {spec.name}. Streams that one starts from: {kinds}.")
    if not spec.settings.get("special_tokens", True):
        raise ConfigError(
            f"{spec.name} is without special tokens, which every layer above attends to. Extract it again with "
            f"--set {spec.kind}.special_tokens=true."
        )
    return chosen


def start_of(spec: StreamSpec, start_layer: int | None) -> int:
    """Return the position of the layer of a stream that an encoder starts from.

    Raises:
        ConfigError: there is no such layer, or there are several and none is named.
    """
    count = len(spec.layers)
    if start_layer is None and count == 1:
        return 0
    if start_layer is not None and -count <= start_layer < count:
        return start_layer % count
    given = "" if start_layer is None else f"start_layer is {start_layer}, and "
    if count == 1:
        raise ConfigError(f"{given}{spec.name} has one layer, {spec.layers[0]!r}. Leave start_layer out.")
    raise ConfigError(
        f"{given}{spec.name} has {count} layers, 0 ({spec.layers[0]!r}) to {count - 1} ({spec.layers[-1]!r}). Say from "
        "which of them the encoder starts: --set settings.start_layer=N."
    )


def least_frames(spec: StreamSpec, checkpoint: str | None, revision: str | None = None) -> int:
    """Return how many frames of a stream give its encoder's first state."""
    return encoder_of(spec).least(checkpoint_of(spec, checkpoint, revision), spec.kind)


def check_least(view: View, checkpoint: str | None, revision: str | None = None) -> None:
    """Refuse a stream's utterances if one is too short for a state of the encoder.

    Raises:
        StreamError: one is; names the shortest.
    """
    if not len(view.ids):
        return
    least, shortest = least_frames(view.stream.spec, checkpoint, revision), int(view.lengths.argmin())
    if view.lengths[shortest] < least:
        raise StreamError(
            f"{view.ids[shortest]!r} has {int(view.lengths[shortest])} frames in {view.stream.name}; the encoder needs "
            f"{least} for its first state. Leave the utterance out of the manifest."
        )


def checkpoint_of(spec: StreamSpec, checkpoint: str | None, revision: str | None = None) -> Checkpoint:
    """Return the checkpoint of the encoder that starts from a stream: that which it was computed with, if any was.

    Raises:
        ConfigError: no encoder starts from the stream, or the stream is of another checkpoint.
        CheckpointError: there is none.
    """
    plugin, made_with = encoder_of(spec), spec.checkpoint
    if made_with is None:
        return plugin.resolve(checkpoint, revision)
    try:
        found = plugin.resolve(made_with["name"] if checkpoint is None else checkpoint, revision)
    except CheckpointError as error:
        if checkpoint is not None:
            raise
        raise CheckpointError(
            f"{error} {spec.name} names its checkpoint so; if it is a folder, give that by the setting checkpoint."
        ) from error
    ours = found.identity()
    different = [key for key in ("weights_sha256", "config_sha256") if key in made_with and made_with[key] != ours[key]]
    if different:
        raise ConfigError(
            f"{spec.name} was computed with the checkpoint {made_with['name']!r}, whose "
            f"{' and '.join(key.removesuffix('_sha256') for key in different)} are not those of {found.name!r}: the "
            "encoder would go on from states of another one. Name that checkpoint, or extract the stream with this one."
        )
    return found


def _frozen(parts: Parts, freeze: Freeze | None, below: int, where: str) -> int:
    """Return how many parts do not train."""
    if freeze is None:
        return max(below, parts.front_end)
    if isinstance(freeze, int) and not 0 <= freeze <= parts.num_layers:
        raise ConfigError(
            f"freeze is {freeze}, and the encoder has {parts.num_layers} layers that can be frozen one by one. Set it "
            f"to 0 to {parts.num_layers}, or to nothing, front_end or all."
            if parts.num_layers
            else f"freeze is {freeze}, and layers of this encoder cannot be frozen one by one. Set it to nothing, "
            "front_end or all."
        )
    if isinstance(freeze, int):
        frozen = parts.up_to(freeze)
    else:
        frozen = {"nothing": 0, "front_end": parts.front_end, "all": len(parts.names)}[freeze]
    if frozen < below:
        raise ConfigError(
            f"freeze={freeze} leaves {', '.join(parts.names[frozen:below])} to train, which lie below {where}: what "
            "was cached is their output. Leave freeze out, or start from a stream further down."
        )
    return frozen


def save_model(encoder: EncoderModule, folder: Path) -> None:
    """Save a transformers model with an encoder's weights as a folder of its own.

    What lies below the boundary is read from the checkpoint that the encoder came from, and the small files beside its
    weights are copied: what a tokenizer or a preprocessor reads.

    Args:
        encoder: what was trained; its parameters are those of the model behind ``model.``.
        folder: where to; see :meth:`EncoderModule.save`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of what the checkpoint lacks and no state depends on, such as a pooler
        model = checkpoints.load_model(encoder.checkpoint, "cpu")
    left_over = model.load_state_dict(encoder.get_submodule("model").state_dict(), strict=False).unexpected_keys
    if left_over:
        raise CheckpointError(
            f"The checkpoint {encoder.checkpoint.name!r} has changed since it was loaded: it has no {left_over[0]!r} "
            "now. Train again."
        )
    with written_aside(folder) as aside:
        with checkpoints.quiet():
            model.save_pretrained(aside)
        for path in sorted(encoder.checkpoint.folder.iterdir()):
            if path.suffix in _SMALL and path.is_file() and path.name not in _NOT_COPIED and not path.match(_INDEX):
                shutil.copyfile(path, aside / path.name)


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Give a fresh folder that becomes `folder`, in place of what lies there, when all of it is written."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".tmp-", dir=folder.parent))
    try:
        (aside / folder.name).mkdir()
        yield aside / folder.name
        sync(aside)
        if folder.exists():
            folder.rename(aside / f"{folder.name}.old")
        (aside / folder.name).rename(folder)
        sync(folder.parent, below=False)
    finally:
        shutil.rmtree(aside)

"""MMER: three cross-modal transformer blocks over speech and text, an acoustic gate, and characters by CTC beside.

Source: Ghosh, Srivastava and Umesh 2023, section 3 and Figure 1 (https://arxiv.org/abs/2203.16794), and the authors'
published code (https://github.com/Sreyan88/MMER, ``old_mmer/``, which is that of the paper's text) for what the text
leaves open: blocks built as BERT's layers, GELU, dropout 0.1, and a CTC loss summed over the batch (`ctc_reduction`).
That the blocks have BERT-base's 12 heads and 3072 units is assumed: the code reads them from a file that was not found.
The later ``src/`` has contrastive losses on augmented copies that the text does not know.

Speech frames A and tokens T, with padding hidden from every attention and every mean:

- P = B(A, T): frames ask, tokens answer; R = C(T, P): speech-aware words; Q = D(T, A): word-aware speech;
- g = sigmoid(W [R; Q] + b), Q = g * Q, M = Linear([Q; R]);
- emotion from [mean(A); mean(M)], characters from A; the loss is cross-entropy + alpha * CTC.

Where the published code departs from this: it has two things more, which ``code_layers`` brings (a transformer layer
over the tokens, and a linear map of the frames before B and another before D). It hides no padding: its mask of the
text adds 1 to what is real, in place of hiding what is not, and frames are not masked at all; its batches are of two.
It averages before the last linear layer of M, which is the same where nothing is padded.

With 768 dimensions and four classes there are 23.7 M parameters beside wav2vec2-base's 94.4 M (31.9 M with
``code_layers``), 22 thousand of them for the characters.

A run without one of the two modalities has none of the blocks, and takes the mean of the other.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from featcache import speech_encoders
from featcache.cache import CachedStream
from featcache.errors import ConfigError
from featcache.stream import StreamSpec
from featcache.view import View
from heads.encoder import EncoderModule, Freeze, check_freeze, check_least, checkpoint_of, load_encoder
from heads.encoders.speech import SpeechEncoder
from heads.head import GradientHead, chosen_layers
from heads.inputs import FrameInputs
from heads.layers import LayerMix
from heads.models._mmer import CtcLoss, Frames, Interaction, MmerModule, apart, check_targets
from heads.streams import StreamInputs
from heads.task import Task, features_of

TEXT, CHARACTERS, WAVEFORM = "token_states", "characters", "waveform"
# Numbers held at once, to bound batches that are scored: the widest layers of a base model, and its front end's.
_HELD_BY_FRAME, _HELD_BY_SAMPLE = 6144, 256


@dataclass(frozen=True)
class Mmer(GradientHead["ModalInputs"]):
    """Speech and text joined by cross-modal attention. Streams are told apart by their kind.

    ``token_states`` is the text, with special tokens in the paper; ``characters`` is what CTC aims at; one more is the
    speech. Streams of a part that is switched off may be there, and are not read.

    Attributes:
        alpha: weight of the CTC loss; 0 is none, and needs no characters. Without speech there is none either.
        gate: whether the acoustic gate weighs the word-aware speech.
        text: whether text is read; without it the mean of the speech frames is classified.
        speech: whether speech is read; without it the mean of the tokens is classified.
        layer: the layer of the speech stream: a position, negative from the end, or ``"mix"`` for a learned average.
        weighting: of the average: ``"softmax"`` as SUPERB, ``"ratio"`` as Makiuchi et al. 2021, Eq. 1.
        text_layer: the layer of the text stream.
        dim: size within the blocks; None is that of a token. Where speech has another size, two linear maps bring it
            there, those of `code_layers`.
        heads: of each attention.
        feed_forward: width of the hidden layer behind each attention; None is four times `dim`.
        dropout: in the blocks, and on frames and tokens.
        code_layers: also have what the published code has and the paper does not mention: a transformer layer over the
            tokens, and linear maps of the speech frames before blocks B and D.
        ctc_reduction: ``"mean"`` over the utterances of a batch; ``"sum"``, the published code's, for which alpha is
            twice as heavy in batches of two; or ``"characters"``: each utterance's loss is divided by its number of
            characters, as PyTorch's mean does.
        encoder: checkpoint of a speech encoder that trains as well, from where the speech stream begins
            (``conv_features``, ``waveform``, or `start_layer` of ``hidden_states``); None takes the frames as they are.
        revision: of the encoder, on the Hub.
        freeze: how much of the encoder stays as it is: ``"nothing"``, ``"front_end"``, N for all up to layer N, or
            ``"all"``; None is its convolutional front end, as in the paper.
        start_layer: where the speech stream is ``hidden_states``: the layer that the encoder goes on from.
        encoder_dropout: whether the encoder's own dropout works in training; its SpecAugment never does, as in the
            published code.
    """

    title: ClassVar[str] = "MMER: cross-modal attention of speech and text, acoustic gate, characters by CTC"
    tier: ClassVar[Literal["frames", "stats"]] = "frames"
    stacked: ClassVar[bool] = False

    alpha: float = 0.1
    gate: bool = True
    text: bool = True
    speech: bool = True
    layer: int | Literal["mix"] = -1
    weighting: Literal["softmax", "ratio"] = "softmax"
    text_layer: int = -1
    dim: int | None = None
    heads: int = 12
    feed_forward: int | None = None
    dropout: float = 0.1
    code_layers: bool = False
    ctc_reduction: Literal["mean", "sum", "characters"] = "mean"
    encoder: str | None = None
    revision: str | None = None
    freeze: Freeze | None = None
    start_layer: int | None = None
    encoder_dropout: bool = True

    def __post_init__(self) -> None:
        check_freeze(self.freeze)
        if not (self.text or self.speech):
            raise ConfigError("mmer reads neither speech nor text. Set speech or text to true.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must be 0 to below 1, got {self.dropout}.")
        if not 0 <= self.alpha < float("inf"):
            raise ConfigError(f"alpha must be 0 or more, and finite, got {self.alpha}.")
        sizes = {"heads": self.heads, "dim": self.dim, "feed_forward": self.feed_forward}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}.")
        if self.encoder is not None and self.layer != -1:
            raise ConfigError(f"layer={self.layer} is of frozen frames; with an encoder set start_layer, or nothing.")

    @property
    def reads(self) -> tuple[str, ...]:
        """What is read, in order: ``speech``, ``text``, ``characters``."""
        wanted = {"speech": self.speech, "text": self.text, "characters": self.speech and self.alpha > 0}
        return tuple(role for role, on in wanted.items() if on)

    def further_streams(self) -> tuple[str, ...]:
        """Return the kinds of streams read beside the speech, or beside the text where that is read alone."""
        return tuple({"text": TEXT, "characters": CHARACTERS}[role] for role in self.reads[1:])

    def roles(self, task: Task) -> dict[str, CachedStream]:
        """Return the streams that are read, by what is done with them: see :attr:`reads`.

        Raises:
            ConfigError: one is missing, or it is not clear which is the speech.
        """
        kinds = {"text": TEXT, "characters": CHARACTERS}
        found = {role: [one for one in task.streams.values() if one.spec.kind == kind] for role, kind in kinds.items()}
        found["speech"] = [one for one in task.streams.values() if one.spec.kind not in kinds.values()]
        wrong = [role for role in self.reads if len(found[role]) != 1]
        if wrong:
            role, names = wrong[0], ", ".join(task.streams) or "none"
            needs = [f"one of kind {kinds[one]}" if one in kinds else "one of speech frames" for one in self.reads]
            raise ConfigError(
                f"The head 'mmer' with these settings reads {len(needs)} streams, {', '.join(needs)}. It got {names}, "
                f"of which {len(found[role]) or 'none'} could be the {role}. Name each with --stream, or switch the "
                "part off: settings.text=false, settings.speech=false, or settings.alpha=0 for no characters."
            )
        return {
            role: found[role][0] if role == "characters" else features_of(self.kind(), found[role][0])
            for role in self.reads
        }

    def source(self, task: Task) -> CachedStream:
        """Return the speech stream, or that of text where it is read alone."""
        return self.roles(task)[self.reads[0]]

    def read_layers(self, num_layers: int) -> Sequence[int]:
        """Return the layers of the speech, or of the text where it is read alone."""
        return self._layers(self.reads[0], num_layers)

    def _layers(self, role: str, num_layers: int) -> Sequence[int]:
        layer: int | str | None = self.layer if self.encoder is None else self.start_layer
        layer = self.text_layer if role == "text" else layer
        return range(num_layers) if layer in ("mix", None) else chosen_layers(layer, num_layers, self.kind())

    def inputs(self, task: Task) -> "ModalInputs":
        """Return the features, and characters for training.

        Raises:
            ConfigError: speech is samples, and no encoder is named; or CTC can learn from no utterance, see
                :func:`heads.models._mmer.check_targets`.
            StreamError: an utterance is too short for the encoder.
        """
        roles = self.roles(task)
        characters = roles.pop("characters", None)
        views = [
            task.view(stream, layers=self._layers(role, len(stream.spec.layers))) for role, stream in roles.items()
        ]
        speech = roles.get("speech")
        samples = speech is not None and speech.spec.kind == WAVEFORM
        if samples and self.encoder is None:
            raise ConfigError("mmer reads samples only through an encoder. Name one: settings.encoder=CHECKPOINT.")
        if speech is not None and self.encoder is not None:
            check_least(views[0], self.encoder, self.revision)
        if speech is not None and characters is not None:
            check_targets(speech.name, self._num_states(views[0]), characters, task.ids)
        further = None if characters is None else task.view(characters)
        return ModalInputs(views, further, _HELD_BY_SAMPLE if samples else _HELD_BY_FRAME)

    def _num_states(self, speech: View) -> Sequence[int]:
        """Return how many frames each utterance has where CTC reads them."""
        counts: list[int] = speech.lengths.tolist()
        if speech.stream.spec.kind != WAVEFORM:
            return counts
        config = checkpoint_of(speech.stream.spec, self.encoder, self.revision).config
        return [speech_encoders.num_frames(config, count) for count in counts]

    def shapes(self, task: Task) -> dict[str, Any]:
        """Return the arguments of :meth:`module` for a task."""
        roles = self.roles(task)
        shapes: dict[str, Any] = {**super().shapes(task)}
        if "text" in roles:
            shapes["text_dim"] = roles["text"].spec.dim
        if "characters" in roles:
            shapes["num_symbols"] = len(roles["characters"].spec.settings["symbols"])
        if self.encoder is not None and "speech" in roles:
            shapes["speech_spec"] = roles["speech"].spec
        return shapes

    def module(
        self,
        num_layers: int,
        dim: int,
        num_classes: int,
        text_dim: int = 768,
        num_symbols: int = 29,
        speech_spec: StreamSpec | None = None,
    ) -> MmerModule:
        """Return a fresh module. At a seed, what the variants have in common begins alike in all of them.

        Args:
            num_layers: layers of the speech stream, or of the text where it is read alone.
            dim: size of its frame.
            num_classes: number of classes.
            text_dim: size of a token.
            num_symbols: characters that CTC tells apart, the blank among them.
            speech_spec: the speech stream's, where an encoder trains from it.

        Raises:
            ConfigError: the attention's heads do not divide its size, or the encoder cannot start from the stream.
        """
        speech = text = interaction = None
        width = 0
        if self.speech:
            speech = self._speech(num_layers, speech_spec)
            width = dim = speech.dim if isinstance(speech, EncoderModule) else dim
        with apart():
            ctc = CtcLoss(dim, num_symbols, self.ctc_reduction) if CHARACTERS in self.reads else None
        if self.text:
            text = Frames(None)
            inner = text_dim if self.dim is None else self.dim
            interaction = self._interaction(dim, text_dim, inner) if self.speech else None
            width += inner if self.speech else dim
        return MmerModule(speech, text, interaction, ctc, nn.Linear(width, num_classes), self.alpha, self.dropout)

    def _speech(self, num_layers: int, spec: StreamSpec | None) -> nn.Module:
        """Return what makes frames of what is read of the speech stream."""
        if self.encoder is None:
            return Frames(LayerMix(num_layers, self.weighting) if self.layer == "mix" else None)
        if spec is None:
            raise ConfigError(
                "mmer with an encoder needs the stream that it starts from; without one leave encoder out."
            )
        encoder = load_encoder(spec, self.encoder, self.revision, self.freeze, self.encoder_dropout, self.start_layer)
        _leave_unmasked(encoder)
        return encoder

    def _interaction(self, speech_dim: int, text_dim: int, dim: int) -> Interaction:
        if dim % self.heads:
            raise ConfigError(
                f"mmer's blocks are {dim} wide, which {self.heads} attention heads do not divide. Set settings.heads "
                "to a divisor, or settings.dim to a multiple."
            )
        feed_forward = 4 * dim if self.feed_forward is None else self.feed_forward
        return Interaction(
            speech_dim, text_dim, dim, self.heads, feed_forward, self.dropout, self.gate, self.code_layers
        )

    def example(self, shapes: Mapping[str, Any]) -> tuple[torch.Tensor, ...]:
        """Return zeros in the form of a training batch of two utterances of 100 frames, 20 tokens and 30 characters."""
        num_layers, dim, text_dim = shapes["num_layers"], shapes["dim"], shapes.get("text_dim", 768)
        first = torch.zeros(2, len(self.read_layers(num_layers)), 100, dim), torch.full((2,), 100)
        further = {
            "text": (torch.zeros(2, 1, 20, text_dim), torch.full((2,), 20)),
            "characters": (torch.ones(2, 1, 30, 1), torch.full((2,), 30)),
        }
        return (*first, *(item for role in self.reads[1:] for item in further[role]))

    def scoring(self) -> "Mmer":
        """Return the head without the CTC loss, which reads no characters."""
        return replace(self, alpha=0.0)

    def pretrained(self, module: nn.Module) -> Collection[str]:
        """Return the names of the encoder's parameters, where it trains."""
        names = [name for name, _ in module.named_parameters() if name.startswith("speech.")]
        return names if self.encoder is not None else ()


class ModalInputs(StreamInputs):
    """Speech and text, each padded by itself, and in training the characters.

    Args:
        views: frames of what is scored, speech before text.
        characters: ids; None where there is no CTC loss.
        held: see :class:`heads.streams.StreamInputs`.
    """

    def __init__(self, views: Sequence[View], characters: View | None, held: int) -> None:
        super().__init__(views, held)
        self._characters = None if characters is None else FrameInputs(characters)

    def training_batch(
        self, indices: torch.Tensor, layers: torch.Tensor | None, generator: torch.Generator
    ) -> tuple[torch.Tensor, ...]:
        """Return what is scored, then ids ``(1, batch, 1, characters, 1)`` and their numbers ``(1, batch)``."""
        batch = self.batch(indices, layers)
        return batch if self._characters is None else (*batch, *self._characters.batch(indices, layers))


def _leave_unmasked(encoder: EncoderModule) -> None:
    """Switch SpecAugment off, as the published code does, which keeps the encoder's dropout."""
    if isinstance(encoder, SpeechEncoder):
        encoder._spec_augment = False
        if hasattr(encoder.model, "masked_spec_embed"):
            encoder.model.masked_spec_embed.requires_grad_(False)

"""Makiuchi's cross-representation speech model: classify an utterance from codes that must also rebuild its log-mels.

Source: Makiuchi, Uto and Shinoda 2021, section 3.1 and Figure 2 (https://doi.org/10.1109/ASRU51503.2021.9688036), and
the authors' published code (https://github.com/mmakiuchi/multimodal_emotion_recognition, ``speech/``) for the sizes and
the initialisation that the figure leaves out. A narrow bottleneck leaves room in the codes for little but the emotion:
the decoder is given who speaks and what is said.

``small``, with four classes, wav2vec2-large's 25 x 1024 frames and the 128 phones, has 84,427,101 parameters.

Where this departs from the published code:

- Every window of an utterance counts in inference; the code drops a last one of a single frame.
- The window that ends with the utterance can be drawn in training; the code's draw leaves the last start out.
- Frames of a stream that is faster than the mels are averaged to their rate, so that ``ge2e_states`` can feed it too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from featcache.cache import CachedStream
from featcache.errors import ConfigError, ProtocolError, StreamError
from featcache.manifest import Utterance
from featcache.speakers import speaker_means
from featcache.view import Buffer
from heads.head import CodeShape, GradientHead
from heads.inputs import Inputs
from heads.layers import LayerMix
from heads.models._encoder_decoder import Decoder, Encoder, PhoneEncoder, PostNet, SpeechModel
from heads.task import Task, features_of

_SIZES = {"small": (8, 48), "large": (128, 2), "spec": (8, 48)}
_MOST_APART = 2  # frames by which streams of one utterance may differ: how many a model gives depends on its padding
_WINDOWS = 64
SPEAKER = "speaker/"
"""What stands before the name of a speaker in :meth:`EncoderDecoder.context`."""


@dataclass(frozen=True)
class EncoderDecoder(GradientHead["WindowInputs"]):
    """Codes of windows, classified and decoded. It reads four streams, told apart by their kind.

    ``log_mel`` (what is rebuilt), ``speaker``, ``phones``, and one more whose layers are encoded; ``spec`` encodes the
    log-mels themselves and takes no fourth.

    Attributes:
        size: ``"small"`` (bottleneck 8, factor 48), ``"large"`` (128, 2), or ``"spec"``: small, fed with log-mels.
        bottleneck: units of the encoder's BLSTM in each direction; None is the size's.
        factor: frames in a block, of which one code is kept; None is the size's.
        window: frames in a window, a multiple of the factor.
        weighting: of the layers: ``"ratio"`` (the paper's Eq. 1) or ``"softmax"``.
        channels: of the encoder's convolutions; None is 2048, and 512 for ``spec``.
        phone_channels: of the phone encoder's convolutions.
        phone_dim: units of the phone encoder's BLSTM in each direction.
        decoder_channels: units of the decoder's first LSTM, and channels behind it.
        decoder_dim: units of the decoder's last LSTM.
        post_net_channels: of the post-net.
        classifier_dim: width of the classifier's two hidden layers.
        dropout: before the last linear layer.
        reconstruct: decode as well; without it only the classifier trains, and phones are not read.
    """

    title: ClassVar[str] = "Makiuchi's speech model: layer mix, bottleneck codes, decoder, classifier"
    tier: ClassVar[Literal["frames", "stats"]] = "frames"
    stacked: ClassVar[bool] = False

    size: Literal["small", "large", "spec"] = "small"
    bottleneck: int | None = None
    factor: int | None = None
    window: int = 96
    weighting: Literal["ratio", "softmax"] = "ratio"
    channels: int | None = None
    phone_channels: int = 512
    phone_dim: int = 128
    decoder_channels: int = 512
    decoder_dim: int = 1024
    post_net_channels: int = 512
    classifier_dim: int = 128
    dropout: float = 0.5
    reconstruct: bool = True

    def __post_init__(self) -> None:
        bottleneck, factor = self._sizes()
        if min(bottleneck, factor, self.window) < 1 or self.window % factor:
            raise ConfigError(
                f"encoder_decoder needs a bottleneck and a factor of 1 or more, and a window that is a multiple of the "
                f"factor, got bottleneck {bottleneck}, factor {factor} and window {self.window}."
            )

    def _sizes(self) -> tuple[int, int]:
        bottleneck, factor = _SIZES[self.size]
        return (
            bottleneck if self.bottleneck is None else self.bottleneck,
            factor if self.factor is None else self.factor,
        )

    def further_streams(self) -> tuple[str, ...]:
        """Return the kinds of streams read beside the encoded one."""
        return ("log_mel", "speaker", *(["phones"] if self.reconstruct else []))

    def context(self, task: Task) -> dict[str, np.ndarray]:
        """Return the mean embedding of each speaker, which is of other utterances than the one that is scored.

        Augmented copies have no part in it.
        """
        means = speaker_means(self.roles(task)["speaker"], _people(task))
        return {f"{SPEAKER}{speaker}": mean for speaker, mean in means.items()}

    def scoring(self) -> "EncoderDecoder":
        """Return the head without the decoder: phones, which have as many frames as the log-mels, are not read."""
        return replace(self, reconstruct=False)

    def source(self, task: Task) -> CachedStream:
        """Return the stream that is encoded."""
        return features_of(self.kind(), self.roles(task)["source"])

    def roles(self, task: Task) -> dict[str, CachedStream]:
        """Return the task's streams by what the model does with them: source, log_mel, speaker, phones.

        Raises:
            ConfigError: a stream is missing, or one too many.
        """
        wanted = self.further_streams()
        kinds = {stream.spec.kind: stream for stream in task.streams.values()}
        others = [name for name, stream in task.streams.items() if stream.spec.kind not in ("phones", *wanted)]
        lacking = [kind for kind in wanted if kind not in kinds]
        if lacking or len(others) != (0 if self.size == "spec" else 1) or len(kinds) != len(task.streams):
            encoded = "log_mel alone" if self.size == "spec" else "exactly one more, such as hidden_states"
            raise ConfigError(
                f"The head 'encoder_decoder' reads the streams {', '.join(wanted)}, and encodes {encoded}. It got "
                f"{', '.join(task.streams) or 'none'}"
                f"{f'; {lacking[0]} is missing' if lacking else ''}. Name each with --stream."
            )
        roles = {kind: kinds[kind] for kind in wanted}
        return roles | {"source": kinds["log_mel"] if self.size == "spec" else task.streams[others[0]]}

    def inputs(self, task: Task) -> "WindowInputs":
        """Return the windows."""
        return WindowInputs(task, self.roles(task), self.window)

    def shapes(self, task: Task) -> dict[str, int]:
        """Return the arguments of :meth:`module` for a task."""
        roles = self.roles(task)
        phones = roles.get("phones")
        return super().shapes(task) | {
            "num_mels": roles["log_mel"].spec.dim,
            "speaker_dim": roles["speaker"].spec.dim,
            "num_phones": 0 if phones is None else len(phones.spec.settings["inventory"]),
        }

    def example(self, shapes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
        """Return zeros in the form of a training batch of two windows."""
        sizes = {"num_mels": 80, "speaker_dim": 256, "num_phones": 128} | dict(shapes)
        windows = torch.zeros(2, sizes["num_layers"], self.window, sizes["dim"])
        batch = (windows, torch.zeros(2, sizes["speaker_dim"]))
        if not self.reconstruct:
            return batch
        phones = torch.zeros(2, self.window, sizes["num_phones"])
        return (*batch, phones, torch.zeros(2, self.window, sizes["num_mels"]))

    def code_shape(self, task: Task) -> CodeShape:
        """Return the form of a window's codes."""
        bottleneck, factor = self._sizes()
        shift_s = self.roles(task)["log_mel"].spec.frame_shift_s
        return CodeShape(self.window // factor, 2 * bottleneck, factor * (shift_s or 0.0))

    def codes(self, module: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the codes of windows, ``(rows, blocks, 2 * bottleneck)``."""
        if not isinstance(module, SpeechModel):
            raise TypeError(f"got a {type(module).__name__}, expected what module() returns")
        return module.codes(*batch)

    def module(
        self,
        num_layers: int,
        dim: int,
        num_classes: int,
        num_mels: int = 80,
        speaker_dim: int = 256,
        num_phones: int = 128,
    ) -> SpeechModel:
        """Return a fresh module.

        Args:
            num_layers: layers of the encoded stream.
            dim: size of its frame.
            num_classes: number of classes.
            num_mels: mels to rebuild.
            speaker_dim: size of a speaker embedding.
            num_phones: phones of the inventory.
        """
        bottleneck, factor = self._sizes()
        channels = (512 if self.size == "spec" else 2048) if self.channels is None else self.channels
        width = self.classifier_dim
        classify = nn.Sequential(
            nn.Linear(2 * bottleneck * self.window // factor, width),
            nn.Linear(width, width),
            nn.Dropout(self.dropout),
            nn.Linear(width, num_classes),
        )
        encoder = Encoder(dim, speaker_dim, channels, bottleneck, factor)
        mix = None if self.size == "spec" else LayerMix(num_layers, self.weighting)
        if not self.reconstruct:
            return SpeechModel(mix, encoder, classify)
        return SpeechModel(
            mix,
            encoder,
            classify,
            PhoneEncoder(num_phones, self.phone_channels, self.phone_dim),
            Decoder(
                2 * bottleneck + speaker_dim + 2 * self.phone_dim, self.decoder_channels, self.decoder_dim, num_mels
            ),
            PostNet(num_mels, self.post_net_channels),
        )


@dataclass
class WindowInputs(Inputs):
    """Windows of all utterances of a task. A batch is valid until the next is read, which lies in the same memory.

    An utterance has as many frames as the shortest of its streams has at the rate of the log-mels.

    Attributes:
        task: the task.
        roles: its streams by what is done with them.
        window: frames in a window.

    Raises:
        StreamError: streams whose frames are not in time, or whose rates or lengths do not fit; names the utterance.
        ProtocolError: an utterance has no speaker.
    """

    task: Task
    roles: Mapping[str, CachedStream]
    window: int
    lengths: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        names = [name for name in self.roles if name != "speaker"]
        self._views = {name: self.task.view(self.roles[name]) for name in names}
        self._buffers = {name: Buffer() for name in names}
        self._ratios = {name: self._ratio(name) for name in names}
        counts = torch.stack([self._views[name].lengths // self._ratios[name] for name in names])
        self.lengths = counts.min(dim=0).values
        apart = counts.max(dim=0).values - self.lengths
        bad = torch.nonzero((apart > _MOST_APART) | (self.lengths < 1))
        if len(bad):
            first = int(bad[0])
            told = ", ".join(f"{self.roles[name].name} {int(counts[row, first])}" for row, name in enumerate(names))
            raise StreamError(
                f"{self.task.ids[first]!r} has another number of frames in each stream (at the rate of the log-mels: "
                f"{told}). Were they extracted from the same audio? See 'featcache coverage'."
            )
        self._speakers = self._embeddings()

    def training_batch(
        self, indices: torch.Tensor, layers: torch.Tensor | None, generator: torch.Generator
    ) -> tuple[torch.Tensor, ...]:
        """Return one window of each utterance, drawn at random, with phones and mels where these are read.

        An utterance that is shorter than a window is zero-padded at its end.
        """
        chosen = indices[0]
        room = (self.lengths[chosen] - self.window).clamp(min=0)
        starts = (torch.rand(len(chosen), generator=generator) * (room + 1)).long().clamp(max=room)
        batch = [self._window("source", chosen, starts), self._speakers[chosen.to(self._speakers.device)]]
        if "phones" in self._views:
            batch += [self._phones(chosen, starts), self._window("log_mel", chosen, starts)[:, 0]]
        return tuple(item[None] for item in batch)

    def batch(self, indices: torch.Tensor, layers: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Return the first window of each utterance, and its speaker's embedding."""
        chosen = indices[0]
        starts = torch.zeros_like(chosen)
        return (
            self._window("source", chosen, starts)[None],
            self._speakers[chosen.to(self._speakers.device)][None],
        )

    def scored(
        self, positions: torch.Tensor, layers: torch.Tensor | None
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return consecutive windows of utterances, the last of each zero-padded, and whose each is."""
        counts = -(-self.lengths[positions] // self.window)
        owners = torch.repeat_interleave(torch.arange(len(positions)), counts)
        first = torch.cumsum(counts, 0) - counts
        starts = (torch.arange(len(owners)) - first[owners]) * self.window
        chosen = positions[owners]
        return (
            self._window("source", chosen, starts),
            self._speakers[chosen.to(self._speakers.device)],
        ), owners

    def chunks(self, positions: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return utterances in order, about 64 windows together."""
        counts = -(-self.lengths[positions] // self.window)
        groups = (torch.cumsum(counts, 0) - 1) // _WINDOWS
        return [torch.nonzero(groups == group)[:, 0] for group in groups.unique()]

    def _window(self, name: str, chosen: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, layers, window, dim)`` at the rate of the log-mels; zeros behind the utterance."""
        ratio = self._ratios[name]
        frames, _ = self._views[name].windows(chosen, starts * ratio, self.window * ratio, self._buffers[name])
        batch, layers, _, dim = frames.shape
        if ratio > 1:
            frames = frames.view(batch, layers, self.window, ratio, dim).mean(dim=3)
        left = self.lengths[chosen] - starts
        for row in torch.nonzero(left < self.window)[:, 0].tolist():
            frames[row, :, left[row] :] = 0  # where this stream goes on, and another one has ended
        return frames

    def _phones(self, chosen: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Return ``(batch, window, phones)`` one-hot; zeros behind the utterance, where nothing is spoken."""
        ids, _ = self._views["phones"].windows(chosen, starts, self.window, self._buffers["phones"])
        one_hot = F.one_hot(ids[:, 0, :, 0].long(), len(self.roles["phones"].spec.settings["inventory"])).float()
        return one_hot * self._inside(chosen, starts).to(one_hot.device)[..., None]

    def _inside(self, chosen: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        left = self.lengths[chosen] - starts
        return torch.arange(self.window) < left[:, None]

    def _ratio(self, name: str) -> int:
        """Return how many frames of a stream there are to one of the log-mels."""
        shift_s, mel_shift_s = self.roles[name].spec.frame_shift_s, self.roles["log_mel"].spec.frame_shift_s
        ratio = 0 if not shift_s or not mel_shift_s else round(mel_shift_s / shift_s)
        if not shift_s or not mel_shift_s or ratio < 1 or abs(ratio * shift_s - mel_shift_s) > 1e-9:
            raise StreamError(
                f"{self.roles[name].name} has a frame every {shift_s} s and {self.roles['log_mel'].name} every "
                f"{mel_shift_s} s; encoder_decoder needs a whole number of the one in the other."
            )
        return ratio

    def _embeddings(self) -> torch.Tensor:
        """Return each utterance's speaker's mean embedding, ``(utterances, speaker_dim)``."""
        known = dict(self.task.context)
        unknown = [one for one in _people(self.task) if f"{SPEAKER}{one.speaker}" not in known]
        known |= {f"{SPEAKER}{name}": mean for name, mean in speaker_means(self.roles["speaker"], unknown).items()}
        rows = [known[f"{SPEAKER}{speaker}"] for speaker in self.task.speakers]
        return torch.from_numpy(np.stack(rows)).to(self.task.device)


def _people(task: Task) -> list[Utterance]:
    """Return the utterances of a task with their speakers, without augmented copies.

    Raises:
        ProtocolError: an utterance has none.
    """
    pairs = zip(task.ids, task.speakers, strict=True)
    utterances = [Utterance(name, speaker=speaker) for name, speaker in pairs]
    nameless = [utterance.id for utterance in utterances if utterance.speaker is None]
    if nameless:
        raise ProtocolError(
            f"{len(nameless)} utterances have no speaker, such as {nameless[0]!r}; encoder_decoder reads a mean "
            "embedding of each speaker. Fill the manifest's column 'speaker'."
        )
    return [utterance for utterance in utterances if utterance.id not in task.copies]

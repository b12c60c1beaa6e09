"""The network of MMER, and what its CTC loss can learn from; see :mod:`heads.models.mmer`."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from featcache.cache import CachedStream
from featcache.errors import ConfigError
from heads.layers import LayerMix, inside, masked_mean

_EPSILON = 1e-12  # of layer norms, BERT's
BLANK_ID, BOUNDARY_ID = 0, 1  # of the stream characters

logger = logging.getLogger(__name__)


@contextmanager
def apart() -> Iterator[None]:
    """Draw the first weights of an optional part: with it and without it, what is built next begins alike."""
    seed = int(torch.randint(2**62, (), device="cpu"))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class CrossModalBlock(nn.Module):
    """A transformer layer whose queries are of one modality, and its keys and values of another (section 3.3, Eq. 1).

    As in BERT, the attention's output and then the feed-forward's are added to what went in, and normalised behind.

    Args:
        dim: size of a frame of either.
        heads: of the attention.
        feed_forward: width of the feed-forward's hidden layer, with GELU behind it.
        dropout: on the attention's weights, on its output and on the feed-forward's.
    """

    def __init__(self, dim: int, heads: int, feed_forward: int, dropout: float) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.norm_attended = nn.LayerNorm(dim, eps=_EPSILON)
        self.expand = nn.Linear(dim, feed_forward)
        self.contract = nn.Linear(feed_forward, dim)
        self.norm = nn.LayerNorm(dim, eps=_EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor, behind: torch.Tensor) -> torch.Tensor:
        """Let each query gather from what it attends to.

        Args:
            queries: ``(batch, frames, dim)``.
            memory: ``(batch, others, dim)``, keys and values; finite behind an utterance's end as well.
            behind: ``(batch, others)`` True behind the end, where nothing is attended to.

        Returns:
            ``(batch, frames, dim)``.
        """
        gathered, _ = self.attend(queries, memory, memory, key_padding_mask=behind, need_weights=False)
        states = self.norm_attended(queries + self.dropout(gathered))
        further = self.contract(F.gelu(self.expand(states)))
        result: torch.Tensor = self.norm(states + self.dropout(further))
        return result


class Interaction(nn.Module):
    """The multimodal interaction module: three cross-modal blocks and the acoustic gate (section 3.3, Figure 1).

    Args:
        speech_dim: size of a speech frame.
        text_dim: size of a token.
        dim: size within.
        heads: of each attention.
        feed_forward: width of each feed-forward's hidden layer.
        dropout: in each block.
        gate: whether there is the gate.
        code_layers: whether there is what only the published code has; see :class:`heads.models.mmer.Mmer`.
    """

    def __init__(
        self,
        speech_dim: int,
        text_dim: int,
        dim: int,
        heads: int,
        feed_forward: int,
        dropout: float,
        gate: bool,
        code_layers: bool,
    ) -> None:
        super().__init__()

        def block() -> CrossModalBlock:
            return CrossModalBlock(dim, heads, feed_forward, dropout)

        mapped = code_layers or speech_dim != dim
        self.text_map = nn.Linear(text_dim, dim) if text_dim != dim else nn.Identity()
        with apart():
            self.map_b = nn.Linear(speech_dim, dim) if mapped else nn.Identity()
            self.map_d = nn.Linear(speech_dim, dim) if mapped else nn.Identity()
            self.text_layer = block() if code_layers else None
        self.block_b = block()
        self.block_c = block()
        self.block_d = block()
        with apart():
            self.gate = nn.Linear(2 * dim, dim) if gate else None
        self.merge = nn.Linear(2 * dim, dim)

    def forward(
        self, speech: torch.Tensor, behind_speech: torch.Tensor, text: torch.Tensor, behind_text: torch.Tensor
    ) -> torch.Tensor:
        """Join speech and text, token by token.

        Args:
            speech: ``(batch, frames, speech_dim)``, A in the paper.
            behind_speech: ``(batch, frames)`` True behind an utterance's end.
            text: ``(batch, tokens, text_dim)``, T in the paper.
            behind_text: ``(batch, tokens)`` True behind its end.

        Returns:
            ``(batch, tokens, dim)``, M in the paper; without meaning behind the end.
        """
        words = self.text_map(text)
        if self.text_layer is not None:
            words = self.text_layer(words, words, behind_text)
        heard = self.block_b(self.map_b(speech), words, behind_text)  # P: (batch, frames, dim)
        aware_words = self.block_c(words, heard, behind_speech)  # R: (batch, tokens, dim)
        aware_speech = self.block_d(words, self.map_d(speech), behind_speech)  # Q: (batch, tokens, dim)
        if self.gate is not None:
            aware_speech = torch.sigmoid(self.gate(torch.cat([aware_words, aware_speech], dim=-1))) * aware_speech
        merged: torch.Tensor = self.merge(torch.cat([aware_speech, aware_words], dim=-1))
        return merged


class CtcLoss(nn.Module):
    """Characters from speech frames by CTC (Graves et al. 2006; section 3.4, Eq. 5 and 6).

    Args:
        dim: size of a frame.
        num_symbols: characters, the blank among them, which is id 0.
        reduction: ``"mean"`` over utterances, ``"sum"`` over them, or ``"characters"``: each one's is divided by its
            number of characters, then the mean.
    """

    def __init__(self, dim: int, num_symbols: int, reduction: str) -> None:
        super().__init__()
        self.project = nn.Linear(dim, num_symbols)
        self.reduction = reduction

    def forward(
        self, frames: torch.Tensor, lengths: torch.Tensor, ids: torch.Tensor, num_ids: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss of a batch. An utterance with fewer frames than its characters need counts as 0.

        Args:
            frames: ``(batch, frames, dim)``.
            lengths: ``(batch,)`` frames of each utterance.
            ids: ``(batch, characters)``, without meaning behind the end.
            num_ids: ``(batch,)`` characters of each.
        """
        scores = F.log_softmax(self.project(frames).float(), dim=-1).transpose(0, 1)  # (frames, batch, symbols)
        losses = F.ctc_loss(scores, ids, lengths, num_ids, BLANK_ID, reduction="none", zero_infinity=True)
        if self.reduction == "characters":
            losses = losses / num_ids
        return losses.sum() if self.reduction == "sum" else losses.mean()


class MmerModule(nn.Module):
    """Emotions from speech and text together, and characters from speech beside.

    Args:
        speech: what is read and its lengths to frames and their lengths, as :class:`Frames` and encoders do; None where
            speech is not read.
        text: the same of text.
        interaction: joins the two; None where one is not read.
        ctc: the further loss; None where there is none.
        classify: ``[mean(A); mean(M)]``, or the mean of what alone is read, to logits.
        alpha: weight of the further loss.
        dropout: on speech frames and tokens.
    """

    def __init__(
        self,
        speech: nn.Module | None,
        text: nn.Module | None,
        interaction: Interaction | None,
        ctc: CtcLoss | None,
        classify: nn.Module,
        alpha: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.speech = speech
        self.text = text
        self.interaction = interaction
        self.ctc = ctc
        self.classify = classify
        self.dropout = nn.Dropout(dropout)
        self.alpha = alpha

    def forward(self, *batch: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Map what is read to logits ``(batch, classes)``; in training, with characters, the further loss beside.

        Args:
            batch: frames and lengths, ``(batch, layers, frames, dim)`` and ``(batch,)``, of speech, of text and of
                characters, those of them that are read.
        """
        pairs = list(zip(batch[::2], batch[1::2], strict=True))
        pooled = []
        if self.speech is not None:
            speech, lengths, behind = self._read(self.speech, *pairs.pop(0))
            pooled.append(masked_mean(speech, lengths))
        if self.text is not None:
            text, num_tokens, behind_text = self._read(self.text, *pairs.pop(0))
            joint = text if self.interaction is None else self.interaction(speech, behind, text, behind_text)
            pooled.append(masked_mean(joint, num_tokens))
        logits: torch.Tensor = self.classify(torch.cat(pooled, dim=-1))
        if self.ctc is None or not pairs:
            return logits
        ids, num_ids = pairs.pop(0)
        return logits, self.alpha * self.ctc(speech, lengths, ids[:, 0, :, 0].long(), num_ids)

    def _read(
        self, frames: nn.Module, hidden: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return frames ``(batch, frames, dim)``, 0 behind their ends; lengths; and where that is."""
        states, lengths = frames(hidden.masked_fill(~inside(lengths, hidden.shape[2])[:, None, :, None], 0.0), lengths)
        behind = ~inside(lengths, states.shape[1])
        return self.dropout(states.masked_fill(behind[..., None], 0.0)), lengths, behind


class Frames(nn.Module):
    """Frames as they are cached: one layer, or a learned average of several."""

    def __init__(self, mix: LayerMix | None) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, hidden: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map ``(batch, layers, frames, dim)`` to ``(batch, frames, dim)``, with the same lengths."""
        return (hidden[:, 0] if self.mix is None else self.mix(hidden)), lengths


def frames_needed(ids: Sequence[int]) -> int:
    """Return the fewest frames that CTC can spell characters with: one each, and a blank between equal neighbours."""
    return len(ids) + sum(one == other for one, other in pairwise(ids))


def check_targets(speech: str, num_frames: Sequence[int], characters: CachedStream, ids: Sequence[str]) -> None:
    """Tell how much of the transcripts CTC cannot learn from.

    Args:
        speech: name of the stream of frames, for messages.
        num_frames: frames of each utterance.
        characters: what CTC is to spell.
        ids: utterances.

    Raises:
        ConfigError: it can learn from none of them.
    """
    if not ids:
        return
    targets = [characters[name][0, :, 0].tolist() for name in ids]
    _check_spelt(characters, targets, ids)
    needed = map(frames_needed, targets)
    short = [name for name, count, least in zip(ids, num_frames, needed, strict=True) if count < least]
    told = f"{speech}: {_few(short, ids)}, have fewer frames than their characters need"
    if len(short) == len(ids):
        raise ConfigError(
            f"{told}, so that CTC cannot spell them. Read a stream with more frames a second, or set settings.alpha=0."
        )
    if short:
        logger.warning("%s: they add nothing to the CTC loss, and count for the emotions as all do.", told)


def _check_spelt(characters: CachedStream, targets: Sequence[Sequence[int]], ids: Sequence[str]) -> None:
    """Tell of characters that were dropped, and of transcripts of which nothing is left; refuse if that is all."""
    dropped = characters.array("dropped", ids)
    lacking = [name for name, count in zip(ids, dropped.tolist(), strict=True) if count]
    lost = f"{int(dropped.sum())} characters were left out, which its vocabulary does not have"
    empty = [name for name, target in zip(ids, targets, strict=True) if set(target) <= {BOUNDARY_ID}]
    told = f"{characters.name}: {_few(empty, ids)}, have no characters in its vocabulary"
    if len(empty) == len(ids):
        raise ConfigError(
            f"{told}; {lost}. CTC has nothing to spell. Have they texts, and is characters.vocabulary of their "
            "language? Extract the stream with another vocabulary, or set settings.alpha=0."
        )
    if lacking:
        logger.warning("%s: %s, in %s.", characters.name, lost, _few(lacking, ids))
    if empty:
        logger.warning("%s: from their speech CTC learns one boundary between words.", told)


def _few(some: Sequence[str], ids: Sequence[str]) -> str:
    return f"{len(some)} of {len(ids)} utterances" + (f", such as {some[0]!r}" if some else "")

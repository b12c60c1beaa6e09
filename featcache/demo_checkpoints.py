"""Small checkpoints of random weights, by which everything that takes a checkpoint can be tried without a download.

They are named ``demo:NAME`` wherever a checkpoint is named, are built on first use in the user's cache folder
(``$XDG_CACHE_HOME`` or ``~/.cache``, there ``featcache/demo-checkpoints``), and lie there as ``save_pretrained`` writes
them. The weights are drawn by a generator whose bits are the same on every machine. They have learnt nothing: their
``config.json`` says ``"featcache_random": true``, fine-tuned copies keep that, and what is computed by them is labelled
so (:meth:`featcache.checkpoints.Checkpoint.identity`).
"""

import math
import os
import re
import string
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache import demo_sentences
from featcache.errors import CheckpointError, UnknownNameError
from featcache.files import sync

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PREFIX = "demo:"
RANDOM = "featcache_random"
"""The key of ``config.json`` by which weights that learnt nothing are known."""

_VERSION = 1  # raised with every change of what is built here
_VOCABULARY = 600
_MOST_TOKENS = 512
_CONVOLUTION_GAIN = 1.5  # GELU, behind each convolution, takes about that much away

_SPEECH = {
    "conv_dim": [32] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "num_feat_extract_layers": 7,
    "num_attention_heads": 4,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
_LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
_BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
_FOUR_LAYERS = {"hidden_size": 64, "num_hidden_layers": 4, "intermediate_size": 128}
_THREE_LAYERS = {"hidden_size": 48, "num_hidden_layers": 3, "intermediate_size": 96}


@dataclass(frozen=True)
class _Demo:
    """One checkpoint.

    Attributes:
        family: its ``model_type``.
        config: further settings of it.
        tokenizer: makes its tokenizer; None for encoders of speech.
    """

    family: str
    config: Mapping[str, Any]
    tokenizer: "Callable[[], PreTrainedTokenizerFast] | None" = None


def names() -> list[str]:
    """Return the names that :func:`folder` knows, each with its prefix."""
    return [PREFIX + name for name in sorted(_DEMOS)]


def folder(name: str) -> Path:
    """Return the folder of a demo checkpoint, and build it where it is not there yet (about a second).

    Args:
        name: one of :func:`names`.

    Raises:
        UnknownNameError: there is no such checkpoint.
        CheckpointError: the user's cache folder cannot be written to.
    """
    name = name.removeprefix(PREFIX)
    if name not in _DEMOS:
        raise UnknownNameError("demo checkpoint", PREFIX + name, names())
    place = _place()
    built = place / f"{name}-v{_VERSION}"
    if built.is_dir():
        return built
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=place) as aside:
            made = Path(aside) / built.name
            _build(name, made)
            sync(made)
            with suppress(FileExistsError):  # another process was faster; its bytes are the same
                _rename(made, built)
    except OSError as error:
        raise CheckpointError(
            f"The demo checkpoint {PREFIX + name!r} cannot be built in {str(place)!r}: {error.strerror or error}. Set "
            "XDG_CACHE_HOME to a folder that can be written to."
        ) from error
    return built


def _place() -> Path:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "featcache" / "demo-checkpoints"


def _rename(made: Path, built: Path) -> None:
    """Rename a folder into place.

    Raises:
        FileExistsError: one is there already.
    """
    try:
        made.rename(built)
    except OSError as error:
        if built.is_dir():
            raise FileExistsError(str(built)) from error
        raise


def _build(name: str, made: Path) -> None:
    """Write a checkpoint as ``save_pretrained`` does."""
    import torch
    import transformers

    from featcache.checkpoints import quiet

    demo = _DEMOS[name]
    config = transformers.AutoConfig.for_model(demo.family, **demo.config, **{RANDOM: True})
    with torch.random.fork_rng(devices=[]), quiet():
        model = transformers.AutoModel.from_config(config)
        _fill(model, np.random.default_rng(list(name.encode())))
        model.save_pretrained(made)
        if demo.tokenizer is None:
            transformers.Wav2Vec2FeatureExtractor(
                do_normalize=True, return_attention_mask=config.feat_extract_norm == "layer"
            ).save_pretrained(made)
        else:
            demo.tokenizer().save_pretrained(made)


def _fill(model: Any, generator: np.random.Generator) -> None:
    """Draw weights so that a layer's output is about as large as its input; norms and biases do nothing yet."""
    import torch

    for name, parameter in sorted(model.named_parameters()):
        shape = tuple(parameter.shape)
        if parameter.ndim == 1 or name.endswith("original0"):  # the latter are the lengths of weight-normed filters
            values = np.full(shape, 0.0 if name.endswith("bias") else 1.0, np.float32)
        else:
            # Uniform: made of the generator's bits by exact arithmetic, which normal numbers are not.
            gain = _CONVOLUTION_GAIN if "conv_layers" in name else 1.0
            reach = gain * math.sqrt(3.0 / (1 if "embeddings" in name else math.prod(shape[1:])))
            values = np.float32(reach) * (2 * generator.random(shape, np.float32) - 1)
        parameter.data.copy_(torch.from_numpy(values))


def _sentences() -> list[str]:
    """Return what the demo corpus says, for vocabularies in which its words are not spelt letter by letter."""
    emotional = (text for sessions in demo_sentences.EMOTIONAL.values() for session in sessions for text in session)
    return [*emotional, *demo_sentences.CARRIERS]


def _wordpiece() -> "PreTrainedTokenizerFast":
    """Return an uncased tokenizer as BERT's are."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    special = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    letters = string.ascii_lowercase + string.digits
    said = Counter(re.findall("[a-z]{2,}", " ".join(_sentences()).lower()))
    # By hand: the library's trainer gives the pieces other ids each time.
    pieces = [*special.values(), *letters, *string.punctuation, *(f"##{letter}" for letter in letters)]
    pieces += sorted(said, key=lambda word: (-said[word], word))[: _VOCABULARY - len(pieces)]
    ids = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=special["unk"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return _wrapped(tokenizer, special)


def _byte_pairs() -> "PreTrainedTokenizerFast":
    """Return a cased tokenizer of bytes as RoBERTa's is."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    special = {"cls": "<s>", "pad": "<pad>", "sep": "</s>", "unk": "<unk>", "mask": "<mask>"}  # in the order of ids
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=list(special.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    special |= {"bos": special["cls"], "eos": special["sep"]}
    return _wrapped(tokenizer, special, model_input_names=["input_ids", "attention_mask"])


def _wrapped(tokenizer: "Tokenizer", special: Mapping[str, str], **settings: Any) -> "PreTrainedTokenizerFast":
    """Return a tokenizer as transformers has them; `special` is what each of its special tokens is for."""
    from transformers import PreTrainedTokenizerFast

    named = {f"{use}_token": token for use, token in special.items()}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=_MOST_TOKENS, **named, **settings)


_TEXT = {**_THREE_LAYERS, "num_attention_heads": 4, "vocab_size": _VOCABULARY}
_DEMOS = {
    "wav2vec2": _Demo("wav2vec2", {**_SPEECH, **_LARGE, **_FOUR_LAYERS}),
    "wav2vec2-base": _Demo("wav2vec2", {**_SPEECH, **_BASE, **_THREE_LAYERS}),
    "hubert": _Demo("hubert", {**_SPEECH, **_LARGE, **_FOUR_LAYERS}),
    "bert": _Demo("bert", {**_TEXT, "max_position_embeddings": _MOST_TOKENS, "pad_token_id": 0}, _wordpiece),
    # Two positions more: RoBERTa counts them from behind the padding's index, 1.
    "roberta": _Demo(
        "roberta",
        {
            **_TEXT,
            "max_position_embeddings": _MOST_TOKENS + 2,
            "type_vocab_size": 1,
            "bos_token_id": 0,
            "pad_token_id": 1,
            "eos_token_id": 2,
        },
        _byte_pairs,
    ),
}

"""Small seeded text encoders, with a real WordPiece vocabulary, in the form that checkpoints have."""

import json
from pathlib import Path
from typing import Any

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = ["the", "weather", "is", "love", "##ly", "today", "so", "happy", "sad", "it", "s", "'", ".", ",", "!", "un"]
VOCABULARY = [
    *_SPECIAL,
    *_WORDS,
    *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
    *"abcdefghijklmnopqrstuvwxyz",
]

_SIZES: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
    "bert": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24},
    "electra": {"embedding_size": 8, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
    "roberta": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
    "xlnet": {"d_model": 16, "n_layer": 3, "n_head": 2, "d_inner": 24},
}
FAMILIES = tuple(_SIZES)


def text_checkpoint(
    folder: Path, family: str = "bert", seed: int = 0, positions: int = 64, lower: bool = True, **save: Any
) -> Path:
    """Save a small encoder (random weights) as `save_pretrained` does, beside a vocabulary; return its folder.

    Args:
        folder: where.
        family: one of :data:`FAMILIES`.
        seed: of the weights.
        positions: most tokens that the encoder takes, special ones included.
        lower: whether the tokenizer lower-cases.
        save: passed on to `save_pretrained`.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    options = {**_SIZES[family], "vocab_size": len(VOCABULARY), "pad_token_id": 0}
    if family == "roberta":
        options["max_position_embeddings"] = positions + 1  # its positions start behind the padding index
    elif family != "xlnet":
        options["max_position_embeddings"] = positions
    if family not in ("distilbert", "xlnet"):
        options["intermediate_size"] = 24
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(AutoConfig.for_model(family, **options)).eval()
        # Initial weights are too small for differences between texts to show.
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                parameter.data.mul_(10.0)
    model.save_pretrained(folder, **save)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder

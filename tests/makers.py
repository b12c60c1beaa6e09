"""What tests are made of: small recordings, small seeded checkpoints, small manifests."""

from pathlib import Path

import numpy as np
import soundfile

from featcache import Manifest, Utterance


def tone(seconds: float, rate: int = 16000, seed: int = 0) -> np.ndarray:
    """Return ``(samples,)`` float32: a few harmonics under noise, never silent."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    pitch = 100 + 20 * generator.random()
    voice = sum(np.sin(2 * np.pi * pitch * n * time) / n for n in range(1, 6))
    return (0.1 * voice + 0.01 * generator.standard_normal(len(time))).astype(np.float32)


def write_corpus(folder: Path, durations_s: list[float], speakers: int = 2) -> Manifest:
    """Write one recording for each duration and return their manifest; classes and speakers alternate."""
    folder.mkdir(parents=True, exist_ok=True)
    utterances = []
    for number, seconds in enumerate(durations_s):
        soundfile.write(folder / f"u{number:03d}.wav", tone(seconds, seed=number), 16000, subtype="FLOAT")
        utterances.append(
            Utterance(
                id=f"u{number:03d}",
                audio=f"u{number:03d}.wav",
                text=f"this is sentence number {number}",
                label="happy" if number % 2 else "sad",
                speaker=f"s{number // 2 % speakers}",
                session=f"s{number // 2 % speakers}",
            )
        )
    return Manifest(utterances, folder=folder)


_CONVOLUTIONS = {
    "conv_dim": (16, 16, 16, 16, 16, 16, 16),
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "num_feat_extract_layers": 7,
}
_SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    **_CONVOLUTIONS,
}


def speech_checkpoint(folder: Path, family: str = "wav2vec2", norm: str = "layer", seed: int = 0) -> Path:
    """Save a small seeded encoder (random weights) as `save_pretrained` does, and return its folder."""
    import torch
    from transformers import AutoConfig, AutoModel

    options = dict(_SMALL)
    if family != "data2vec-audio":
        options |= {"feat_extract_norm": norm, "do_stable_layer_norm": norm == "layer", "conv_bias": norm == "layer"}
    config = AutoConfig.for_model(family, **options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(config).eval()
        # Initial weights are too small for differences between utterances to show.
        for name, parameter in model.named_parameters():
            if name.endswith("weight") and parameter.ndim == 2:
                parameter.data.mul_(4.0)
    model.save_pretrained(folder)
    return folder

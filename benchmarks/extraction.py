"""Seconds a second of audio: the whole extraction beside the bare forward passes of the same batches.

wav2vec2-large's shape (random weights: for speed only), float32 and bfloat16, 24 utterances of 1 to 6 s, to disk as
float16; and the reference that people write first: one file at a time in float32, one ``.npy`` each.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from featcache import Manifest, Utterance
from featcache.extract import Options, extract
from featcache.streams.hidden_states import HiddenStates

ROUNDS = 3


def run(quick: bool = False) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest, seconds = _corpus(folder / "corpus")
        torch.manual_seed(0)
        config = Wav2Vec2Config(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
            feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True,
        )  # fmt: skip
        Wav2Vec2Model(config).save_pretrained(folder / "wav2vec2-large-random")
        stream = HiddenStates(checkpoint=str(folder / "wav2vec2-large-random"))
        rows = {}
        for number in range(ROUNDS):
            for dtype in ("float32", "bfloat16"):
                cache = folder / f"cache-{dtype}-{number}"
                start = time.perf_counter()
                loaded = stream.load("cpu", dtype)
                loading = time.perf_counter() - start
                inputs = [soundfile.read(manifest.audio_path(item), dtype="float32")[0] for item in manifest]
                batches = stream.batches([len(samples) for samples in inputs], 8)
                start = time.perf_counter()
                for batch in batches:
                    loaded.extract([inputs[index] for index in batch])
                bare = time.perf_counter() - start
                del loaded
                start = time.perf_counter()
                extract(manifest, cache, stream, Options(device="cpu", compute_dtype=dtype))
                whole = time.perf_counter() - start - loading
                rows.setdefault(f"bare forward passes, {dtype}", []).append(bare)
                rows.setdefault(f"whole extraction, {dtype}", []).append(whole)
            rows.setdefault("one file at a time, float32, .npy", []).append(_one_at_a_time(manifest, stream, folder))
    medians = {name: float(np.median(values)) for name, values in rows.items()}
    base = medians["one file at a time, float32, .npy"]
    return [
        {
            "what": name,
            "seconds per second of audio": round(value / seconds, 4),
            "spread": f"± {100 * np.ptp(rows[name]) / value / 2:.0f} %",
            "times faster than one at a time": round(base / value, 2),
        }
        for name, value in medians.items()
    ]


def _corpus(folder: Path) -> tuple[Manifest, float]:
    folder.mkdir()
    generator = np.random.default_rng(0)
    items, seconds = [], 0.0
    for number in range(24):
        samples = 0.1 * generator.standard_normal(round(16000 * generator.uniform(1, 6)))
        soundfile.write(folder / f"{number}.wav", samples, 16000)
        items.append(Utterance(str(number), f"{number}.wav"))
        seconds += len(samples) / 16000
    return Manifest(items, folder), seconds


def _one_at_a_time(manifest: Manifest, stream: HiddenStates, folder: Path) -> float:
    loaded = stream.load("cpu", "float32")
    start = time.perf_counter()
    for item in manifest:
        samples, _ = soundfile.read(manifest.audio_path(item), dtype="float32")
        [features] = loaded.extract([samples])
        np.save(folder / f"{item.id}.npy", features.frames)
    return time.perf_counter() - start

"""Seconds a second of audio: whole extractions, the bare forward passes of the same batches, one file at a time.

wav2vec2-large's shape with random weights (for speed, and for errors of this shape only), float32 and bfloat16, stored
as float16. The reference is the loop that people write first: one file at a time in float32, one
float32 ``.npy`` each. Every contestant does the same utterances with a model that is loaded before, and each but the
bare passes decodes them and writes what it computed to the same disk; featcache's parts are flushed as well.

Errors are the norm of what compute types other than float32 change, over the norm of float32's frames, of single
layers; those of real weights are of MiniLM's text encoder, on 16 sentences.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model

from benchmarks.timing import compare
from featcache import Manifest, Utterance, checkpoints
from featcache.errors import MissingExtraError
from featcache.extract import Options, extract
from featcache.stream import Extractor
from featcache.streams.hidden_states import HiddenStates
from featcache.streams.token_states import TokenStates

ROUNDS = 3
BASE = "one file at a time, float32, .npy"
SENTENCES = [
    f"{who} {what}, and then {end}."
    for who in ("She", "My old friend", "Nobody in the whole village", "He")
    for what, end in (
        ("laughed", "it rained"),
        ("could not believe what the letter said", "all was quiet"),
        ("ran down to the harbour", "the ship had left"),
        ("wept", "the lights went out"),
    )
]


@dataclass(frozen=True)
class Loaded(HiddenStates):
    """Hidden states of a model that is in memory, so that its loading is nobody's time."""

    extractor: Any = None

    def load(self, device: str, compute_dtype: str) -> Extractor:
        """Return the model."""
        return self.extractor


def run(quick: bool = False) -> list[dict[str, object]]:
    """Return a row for each contestant, and one for each error."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = _corpus(folder / "corpus", 4 if quick else 48)
        _save_model(folder / "model", quick)
        streams = {dtype: _load(folder / "model", dtype) for dtype in ("float32", "bfloat16")}
        inputs = [soundfile.read(manifest.audio_path(item), dtype="float32")[0] for item in manifest]
        numbers = count()
        contestants: dict[str, Callable[[], object]] = {
            BASE: partial(_one_at_a_time, manifest, streams["float32"], folder / "npy")
        }
        for dtype, stream in streams.items():
            contestants[f"bare forward passes, {dtype}"] = partial(_bare, stream, inputs)
            for backend in ("zarr", "hdf5") if dtype == "bfloat16" else ("zarr",):
                options = Options(device="cpu", compute_dtype=dtype, backend=backend)
                contestants[f"whole extraction, {dtype}, {backend}"] = partial(
                    _whole, manifest, stream, options, folder, numbers
                )
        measured = compare(contestants, rounds=2 if quick else ROUNDS)
        speech_errors = {
            dtype: _errors(_load(folder / "model", dtype).extractor, streams["float32"].extractor, inputs[:4])
            for dtype in ("bfloat16", "float16")
        }
    audio_s = sum(map(len, inputs)) / 16000
    rows = []
    for name, (seconds, spread) in measured.items():
        dtype = "bfloat16" if "bfloat16" in name else "float32"
        rows.append(
            _row(
                name,
                f"{seconds / audio_s:.4f}",
                f"± {50 * spread / seconds:.0f} %",
                f"{seconds / measured[f'bare forward passes, {dtype}'][0]:.2f}",
                f"{measured[BASE][0] / seconds:.2f}",
            )
        )
    rows += [_error_row("wav2vec2-large's shape, random weights", *pair) for pair in speech_errors.items()]
    return rows + [_error_row("MiniLM, real weights", *pair) for pair in _text_errors().items()]


def _row(
    what: str, cost: str = "", spread: str = "", bare: str = "", faster: str = "", error: str = ""
) -> dict[str, object]:
    return {
        "what": what,
        "seconds per second of audio": cost,
        "spread": spread,
        "times the bare passes": bare,
        "times faster than one at a time": faster,
        "error of the layers: first, median, worst": error,
    }


def _error_row(model: str, dtype: str, errors: Sequence[float]) -> dict[str, object]:
    shown = ", ".join(f"{100 * value:.2g} %" for value in (errors[0], float(np.median(errors)), max(errors)))
    return _row(f"{dtype} against float32, {model}", error=shown)


def _corpus(folder: Path, num_utterances: int) -> Manifest:
    """Write noise of 1 to 6 s each."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    items = []
    for number in range(num_utterances):
        samples = 0.1 * generator.standard_normal(round(16000 * generator.uniform(1, 6)))
        soundfile.write(folder / f"{number}.wav", samples, 16000)
        items.append(Utterance(str(number), f"{number}.wav"))
    return Manifest(items, folder)


def _save_model(folder: Path, quick: bool) -> None:
    torch.manual_seed(0)
    large = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = Wav2Vec2Config(
        **({**small, "conv_dim": (16,) * 7} if quick else large),
        feat_extract_norm="layer",
        do_stable_layer_norm=True,
        conv_bias=True,
    )
    Wav2Vec2Model(config).save_pretrained(folder)


def _load(folder: Path, dtype: str) -> Loaded:
    return Loaded(str(folder), extractor=HiddenStates(str(folder)).load("cpu", dtype))


def _bare(stream: Loaded, inputs: Sequence[np.ndarray]) -> None:
    """Run the model on the batches that an extraction makes, and keep nothing."""
    model = stream.extractor._model
    for batch in stream.batches([len(samples) for samples in inputs], Options.batch_size):
        longest = max(len(inputs[index]) for index in batch)
        values, mask = torch.zeros(len(batch), longest), torch.zeros(len(batch), longest, dtype=torch.int64)
        for row, index in enumerate(batch):
            values[row, : len(inputs[index])] = torch.from_numpy(inputs[index])
            mask[row, : len(inputs[index])] = 1
        with checkpoints.inference():
            model(values.to(model.dtype), attention_mask=mask)


def _whole(manifest: Manifest, stream: Loaded, options: Options, folder: Path, numbers: "count[int]") -> None:
    cache = folder / f"cache-{next(numbers)}"
    summary = extract(manifest, cache, stream, options)
    if summary.computed != manifest.ids:
        raise RuntimeError(f"only {len(summary.computed)} of {len(manifest)} utterances were computed")
    shutil.rmtree(cache)


def _one_at_a_time(manifest: Manifest, stream: Loaded, folder: Path) -> None:
    """Do what people write first, with transformers and NumPy alone."""
    folder.mkdir()
    model = stream.extractor._model
    for item in manifest:
        samples, _ = soundfile.read(manifest.audio_path(item), dtype="float32")
        values = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        with torch.no_grad():
            states = model(torch.from_numpy(values)[None], output_hidden_states=True).hidden_states
        np.save(folder / f"{item.id}.npy", torch.cat(states).numpy())
    shutil.rmtree(folder)


def _errors(rough: Extractor, exact: Extractor, inputs: Sequence[Any]) -> list[float]:
    """Return the relative error of each layer over all frames of some inputs."""
    lost: np.ndarray | float = 0.0
    norm: np.ndarray | float = 0.0
    for one in inputs:
        [[ours], [theirs]] = rough.extract([one]), exact.extract([one])
        if isinstance(ours, Exception) or isinstance(theirs, Exception):
            raise RuntimeError("an input of the benchmark failed")
        lost = lost + np.square(ours.frames - theirs.frames, dtype=np.float64).sum(axis=(1, 2))
        norm = norm + np.square(theirs.frames, dtype=np.float64).sum(axis=(1, 2))
    return [float(error) for error in np.sqrt(lost / norm)]


def _text_errors() -> dict[str, list[float]]:
    """Return the errors of MiniLM's layers; none where its wheel is not installed."""
    stream = TokenStates("minilm")
    try:
        exact = stream.load("cpu", "float32")
    except MissingExtraError:
        return {}
    return {dtype: _errors(stream.load("cpu", dtype), exact, SENTENCES) for dtype in ("bfloat16", "float16")}

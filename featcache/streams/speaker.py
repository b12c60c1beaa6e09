"""Resemblyzer's embedding of the speaker, one vector for each utterance.

Source: Wan et al. 2018; Makiuchi et al. 2021, section 3.1.2, take Resemblyzer's ``preprocess_wav`` (amplify to
-30 dBFS, cut long silences) and ``embed_utterance`` (the mean over pieces of 1.6 s, scaled to unit length), and then
average over a speaker's utterances: :func:`featcache.speakers.speaker_means` does that from the cache. The weights
come in Resemblyzer's wheel, see :mod:`featcache.ge2e`.

Departure: where the voice detector leaves nothing of an utterance (whispers, very short or noisy ones), Resemblyzer
embeds 1.6 s of zeros, the same vector for all such utterances. Here the untrimmed utterance is embedded, and the
array ``voiced_s`` says so with 0.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import ClassVar

import numpy as np

from featcache import ge2e
from featcache.stream import Extractor, Features, Stream, StreamSpec


@dataclass(frozen=True)
class Speaker(Stream):
    """A speaker embedding of an utterance.

    Attributes:
        preprocess: amplify to -30 dBFS and cut long silences first, as Resemblyzer's ``preprocess_wav`` does.
    """

    title: ClassVar[str] = "Resemblyzer's speaker embedding, one vector an utterance"

    preprocess: bool = True

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the numbers. The encoder runs in float32, whatever `compute_dtype` asks."""
        return StreamSpec(
            kind=self.kind(),
            version=1,
            input="audio",
            settings={"preprocess": self.preprocess},
            layers=("speaker",),
            dim=ge2e.DIM,
            frame_shift_s=None,
            sample_rate_hz=self.sample_rate_hz,
            libraries={**ge2e.libraries(), **({"webrtcvad": _detector_version()} if self.preprocess else {})},
            checkpoint=ge2e.identity(),
            compute_dtype="float32",
            dtype=dtype,
            utterance_arrays={"voiced_s": {"dtype": "float32", "shape": []}},
            notes=(
                "one frame is the whole utterance: a vector of unit length; voiced_s: seconds that were embedded after "
                "cutting silences, 0 where nothing was left and the whole utterance was embedded instead"
            ),
        )

    def load(self, device: str, compute_dtype: str) -> "SpeakerExtractor":
        """Load the encoder."""
        return SpeakerExtractor(ge2e.Encoder(device), self.preprocess)

    def num_frames(self, num_samples: int) -> int:
        """Return 1, or 0 below one window of 400 samples."""
        return 1 if num_samples >= ge2e.WINDOW else 0

    def batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Take utterances in their order: their pieces all have one length."""
        return [list(range(len(lengths)))[start : start + batch_size] for start in range(0, len(lengths), batch_size)]

    def seconds_per_second(self, device: str, compute_dtype: str) -> float:
        """Return a rough cost."""
        return 0.005


def _detector_version() -> str:
    """Return the release of the voice detector, which decides what is cut; its wheels are a package of another name."""
    for package in ("webrtcvad", "webrtcvad-wheels"):
        with suppress(PackageNotFoundError):
            return version(package)
    return "unknown"


class SpeakerExtractor(Extractor):
    """A loaded encoder.

    Args:
        encoder: the network.
        preprocess: amplify and cut long silences first.
    """

    def __init__(self, encoder: ge2e.Encoder, preprocess: bool) -> None:
        self._encoder = encoder
        self._preprocess = preprocess

    def extract(self, inputs: Sequence[np.ndarray]) -> list[Features]:
        """Compute a batch of ``(samples,)`` float32 arrays at 16 kHz."""
        prepared = [self._prepare(samples) for samples in inputs]
        pieces = [ge2e.partials(samples) for samples, _ in prepared]
        embedded = self._encoder.embed(np.concatenate(pieces))
        ends = np.cumsum([len(piece) for piece in pieces])
        features = []
        for rows, (_, voiced_s) in zip(np.split(embedded, ends[:-1]), prepared, strict=True):
            mean = rows.mean(axis=0)
            unit = mean / np.linalg.norm(mean)
            arrays = {"voiced_s": np.asarray(voiced_s, np.float32)}
            features.append(Features(unit.reshape(1, 1, -1), utterance_arrays=arrays))
        return features

    def _prepare(self, samples: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the samples to embed, and the value of ``voiced_s``."""
        ge2e.check_signal(samples)
        if not self._preprocess:
            return samples, len(samples) / ge2e.SAMPLE_RATE_HZ
        loud = ge2e.normalise_volume(samples)
        trimmed = ge2e.trim_long_silences(loud)
        return (trimmed if len(trimmed) else loud), len(trimmed) / ge2e.SAMPLE_RATE_HZ

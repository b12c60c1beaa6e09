"""The samples themselves, decoded and at 16 kHz: what an encoder reads that is fine-tuned from its first layer on.

The recordings hold the same, but in other containers, at other rates and in several channels; from here they are read
at once and come with the checks, digests and stale-input detection of every stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from featcache.stream import Extractor, Features, Stream, StreamSpec

_BATCH = 64


@dataclass(frozen=True)
class Waveform(Stream):
    """Mono samples at 16 kHz, one a frame."""

    title: ClassVar[str] = "the samples at 16 kHz, for fine-tuning from the raw wave"

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the numbers. They are kept as they are, in float32, whatever is asked."""
        return StreamSpec(
            kind=self.kind(),
            version=1,
            input="audio",
            settings={},
            layers=("samples",),
            dim=1,
            frame_shift_s=1 / self.sample_rate_hz,
            sample_rate_hz=self.sample_rate_hz,
            compute_dtype="float32",
            dtype="float32",
            notes="a frame is a sample; full scale is 1",
        )

    def load(self, device: str, compute_dtype: str) -> "WaveformExtractor":
        """Return what hands the samples on."""
        return WaveformExtractor()

    def num_frames(self, num_samples: int) -> int:
        """Return the number of samples."""
        return num_samples

    def batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Group utterances; they do not touch each other."""
        return [list(range(first, min(first + _BATCH, len(lengths)))) for first in range(0, len(lengths), _BATCH)]

    def seconds_per_second(self, device: str, compute_dtype: str) -> float:
        """Return a rough cost."""
        return 0.001


class WaveformExtractor(Extractor):
    """Hands the samples on."""

    def extract(self, inputs: Sequence[np.ndarray]) -> list[Features]:
        """Return ``(1, samples, 1)`` float32 for each of ``(samples,)``."""
        return [Features(samples[np.newaxis, :, np.newaxis]) for samples in inputs]

"""What Resemblyzer's speaker encoder reads: mel power every 10 ms, from which it is fine-tuned.

The same numbers that :mod:`featcache.streams.ge2e_states` feeds it, see :mod:`featcache.ge2e`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from featcache import ge2e
from featcache.stream import Extractor, Features, Stream, StreamSpec


@dataclass(frozen=True)
class Ge2eMels(Stream):
    """Power in 40 mel bands, not its logarithm.

    Attributes:
        target_rms: root mean square that an utterance's samples are scaled to; full scale is 1. The default is
            that of ge2e_states.
    """

    title: ClassVar[str] = "mel power that Resemblyzer's speaker encoder reads, for fine-tuning it"

    target_rms: float = 0.03

    def __post_init__(self) -> None:
        """Check the level.

        Raises:
            ConfigError: it is not a positive number.
        """
        ge2e.check_level(self.target_rms)

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the numbers. They are float32, whatever is asked: fine-tuning starts here."""
        return StreamSpec(
            kind=self.kind(),
            version=1,
            input="audio",
            settings={"target_rms": float(self.target_rms)},
            layers=("mel",),
            dim=ge2e.NUM_MELS,
            frame_shift_s=ge2e.HOP / ge2e.SAMPLE_RATE_HZ,
            sample_rate_hz=self.sample_rate_hz,
            libraries=ge2e.libraries(),
            compute_dtype="float32",
            dtype="float32",
            notes="mel power of samples scaled to target_rms; frame i is around sample 160 * i",
        )

    def load(self, device: str, compute_dtype: str) -> "Ge2eMelsExtractor":
        """Return what computes them, on the CPU."""
        return Ge2eMelsExtractor(self.target_rms)

    def num_frames(self, num_samples: int) -> int:
        """Return ``1 + num_samples // 160``; 0 below one window of 400 samples."""
        return ge2e.num_frames(num_samples)

    def seconds_per_second(self, device: str, compute_dtype: str) -> float:
        """Return a rough cost."""
        return 0.001


class Ge2eMelsExtractor(Extractor):
    """Computes mel power.

    Args:
        target_rms: level that utterances are scaled to.
    """

    def __init__(self, target_rms: float) -> None:
        self._target_rms = target_rms

    def extract(self, inputs: Sequence[np.ndarray]) -> list[Features]:
        """Compute a batch of ``(samples,)`` float32 arrays at 16 kHz, one after the other."""
        return [Features(ge2e.mel_power(ge2e.scaled(samples, self._target_rms))[np.newaxis]) for samples in inputs]

"""States of the three LSTM layers of Resemblyzer's speaker encoder: a pre-trained frame stream without a download.

Source: Wan et al. 2018; the weights come in the wheel of Resemblyzer 0.1.4, see :mod:`featcache.ge2e`. Departures from
how Resemblyzer embeds speakers: an utterance is one sequence from its first to its last frame, not pieces of 1.6 s;
every utterance is scaled to one RMS level, up or down; nothing is trimmed. On EMO-DB, four emotions,
leave-one-speaker-out, mean and standard deviation of all three layers and a logistic regression reach an unweighted
recall of 86.8 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from featcache import ge2e
from featcache.stream import Extractor, Features, Stream, StreamSpec


@dataclass(frozen=True)
class Ge2eStates(Stream):
    """Outputs of each LSTM layer at each 10 ms.

    Attributes:
        target_rms: root mean square that an utterance's samples are scaled to; full scale is 1. The default is
            about the -30 dBFS that the encoder was trained at.
        checkpoint: folder of an encoder that was trained further (:func:`featcache.ge2e.save_encoder`); None is the
            published one.
    """

    title: ClassVar[str] = "states of the three LSTM layers of Resemblyzer's speaker encoder"

    target_rms: float = 0.03
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        """Check the level.

        Raises:
            ConfigError: it is not a positive number.
        """
        ge2e.check_level(self.target_rms)

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the numbers. The encoder runs in float32, whatever `compute_dtype` asks."""
        return StreamSpec(
            kind=self.kind(),
            version=1,
            input="audio",
            settings={"target_rms": float(self.target_rms)},
            layers=tuple(f"lstm_{number}" for number in range(1, ge2e.NUM_LAYERS + 1)),
            dim=ge2e.DIM,
            frame_shift_s=ge2e.HOP / ge2e.SAMPLE_RATE_HZ,
            sample_rate_hz=self.sample_rate_hz,
            libraries=ge2e.libraries(),
            checkpoint=ge2e.identity(self.checkpoint),
            compute_dtype="float32",
            dtype=dtype,
            notes="lstm_N: output of LSTM layer N, from -1 to 1; frame i is around sample 160 * i",
        )

    def load(self, device: str, compute_dtype: str) -> "Ge2eStatesExtractor":
        """Load the encoder."""
        return Ge2eStatesExtractor(ge2e.Encoder(device, self.checkpoint), self.target_rms)

    def num_frames(self, num_samples: int) -> int:
        """Return ``1 + num_samples // 160``; 0 below one window of 400 samples."""
        return ge2e.num_frames(num_samples)

    def batches(self, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
        """Put utterances of similar length together; on two cores, 8 at a time take half the time of one at a time."""
        order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
        return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def seconds_per_second(self, device: str, compute_dtype: str) -> float:
        """Return a rough cost."""
        return 0.003


class Ge2eStatesExtractor(Extractor):
    """A loaded encoder.

    Args:
        encoder: the network.
        target_rms: level that utterances are scaled to.
    """

    def __init__(self, encoder: ge2e.Encoder, target_rms: float) -> None:
        self._encoder = encoder
        self._target_rms = target_rms

    def extract(self, inputs: Sequence[np.ndarray]) -> list[Features]:
        """Compute a batch of ``(samples,)`` float32 arrays at 16 kHz."""
        mels = [ge2e.mel_power(ge2e.scaled(samples, self._target_rms)) for samples in inputs]
        return [Features(states) for states in self._encoder.states(mels)]

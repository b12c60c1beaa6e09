"""Log-mel spectrograms, in the two definitions that the reproduced papers need.

``mel80_20ms`` is that of Makiuchi et al. 2021, who took it from AutoVC (Qian et al. 2019,
https://github.com/auspicious3000/autovc, ``make_spect.py``) with another FFT and hop: a fifth-order 30 Hz Butterworth
high-pass forward and backward, the magnitude of a 400-sample Hann STFT every 320 samples, 80 mels from 90 to 7600 Hz,
``clip((20 * log10(max(1e-5, mel)) - 16 + 100) / 100, 0, 1)``. Departure: AutoVC also scales the waveform by 0.96 and
adds noise of 1e-6 for training; neither is done here, so that the same audio gives the same numbers.

``mel128_10ms`` serves Padi et al. 2022, who state 128 log-mels, a 25 ms window and a 10 ms hop. The rest is chosen
here: a Hann window of 400 samples inside an FFT of 512 (with 400, the lowest filters would rest on one bin each),
power, 20 to 8000 Hz, and the natural logarithm of at least 1e-10, which lies below the rounding noise of 16-bit audio
(about 1e-9). Nothing is normalised: normalisation for each segment belongs to the head that cuts segments.

Both are centred (frame ``i`` is around sample ``i * hop``), padded by reflection, use librosa's mel filters (Slaney's
scale and area normalisation), and are computed in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import ClassVar, Literal

import numpy as np

from featcache.errors import StreamError
from featcache.stream import Extractor, Features, Stream, StreamSpec

_AUTOVC_FLOOR = 1e-5  # -100 dB


@dataclass(frozen=True)
class _Definition:
    """All that decides one kind of log-mel.

    Attributes:
        num_mels: filters.
        lowest_hz: where the first filter starts.
        highest_hz: where the last one ends.
        fft: samples in the transform; the window is centred in it.
        window: samples in the Hann window.
        hop: samples from frame to frame.
        highpass_hz: corner of the Butterworth high-pass run forward and backward; None is no filter.
        power: exponent of the magnitude before the mel filters.
        scale: how mels are compressed, see :data:`_SCALES`.
    """

    num_mels: int
    lowest_hz: float
    highest_hz: float
    fft: int
    window: int
    hop: int
    highpass_hz: float | None
    power: int
    scale: str


_DEFINITIONS = {
    "mel80_20ms": _Definition(80, 90.0, 7600.0, 400, 400, 320, 30.0, 1, "decibels_0_to_1"),
    "mel128_10ms": _Definition(128, 20.0, 8000.0, 512, 400, 160, None, 2, "natural_log"),
}
_SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "decibels_0_to_1": lambda mel: np.clip(
        (20.0 * np.log10(np.maximum(_AUTOVC_FLOOR, mel)) - 16.0 + 100.0) / 100.0, 0, 1
    ),
    "natural_log": lambda mel: np.log(np.maximum(1e-10, mel)),
}
_NOTES = {
    "decibels_0_to_1": "0 to 1; 0.01 is one decibel of mel magnitude",
    "natural_log": "natural logarithm of mel power; audio of full scale is 1",
}


@dataclass(frozen=True)
class LogMel(Stream):
    """A log-mel spectrogram.

    Attributes:
        definition: ``"mel80_20ms"`` (Makiuchi et al.) or ``"mel128_10ms"`` (Padi et al.).
    """

    title: ClassVar[str] = "log-mel spectrogram, 80 mels at 20 ms or 128 at 10 ms"

    definition: Literal["mel80_20ms", "mel128_10ms"] = "mel80_20ms"

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the numbers. They are computed in float64, whatever `compute_dtype` asks."""
        chosen = _DEFINITIONS[self.definition]
        return StreamSpec(
            kind=self.kind(),
            version=1,
            input="audio",
            settings={"definition": self.definition, **asdict(chosen)},
            layers=("log_mel",),
            dim=chosen.num_mels,
            frame_shift_s=chosen.hop / self.sample_rate_hz,
            sample_rate_hz=self.sample_rate_hz,
            libraries={"librosa": version("librosa"), "scipy": version("scipy")},
            compute_dtype="float64",
            dtype=dtype,
            notes=_NOTES[chosen.scale],
        )

    def load(self, device: str, compute_dtype: str) -> "LogMelExtractor":
        """Make the filters; everything runs on the CPU."""
        return LogMelExtractor(_DEFINITIONS[self.definition], self.sample_rate_hz)

    def num_frames(self, num_samples: int) -> int:
        """Return ``1 + num_samples // hop``; 0 where there is too little to reflect."""
        chosen = _DEFINITIONS[self.definition]
        return 1 + num_samples // chosen.hop if num_samples > chosen.fft // 2 else 0

    def seconds_per_second(self, device: str, compute_dtype: str) -> float:
        """Return a rough cost."""
        return 0.001


class LogMelExtractor(Extractor):
    """Filters, ready to run.

    Args:
        definition: all that decides the numbers.
        sample_rate_hz: rate of the audio.
    """

    def __init__(self, definition: _Definition, sample_rate_hz: int) -> None:
        import librosa
        import scipy.signal

        self._definition = definition
        self._window = np.zeros(definition.fft)
        start = (definition.fft - definition.window) // 2
        self._window[start : start + definition.window] = scipy.signal.get_window("hann", definition.window)
        self._filters = librosa.filters.mel(
            sr=sample_rate_hz,
            n_fft=definition.fft,
            n_mels=definition.num_mels,
            fmin=definition.lowest_hz,
            fmax=definition.highest_hz,
        ).astype(np.float64)
        self._highpass = None
        if definition.highpass_hz is not None:
            self._highpass = scipy.signal.butter(5, definition.highpass_hz / (sample_rate_hz / 2), btype="high")

    def extract(self, inputs: Sequence[np.ndarray]) -> list[Features]:
        """Compute a batch of ``(samples,)`` arrays at 16 kHz, one after the other."""
        return [Features(self._log_mel(samples)[np.newaxis]) for samples in inputs]

    def _log_mel(self, samples: np.ndarray) -> np.ndarray:
        """Return ``(frames, num_mels)`` float32."""
        from scipy.signal import filtfilt

        pad = self._definition.fft // 2
        if len(samples) <= pad:
            raise StreamError(
                f"it has {len(samples)} samples; log_mel reflects {pad} samples at both ends and needs more than "
                "that. Leave it out, or give a longer span."
            )
        signal = samples.astype(np.float64)
        if self._highpass is not None:
            signal = filtfilt(*self._highpass, signal)
        padded = np.pad(signal, pad, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self._definition.fft)[:: self._definition.hop]
        magnitude = np.abs(np.fft.rfft(frames * self._window, axis=1))
        mel = magnitude**self._definition.power @ self._filters.T
        return _SCALES[self._definition.scale](mel).astype(np.float32)

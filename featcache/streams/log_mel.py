"""Log-mel spectrograms, and the cepstra made of them, in the definitions that the reproduced papers need.

``mel80_20ms`` is that of Makiuchi et al. 2021, who took it from AutoVC (Qian et al. 2019,
https://github.com/auspicious3000/autovc, ``make_spect.py``) with another FFT and hop: a fifth-order 30 Hz Butterworth
high-pass forward and backward, the magnitude of a 400-sample Hann STFT every 320 samples, 80 mels from 90 to 7600 Hz,
``clip((20 * log10(max(1e-5, mel)) - 16 + 100) / 100, 0, 1)``. Departure: AutoVC also scales the waveform by 0.96 and
adds noise of 1e-6 for training; neither is done here, so that the same audio gives the same numbers.

``mel128_10ms`` serves Padi et al. 2022, who state 128 log-mels, a 25 ms window and a 10 ms hop. The rest is chosen
here: a Hann window of 400 samples inside an FFT of 512 (with 400, the lowest filters would rest on one bin each),
power, 20 to 8000 Hz, and the natural logarithm of at least 1e-10, which lies below the rounding noise of 16-bit audio
(about 1e-9). Nothing is normalised: normalisation for each segment belongs to the head that cuts segments.

``mel128_22khz`` and ``mfcc_22khz`` serve Zhou et al., who set audio to 22 kHz and name librosa, log-mels and MFCCs, and
nothing else. They are what librosa gives by its defaults (https://librosa.org/doc/0.11.0, ``feature.melspectrogram``,
``power_to_db``, ``feature.mfcc``): 22,050 Hz, a Hann window of 2048 samples every 512 (93 and 23 ms), zeros beyond both
ends, power, 128 mels from 0 to 11,025 Hz, ``10 * log10(max(1e-10, mel))`` and at most 80 dB below the utterance's
loudest value; and of that, the first 20 coefficients of an orthonormal discrete cosine transform (type 2).

All are centred (frame ``i`` is around sample ``i * hop``), the first two padded by reflection; they use librosa's mel
filters (Slaney's scale and area normalisation), and are computed in float64.
"""

from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import numpy as np

from featcache.errors import StreamError
from featcache.stream import Extractor, Features, Stream, StreamSpec

_AUTOVC_FLOOR = 1e-5  # -100 dB


@dataclass(frozen=True)
class _Definition:
    """All that decides one kind of log-mel or cepstrum.

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
        sample_rate_hz: rate of the audio.
        pad: what lies beyond both ends of the audio: ``"reflect"`` or ``"constant"``, which is zeros.
        num_coefficients: how many of the cosine transform's are kept; None keeps the mels themselves.
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
    sample_rate_hz: int = 16000
    pad: Literal["reflect", "constant"] = "reflect"
    num_coefficients: int | None = None

    @property
    def dim(self) -> int:
        """Values of a frame."""
        return self.num_mels if self.num_coefficients is None else self.num_coefficients

    @property
    def fewest_samples(self) -> int:
        """Shortest audio that can be padded."""
        return self.fft // 2 + 1 if self.pad == "reflect" else 1

    def settings(self) -> dict[str, Any]:
        """Return what identifies it; fields with a default came later, and are left out where they have it."""
        later = {field.name: field.default for field in fields(self) if field.default is not MISSING}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


_DEFINITIONS = {
    "mel80_20ms": _Definition(80, 90.0, 7600.0, 400, 400, 320, 30.0, 1, "decibels_0_to_1"),
    "mel128_10ms": _Definition(128, 20.0, 8000.0, 512, 400, 160, None, 2, "natural_log"),
    "mel128_22khz": _Definition(128, 0.0, 11025.0, 2048, 2048, 512, None, 2, "decibels", 22050, "constant"),
    "mfcc_22khz": _Definition(128, 0.0, 11025.0, 2048, 2048, 512, None, 2, "decibels", 22050, "constant", 20),
}


def _decibels(mel: np.ndarray) -> np.ndarray:
    level = 10.0 * np.log10(np.maximum(1e-10, mel))
    return np.maximum(level, level.max() - 80.0)


_SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "decibels_0_to_1": lambda mel: np.clip(
        (20.0 * np.log10(np.maximum(_AUTOVC_FLOOR, mel)) - 16.0 + 100.0) / 100.0, 0, 1
    ),
    "natural_log": lambda mel: np.log(np.maximum(1e-10, mel)),
    "decibels": _decibels,
}
_NOTES = {
    "decibels_0_to_1": "0 to 1; 0.01 is one decibel of mel magnitude",
    "natural_log": "natural logarithm of mel power; audio of full scale is 1",
    "decibels": "decibels of mel power, at most 80 below the utterance's loudest; audio of full scale is 1",
}


@dataclass(frozen=True)
class LogMel(Stream):
    """A log-mel spectrogram, or cepstral coefficients.

    Attributes:
        definition: ``"mel80_20ms"`` (Makiuchi et al.), ``"mel128_10ms"`` (Padi et al.), ``"mel128_22khz"`` or
            ``"mfcc_22khz"`` (Zhou et al.; librosa's defaults).
    """

    title: ClassVar[str] = "log-mel spectrogram, 80 mels at 20 ms or 128 at 10 or 23 ms; or 20 MFCCs at 23 ms"

    definition: Literal["mel80_20ms", "mel128_10ms", "mel128_22khz", "mfcc_22khz"] = "mel80_20ms"

    @property
    def sample_rate_hz(self) -> int:
        """Rate of the audio: 22,050 Hz for librosa's defaults, else 16,000."""
        return _DEFINITIONS[self.definition].sample_rate_hz

    def spec(self, dtype: str = "float16", compute_dtype: str = "float32") -> StreamSpec:
        """Return what decides the numbers. They are computed in float64, whatever `compute_dtype` asks."""
        chosen = _DEFINITIONS[self.definition]
        return StreamSpec(
            kind=self.kind(),
            version=1,
            input="audio",
            settings={"definition": self.definition, **chosen.settings()},
            layers=("log_mel" if chosen.num_coefficients is None else "mfcc",),
            dim=chosen.dim,
            frame_shift_s=chosen.hop / self.sample_rate_hz,
            sample_rate_hz=self.sample_rate_hz,
            libraries={"librosa": version("librosa"), "scipy": version("scipy")},
            compute_dtype="float64",
            dtype=dtype,
            notes=_NOTES[chosen.scale] if chosen.num_coefficients is None else "MFCCs of mels in decibels",
        )

    def load(self, device: str, compute_dtype: str) -> "LogMelExtractor":
        """Make the filters; everything runs on the CPU."""
        return LogMelExtractor(_DEFINITIONS[self.definition])

    def num_frames(self, num_samples: int) -> int:
        """Return ``1 + num_samples // hop``; 0 where there is too little to reflect."""
        chosen = _DEFINITIONS[self.definition]
        return 1 + num_samples // chosen.hop if num_samples >= chosen.fewest_samples else 0

    def seconds_per_second(self, device: str, compute_dtype: str) -> float:
        """Return a rough cost."""
        return 0.001


class LogMelExtractor(Extractor):
    """Filters, ready to run.

    Args:
        definition: all that decides the numbers.
    """

    def __init__(self, definition: _Definition) -> None:
        import librosa
        import scipy.signal

        self._definition = definition
        self._window = np.zeros(definition.fft)
        start = (definition.fft - definition.window) // 2
        self._window[start : start + definition.window] = scipy.signal.get_window("hann", definition.window)
        self._filters = librosa.filters.mel(
            sr=definition.sample_rate_hz,
            n_fft=definition.fft,
            n_mels=definition.num_mels,
            fmin=definition.lowest_hz,
            fmax=definition.highest_hz,
        ).astype(np.float64)
        self._highpass = None
        if definition.highpass_hz is not None:
            self._highpass = scipy.signal.butter(
                5, definition.highpass_hz / (definition.sample_rate_hz / 2), btype="high"
            )

    def extract(self, inputs: Sequence[np.ndarray]) -> list[Features]:
        """Compute a batch of ``(samples,)`` arrays at the stream's rate, one after the other."""
        return [Features(self._log_mel(samples)[np.newaxis]) for samples in inputs]

    def _log_mel(self, samples: np.ndarray) -> np.ndarray:
        """Return ``(frames, dim)`` float32."""
        from scipy.fft import dct
        from scipy.signal import filtfilt

        pad = self._definition.fft // 2
        if len(samples) < self._definition.fewest_samples:
            raise StreamError(
                f"it has {len(samples)} samples; log_mel reflects {pad} samples at both ends and needs more than "
                "that. Leave it out, or give a longer span."
            )
        signal = samples.astype(np.float64)
        if self._highpass is not None:
            signal = filtfilt(*self._highpass, signal)
        padded = np.pad(signal, pad, mode=self._definition.pad)
        frames = np.lib.stride_tricks.sliding_window_view(padded, self._definition.fft)[:: self._definition.hop]
        magnitude = np.abs(np.fft.rfft(frames * self._window, axis=1))
        mel = magnitude**self._definition.power @ self._filters.T
        values = _SCALES[self._definition.scale](mel)
        if self._definition.num_coefficients is not None:
            values = dct(values, axis=1, type=2, norm="ortho")[:, : self._definition.num_coefficients]
        return values.astype(np.float32)

"""The only reader of audio: a path and a span give ``(samples,)`` float32 mono at a rate.

Decoding is libsndfile's (WAV, FLAC, Ogg, MP3, AIFF and more, integer or float); channels are averaged;
resampling is soxr's ``HQ``. Every fault that would silently spoil features is an error here: no
samples, NaN, digital silence, and a file shorter than its own header says.
"""

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from featcache.errors import AudioError

RESAMPLER = f"soxr-{soxr.__version__}-HQ"
_SPAN_TOLERANCE_S = 0.01
_UNKNOWN_LENGTHS = {0, 0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFFFFFFFFFF}  # written by streaming encoders


@dataclass(frozen=True)
class Recording:
    """Decoded audio at its own rate.

    Attributes:
        samples: ``(samples,)`` float32, mono.
        sample_rate_hz: its rate.
    """

    samples: np.ndarray
    sample_rate_hz: int

    def digest(self, sample_rate_hz: int) -> str:
        """Return what identifies the input of a model that runs at a rate.

        It covers the samples and, where they must be resampled, the resampler; not the path, the
        container or the modification time.
        """
        route = "" if self.sample_rate_hz == sample_rate_hz else f"{self.sample_rate_hz}:{RESAMPLER}"
        state = hashlib.blake2b(route.encode(), digest_size=16)
        state.update(np.ascontiguousarray(self.samples, dtype="<f4").data)
        return state.hexdigest()

    def at_rate(self, sample_rate_hz: int) -> np.ndarray:
        """Return ``(samples,)`` float32 at another rate."""
        if self.sample_rate_hz == sample_rate_hz:
            return self.samples
        resampled = soxr.resample(self.samples, self.sample_rate_hz, sample_rate_hz, quality="HQ")
        return np.ascontiguousarray(resampled, dtype=np.float32)


def decode(path: str | Path, start_s: float | None = None, end_s: float | None = None) -> Recording:
    """Decode a recording, or a span of it.

    Args:
        path: the file.
        start_s: first second wanted; None is the beginning.
        end_s: last second wanted; None is the end.

    Raises:
        AudioError: missing, not audio, empty, truncated, NaN, digital silence, or the span lies outside.
    """
    path = _existing(path)
    try:
        with soundfile.SoundFile(path) as file:
            declared = _declared_bytes(file.extra_info)
            if declared:
                raise AudioError(
                    f"{str(path)!r} is truncated: its header declares {declared[0]} bytes of samples, the file holds "
                    f"{declared[1]}. Copy the file again."
                )
            rate, length = file.samplerate, file.frames
            start, stop = _span(path, length, rate, start_s, end_s)
            file.seek(start)
            samples = file.read(stop - start, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(f"{str(path)!r} cannot be decoded as audio: {error}. Convert it to WAV or FLAC.") from None
    if len(samples) < stop - start:
        raise AudioError(
            f"{str(path)!r} is truncated: {stop - start} samples expected, {len(samples)} found. Copy the file again."
        )
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    mono = np.ascontiguousarray(mono)
    if not np.isfinite(mono).all():
        raise AudioError(f"{str(path)!r} holds NaN or infinite samples. Export it again from its source.")
    if not mono.any():
        raise AudioError(
            f"{str(path)!r} is digital silence: all of its {len(mono)} samples are 0. Remove it or replace it."
        )
    return Recording(mono, rate)


def num_samples(path: str | Path, sample_rate_hz: int, start_s: float | None = None, end_s: float | None = None) -> int:
    """Return how many samples :func:`decode` and ``at_rate`` would give, from the header alone.

    Raises:
        AudioError: the header cannot be read, or the span lies outside.
    """
    path = _existing(path)
    try:
        info = soundfile.info(path)
    except (soundfile.SoundFileError, OSError) as error:
        raise AudioError(f"{str(path)!r} cannot be decoded as audio: {error}. Convert it to WAV or FLAC.") from None
    start, stop = _span(path, info.frames, info.samplerate, start_s, end_s)
    return round((stop - start) * sample_rate_hz / info.samplerate)


def _existing(path: str | Path) -> Path:
    try:
        found = Path(path).is_file()
    except (OSError, ValueError) as error:  # a name too long, a NUL in it
        raise AudioError(f"{str(path)[:80]!r} is not a usable path: {error}. Check it in the manifest.") from None
    if not found:
        raise AudioError(f"There is no audio file {str(path)!r}. Check the path in the manifest.")
    return Path(path)


def _span(path: Path, length: int, rate: int, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """Return the first sample and the one after the last; a span may end 10 ms late, for rounding."""
    if length == 0:
        raise AudioError(f"{str(path)!r} is empty: it holds no samples. Remove it or replace it.")
    start = 0 if start_s is None else round(start_s * rate)
    stop = length if end_s is None else round(end_s * rate)
    slack = math.ceil(_SPAN_TOLERANCE_S * rate)
    if stop > length + slack or start >= min(stop, length):
        wanted = f"{start_s or 0.0:g} s to {'the end' if end_s is None else f'{end_s:g} s'}"
        raise AudioError(
            f"{str(path)!r} lasts {length / rate:.3f} s; the span {wanted} is not inside it. "
            "Are start_s and end_s in seconds?"
        )
    return start, min(stop, length)


def _declared_bytes(log: str) -> tuple[int, int] | None:
    """Return declared and present bytes where libsndfile's log says a WAV's data chunk is cut short."""
    match = re.search(r"^\s*data\s*:\s*(\d+)\s*\(should be (\d+)\)", log, flags=re.MULTILINE)
    if match is None:
        return None
    declared, present = int(match.group(1)), int(match.group(2))
    if declared in _UNKNOWN_LENGTHS or declared <= present:
        return None
    return declared, present

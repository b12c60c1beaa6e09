"""The only reader of audio: a path and a span give ``(samples,)`` float32 mono at a rate.

Decoding is libsndfile's (WAV, FLAC, Ogg, MP3, AIFF and more, integer or float); channels are averaged;
resampling is soxr's ``HQ``. Every fault that would silently spoil features is an error here: no
samples, NaN, digital silence, and a file shorter than its own header says. A header is believed as
far as the file's size bears it out, so that a damaged one costs no memory.
"""

import hashlib
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from featcache.errors import AudioError
from featcache.files import quoted

RESAMPLER = f"soxr-{soxr.__version__}-HQ"
_SPAN_TOLERANCE_S = 0.01
_UNKNOWN_LENGTHS = {0, 0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFFFFFFFFFF}  # written by streaming encoders
_SLOWEST_HZ, _FASTEST_HZ = 1000, 1_000_000
# A byte of speech codes 1 to 60 samples, a byte of coded silence a few hundred. Short recordings cost little anyhow.
_SAMPLES_A_BYTE, _ALWAYS_FINE = 256, 2**24


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


@dataclass(frozen=True)
class Header:
    """What a recording's header says.

    Attributes:
        num_samples: samples of one channel.
        sample_rate_hz: their rate.
        num_channels: how many channels there are.
    """

    num_samples: int
    sample_rate_hz: int
    num_channels: int


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
    with _decodable(path), soundfile.SoundFile(path) as file:
        declared = _declared_bytes(file.extra_info)
        if declared:
            raise AudioError(
                f"{str(path)!r} is truncated: its header declares {declared[0]} bytes of samples, the file holds "
                f"{declared[1]}. Copy the file again."
            )
        header = _believed(path, Header(file.frames, file.samplerate, file.channels))
        rate = header.sample_rate_hz
        start, stop = _span(path, header.num_samples, rate, start_s, end_s)
        file.seek(start)
        samples = file.read(stop - start, dtype="float32", always_2d=True)
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
    header = info(path)
    start, stop = _span(Path(path), header.num_samples, header.sample_rate_hz, start_s, end_s)
    return round((stop - start) * sample_rate_hz / header.sample_rate_hz)


def info(path: str | Path) -> Header:
    """Return what the header of a recording says.

    Raises:
        AudioError: it cannot be read, or says what the file cannot hold.
    """
    path = _existing(path)
    with _decodable(path):
        found = soundfile.info(path)
        return _believed(path, Header(found.frames, found.samplerate, found.channels))


def _existing(path: str | Path) -> Path:
    # A pipe or a device, which would never end, is no file either; nor is a name that is too long or holds a NUL.
    if not os.path.isfile(path):
        raise AudioError(f"There is no audio file {quoted(str(path))}. Check the path in the manifest.")
    return Path(path)


@contextmanager
def _decodable(path: Path) -> Iterator[None]:
    try:
        yield
    except AudioError:
        raise
    except MemoryError:
        raise AudioError(
            f"{str(path)!r} does not fit into memory. Cut it, or give spans by start_s and end_s."
        ) from None
    # soundfile raises ValueError and TypeError for what it cannot tell from a name, such as the rate of a ".raw".
    except (soundfile.SoundFileError, OSError, TypeError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise AudioError(f"{str(path)!r} cannot be decoded as audio: {reason}. Convert it to WAV or FLAC.") from None


def _believed(path: Path, header: Header) -> Header:
    """Return a header; an error where the file cannot hold what it declares."""
    if not _SLOWEST_HZ <= header.sample_rate_hz <= _FASTEST_HZ:
        raise AudioError(
            f"{str(path)!r} declares a sample rate of {header.sample_rate_hz} Hz; {_SLOWEST_HZ} to {_FASTEST_HZ} Hz "
            "were expected. Its header is damaged: export it again from its source."
        )
    num_values, num_bytes = header.num_samples * header.num_channels, path.stat().st_size
    if num_values > max(_ALWAYS_FINE, _SAMPLES_A_BYTE * num_bytes):
        raise AudioError(
            f"{str(path)!r} declares {header.num_samples} samples in {header.num_channels} channels, more than its "
            f"{num_bytes} bytes can hold, or does not say how many. Convert it to WAV or FLAC, written as a file."
        )
    return header


def _span(path: Path, length: int, rate: int, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    """Return the first sample and the one after the last; a span may end 10 ms late, for rounding."""
    if length == 0:
        raise AudioError(f"{str(path)!r} is empty: it holds no samples. Remove it or replace it.")
    start = 0 if start_s is None else round(min(start_s * rate, 2**62))
    stop = length if end_s is None else round(min(end_s * rate, 2**62))
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

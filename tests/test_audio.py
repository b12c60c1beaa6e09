"""Every kind of recording gets its designed answer: the right samples, or an error that names the file."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from makers import tone

from featcache import audio
from featcache.errors import AudioError

RATE = 16000


def write(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


@pytest.mark.parametrize(
    ("suffix", "subtype", "error"),
    [
        ("wav", "PCM_16", 2**-15),
        ("wav", "PCM_24", 2**-23),
        ("wav", "FLOAT", 0.0),
        ("wav", "DOUBLE", 0.0),
        ("wav", "PCM_U8", 2**-7),
        ("flac", "PCM_16", 2**-15),
        ("aiff", "PCM_16", 2**-15),
    ],
)
def test_containers_and_sample_formats_give_the_same_samples(
    tmp_path: Path, suffix: str, subtype: str, error: float
) -> None:
    samples = tone(0.5)
    path = write(tmp_path / f"x.{suffix}", samples, subtype=subtype)
    recording = audio.decode(path)
    assert recording.sample_rate_hz == RATE
    assert recording.samples.dtype == np.float32
    np.testing.assert_allclose(recording.samples, samples, atol=error + 1e-9)
    assert audio.num_samples(path, RATE) == len(samples)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = tone(0.3, seed=1), tone(0.3, seed=2)
    path = write(tmp_path / "x.wav", np.stack([left, right], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(audio.decode(path).samples, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_other_rates_are_resampled_to_the_same_tone(tmp_path: Path, rate: int) -> None:
    time = np.arange(rate) / rate
    path = write(tmp_path / "x.wav", 0.5 * np.sin(2 * np.pi * 440 * time), rate, "FLOAT")
    samples = audio.decode(path).at_rate(RATE)
    assert len(samples) == audio.num_samples(path, RATE) == RATE
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(samples[1000:-1000], expected[1000:-1000], atol=1e-3)


def test_a_span_is_cut_at_the_nearest_sample(tmp_path: Path) -> None:
    samples = tone(1.0)
    path = write(tmp_path / "x.wav", samples, subtype="FLOAT")
    cut = audio.decode(path, 0.25, 0.5).samples
    np.testing.assert_array_equal(cut, samples[4000:8000])
    assert audio.num_samples(path, RATE, 0.25, 0.5) == 4000
    assert len(audio.decode(path, 0.5, 1.005).samples) == 8000  # rounded annotations end a little late


@pytest.mark.parametrize(("start", "end"), [(0.5, 1.5), (2.0, None), (2.0, 3.0)])
def test_a_span_outside_the_recording_is_refused(tmp_path: Path, start: float, end: float | None) -> None:
    path = write(tmp_path / "x.wav", tone(1.0))
    for read in (lambda: audio.decode(path, start, end), lambda: audio.num_samples(path, RATE, start, end)):
        with pytest.raises(AudioError, match=r"lasts 1\.000 s; the span .* is not inside it"):
            read()


def test_unusable_recordings_are_named_with_their_fault(tmp_path: Path) -> None:
    bad = tone(0.2)
    bad[7] = np.nan
    cases = {
        "empty.wav": (np.zeros(0, np.float32), "is empty"),
        "silent.wav": (np.zeros(3200, np.float32), "is digital silence: all of its 3200 samples are 0"),
        "nan.wav": (bad, "holds NaN or infinite samples"),
    }
    for name, (samples, message) in cases.items():
        with pytest.raises(AudioError, match=f"{name}.*{message}"):
            audio.decode(write(tmp_path / name, samples, subtype="FLOAT"))
    for name, content in {
        "zero.wav": b"",
        "text.wav": b"this is no audio at all",
        "html.mp3": b"<html></html>",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioError, match=f"{name}.*cannot be decoded as audio"):
            audio.decode(tmp_path / name)
    with pytest.raises(AudioError, match="There is no audio file .*gone.wav"):
        audio.decode(tmp_path / "gone.wav")
    with pytest.raises(AudioError, match="There is no audio file"):
        audio.decode(tmp_path)


@pytest.mark.parametrize("name", ["x.wav", "x.flac"])
def test_a_truncated_file_is_refused_rather_than_read_short(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, tone(1.0))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(AudioError, match="truncated|cannot be decoded"):
        audio.decode(path)


def test_a_wav_of_unknown_length_as_streaming_encoders_write_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.wav", tone(0.5))
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert len(audio.decode(path).samples) == 8000


def test_the_digest_follows_the_samples_and_not_the_file(tmp_path: Path) -> None:
    samples = np.round(tone(0.5) * 2**15) / 2**15
    first = audio.decode(write(tmp_path / "x.wav", samples)).digest(RATE)
    assert audio.decode(write(tmp_path / "y.flac", samples)).digest(RATE) == first
    assert audio.decode(write(tmp_path / "z.wav", samples, subtype="FLOAT")).digest(RATE) == first
    samples[100] += 2**-15
    assert audio.decode(write(tmp_path / "x.wav", samples)).digest(RATE) != first
    assert audio.decode(tmp_path / "x.wav").digest(8000) != audio.decode(tmp_path / "x.wav").digest(RATE)

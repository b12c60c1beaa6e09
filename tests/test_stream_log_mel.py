"""Log-mels and cepstra equal their definitions: written out a second time here, or librosa's own."""

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile
from makers import tone
from scipy import signal

import featcache
from featcache import Manifest, Utterance
from featcache.errors import ConfigError, StreamError
from featcache.extract import Options, extract
from featcache.settings import build
from featcache.streams.log_mel import LogMel

DEFINITIONS = {
    "mel80_20ms": (320, 201, 80),
    "mel128_10ms": (160, 257, 128),
    "mel128_22khz": (512, 1, 128),
    "mfcc_22khz": (512, 1, 20),
}
"""Hop, fewest samples, mels."""


def compute(samples: np.ndarray, definition: str) -> np.ndarray:
    """Return ``(frames, mels)``."""
    stream = build(LogMel, {"definition": definition}, "stream log_mel")
    [features] = stream.load("cpu", "float32").extract([samples])
    assert features.frames.dtype == np.float32
    assert features.frames.shape == (1, stream.num_frames(len(samples)), stream.spec().dim)
    return features.frames[0]


def slaney_mel(hz: float) -> float:
    return hz / (200 / 3) if hz < 1000 else 15 + math.log(hz / 1000) / (math.log(6.4) / 27)


def slaney_hz(mel: float) -> float:
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


def filters(num_mels: int, lowest_hz: float, highest_hz: float, fft: int) -> np.ndarray:
    """Return triangles of area 1 on Slaney's mel scale, ``(mels, bins)``."""
    edges = [slaney_hz(mel) for mel in np.linspace(slaney_mel(lowest_hz), slaney_mel(highest_hz), num_mels + 2)]
    table = np.zeros((num_mels, fft // 2 + 1))
    for row in range(num_mels):
        low, centre, high = edges[row : row + 3]
        for column in range(fft // 2 + 1):
            hz = column * 16000 / fft
            rise, fall = (hz - low) / (centre - low), (high - hz) / (high - centre)
            table[row, column] = max(0.0, min(rise, fall)) * 2 / (high - low)
    return table


def magnitudes(windowed: np.ndarray) -> np.ndarray:
    """Return the magnitudes of a discrete Fourier transform, summed term by term."""
    fft = len(windowed)
    times = np.arange(fft)
    return np.array([abs(np.sum(windowed * np.exp(-2j * np.pi * k * times / fft))) for k in range(fft // 2 + 1)])


def hann(length: int) -> np.ndarray:
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


@pytest.mark.parametrize("frame", [0, 1, 17, 49, 50])
def test_mel80_is_makiuchis_formula(frame: int) -> None:
    samples = tone(1.0)
    filtered = signal.filtfilt(*signal.butter(5, 30 / 8000, btype="high"), samples.astype(np.float64))
    padded = np.concatenate((filtered[200:0:-1], filtered, filtered[-2:-202:-1]))
    mel = filters(80, 90, 7600, 400) @ magnitudes(padded[frame * 320 : frame * 320 + 400] * hann(400))
    expected = np.clip((20 * np.log10(np.maximum(1e-5, mel)) - 16 + 100) / 100, 0, 1)
    np.testing.assert_allclose(compute(samples, "mel80_20ms")[frame], expected, atol=1e-5)


@pytest.mark.parametrize("frame", [0, 1, 33, 99, 100])
def test_mel128_is_its_formula(frame: int) -> None:
    samples = tone(1.0).astype(np.float64)
    padded = np.concatenate((samples[256:0:-1], samples, samples[-2:-258:-1]))
    windowed = np.pad(hann(400), 56) * padded[frame * 160 : frame * 160 + 512]
    expected = np.log(np.maximum(1e-10, filters(128, 20, 8000, 512) @ magnitudes(windowed) ** 2))
    np.testing.assert_allclose(
        compute(samples.astype(np.float32), "mel128_10ms")[frame], expected, rtol=1e-5, atol=1e-4
    )


def test_mel80_is_autovcs_code_with_another_fft_and_hop() -> None:
    """From make_spect.py, without its 0.96 and its noise."""
    import librosa

    samples = tone(0.731)
    wav = signal.filtfilt(*signal.butter(5, 30 / (0.5 * 16000), btype="high", analog=False), samples)
    x = np.pad(wav, 200, mode="reflect")
    shape = ((len(x) - (400 - 320)) // 320, 400)
    strided = np.lib.stride_tricks.as_strided(x, shape=shape, strides=(320 * x.strides[0], x.strides[0]))
    spectrum = np.abs(np.fft.rfft(signal.get_window("hann", 400, fftbins=True) * strided, n=400))
    mel = spectrum @ librosa.filters.mel(sr=16000, n_fft=400, fmin=90, fmax=7600, n_mels=80).T
    level = 20 * np.log10(np.maximum(np.exp(-100 / 20 * np.log(10)), mel)) - 16
    np.testing.assert_allclose(compute(samples, "mel80_20ms"), np.clip((level + 100) / 100, 0, 1), atol=1e-6)


@pytest.mark.parametrize("seconds", [0.3, 1.0, 1.2345])
def test_the_ones_at_22_khz_are_librosas_defaults(seconds: float) -> None:
    import librosa

    samples = tone(seconds, rate=22050).astype(np.float64)
    samples[: len(samples) // 3] *= 1e-5  # so that 80 dB below the loudest cuts something
    mel = librosa.power_to_db(librosa.feature.melspectrogram(y=samples, sr=22050))
    assert (mel == mel.max() - 80).any()
    np.testing.assert_allclose(compute(samples, "mel128_22khz"), mel.T, atol=1e-4)
    np.testing.assert_allclose(compute(samples, "mfcc_22khz"), librosa.feature.mfcc(y=samples, sr=22050).T, atol=1e-3)


def test_the_cosine_transform_is_its_formula() -> None:
    samples = tone(0.2, rate=22050)
    mel, mfcc = compute(samples, "mel128_22khz"), compute(samples, "mfcc_22khz")
    at = (np.arange(128) + 0.5) * np.pi / 128
    for coefficient, scale in ((0, 1 / 128), (1, 2 / 128), (19, 2 / 128)):
        expected = np.sqrt(scale) * mel @ np.cos(coefficient * at)
        np.testing.assert_allclose(mfcc[:, coefficient], expected, rtol=1e-5, atol=1e-3)


def test_audio_is_resampled_to_the_rate_of_the_definition(tmp_path: Path) -> None:
    """From rates around it, and of lengths that do not come out even."""
    utterances, rates = [], (8000, 16000, 22050, 44100, 48000)
    for number, rate in enumerate(rates):
        soundfile.write(tmp_path / f"{rate}.wav", tone(0.5 + 0.0137 * number, rate), rate, subtype="FLOAT")
        utterances.append(Utterance(str(rate), audio=f"{rate}.wav"))
    stream = build(LogMel, {"definition": "mel128_22khz"}, "stream log_mel")
    assert (stream.sample_rate_hz, LogMel().sample_rate_hz) == (22050, 16000)
    done = extract(Manifest(utterances, tmp_path), tmp_path / "cache", stream, Options(dtype="float32"))
    assert not done.failures
    cached = featcache.open(tmp_path / "cache")["log_mel"]
    assert cached.spec.sample_rate_hz == 22050
    for number, rate in enumerate(rates):
        assert cached.num_frames(str(rate)) == 1 + round(round((0.5 + 0.0137 * number) * rate) * 22050 / rate) // 512
    plain, _ = soundfile.read(tmp_path / "22050.wav", dtype="float32")
    np.testing.assert_array_equal(cached["22050"][0], compute(plain, "mel128_22khz"))


def test_the_first_definitions_are_identified_as_ever() -> None:
    """Caches of before there were others stay good: their settings are the same, name by name."""
    names = ("num_mels", "lowest_hz", "highest_hz", "fft", "window", "hop", "highpass_hz", "power", "scale")
    for definition in ("mel80_20ms", "mel128_10ms"):
        settings = build(LogMel, {"definition": definition}, "stream log_mel").spec().settings
        assert tuple(settings) == ("definition", *names)
    settings = build(LogMel, {"definition": "mfcc_22khz"}, "stream log_mel").spec().settings
    assert (settings["sample_rate_hz"], settings["pad"], settings["num_coefficients"]) == (22050, "constant", 20)


@pytest.mark.parametrize("definition", DEFINITIONS)
@pytest.mark.parametrize("extra", [0, 1, 159, 160, 319, 320, 15999])
def test_there_is_a_frame_for_each_hop_and_one_more(definition: str, extra: int) -> None:
    hop, fewest, num_mels = DEFINITIONS[definition]
    samples = tone(2.0)[: fewest + extra]
    assert compute(samples, definition).shape == (1 + len(samples) // hop, num_mels)


def test_ten_times_louder_is_twenty_decibels_more() -> None:
    samples = tone(0.5)
    quiet, loud = (compute(gain * samples, "mel80_20ms") for gain in (0.1, 1.0))
    inside = (quiet > 0) & (loud < 1)
    assert inside.mean() > 0.9
    np.testing.assert_allclose((loud - quiet)[inside], 0.2, atol=1e-5)
    quiet, loud = (compute(gain * samples, "mel128_10ms") for gain in (0.1, 1.0))
    np.testing.assert_allclose((loud - quiet)[quiet > math.log(1e-10)], math.log(100), atol=1e-4)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_a_delay_of_one_hop_moves_every_frame_by_one(definition: str) -> None:
    hop, _, _ = DEFINITIONS[definition]
    samples = tone(1.0)
    here, later = compute(samples[hop:], definition), compute(samples, definition)
    middle = slice(20, 30)  # away from the ends, which the high-pass reaches
    np.testing.assert_allclose(here[middle], later[21:31], atol=1e-3)


def test_the_high_pass_removes_rumble() -> None:
    rumble = (0.3 * np.sin(2 * np.pi * 5 * np.arange(16000) / 16000)).astype(np.float32)
    samples = tone(1.0)
    middle = slice(10, 40)
    np.testing.assert_allclose(
        compute(samples + rumble, "mel80_20ms")[middle], compute(samples, "mel80_20ms")[middle], atol=0.01
    )


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_too_few_samples_to_reflect_are_named(definition: str) -> None:
    _, fewest, _ = DEFINITIONS[definition]
    compute(tone(1.0)[:fewest], definition)
    assert LogMel(definition=definition).num_frames(fewest - 1) == 0  # type: ignore[arg-type]
    with pytest.raises(StreamError, match=f"it has {fewest - 1} samples; .* needs more than"):
        compute(tone(1.0)[: fewest - 1], definition)


def test_the_digest_follows_the_definition_and_not_the_type_asked_to_compute_in() -> None:
    short, long = LogMel(), LogMel(definition="mel128_10ms")
    assert short.spec().digest != long.spec().digest
    assert short.spec(dtype="float32").digest != short.spec().digest
    assert short.spec(compute_dtype="bfloat16").digest == short.spec().digest
    assert short.spec().settings["hop"] == 320
    assert long.spec().settings["window"] == 400


def test_an_unknown_definition_is_named() -> None:
    with pytest.raises(ConfigError, match="mel80_20ms"):
        build(LogMel, {"definition": "mel40"}, "stream log_mel")


def test_real_speech_stays_inside_the_scale(shared_data: Path) -> None:
    path = sorted((shared_data / "emodb" / "wav").glob("*.wav"))[0]
    samples, _ = soundfile.read(path, dtype="float32")
    levels = compute(samples, "mel80_20ms")
    assert levels.min() >= 0
    assert 0.2 < levels.mean() < 0.8
    assert levels.max() < 1
    assert compute(samples, "mel128_10ms").min() > math.log(1e-10)

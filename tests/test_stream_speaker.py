"""The embedding is Resemblyzer's own, and an utterance that its voice detector empties is not lost in a constant."""

import warnings
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
from makers import tone

from featcache import ge2e
from featcache.errors import ConfigError, StreamError
from featcache.settings import build
from featcache.stream import Extractor, Features
from featcache.streams.speaker import Speaker


@pytest.fixture(scope="module")
def resemblyzer() -> ModuleType:
    with warnings.catch_warnings():  # of scipy.ndimage.morphology and pkg_resources, which it imports
        warnings.simplefilter("ignore")
        import resemblyzer

        return resemblyzer


@pytest.fixture(scope="module")
def recordings(shared_data: Path) -> list[np.ndarray]:
    paths = sorted((shared_data / "emodb" / "wav").glob("*.wav"))[::45]
    paths += sorted((shared_data / "ravdess").rglob("*.wav"))[::80]
    return [soundfile.read(path, dtype="float32")[0] for path in paths]


@cache
def loaded(preprocess: bool) -> Extractor:
    return Speaker(preprocess=preprocess).load("cpu", "float32")


def embed(samples: np.ndarray, preprocess: bool = True) -> Features:
    [features] = loaded(preprocess).extract([samples])
    return features


def test_preprocessing_equals_the_packages_bit_for_bit(resemblyzer: ModuleType, recordings: list[np.ndarray]) -> None:
    shortened = 0
    for samples in recordings:
        ours = ge2e.trim_long_silences(ge2e.normalise_volume(samples))
        assert np.array_equal(ours, resemblyzer.preprocess_wav(samples))
        shortened += len(ours) < len(samples) - 480
    assert shortened


def test_embeddings_equal_the_packages(resemblyzer: ModuleType, recordings: list[np.ndarray]) -> None:
    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
    for samples in recordings[::5]:
        trimmed = resemblyzer.preprocess_wav(samples)
        features = embed(samples)
        np.testing.assert_allclose(features.frames[0, 0], encoder.embed_utterance(trimmed), atol=1e-6)
        assert features.utterance_arrays["voiced_s"] == np.float32(len(trimmed) / 16000)
        plain = embed(samples, preprocess=False)
        np.testing.assert_allclose(plain.frames[0, 0], encoder.embed_utterance(samples), atol=1e-6)
        assert plain.utterance_arrays["voiced_s"] == np.float32(len(samples) / 16000)


@pytest.mark.parametrize("num_samples", [400, 25599, 25600, 25601, 31520, 31521, 37919, 37920, 37921, 50000])
def test_pieces_are_cut_where_the_package_cuts_them(resemblyzer: ModuleType, num_samples: int) -> None:
    _, slices = resemblyzer.VoiceEncoder.compute_partial_slices(num_samples, rate=1.3, min_coverage=0.75)
    samples = tone(3.2)[:num_samples]
    padded = np.pad(samples, (0, max(0, slices[-1].stop * 160 - num_samples)))
    mels = resemblyzer.audio.wav_to_mel_spectrogram(padded)
    np.testing.assert_array_equal(ge2e.partials(samples), np.stack([mels[piece] for piece in slices]))


def test_batching_changes_no_number() -> None:
    inputs = [tone(seconds, seed=number) for number, seconds in enumerate([0.4, 2.5, 1.6])]
    extractor = loaded(preprocess=True)
    for samples, batched in zip(inputs, extractor.extract(inputs), strict=True):
        [alone] = extractor.extract([samples])
        assert batched.frames.shape == (1, 1, 256)
        np.testing.assert_allclose(batched.frames, alone.frames, atol=1e-6)
        assert batched.utterance_arrays == alone.utterance_arrays


def test_embeddings_have_unit_length_and_tell_speakers_apart(shared_data: Path) -> None:
    extractor = loaded(preprocess=True)
    units = {}
    for speaker in ("03", "08"):
        paths = sorted((shared_data / "emodb" / "wav").glob(f"{speaker}*.wav"))[:4]
        batch = extractor.extract([soundfile.read(path, dtype="float32")[0] for path in paths])
        units[speaker] = np.concatenate([features.frames[0] for features in batch])
    np.testing.assert_allclose(np.linalg.norm(units["03"], axis=1), 1, rtol=1e-6)
    within = np.mean([(vectors @ vectors.T)[np.triu_indices(4, 1)].mean() for vectors in units.values()])
    assert within > (units["03"] @ units["08"].T).mean() + 0.1


def test_where_the_detector_leaves_nothing_the_whole_utterance_is_embedded() -> None:
    clicks = np.zeros(16000, np.float32)
    clicks[::4000] = 0.5
    assert len(ge2e.trim_long_silences(ge2e.normalise_volume(clicks))) == 0
    features = embed(clicks)
    assert features.utterance_arrays["voiced_s"] == 0
    np.testing.assert_array_equal(features.frames, embed(ge2e.normalise_volume(clicks), preprocess=False).frames)
    other = embed(tone(0.026))  # too short for a single decision
    assert other.utterance_arrays["voiced_s"] == 0
    assert not np.allclose(other.frames, features.frames, atol=1e-2)


def test_samples_driven_beyond_full_scale_are_clipped_for_the_detector() -> None:
    samples = tone(1.0) * np.float32(0.001)
    samples[8000] = 1.0
    samples[9000] = -1.0
    loud = np.float32(100) * samples
    assert np.array_equal(ge2e.trim_long_silences(loud) != 0, ge2e.trim_long_silences(np.clip(loud, -1, 1)) != 0)


def test_silence_is_refused() -> None:
    with pytest.raises(StreamError, match="it is silent"):
        embed(np.zeros(16000, np.float32))


def test_an_utterance_is_one_frame_and_too_few_samples_are_none() -> None:
    assert Speaker().num_frames(400) == 1
    assert Speaker().num_frames(399) == 0
    with pytest.raises(StreamError, match="399 samples; .* at least 400"):
        embed(np.ones(399, np.float32))


def test_batches_keep_the_order() -> None:
    assert Speaker().batches([9, 1, 8, 2, 7], batch_size=2) == [[0, 1], [2, 3], [4]]


def test_the_digest_follows_the_settings() -> None:
    assert Speaker().spec().digest != Speaker(preprocess=False).spec().digest
    assert Speaker().spec().digest == Speaker().spec(compute_dtype="bfloat16").digest
    assert Speaker().spec().frame_shift_s is None


def test_settings_come_from_text() -> None:
    assert build(Speaker, {"preprocess": "false"}, "stream speaker") == Speaker(preprocess=False)
    with pytest.raises(ConfigError, match="preprocess"):
        build(Speaker, {"preprocess": "maybe"}, "stream speaker")

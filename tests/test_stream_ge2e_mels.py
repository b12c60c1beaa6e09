"""Mels are what the speaker encoder is fed, at whatever level the audio is."""

from pathlib import Path

import numpy as np
import pytest
from makers import tone, write_corpus

import featcache
from featcache import ge2e
from featcache.errors import ConfigError, StreamError
from featcache.extract import Options, extract
from featcache.settings import build
from featcache.streams.ge2e_mels import Ge2eMels
from featcache.streams.ge2e_states import Ge2eStates


def mels(samples: np.ndarray, **settings: float) -> np.ndarray:
    """Return ``(frames, 40)``."""
    [features] = Ge2eMels(**settings).load("cpu", "float32").extract([samples])
    assert features.frames.dtype == np.float32
    return features.frames[0]


@pytest.mark.parametrize("target_rms", [0.03, 0.2])
def test_the_encoder_makes_of_them_what_ge2e_states_holds(target_rms: float) -> None:
    inputs = [tone(seconds, seed=number) for number, seconds in enumerate([0.4, 0.9, 0.03])]
    expected = Ge2eStates(target_rms=target_rms).load("cpu", "float32").extract(inputs)
    states = ge2e.Encoder("cpu").states([mels(samples, target_rms=target_rms) for samples in inputs])
    for ours, theirs in zip(states, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.frames)


@pytest.mark.parametrize("num_samples", [400, 479, 480, 1599, 1600, 1601])
def test_there_is_a_frame_each_ten_milliseconds(num_samples: int) -> None:
    assert mels(tone(0.2)[:num_samples]).shape == (Ge2eMels().num_frames(num_samples), 40)
    assert Ge2eMels().num_frames(num_samples) == 1 + num_samples // 160
    assert Ge2eMels().num_frames(399) == 0


def test_power_follows_the_level_that_is_set_and_not_the_recordings() -> None:
    samples = tone(0.5)
    np.testing.assert_allclose(mels(samples), mels(np.float32(0.01) * samples), rtol=1e-4)
    np.testing.assert_allclose(4 * mels(samples), mels(samples, target_rms=0.06), rtol=1e-4)


def test_the_cache_holds_them_in_float32(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "corpus", [0.2, 0.3])
    extract(manifest, tmp_path / "cache", Ge2eMels(), Options(device="cpu", dtype="float16"))
    held = featcache.open(tmp_path / "cache")["ge2e_mels"]
    for number, name in enumerate(manifest.ids):
        np.testing.assert_array_equal(held[name][0], mels(tone([0.2, 0.3][number], seed=number)))


@pytest.mark.parametrize(
    ("samples", "problem"),
    [(np.ones(399, np.float32), "399 samples"), (np.zeros(1600, np.float32), "it is silent")],
)
def test_audio_that_the_encoder_cannot_use_is_refused(samples: np.ndarray, problem: str) -> None:
    with pytest.raises(StreamError, match=problem):
        mels(samples)


def test_the_digest_follows_the_level_alone() -> None:
    spec = Ge2eMels().spec()
    assert (spec.layers, spec.dim, spec.frame_shift_s, spec.dtype) == (("mel",), 40, 0.01, "float32")
    assert spec.digest == Ge2eMels().spec("float16", "bfloat16").digest
    assert spec.digest != Ge2eMels(target_rms=0.1).spec().digest


def test_a_level_must_be_a_positive_number() -> None:
    assert build(Ge2eMels, {"target_rms": "0.1"}, "stream ge2e_mels") == Ge2eMels(target_rms=0.1)
    with pytest.raises(ConfigError, match="target_rms must be a positive number"):
        build(Ge2eMels, {"target_rms": "-1"}, "stream ge2e_mels")

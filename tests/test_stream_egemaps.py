"""Descriptors and functionals are openSMILE's own, and what it would answer with NaN is refused."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from makers import tone

from featcache.errors import ConfigError, MissingExtraError, StreamError
from featcache.settings import build
from featcache.streams.egemaps import Egemaps

opensmile = pytest.importorskip("opensmile")


@pytest.fixture(scope="module")
def extractor() -> Any:
    return Egemaps().load("cpu", "float32")


def test_values_equal_opensmile_called_on_the_file(extractor: Any, tmp_path: Path) -> None:
    samples = tone(0.7)
    soundfile.write(tmp_path / "tone.wav", samples, 16000, subtype="FLOAT")
    [features] = extractor.extract([samples])
    level = opensmile.FeatureLevel
    for ours, chosen in (
        (features.frames[0], level.LowLevelDescriptors),
        (features.utterance_arrays["functionals"][np.newaxis], level.Functionals),
    ):
        smile = opensmile.Smile(feature_set=opensmile.FeatureSet.eGeMAPSv02, feature_level=chosen)
        np.testing.assert_array_equal(ours, smile.process_file(tmp_path / "tone.wav").to_numpy())


def test_columns_are_named_in_the_spec(extractor: Any) -> None:
    spec = Egemaps().spec()
    [features] = extractor.extract([tone(0.5)])
    assert len(spec.settings["frame_columns"]) == features.frames.shape[2] == spec.dim == 25
    assert len(spec.settings["functional_columns"]) == 88
    assert spec.utterance_arrays["functionals"]["shape"] == [88]
    assert features.utterance_arrays["functionals"].dtype == np.float32
    loudness = spec.settings["frame_columns"].index("Loudness_sma3")
    [quiet] = extractor.extract([np.float32(0.1) * tone(0.5)])
    assert quiet.frames[0, :, loudness].mean() < features.frames[0, :, loudness].mean()


@pytest.mark.parametrize("num_samples", [960, 961, 1119, 1120, 1121, 1280, 3217, 8000, 11200])
def test_the_number_of_frames_is_known_ahead(extractor: Any, num_samples: int) -> None:
    [features] = extractor.extract([tone(0.7)[:num_samples]])
    assert features.frames.shape[1] == Egemaps().num_frames(num_samples)


@pytest.mark.parametrize("num_samples", [1, 800, 801, 959])
def test_less_than_sixty_milliseconds_is_refused(extractor: Any, num_samples: int) -> None:
    assert Egemaps().num_frames(num_samples) == 0
    with pytest.raises(StreamError, match=f"it has {num_samples} samples; eGeMAPS needs at least 960"):
        extractor.extract([tone(0.7)[:num_samples]])


def test_samples_beyond_full_scale_are_clipped_and_do_not_wrap_around(extractor: Any) -> None:
    samples = tone(0.5)
    samples *= 32767 / 32768 / np.abs(samples).max()
    loud = samples * np.float32(1.2)
    [clipped] = extractor.extract([np.clip(loud, -1, 32767 / 32768)])
    [ours] = extractor.extract([loud])
    np.testing.assert_array_equal(ours.frames, clipped.frames)
    whole = np.float32(1.0) * np.sign(tone(0.5))  # +1.0 is one step more than 16 bits hold
    [square] = extractor.extract([whole])
    [inside] = extractor.extract([whole * np.float32(32767 / 32768)])
    np.testing.assert_allclose(square.frames, inside.frames, rtol=0.01, atol=0.05)


def test_samples_that_are_not_finite_are_refused(extractor: Any) -> None:
    with pytest.raises(StreamError, match="NaN or infinite"):
        extractor.extract([np.full(16000, np.nan, np.float32)])


def test_values_that_are_not_finite_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas

    class Broken:
        def process_signal(self, samples: np.ndarray, rate: int) -> pandas.DataFrame:
            return pandas.DataFrame([[0.0, np.nan, *[0.0] * 23]])

    extractor = Egemaps().load("cpu", "float32")
    monkeypatch.setattr(extractor, "_descriptors", Broken())
    with pytest.raises(StreamError, match="openSMILE's alphaRatio_sma3 is not finite"):
        extractor.extract([tone(0.5)])


def test_an_utterance_does_not_depend_on_those_before_it(extractor: Any) -> None:
    first, second = tone(0.6, seed=1), tone(0.5, seed=2)
    [alone] = extractor.extract([second])
    [_, after] = extractor.extract([first, second])
    np.testing.assert_array_equal(after.frames, alone.frames)
    np.testing.assert_array_equal(after.utterance_arrays["functionals"], alone.utterance_arrays["functionals"])


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opensmile", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'featcache\[egemaps\]'"):
        Egemaps().load("cpu", "float32")


def test_the_digest_follows_the_stored_type_only() -> None:
    assert Egemaps().spec().digest == Egemaps().spec(compute_dtype="bfloat16").digest
    assert Egemaps().spec().digest != Egemaps().spec(dtype="float32").digest


def test_there_is_nothing_to_set() -> None:
    assert build(Egemaps, {}, "stream egemaps") == Egemaps()
    with pytest.raises(ConfigError, match="no setting level. Its settings are: none"):
        build(Egemaps, {"level": "x"}, "stream egemaps")

"""The encoder's states are those of the published network, alone or batched, at whatever level the audio is."""

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from makers import speech_checkpoint, tone

from featcache import checkpoints, ge2e
from featcache.errors import CheckpointError, ConfigError, StreamError
from featcache.settings import build
from featcache.streams.ge2e_states import Ge2eStates


@pytest.fixture(scope="module")
def resemblyzer() -> ModuleType:
    with warnings.catch_warnings():  # of scipy.ndimage.morphology and pkg_resources, which it imports
        warnings.simplefilter("ignore")
        import resemblyzer

        return resemblyzer


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max())


def states(samples: np.ndarray, **settings: Any) -> np.ndarray:
    [features] = Ge2eStates(**settings).load("cpu", "float32").extract([samples])
    return features.frames


def test_mels_equal_the_packages_bit_for_bit(resemblyzer: ModuleType) -> None:
    for seconds in (0.025, 0.3, 1.617):
        samples = tone(seconds)
        expected = resemblyzer.audio.wav_to_mel_spectrogram(samples)
        assert np.array_equal(ge2e.mel_power(samples), expected)


def test_the_last_state_makes_the_packages_embedding(resemblyzer: ModuleType) -> None:
    samples = tone(1.3)
    scaled = (samples.astype(np.float64) * (0.03 / np.sqrt(np.mean(samples.astype(np.float64) ** 2)))).astype(
        np.float32
    )
    mels = torch.from_numpy(resemblyzer.audio.wav_to_mel_spectrogram(scaled))[None]
    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
    with torch.inference_mode():
        expected = encoder(mels)[0].numpy()
        raw = torch.relu(encoder.linear(torch.from_numpy(states(samples)[-1, -1]))).numpy()
    assert close(raw / np.linalg.norm(raw), expected)


def test_every_layer_is_that_of_the_published_network(resemblyzer: ModuleType) -> None:
    samples = tone(0.8)
    ours = states(samples, target_rms=ge2e.rms(samples))
    encoder = resemblyzer.VoiceEncoder("cpu", verbose=False)
    below = torch.from_numpy(resemblyzer.audio.wav_to_mel_spectrogram(samples))[None]
    for layer in range(3):
        lstm = torch.nn.LSTM(below.shape[2], 256, batch_first=True)
        weights = {name: encoder.lstm.state_dict()[f"{name[:-1]}{layer}"] for name in lstm.state_dict()}
        lstm.load_state_dict(weights)
        with torch.inference_mode():
            below, _ = lstm(below)
        assert close(ours[layer], below[0].numpy())
    with torch.inference_mode():
        whole, _ = encoder.lstm(torch.from_numpy(resemblyzer.audio.wav_to_mel_spectrogram(samples))[None])
    assert close(ours[-1], whole[0].numpy())


def test_batching_changes_no_number() -> None:
    stream = Ge2eStates()
    inputs = [tone(seconds, seed=number) for number, seconds in enumerate([0.4, 1.3, 0.41, 0.9, 0.03])]
    extractor = stream.load("cpu", "float32")
    for samples, batched in zip(inputs, extractor.extract(inputs), strict=True):
        [alone] = extractor.extract([samples])
        assert batched.frames.shape == alone.frames.shape == (3, stream.num_frames(len(samples)), 256)
        assert close(batched.frames, alone.frames)


def test_batching_real_speech_changes_no_number(shared_data: Path) -> None:
    paths = sorted((shared_data / "emodb" / "wav").glob("*.wav"))[::100]
    inputs = [soundfile.read(path, dtype="float32")[0] for path in paths]
    extractor = Ge2eStates().load("cpu", "float32")
    for samples, batched in zip(inputs, extractor.extract(inputs), strict=True):
        assert close(batched.frames, extractor.extract([samples])[0].frames)


@pytest.mark.parametrize("num_samples", [400, 479, 480, 1599, 1600, 1601])
def test_there_is_a_frame_each_ten_milliseconds(num_samples: int) -> None:
    assert states(tone(0.2)[:num_samples]).shape[1] == Ge2eStates().num_frames(num_samples) == 1 + num_samples // 160


def test_the_level_of_a_recording_does_not_matter() -> None:
    samples = tone(0.5)
    assert np.allclose(states(samples), states(np.float32(0.01) * samples), atol=1e-5)
    assert not np.allclose(states(samples), states(samples, target_rms=0.3), atol=1e-2)


def test_batches_hold_each_utterance_once_and_similar_lengths_together() -> None:
    assert Ge2eStates().batches([9, 1, 8, 2, 7], batch_size=2) == [[1, 3], [4, 2], [0]]


@pytest.mark.parametrize(
    ("samples", "problem"),
    [
        (np.ones(399, np.float32), "399 samples; .* at least 400"),
        (np.full(1600, np.nan, np.float32), "NaN or infinite"),
        (np.zeros(1600, np.float32), "it is silent: its RMS is 0"),
        (np.full(1600, 1e-30, np.float32), "it is silent: its RMS is 1e-30"),
    ],
)
def test_audio_that_would_give_meaningless_states_is_refused(samples: np.ndarray, problem: str) -> None:
    extractor = Ge2eStates().load("cpu", "float32")
    with pytest.raises(StreamError, match=problem):
        extractor.extract([tone(0.5), samples])


def test_the_digest_follows_the_level_and_the_stored_type() -> None:
    base = Ge2eStates()
    assert base.spec().digest != Ge2eStates(target_rms=0.1).spec().digest
    assert base.spec().digest != base.spec(dtype="float32").digest
    assert base.spec().digest == base.spec(compute_dtype="bfloat16").digest
    assert base.spec().compute_dtype == "float32"
    assert base.spec().layers == ("lstm_1", "lstm_2", "lstm_3")


def test_settings_come_from_text() -> None:
    assert build(Ge2eStates, {"target_rms": "0.1"}, "stream ge2e_states") == Ge2eStates(target_rms=0.1)
    for level in ("0", "-1", "nan", "inf", "loud"):
        with pytest.raises(ConfigError, match="target_rms"):
            build(Ge2eStates, {"target_rms": level}, "stream ge2e_states")


def test_weights_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install resemblyzer"):
        Ge2eStates().spec()


def test_damaged_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model_state": {}}, tmp_path / "pretrained.pt")
    monkeypatch.setattr(ge2e, "_weights_path", lambda: tmp_path / "pretrained.pt")
    with pytest.raises(CheckpointError, match="does not hold the weights expected"):
        Ge2eStates().load("cpu", "float32")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The published weights, saved as an encoder that was trained further is."""
    ge2e.save_encoder(tmp_path / "fold1", ge2e.load_weights())
    return tmp_path / "fold1"


def test_a_saved_copy_gives_the_same_states_bit_for_bit(saved: Path) -> None:
    samples = tone(0.6)
    np.testing.assert_array_equal(states(samples, checkpoint=str(saved)), states(samples))


def test_weights_that_were_trained_further_give_other_states_under_another_name(saved: Path) -> None:
    before = Ge2eStates(checkpoint=str(saved)).spec()
    weights = ge2e.load_weights(str(saved))
    weights["lstm.weight_hh_l2"] = 0.5 * weights["lstm.weight_hh_l2"]
    ge2e.save_encoder(saved, weights)
    samples = tone(0.6)
    ours, published = states(samples, checkpoint=str(saved)), states(samples)
    np.testing.assert_array_equal(ours[:2], published[:2])
    assert not np.allclose(ours[2], published[2], atol=1e-3)
    after = Ge2eStates(checkpoint=str(saved)).spec()
    assert len({before.name, after.name, Ge2eStates().spec().name}) == 3
    assert after.checkpoint == checkpoints.resolve(str(saved)).identity()
    assert after.settings == Ge2eStates().spec().settings


def test_the_published_weights_keep_their_name() -> None:
    spec = Ge2eStates().spec()
    assert spec.checkpoint == {"name": "resemblyzer", "weights_sha256": checkpoints.file_sha256(ge2e._weights_path())}


def test_saving_writes_the_same_bytes_and_nothing_that_the_network_has_not(saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    assert sorted(before) == ["config.json", "model.safetensors"]
    weights = dict(reversed(ge2e.load_weights(str(saved)).items()))
    ge2e.save_encoder(saved, {**weights, "similarity_weight": torch.ones(1)})
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_weights_that_are_not_the_networks_are_not_saved(tmp_path: Path) -> None:
    weights = ge2e.load_weights()
    with pytest.raises(CheckpointError, match=r"lstm.bias_ih_l1 is of shape \(3,\), not \(1024,\)"):
        ge2e.save_encoder(tmp_path / "e", {**weights, "lstm.bias_ih_l1": torch.ones(3)})
    del weights["linear.bias"]
    with pytest.raises(CheckpointError, match="linear.bias is missing"):
        ge2e.save_encoder(tmp_path / "e", weights)
    assert not (tmp_path / "e").exists()


def test_a_checkpoint_that_is_no_speaker_encoder_is_named(tmp_path: Path, saved: Path) -> None:
    with pytest.raises(CheckpointError, match="of type 'wav2vec2'; ge2e_states takes a speaker encoder"):
        Ge2eStates(checkpoint=str(speech_checkpoint(tmp_path / "w"))).spec()
    with pytest.raises(CheckpointError, match="There is no checkpoint folder"):
        Ge2eStates(checkpoint=str(tmp_path / "nothing")).spec()
    (saved / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="does not hold the weights expected .* Save the encoder again"):
        Ge2eStates(checkpoint=str(saved)).load("cpu", "float32")

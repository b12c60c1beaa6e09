"""The front end's output is what the model's own module gives, alone or batched, before the feature projection."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import speech_checkpoint, tone, write_corpus
from transformers import AutoModel

import featcache
from featcache import audio, speech_encoders
from featcache.errors import CheckpointError, StreamError
from featcache.extract import Options, extract
from featcache.settings import build
from featcache.streams.conv_features import ConvFeatures
from featcache.streams.hidden_states import HiddenStates

FAMILIES = [
    ("wav2vec2", "layer"),
    ("wav2vec2", "group"),
    ("hubert", "layer"),
    ("hubert", "group"),
    ("wavlm", "layer"),
    ("data2vec-audio", "layer"),
]
DURATIONS_S = [0.5, 0.52, 0.5, 0.51, 0.9]


@pytest.fixture(scope="module", params=FAMILIES, ids="-".join)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, norm = request.param
    return speech_checkpoint(tmp_path_factory.mktemp("checkpoint") / f"{family}-{norm}", family, norm)


def close(ours: np.ndarray, theirs: np.ndarray) -> bool:
    return bool(np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max())


def direct(checkpoint: Path, samples: np.ndarray) -> np.ndarray:
    """Return ``(1, frames, dim)`` of the module itself, on samples normalised as transformers' extractor does."""
    model = AutoModel.from_pretrained(checkpoint).eval()
    values = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.inference_mode():
        return model.feature_extractor(torch.from_numpy(values)[None]).transpose(1, 2).numpy()


def test_frames_equal_the_module_called_directly(checkpoint: Path) -> None:
    stream = ConvFeatures(checkpoint=str(checkpoint))
    samples = tone(0.7)
    [features] = stream.load("cpu", "float32").extract([samples])
    expected = direct(checkpoint, samples)
    assert features.frames.shape == expected.shape == (1, stream.num_frames(len(samples)), stream.spec().dim)
    assert close(features.frames, expected)


def test_batching_changes_no_number(checkpoint: Path) -> None:
    stream = ConvFeatures(checkpoint=str(checkpoint))
    inputs = [tone(seconds, seed=number) for number, seconds in enumerate(DURATIONS_S)]
    extractor = stream.load("cpu", "float32")
    groups = stream.batches([len(samples) for samples in inputs], batch_size=8)
    assert sorted(index for group in groups for index in group) == list(range(len(inputs)))
    assert max(len(group) for group in groups) > 1
    for group in groups:
        for index, features in zip(group, extractor.extract([inputs[index] for index in group]), strict=True):
            assert close(features.frames, direct(checkpoint, inputs[index]))


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_unequal_lengths_share_a_batch_only_where_padding_is_harmless(tmp_path: Path, norm: str) -> None:
    stream = ConvFeatures(checkpoint=str(speech_checkpoint(tmp_path / norm, "wav2vec2", norm)))
    lengths = [16000, 16100, 16000]
    groups = stream.batches(lengths, batch_size=8)
    assert groups == ([[0, 2, 1]] if norm == "layer" else [[0, 2], [1]])
    inputs = [tone(1.1, seed=number)[:length] for number, length in enumerate(lengths)]
    extractor = stream.load("cpu", "float32")
    together = zip(extractor.extract(inputs), inputs, strict=True)
    harmless = [close(features.frames, extractor.extract([alone])[0].frames) for features, alone in together]
    assert all(harmless) == (norm == "layer")


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
def test_the_cache_holds_what_the_module_gives(tmp_path: Path, backend: str) -> None:
    folder = speech_checkpoint(tmp_path / "model")
    manifest = write_corpus(tmp_path / "corpus", DURATIONS_S)
    options = Options(device="cpu", backend=backend, dtype="float32")
    extract(manifest, tmp_path / "cache", ConvFeatures(checkpoint=str(folder)), options)
    stream = featcache.open(tmp_path / "cache")["conv_features"]
    for utterance in manifest:
        assert close(stream[utterance.id], direct(folder, audio.decode(manifest.audio_path(utterance)).samples))


def test_the_rest_of_the_model_makes_hidden_states_of_it(tmp_path: Path) -> None:
    folder = speech_checkpoint(tmp_path / "model")
    samples = tone(0.6)
    [conv] = ConvFeatures(checkpoint=str(folder)).load("cpu", "float32").extract([samples])
    [hidden] = HiddenStates(checkpoint=str(folder), tap="final_norm").load("cpu", "float32").extract([samples])
    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        projected, _ = model.feature_projection(torch.from_numpy(conv.frames))
        last = model.encoder(projected).last_hidden_state
    assert close(hidden.frames[-1], last[0].numpy())


def test_samples_are_padded_before_they_are_normalised(tmp_path: Path) -> None:
    folder = speech_checkpoint(tmp_path / "model")
    samples = tone(0.5)
    stream = ConvFeatures(checkpoint=str(folder), pad="match_log_mel")
    [features] = stream.load("cpu", "float32").extract([samples])
    assert features.frames.shape[1] == stream.num_frames(len(samples)) == 1 + len(samples) // 320
    assert close(features.frames, direct(folder, np.pad(samples, 319)))


def test_every_setting_that_decides_numbers_changes_the_digest(tmp_path: Path) -> None:
    folder = speech_checkpoint(tmp_path / "w")
    base = ConvFeatures(checkpoint=str(folder))
    specs = [
        base.spec(),
        base.spec(dtype="float32"),
        base.spec(compute_dtype="bfloat16"),
        ConvFeatures(checkpoint=str(folder), normalise=False).spec(),
        ConvFeatures(checkpoint=str(folder), pad="match_log_mel").spec(),
        ConvFeatures(checkpoint=str(speech_checkpoint(tmp_path / "other" / "w", seed=1))).spec(),
    ]
    assert len({spec.digest for spec in specs}) == len(specs)
    assert (specs[0].layers, specs[0].dim, specs[0].frame_shift_s) == (("conv",), 16, 0.02)


def test_settings_come_from_text(tmp_path: Path) -> None:
    stream = build(ConvFeatures, {"checkpoint": str(tmp_path), "normalise": "false"}, "stream conv_features")
    assert stream == ConvFeatures(checkpoint=str(tmp_path), normalise=False)


def test_what_is_no_speech_encoder_is_named(tmp_path: Path) -> None:
    folder = speech_checkpoint(tmp_path / "w")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(CheckpointError, match=r"of type 'bert'; conv_features takes wav2vec2"):
        ConvFeatures(checkpoint=str(folder)).spec()
    del config["conv_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="lacks conv_dim"):
        ConvFeatures(checkpoint=str(folder)).spec()


def test_too_few_samples_are_named(tmp_path: Path) -> None:
    extractor = ConvFeatures(checkpoint=str(speech_checkpoint(tmp_path / "w"))).load("cpu", "float32")
    with pytest.raises(StreamError, match="399 samples, too few"):
        extractor.extract([tone(1.0)[:399]])


def test_a_plan_knows_that_the_front_end_costs_less_than_the_whole_encoder(tmp_path: Path) -> None:
    folder = str(speech_checkpoint(tmp_path / "w"))
    config = ConvFeatures(checkpoint=folder).resolved.config
    large = {**config, "hidden_size": 1024, "intermediate_size": 4096}
    part, whole = (speech_encoders.seconds_per_second(large, "cpu", "float32", layers) for layers in (0, 24))
    assert part is not None
    assert whole is not None
    assert 0 < part < whole / 5
    assert ConvFeatures(checkpoint=folder).seconds_per_second("cuda", "float32") is None

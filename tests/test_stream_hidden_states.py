"""Hidden states agree with the model called directly, alone or batched, for every family."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from makers import speech_checkpoint, tone, write_corpus
from transformers import AutoModel

import featcache
from featcache import audio
from featcache.errors import CheckpointError, ConfigError, StreamError
from featcache.extract import Options, extract
from featcache.settings import build
from featcache.streams.hidden_states import HiddenStates

FAMILIES = [
    ("wav2vec2", "layer"),
    ("wav2vec2", "group"),
    ("hubert", "layer"),
    ("hubert", "group"),
    ("wavlm", "layer"),
    ("wavlm", "group"),
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
    """Return ``(layers, frames, dim)`` as transformers gives them, on samples normalised as its extractor does."""
    model = AutoModel.from_pretrained(checkpoint).eval()
    values = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    last: list[torch.Tensor] = []
    model.encoder.layers[-1].register_forward_hook(
        lambda _, __, output: last.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.inference_mode():
        states = model(torch.from_numpy(values)[None], output_hidden_states=True).hidden_states
    if transformers.__version__.startswith("4."):  # there the last state may be behind the encoder's final norm
        states = (*states[:-1], last[0])
    return torch.cat(states).numpy()


def test_frames_equal_the_model_called_directly(checkpoint: Path) -> None:
    stream = HiddenStates(checkpoint=str(checkpoint))
    samples = tone(0.7)
    [features] = stream.load("cpu", "float32").extract([samples])
    spec = stream.spec()
    expected = direct(checkpoint, samples)
    assert features.frames.shape == expected.shape == (len(spec.layers), stream.num_frames(len(samples)), spec.dim)
    assert close(features.frames, expected)


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_cache_holds_what_the_model_gives(tmp_path: Path, backend: str, norm: str, batch_size: int) -> None:
    folder = speech_checkpoint(tmp_path / "model", norm=norm)
    manifest = write_corpus(tmp_path / "corpus", DURATIONS_S)
    options = Options(device="cpu", backend=backend, dtype="float32", batch_size=batch_size)
    extract(manifest, tmp_path / "cache", HiddenStates(checkpoint=str(folder)), options)
    hidden = featcache.open(tmp_path / "cache")["hidden_states"]
    for utterance in manifest:
        samples = audio.decode(manifest.audio_path(utterance)).samples
        assert close(hidden[utterance.id], direct(folder, samples))


def test_batching_changes_no_number(checkpoint: Path) -> None:
    stream = HiddenStates(checkpoint=str(checkpoint))
    inputs = [tone(seconds, seed=number) for number, seconds in enumerate(DURATIONS_S)]
    extractor = stream.load("cpu", "float32")
    groups = stream.batches([len(samples) for samples in inputs], batch_size=8)
    assert sorted(index for group in groups for index in group) == list(range(len(inputs)))
    assert max(len(group) for group in groups) > 1
    for group in groups:
        for index, features in zip(group, extractor.extract([inputs[index] for index in group]), strict=True):
            [alone] = extractor.extract([inputs[index]])
            assert features.frames.shape == alone.frames.shape
            assert close(features.frames, alone.frames)


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_unequal_lengths_share_a_batch_only_where_padding_is_harmless(tmp_path: Path, norm: str) -> None:
    stream = HiddenStates(checkpoint=str(speech_checkpoint(tmp_path / norm, "wav2vec2", norm)))
    groups = stream.batches([16000, 16100, 16000], batch_size=8)
    assert len(groups) == (1 if norm == "layer" else 2)


@pytest.mark.parametrize("num_samples", [16000, 16079, 16080, 16160, 16319])
def test_match_log_mel_gives_as_many_frames_as_log_mel(tmp_path: Path, num_samples: int) -> None:
    stream = HiddenStates(checkpoint=str(speech_checkpoint(tmp_path / "w")), pad="match_log_mel")
    assert stream.num_frames(num_samples) == 1 + num_samples // 320
    [features] = stream.load("cpu", "float32").extract([tone(1.1)[:num_samples]])
    assert features.frames.shape[1] == 1 + num_samples // 320


def test_final_norm_is_the_last_layer_through_the_encoders_norm(tmp_path: Path) -> None:
    folder = speech_checkpoint(tmp_path / "w")
    samples = tone(0.5)
    [raw] = HiddenStates(checkpoint=str(folder)).load("cpu", "float32").extract([samples])
    [normed] = HiddenStates(checkpoint=str(folder), tap="final_norm").load("cpu", "float32").extract([samples])
    norm = AutoModel.from_pretrained(folder).encoder.layer_norm
    with torch.inference_mode():
        expected = norm(torch.from_numpy(raw.frames[-1])).numpy()
    assert close(normed.frames[-1], expected)
    assert np.array_equal(normed.frames[:-1], raw.frames[:-1])


def test_the_preprocessor_config_decides_whether_samples_are_normalised(tmp_path: Path) -> None:
    folder = speech_checkpoint(tmp_path / "w")
    assert HiddenStates(checkpoint=str(folder)).spec().settings["normalise"] is True
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "sampling_rate": 16000}))
    assert HiddenStates(checkpoint=str(folder)).spec().settings["normalise"] is False
    assert HiddenStates(checkpoint=str(folder), normalise=True).spec().settings["normalise"] is True


def test_every_setting_that_decides_numbers_changes_the_digest_and_a_moved_folder_does_not(tmp_path: Path) -> None:
    folder = speech_checkpoint(tmp_path / "w")
    base = HiddenStates(checkpoint=str(folder))
    names = {
        base.spec().name,
        base.spec(dtype="float32").name,
        base.spec(compute_dtype="bfloat16").name,
        HiddenStates(checkpoint=str(folder), tap="final_norm").spec().name,
        HiddenStates(checkpoint=str(folder), normalise=False).spec().name,
        HiddenStates(checkpoint=str(folder), pad="match_log_mel").spec().name,
        HiddenStates(checkpoint=str(speech_checkpoint(tmp_path / "other" / "w", seed=1))).spec().name,
    }
    assert len(names) == 7
    moved = speech_checkpoint(tmp_path / "elsewhere" / "w")
    assert HiddenStates(checkpoint=str(moved)).spec().name == base.spec().name


def test_settings_come_from_text(tmp_path: Path) -> None:
    stream = build(HiddenStates, {"checkpoint": str(tmp_path), "normalise": "false", "pad": "match_log_mel"}, "stream")
    assert stream == HiddenStates(checkpoint=str(tmp_path), normalise=False, pad="match_log_mel")
    with pytest.raises(ConfigError, match="no setting checkpont"):
        build(HiddenStates, {"checkpont": "x"}, "stream hidden_states")


def test_a_text_encoder_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(CheckpointError, match="of type 'bert'.*token_states"):
        HiddenStates(checkpoint=str(tmp_path / "bert")).spec()


def test_too_few_samples_are_named(tmp_path: Path) -> None:
    extractor = HiddenStates(checkpoint=str(speech_checkpoint(tmp_path / "w"))).load("cpu", "float32")
    with pytest.raises(StreamError, match="399 samples, too few"):
        extractor.extract([tone(1.0)[:399]])


def test_bfloat16_is_near_float32(tmp_path: Path) -> None:
    stream = HiddenStates(checkpoint=str(speech_checkpoint(tmp_path / "w")))
    samples = tone(0.5)
    [exact] = stream.load("cpu", "float32").extract([samples])
    [rough] = stream.load("cpu", "bfloat16").extract([samples])
    error = np.linalg.norm(rough.frames - exact.frames) / np.linalg.norm(exact.frames)
    assert 0 < error < 0.05
    assert rough.frames.dtype == np.float32

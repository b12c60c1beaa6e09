"""The cache holds the samples that the reader of audio gives, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from makers import tone

import featcache
from featcache import Manifest, Utterance, audio
from featcache.extract import Options, extract
from featcache.streams.waveform import Waveform
from featcache.verify import verify
from featcache.view import View


@pytest.fixture
def corpus(tmp_path: Path) -> Manifest:
    """Recordings at several rates, in one and two channels, and a span of one."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    stereo = np.stack([tone(0.4, 22050), tone(0.4, 22050, seed=1)], axis=1)
    soundfile.write(folder / "own.wav", tone(0.3), 16000, subtype="PCM_16")
    soundfile.write(folder / "other.flac", stereo, 22050, subtype="PCM_24")
    return Manifest(
        [
            Utterance(id="own", audio="own.wav"),
            Utterance(id="other", audio="other.flac"),
            Utterance(id="span", audio="own.wav", start_s=0.1, end_s=0.2),
        ],
        folder=folder,
    )


def expected(corpus: Manifest, name: str) -> np.ndarray:
    [utterance] = corpus.select([name])
    return audio.decode(corpus.audio_path(utterance), utterance.start_s, utterance.end_s).at_rate(16000)


@pytest.mark.parametrize("backend", ["zarr", "hdf5"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_the_cache_holds_the_samples_whatever_type_is_asked_for(
    tmp_path: Path, corpus: Manifest, backend: str, dtype: str
) -> None:
    summary = extract(corpus, tmp_path / "cache", Waveform(), Options(device="cpu", backend=backend, dtype=dtype))
    assert (summary.computed, summary.failures) == (corpus.ids, {})
    stream = featcache.open(tmp_path / "cache")["waveform"]
    for name in corpus.ids:
        samples = expected(corpus, name)
        assert stream[name].dtype == np.float32
        assert len(samples) == Waveform().num_frames(len(samples)) == stream.num_frames(name)
        np.testing.assert_array_equal(stream[name], samples[np.newaxis, :, np.newaxis])
    assert verify(tmp_path / "cache") == (3, [])


def test_a_view_pads_them_with_silence(tmp_path: Path, corpus: Manifest) -> None:
    extract(corpus, tmp_path / "cache", Waveform(), Options(device="cpu"))
    view = View(featcache.open(tmp_path / "cache")["waveform"], corpus.ids)
    frames, lengths = view.padded(torch.arange(3))
    for name, row, length in zip(corpus.ids, frames.numpy(), lengths.tolist(), strict=True):
        np.testing.assert_array_equal(row[0, :length, 0], expected(corpus, name))
        assert not row[0, length:].any()


def test_the_spec_names_units_and_does_not_follow_options() -> None:
    spec = Waveform().spec()
    assert (spec.layers, spec.dim, spec.frame_shift_s, spec.dtype) == (("samples",), 1, 1 / 16000, "float32")
    assert Waveform().spec("int8", "bfloat16").name == spec.name


def test_batches_hold_each_utterance_once() -> None:
    groups = Waveform().batches([16000] * 130, batch_size=8)
    assert [index for group in groups for index in group] == list(range(130))
    assert max(map(len, groups)) == 64
